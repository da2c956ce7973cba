# Reads the whole disk, writes a quarter of it, reads that back: each page of data is named by its grant.

vmsg frontend blk copy --grants 0 /tmp/read.img
report read "$(sha256 /tmp/read.img)"

dd if=/dev/urandom of=/tmp/new.img bs=1M count=4 2>/dev/null
vmsg frontend blk copy --grants /tmp/new.img 0
vmsg frontend blk verify --grants /tmp/new.img 0
report written "$(sha256 /tmp/new.img)"
report written-bytes "$(stat -c %s /tmp/new.img)"
