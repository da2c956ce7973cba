# Reads its disk and reboots; after that reads once more.

if ! wait_until 5 xenstore-exists device/virtio-msg/0; then wait_for_note rebooted; fi
wait_until 60 xenstore-exists device/virtio-msg/0 || fail "there is no bus"
vmsg frontend blk copy 0 /tmp/read.img
if ! xenstore-exists lab/rebooted; then
    report read "$(sha256 /tmp/read.img)"
    sleep 1 # the console
    reboot -f
fi
report read-again "$(sha256 /tmp/read.img)"
