# Reads the whole disk, and writes it.

vmsg frontend list
vmsg frontend blk copy 0 /tmp/read.img
report read "$(sha256 /tmp/read.img)"
dd if=/dev/urandom of=/tmp/new.img bs=1M count=4 2>/dev/null
vmsg frontend blk copy /tmp/new.img 0
vmsg frontend blk verify /tmp/new.img 0
report written "$(sha256 /tmp/new.img)"
