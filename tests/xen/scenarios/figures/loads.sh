# Shell functions for both halves: the loads that every path to the disk is put under, and how a figure is told.

# each_load COMMAND...: calls it with NAME PATTERN BYTES DEPTH REQUESTS of each load. As many requests as make the ends vanish.
each_load() {
    "$@" 4k-qd1 randread 4096 1 2000
    "$@" 4k-qd32 randread 4096 32 4000
    "$@" 1m-qd1 read 1048576 1 64
}

# measure_raw PATH DEVICE NAME PATTERN BYTES DEPTH REQUESTS: reads a device of this domain's kernel.
measure_raw() { figure "$1-$3" "$7" "$(raw-disk "$2" "$4" "$5" "$6" "$7")"; }

# measure_bus PATH DEV NAME PATTERN BYTES DEPTH REQUESTS: reads a device of the bus.
measure_bus() {
    vmsg frontend blk bench "$2" --rw "$4" --bs "$5" --iodepth "$6" --requests "$7" --json >/tmp/bench.json
    figure "$1-$3" "$7" "$(of_bench seconds)"
    report "$1-$3-sends" "$(of_bench sends_per_request)"
}

# measure_mmio PATH NAME PATTERN BYTES DEPTH REQUESTS: reads the virtio-mmio disk of this guest.
measure_mmio() {
    stride=1
    [ "$3" = read ] || stride=1000003 # that of the others
    step "$1-$2" "$6" mmio-read "$4" $stride "$5" "$6"
}

# step KEY COUNT ARGUMENT...: has xen-bench do something COUNT times; reports what one of them took, and what a thousand of them
# asked of the other side.
step() {
    key=$1 count=$2
    shift 2
    cost=$(xen-bench "$@") || fail "xen-bench $* failed"
    figure "$key" "$count" "${cost% *}"
    report "$key-asked" $((${cost#* } * 1000 / count))
}

of_bench() { sed -n "s/.*\"$1\": *\([0-9.e-]*\).*/\1/p" /tmp/bench.json; }

# figure KEY REQUESTS SECONDS: reports nanoseconds per request, which are instructions when the machine counts them.
figure() {
    [ -n "$3" ] || fail "$1: no figure"
    report "$1" "$(awk -v n="$2" -v s="$3" 'BEGIN { printf "%.0f", s * 1e9 / n }')"
}
