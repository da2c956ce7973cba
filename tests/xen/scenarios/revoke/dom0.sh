# A guest resets its disk with I/O in flight, unshares its memory and revokes it at once: nothing is mapped any more, each time

truncate -s 64M /srv/cached.img
truncate -s 64M /srv/direct.img
make_guest guest
guest=$(domid guest)
holdings "$guest" >/run/holdings-before
attach guest type=blk,path=/srv/cached.img
attach guest type=blk,direct=1,path=/srv/direct.img
start_backend
tell guest rounds $((ROUNDS * 10))
start_guest guest
wait_for_guest guest
assert_holdings "$guest" /run/holdings-before
assert_backend_lives
stop_backend
destroy_guest guest
