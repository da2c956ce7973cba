# Meets the limits of its own domain, then those of dom0, then none.

# says TEXT COMMAND...: the command fails, and says so.
says() {
    text=$1
    shift
    if "$@" >/tmp/said 2>&1; then fail "'$*' succeeded"; fi
    cat /tmp/said
    grep -q "$text" /tmp/said || fail "'$*' does not say '$text'"
}

# First: nodes that an attempt has made do not count again.
says quota vmsg frontend blk copy 0 /tmp/read.img
report met-few-nodes yes
wait_for_note many-nodes

rmmod xen_gntalloc
says 'modprobe xen-gntalloc' vmsg frontend blk copy 0 /tmp/read.img
says 'modprobe xen-gntalloc' vmsg doctor
modprobe xen-gntalloc limit=2
says limit vmsg frontend blk copy 0 /tmp/read.img
rmmod xen_gntalloc
modprobe xen-gntalloc
report met-gntalloc yes

wait_for_note few-pages
says 'bus 0' vmsg frontend blk copy 0 /tmp/read.img
report met-few-pages yes

wait_for_note no-limit
vmsg frontend blk copy 0 /tmp/read.img
report read "$(sha256 /tmp/read.img)"
