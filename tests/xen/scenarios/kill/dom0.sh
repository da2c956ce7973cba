# SIGKILL of the backend under load: no page stays mapped, no kernel complains, the next process serves the same guest
# ci

truncate -s 256M /srv/disk.img
make_guest guest
guest=$(domid guest)
holdings "$guest" >/run/holdings-before
attach guest type=blk,path=/srv/disk.img
start_backend
start_guest guest

for round in $(seq "$ROUNDS"); do
    wait_for_traffic
    random_moment
    kill_backend
    assert_holdings "$guest" /run/holdings-before
    assert_kernel_is_content
    start_backend
done
wait_for_traffic
rounds=$(grep -c 'report read-0' "$(console guest)" || true)
read_more() { [ "$(grep -c 'report read-0' "$(console guest)")" -gt "$rounds" ]; }
wait_until 60 read_more || fail "the guest reads no whole disk any more: see guest-guest.log"

detach guest 0 --force
assert_holdings "$guest" /run/holdings-before
stop_backend
