# Devices come and go while the guest reads: asked for and forced; a number is not given twice; nothing is left

for disk in first second third; do truncate -s 256M /srv/$disk.img; done
make_guest guest
guest=$(domid guest)
holdings "$guest" >/run/holdings-before
start_backend
attach guest type=blk,serial=first,path=/srv/first.img
start_guest guest
wait_for_traffic

# attach_as NUMBER DISK
attach_as() {
    attach guest "type=blk,serial=$2,path=/srv/$2.img"
    tail -n 1 "$RESULTS/attach.log" | grep "device $1: ready" || fail "$2 is not device $1: see attach.log"
    wait_for_report guest "read-$1"
}

attach_as 1 second
detach guest 1
attach_as 2 third
# In use: the guest reads one of the two at any moment.
detach guest 0
wait_for_traffic
detach guest 2 --force
assert_no_nodes "$guest"
assert_holdings "$guest" /run/holdings-before

# The bus was taken with its last device, and can be made again.
attach guest type=blk,serial=first,path=/srv/first.img
wait_for_traffic
detach guest --all --force
assert_no_nodes "$guest"
assert_holdings "$guest" /run/holdings-before
stop_backend
