#!/usr/bin/env bash
# Trains on one machine or on several. Run again, it resumes from the last good checkpoint. On several machines the same
# command runs on each of them, over storage that all see. What it takes from the environment:
#   NPROC             ranks on this machine: its GPUs, or 1 where there are none
#   NODES             machines: 1
#   RENDEZVOUS        host:port on one of several machines, where all of them meet
#   JOB               name that all of them meet under: patchwork
#   MAX_RESTARTS      so often all ranks are started anew when one of them has died: 3
#   SHUTDOWN_TIMEOUT  seconds that a stopped run has to save itself: 300 (torch 2.11: always 30)
#   TORCHRUN          the launcher, if it is not to be trainer/launch.py
set -euo pipefail
usage='usage: infra/train.sh RECIPE.toml [--section.key value]...'
case " $* " in
"  ") echo "$usage" >&2 && exit 2 ;;
*" -h "* | *" --help "*) echo "$usage" && sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
# Not the environment's torchrun: it names the interpreter of the folder that it was installed in, which may be another by
# now, and lets ranks of one machine meet on all of its interfaces.
python=python
! [ -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python
launcher=("$python" "$root/trainer/launch.py")
[ -z "${TORCHRUN:-}" ] || launcher=("$TORCHRUN")
if [ -z "${NPROC:-}" ]; then
  NPROC=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
  [ "$NPROC" -gt 0 ] || NPROC=1
fi

options=(
  --nproc-per-node "$NPROC"
  --max-restarts "${MAX_RESTARTS:-3}"
  --signals-to-handle "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
)
if [ "${NODES:-1}" -gt 1 ]; then
  [ -n "${RENDEZVOUS:-}" ] || { echo "train: NODES=$NODES needs RENDEZVOUS=host:port on one of them" >&2; exit 2; }
  options+=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "${JOB:-patchwork}")
else
  options+=(--standalone)
fi
# The launcher of torch 2.11 does not know this option, and waits 30 seconds.
known=$("${launcher[@]}" --help || true)
[[ $known != *--shutdown-timeout* ]] || options+=(--shutdown-timeout "${SHUTDOWN_TIMEOUT:-300}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # run.threads decides; without this the launcher warns
exec "${launcher[@]}" "${options[@]}" "$root/trainer/main.py" "$@"
