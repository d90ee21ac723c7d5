"""Processes that fill arrays: what decodes beside the training step.

They are bare interpreters which import what decoding needs and nothing else, in
particular neither the program that started them nor JAX. Each has a few lanes:
a pair of sockets for requests and answers, and memory for the pixels. Neither
has a name in the file system, so that nothing is left behind whoever is killed.
A worker ends when its sockets close: when its parent closes it, and when its
parent dies of whatever cause. SIGINT and SIGTERM, which may reach a whole group
of processes, are for the parent to answer.

Grain's own worker processes (0.2.18) import the program again, and JAX with it;
go on for ever when their parent is killed; close one after the other; and
leave shared memory behind, which Python then complains about. So Grain keeps
the order here, and its threads wait for these processes.
"""

import contextlib
import json
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple, Protocol

import numpy as np

from delf_jax.errors import InputError

# What a new interpreter runs. With this path it finds the same modules.
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from delf_jax.data import workers
workers.serve(*json.loads(sys.argv[2]))
"""

_ENVIRONMENT = {
  # Should a source import JAX, it must not take the parent's accelerator.
  "JAX_PLATFORMS": "cpu",
  # There are as many workers as cores already.
  "OMP_NUM_THREADS": "1",
  "OPENBLAS_NUM_THREADS": "1",
  "OPENCV_FOR_THREADS_NUM": "1",
  # glibc would return the memory of every photograph to the system, which then
  # clears it for the next one: that took a fifth of the time at 720 pixels.
  "MALLOC_MMAP_THRESHOLD_": str(2**25),
  "MALLOC_TRIM_THRESHOLD_": str(2**26),
}


class Filler(Protocol):
  """What the processes do."""

  def fill(self, request: Any, array: np.ndarray) -> Any:
    """Fills an array of uint8; request and result are pickled."""
    ...


class _Lane(NamedTuple):
  """Takes one request after the other to one process."""

  connection: Connection
  memory: mmap.mmap
  process: subprocess.Popen


class Workers:
  """Processes that share the calls of one `Filler`."""

  def __init__(
    self,
    make: Callable[[], Filler],
    *,
    count: int,
    threads: int,
    size: int,
  ) -> None:
    """Starts the processes, which takes them some tenths of a second.

    Args:
      make: makes the filler; it is pickled, and called once in each process.
      count: of processes.
      threads: that fill in each.
      size: of the largest array in bytes.

    Raises:
      InputError: if the system has no room for them.
    """
    self._lanes = queue.SimpleQueue()
    self._processes = []
    try:
      with _anonymous_file(pickle.dumps(make)) as job:
        for _ in range(count):
          self._start(job, threads, size)
    except OSError as error:
      self.close()
      raise InputError(
        f"cannot start {count} processes that decode ({error}); use fewer "
        "workers"
      ) from error

  def _start(self, job: int, threads: int, size: int) -> None:
    with contextlib.ExitStack() as ours:
      ends, files = [], []
      for _ in range(threads):
        near, far = Pipe()
        ours.enter_context(far)
        file = ours.enter_context(_anonymous_file(size=size))
        ends.append((near, mmap.mmap(file, size)))
        files.append((far.fileno(), file))
      with _signals_blocked():
        process = subprocess.Popen(
          [
            sys.executable,
            "-c",
            _START,
            json.dumps(sys.path),
            json.dumps([job, files]),
          ],
          pass_fds=[job, *sum(files, ())],
          stdin=subprocess.DEVNULL,
          env={**os.environ, **_ENVIRONMENT},
        )
    self._processes.append(process)
    for connection, memory in ends:
      self._lanes.put(_Lane(connection, memory, process))

  def fill(self, request: Any, array: np.ndarray) -> Any:
    """Has an array filled; as many threads may wait as there are lanes.

    Args:
      request: what the filler gets.
      array: contiguous uint8; receives what the filler wrote.

    Returns:
      what the filler returned.

    Raises:
      InputError: if the process was killed.
      Exception: whatever the filler raised.
    """
    lane = self._lanes.get()
    try:
      lane.connection.send((request, array.shape))
      result, error = lane.connection.recv()
      if error is None:
        array[:] = _view(lane.memory, array.shape)
    except (EOFError, OSError) as ended:
      status = lane.process.wait()
      raise InputError(
        f"a process that decodes photographs ended with status {status}"
        + (
          "; if the machine was short of memory, use fewer workers"
          if status == -signal.SIGKILL
          else ""
        )
      ) from ended
    finally:
      self._lanes.put(lane)
    if error is not None:
      raise error
    return result

  def close(self) -> None:
    """Ends the processes at once. Threads that wait for them are told so."""
    for process in self._processes:
      process.kill()
    for process in self._processes:
      process.wait()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
  """Processes that this thread starts will never get these signals."""
  before = signal.pthread_sigmask(
    signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM]
  )
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _anonymous_file(content: bytes = b"", *, size: int = 0) -> Iterator[int]:
  """Opens a file without a name; in memory where the system can."""
  if hasattr(os, "memfd_create"):
    file = os.memfd_create("delf_jax")
  else:
    with tempfile.TemporaryFile() as temporary:
      file = os.dup(temporary.fileno())
  try:
    os.truncate(file, size or len(content))
    if content:
      with mmap.mmap(file, 0) as memory:
        memory[:] = content
    yield file
  finally:
    os.close(file)


def _view(memory: mmap.mmap, shape: Sequence[int]) -> np.ndarray:
  count = int(np.prod(shape))
  return np.frombuffer(memory, np.uint8, count).reshape(shape)


def serve(job: int, lanes: Sequence[tuple[int, int]]) -> None:
  """Does the work of a process, until its parent closes it or dies.

  Args:
    job: descriptor of a file with the pickled maker of the filler.
    lanes: descriptors of the socket and the memory of each lane.
  """
  failure = None
  filler = None
  try:
    with mmap.mmap(job, 0, access=mmap.ACCESS_READ) as content:
      filler = pickle.loads(content)()
  except Exception as error:
    failure = _with_traceback(error)
  try:
    for socket, memory in lanes:
      threading.Thread(
        target=_serve_lane,
        args=(Connection(socket), mmap.mmap(memory, 0), filler, failure),
      ).start()
  except BaseException:
    # Without one of its lanes, its parent would wait for ever.
    traceback.print_exc()
    os._exit(1)


def _serve_lane(
  connection: Connection,
  memory: mmap.mmap,
  filler: Filler | None,
  failure: Exception | None,
) -> None:
  """Answers requests; the end of one lane is the end of the process."""
  try:
    while True:
      request, shape = connection.recv()
      result, error = None, failure
      if error is None:
        try:
          result = filler.fill(request, _view(memory, shape))
        except Exception as raised:
          error = _with_traceback(raised)
      connection.send((result, error))
  except (EOFError, OSError):
    os._exit(0)
  except BaseException:
    traceback.print_exc()
    os._exit(1)


def _with_traceback(error: Exception) -> Exception:
  """Notes where an error arose; pickling it would forget."""
  if not isinstance(error, InputError):
    error.add_note(f"In a worker process:\n{traceback.format_exc()}")
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:
    return RuntimeError("".join(traceback.format_exception(error)))
  return error
