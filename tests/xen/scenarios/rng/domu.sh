# Lists the devices, and reads random bytes.

vmsg frontend list >/tmp/list
cat /tmp/list
[ "$(awk 'NR > 1 { print $3, $4 }' /tmp/list | xargs)" = "0 blk 1 rng" ] || fail "the devices are not a disk and an entropy source"
for read in 1 2; do
    vmsg frontend rng read 1 --bytes 10000 >/tmp/random.$read || fail "no random bytes"
    [ "$(wc -c </tmp/random.$read)" -eq 10000 ] || fail "not as many bytes as asked for"
done
if cmp -s /tmp/random.1 /tmp/random.2; then fail "the same bytes twice"; fi
