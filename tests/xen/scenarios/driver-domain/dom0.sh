# The backend in a PVH guest, the toolstack in dom0: a guest reads and writes a disk of the driver domain; nothing is left

make_guest storage driver-domain/storage pvh
make_guest guest main/domu
guest=$(domid guest)
holdings "$guest" >/run/holdings-before

start_guest storage
wait_for_report storage disk
attach guest --backend storage type=blk,serial=lab,path=/tmp/disk.img
start_guest guest
wait_for_guest guest
[ "$(reported guest read)" = "$(reported storage disk)" ] || fail "the guest read something else than the disk holds"

detach guest 0
wait_for_no_bus() { ! xenstore-exists "/local/domain/$(domid storage)/backend/virtio-msg/$guest"; }
wait_until 10 wait_for_no_bus || fail "the driver domain's directory of the bus is still in XenStore"
assert_no_nodes "$guest"
# The hypervisor tells of every domain that maps a page of the guest's.
assert_holdings "$guest" /run/holdings-before

tell storage stop yes
wait_for_guest storage
[ "$(reported guest written)" = "$(reported storage disk-after)" ] || fail "the disk does not hold what the guest wrote"
destroy_guest guest
destroy_guest storage
