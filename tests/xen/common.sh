# Shell functions for both domains. Sourced by both inits and by every scenario (busybox sh).

PATH=/bin:/usr/bin
export PATH

# A milestone on the console, with the domain's uptime.
milestone() {
    read -r uptime _ </proc/uptime
    echo "@@LAB $1 up=$uptime"
}

# The first failure ends the scenario.
fail() {
    echo "FAILED: $*"
    exit 1
}

# wait_until SECONDS COMMAND...: tries the command until it succeeds. The shell has no events to wait for.
wait_until() {
    tries=$(($1 * 5))
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        usleep 200000
    done
}

sha256() { sha256sum "$1" | cut -d ' ' -f 1; }

mount_basics() {
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev 2>/dev/null
    mount -t tmpfs run /run
    mount -t tmpfs tmp /tmp
    exec >/dev/console 2>&1 </dev/console
}

# xen-privcmd is first because xenfs uses its symbols. Debian's kernel has /dev/xen/xenbus built in.
load_xen_modules() {
    for module in xen-privcmd "$@" xenfs; do
        insmod "/modules/$module.ko" || return 1
    done
    mount -t xenfs xenfs /proc/xen
}

# The kernel's messages of the boot, which are not the scenario's.
BOOT_MESSAGES=/run/boot-messages
forget_boot_messages() { dmesg -c >$BOOT_MESSAGES; }

# Nothing that the programs under test do may make a kernel complain.
assert_kernel_is_content() {
    if dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|general protection|Bad page'; then
        fail "the kernel of this domain complained: see dmesg"
    fi
}
