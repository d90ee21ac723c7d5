import contextlib
import io
import json
import math
import os
import resource
import struct
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from delf_jax import journal, progress


def crc32c(data):
  """Bit by bit: the polynomial 0x1EDC6F41, all reflected (RFC 3720)."""
  value = 0xFFFFFFFF
  for byte in data:
    value ^= byte
    for _ in range(8):
      value = value >> 1 ^ 0x82F63B78 * (value & 1)
  return value ^ 0xFFFFFFFF


def masked(data):
  value = crc32c(data)
  return (value >> 15 | value << 17) + 0xA282EAD8 & 0xFFFFFFFF


def read_events(path):
  """The events of a file, whose framing must be right to the last byte."""
  content = path.read_bytes()
  events = []
  while content:
    length = content[:8]
    (size,) = struct.unpack("<Q", length)
    assert struct.unpack("<I", content[8:12]) == (masked(length),)
    body, check, content = (
      content[12 : 12 + size],
      content[12 + size : 16 + size],
      content[16 + size :],
    )
    assert len(body) == size
    assert struct.unpack("<I", check) == (masked(body),)
    events.append(Event.FromString(body))
  return events


def event_files(workdir, stage="descriptors"):
  return sorted((workdir / journal.TENSORBOARD / stage).iterdir())


def scalars(events):
  return [
    (event.step, value.tag, value.simple_value)
    for event in events
    for value in event.summary.value
  ]


