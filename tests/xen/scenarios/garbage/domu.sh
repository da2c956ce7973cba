# Writes nonsense into each key of its own directory, then behaves.

bus=device/virtio-msg/0
back=$(xenstore-read $bus/backend)
peer() { xenstore-read "$back/state"; }
is_ready() { [ "$(peer)" = 2 ]; }

# try KEY VALUE: writes what a frontend that behaves would write, though with pages and a port that do not exist, and KEY=VALUE.
try() {
    xenstore-write $bus/state 1
    wait_until 20 is_ready || fail "before $1='$2' the backend is in state $(peer), not 2"
    xenstore-write -- $bus/session "$(xenstore-read "$back/session")" $bus/ring-page-order 0 $bus/ring-ref0 500 $bus/event-channel 60 \
        $bus/bus-version 1 $bus/revision 1 $bus/transport-features 0x0 $bus/message-size 264 "$bus/$1" "$2" $bus/state 3
    [ "$(peer)" != 4 ] || fail "the backend connected with $1='$2'"
}

long=$(head -c 1000 /dev/zero | tr '\0' x)
for key in session ring-page-order ring-ref0 event-channel bus-version revision transport-features message-size; do
    for value in -1 "$long"; do try $key "$value"; done
done
# What the toolstack wrote into the guest's directory; the backend never looks there.
for key in backend backend-id; do
    saved=$(xenstore-read $bus/$key)
    try $key "$long"
    xenstore-write $bus/$key "$saved"
done
for value in '' -1 99 3 4 x; do xenstore-write -- $bus/state "$value"; done
xenstore-write $bus/state 6
report garbage-written yes

wait_for_note behave
vmsg frontend blk copy 0 /tmp/read.img
report read "$(sha256 /tmp/read.img)"
