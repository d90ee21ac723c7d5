#!/bin/sh
# Writes constraints.txt from pyproject.toml. Needs uv on PATH.
#
#   sh launch/constraints.sh             keeps the pins that still fit
#   sh launch/constraints.sh --upgrade   takes the newest of everything
#
# The pins hold for every Python that pyproject.toml admits (--universal writes
# markers where 3.11 and 3.12 differ) and name no index and no host.
set -eu
cd "$(dirname "$0")/.."

# The pins of PyTorch are written by hand. On Linux the plain version means the
# CUDA build and gigabytes beside it, which the benchmarks and the parity tests
# never need; "+cpu" admits the CPU build alone, wherever pip is told to look.
torch=2.13.0

command -v uv > /dev/null || {
  echo "delf_jax: uv is not on PATH; install it, then run this again" >&2
  exit 1
}
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
[ ! -e constraints.txt ] || grep -v "^torch==" constraints.txt > "$pins"

# setuptools builds the package and the sdists without build isolation, so that
# its version is pinned here as well; the four after it are what torch's CPU
# build needs and nothing else here brings in.
printf '%s\n' "setuptools>=77" filelock jinja2 networkx sympy |
  uv pip compile pyproject.toml - --quiet --universal --python-version 3.11 \
    --extra dev --extra convert --extra bench --no-header --no-annotate \
    --output-file "$pins" "$@"
{
  cat << END
# Written by \`make constraints\` (launch/constraints.sh): do not edit.
# One set of pins for Python 3.11 and later, CPU; no index and no host is named.
END
  cat "$pins"
  cat << END
torch==$torch+cpu ; sys_platform == 'linux'
torch==$torch ; sys_platform != 'linux'
END
} > constraints.txt
