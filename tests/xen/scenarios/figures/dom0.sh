# What I/O costs, ours, Linux's blkfront/blkback's and virtio-mmio's on the same disk: `cargo xtask xen figures` makes the table
. /lab/scenarios/figures/loads.sh
. /lab/scenarios/figures/vbd.sh

disk=/dev/ram0
modprobe brd rd_nr=1 rd_size=65536
modprobe xen-blkback
dd if=/dev/urandom of=$disk bs=1M count=64 2>/dev/null

# The same words as a guest's, for dom0 itself.
report() { echo "@@LAB report $1=$2" >>"$RESULTS/dom0.figures"; }
each_load measure_raw dom0 $disk
report clock "$(clock-cost)"

# serve_mmio DOMID: the same disk before virtio-mmio registers, by an ioreq server in this domain. Of its memory the guest's
# kernel leaves 4 MiB to the driver.
[ "$GUEST_TYPE" = pv ] || KERNEL_OPTIONS='memmap=4M$180M'
serve_mmio() {
    xen-bench serve-mmio "$1" $disk >>"$RESULTS/ioreq-server.log" 2>&1 &
    IOREQ_SERVER=$!
}
stop_mmio() {
    kill "$IOREQ_SERVER" || fail "the ioreq server died: see ioreq-server.log"
    wait "$IOREQ_SERVER" || true
}

start_backend
for tsc in native default; do
    guest=figures-$tsc
    GUEST_OPTIONS="tsc_mode=\"$tsc\"" make_guest "$guest"
    domain=$(domid "$guest")
    attach "$guest" "type=blk,mode=ro,serial=cache,path=$disk"
    attach "$guest" "type=blk,mode=ro,direct=1,serial=direct,path=$disk"
    give_vbd "$domain" 51712 $disk Y # xvda
    [ "$GUEST_TYPE" = pv ] || serve_mmio "$domain"
    start_guest "$guest"
    wait_for_phase "$guest" persistent-done
    give_vbd "$domain" 51728 $disk N # xvdb
    wait_for_phase "$guest" done
    wait_for_guest "$guest"
    detach "$guest" --all
    assert_backend_lives
    [ "$GUEST_TYPE" = pv ] || stop_mmio
    destroy_with_vbds "$guest"
done
stop_backend
