# An entropy device beside a disk: the guest finds both, and reads it

make_disk /srv/disk.img 1
make_guest guest
attach guest type=blk,path=/srv/disk.img
attach guest type=rng
start_backend
start_guest guest
wait_for_guest guest
stop_backend
destroy_guest guest
