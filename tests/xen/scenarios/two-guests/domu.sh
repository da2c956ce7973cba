# Sees its own disk and no other; reaches no node of the other guest, and of its own backend only what is for it.
. /lab/scenarios/two-guests/probe.sh

wait_for_note name
vmsg frontend list >/tmp/list
cat /tmp/list
[ "$(awk 'NR > 1 { print $7 }' /tmp/list)" = "$(note name)" ] || fail "this guest does not see exactly its own disk"
vmsg frontend blk copy 0 /tmp/read.img
report read "$(sha256 /tmp/read.img)"

report connected yes
wait_for_note probe
assert_out_of_reach forbidden
assert_out_of_reach forbidden-too
back=$(xenstore-read device/virtio-msg/0/backend)
for key in state online frontend-uuid; do
    xenstore-read "$back/$key"
    must_fail xenstore-write "$back/$key" 4
done
# All that is still well.
vmsg frontend blk verify /tmp/read.img 0
