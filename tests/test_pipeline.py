"""Batches: what they hold, and what they do not depend on."""

import gc
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from delf_jax.data import pipeline
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.sources import FileSource
from delf_jax.errors import InputError

STRONG = Augmentation(
  crop_area=(0.3, 1.0),
  homography=0.1,
  flip=0.5,
  brightness=0.3,
  saturation=0.3,
  blur=0.5,
  jpeg=0.3,
  erasing=0.5,
)


def encoded(seed, size=(40, 30)):
  small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
  stream = io.BytesIO()
  Image.fromarray(small).resize(size, Image.BICUBIC).save(stream, "PNG")
  return stream.getvalue()


@pytest.fixture
def make_source(tmp_path):
  """Makes files: photographs with label i % 5, named i.png, or broken ones."""

  def make(count=24, broken=()):
    for i in range(count):
      data = encoded(i)
      (tmp_path / f"{i}.png").write_bytes(data[:60] if i in broken else data)
    names = [f"{i}.png" for i in range(count)]
    return FileSource(str(tmp_path), names, np.arange(count) % 5)

  return make


def training(source, **options):
  defaults = {"seed": 0, "batch_size": 4, "resize": 24, "crop": 16}
  return pipeline.training_batches(source, **{**defaults, **options})


def take(batches, count):
  """The first batches, which are then closed."""
  with batches:
    return [next(batches) for _ in range(count)]


def assert_same(found, expected):
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a["names"] == b["names"]
    np.testing.assert_array_equal(a["labels"], b["labels"])
    np.testing.assert_array_equal(a["pixels"], b["pixels"])


def test_batches_hold_what_they_say(make_source):
  (batch,) = take(training(make_source()), 1)
  assert set(batch) == {"pixels", "labels", "names"}
  assert batch["pixels"].shape == (4, 16, 16, 3)
  assert batch["pixels"].dtype == np.uint8 and batch["pixels"].flags.writeable
  assert batch["labels"].dtype == np.int32
  numbers = [int(name.removesuffix(".png")) for name in batch["names"]]
  assert [n % 5 for n in numbers] == batch["labels"].tolist()
  for number, pixels in zip(numbers, batch["pixels"], strict=True):
    whole = np.asarray(Image.open(io.BytesIO(encoded(number))))
    assert np.abs(whole.mean((0, 1)) - pixels.mean((0, 1))).max() < 45


def test_an_epoch_sees_every_photograph_once(make_source):
  names = sum((b["names"] for b in take(training(make_source()), 12)), [])
  assert sorted(names[:24]) == sorted(names[24:]) == sorted(set(names))
  assert names[:24] != names[24:]


def test_classes_are_balanced_when_asked_for(make_source):
  source = make_source(21)
  batches = take(training(source, batch_size=5, sampling="class"), 8)
  for batch in batches:
    assert sorted(batch["labels"]) == [0, 1, 2, 3, 4]


def test_nothing_depends_on_who_does_the_work(make_source):
  source = make_source(20, broken=(3, 7))
  options = {
    "batch_size": 6,
    "scales": (0.5, 1.0),
    "sampling": "class",
    "augmentation": STRONG,
  }
  expected = take(training(source, **options, threads=1), 8)
  assert len({b["pixels"].shape for b in expected}) == 2
  assert_same(take(training(source, **options, threads=5), 8), expected)
  for workers, threads in ((1, 2), (3, 1)):
    found = training(source, **options, workers=workers, threads=threads)
    assert_same(take(found, 8), expected)
  # From the third batch on, as after an interruption.
  assert_same(take(training(source, **options, start=3), 5), expected[3:])
  later = training(source, **options, start=5, workers=2)
  assert_same(take(later, 3), expected[5:])
  # Three processes have two rows each.
  shares = [
    take(training(source, **options, process_index=p, process_count=3), 8)
    for p in range(3)
  ]
  for i, batch in enumerate(expected):
    for key in ("pixels", "labels", "names"):
      parts = [np.asarray(share[i][key]) for share in shares]
      np.testing.assert_array_equal(np.concatenate(parts), batch[key])


def test_another_seed_gives_other_batches(make_source):
  source = make_source()
  (first,), (second,) = (take(training(source, seed=s), 1) for s in (0, 1))
  assert first["names"] != second["names"]


