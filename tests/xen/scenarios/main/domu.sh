# The guest's half of the job.
. /lab/scenarios/main/job.sh

do_job
