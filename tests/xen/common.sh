# Shell functions for both domains. Sourced by both inits and by every scenario (busybox sh).

PATH=/bin:/usr/bin
export PATH

# A milestone on the console, with the domain's uptime. The host's side follows some of them.
milestone() {
    read -r uptime _ </proc/uptime
    echo "@@LAB $1 up=$uptime"
}

# The first failure ends the scenario.
fail() {
    echo "FAILED: $*"
    exit 1
}

# Ends the scenario without a verdict: something that it needs is not there.
EXIT_SKIPPED=77
skip() {
    echo "SKIPPED: $*"
    exit $EXIT_SKIPPED
}

# wait_until SECONDS COMMAND...: tries the command until it succeeds. The shell has no events to wait for.
wait_until() {
    deadline=$(($(uptime_seconds) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(uptime_seconds)" -le $deadline ] || return 1
        usleep 200000
    done
}

uptime_seconds() {
    read -r uptime _ </proc/uptime
    echo "${uptime%.*}"
}

# sha256 [FILE]
sha256() { sha256sum "$@" | cut -d ' ' -f 1; }

# must_fail COMMAND...: runs it, prints what it said on both streams, fails if it succeeds.
must_fail() {
    if "$@" 2>&1; then fail "'$*' succeeded"; fi
}

mount_basics() {
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev 2>/dev/null
    mount -t tmpfs run /run
    mount -t tmpfs tmp /tmp
    exec >/dev/console 2>&1 </dev/console
}

# load_xen_modules MODULE...: Debian's kernel has /dev/xen/xenbus built in.
load_xen_modules() {
    for module in "$@" xenfs; do
        modprobe $module || return 1
    done
    mount -t xenfs xenfs /proc/xen
}

# forget_kernel_messages FILE: what the kernel said until now is not this scenario's; it goes to the end of FILE.
forget_kernel_messages() { dmesg -c >>"$1"; }

# Nothing that the programs under test do may make a kernel complain.
assert_kernel_is_content() {
    if dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|general protection|Bad page|Bad rss'; then
        fail "the kernel of this domain complained: see dmesg"
    fi
}
