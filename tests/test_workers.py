"""Worker processes: what they load, how they fail, and that they end."""

import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from delf_jax.data.workers import Workers
from delf_jax.errors import InputError

# The fillers are in a module of their own, so that what a worker loads is not
# what this file loads.
FILLERS = """
import os
import signal
import sys

from delf_jax.errors import InputError


class Filler:
  def fill(self, request, array):
    array[:] = request
    return os.getpid(), array.shape


class Loaded:
  def fill(self, request, array):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return sorted(name.split(".")[0] for name in sys.modules), blocked


class Device:
  def fill(self, request, array):
    import jax
    return [str(device) for device in jax.devices()]


class OddError(Exception):
  def __init__(self, one, two):
    super().__init__(one)


class Failing:
  def fill(self, request, array):
    if request == "input":
      raise InputError("unfit")
    if request == "odd":
      raise OddError(1, 2)
    if request == "exit":
      os._exit(3)
    if request == "killed":
      os.kill(os.getpid(), signal.SIGKILL)
    if request == "unpicklable":
      return lambda: None
    raise KeyError(request)


class Broken:
  def __init__(self):
    raise ValueError("cannot be made")


class Sleeping:
  def fill(self, request, array):
    import time
    time.sleep(60)
"""

# What a program that uses workers may do: it prints their ids and waits.
PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
import fillers
from delf_jax.data.workers import Workers

workers = Workers(fillers.Filler, count=2, threads=1, size=4)
found = set()
while len(found) < 2:
  found.add(workers.fill(1, np.zeros(4, np.uint8))[0])
print(*found, flush=True)
if sys.argv[2] == "waits":
  time.sleep(60)
"""


@pytest.fixture
def fillers(tmp_path, monkeypatch):
  path = tmp_path / "fillers.py"
  path.write_text(FILLERS)
  monkeypatch.syspath_prepend(tmp_path)
  yield importlib.import_module(path.stem)
  del sys.modules[path.stem]


@pytest.fixture
def start(fillers):
  started = []

  def start(name, *, count=1, threads=1, size=1024):
    started.append(
      Workers(getattr(fillers, name), count=count, threads=threads, size=size)
    )
    return started[-1]

  yield start
  for workers in started:
    workers.close()


def array(*shape):
  return np.zeros(shape, np.uint8)


def is_running(process):
  """Whether there is such a process that is not only waiting to be reaped."""
  try:
    status = pathlib.Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return False
  return status.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(processes):
  end = time.monotonic() + 10
  while any(map(is_running, processes)):
    assert time.monotonic() < end, "still running"
    time.sleep(0.02)


def named_memory():
  """Shared memory of this process that would outlive it."""
  maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
  return [line for line in maps if "/dev/shm" in line]


def test_arrays_are_filled_by_all_processes(start):
  before = named_memory()
  workers = start("Filler", count=2, threads=2)
  assert named_memory() == before
  found = set()
  for value in range(40):
    filled = array(value % 5 + 1, 3)
    process, shape = workers.fill(value, filled)
    assert (filled == value).all() and shape == filled.shape
    found.add(process)
  assert len(found) == 2 and os.getpid() not in found
  workers.close()
  wait_until_gone(found)


def test_many_threads_never_mix_up_their_arrays(start):
  workers = start("Filler", count=2, threads=2, size=2**20)

  def fill(value):
    filled = array(2**20)
    workers.fill(value % 251, filled)
    return (filled == value % 251).all()

  with ThreadPoolExecutor(8) as pool:
    assert all(pool.map(fill, range(300)))


def test_they_load_nothing_heavy_and_get_no_signals(start):
  modules, blocked = start("Loaded").fill(None, array(1))
  assert not {"jax", "grain", "absl", "tensorflow", "pytest"} & set(modules)
  assert {signal.SIGINT, signal.SIGTERM} <= blocked
  # This thread still gets them.
  assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_signals_are_ignored_from_the_start(start):
  workers = start("Filler")
  (process,) = workers._processes
  for wanted in (signal.SIGINT, signal.SIGTERM):
    os.kill(process.pid, wanted)  # it is hardly an interpreter yet
  assert workers.fill(1, array(1))[0] == process.pid
  os.kill(process.pid, signal.SIGTERM)
  assert workers.fill(1, array(1))[0] == process.pid


def test_no_accelerator_can_be_taken(start, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda,tpu")
  devices = start("Device").fill(None, array(1))
  assert devices and all("cpu" in device.lower() for device in devices)


def test_errors_come_back(start):
  workers = start("Failing")
  with pytest.raises(InputError, match="^unfit$"):
    workers.fill("input", array(1))
  with pytest.raises(KeyError, match="name") as caught:
    workers.fill("name", array(1))
  assert "raise KeyError(request)" in caught.value.__notes__[0]
  with pytest.raises(RuntimeError, match="OddError: 1"):
    workers.fill("odd", array(1))
  with pytest.raises(ValueError, match="cannot be made"):
    start("Broken").fill(None, array(1))


@pytest.mark.parametrize(
  ("request_", "message"),
  [
    ("exit", "ended with status 3$"),
    ("killed", "ended with status -9; if the machine was short of memory"),
    ("unpicklable", "ended with status 1$"),
  ],
)
def test_the_end_of_a_process_is_said(start, request_, message):
  workers = start("Failing", threads=2)
  for _ in range(3):
    with pytest.raises(InputError, match=message):
      workers.fill(request_, array(1))


def test_closing_ends_what_is_under_way(start):
  workers = start("Sleeping", count=2)
  processes = [process.pid for process in workers._processes]
  begun = time.monotonic()
  workers.close()
  workers.close()
  assert time.monotonic() - begun < 5
  wait_until_gone(processes)


@pytest.mark.parametrize("end", ["returns", "waits"])
def test_workers_never_outlive_their_parent(fillers, tmp_path, end):
  with subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(tmp_path), end],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as program:
    processes = [int(word) for word in program.stdout.readline().split()]
    assert len(processes) == 2
    if end == "waits":
      assert all(map(is_running, processes))
      program.kill()
    _, errors = program.communicate(timeout=30)
  assert errors == ""
  wait_until_gone(processes)
