"""Which photographs make up training and evaluation, and how each is cut.

Nothing that is imported here imports Grain or JAX, so that the processes which
decode start in a moment and cannot come near an accelerator.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from delf_jax.data.augmentation import (
  Augmentation,
  Box,
  displaced_corners,
  random_part,
  unwarp,
)
from delf_jax.data.photographs import Plan, resample_photograph
from delf_jax.data.sources import Source
from delf_jax.errors import InputError

SAMPLINGS = ("photograph", "class")

# So many photographs are drawn for one place in a batch, the last of them
# whatever its class.
MAX_ATTEMPTS = 100
_OF_THE_CLASS = 10

# The first number after the seed keeps the streams of chance apart.
_EPOCH, _CLASSES, _WITHIN, _SPARE, _PIXELS, _SCALE = range(6)


class Example(NamedTuple):
  """What belongs to one row of a batch beside its pixels.

  Attributes:
    label: class.
    name: of the photograph; empty in a row of padding.
    weight: 0 where there are no pixels, else 1.
    skipped: (name, reason) of photographs that were drawn and not readable.
  """

  label: int
  name: str
  weight: float
  skipped: tuple[tuple[str, str], ...]


def collate(rows: Sequence[Example]) -> dict[str, np.ndarray]:
  """Returns "labels" [b] int32 and "weights" [b] float32 of a batch's rows."""
  return {
    "labels": np.array([row.label for row in rows], np.int32),
    "weights": np.array([row.weight for row in rows], np.float32),
  }


class Order:
  """The endless order of training: which photograph is at which position.

  A pure function of the seed and the position. "photograph": every photograph
  once an epoch, in a new order. "class": in each round every class once, in a
  new order, with the next photograph of an order of its own, which is new after
  every photograph of the class was seen.

  Any number of threads may ask.
  """

  def __init__(
    self, count: int, labels: np.ndarray | None, *, seed: int, sampling: str
  ) -> None:
    """Takes the number of photographs and, for "class", their labels."""
    self._seed = seed
    self._count = count
    self._members = None
    if sampling == "class":
      _, sizes = np.unique(labels, return_counts=True)
      self._members = np.split(
        np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1]
      )
    # Threads work at the end of one epoch and the start of the next at once.
    self._permutation = functools.lru_cache(maxsize=2)(self._permute)

  def _permute(self, key: tuple[int, ...], count: int) -> np.ndarray:
    return random_generator(self._seed, *key).permutation(count)

  def __call__(self, position: int, attempt: int = 0) -> int:
    """Returns the number of the photograph.

    Args:
      position: in the whole order, 0 or more.
      attempt: above 0, a substitute for those of the attempts before.
    """
    if self._members is None:
      if attempt:
        generator = random_generator(self._seed, _SPARE, position, attempt)
        return int(generator.integers(self._count))
      epoch, place = divmod(position, self._count)
      return int(self._permutation((_EPOCH, epoch), self._count)[place])
    cycle, place = divmod(position, len(self._members))
    chosen = int(
      self._permutation((_CLASSES, cycle), len(self._members))[place]
    )
    if attempt:
      generator = random_generator(self._seed, _SPARE, position, attempt)
      if attempt >= _OF_THE_CLASS:
        chosen = int(generator.integers(len(self._members)))
      return int(generator.choice(self._members[chosen]))
    # This class was seen once in each cycle before.
    members = self._members[chosen]
    epoch, place = divmod(cycle, len(members))
    order = self._permute((_WITHIN, chosen, epoch), len(members))
    return int(members[order[place]])


class TrainingExamples:
  """Cut and augmented photographs by their position in the order.

  All that happens to a photograph is a pure function of the seed and of its
  position: batch x batch size + row.
  """

  def __init__(
    self,
    source: Source,
    *,
    seed: int,
    batch_size: int,
    resize: int,
    crop: int,
    scales: Sequence[float] = (1.0,),
    sampling: str = "photograph",
    augmentation: Augmentation | None = None,
  ) -> None:
    """See `pipeline.training_batches`."""
    self._source = source
    self._seed = seed
    self._batch_size = batch_size
    self._resize = resize
    self._crop = crop
    self._sides = [round(crop * scale) for scale in scales]
    self._augmentation = augmentation or Augmentation()
    self._order = Order(
      len(source),
      source.labels if sampling == "class" else None,
      seed=seed,
      sampling=sampling,
    )

  def shape(self, batch: int) -> tuple[int, ...]:
    """Returns the shape of the pixels of each of a batch's rows."""
    side = self._sides[0]
    if len(self._sides) > 1:
      generator = random_generator(self._seed, _SCALE, batch)
      side = self._sides[generator.integers(len(self._sides))]
    return (side, side, 3)

  def fill(self, position: int, pixels: np.ndarray) -> list[Example]:
    """Makes the examples from a position on.

    Args:
      position: in the order, of the first.
      pixels: [n, side, side, 3] uint8, receives the photographs.

    Returns:
      the n examples.

    Raises:
      InputError: if one unreadable photograph after the other was drawn.
    """
    return [self._fill(position + i, row) for i, row in enumerate(pixels)]

  def _fill(self, position: int, pixels: np.ndarray) -> Example:
    skipped = []
    for attempt in range(MAX_ATTEMPTS):
      number = self._order(position, attempt)
      generator = random_generator(self._seed, _PIXELS, position, attempt)
      try:
        example = read(self._source, number)
        pixels[:] = self._cut(example, len(pixels), generator)
      except UnreadableError as error:
        skipped.append((error.name, error.reason))
        continue
      return Example(example.label, example.name, 1.0, tuple(skipped))
    raise InputError(
      f"no readable training photograph among {MAX_ATTEMPTS} drawn; the last: "
      f"{skipped[-1][1]}"
    )

  def _cut(
    self, example: "Encoded", side: int, generator: np.random.Generator
  ) -> np.ndarray:
    """Decodes, cuts and augments: [side, side, 3] uint8."""
    return random_window(
      example,
      side,
      generator,
      resize=self._resize,
      crop=self._crop,
      augmentation=self._augmentation,
    )


