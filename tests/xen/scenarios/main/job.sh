# Shell functions for both halves: a disk read, written and compared at both ends.

# serve_job: in dom0. Gives this scenario's guest a disk and takes it away again, with a look at what it did and what is left.
serve_job() {
    disk=/srv/disk.img
    before=/srv/before.img
    make_guest guest
    guest=$(domid guest)
    make_disk $disk 16
    cp $disk $before
    holdings "$guest" >/run/holdings-before

    attach guest "type=blk,mode=rw,serial=lab,path=$disk"
    start_backend
    start_guest guest
    wait_for_guest guest
    assert_backend_lives

    [ "$(reported guest read)" = "$(sha256 $before)" ] || fail "the guest read something else than the disk holds"
    written_bytes=$(reported guest written-bytes)
    [ "$(head -c "$written_bytes" $disk | sha256)" = "$(reported guest written)" ] || fail "the disk does not hold what the guest wrote"
    cmp $disk $before "$written_bytes" "$written_bytes" || fail "the guest's write changed more of the disk than it should"

    detach guest 0
    assert_no_nodes "$guest"
    assert_holdings "$guest" /run/holdings-before
    stop_backend
    destroy_guest guest
}

# do_job [OPTION]: in the guest. Reads the whole disk, writes the first 4 MiB, reads those back; the option is one of `blk copy`.
do_job() {
    vmsg frontend list
    vmsg frontend blk copy "$@" 0 /tmp/read.img
    report read "$(sha256 /tmp/read.img)"

    dd if=/dev/urandom of=/tmp/new.img bs=1M count=4 2>/dev/null
    vmsg frontend blk copy "$@" /tmp/new.img 0
    vmsg frontend blk verify "$@" /tmp/new.img 0
    report written "$(sha256 /tmp/new.img)"
    report written-bytes "$(stat -c %s /tmp/new.img)"
}
