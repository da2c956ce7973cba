# Reads its disk before and after the other guest has misbehaved.

vmsg frontend blk copy 0 /tmp/read.img
report read yes
wait_for_note again
vmsg frontend blk verify /tmp/read.img 0
