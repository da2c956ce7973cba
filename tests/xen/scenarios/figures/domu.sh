# Reads the same disk by each path to it, one after the other.
. /lab/scenarios/figures/loads.sh

# The first reads find the memory of both sides cold.
each_load measure_bus warm 0 >/dev/null
each_load measure_bus cache 0
each_load measure_bus direct 1
report clock "$(clock-cost)"
step connect 5 connect 5
step bring-up 20 bring-up 20
step message 500 message 500

# dom0 has put it before PVH guests.
if grep -q memmap= /proc/cmdline; then
    step mmio-bring-up 20 mmio-bring-up 20
    each_load measure_mmio mmio
fi

modprobe xen-blkfront
wait_until 30 test -b /dev/xvda || fail "blkfront made no xvda"
each_load measure_raw persistent /dev/xvda
# blkback's figure has two states: the lower counts.
each_load measure_raw persistent-again /dev/xvda
xenstore-write data/phase persistent-done
wait_until 60 test -b /dev/xvdb || fail "blkfront made no xvdb"
each_load measure_raw transient /dev/xvdb
xenstore-write data/phase done
