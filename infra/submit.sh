#!/usr/bin/env bash
# Preprocesses on a Ray cluster.
# RAY_API_SERVER_ADDRESS is the cluster's dashboard (http://127.0.0.1:8265). The token is read where Ray looks for it:
# RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; RAY_AUTH_MODE=disabled is for clusters without one.
# Shows the job's log, and ends with the exit code of the pipeline (`ray job submit` itself knows only 0 and 1).
set -euo pipefail
usage='usage: infra/submit.sh INPUT... --out DIR [options of python -m pipeline preprocess]'
case " $* " in
"  ") echo "$usage" >&2 && exit 2 ;;
*" -h "* | *" --help "*) echo "$usage" && sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
esac
export RAY_API_SERVER_ADDRESS=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265} RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
root=$(cd "$(dirname "$0")/.." && pwd)
[ -n "${PYTHON:-}" ] || { PYTHON=$root/.venv/bin/python; [ -x "$PYTHON" ] || PYTHON=python3; }
job=${JOB:-patchwork-$(date +%Y%m%d-%H%M%S)-$$}

"$PYTHON" - <<'END' || exit 2
import os
import sys

from ray.job_submission import JobSubmissionClient

try:
    JobSubmissionClient()
except Exception as error:
    sys.exit(f"submit: {os.environ['RAY_API_SERVER_ADDRESS']}: {str(error).partition(chr(10))[0]}")
END

# Only the two packages that do the work travel ("/." is the folder itself); what they import must be on the nodes.
environment='{"excludes": ["/*", "!/.", "!/pipeline", "!/shared", "__pycache__"]}'
"$PYTHON" -m ray.scripts.scripts job submit --submission-id "$job" --working-dir "$root" \
  --runtime-env-json "$environment" -- python -m pipeline preprocess "$@" || true # what came of it follows

exec "$PYTHON" - "$job" <<'END'
import sys
import time

from ray.job_submission import JobSubmissionClient

job = sys.argv[1]
try:
    client = JobSubmissionClient()
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(5)  # the log broke off before the job ended
except Exception as error:
    sys.exit(f"submit: what became of job {job} is not known: {str(error).partition(chr(10))[0]}")
print(f"submit: job {job}: {info.status}, exit code {info.driver_exit_code}", file=sys.stderr)
sys.exit(1 if info.driver_exit_code is None else info.driver_exit_code)
END
