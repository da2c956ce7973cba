# The driver domain: makes a disk, serves it until dom0 says stop.

modprobe xen-gntdev
dd if=/dev/urandom of=/tmp/disk.img bs=1M count=4 2>/dev/null
vmsg backend &
backend=$!
report disk "$(sha256 /tmp/disk.img)"
until xenstore-exists lab/stop; do
    kill -0 $backend || fail "the backend died"
    usleep 200000
done
kill $backend
wait $backend || fail "the backend ended with $? when asked to"
report disk-after "$(sha256 /tmp/disk.img)"
