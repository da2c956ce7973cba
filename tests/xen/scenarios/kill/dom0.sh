# SIGKILL of the backend under load, in the page cache and by O_DIRECT: no page stays mapped, the next process serves both guests
# ci

guests="cached direct"
truncate -s 128M /srv/disk.img
make_slow_disk
for guest in $guests; do
    make_guest $guest
    holdings "$(domid $guest)" >/run/holdings-$guest
done
attach cached type=blk,path=/srv/disk.img
# Direct I/O into the guest's pages is under way when the kill comes.
attach direct type=blk,mode=ro,direct=1,path=/dev/nullb0
start_backend
for guest in $guests; do start_guest $guest; done

each_guest() { for guest in $guests; do "$@" $guest; done; }
assert_nothing_left() { assert_holdings "$(domid "$1")" "/run/holdings-$1"; }
whole_reads() { grep -c 'report read-0' "$(console "$1")" || true; }

for round in $(seq "$ROUNDS"); do
    each_guest wait_for_traffic
    random_moment
    kill_backend
    each_guest assert_nothing_left
    assert_kernel_is_content
    start_backend
done

# Once pages stay mapped in a PV domain, its kernel refuses direct I/O into any page of a guest.
read_again() {
    before=$(whole_reads "$1")
    read_more() { [ "$(whole_reads "$1")" -gt "$before" ]; }
    wait_until 60 read_more "$1" || fail "the guest reads no whole disk any more: see guest-$1.log"
}
each_guest read_again
dd if=/dev/nullb0 of=/dev/null bs=1M count=8 iflag=direct 2>/dev/null || fail "dom0 has no direct I/O any more"

for guest in $guests; do
    detach $guest 0 --force
    assert_nothing_left $guest
done
stop_backend
