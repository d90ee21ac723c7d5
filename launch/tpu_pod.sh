#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, across preemptions.
#
#   bash launch/tpu_pod.sh FLAG ...              creates the slice or takes the
#                                                one there is, installs this
#                                                checkout, trains, and watches
#   bash launch/tpu_pod.sh --dry-run FLAG ...    prints the commands
#   bash launch/tpu_pod.sh --stop                training saves and stops
#
# FLAG ... are those of python -m delf_jax.train: --config, --workdir and so on.
# The workdir and the data are directories that every host sees, on a Filestore
# or other NFS share that `prepare` below mounts. gs:// addresses are not
# understood. A bucket mounted by gcsfuse needs the hierarchical namespace, for
# checkpoints are directories that are renamed when whole (not tried).
#
# A slice that is preempted is deleted and made anew, and training goes on from
# its last checkpoint. The hosts train without this script: after Ctrl-C or a
# lost connection the same command watches again. Needs gcloud, logged in, and
# for several hosts its key in the agent: ssh-add ~/.ssh/google_compute_engine
#
# No TPU was at hand: tried with a stand-in for gcloud. gcloud 528 takes all the
# flags; states, versions and the hosts' Python are as Google documents them.

# ---- edit here ---------------------------------------------------------------
name=delf-jax
zone=
# Empty: gcloud's current project.
project=
accelerator=v5litepod-16
# tpu-ubuntu2204-base (v2 to v4), v2-alpha-tpuv5-lite, -tpuv5 (v5p), -tpuv6e
version=v2-alpha-tpuv5-lite
# More of `gcloud compute tpus tpu-vm create`: --spot, --network=NAME, ...
create_flags=(--spot)
# Of training, in front of those from the command line, such as
# flags=(--config configs/from_scratch.py --workdir /mnt/shared/runs/first)
flags=()
# On every host before training; more than once, so it must bear repeating.
# prepare='mountpoint -q /mnt/shared || {
#   sudo mkdir -p /mnt/shared && sudo mount 10.0.0.2:/share /mnt/shared; }'
prepare=:
# Also on every host, in a directory with this checkout; makes .venv/bin/python.
# The images' own Python is 3.10, which is too old.
install='[ -e uv/bin/uv ] || python3 -m pip install --quiet --target uv uv
[ -e .venv ] || uv/bin/uv venv --quiet --python 3.11 .venv
uv/bin/uv pip install --quiet --python .venv/bin/python -c constraints.txt \
  -e ".[tpu]"'
# Seconds between looks at a slice, and how many in a row may find it unusable.
interval=60
patience=60
# Seconds between attempts to create a slice where there is no room for one.
retry=300
max_creations=100
# How often training may be started.
max_starts=100
# yes: the slice is deleted when training is finished.
delete_at_end=no
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
stop=
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=yes ;;
    --stop) stop=yes ;;
    -h | --help) exec sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
    *) flags+=("$1") ;;
  esac
  shift
done
[ -n "$zone" ] || fail "no zone is set; edit the settings in $0"

# gcloud compute tpus tpu-vm VERB ...
tpu() {
  local verb=$1
  shift
  set -- gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone" \
    ${project:+--project="$project"}
  if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi
}

# Runs a command on one host or on "all". gcloud repeats it when the connection
# breaks; every command here bears that.
on_hosts() { tpu ssh "$name" --worker="$1" --command="$2"; }

# What the hosts know of training is in /tmp: a reboot ends training, and that.
enter='d=${TMPDIR:-/tmp}/delf_jax; mkdir -p "$d"'

ask_to_stop="$enter"'
touch "$d/stop"
[ -e "$d/status" ] || kill -TERM "$(cat "$d/pid")"'

if [ -n "$stop" ]; then
  on_hosts all "$ask_to_stop"
  exit
fi

