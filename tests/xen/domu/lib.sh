# Shell functions for the guest's half of a scenario.

# report KEY VALUE: a value for dom0, which asks for it with `reported GUEST KEY`.
report() { echo "@@LAB report $1=$2"; }

# note KEY: what dom0 told this guest with `tell`.
note() { xenstore-read "lab/$1"; }

# wait_for_note KEY: the scenario's own time-out bounds the wait.
wait_for_note() { until xenstore-exists "lab/$1"; do usleep 200000; done; }

# load: reads all devices of bus 0, one after the other, many requests in flight, for ever. A read that fails is no failure of
# the guest: the backend may have died, or the device may be gone. `read-DEV` is reported after each that went well.
load() {
    while true; do
        vmsg frontend list >/tmp/list || continue
        for device in $(awk 'NR > 1 { print $3 }' /tmp/list); do
            if vmsg frontend blk copy "$device" /dev/null; then report "read-$device" done; fi
        done
    done
}
