# Lists the devices.

vmsg frontend list >/tmp/list
cat /tmp/list
[ "$(awk 'NR > 1 { print $3, $4 }' /tmp/list | xargs)" = "0 blk 1 rng" ] || fail "the devices are not a disk and an entropy source"
