# Shell functions for a scenario's half in dom0: what this domain holds of a guest, from the hypervisor's own tables.

# mapped_grants DOMID: pages of that domain that some domain has mapped, as Xen itself knows them: "reference pin-count", a line each.
mapped_grants() {
    xl dmesg -c >>"$XEN_LOG"
    xl debug-keys g
    xl dmesg -c >/run/grant-tables
    cat /run/grant-tables >>"$XEN_LOG"
    sed 's/^(XEN) //' /run/grant-tables | awk -v guest="d$1" '
        /^grant-table for remote / { ours = ($4 == guest) }
        ours && /^\[0x/ { print $1, $4 }'
}

# bound_ports DOMID: dom0's ends of event channels to that domain.
bound_ports() { lsevtchn 0 | grep -E "Remote Domain $1(,|\$)" || true; }

# holdings DOMID: what dom0 holds of a guest. XenStore's and the console's page and port are always among it.
holdings() {
    echo "mapped grants:"
    mapped_grants "$1"
    echo "ports:"
    bound_ports "$1"
}

# assert_holdings DOMID FILE: dom0 holds what it held when `holdings DOMID >FILE` ran, and nothing else. Some moments are
# granted: a process that was killed ends its I/O first.
assert_holdings() {
    wait_until 5 same_holdings "$1" "$2" ||
        { diff "$2" /run/holdings-now; fail "dom0 does not hold the same of domain $1 as before (lines with + are left over)"; }
}

same_holdings() {
    holdings "$1" >/run/holdings-now
    cmp -s "$2" /run/holdings-now
}