@contextlib.contextmanager
def full_disk(size):
  """No file can grow over a size: writing fails in the middle of a record."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps_of(workdir, stage="descriptors"):
  return [r["step"] for r in journal.read(workdir) if r["stage"] == stage]


def test_the_checksum_of_this_test_is_right():
  assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value


def test_writes_lines_and_events_at_once(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
  threads = threading.enumerate()
  with journal.Journal(tmp_path / "run") as written:
    written.resume("descriptors", 0)
    written.write(
      "descriptors", 20, {"loss": np.float32(1.5), "accuracy": jnp.ones(())}
    )
    written.write(
      "descriptors", jnp.int32(40), {"R@90": 35, "mAP": None}, kind="validation"
    )
    written.picture("descriptors", 40, "maps/a b", pixels)

    # Read while it is open: nothing waits in a buffer.
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    (path,) = event_files(tmp_path / "run")
    events = read_events(path)
    assert threading.enumerate() == threads

  records = [
    {
      "stage": "descriptors",
      "step": 20,
      "kind": "train",
      "loss": 1.5,
      "accuracy": 1.0,
    },
    {
      "stage": "descriptors",
      "step": 40,
      "kind": "validation",
      "R@90": 35.0,
      "mAP": None,
    },
  ]
  assert [json.loads(line) for line in lines] == records
  assert journal.read(tmp_path / "run") == records
  assert path.name.startswith("events.out.tfevents.")
  assert events[0].file_version == "brain.Event:2"
  assert all(event.wall_time > 1.7e9 for event in events)
  assert scalars(events)[:3] == [
    (20, "descriptors/loss", 1.5),
    (20, "descriptors/accuracy", 1.0),
    (40, "descriptors/validation/R@90", 35.0),
  ]
  assert math.isnan(scalars(events)[3][2])
  (value,) = events[-1].summary.value
  assert (events[-1].step, value.tag) == (40, "descriptors/maps/a b")
  assert (value.image.height, value.image.width) == (5, 7)
  decoded = Image.open(io.BytesIO(value.image.encoded_image_string))
  assert (np.asarray(decoded) == pixels).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 0])
def test_any_number_gives_a_line_of_json(tmp_path, value):
  with journal.Journal(tmp_path) as written:
    written.write("descriptors", 1, {"loss": value})
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()

  def refuse(constant):
    raise AssertionError(constant)

  record = json.loads(line, parse_constant=refuse)
  assert record["loss"] == (value if math.isfinite(value) else None)
  ((_, _, shown),) = scalars(read_events(event_files(tmp_path)[0]))
  with np.errstate(over="ignore"):
    np.testing.assert_equal(shown, float(np.float32(value)))


def test_a_resumed_run_leaves_what_an_uninterrupted_one_leaves(tmp_path):
  def write(written, stage, steps):
    for step in steps:
      written.write(stage, step, {"loss": 1 / step})
      written.write(stage, step, {"accuracy": 0.5}, kind="validation")

  whole, killed = tmp_path / "whole", tmp_path / "killed"
  with journal.Journal(whole) as written:
    for stage in ("descriptors", "attention"):
      written.resume(stage, 0)
      write(written, stage, range(1, 8))
  with journal.Journal(killed) as written:
    written.resume("descriptors", 0)
    write(written, "descriptors", range(1, 8))
    written.resume("attention", 0)
    write(written, "attention", range(1, 6))
  with open(killed / "metrics.jsonl", "ab") as file:
    file.write(b'{"stage": "attention", "step": 6, "ki')

  with journal.Journal(killed) as written:
    # As `train` does: a stage that is done resumes at its last step.
    written.resume("descriptors", 7)
    written.resume("attention", 3)
    assert steps_of(killed, "attention") == [1, 1, 2, 2, 3, 3]
    write(written, "attention", range(4, 8))

  names = {path.name for path in killed.iterdir()}
  assert names == {"metrics.jsonl", "tensorboard"}
  assert (killed / "metrics.jsonl").read_bytes() == (
    whole / "metrics.jsonl"
  ).read_bytes()


def test_tensorboard_takes_back_what_is_not_resumed(tmp_path):
  for last in (0, 3, 3):  # all within one second, perhaps
    with journal.Journal(tmp_path) as written:
      written.resume("descriptors", last)
      for step in range(last + 1, last + 4):
        written.write("descriptors", step, {"loss": step})
  paths = event_files(tmp_path)
  assert len(paths) == 3
  first, second, third = map(read_events, paths)
  for events, step in ((first, 1), (second, 4), (third, 4)):
    assert events[0].file_version == "brain.Event:2"
    assert events[1].session_log.status == SessionLog.START
    assert events[1].step == step
  # Another stage's steps are not taken back with them.
  with journal.Journal(tmp_path) as written:
    written.resume("attention", 0)
  assert event_files(tmp_path, "attention") and event_files(tmp_path) == paths


def test_event_files_sort_in_the_order_of_writing(tmp_path):
  directory = tmp_path / journal.TENSORBOARD / "descriptors"
  directory.mkdir(parents=True)
  of_a_fast_clock = "events.out.tfevents.3000000000"
  (directory / of_a_fast_clock).touch()
  with journal.Journal(tmp_path) as written:
    written.resume("descriptors", 5)
  names = [path.name for path in event_files(tmp_path)]
  assert names == [of_a_fast_clock, "events.out.tfevents.3000000001"]


def test_a_torn_line_costs_only_itself(tmp_path):
  with journal.Journal(tmp_path) as written:
    written.write("descriptors", 1, {"loss": 1.0})
  path = tmp_path / "metrics.jsonl"
  whole = path.read_bytes()
  for torn in (b'{"stage": "desc', b'{"a": "\xff', b"\x00\x00", b"7", b"{}\n"):
    path.write_bytes(whole + torn)
    assert steps_of(tmp_path) == [1]
    with journal.Journal(tmp_path) as written:
      written.write("descriptors", 2, {"loss": 0.5})
    assert steps_of(tmp_path) == [1, 2]
  path.write_bytes(whole[:-1])  # torn just before the end of its line
  with journal.Journal(tmp_path) as written:
    written.write("descriptors", 2, {"loss": 0.5})
  assert steps_of(tmp_path) == [1, 2]


def test_no_journal_is_read_as_empty(tmp_path):
  assert journal.read(tmp_path / "nowhere") == []


def test_a_host_that_must_not_write_does_not(tmp_path):
  with journal.Journal(tmp_path / "run", enabled=False) as written:
    written.resume("descriptors", 0)
    written.write("descriptors", 1, {"loss": 1.0})
    written.picture("descriptors", 1, "map", np.zeros((2, 2, 3), np.uint8))
  assert not (tmp_path / "run").exists()


def test_a_full_disk_costs_records_and_one_warning(tmp_path, capsys):
  with journal.Journal(tmp_path) as written:
    written.resume("descriptors", 0)
    written.write("descriptors", 1, {"loss": 1.0})
    (path,) = event_files(tmp_path)
    assert (tmp_path / "metrics.jsonl").stat().st_size < 80
    with full_disk(100):  # in the middle of the second record of both files
      for step in range(2, 6):
        written.write("descriptors", step, {"loss": 1.0})
        written.picture("descriptors", step, "a", np.ones((9, 9, 3), np.uint8))
      written.resume("attention", 0)
    written.write("descriptors", 6, {"loss": 1.0})
    written.write("attention", 1, {"loss": 1.0})
  warning = capsys.readouterr().err
  assert warning.count("\n") == 1 and len(warning) < 300
  assert f"warning: {tmp_path}: figures cannot be written" in warning
  assert steps_of(tmp_path) == [1, 6]
  assert steps_of(tmp_path, "attention") == [1]
  assert [step for step, *_ in scalars(read_events(path))] == [1, 6]


def test_a_full_disk_does_not_damage_what_was_written(tmp_path, capsys):
  with journal.Journal(tmp_path) as written:
    for step in range(1, 9):
      written.write("descriptors", step, {"loss": 1.0})
  before = (tmp_path / "metrics.jsonl").read_bytes()
  with journal.Journal(tmp_path) as written:
    with full_disk(100):
      written.resume("descriptors", 4)
      written.write("descriptors", 5, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert steps_of(tmp_path) == list(range(1, 9))
    # With room again, what had to be forgotten is.
    written.write("descriptors", 6, {"loss": 2.0})
  assert steps_of(tmp_path) == [1, 2, 3, 4, 6]
  assert capsys.readouterr().err.count("\n") == 1
  assert {p.name for p in tmp_path.iterdir()} == {
    "metrics.jsonl",
    "tensorboard",
  }


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path, capsys):
  (tmp_path / "file").touch()
  with journal.Journal(tmp_path / "file" / "run") as written:
    written.resume("descriptors", 0)
    written.write("descriptors", 1, {"loss": 1.0})
  assert "Not a directory" in capsys.readouterr().err


def test_nothing_is_left_to_complain_at_the_end(tmp_path):
  program = """
