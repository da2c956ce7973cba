# Has no bus, and reaches nobody else's.
. /lab/scenarios/two-guests/probe.sh

[ "$(vmsg frontend list | wc -l)" -le 1 ] || fail "this guest has a device"
wait_for_note probe
assert_out_of_reach forbidden
must_fail xenstore-write device/virtio-msg/0/state 1
