# A guest names its buffers by their grants: the hypervisor copies them, and nothing of them stays mapped
. /lab/scenarios/main/job.sh

serve_job
grep -q 'grant_addresses=true' "$RESULTS/backend.log" || fail "no connection chose grant addresses"
