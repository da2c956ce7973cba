# Boots Xen with one scenario and says whose failure it was, if it was one.
# Sourced by run. QEMU needs neither hardware virtualisation nor root.

# How long QEMU may take until the scenario starts, and from its end until everything is collected. A boot takes
# 15 to 60 seconds; the rest is margin for a machine that others use too.
BOOT_SECONDS=180
COLLECT_SECONDS=60

# The processor on which Debian's Xen 4.17 and QEMU's emulation agree. It has nested paging, which PVH guests need. Without:
# smap, which ends the boot of a PV dom0; rdtscp, which sends a PVH guest into a loop; monitor, whose MWAIT panics Xen's idle loop;
# xsave and what rests on it, which corrupts processes when Xen switches between domains (with it, 1 xl in 500 crashes or hangs).
CPU=EPYC,-smap,-rdtscp,-monitor,-xsave,-avx,-avx2,-f16c,-fma

# boot_scenario SCENARIO VMSG GUEST SECONDS OUT: returns an exit code as run documents it.
boot_scenario() {
    local scenario=$1 vmsg=$2 guest=$3 seconds=$4 out=$5 work code
    rm -rf "${out:?}"/*
    work=$(mktemp -d "$LAB/boot.XXXXXX") || lab_failed "cannot make a folder in $LAB"
    # shellcheck disable=SC2064 # the folder of now
    trap "stop_qemu; rm -rf '$work'" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    build_boot_image "$scenario" "$vmsg" "$guest" "$seconds" "$work" || lab_failed "cannot build the image of this boot"

    local started=$SECONDS
    run_qemu $((BOOT_SECONDS + seconds + COLLECT_SECONDS)) "$work/dom0.cpio" "$out"
    code=$?
    rm -rf "$work"
    trap - EXIT INT TERM
    if [ -s "$out/results.tar.gz" ]; then tar -xzf "$out/results.tar.gz" -C "$out" && rm "$out/results.tar.gz"; fi
    verdict "$code" "$out"
    code=$?
    say "$scenario on a $guest guest: $(describe $code) after $((SECONDS - started)) s; results in $out"
    return $code
}

# What this boot adds to the base images: both inits, the scenario, the program and the settings.
build_boot_image() (
    set -e
    scenario=$1 vmsg=$2 guest=$3 seconds=$4 work=$5
    for domain in dom0 domu; do
        mkdir -p "$work/$domain"/{bin,lab}
        install -m 755 "$here/$domain/init" "$work/$domain/init"
        install -m 755 "$vmsg" "$work/$domain/bin/vmsg"
        cp "$here/common.sh" "$here/$domain/lib.sh" "$work/$domain/lab/"
        cp -R "$here/scenarios/$scenario" "$work/$domain/lab/scenario"
    done
    printf 'GUEST_TYPE=%s\nSCENARIO_SECONDS=%s\n' "$guest" "$seconds" >"$work/dom0/lab/settings"
    mkdir "$work/dom0/guest"
    { cat "$IMAGES/domu.cpio"; archive "$work/domu"; } >"$work/dom0/guest/domu.cpio"
    { cat "$IMAGES/dom0.cpio"; archive "$work/dom0"; } >"$work/dom0.cpio"
)

# run_qemu SECONDS INITRAMFS OUT. The first serial port is the console of Xen and dom0, the second carries the results.
run_qemu() {
    local append="console=com1 com1=115200,8n1 dom0_mem=896M,max:896M dom0_max_vcpus=1 cpuidle=0 loglvl=warning guest_loglvl=warning"
    # setpriv: QEMU ends with this script, also if it is killed.
    setpriv --pdeathsig TERM timeout --foreground --kill-after=5 "$1" qemu-system-x86_64 \
        -accel tcg,thread=single -machine q35 -cpu "$CPU" -smp 1 -m 2048 \
        -nodefaults -display none -monitor none -no-reboot \
        -serial "file:$3/serial.log" -serial "file:$3/results.tar.gz" \
        -kernel "$LAB/root/xen" -append "$append" \
        -initrd "$LAB/kernel-$KERNEL/vmlinux console=hvc0 loglevel=4 panic=1,$2" \
        </dev/null >"$3/qemu.err" 2>&1 &
    QEMU_PID=$!
    wait "$QEMU_PID"
    local code=$?
    QEMU_PID=
    return $code
}

QEMU_PID=
stop_qemu() { [ -z "$QEMU_PID" ] || kill "$QEMU_PID" 2>/dev/null; }

# verdict CODE-OF-QEMU OUT: until dom0 has started the scenario every failure is the laboratory's, afterwards ours,
# unless dom0 itself says that the laboratory failed (the guest's kernel did not come up, ...).
verdict() {
    local qemu=$1 out=$2
    if [ -s "$out/lab-failed" ]; then
        say "$(cat "$out/lab-failed")"
        return 3
    fi
    if ! grep -q '^@@LAB scenario' "$out/serial.log" 2>/dev/null; then
        say "dom0 did not come up (QEMU ended with $qemu):"
        # The processor has features that nobody here needs and QEMU says so, one by one.
        grep -v "TCG doesn't support requested feature" "$out/qemu.err" >&2
        tail -n 15 "$out/serial.log" >&2
        return 3
    fi
    case $(cat "$out/dom0.code" 2>/dev/null) in
        0) return 0 ;;
        124) return 124 ;;
        '')
            say "no results came back (QEMU ended with $qemu): dom0 died or hung under the scenario"
            tail -n 30 "$out/serial.log" >&2
            case $qemu in
                124 | 137) return 124 ;; # timeout's words for TERM and KILL
                *) return 1 ;;
            esac
            ;;
        *) return 1 ;;
    esac
}

describe() {
    case $1 in
        0) echo passed ;;
        3) echo "LABORATORY FAILED" ;;
        124) echo "TIMED OUT" ;;
        *) echo FAILED ;;
    esac
}
