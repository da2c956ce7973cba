# `xl destroy` while the guest reads: no page, port, node or zombie stays, and the next guest is served
# ci

truncate -s 256M /srv/disk.img
start_backend
# What the first guest makes the backend open for good is open from then on.
count_held() { lsevtchn 0 | wc -l; ls "/proc/$BACKEND/fd" | wc -l; }

for round in $(seq "$ROUNDS"); do
    make_guest guest
    guest=$(domid guest)
    attach guest type=blk,path=/srv/disk.img
    start_guest guest
    wait_for_traffic
    random_moment
    destroy_guest guest
    [ -z "$(mapped_grants "$guest")" ] || fail "round $round: pages of domain $guest are still mapped"
    [ -z "$(bound_ports "$guest")" ] || fail "round $round: ports to domain $guest are still open"
    assert_no_nodes "$guest"
    assert_backend_lives
    count_held >/run/held-now
    [ "$round" != 1 ] || cp /run/held-now /run/held-first
    diff /run/held-first /run/held-now || fail "round $round: the number of dom0's ports, or of the backend's descriptors, has changed"
done
stop_backend
