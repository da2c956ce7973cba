# Reads the disk, and tries to write it.

vmsg frontend list | grep -w ro || fail "the disk is not listed as read-only"
vmsg frontend blk copy 0 /tmp/read.img
report read "$(sha256 /tmp/read.img)"
dd if=/dev/urandom of=/tmp/new.img bs=1M count=4 2>/dev/null
must_fail vmsg frontend blk copy /tmp/new.img 0 | grep read-only || fail "the refusal does not say read-only"
vmsg frontend blk verify /tmp/read.img 0
