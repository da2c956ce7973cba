# Missing modules and reached limits: each failure names its cause, nothing is left behind, and it ends with its cause

# The scenarios after this one find everything as it was.
no_limits() {
    if [ -e /dev/xen/elsewhere ]; then mv /dev/xen/elsewhere /dev/xen/gntdev; fi
    echo 65536 >/sys/module/xen_gntdev/parameters/limit
    xenstore-control quota set nodes 1000
}
trap no_limits EXIT
trap 'exit 143' TERM

make_disk /srv/disk.img 4
make_guest guest
guest=$(domid guest)
holdings "$guest" >/run/holdings-before

# No gntdev. xenconsoled uses the module too, so its node goes instead.
mv /dev/xen/gntdev /dev/xen/elsewhere
for command in doctor backend; do
    must_fail vmsg $command >/run/said
    grep 'xen-gntdev' /run/said || fail "$command does not name the module: $(cat /run/said)"
done
no_limits

attach guest type=blk,path=/srv/disk.img
start_backend
# XenStore lets the guest own fewer nodes than it has to write.
xenstore-control quota set nodes 2
start_guest guest
wait_for_report guest met-few-nodes
xenstore-control quota set nodes 1000
tell guest many-nodes yes
wait_for_report guest met-gntalloc

# gntdev maps fewer pages at once than a ring has.
echo 2 >/sys/module/xen_gntdev/parameters/limit
tell guest few-pages yes
wait_for_report guest met-few-pages
grep 'limit' "$RESULTS/backend.log" || fail "the backend does not say that gntdev has a limit"
no_limits

tell guest no-limit yes
wait_for_guest guest
[ "$(reported guest read)" = "$(sha256 /srv/disk.img)" ] || fail "the guest read something else than the disk holds"
detach guest 0
assert_no_nodes "$guest"
assert_holdings "$guest" /run/holdings-before
stop_backend
destroy_guest guest

# A driver domain that the hypervisor lets map 256 pages: a ring and an area are more.
GUEST_OPTIONS='max_maptrack_frames=1' make_guest storage driver-domain/storage pvh
make_guest small limits/small
start_guest storage
wait_for_report storage disk
attach small --backend storage type=blk,path=/tmp/disk.img
start_guest small
wait_for_guest small
grep gnttab_max_maptrack_frames "$(console storage)" || fail "the backend does not name the hypervisor's limit"
destroy_guest small
tell storage stop yes
wait_for_guest storage
destroy_guest storage