workdir=
previous=
for flag in ${flags[@]+"${flags[@]}"}; do
  case $previous in --workdir | -workdir) workdir=$flag ;; esac
  case $flag in --workdir=* | -workdir=*) workdir=${flag#*=} ;; esac
  previous=$flag
done
case $workdir in
  /*) ;;
  *://*) fail "$workdir is no directory; mount the storage on the hosts" ;;
  *) fail "--workdir must be an absolute path, on the hosts; -h explains" ;;
esac

train=$(quote .venv/bin/python -m delf_jax.train --cluster "${flags[@]}")
key=$(printf '%s' "$train" | cksum | tr ' ' _)

set_up='set -e
mkdir -p ~/delf_jax
cd ~/delf_jax
rm -rf delf_jax configs
tar -xzf ~/delf_jax.tar.gz
'"$prepare
$install"

# Does nothing when it is repeated with the same id. What runs already (where
# some hosts have failed, others may wait for them) ends first.
start_training() {
  on_hosts all "$enter"'
[ "$(cat "$d/id" 2> /dev/null)" != '"$1"' ] || exit 0
if [ -e "$d/pid" ] && [ ! -e "$d/status" ]; then
  kill -KILL "$(cat "$d/pid")" 2> /dev/null
  while kill -0 "$(cat "$d/pid")" 2> /dev/null; do sleep 1; done
fi
rm -f "$d/pid" "$d/status" "$d/stop"
echo '"$key"' > "$d/key"
cd ~/delf_jax || exit
(
  '"$train"' > "$d/log" 2>&1 &
  echo $! > "$d/pid"
  wait $!
  echo $? > "$d/status"
) < /dev/null > /dev/null 2>&1 &
until [ -s "$d/pid" ]; do sleep 0.1; done
echo '"$1"' > "$d/id"'
}

# Prints how training is, and the last line of its output.
look_at_training="$enter"'
if [ ! -e "$d/pid" ]; then
  training=none
elif [ ! -e "$d/status" ] && ! kill -0 "$(cat "$d/pid")"; then
  training=lost
elif [ "$(cat "$d/key")" != '"$key"' ]; then
  training=other
  [ ! -e "$d/status" ] || training=none
elif [ ! -e "$d/status" ]; then
  training=running
elif [ "$(cat "$d/status")" != 0 ]; then
  training=failed
elif ! grep -q "resume with" "$d/log"; then
  training=finished
elif [ -e "$d/stop" ]; then
  training=stopped
else
  training=interrupted
fi
echo "training=$training"
[ ! -e "$d/log" ] || tail -c 2000 "$d/log" | tr "\r" "\n" | grep . | tail -n 1'

last_lines="$enter"'
echo "== $(hostname)"; tail -n 5 "$d/log"'

describe() { tpu describe "$name" --format="value(state)"; }
create() {
  tpu create "$name" --accelerator-type="$accelerator" --version="$version" \
    ${create_flags[@]+"${create_flags[@]}"}
}
delete() { tpu delete "$name" --quiet; }
copy() { tpu scp "$1" "$name:delf_jax.tar.gz" --worker=all; }

if [ -n "$dry_run" ]; then
  echo "# every $interval seconds:"
  describe
  on_hosts 0 "$look_at_training"
  echo "# where there is no slice:"
  create
  echo "# where nothing runs:"
  copy delf_jax.tar.gz
  on_hosts all "$set_up"
  start_training ID
  echo "# where the slice was preempted:"
  delete
  echo "# with --stop:"
  on_hosts all "$ask_to_stop"
  exit
fi

command -v gcloud > /dev/null ||
  fail "gcloud is not on PATH; install the Google Cloud CLI"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
archive=$scratch/delf_jax.tar.gz
errors=$scratch/errors
tar -C "$(dirname "$0")/.." --exclude=__pycache__ -czf "$archive" \
  pyproject.toml constraints.txt README.md LICENSE delf_jax configs

pause() {
  # In the background, since the shell acts on a signal only between commands.
  sleep "$1" &
  wait $! || true
}
leave() {
  say "what runs on the slice goes on; the same command watches it, and" \
    "bash $0 --stop stops it"
  exit 130
}
trap leave INT TERM HUP

# Sets $state, of the slice, and $training and $progress, of its first host. It
# stands for all: when one host is gone, JAX ends the others within minutes.
look() {
  training=
  progress=
  if ! state=$(describe 2> "$errors"); then
    state=unknown
    ! grep -q NOT_FOUND "$errors" || state=none
  elif [ "$state" = READY ]; then
    training=unreachable
    local report
    report=$(on_hosts 0 "$look_at_training" 2> "$errors") || return 0
    case $report in
      *training=*)
        report=${report#*training=}
        training=${report%%$'\n'*}
        progress=${report#"$training"}
        progress=${progress#$'\n'}
        ;;
    esac
  fi
}

make_slice() {
  creations=$((creations + 1))
  [ $creations -le "$max_creations" ] ||
    fail "no slice after $max_creations attempts; gcloud's reasons are above"
  say "creating $name ($accelerator), attempt $creations"
  create 2>&1 | tee "$errors" >&2
  [ "${PIPESTATUS[0]}" -ne 0 ] || return 0
  ! grep -Eq "INVALID_ARGUMENT|PERMISSION_DENIED|UNAUTHENTICATED" "$errors" ||
    fail "gcloud refuses to create $name; see above"
  say "no slice yet, another attempt in $retry s"
  pause "$retry"
}

train_on_slice() {
  starts=$((starts + 1))
  [ $starts -le "$max_starts" ] ||
    fail "training is not finished after $max_starts starts"
  say "installing on all hosts of $name, then start $starts of training"
  if copy "$archive" && on_hosts all "$set_up" &&
    start_training "$(date +%s)_$$"; then
    watched=yes
    failures=0
  else
    # The slice may just be going away.
    failures=$((failures + 1))
    [ $failures -lt 3 ] || fail "the hosts cannot be set up; see above"
    pause "$interval"
  fi
}

keep_slice() {
  say "$name is still there and costs money; this deletes it:"
  dry_run=yes
  delete >&2
}

starts=0
creations=0
failures=0
unusable=0
watched=
doubtful=
shown=
while :; do
  look
  case $state/$training in
    none/)
      watched=
      make_slice
      continue
      ;;
    PREEMPTED/ | TERMINATED/)
      say "$name was preempted; deleting it, to make it anew"
      watched=
      ! delete || continue
      ;;
    STOPPED/ | HIDDEN/)
      fail "$name is $state; start or delete it, then run this again"
      ;;
    READY/other)
      fail "$name trains something else; bash $0 --stop stops that"
      ;;
    READY/running)
      [ -n "$watched" ] || say "training runs already; watching it"
      watched=yes
      unusable=0
      doubtful=
      [ "$progress" = "$shown" ] || say "$progress"
      shown=$progress
      pause "$interval"
      continue
      ;;
    READY/unreachable) ;;
    READY/*)
      case ${watched:-no}/$training/${doubtful:-no} in
        no/*)
          train_on_slice
          ;;
        yes/finished/*)
          say "$progress"
          say "training is finished"
          if [ "$delete_at_end" = yes ]; then delete; else keep_slice; fi
          exit
          ;;
        yes/stopped/*)
          say "training was stopped; the same command continues it"
          keep_slice
          exit
          ;;
        */no)
          # Perhaps the slice is being preempted. The next look tells.
          doubtful=yes
          pause "$interval"
          ;;
        yes/failed/*)
          on_hosts all "$last_lines" >&2 || true
          keep_slice
          fail "training failed; the last lines of every host are above"
          ;;
        *)
          say "training is gone from the hosts; starting it again"
          doubtful=
          train_on_slice
          ;;
      esac
      continue
      ;;
  esac
  unusable=$((unusable + 1))
  [ $unusable -lt "$patience" ] ||
    fail "$name is $state${training:+ and $training} for too long:" \
      "$(tail -n 1 "$errors")"
  pause "$interval"
done
