# /dev/nbd0 is the kernel's end of the export: a disk like any other.

vmsg frontend blk export --nbd unix:/run/disk.nbd 0 &
export=$!
wait_until 20 test -S /run/disk.nbd || fail "no export"
modprobe nbd
nbd-client -unix /run/disk.nbd /dev/nbd0

modprobe crc32c_generic
modprobe ext4
mke2fs /dev/nbd0 >/dev/null
mkdir /tmp/mnt
mount -t ext4 /dev/nbd0 /tmp/mnt
dd if=/dev/urandom of=/tmp/file bs=1M count=8 2>/dev/null
cp /tmp/file /tmp/mnt/file
umount /tmp/mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/nbd0 /tmp/mnt
cmp /tmp/file /tmp/mnt/file
report file "$(sha256 /tmp/mnt/file)"
umount /tmp/mnt

nbd-client -d /dev/nbd0
kill $export
wait $export || [ $? = 130 ] || fail "the export ended with $?"
