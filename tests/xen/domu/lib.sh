# Shell functions for the scenario's half in the guest.

# report KEY VALUE: a value for dom0, which asks for it with guest_reported.
report() { echo "@@LAB report $1=$2"; }
