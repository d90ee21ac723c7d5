"""Photographs -> training batches: decoding, crops, order, resumption."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from PIL import Image

from delf_jax.data.photographs import decode_photograph
from delf_jax.errors import InputError


class PhotographFiles:
  """Labelled photographs of a folder as a random-access source."""

  def __init__(
    self, root: str, paths: Sequence[str], labels: Sequence[int]
  ) -> None:
    """Takes what `data.folder.labelled_photographs` found."""
    self._root = Path(root)
    self._paths = paths
    self._labels = labels

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, i: int) -> dict[str, Any]:
    path = self._root / self._paths[i]
    try:
      image = path.read_bytes()
    except OSError:
      image = b""  # decoding reports it, as it does every other damage
    return {
      "image": image,
      "label": int(self._labels[i]),
      "name": self._paths[i],
    }


def centre_square(pixels: np.ndarray, side: int) -> np.ndarray:
  """Cuts the largest central square and resizes it to [side, side, 3].

  The first step of both training stages (sections 3.2 and 3.3.2); shrinking
  is antialiased.
  """
  height, width = pixels.shape[:2]
  length = min(height, width)
  top, left = (height - length) // 2, (width - length) // 2
  square = Image.fromarray(pixels).crop(
    (left, top, left + length, top + length)
  )
  return np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))


def random_crop(
  pixels: np.ndarray, side: int, generator: np.random.Generator
) -> np.ndarray:
  """Cuts a [side, side, 3] window anywhere from a square [n, n, 3]."""
  top, left = generator.integers(0, len(pixels) - side + 1, size=2)
  return pixels[top : top + side, left : left + side]


def training_batches(
  source: Any,
  *,
  seed: int,
  batch_size: int,
  resize: int,
  crop: int,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
) -> grain.DatasetIterator:
  """Iterates for ever over shuffled, cropped batches.

  Every process reads its own share. The iterator's `get_state` and
  `set_state` continue it exactly. A photograph that cannot be decoded is
  reported and left out.

  Args:
    source: random access to {"image": encoded bytes, "label": int, ...}.
    seed: of order and crops.
    batch_size: of this process.
    resize: side of the central square.
    crop: side of the random window.
    process_index: of this process.
    process_count: how many processes read the source.
    threads: that decode.

  Returns:
    an iterator of {"pixels": [b, crop, crop, 3] uint8, "labels": [b] int32}.

  Raises:
    InputError: if a process has fewer photographs than one batch.
  """
  share = (len(source) - process_index + process_count - 1) // process_count
  if share < batch_size:
    raise InputError(
      f"{share} training photographs are too few for a batch of {batch_size}; "
      f"add photographs or make the batch smaller"
    )
  dataset = grain.MapDataset.source(source).seed(seed).shuffle()
  dataset = dataset[process_index::process_count].repeat()
  dataset = dataset.map(lambda example: _decode(example, resize))
  dataset = dataset.random_map(
    lambda example, generator: {
      "pixels": random_crop(example["pixels"], crop, generator),
      "labels": example["labels"],
    }
  )
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=4 * batch_size
  )
  return iter(dataset.to_iter_dataset(options).batch(batch_size))


def _decode(
  example: Mapping[str, Any], resize: int
) -> dict[str, np.ndarray] | None:
  """Decodes one example; None, which Grain leaves out, when it is broken."""
  name = str(example.get("name", "a training photograph"))
  try:
    photograph = decode_photograph(example["image"], name=name)
  except InputError as error:
    logging.warning("left out: %s", error)
    return None
  return {
    "pixels": centre_square(photograph.pixels, resize),
    "labels": np.int32(example["label"]),
  }
