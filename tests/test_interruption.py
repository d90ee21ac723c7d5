"""Runs as processes: stopped by signals and continued; several as one."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from delf_jax import checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "synthetic.py"
OPTIONS = (
  "--config.dataset.path=",  # rendered anew: nothing is written
  "--config.dataset.num_landmarks=4",
  "--config.descriptors.batch_size=8",
  "--config.attention.batch_size=8",
  "--config.validation.every=1000",
)


def start(workdir, *arguments, devices=1):
  """Starts a training; its output goes to WORKDIR.log."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  command = [
    *(sys.executable, "-m", "delf_jax.train"),
    *(f"--config={CONFIG}:tiny", f"--workdir={workdir}"),
    *OPTIONS,
    *arguments,
  ]
  with open(f"{workdir}.log", "ab") as log:
    return subprocess.Popen(
      command, cwd=ROOT, env=environment, stdout=log, stderr=log
    )


def finish(process, workdir):
  """Waits for a training and returns what it printed."""
  status = process.wait(timeout=300)
  printed = Path(f"{workdir}.log").read_text()
  assert status == 0, printed
  return printed


def wait_for_step(workdir, count, process):
  """Waits until a run has written so many records."""
  records = workdir / "metrics.jsonl"
  for _ in range(3000):
    if records.exists() and records.read_text().count("\n") >= count:
      return
    assert process.poll() is None, "the run ended before it was interrupted"
    time.sleep(0.02)
  pytest.fail("the run makes no progress")


LONG = ("--config.descriptors.steps=80", "--config.save_every=6")


def test_killed_and_terminated_a_run_ends_in_the_same_bits(tmp_path):
  uninterrupted = tmp_path / "uninterrupted"
  whole = start(uninterrupted, *LONG)
  workdir = tmp_path / "run"
  process = start(workdir, *LONG)
  wait_for_step(workdir, 15, process)
  process.kill()
  process.wait()
  process = start(workdir, *LONG)
  wait_for_step(workdir, 50, process)
  process.send_signal(signal.SIGTERM)
  printed = finish(process, workdir)
  stopped = re.search(
    r"stopped after descriptors, step (\d+) of 80, all saved; resume with\n"
    r"  python -m delf_jax\.train (.*)\n",
    printed,
  )
  assert stopped, printed
  # The very step is saved, not the last that was due.
  steps = {p.name for p in (workdir / "checkpoints" / "descriptors").iterdir()}
  assert stopped[1] in steps
  assert not (workdir / "model").exists()
  again = shlex.split(stopped[2])
  assert again == [f"--config={CONFIG}:tiny", f"--workdir={workdir}"] + [
    *OPTIONS,
    *LONG,
  ]
  finish(start(workdir, *LONG), workdir)
  finish(whole, uninterrupted)
  found, expected = map(checkpoint.load_model, (workdir, uninterrupted))
  jax.tree.map(
    np.testing.assert_array_equal, found.variables, expected.variables
  )
  assert found.fingerprint == expected.fingerprint


def close_to(one, other):
  a, b = (checkpoint.load_model(workdir).variables for workdir in (one, other))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), a, b
  )


@pytest.fixture(scope="module")
def single(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("single") / "run"
  finish(start(workdir), workdir)
  return workdir


def test_eight_devices_learn_what_one_learns(single, tmp_path):
  workdir = tmp_path / "run"
  finish(start(workdir, devices=8), workdir)
  close_to(workdir, single)


def test_two_processes_learn_what_one_learns(single, tmp_path):
  workdir = tmp_path / "run"
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [
    start(
      workdir,
      f"--coordinator=localhost:{port}",
      "--num_processes=2",
      f"--process_id={number}",
    )
    for number in range(2)
  ]
  for process in processes:
    finish(process, workdir)
  close_to(workdir, single)
  # One of them writes the records.
  records = (workdir / "metrics.jsonl").read_text().splitlines()
  assert len(records) == len(
    (single / "metrics.jsonl").read_text().splitlines()
  )
