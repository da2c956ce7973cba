# A guest names its buffers by their grants: the hypervisor copies them, and nothing of them stays mapped

disk=/srv/disk.img
before=/srv/before.img

make_guest guest
guest=$(domid guest)
make_disk $disk 16
cp $disk $before
holdings "$guest" >/run/holdings-before

attach guest "type=blk,mode=rw,serial=lab,path=$disk"
start_backend
start_guest guest
wait_for_guest guest
assert_backend_lives

[ "$(reported guest read)" = "$(sha256 $before)" ] || fail "the guest read something else than the disk holds"
written_bytes=$(reported guest written-bytes)
[ "$(head -c "$written_bytes" $disk | sha256)" = "$(reported guest written)" ] || fail "the disk does not hold what the guest wrote"
grep -q 'grant_addresses=true' "$RESULTS/backend.log" || fail "no connection chose grant addresses"

detach guest 0
assert_no_nodes "$guest"
assert_holdings "$guest" /run/holdings-before

stop_backend
destroy_guest guest
