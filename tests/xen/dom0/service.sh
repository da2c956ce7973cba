# Shell functions for a scenario's half in dom0: disks, the service, and devices.

# make_disk FILE MIB: an image of random bytes.
make_disk() { dd if=/dev/urandom of="$1" bs=1M count="$2" 2>/dev/null; }

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

# wait_for_traffic: until messages of I/O flow on a connection. The backend's own gauges tell.
wait_for_traffic() { wait_until 60 has_traffic || fail "no guest makes traffic: see guest-*.log"; }

has_traffic() { vmsg stat --json | awk -F '[:,]' '/"messages_received"/ && $2 > 200 { found = 1 } END { exit !found }'; }

# random_moment: passes up to 300 ms.
random_moment() { usleep $(($(od -An -N 2 -t u2 /dev/urandom) * 300000 / 65536)); }
