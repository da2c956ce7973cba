# The guest's half of the job; each page of data is named by its grant.
. /lab/scenarios/main/job.sh

do_job --grants
