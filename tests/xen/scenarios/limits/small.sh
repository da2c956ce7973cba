# Its backend's domain cannot map as many pages as it shares.

must_fail vmsg frontend blk copy 0 /tmp/read.img
