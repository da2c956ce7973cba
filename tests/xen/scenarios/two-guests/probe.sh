# assert_out_of_reach CLASS: this guest can neither read (EACCES) nor write any of the nodes that dom0 named.
assert_out_of_reach() {
    count=0
    for number in $(xenstore-list "lab/$1"); do
        path=$(note "$1/$number")
        # Of the clients, this one says why.
        must_fail xenstore-ls "$path" >/tmp/said
        grep -q 'Permission denied' /tmp/said || fail "$path: $(cat /tmp/said)"
        must_fail xenstore-write "$path" 4 >/dev/null
        count=$((count + 1))
    done
    [ $count -gt 0 ] || fail "dom0 named no nodes"
    echo "$1: $count nodes out of reach"
}
