# A guest reboots: nothing of the old domain stays; the new one, which has another number, is given the disk again

make_disk /srv/disk.img 4
start_backend
ON_REBOOT=restart make_guest guest
old=$(domid guest)
attach guest type=blk,path=/srv/disk.img
start_guest guest
wait_for_report guest read
[ "$(reported guest read)" = "$(sha256 /srv/disk.img)" ] || fail "the guest read something else than the disk holds"

# xl makes the new domain.
rebooted() { [ "$(domid guest)" -gt "$old" ]; }
wait_until 60 rebooted || lab_failed "the guest did not come back"
wait_until 20 no_zombie || fail "domain $old is a zombie"
[ -z "$(mapped_grants "$old")" ] || fail "pages of domain $old are still mapped"
[ -z "$(bound_ports "$old")" ] || fail "ports to domain $old are still open"
assert_no_nodes "$old"

make_disk /srv/disk.img 4
tell guest rebooted yes
attach guest type=blk,path=/srv/disk.img
wait_for_report guest read-again
[ "$(reported guest read-again)" = "$(sha256 /srv/disk.img)" ] || fail "the rebooted guest read something else than the disk holds"
wait_for_guest guest
stop_backend
destroy_guest guest
