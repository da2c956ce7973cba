# The guest exports its disk by NBD, attaches it to its own kernel, and makes and fills a file system on it

truncate -s 32M /srv/disk.img
cat /guest/domu.cpio /guest/nbd.cpio >/run/nbd-guest.cpio
RAMDISK=/run/nbd-guest.cpio make_guest guest
attach guest type=blk,path=/srv/disk.img
start_backend
start_guest guest
wait_for_guest guest

# dom0 sees the same file system.
modprobe loop
mkdir /run/mnt
mount -t ext4 -o loop,ro /srv/disk.img /run/mnt
found=$(sha256 /run/mnt/file)
umount /run/mnt
[ "$found" = "$(reported guest file)" ] || fail "the file on dom0's disk is not that of the guest"
destroy_guest guest
stop_backend