import sys
import numpy as np
from delf_jax import journal
assert not any(name.startswith("tensorboardX") for name in sys.modules)
written = journal.Journal(sys.argv[1])
with written:
  written.resume("descriptors", 0)
  written.write("descriptors", 1, {"loss": float("nan")})
  written.picture("descriptors", 1, "a", np.zeros((4, 4, 3), np.uint8))
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, "-X", "dev", "-W", "error", "-c", program, tmp_path],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Clock:
  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds


def test_the_meter_leaves_out_compilation_and_pauses():
  clock = Clock()
  meter = journal.Meter(8, clock=clock)
  assert meter.read() == {}
  clock.seconds += 60  # compiles
  meter.step(30.0)
  assert meter.read() == {}
  for _ in range(4):
    clock.seconds += 0.5
    meter.step(0.125)
  with meter.paused():
    clock.seconds += 1000
  assert meter.read() == {"images_per_second": 16.0, "data_wait_share": 0.25}
  assert meter.read() == {}
  clock.seconds += 2
  meter.step(0.0)
  assert meter.read() == {"images_per_second": 4.0, "data_wait_share": 0.0}


def test_the_meter_may_be_read_in_a_pause():
  clock = Clock()
  meter = journal.Meter(1, clock=clock)
  with meter.paused():
    clock.seconds += 5  # a validation before the first step
  meter.step(0.0)
  clock.seconds += 1
  meter.step(1.0)
  with pytest.raises(ZeroDivisionError), meter.paused():
    clock.seconds += 10
    assert meter.read() == {"images_per_second": 1.0, "data_wait_share": 1.0}
    clock.seconds += 10
    meter.step(0.0)
    raise ZeroDivisionError
  clock.seconds += 2
  meter.step(0.0)
  assert meter.read() == {"images_per_second": 1.0, "data_wait_share": 0.0}


def test_the_progress_line_is_compact():
  line = progress.describe(
    {
      "accuracy": 0.5666,
      "gradient_norm": 3.0,
      "loss": 1.2341,
      "images_per_second": 123.4,
      "data_wait_share": 0.0211,
    }
  )
  assert line == "loss 1.234  accuracy 56.7 %  images/s 123  waiting 2 %"
  line = progress.describe({"loss": math.nan, "R@90": None, "mAP": 0.6264})
  assert line == "loss nan  mAP 62.6 %  R@90 –"
  assert progress.describe({}) == ""


@pytest.mark.parametrize(
  "name, value, shown",
  [
    ("loss", 123456.0, "123,456"),
    ("reconstruction_loss", 0.01, "0.010"),
    ("learning_rate", 0.002, "0.002"),
    ("images_per_second", 4.567, "4.57"),
    ("images_per_second", 1234.5, "1,234"),
    ("attention_auc", 0.93456, "0.935"),
    ("mP@10", 1.0, "100.0 %"),
    ("attention_accuracy", math.inf, "inf %"),
  ],
)
def test_figures_are_shown_as_people_read_them(name, value, shown):
  assert progress.show_figure(name, value) == shown
