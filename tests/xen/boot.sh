# Boots Xen once with a list of scenarios and says whose failure it was, if it was one.
# Sourced by run. QEMU needs neither hardware virtualisation nor root.

# How long QEMU may take until the first scenario starts, and from the end of the last until everything is collected. A boot
# takes 15 to 60 seconds; the rest is margin for a machine that others use too.
BOOT_SECONDS=180
COLLECT_SECONDS=60

# The processor on which Debian's Xen 4.17 and QEMU's emulation agree. It has nested paging, which PVH guests need. Without:
# smap, which ends the boot of a PV dom0; rdtscp, which sends a PVH guest into a loop; monitor, whose MWAIT panics Xen's idle loop;
# xsave and what rests on it, which corrupts processes when Xen switches between domains (with it, 1 xl in 500 crashes or hangs).
CPU=EPYC,-smap,-rdtscp,-monitor,-xsave,-avx,-avx2,-f16c,-fma
# The disk of dom0.
DISK_MIB=256

# boot SCENARIO...: one boot with the settings of run. Leaves $OUT/SCENARIO/{code,...}, an exit code as run documents them.
boot() {
    prepare "$@"
    : >"$OUT/serial.log"
    setpriv --pdeathsig TERM timeout --foreground --kill-after=5 $((BOOT_SECONDS + $# * SECONDS_EACH + COLLECT_SECONDS)) \
        "${QEMU[@]}" -serial "file:$OUT/serial.log" -serial "file:$OUT/results.tar.gz" </dev/null >"$OUT/qemu.err" 2>&1 &
    QEMU_PID=$!
    tell_verdicts &
    wait "$QEMU_PID"
    local qemu=$?
    QEMU_PID=
    wait
    if [ -s "$OUT/results.tar.gz" ]; then tar -xzf "$OUT/results.tar.gz" -C "$OUT" && rm "$OUT/results.tar.gz"; fi
    local scenario
    for scenario in "$@"; do
        mkdir -p "$OUT/$scenario"
        judge "$scenario" $qemu >"$OUT/$scenario/code"
    done
    forget
}

# A boot at whose end a person sits at dom0's console.
boot_shell() {
    prepare shell
    say "booting; a prompt of dom0 comes in about half a minute (Ctrl-A X ends the machine at once)"
    "${QEMU[@]}" -serial mon:stdio -serial null
    forget
}

# What this boot alone needs is in $WORK, which goes with it.
prepare() {
    WORK=$(mktemp -d "$LAB/boot.XXXXXX") || lab_failed "cannot make a folder in $LAB"
    trap 'stop_qemu; rm -rf "$WORK"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    build_boot_image "$@" || lab_failed "cannot build the image of this boot"
    mke2fs -q -t ext4 -E lazy_itable_init=1,nodiscard "$WORK/disk.img" ${DISK_MIB}M >/dev/null || lab_failed "cannot make dom0's disk"
    qemu_command
}

forget() {
    rm -rf "$WORK"
    trap - EXIT INT TERM
}

# What this boot adds to the base images: both inits, the scenarios, the programs and the settings.
build_boot_image() (
    set -e
    for domain in dom0 domu; do
        mkdir -p "$WORK/$domain"/{bin,lab}
        install -m 755 "$here/$domain/init" "$WORK/$domain/init"
        install -m 755 "$PROGRAMS"/* "$WORK/$domain/bin/"
        find "$here/$domain" -type f ! -name init -exec cp {} "$WORK/$domain/lab/" \;
        cp -R "$here/common.sh" "$here/scenarios" "$WORK/$domain/lab/"
    done
    cat >"$WORK/dom0/lab/settings" <<SETTINGS
SCENARIOS="$*"
SCENARIO_SECONDS=$SECONDS_EACH
GUEST_TYPE=$GUEST
DOM0_TYPE=$DOM0
ROUNDS=$ROUNDS
SETTINGS
    mkdir "$WORK/dom0/guest"
    { cat "$IMAGES/domu.cpio"; archive "$WORK/domu"; } >"$WORK/dom0/guest/domu.cpio"
    { cat "$IMAGES/dom0.cpio"; archive "$WORK/dom0"; } >"$WORK/dom0.cpio"
)

# Sets QEMU, all but the serial ports: the first is the console of Xen and dom0, the second carries the results.
qemu_command() {
    local xen="console=com1 com1=115200,8n1 conring_size=1m dom0_mem=896M,max:896M dom0_max_vcpus=1 cpuidle=0 loglvl=warning guest_loglvl=warning"
    QEMU=(qemu-system-x86_64 -accel "tcg,thread=single" -machine q35 -cpu "$CPU" -smp 1 -m 2048
        -nodefaults -display none -monitor none -no-reboot
        -drive "if=none,id=disk,format=raw,cache=unsafe,file=$WORK/disk.img" -device "nvme,drive=disk,serial=lab")
    # One instruction of the emulated processor is one nanosecond of its clock, and idle time is skipped.
    if [ -n "$DETERMINISTIC" ]; then
        QEMU+=(-icount "shift=0,sleep=off" -rtc "base=2026-01-01T00:00:00,clock=vm" -seed 1)
    fi
    if [ "$DOM0" = pvh ]; then
        xen="$xen dom0=pvh iommu=on"
        QEMU+=(-device intel-iommu)
    fi
    QEMU+=(-kernel "$LAB/xen/xen" -append "$xen"
        -initrd "$LAB/kernel-$KERNEL/vmlinux console=hvc0 loglevel=4 panic=1,$WORK/dom0.cpio")
}

QEMU_PID=
stop_qemu() { [ -z "$QEMU_PID" ] || kill "$QEMU_PID" 2>/dev/null; }

# verdict_of SCENARIO: its exit code in dom0 and the seconds that it took, once dom0 has said so. The console is the witness:
# it is there even if dom0 died later.
verdict_of() { sed -n "s/.*@@LAB scenario-end $1 code=\([0-9]*\) seconds=\([0-9]*\).*/\1 \2/p" "$OUT/serial.log" | tail -n 1; }

# Says when dom0 is up, which scenario runs, and each verdict when it is there.
tell_verdicts() {
    tail --pid="$QEMU_PID" -n +1 -f "$OUT/serial.log" |
        sed -un 's/.*@@LAB \(dom0-ready\|scenario\) *\([^ ]*\) up=.*/\1 \2/p
            s/.*@@LAB scenario-end \([^ ]*\) code=\([0-9]*\) seconds=\([0-9]*\).*/end \1 \2 \3/p' |
        while read -r what scenario code seconds; do
            case $what in
                dom0-ready) say "dom0 is up" ;;
                scenario) say "$scenario ..." ;;
                end) say "$scenario: $(describe "$code") after $seconds s" ;;
            esac
        done
}

