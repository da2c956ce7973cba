# A PV and a PVH guest at once, each with its own disk, and a third without: nobody sees or writes what is not his

store=/local/domain
back=$store/0/backend/virtio-msg

start_backend
make_guest first two-guests/domu pv
make_guest second two-guests/domu pvh
make_guest stranger two-guests/stranger
first=$(domid first) second=$(domid second)
for guest in first second; do
    make_disk /srv/$guest.img 4
    attach $guest "type=blk,serial=$guest,path=/srv/$guest.img"
done

# paths GUEST CLASS DIRECTORY...: tells the guest every node below, under CLASS; all in one value would be too long.
paths() {
    below="/local/domain/$(domid "$1")/lab/$2"
    shift 2
    for directory in "$@"; do xenstore-ls -f "$directory"; done | awk -v below="$below" '{ print below "/" NR, $1 }' >/run/paths
    [ -s /run/paths ] || fail "nothing below $*"
    # shellcheck disable=SC2046 # pairs of words
    xenstore-write $(cat /run/paths)
}

foreign() { paths "$1" forbidden "$back/$2" "$store/$2/device/virtio-msg" /vmsg; }
foreign first "$second"
foreign second "$first"
foreign stranger "$first"
paths first forbidden-too "$back/$first/0/device/0"
paths second forbidden-too "$back/$second/0/device/0"
tell first name first
tell second name second
# What nobody but the toolstack and the backend may change. States move, of course.
stable_nodes() {
    xenstore-ls -fp "$back" | grep -v -E '/(state|session|status) ='
    xenstore-ls -fp /vmsg
}
for guest in first second stranger; do start_guest $guest; done
for guest in first second; do wait_for_report $guest connected; done
stable_nodes >/run/nodes-before
for guest in first second stranger; do tell $guest probe yes; done
for guest in first second stranger; do wait_for_guest $guest; done
stable_nodes >/run/nodes-after
diff /run/nodes-before /run/nodes-after || fail "a guest has changed what is not his"

for guest in first second; do
    [ "$(reported $guest read)" = "$(sha256 /srv/$guest.img)" ] || fail "$guest read something else than its disk"
done
for guest in first second stranger; do destroy_guest $guest; done
stop_backend
