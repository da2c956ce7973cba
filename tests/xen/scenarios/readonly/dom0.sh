# A read-only disk: the guest reads it, cannot write it, and what it is made of never changes

make_disk /srv/disk.img 4
chmod 400 /srv/disk.img
before=$(sha256 /srv/disk.img)
make_guest guest
attach guest type=blk,mode=ro,serial=lab,path=/srv/disk.img
start_backend
start_guest guest
wait_for_guest guest
[ "$(reported guest read)" = "$before" ] || fail "the guest read something else than the disk holds"
[ "$(sha256 /srv/disk.img)" = "$before" ] || fail "the disk has changed"
stop_backend
destroy_guest guest
