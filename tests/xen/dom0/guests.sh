# Shell functions for a scenario's half in dom0: its guests. Each has a name; a scenario may have several.

# How long a guest may take from unpause to its init.
GUEST_BOOT_SECONDS=90

# make_guest NAME [SCRIPT [TYPE]]: makes a guest, paused. Once started it runs scenarios/SCRIPT.sh; domu.sh of this scenario if
# absent. Its kind is TYPE, or that of this boot. $RAMDISK, $ON_REBOOT, $KERNEL_OPTIONS and $GUEST_OPTIONS (more lines) change its
# configuration.
# 192 MiB: the kernel image alone takes 66. tsc_mode: without it Xen emulates RDTSC, the most frequent exit of a PVH guest.
make_guest() {
    mkdir -p /run/guests
    rm -f "$(console "$1")"
    cat >"/run/guests/$1.cfg" <<CFG
name="$1"
type="${3:-$GUEST_TYPE}"
kernel="/guest/vmlinux"
ramdisk="${RAMDISK:-/guest/domu.cpio}"
memory=192
vcpus=1
tsc_mode="native"
on_poweroff="destroy"
on_reboot="${ON_REBOOT:-destroy}"
on_crash="destroy"
extra="console=hvc0 loglevel=4 panic=1 lab=${2:-$SCENARIO/domu} ${KERNEL_OPTIONS:-}"
${GUEST_OPTIONS:-}
CFG
    xl create -p -q "/run/guests/$1.cfg" >>"$RESULTS/xl.log" 2>&1 || lab_failed "xl create of $1 failed: see xl.log"
}

# start_guest NAME: lets it go and waits until its script starts.
start_guest() {
    xl unpause "$1"
    wait_until $GUEST_BOOT_SECONDS grep -q '@@LAB guest-ready' "$(console "$1")" || lab_failed "guest $1 did not come up"
}

# wait_for_guest NAME: until its script has ended; fails if that failed. The scenario's own time-out bounds the wait.
wait_for_guest() {
    wait_for_line "$1" '@@LAB guest-code='
    code=$(sed -n 's/.*@@LAB guest-code=\([0-9]*\).*/\1/p' "$(console "$1")")
    [ "$code" = 0 ] || fail "the script of guest $1 ended with $code: see guest-$1.log"
}

# wait_for_report NAME KEY: until the guest has reported KEY; fails if its script ends without.
wait_for_report() {
    wait_for_line "$1" "@@LAB report $2=\|@@LAB guest-code="
    grep -q "@@LAB report $2=" "$(console "$1")" || fail "the script of guest $1 ended before it reported $2: see guest-$1.log"
}

# wait_for_line NAME PATTERN: on the guest's console.
wait_for_line() {
    until grep -q "$2" "$(console "$1")"; do
        xl domid "$1" >/dev/null 2>&1 || fail "guest $1 died: see guest-$1.log"
        usleep 200000
    done
}

# reported NAME KEY: the value that the guest gave last.
reported() { sed -n "s/.*@@LAB report $2=\([^[:space:]]*\).*/\1/p" "$(console "$1")" | tail -n 1; }

# tell NAME KEY VALUE: for the guest's `note KEY`.
tell() { xenstore-write "/local/domain/$(domid "$1")/lab/$2" "$3"; }

console() { echo "/var/log/xen/console/guest-$1.log"; }

domid() { xl domid "$1"; }

# destroy_guest NAME: fails if a part of it stays.
destroy_guest() {
    xl destroy "$1"
    wait_until 20 no_zombie || fail "guest $1 is a zombie: someone still maps its pages"
}

no_zombie() { ! xl list | grep -q '(null)'; }

# Not the fault of the programs under test: the scenario is tried once more.
EXIT_LAB_FAILED=3
lab_failed() {
    echo "the laboratory failed: $*"
    exit $EXIT_LAB_FAILED
}
