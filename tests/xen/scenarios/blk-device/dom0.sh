# Block devices of dom0 as disks: the tests of virtio-devices that need one, on brd and on loop

# run_on DEVICE
run_on() {
    VMSG_TEST_DISK=$1 virtio-devices-tests --ignored block_device >"$RESULTS/tests${1##*/}.log" 2>&1 ||
        { cat "$RESULTS/tests${1##*/}.log"; fail "the tests on $1"; }
    grep '^test result' "$RESULTS/tests${1##*/}.log"
    ! grep -q 'running 0 tests' "$RESULTS/tests${1##*/}.log" || fail "there is no such test"
}

modprobe brd rd_nr=1 rd_size=16384
run_on /dev/ram0

modprobe loop
truncate -s 16M /srv/disk.img
losetup /dev/loop0 /srv/disk.img
run_on /dev/loop0
losetup -d /dev/loop0
