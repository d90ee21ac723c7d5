"""What a training run says of itself while it runs: figures and pictures.

`metrics.jsonl` holds one record a line,

  {"stage": "attention", "step": 40, "kind": "train", "loss": 0.51, ...}

where kind is "train" or "validation", and `tensorboard/STAGE/` the same for
`tensorboard --logdir RUN/tensorboard`. Figures go by the names that the
progress line and `delf_jax.training_report` know: "loss", "learning_rate",
"images_per_second", and as fractions "accuracy", "data_wait_share" and the
figures of retrieval, such as "mAP" and "R@90". Others are written and shown all
the same.

A run never fails for its journal: what cannot be written is lost, with one
warning. This module alone knows tensorboardX, and of it what needs no thread:
its own writer hangs the training when the disk is full.
"""

import contextlib
import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax import progress

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"

Record = dict[str, Any]


class Journal:
  """Writes the records of one run as they come.

  They are in the files when a method returns; nothing waits in a thread.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, enabled: bool = True):
    """Opens nothing yet.

    Args:
      workdir: directory of the run, made if need be.
      enabled: False on hosts that must not write; there, nothing is done.
    """
    self._workdir = Path(workdir)
    self._enabled = enabled
    self._warned = False
    self._metrics: _Appender | None = None
    self._events: dict[str, _Appender] = {}
    # Stage -> the last step that counts: of stages whose later records are
    # still in metrics.jsonl, and of all that were resumed.
    self._outdated: dict[str, int] = {}
    self._resumed: dict[str, int] = {}

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *_: object) -> None:
    self._close(*self._events)

  def resume(self, stage: str, step: int) -> None:
    """Forgets what an interrupted run wrote of a stage after a step.

    Call it before the first `write` of each stage; step 0 forgets all of it.
    Other stages' records stay, and a line that a killed run left torn goes.

    Args:
      stage: that begins or goes on.
      step: the last step that counts.
    """
    if not self._enabled:
      return
    self._close(stage)
    self._outdated[stage] = self._resumed[stage] = int(step)
    with self._forgiving():
      self._open_metrics()
    with self._forgiving():
      self._open_events(stage)

  def write(
    self,
    stage: str,
    step: int,
    figures: Mapping[str, Any],
    *,
    kind: str = "train",
  ) -> None:
    """Writes one record.

    Args:
      stage: that the step belongs to.
      step: steps done in the stage.
      figures: name -> number, or array of one; None where it is unknown. What
        is not finite becomes null, which JSON knows.
      kind: "train" or "validation".
    """
    if not self._enabled:
      return
    values = {
      name: math.nan if value is None else float(value)
      for name, value in figures.items()
    }
    line = json.dumps(
      {
        "stage": stage,
        "step": int(step),
        "kind": kind,
        **{n: v if math.isfinite(v) else None for n, v in values.items()},
      },
      allow_nan=False,
    )
    with self._forgiving():
      self._open_metrics().append(f"{line}\n".encode())
    prefix = stage if kind == "train" else f"{stage}/{kind}"
    with self._forgiving():
      self._open_events(stage).append(_scalars(prefix, int(step), values))

  def picture(
    self, stage: str, step: int, name: str, pixels: np.ndarray
  ) -> None:
    """Writes a picture ([h, w, 3] uint8), which only TensorBoard shows."""
    if not self._enabled:
      return
    with self._forgiving():
      self._open_events(stage).append(
        _picture(f"{stage}/{name}", int(step), pixels)
      )

  def _open_metrics(self) -> "_Appender":
    if self._metrics is None:
      self._workdir.mkdir(parents=True, exist_ok=True)
      _keep(self._workdir / METRICS, self._outdated)
      self._outdated.clear()
      self._metrics = _Appender(self._workdir / METRICS)
    return self._metrics

  def _open_events(self, stage: str) -> "_Appender":
    if stage not in self._events:
      # A directory for each stage: what a resumed run takes back, TensorBoard
      # takes back of everything in a directory.
      directory = self._workdir / TENSORBOARD / stage
      directory.mkdir(parents=True, exist_ok=True)
      self._events[stage] = _Appender(
        directory / _event_file_name(directory),
        opening=_opening(self._resumed.get(stage)),
      )
    return self._events[stage]

  def _close(self, *stages: str) -> None:
    """Closes metrics.jsonl and the event files of some stages."""
    files = [self._events.pop(stage, None) for stage in stages]
    for file in (self._metrics, *files):
      if file is not None:
        file.close()
    self._metrics = None

  @contextlib.contextmanager
  def _forgiving(self) -> Iterator[None]:
    """Goes on where writing fails, and says so the first time."""
    try:
      yield
    except OSError as error:
      if not self._warned:
        progress.say(
          f"warning: {self._workdir}: figures cannot be written "
          f"({error.strerror or error}); the training goes on without them"
        )
      self._warned = True


def read(workdir: str | os.PathLike[str]) -> list[Record]:
  """Reads the records of a run, in the order in which they were written.

  A torn last line, as a killed run leaves it, is passed over; so is whatever
  else is no record.

  Returns:
    [{"stage", "step", "kind", figures...}], empty if there is no journal.
  """
  try:
    content = (Path(workdir) / METRICS).read_bytes()
  except FileNotFoundError:
    return []
  parsed = (_parse(line) for line in content.splitlines())
  return [record for record in parsed if record is not None]


class Meter:
  """Measures the speed of a training loop between two readings.

  The first step, which compiles, does not count. Since steps may still be under
  way when the loop goes on, `read` where a result has just been waited for.
  """

  def __init__(
    self, batch_size: int, *, clock: Callable[[], float] = time.perf_counter
  ):
    """Measures nothing before the first `step`.

    Args:
      batch_size: images that a step learns from, on all hosts.
      clock: tells seconds.
    """
    self._batch_size = batch_size
    self._clock = clock
    self._since: float | None = None  # on the time of `_now`
    self._steps = 0
    self._waited = 0.0
    self._away = 0.0
    self._left: float | None = None

  def step(self, waited_seconds: float) -> None:
    """Counts a step, which waited so long for its batch."""
    if self._since is None:
      self._since = self._now()
    else:
      self._steps += 1
      self._waited += waited_seconds

  def read(self) -> dict[str, float]:
    """Returns the figures since the last reading, and begins anew.

    Returns:
      {"images_per_second", "data_wait_share"}, the latter a fraction; empty
      where there was no step to measure.
    """
    now = self._now()
    if not self._steps or now <= self._since:
      return {}
    seconds = now - self._since
    figures = {
      "images_per_second": self._steps * self._batch_size / seconds,
      "data_wait_share": self._waited / seconds,
    }
    self._since, self._steps, self._waited = now, 0, 0.0
    return figures

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out the time of what is no training: validation, saving."""
    self._left = self._clock()
    try:
      yield
    finally:
      self._away += self._clock() - self._left
      self._left = None

  def _now(self) -> float:
    """The time, which stands still while paused."""
    clock = self._clock() if self._left is None else self._left
    return clock - self._away


