"""Rows of correspondence training: two views, and points that both show."""

from typing import NamedTuple

import numpy as np

from delf_jax.data import views
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.examples import MAX_ATTEMPTS, Order, random_generator
from delf_jax.data.pair_sources import Pair, PairSource
from delf_jax.errors import InputError

# Two views that share fewer points are drawn again.
LEAST_POINTS = 8

# The first number after the seed keeps these streams of chance apart from those
# of `examples`.
_VIEWS, _FAMILIES = 100, 101


class PairExample(NamedTuple):
  """What belongs to one row of a batch beside its pixels.

  Attributes:
    points: [2, n, 2] float32 (y, x) in pixels of the first and of the second
      view.
    valid: [n] bool.
    group: pairs of one group, 0 or more, may show the same place; -1: of none.
    name: of the first photograph.
    skipped: (name, reason) of photographs that were drawn and not readable.
  """

  points: np.ndarray
  valid: np.ndarray
  group: int
  name: str
  skipped: tuple[tuple[str, str], ...]


class ViewPairs:
  """Pairs of views by their position in the order.

  Everything is a pure function of the seed and of the position: batch x batch
  size + row.
  """

  def __init__(
    self,
    source: PairSource,
    *,
    seed: int,
    side: int,
    points: int,
    spacing: int = 16,
    options: views.Views | None = None,
    augmentation: Augmentation | None = None,
    look_alikes: np.ndarray | None = None,
    family: int = 1,
  ) -> None:
    """See `pipeline.pair_batches`."""
    self._source = source
    self._seed = seed
    self._side = side
    self._count = points
    self._lattice = views.lattice(side, spacing)
    self._spacing = spacing
    self._options = options or views.Views()
    self._augmentation = augmentation or Augmentation()
    self._order = Order(len(source), None, seed=seed, sampling="photograph")
    self._look_alikes = look_alikes
    self._family = family

  def shape(self, batch: int) -> tuple[int, ...]:
    """Returns the shape of one row's pixels."""
    return (2, self._side, self._side, 3)

  def fill(self, position: int, pixels: np.ndarray) -> list[PairExample]:
    """Makes the rows from a position on.

    Args:
      position: in the order, of the first.
      pixels: [n, 2, side, side, 3] uint8, receives the views.

    Returns:
      the n examples.

    Raises:
      InputError: if one unusable pair after the other was drawn.
    """
    return [self._fill(position + i, row) for i, row in enumerate(pixels)]

  def _fill(self, position: int, pixels: np.ndarray) -> PairExample:
    skipped = []
    reason = f"no two views share {LEAST_POINTS} points"
    for attempt in range(MAX_ATTEMPTS):
      generator = random_generator(self._seed, _VIEWS, position, attempt)
      pair = self._source[self._pick(position, attempt)]
      try:
        found = self._look(pair, pixels, generator)
      except InputError as error:
        reason = str(error)
        skipped.append((pair.name, reason))
        continue
      if found is None:
        continue
      for k in range(2):
        pixels[k] = self._augmentation.change(pixels[k], generator)
      points, valid = self._choose(*found, generator)
      return PairExample(points, valid, pair.group, pair.name, tuple(skipped))
    raise InputError(
      f"no usable pair of views among {MAX_ATTEMPTS} drawn; the last: {reason}"
    )

  def _pick(self, position: int, attempt: int) -> int:
    """Returns which pair of the source is at a position of the order.

    The first of a family is the next of the order, the others are drawn from
    its look-alikes.
    """
    if self._look_alikes is None or attempt:
      return self._order(position, attempt)
    family, member = divmod(position, self._family)
    first = self._order(family)
    if not member:
      return first
    alike = self._look_alikes[first]
    generator = random_generator(self._seed, _FAMILIES, family)
    drawn = generator.permutation(len(alike))
    return int(alike[drawn[(member - 1) % len(alike)]])

  def _look(
    self, pair: Pair, pixels: np.ndarray, generator: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """Fills both views.

    Returns:
      [n, 2] points of each view that show the same, `LEAST_POINTS` or more;
      None if there are fewer.
    """
    side, options = self._side, self._options
    second = inside = None

    def both(height, width):
      nonlocal second, inside
      first, second = views.random_pair(height, width, side, generator, options)
      inside = np.array([height, width]) - 1
      return first

    def near_an_inlier(height, width):
      nonlocal inside
      inside = np.array([height, width]) - 1
      centre = pair.inliers[generator.integers(len(pair.inliers))]
      length = views.random_length(min(height, width), side, generator, options)
      return views.random_view(centre, length, side, generator, options)

    pixels[0], first = views.look(
      pair.first,
      name=pair.name,
      side=side,
      choose=both if pair.homography is None else near_an_inlier,
    )
    if pair.homography is not None:
      second = views.follow(first, pair.homography, side, generator, options)
      if second is None:
        return None
    shown = views.project(first, self._lattice)
    there = shown
    valid = ((shown >= 0) & (shown <= inside)).all(1)
    if pair.homography is not None:
      there = views.project(pair.homography, shown)
      length = np.sqrt(views.area(views.corners_of(first, side)))
      reach = self._spacing * length / side
      apart = shown[:, None] - pair.inliers[None]
      valid &= ((apart**2).sum(-1) <= reach**2).any(1)
    found = views.project(np.linalg.inv(second), there)
    # Not a number compares as false.
    valid &= ((found >= 0) & (found <= side - 1)).all(1)
    if valid.sum() < LEAST_POINTS:
      return None
    pixels[1], _ = views.look(
      pair.first if pair.second is None else pair.second,
      name=pair.name,
      side=side,
      choose=lambda height, width: second,
    )
    return self._lattice[valid], found[valid]

  def _choose(
    self,
    first: np.ndarray,
    second: np.ndarray,
    generator: np.random.Generator,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws [2, n, 2] points of those there are; zeros fill up."""
    rows = generator.permutation(len(first))[: self._count]
    points = np.zeros((2, self._count, 2), np.float32)
    points[0, : len(rows)] = first[rows]
    points[1, : len(rows)] = second[rows]
    return points, np.arange(self._count) < len(rows)


def collate(rows: list[PairExample]) -> dict[str, np.ndarray]:
  """Stacks what belongs to the rows of a batch.

  Returns:
    "points" [b, 2, n, 2] float32, "valid" [b, n] bool, "groups" [b] int32.
  """
  return {
    "points": np.stack([row.points for row in rows]),
    "valid": np.stack([row.valid for row in rows]),
    "groups": np.array([row.group for row in rows], np.int32),
  }
