# Garbage in each key that a guest may write: refused in words, nothing is held, the other guest does not notice

make_disk /srv/first.img 4
make_disk /srv/second.img 4
make_guest hostile
make_guest bystander garbage/bystander
hostile=$(domid hostile)
holdings "$hostile" >/run/holdings-before
attach hostile type=blk,path=/srv/first.img
attach bystander type=blk,path=/srv/second.img
start_backend
start_guest bystander
wait_for_report bystander read
start_guest hostile
wait_for_report hostile garbage-written
# The guest's last words were no key that makes sense: the backend holds nothing.
assert_holdings "$hostile" /run/holdings-before
grep -q WARN "$RESULTS/backend.log" || fail "the backend did not say that a guest misbehaves"
tell hostile behave yes
wait_for_guest hostile
[ "$(reported hostile read)" = "$(sha256 /srv/first.img)" ] || fail "the guest read something else than the disk holds"
assert_backend_lives
tell bystander again yes
wait_for_guest bystander
destroy_guest hostile
destroy_guest bystander
stop_backend
