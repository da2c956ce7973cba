# The interactive console: the service runs, and a guest has a disk. Sourced by dom0's init.
SCENARIO=shell
RESULTS=/run/log
mkdir $RESULTS
. /lab/guests.sh
. /lab/service.sh

make_guest guest shell
make_disk /srv/disk.img 16
start_backend
attach guest type=blk,serial=first,path=/srv/disk.img
start_guest guest

cat <<WELCOME

This is dom0 of Xen $(xl info xen_version 2>/dev/null || echo), Linux $(uname -r). The service runs (its log: $RESULTS/backend.log);
the guest has a disk of 16 MiB.

  vmsg list                                          buses and devices
  vmsg stat                                          what the service holds and has done
  xl console guest                                   the guest's console; Ctrl-] comes back
  vmsg attach guest type=blk,path=/srv/other.img     one more disk (dd it first)
  vmsg detach guest 0
  xenstore-ls -fp, lsevtchn 0, xl debug-keys g; xl dmesg

Leave with Ctrl-D or \`exit\`: the machine is switched off, nothing is kept. (Ctrl-A X ends QEMU at once.)

WELCOME
setsid cttyhack sh
