# Hypercalls of each domain for a read, ours and blkback's, and XenStore requests of a connection: a part of `cargo xtask xen figures`
. /lab/scenarios/figures/vbd.sh

disk=/dev/ram0
modprobe brd rd_nr=1 rd_size=65536
modprobe xen-blkback
dd if=/dev/urandom of=$disk bs=1M count=64 2>/dev/null

start_backend
make_guest counted
domain=$(domid counted)
xenstore-control logfile /run/xenstored.log >/dev/null
attach counted "type=blk,mode=ro,direct=1,path=$disk"
give_vbd "$domain" 51712 $disk Y
start_guest counted
wait_for_phase counted ready

tell counted go connect
wait_for_phase counted connect
xenstore-control logfile /dev/null >/dev/null

# Requests until both are connected, by who made them: the guest's own connection is its kernel's, too, which looks at
# whatever is written below `device`.
awk -v front="(device/virtio-msg" -v back="(/local/domain/0/backend/virtio-msg/$domain/0/state" '
    $1 != "IN" { next }
    { requests[$2]++ }
    $5 == "DIRECTORY" && index($6, front "/") == 1 { looks[$2]++ }
    $5 == "DIRECTORY" && $6 == front { requests[$2] = 1; looks[$2] = 0 }
    $5 == "WRITE" && $6 == front "/0/state" && $7 ~ /^4/ { guest = requests[$2] - looks[$2]; kernel = looks[$2] }
    $5 == "WRITE" && $6 == back && $7 ~ /^4/ { backend = requests[$2] }
    END { print guest, kernel, backend }' /run/xenstored.log >"$RESULTS/xenstore-requests"
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
