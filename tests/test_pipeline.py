"""Training batches: order, resumption, shares, broken photographs."""

import io

import numpy as np
import pytest
from PIL import Image

from delf_jax.data import pipeline
from delf_jax.errors import InputError


def encoded(value, size=(40, 30)):
  stream = io.BytesIO()
  Image.new("RGB", size, (value, value, value)).save(stream, "PNG")
  return stream.getvalue()


def source(n=24):
  return [
    {"image": encoded(10 * i), "label": i, "name": f"{i}"} for i in range(n)
  ]


def batches(photographs, **options):
  defaults = {"seed": 0, "batch_size": 4, "resize": 24, "crop": 16}
  return pipeline.training_batches(photographs, **{**defaults, **options})


def test_batches_hold_what_they_say():
  batch = next(batches(source()))
  assert batch["pixels"].shape == (4, 16, 16, 3)
  assert batch["pixels"].dtype == np.uint8
  np.testing.assert_array_equal(
    batch["pixels"][:, 0, 0, 0], 10 * batch["labels"]
  )


def test_an_epoch_sees_every_photograph_once():
  iterator = batches(source())
  labels = np.concatenate([next(iterator)["labels"] for _ in range(6)])
  assert sorted(labels) == list(range(24))


def test_same_seed_same_bits_and_the_state_continues_exactly():
  photographs = [
    {"image": noise(i), "label": i, "name": f"{i}"} for i in range(8)
  ]
  first = batches(photographs)
  kept = [next(first) for _ in range(3)]
  state = first.get_state()
  kept += [next(first) for _ in range(3)]
  second = batches(photographs, threads=4)
  second.set_state(state)
  for expected in kept[3:]:
    again = next(second)
    np.testing.assert_array_equal(again["pixels"], expected["pixels"])
  other = next(batches(photographs, seed=1))
  assert not np.array_equal(other["pixels"], kept[0]["pixels"])


def noise(seed):
  stream = io.BytesIO()
  pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3))
  Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
  return stream.getvalue()


def test_processes_share_the_photographs():
  seen = []
  for process in range(2):
    iterator = batches(source(), process_index=process, process_count=2)
    seen.append(np.concatenate([next(iterator)["labels"] for _ in range(3)]))
  assert sorted(np.concatenate(seen)) == list(range(24))


def test_a_broken_photograph_is_left_out():
  photographs = source(9)
  photographs[4]["image"] = photographs[4]["image"][:50]
  iterator = batches(photographs)
  labels = np.concatenate([next(iterator)["labels"] for _ in range(4)])
  assert set(labels) == set(range(9)) - {4}


def test_a_file_that_vanishes_is_left_out(tmp_path):
  for i in range(5):
    (tmp_path / f"{i}.png").write_bytes(encoded(i))
  names = [f"{i}.png" for i in range(5)]
  files = pipeline.PhotographFiles(str(tmp_path), names, range(5))
  (tmp_path / "2.png").unlink()
  labels = next(batches(files))["labels"]
  assert set(labels) == {0, 1, 3, 4}


def test_too_few_photographs_for_a_batch():
  with pytest.raises(InputError, match="3 training photographs are too few"):
    batches(source(3))


def test_the_central_square_is_what_is_trained_on():
  pixels = np.zeros((30, 90, 3), np.uint8)
  pixels[:, 30:60] = 200
  assert (pipeline.centre_square(pixels, 20) == 200).all()
