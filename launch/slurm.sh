#!/bin/bash
# Trains on the nodes of a SLURM job, across time limits and preemption.
#
#   sbatch launch/slurm.sh FLAG ...             submits the job
#   bash launch/slurm.sh --dry-run FLAG ...     prints what the job would run
#
# FLAG ... are those of python -m delf_jax.train: --config, --workdir and so on.
# All nodes must see the same workdir and data; task I of a job writes to
# RUN/logs/slurm_JOB_START_I.log. Before the time is up, training saves and
# stops, and the job queues again by itself; SLURM does that for jobs that it
# preempts (if it is set up to requeue these) and jobs whose node has failed.
# `scancel JOB` ends the job, and the same sbatch command continues the run.

# ---- edit here ---------------------------------------------------------------
# One task a node, which takes all GPUs of the node.
#SBATCH --job-name=delf_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# The warning goes to this script alone (B:), 120 seconds ahead, in which a step
# ends and a checkpoint is written. Not TERM, which is what scancel sends.
#SBATCH --signal=B:USR1@120

# An absolute path, or one below the directory where sbatch is called.
python=${PYTHON:-.venv/bin/python}
# Of training, in front of those from the command line, such as
# flags=(--config configs/from_scratch.py --workdir "/shared/runs/first try")
flags=()
# How often a job may start again before it must be submitted by hand.
max_restarts=100
# What every node's environment needs, such as `module load cuda`.
setup() {
  :
}
# ------------------------------------------------------------------------------
set -eu

say() { echo "delf_jax: $*" >&2; }
fail() {
  say "$@"
  exit 1
}

# Prints words as a shell reads them back; printf %q is neither portable nor
# readable for long words.
quote() {
  local word line= escaped="'\\''"
  for word; do
    case $word in
      *[!A-Za-z0-9_./:=@%+,-]* | "") word="'${word//\'/$escaped}'" ;;
    esac
    line="$line $word"
  done
  printf '%s\n' "${line# }"
}

dry_run=
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=yes ;;
    -h | --help) exec sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
    *) flags+=("$1") ;;
  esac
  shift
done

workdir=
previous=
for flag in ${flags[@]+"${flags[@]}"}; do
  case $previous in --workdir | -workdir) workdir=$flag ;; esac
  case $flag in --workdir=* | -workdir=*) workdir=${flag#*=} ;; esac
  previous=$flag
done
[ -n "$workdir" ] || fail "where should the run go? give --workdir; -h explains"

job=${SLURM_JOB_ID:-}
if [ -z "$job" ]; then
  [ -n "$dry_run" ] || fail "this is no SLURM job; sbatch $0 FLAG ... makes one"
  job=JOB
fi

# Under SLURM, JAX gives a task the one GPU of its rank on the node, unless it
# is told otherwise: https://github.com/jax-ml/jax/issues/16788
gpus=${SLURM_GPUS_ON_NODE:-1}
if [ "$gpus" -gt 1 ] && [ "${SLURM_NTASKS_PER_NODE:-1}" -eq 1 ]; then
  export JAX_LOCAL_DEVICE_IDS
  JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((gpus - 1)))}
fi

start=${SLURM_RESTART_COUNT:-0}
log=$workdir/logs/slurm_${job}_$start
# Since SLURM 22.05 srun does not take --cpus-per-task over from sbatch; a % in
# --output begins a pattern.
train=(srun --kill-on-bad-exit=1
  ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}
  --output="${log//%/%%}_%t.log"
  "$python" -m delf_jax.train --cluster "${flags[@]}")
# Not kill: srun answers SIGTERM by killing its tasks at once. This reaches the
# tasks, and not this script.
stop=(scancel --signal=TERM "$job")
requeue=(scontrol requeue "$job")

if [ -n "$dry_run" ]; then
  quote "${train[@]}"
  echo "# 120 seconds before the time is up:"
  quote "${stop[@]}"
  echo "# when training has stopped and is not finished:"
  quote "${requeue[@]}"
  exit
fi

warned=
signalled=
warn() {
  say "the time is almost up; training saves and stops"
  warned=yes
  signalled=yes
  "${stop[@]}" || say "scancel failed; the last checkpoint has to do"
}
trap warn USR1
# By scancel or preemption SLURM has told the tasks; this script waits for them.
trap 'signalled=yes' TERM

setup
mkdir -p "$workdir/logs"
say "start $start of job $job on ${SLURM_JOB_NODELIST:-this node}," \
  "output in ${log}_*.log"
"${train[@]}" &
while :; do
  signalled=
  status=0
  wait $! || status=$?
  # A signal ends the wait, but not srun.
  [ -n "$signalled" ] || break
done

if [ $status -eq 0 ] && ! grep -qs "resume with" "${log}_0.log"; then
  say "training is finished"
elif [ -n "$warned" ]; then
  [ "$start" -lt "$max_restarts" ] ||
    fail "training is not finished after $start restarts; submit it again"
  say "training is not finished; job $job queues again"
  "${requeue[@]}" || fail "scontrol requeue failed; submit the job again"
elif [ $status -eq 0 ]; then
  say "training was stopped; the same sbatch command continues it"
else
  say "training ended with status $status; see ${log}_*.log"
  exit $status
fi