def test_a_small_request_is_a_part_of_a_batch(make_source, monkeypatch):
  # 16 x 16 photographs fit a request by the hundred; here it is one or three.
  source = make_source()
  expected = take(training(source, batch_size=8), 4)
  for size in (1, 3 * 16 * 16 * 3):
    monkeypatch.setattr(pipeline, "_REQUEST", size)
    assert_same(take(training(source, batch_size=8, workers=2), 4), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_photographs_are_replaced_and_reported(make_source, workers):
  source = make_source(9, broken=(4,))
  with training(source, workers=workers) as batches:
    assert batches.skipped == {}
    names = sum((next(batches)["names"] for _ in range(9)), [])
    assert "4.png" not in names and len(set(names)) == 8
    assert set(batches.skipped) == {"4.png"}
    assert "truncated" in batches.skipped["4.png"]


def test_a_file_that_vanishes_is_left_out(make_source, tmp_path):
  source = make_source(5)
  (tmp_path / "2.png").unlink()
  with training(source) as batches:
    names = sum((next(batches)["names"] for _ in range(4)), [])
  assert set(names) == {"0.png", "1.png", "3.png", "4.png"}
  assert set(batches.skipped) == {"2.png"}


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_stops_with_one_line(make_source, workers):
  batches = training(make_source(3, broken=range(3)), workers=workers)
  with pytest.raises(InputError, match="no readable training photograph"):
    next(batches)


def test_waiting_is_measured(make_source):
  with training(make_source()) as batches:
    assert batches.waited == 0
    spent = 0
    for _ in range(3):
      before = batches.waited
      begun = time.perf_counter()
      next(batches)
      spent += time.perf_counter() - begun
      assert before < batches.waited <= spent
      time.sleep(0.05)  # is not waiting


def test_closing_ends_the_workers_and_so_does_forgetting(make_source):
  source = make_source()
  for end in ("close", "close", "forget"):
    batches = training(source, workers=1)
    next(batches)
    (process,) = batches._loader._pool._processes
    begun = time.monotonic()
    if end == "close":
      batches.close()
      batches.close()
      with pytest.raises(ValueError, match="closed"):
        next(batches)
    else:
      del batches
      gc.collect()
    assert process.poll() == -signal.SIGKILL
    assert time.monotonic() - begun < 5


PROGRAM = """
import sys
import numpy as np
from delf_jax.data import pipeline
from delf_jax.data.sources import FileSource

source = FileSource(sys.argv[1], ["0.png", "1.png"], [0, 1])
batches = pipeline.training_batches(
  source, seed=0, batch_size=2, resize=24, crop=16, workers=1
)
print(batches._loader._pool._processes[0].pid, next(batches)["names"])
"""


def test_a_program_that_never_closes_ends(make_source, tmp_path):
  make_source(2)
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.stderr == "" and done.returncode == 0
  with pytest.raises(ProcessLookupError):
    os.kill(int(done.stdout.split()[0]), 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 5, "process_count": 2}, "5 does not divide among 2"),
    ({"batch_size": 0}, "a batch of 0"),
    ({"crop": 25}, "window of 25 does not fit a square of 24"),
    ({"crop": 0}, "window of 0"),
    ({"scales": ()}, r"scales \(\) must"),
    ({"scales": (1.5,)}, r"scales \(1.5,\) must"),
    ({"scales": (1, 0)}, "scales"),
    ({"scales": (0.01,)}, "leave a pixel"),
    ({"sampling": "random"}, "'random'; expected photograph or class"),
    ({"seed": -1}, "seed -1"),
    ({"start": -1}, "start -1"),
    ({"workers": -1}, "-1 workers"),
    ({"threads": 0}, "0 threads"),
  ],
)
def test_unfit_options_are_refused(make_source, options, message):
  with pytest.raises(InputError, match=message):
    training(make_source(2), **options)


def test_no_photographs(make_source):
  for make in (training, evaluation):
    with pytest.raises(InputError, match="no photographs"):
      make(make_source(0))


def evaluation(source, **options):
  defaults = {"batch_size": 4, "resize": 24, "crop": 16}
  return pipeline.evaluation_batches(source, **{**defaults, **options})


def test_evaluation_sees_every_photograph_once_in_order(make_source):
  source = make_source(10, broken=(6,))
  batches = evaluation(source)
  found = list(batches)
  assert len(found) == 3
  names = sum((batch["names"] for batch in found), [])
  assert names == [*(f"{i}.png" for i in range(10)), "", ""]
  weights = np.concatenate([batch["weights"] for batch in found])
  assert weights.dtype == np.float32
  assert weights.tolist() == [1] * 6 + [0] + [1] * 3 + [0, 0]
  labels = np.concatenate([batch["labels"] for batch in found])
  assert labels[weights > 0].tolist() == [i % 5 for i in range(10) if i != 6]
  assert set(batches.skipped) == {"6.png"}
  with pytest.raises(StopIteration):
    next(batches)


def test_evaluation_cuts_the_centre(make_source):
  source = make_source(1)
  (batch,) = evaluation(source, batch_size=1)
  image = Image.open(io.BytesIO(encoded(0))).crop((5, 0, 35, 30))
  resized = np.asarray(image.resize((24, 24), Image.BILINEAR)).astype(int)
  assert np.abs(batch["pixels"][0] - resized[4:20, 4:20]).max() <= 2


def test_processes_share_evaluation_and_take_equally_many_batches(make_source):
  source = make_source(9)
  (whole, *rest), *shares = (
    list(evaluation(source, **options))
    for options in (
      {},
      {"process_index": 0, "process_count": 2},
      {"process_index": 1, "process_count": 2},
    )
  )
  assert len(rest) == 2 and [len(share) for share in shares] == [3, 3]
  np.testing.assert_array_equal(
    np.concatenate([share[0]["pixels"] for share in shares]), whole["pixels"]
  )
  weights = [[b["weights"].tolist() for b in share] for share in shares]
  assert weights == [[[1, 1], [1, 1], [1, 0]], [[1, 1], [1, 1], [0, 0]]]


def test_evaluation_can_be_limited(make_source):
  found = list(evaluation(make_source(10), limit=5))
  assert sum((batch["names"] for batch in found), []) == [
    *(f"{i}.png" for i in range(5)),
    *[""] * 3,
  ]
  assert len(list(evaluation(make_source(10), limit=50))) == 3
  with pytest.raises(InputError, match="limit 0"):
    evaluation(make_source(2), limit=0)
