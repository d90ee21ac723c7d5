#!/usr/bin/env bash
# Trains on this machine; one process takes every device that JAX finds.
#
#   bash launch/local.sh [-n N] [--devices K] [--dry-run] FLAG ...
#
#   -n N         N processes that meet on localhost as those of several hosts
#                would, to try that out: on the CPU, or where JAX_PLATFORMS says
#   --devices K  K virtual devices a process, on the CPU
#   --dry-run    print the commands that would run
#   FLAG ...     of python -m delf_jax.train: --config, --workdir and so on
#
# Of several processes the first writes here, the others into RUN/logs. Ctrl-C
# and SIGTERM make all of them save and stop, and the same command continues; a
# second Ctrl-C kills. When one fails, the others are ended, and its exit status
# is the script's. From the environment: PYTHON, the interpreter (python).

# ---- edit here ---------------------------------------------------------------
processes=1
# Virtual devices a process; empty: the devices that JAX finds.
devices=
# Of training, in front of those from the command line, such as
# flags=(--config configs/from_scratch.py --workdir "$HOME/runs/first try")
flags=()
# For several processes to meet; empty: a free one.
port=
# Seconds that the others have to end when a process has failed.
grace=10
# ------------------------------------------------------------------------------
set -eu
python=${PYTHON:-python}

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
    -n | --devices)
      case ${2:-} in
        *[!0-9]* | 0* | "") fail "$1 needs a positive number; -h explains" ;;
      esac
      [ "$1" = -n ] && processes=$2 || devices=$2
      shift
      ;;
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

[ -n "$dry_run" ] || "$python" -c "import delf_jax" 2> /dev/null ||
  fail "$python cannot import delf_jax; activate its environment, or set PYTHON"

command=("$python" -m delf_jax.train "${flags[@]}")
if [ -n "$devices" ]; then
  count=--xla_force_host_platform_device_count=$devices
  command=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$count" "${command[@]}")
fi
if [ -n "$devices" ] || [ "$processes" -gt 1 ]; then
  command=(env "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}" "${command[@]}")
fi

if [ "$processes" -eq 1 ]; then
  [ -n "$dry_run" ] || exec "${command[@]}"
  quote "${command[@]}"
  exit
fi

[ -n "$port" ] || port=$("$python" -c '
import socket
with socket.socket() as s:
  s.bind(("localhost", 0))
  print(s.getsockname()[1])')
logs=$workdir/logs
command+=("--coordinator=localhost:$port" "--num_processes=$processes")

if [ -n "$dry_run" ]; then
  for ((i = 0; i < processes; i++)); do
    quote "${command[@]}" --process_id=$i
  done
  exit
fi

children=()
signal_all() {
  for child in ${children[@]+"${children[@]}"}; do
    kill -"$1" "$child" 2> /dev/null || true
  done
}

# A background process of a script ignores SIGINT, so that Ctrl-C comes here
# alone. Other signals may well come twice (timeout(1) sends one to us and one
# to our group) and are no reason to kill a process that is saving.
stopped=
interrupts=0
stop() {
  stopped=yes
  signal=TERM
  [ "$1" != INT ] || interrupts=$((interrupts + 1))
  [ $interrupts -lt 2 ] || signal=KILL
  signal_all $signal
}
trap 'stop INT' INT
trap 'stop TERM' TERM HUP

mkdir -p "$logs"
for ((i = 0; i < processes; i++)); do
  if [ $i -eq 0 ]; then
    "${command[@]}" --process_id=0 &
  else
    "${command[@]}" --process_id=$i > "$logs/process_$i.log" 2>&1 &
  fi
  children[i]=$!
done
say "$processes processes, of which all but the first write to $logs"

status=0
deadline=
left=$processes
while [ "$left" -gt 0 ]; do
  # In the background, since the shell acts on a signal only between commands.
  sleep 0.5 &
  wait $! || true
  for i in "${!children[@]}"; do
    ! kill -0 "${children[i]}" 2> /dev/null || continue
    code=0
    wait "${children[i]}" || code=$?
    unset "children[i]"
    left=$((left - 1))
    if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
      status=$code
      last=
      [ "$i" -eq 0 ] || last="; $logs/process_$i.log ends in: $(
        tr '\r' '\n' < "$logs/process_$i.log" | grep . | tail -n 1
      )"
      say "process $i ended with status $code, ending the others$last"
      signal_all TERM
      deadline=$((SECONDS + grace))
    fi
  done
  [ -z "$deadline" ] || [ $SECONDS -lt "$deadline" ] || signal_all KILL
done
[ -z "$stopped" ] || say "stopped; the same command continues the run"
exit "$status"