class _Appender:
  """A file that grows by whole records or not at all."""

  def __init__(self, path: Path, *, opening: bytes = b""):
    # Without a buffer nothing is left to fail when it is closed.
    self._file = open(path, "ab", buffering=0)
    try:
      self.append(opening)
    except BaseException:
      self.close()
      raise

  def append(self, record: bytes) -> None:
    """Appends a record.

    Raises:
      OSError: if it cannot be written; the file is as it was before.
    """
    end = self._file.seek(0, os.SEEK_END)
    try:
      written = 0
      while written < len(record):
        written += self._file.write(record[written:])
    except BaseException:
      with contextlib.suppress(OSError):
        self._file.truncate(end)
      raise

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._file.close()


def _parse(line: bytes) -> Record | None:
  """Returns the record in a line, or None if it is none."""
  try:
    record = json.loads(line)
  except ValueError:
    return None
  known = isinstance(record, dict) and {"stage", "step", "kind"} <= set(record)
  return record if known else None


def _keep(path: Path, last_steps: Mapping[str, int]) -> None:
  """Drops the records after a stage's last step, and what is no record.

  Raises:
    OSError: if the file cannot be rewritten; it is as it was before.
  """
  try:
    content = path.read_bytes()
  except FileNotFoundError:
    return
  kept = []
  for line in content.splitlines():
    record = _parse(line)
    if record and record["step"] <= last_steps.get(record["stage"], math.inf):
      kept.append(line + b"\n")
  rewritten = b"".join(kept)
  if rewritten == content:
    return
  aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    aside.write_bytes(rewritten)
    aside.replace(path)
  finally:
    aside.unlink(missing_ok=True)


def _event_file_name(directory: Path) -> str:
  """Names an event file so that it sorts after those that are there.

  TensorBoard reads them in the order of their names, which begin with the time;
  a run may go on within the second, or on a host whose clock is behind.
  """
  taken = [
    int(path.name.rpartition(".")[2])
    for path in directory.glob("events.out.tfevents.*[0-9]")
  ]
  number = max([int(time.time()), *(number + 1 for number in taken)])
  return f"events.out.tfevents.{number}"


def _opening(step: int | None) -> bytes:
  """What an event file begins with; later steps before it are taken back."""
  from tensorboardX.proto.event_pb2 import SessionLog

  opening = _event(0, file_version="brain.Event:2")
  if step is None:
    return opening
  start = SessionLog(status=SessionLog.START)
  return opening + _event(step + 1, session_log=start)


def _scalars(prefix: str, step: int, values: Mapping[str, float]) -> bytes:
  from tensorboardX.proto.summary_pb2 import Summary

  return _event(
    step,
    summary=Summary(
      value=[
        Summary.Value(tag=f"{prefix}/{name}", simple_value=value)
        for name, value in values.items()
      ]
    ),
  )


def _picture(tag: str, step: int, pixels: np.ndarray) -> bytes:
  from tensorboardX import summary

  made = summary.image(tag, pixels, dataformats="HWC")
  made.value[0].tag = tag
  return _event(step, summary=made)


def _event(step: int, **content: Any) -> bytes:
  """Returns an event as a record of the file.

  A record is its length, the masked checksum of that, the event, and the masked
  checksum of that (TensorFlow, `core/lib/io/record_writer.cc`).
  """
  from tensorboardX.proto.event_pb2 import Event
  from tensorboardX.record_writer import masked_crc32c

  event = Event(wall_time=time.time(), step=step, **content).SerializeToString()
  length = struct.pack("<Q", len(event))
  return b"".join(
    [
      length,
      struct.pack("<I", masked_crc32c(length)),
      event,
      struct.pack("<I", masked_crc32c(event)),
    ]
  )
