# A disk is attached, read, written, verified and detached; nothing of the guest is held any more
# ci
. /lab/scenarios/main/job.sh

serve_job
assert_engine
