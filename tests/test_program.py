"""What surrounds every program: how it ends, where it keeps compilations."""

import subprocess
import sys

import pytest

from delf_jax import program


def run_main(body):
  """Runs a program whose main function has this body."""
  code = f"""
import errno, os, signal
from delf_jax import program
from delf_jax.errors import InputError

def main():
  {body}

program.run(main)
"""
  return subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ("body", "status", "message"),
  [
    ("return 0", 0, ""),
    ("return 3", 3, ""),
    ("raise InputError('give a folder')", 1, "error: give a folder\n"),
    (
      "raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'out.txt')",
      1,
      "error: out.txt: No space left on device\n",
    ),
    (
      "os.kill(os.getpid(), signal.SIGTERM)",
      130,
      "error: stopped; the same command continues where it can\n",
    ),
    (
      "os.kill(os.getpid(), signal.SIGINT)",
      130,
      "error: stopped; the same command continues where it can\n",
    ),
  ],
)
def test_how_a_program_ends(body, status, message):
  done = run_main(body)
  assert (done.returncode, done.stderr) == (status, message)


def test_a_mistake_of_ours_keeps_its_traceback():
  done = run_main("return 1 / 0")
  assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_the_compilation_cache_can_be_moved(tmp_path, monkeypatch):
  monkeypatch.setenv(program.CACHE_VARIABLE, str(tmp_path / "cache"))
  assert program.cache_directory() == tmp_path / "cache"
  monkeypatch.delenv(program.CACHE_VARIABLE)
  assert program.cache_directory().name == "delf_jax"


def test_elapsed_time_is_written_for_people(monkeypatch):
  monkeypatch.setattr(program.time, "perf_counter", lambda: 100.0)
  assert program.elapsed(87.66) == "12.3 s"
  assert program.elapsed(100.0 - 125) == "2 min 5 s"
