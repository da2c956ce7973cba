# The whole way once, on a real Xen: attach a disk, serve it, let the guest read and write it, detach it.
# At the end the data is right on both sides and nothing of the guest is held any more.

disk=/srv/disk.img
before=/srv/before.img

dd if=/dev/urandom of=$disk bs=1M count=16 2>/dev/null
cp $disk $before
holdings >/run/holdings-before

vmsg attach "$GUEST" "type=blk,mode=rw,serial=lab,path=$disk" >"$RESULTS/attach.log" 2>&1 || fail "vmsg attach: see attach.log"
vmsg backend >"$RESULTS/backend.log" 2>&1 &
backend=$!

start_guest
wait_for_guest
kill -0 $backend || fail "the backend died: see backend.log"

[ "$(guest_reported read)" = "$(sha256 $before)" ] || fail "the guest read something else than the disk holds"
written=$(guest_reported written)
written_bytes=$(guest_reported written-bytes)
[ "$(head -c "$written_bytes" $disk | sha256sum | cut -d ' ' -f 1)" = "$written" ] || fail "the disk does not hold what the guest wrote"
cmp $disk $before "$written_bytes" "$written_bytes" || fail "the guest's write changed more of the disk than it should"

vmsg detach "$GUEST" 0 >"$RESULTS/detach.log" 2>&1 || fail "vmsg detach: see detach.log"
for directory in "/local/domain/0/backend/virtio-msg/$DOMID" "/vmsg/$DOMID"; do
    ! xenstore-exists "$directory" || fail "$directory is still in XenStore after detach"
done
assert_holdings /run/holdings-before

kill $backend
wait $backend || fail "the backend ended with $? when asked to: see backend.log"
assert_kernel_is_content

xl destroy "$GUEST"
wait_until 10 sh -c '! xl list | grep -q -- "(null)"' || fail "the guest is a zombie: someone still maps its pages"
