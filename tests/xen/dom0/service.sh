# Shell functions for a scenario's half in dom0: disks, the service, and devices.

# make_disk FILE MIB: an image of random bytes.
make_disk() { dd if=/dev/urandom of="$1" bs=1M count="$2" 2>/dev/null; }

# make_slow_disk: 64 MiB at /dev/nullb0 that take 10 ms for each request and keep nothing: some are always under way.
make_slow_disk() {
    [ ! -b /dev/nullb0 ] || return 0
    modprobe null_blk nr_devices=0
    [ -d /sys/kernel/config/nullb ] || mount -t configfs configfs /sys/kernel/config
    mkdir /sys/kernel/config/nullb/nullb0
    cd /sys/kernel/config/nullb/nullb0
    echo 64 >size
    echo 2 >irqmode # a timer ends a request
    echo 10000000 >completion_nsec
    echo 1 >power
    cd /
    wait_until 10 test -b /dev/nullb0 || fail "null_blk made no disk"
}

start_backend() {
    vmsg backend >>"$RESULTS/backend.log" 2>&1 &
    BACKEND=$!
}

assert_backend_lives() { kill -0 "$BACKEND" || fail "the backend died: see backend.log"; }

# Asks it to end; it has nothing left to hold then.
stop_backend() {
    kill "$BACKEND" || fail "the backend died: see backend.log"
    wait "$BACKEND" || fail "the backend ended with $? when asked to: see backend.log"
}

kill_backend() {
    kill -9 "$BACKEND" || fail "the backend died: see backend.log"
    wait "$BACKEND" || true
}

# attach GUEST ARGUMENT..., detach GUEST ARGUMENT...: what they say goes to their logs.
attach() { logged attach "$@"; }
detach() { logged detach "$@"; }

# logged COMMAND ARGUMENT...: of vmsg.
logged() {
    vmsg "$@" >>"$RESULTS/$1.log" 2>&1 || fail "vmsg $*: $(tail -n 1 "$RESULTS/$1.log")"
}

# assert_no_nodes DOMID: nothing of the guest's buses is in XenStore, on this side. After its death the backend removes them.
assert_no_nodes() {
    for directory in "/local/domain/0/backend/virtio-msg/$1" "/vmsg/$1"; do
        wait_until 10 sh -c "! xenstore-exists $directory" || fail "$directory is still in XenStore"
    done
}

# wait_for_traffic [GUEST]: until messages of I/O flow on a connection of that guest, or of any. The backend's own gauges tell:
# bringing a bus with a disk up takes some 30.
wait_for_traffic() { wait_until 60 has_traffic "${1:-}" || fail "${1:-no guest} makes no traffic: see guest-*.log"; }

has_traffic() {
    vmsg stat --json | awk -F '[:,]' -v guest="\"$1" '
        /"name"/ { ours = index($2, guest) }
        ours && /"messages_received"/ && $2 > 60 { found = 1 }
        END { exit !found }'
}

# assert_engine: in a PV domain io_uring would leave the pages of a guest mapped if its process were killed. Both the service and
# doctor say what is used instead, and why.
assert_engine() {
    vmsg doctor >/run/doctor || true
    case $DOM0_TYPE in
        pv) engine='Linux AIO.*PV domain.*io_uring' ;;
        pvh) engine='io_uring' ;;
    esac
    for said in /run/doctor "$RESULTS/backend.log"; do
        grep -i "engine.*$engine" $said || fail "$said: another engine in a $DOM0_TYPE domain, or no reason"
    done
}

# random_moment: passes up to 300 ms.
random_moment() { usleep $(($(od -An -N 2 -t u2 /dev/urandom) * 300000 / 65536)); }