# judge SCENARIO CODE-OF-QEMU: prints an exit code as run documents them. Until dom0 has started the scenario every failure is
# the laboratory's, afterwards ours, unless dom0 itself says that the laboratory failed (the guest's kernel did not come up, ...).
judge() {
    local scenario=$1 qemu=$2 code
    read -r code _ <<<"$(verdict_of "$scenario")"
    case $code in
        0 | 3 | 77 | 124) echo "$code" ;;
        '')
            if [ -s "$OUT/lab-failed" ]; then
                say "$(cat "$OUT/lab-failed")"
                echo 3
            elif ! grep -q "@@LAB scenario $scenario " "$OUT/serial.log"; then
                say "$scenario did not start (QEMU ended with $qemu):"
                # The processor has features that nobody here needs and QEMU says so, one by one.
                grep -v "TCG doesn't support requested feature" "$OUT/qemu.err" >&2
                tail -n 15 "$OUT/serial.log" >&2
                echo 3
            else
                say "no verdict came back (QEMU ended with $qemu): dom0 died or hung under $scenario"
                tail -n 30 "$OUT/serial.log" >&2
                case $qemu in
                    124 | 137) echo 124 ;; # timeout's words for TERM and KILL
                    *) echo 1 ;;
                esac
            fi
            ;;
        *) echo 1 ;;
    esac
}

describe() {
    case $1 in
        0) echo passed ;;
        3) echo "the laboratory failed" ;;
        77) echo skipped ;;
        124) echo "timed out" ;;
        *) echo FAILED ;;
    esac
}
