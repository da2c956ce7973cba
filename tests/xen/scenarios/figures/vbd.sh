# Shell functions for dom0: block devices of Linux's own backend, made as libxl makes them but without a hotplug script.

# give_vbd DOMID NUMBER DISK PERSISTENT: PERSISTENT is Y or N, whether the backend offers to keep grants mapped.
give_vbd() {
    front=/local/domain/$1/device/vbd/$2
    back=/local/domain/0/backend/vbd/$1/$2
    echo "$4" >/sys/module/xen_blkback/parameters/feature_persistent
    xenstore-write "$front" "" "$back" ""
    xenstore-chmod "$front" "n$1" r0
    xenstore-chmod "$back" n0 "r$1"
    xenstore-write "$back/frontend" "$front" "$back/frontend-id" "$1" "$back/online" 1 "$back/removable" 0 \
        "$back/bootable" 1 "$back/type" phy "$back/mode" r "$back/device-type" disk "$back/discard-enable" 0 \
        "$back/params" "$3" "$back/dev" xvda "$back/state" 1 \
        "$front/backend" "$back" "$front/backend-id" 0 "$front/virtual-device" "$2" "$front/device-type" disk "$front/state" 1
    wait_until 30 in_state "$back" 2 || fail "blkback did not take $back"
    xenstore-write "$back/physical-device" "$(stat -c %t:%T "$3")" "$back/hotplug-status" connected
}

# destroy_with_vbds NAME: the nodes last, as blkback lets go of a dead guest's pages only then.
destroy_with_vbds() {
    back=/local/domain/0/backend/vbd/$(domid "$1")
    xl destroy "$1"
    xenstore-rm "$back"
    wait_until 20 no_zombie || fail "guest $1 is a zombie: someone still maps its pages"
}

in_state() { [ "$(xenstore-read "$1/state")" = "$2" ]; }

# wait_for_phase NAME PHASE: until the guest has written it. No look in between: that would be measured, too. The limit is for
# what was written just before the watch, and for a guest that died.
wait_for_phase() {
    phase=/local/domain/$(domid "$1")/data/phase
    until [ "$(xenstore-read "$phase" 2>/dev/null)" = "$2" ]; do
        if grep -q '@@LAB guest-code=' "$(console "$1")"; then
            fail "the script of guest $1 ended before it said $2: see guest-$1.log"
        fi
        timeout 60 xenstore-watch -n 2 "$phase" >/dev/null 2>&1 || true # the first event is the watch's own
    done
}