class EvaluationExamples:
  """Every photograph once, in order, cut in its centre; then padding."""

  def __init__(
    self, source: Source, *, resize: int, crop: int, limit: int | None = None
  ) -> None:
    """See `pipeline.evaluation_batches`."""
    self._source = source
    self._resize = resize
    self._crop = crop
    self._count = min(len(source), limit or len(source))

  def __len__(self) -> int:
    return self._count

  def shape(self, batch: int) -> tuple[int, ...]:
    """Returns the shape of the pixels of each of a batch's rows."""
    return (self._crop, self._crop, 3)

  def fill(self, position: int, pixels: np.ndarray) -> list[Example]:
    """Makes the examples from a position on; see `TrainingExamples.fill`."""
    return [self._fill(position + i, row) for i, row in enumerate(pixels)]

  def _fill(self, position: int, pixels: np.ndarray) -> Example:
    pixels[:] = 0
    if position >= self._count:
      return Example(0, "", 0.0, ())
    offset = (self._resize - self._crop) / 2

    def plan(height, width):
      box = window(height, width, self._resize, self._crop, (offset, offset))
      return box, (self._crop, self._crop)

    try:
      example = read(self._source, position)
      pixels[:] = resample(example, plan)
    except UnreadableError as error:
      return Example(0, error.name, 0.0, ((error.name, error.reason),))
    return Example(example.label, example.name, 1.0, ())


def window(
  height: int,
  width: int,
  resize: int,
  crop: int,
  offsets: Sequence[float],
) -> Box:
  """Finds a window of the central square in the photograph itself.

  Sections 3.2 and 3.3.2 of the paper resize the largest central square and
  cut the window out of that. To resize the window alone gives the same pixels,
  but for rounding.

  Args:
    height: of the photograph.
    width: of the photograph.
    resize: side of the square, resized.
    crop: side of the window in it.
    offsets: (top, left) of the window in it.

  Returns:
    the window in pixels of the photograph.
  """
  length = min(height, width)
  zoom = length / resize
  top = (height - length) // 2 + offsets[0] * zoom
  left = (width - length) // 2 + offsets[1] * zoom
  return top, left, top + crop * zoom, left + crop * zoom


class Encoded(NamedTuple):
  """An example as the source has it."""

  image: bytes
  label: int
  name: str


class UnreadableError(Exception):
  """A photograph that has to be left out.

  Attributes:
    name: of the photograph.
    reason: why.
  """

  def __init__(self, name: str, reason: str) -> None:
    super().__init__(name, reason)
    self.name = name
    self.reason = reason


def read(source: Source, number: int) -> Encoded:
  """Reads a photograph's file.

  Raises:
    UnreadableError: if that is impossible.
  """
  name = f"photograph {number}"
  try:
    example = source[number]
  except (InputError, OSError, RuntimeError) as error:
    # RuntimeError is all that array_record raises for a damaged file.
    raise UnreadableError(name, str(error)) from error
  return Encoded(
    example["image"], int(example["label"]), str(example.get("name", name))
  )


def resample(example: Encoded, plan: Plan) -> np.ndarray:
  """Decodes the part of a photograph that a plan chooses.

  Raises:
    UnreadableError: if it cannot be decoded.
  """
  try:
    return resample_photograph(example.image, name=example.name, plan=plan)
  except InputError as error:
    raise UnreadableError(example.name, str(error)) from error


def random_window(
  example: Encoded,
  side: int,
  generator: np.random.Generator,
  *,
  resize: int,
  crop: int,
  augmentation: Augmentation,
) -> np.ndarray:
  """Decodes a photograph, cuts a window out of it and changes that.

  Args:
    example: the photograph.
    side: of the result.
    generator: of chance.
    resize: side to which the largest central square is resized.
    crop: side of the random window in it, which is resized to `side`.
    augmentation: what else happens.

  Returns:
    [side, side, 3] uint8.

  Raises:
    UnreadableError: if it cannot be decoded.
  """
  corners = None

  def plan(height, width):
    nonlocal corners
    if augmentation.crop_area:
      box = random_part(
        height,
        width,
        generator,
        area=augmentation.crop_area,
        aspect=augmentation.crop_aspect,
      )
    else:
      offsets = generator.integers(0, resize - crop + 1, size=2)
      box = window(height, width, resize, crop, offsets)
    if not augmentation.homography:
      return box, (side, side)
    corners = displaced_corners(
      box, height, width, generator, strength=augmentation.homography
    )
    # What lies around the corners, at the resolution that the result has.
    start, end = corners.min(0), corners.max(0)
    zoom = side / np.array([box[2] - box[0], box[3] - box[1]])
    size = np.maximum(np.rint((end - start) * zoom), 1).astype(int)
    corners = (corners - start) / (end - start) * size
    return (*start, *end), tuple(size.tolist())

  pixels = resample(example, plan)
  if corners is not None:
    pixels = unwarp(pixels, corners, side)
  return augmentation.change(pixels, generator)


def random_generator(*key: int) -> np.random.Generator:
  """Returns a generator of chance of its own for every key."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
