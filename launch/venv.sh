#!/bin/sh
# Makes the virtual environment that the Makefile's targets run in, where it is
# missing, unfinished or out of date; otherwise returns at once, saying nothing.
#
#   sh launch/venv.sh          the package (editable) and the development tools
#   sh launch/venv.sh torch    these and PyTorch, which some tests compare with
#   sh launch/venv.sh bench    all that and the peers of tests/benchmarks
#
# From the environment: PYTHON, the interpreter (otherwise the first of
# python3.11, python3.12, python3.13 and python3 that runs and is new enough),
# and VENV, where to put it (.venv). pip finds its packages wherever it is
# configured to look on this machine; nothing here names an index.
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
log=$VENV/pip.log
needed_mib=2000

say() { echo "delf_jax: $*"; }
fail() {
  echo "delf_jax: $*" >&2
  exit 1
}

# Sets $python to a real interpreter. Each candidate is run, not just looked up:
# a version manager's shim may be on PATH and fail when it is called. The path
# is the base interpreter's: it outlives a virtual environment that is active
# now and may be the very one to be removed.
find_python() {
  reason="no Python 3.11 or later on PATH; install one, or set PYTHON=/its/path"
  if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
    reason="PYTHON=$PYTHON is no Python 3.11 or later that runs"
  else
    set -- python3.11 python3.12 python3.13 python3
  fi
  for candidate; do
    python=$("$candidate" -c '
import sys
if sys.version_info < (3, 11): sys.exit(1)
print(sys._base_executable)
' 2> /dev/null) || continue
    "$python" -c "import ensurepip, venv" 2> /dev/null && return
    reason="$python lacks venv or ensurepip; install its package python3-venv"
  done
  fail "$reason"
}

# A digest of all that decides what is in the environment, and of its path,
# since it cannot be moved.
recipe() {
  "$python" - "$python" "$VENV" << 'END'
import hashlib, os, pathlib, sys
parts = [sys.version, sys.argv[1], os.path.abspath(sys.argv[2])]
for name in ["constraints.txt", "pyproject.toml", "launch/venv.sh"]:
  parts.append(pathlib.Path(name).read_text())
print(hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest())
END
}

# Whether $VENV was finished from this recipe ($1: "", "-torch" or "-bench").
is_ready() {
  [ "$(cat "$VENV/recipe$1" 2> /dev/null)" = "$wanted" ] &&
    "$VENV/bin/python" -c "" 2> /dev/null
}

# Runs a command with its output in the log, and in the background: the shell
# acts on a signal only between commands, and an interrupted make leaves no pip.
logged() {
  "$@" >> "$log" 2>&1 &
  child=$!
  wait $child
}

pip_install() {
  logged "$VENV/bin/python" -m pip --no-input --disable-pip-version-check \
    install --progress-bar off "$@"
}

free_mib() {
  "$python" -c 'import shutil, sys
print(shutil.disk_usage(sys.argv[1]).free >> 20)' "$1"
}

# One line for what went wrong, from what pip said.
explain() {
  end=$(tail -n 40 "$log")
  case $end in *[Nn]"o space left"* | *[Qq]"uota exceeded"*) full=yes ;; esac
  if [ -n "${full:-}" ] || [ "$(free_mib "$VENV")" -lt 20 ]; then
    fail "disk full while making $VENV; make room ($needed_mib MiB) and run" \
      "this again"
  fi
  case $end in
    *"from versions: none"* | *ConnectionError* | *"timed out"* | \
      *ProxyError* | *SSLError*)
      fail "pip reached no package index that has what is needed; check the" \
        "network and pip's configuration, see $log"
      ;;
  esac
  fail "pip failed: $(echo "$end" | grep -i error | head -n 1); see $log"
}

build() {
  why="is missing"
  [ ! -e "$VENV" ] || why="is unfinished"
  [ ! -e "$VENV/recipe" ] || why="is out of date"
  rm -rf "$VENV"
  free=$(free_mib "$(dirname "$VENV")")
  [ "$free" -ge $needed_mib ] ||
    fail "disk full: $VENV needs $needed_mib MiB, $free MiB are free"
  say "$VENV $why; making it with $("$python" -V) ($python)," \
    "one to three minutes, output in $log"
  mkdir "$VENV"
  logged "$python" -m venv "$VENV" || explain
  # Without the constraints: under them pip calls an unreachable index a
  # conflict of versions.
  pip_install "$(grep "^setuptools==" constraints.txt)" || explain
  pip_install -c constraints.txt --no-build-isolation -e ".[dev,convert]" ||
    explain
  echo "$wanted" > "$VENV/recipe"
}

add_torch() {
  say "adding PyTorch to $VENV"
  if pip_install -c constraints.txt torch; then
    echo "$wanted" > "$VENV/recipe-torch"
  else
    tail -n 40 "$log" | grep -q "[ )]torch==" || explain
    say "pip finds no CPU build of PyTorch here: what needs it is left out"
  fi
}

add_bench() {
  say "adding the peers of tests/benchmarks to $VENV"
  pip_install -c constraints.txt --no-build-isolation -e ".[bench]" || explain
  echo "$wanted" > "$VENV/recipe-bench"
}

find_python
wanted=$(recipe)
parts=
case ${1:-} in
  "") ;;
  torch) parts="torch" ;;
  bench) parts="torch bench" ;;
  *) fail "launch/venv.sh: unknown part $1; expected torch or bench" ;;
esac
all_ready() {
  is_ready "" || return 1
  for part in $parts; do
    is_ready "-$part" || return 1
  done
}
all_ready && exit

# One at a time. The kernel drops this lock when the last process that holds the
# file has ended, however it ends, an orphaned pip included. The file stays: an
# environment without it is somebody else's work, which nothing here removes.
if [ -e "$VENV" ] && [ ! -e "$VENV.lock" ]; then
  fail "$VENV is not this Makefile's; remove it, or choose another: VENV=path"
fi
(mkdir -p "$(dirname "$VENV")" && : > "$VENV.lock") 2> /dev/null ||
  fail "cannot write $VENV.lock: no permission, or the disk is full"
exec 9> "$VENV.lock"
"$python" -c "import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)" \
  2> /dev/null || {
  say "waiting for another make that works on $VENV"
  "$python" -c "import fcntl; fcntl.flock(9, fcntl.LOCK_EX)"
}
child=
interrupted() {
  [ -z "$child" ] || kill "$child" 2> /dev/null
  fail "interrupted; the next run makes $VENV anew"
}
trap interrupted INT TERM HUP

started=$(date +%s)
is_ready "" || build
for part in $parts; do
  is_ready "-$part" || "add_$part"
done
say "$VENV is ready after $(($(date +%s) - started)) s"
