"""Tuples of photographs: their pixels, gaps, chance, batches."""

import io

import numpy as np
import pytest
from PIL import Image

from delf_jax.data import pipeline
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.photograph_tuples import Tuples
from delf_jax.errors import InputError


class Photographs:
  """Six photographs in memory, the fourth of them broken."""

  labels = np.array([0, 0, 1, 1, 2, 2], np.int32)

  def __len__(self):
    return 6

  def __getitem__(self, i):
    image = b"nothing"
    if i != 3:
      generator = np.random.default_rng(i)
      small = generator.integers(0, 256, (3, 4, 3)).astype(np.uint8)
      pixels = small.repeat(20, 0).repeat(20, 1)  # [60, 80, 3]
      file = io.BytesIO()
      Image.fromarray(pixels).save(file, "PNG")
      image = file.getvalue()
    return {"image": image, "label": self.labels[i], "name": f"{i}.png"}


ROWS = np.array([[0, 1, 2], [2, 3, 4], [5, 4, 0], [1, 0, 5]])


def batches_of(tuples, size=2, **options):
  with pipeline.tuple_batches(tuples, batch_size=size, **options) as batches:
    return list(batches)


def test_whole_photographs_are_padded():
  batch, _ = batches_of(Tuples(Photographs(), ROWS, side=40))
  assert batch["pixels"].shape == (2, 3, 40, 40, 3)
  assert batch["sizes"][0].tolist() == [[30, 40]] * 3
  np.testing.assert_array_equal(batch["labels"], [[0, 0, 1], [1, 1, 2]])
  with Image.open(io.BytesIO(Photographs()[0]["image"])) as image:
    small = np.asarray(image.resize((40, 30), Image.Resampling.BILINEAR))
  found = batch["pixels"][0, 0].astype(int)
  assert np.abs(found[:30] - small).max() <= 1
  assert not found[30:].any()


def test_the_broken_leave_a_gap():
  with pipeline.tuple_batches(
    Tuples(Photographs(), ROWS, side=40), batch_size=4
  ) as batches:
    batch = next(batches)
    assert list(batches.skipped) == ["3.png"]
  assert batch["mask"].sum() == 11 and not batch["mask"][1, 1]
  assert not batch["pixels"][1, 1].any()


def test_what_is_not_there_is_not_read():
  mask = np.ones((4, 3), bool)
  mask[1, 1] = False
  tuples = Tuples(Photographs(), ROWS, side=40, mask=mask)
  with pipeline.tuple_batches(tuples, batch_size=4) as batches:
    assert not next(batches)["mask"][1, 1]
    assert not batches.skipped


def test_windows():
  batch, _ = batches_of(Tuples(Photographs(), ROWS, side=40, resize=60))
  with Image.open(io.BytesIO(Photographs()[0]["image"])) as image:
    centre = np.asarray(image)[10:50, 20:60]
  np.testing.assert_array_equal(batch["pixels"][0, 0], centre)
  assert (batch["sizes"] == 40).all()


def test_chance_belongs_to_the_place_in_the_list():
  options = {
    "side": 32,
    "resize": 40,
    "augmentation": Augmentation(brightness=0.5),
    "seed": 3,
  }
  everything = batches_of(Tuples(Photographs(), ROWS, **options), size=4)[0]
  later = batches_of(Tuples(Photographs(), ROWS[2:], first=2, **options))[0]
  np.testing.assert_array_equal(everything["pixels"][2:], later["pixels"])
  resumed = batches_of(
    Tuples(Photographs(), ROWS, **options), start=1, threads=1
  )
  np.testing.assert_array_equal(resumed[0]["pixels"], later["pixels"])
  halves = [
    batches_of(
      Tuples(Photographs(), ROWS, **options),
      size=4,
      process_index=k,
      process_count=2,
    )[0]["pixels"]
    for k in range(2)
  ]
  np.testing.assert_array_equal(np.concatenate(halves), everything["pixels"])
  # The same photograph elsewhere is cut otherwise.
  assert (everything["pixels"][0, 0] != everything["pixels"][3, 1]).any()


def test_lists_fill_whole_batches():
  with pytest.raises(InputError, match="3 does not divide 4 tuples"):
    pipeline.tuple_batches(Tuples(Photographs(), ROWS, side=8), batch_size=3)
