# A grant that is ended while its page is mapped is deferred by this kernel, which says so at its debug level.

mount -t debugfs debugfs /sys/kernel/debug
echo 'file drivers/xen/grant-table.c +p' >/sys/kernel/debug/dynamic_debug/control
deferred() { dmesg | grep -c deferring || true; }

# The page cache, and O_DIRECT.
for device in 0 1; do
    revoke-guest xen $device "$(note rounds)"
    [ "$(deferred)" = 0 ] || fail "$(deferred) pages were still mapped after the backend had said that they are not"
done

# The same the wrong way round, to see that it would have been seen.
revoke-guest xen 1 1 early
[ "$(deferred)" -gt 0 ] || fail "this kernel does not tell when it defers a grant"
