"""Several processes as one run: how they meet, and how they stop together."""

import contextlib
import os
import signal
import threading
import types
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from delf_jax.errors import InputError


def connect(
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes of a run; the first call of a program to JAX.

  Without arguments JAX asks the cluster, which it can on TPU pods, under
  SLURM and Open MPI. On CPU the processes talk by gloo.

  Args:
    coordinator: "host:port" of process 0, which every process can reach.
    num_processes: how many there are.
    process_id: of this one, from 0.

  Raises:
    InputError: if the processes do not find each other.
  """
  if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (ValueError, RuntimeError) as error:
    reason = str(error).strip().splitlines()[0]
    raise InputError(
      f"the processes of this run did not find each other: {reason}; give "
      f"--coordinator=HOST:PORT, --num_processes and --process_id on each host"
    ) from error


def is_primary() -> bool:
  """Whether this process writes logs, models and pictures."""
  return jax.process_index() == 0


def agree(value: int, what: str) -> int:
  """Returns a value that must be the same on every process.

  Args:
    value: of this process.
    what: it is, for the message.

  Raises:
    InputError: if the processes differ.
  """
  if jax.process_count() > 1:
    values = multihost_utils.process_allgather(np.asarray(value))
    if len(set(values.tolist())) > 1:
      raise InputError(
        f"the processes of this run differ in {what}: {values.tolist()}; they "
        f"must share one --workdir and see the same data"
      )
  return value


def wait(what: str) -> None:
  """Waits until every process has come as far as this."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def primary_first(what: str) -> Iterator[None]:
  """Runs a block on the first process, then on the others.

  For what the first one makes on disk and the others find there.
  """
  if not is_primary():
    wait(what)
  try:
    yield
  finally:
    if is_primary():
      wait(what)


class Stopped(KeyboardInterrupt):
  """A signal ended the work; what was done is saved."""


class StopSignals:
  """Turns SIGTERM and SIGINT into `Stopped`, where the work can bear it.

  A context manager; inside it a signal raises `Stopped` at once, but under
  `deferred` it is noted, for `stop_after` to tell, and a second SIGINT raises.
  With several processes SIGTERM to any of them stops all after the same step.
  The earlier handlers come back at the end.
  """

  def __init__(self) -> None:
    """Installs nothing yet."""
    self._stop = False
    self._deferred = False
    self._earlier = {}

  def __enter__(self) -> "StopSignals":
    # With several processes, JAX's own handler tells the others of a SIGTERM.
    # Threads other than the main one may not handle signals.
    alone = jax.process_count() == 1
    if alone and threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._earlier[number] = signal.signal(number, self._note)
    return self

  def _note(self, number: int, frame: types.FrameType | None) -> None:
    again = self._stop
    self._stop = True
    if not self._deferred or (again and number == signal.SIGINT):
      raise Stopped

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._earlier.items():
      signal.signal(number, handler)

  @contextlib.contextmanager
  def deferred(self, deferred: bool = True) -> Iterator[None]:
    """Notes signals; with False, raises `Stopped` for them again."""
    earlier, self._deferred = self._deferred, deferred
    try:
      if self._stop and not deferred:
        raise Stopped
      yield
    finally:
      self._deferred = earlier

  def stop_after(self, step: int) -> bool:
    """Whether to save and stop after `step`, the same on every process.

    Args:
      step: counts up over the whole run, on every process alike.
    """
    if jax.process_count() == 1:
      return self._stop
    return multihost_utils.reached_preemption_sync_point(step)
