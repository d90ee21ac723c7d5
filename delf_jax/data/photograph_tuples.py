"""Rows of ranking training: photographs that are compared with each other."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from delf_jax.data import examples
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.examples import UnreadableError, random_generator
from delf_jax.data.sources import Source

# The first number after the seed keeps these streams of chance apart from those
# of `examples` and `view_pairs`.
_TUPLES = 200


class TupleExample(NamedTuple):
  """What belongs to one row of a batch beside its pixels.

  Attributes:
    labels: [r] int, classes of its photographs.
    mask: [r] bool, which of them there are and could be read.
    sizes: [r, 2] int, heights and widths.
    name: of the first photograph.
    skipped: (name, reason) of those that could not be read.
  """

  labels: np.ndarray
  mask: np.ndarray
  sizes: np.ndarray
  name: str
  skipped: tuple[tuple[str, str], ...]


def collate_tuples(rows: Sequence[TupleExample]) -> dict[str, np.ndarray]:
  """Returns "labels" [b, r], "mask" [b, r] and "sizes" [b, r, 2] of rows."""
  return {
    "labels": np.array([row.labels for row in rows], np.int32),
    "mask": np.array([row.mask for row in rows], bool),
    "sizes": np.array([row.sizes for row in rows], np.int32),
  }


class Tuples:
  """A list of tuples of photographs, cut and augmented.

  What happens to a photograph is a pure function of the seed and of its place
  in the list. One that cannot be read is black, and not in the mask.
  """

  def __init__(
    self,
    source: Source,
    rows: np.ndarray,
    *,
    side: int,
    mask: np.ndarray | None = None,
    resize: int = 0,
    augmentation: Augmentation | None = None,
    seed: int | None = None,
    first: int = 0,
  ) -> None:
    """Takes the list.

    Args:
      source: of the photographs.
      rows: [n, r] numbers of photographs.
      side: of the array that each is put into.
      mask: [n, r] bool, which of them there are; None for all.
      resize: side to which the largest central square is resized before a
        window of `side` is cut out of it; 0 takes the whole photograph, its
        longest side `side`, in the upper left of the array.
      augmentation: what else happens; of a whole photograph nothing that would
        cut it.
      seed: of windows and augmentation; None takes the window in the centre
        and augments nothing.
      first: number that chance gives the first tuple.
    """
    self._source = source
    self._rows = np.asarray(rows, np.int64)
    self._mask = np.ones(rows.shape, bool) if mask is None else mask
    self._side = side
    self._resize = resize
    self._augmentation = augmentation or Augmentation()
    self._seed = seed
    self._first = first

  def __len__(self) -> int:
    return len(self._rows)

  def shape(self, batch: int) -> tuple[int, ...]:
    """Returns the shape of one row's pixels."""
    return (self._rows.shape[1], self._side, self._side, 3)

  def fill(self, position: int, pixels: np.ndarray) -> list[TupleExample]:
    """Makes the tuples from a position on.

    Args:
      position: in the list, of the first.
      pixels: [n, r, side, side, 3] uint8, receives the photographs.

    Returns:
      the n tuples.
    """
    return [self._fill(position + i, row) for i, row in enumerate(pixels)]

  def _fill(self, position: int, pixels: np.ndarray) -> TupleExample:
    pixels[:] = 0
    numbers = self._rows[position]
    mask = self._mask[position].copy()
    sizes = np.full((len(numbers), 2), self._side)
    names, skipped = [], []
    for k, number in enumerate(numbers.tolist()):
      if not mask[k]:
        continue
      try:
        example = examples.read(self._source, number)
        found = self._look(example, position, k)
      except UnreadableError as error:
        skipped.append((error.name, error.reason))
        mask[k] = False
        continue
      sizes[k] = found.shape[:2]
      pixels[k, : len(found), : found.shape[1]] = found
      names.append(example.name)
    return TupleExample(
      self._source.labels[numbers],
      mask,
      sizes,
      names[0] if names else "",
      tuple(skipped),
    )

  def _look(
    self, example: examples.Encoded, position: int, k: int
  ) -> np.ndarray:
    """Returns [h, w, 3] uint8 pixels that fit into the array."""
    generator = None
    if self._seed is not None:
      generator = random_generator(
        self._seed, _TUPLES, self._first + position, k
      )
    if self._resize and generator is not None:
      return examples.random_window(
        example,
        self._side,
        generator,
        resize=self._resize,
        crop=self._side,
        augmentation=self._augmentation,
      )
    pixels = examples.resample(example, self._plan)
    if generator is None:
      return pixels
    return self._augmentation.change(pixels, generator)

  def _plan(self, height: int, width: int):
    """The window in the centre, or the whole photograph."""
    side = self._side
    if self._resize:
      offset = (self._resize - side) / 2
      box = examples.window(height, width, self._resize, side, (offset, offset))
      return box, (side, side)
    zoom = side / max(height, width)
    size = tuple(max(1, round(length * zoom)) for length in (height, width))
    return (0, 0, height, width), size
