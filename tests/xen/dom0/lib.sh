# Shell functions for the scenario's half in dom0. $DOMID and $GUEST name the guest, which is paused at first;
# what is put into $RESULTS comes back to the host.

# How long a guest may take from unpause to its init.
GUEST_BOOT_SECONDS=90

# Lets the guest go and waits until its half of the scenario starts.
start_guest() {
    xl unpause "$GUEST"
    if ! wait_until $GUEST_BOOT_SECONDS grep -q '@@LAB guest-ready' "$CONSOLE_LOG"; then
        echo "the laboratory failed: the guest did not come up" | tee "$RESULTS/lab-failed"
        exit 1
    fi
}

# Waits for the end of the guest's half; it fails if that failed. The scenario's own time-out bounds the wait.
wait_for_guest() {
    until grep -q '@@LAB guest-code=' "$CONSOLE_LOG"; do
        xenstore-exists "/local/domain/$DOMID" || fail "the guest died: see guest-console.log"
        usleep 200000
    done
    code=$(sed -n 's/.*@@LAB guest-code=\([0-9]*\).*/\1/p' "$CONSOLE_LOG")
    [ "$code" = 0 ] || fail "the guest's half ended with $code: see guest-console.log"
}

# guest_reported KEY: the value that the guest gave with report.
guest_reported() { sed -n "s/.*@@LAB report $1=\([^[:space:]]*\).*/\1/p" "$CONSOLE_LOG"; }

# Pages of the guest that some domain has mapped, as Xen itself knows them: "reference pin-count", a line each.
mapped_grants() {
    xl dmesg -c >/dev/null
    xl debug-keys g
    xl dmesg >/run/grant-tables
    sed 's/^(XEN) //' /run/grant-tables | awk -v guest="d$DOMID" '
        /^grant-table for remote / { ours = ($4 == guest) }
        ours && /^\[0x/ { print $1, $4 }'
}

# dom0's ends of event channels to the guest.
bound_ports() { lsevtchn 0 | grep -E "Remote Domain $DOMID(,|\$)" || true; }

# What dom0 holds of the guest. XenStore's and the console's page and port are always among it.
holdings() {
    echo "mapped grants:"
    mapped_grants
    echo "ports:"
    bound_ports
}

# assert_holdings FILE: dom0 holds what it held when `holdings >FILE` ran, and nothing else.
assert_holdings() {
    holdings >/run/holdings-now
    diff "$1" /run/holdings-now || fail "dom0 does not hold the same of the guest as before (lines with + are left over)"
}
