# Hypercalls of each domain for a read, ours and blkback's, and XenStore requests of a connection: a part of `cargo xtask xen figures`
. /lab/scenarios/figures/vbd.sh

disk=/dev/ram0
modprobe brd rd_nr=1 rd_size=65536
modprobe xen-blkback
dd if=/dev/urandom of=$disk bs=1M count=64 2>/dev/null

start_backend
make_guest counted
domain=$(domid counted)
attach counted "type=blk,mode=ro,direct=1,path=$disk"
give_vbd "$domain" 51712 $disk Y
start_guest counted
wait_for_phase counted ready

xenstore-control logfile /run/xenstored.log
tell counted go connect
wait_for_phase counted connect
xenstore-control logfile /dev/null
gzip -c /run/xenstored.log >"$RESULTS/xenstored.log.gz"

# trace NAME: what the guest does until it says that it has, in $RESULTS/NAME.hypercalls.
trace() {
    xentrace -D -e 0x002af000 -S 1024 /run/trace >/dev/null 2>&1 &
    tracer=$!
    usleep 300000
    xenstore-rm "/local/domain/$domain/data/phase"
    tell counted go "$1"
    wait_for_phase counted "$1"
    kill $tracer
    wait $tracer || true
    hypercalls /run/trace >"$RESULTS/$1.hypercalls"
    rm /run/trace
}

for window in bus-1-500 bus-1-1500 bus-32-500 bus-32-1500; do trace $window; done
tell counted go blkfront
wait_for_phase counted blkfront
for window in raw-1-500 raw-1-1500 raw-32-500 raw-32-1500; do trace $window; done
tell counted go end
wait_for_phase counted end
wait_for_guest counted
assert_backend_lives
destroy_with_vbds counted
stop_backend
