"""Two views of one place and the map between them.

Points are (y, x) in pixels, whole numbers at the centres of pixels. A view is a
[3, 3] float64 map of its own points (y, x, 1), homogeneously, to those of the
photograph that it shows a part of. All chance comes from a NumPy generator.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from delf_jax.data.augmentation import warp
from delf_jax.data.photographs import resample_photograph
from delf_jax.errors import InputError

# A view's corners, clockwise from the top left, around its centre.
_CORNERS = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) / 2

# A corner that moves further could cross the line between its neighbours.
_MAX_PERSPECTIVE = 0.25

# Through the map between two photographs, what one view shows may be so many
# times as long on the other; beyond that it is no view any more.
_MOST_STRETCHED = 4.0

# What is followed may be seen enlarged by so much more than what is chosen.
_MOST_ENLARGED = 1.5

# (height, width) of an upright photograph -> a view of it.
Choice = Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
  """How two views of one place may differ.

  Attributes:
    length: least and largest side of what is seen, as a share of the
      photograph's shorter side.
    zoom: what is seen has at least 1 / zoom times as many pixels a side as
      the view, so that little is seen enlarged.
    scale: the two sides differ by this factor at most.
    rotation: each view turns by at most so many degrees, either way.
    shift: each view moves by at most this share of its side, along each axis.
    perspective: each corner of each view moves by at most this share of its
      side, along each axis; below 0.25.

  Raises:
    InputError: if a value is out of its range.
  """

  length: tuple[float, float] = (0.25, 1.0)
  zoom: float = 1.5
  scale: float = 1.6
  rotation: float = 13.0
  shift: float = 0.15
  perspective: float = 0.1

  def __post_init__(self) -> None:
    low, high = (float(end) for end in self.length)
    # A config may hold a list, which would not be hashable.
    object.__setattr__(self, "length", (low, high))
    fit = {
      "length": 0 < low <= high <= 1,
      "zoom": self.zoom > 0,
      "scale": self.scale >= 1,
      "rotation": 0 <= self.rotation <= 180,
      "shift": 0 <= self.shift < 0.5,
      "perspective": 0 <= self.perspective < _MAX_PERSPECTIVE,
    }
    for name, good in fit.items():
      if not good:
        raise InputError(
          f"views {name} is {getattr(self, name)!r}; give a length from above "
          f"0 to 1, a zoom above 0, a scale of at least 1, a rotation up to "
          f"180, a shift below 0.5, a perspective below {_MAX_PERSPECTIVE}"
        )

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> "Views":
    """Builds it from a mapping of some attributes to their values.

    Raises:
      InputError: if a name is unknown or a value out of its range.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for name in config:
      if name not in known:
        raise InputError(
          f"unknown option {name!r} of views; expected {', '.join(known)}"
        )
    return cls(**config)


def project(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Maps [n, 2] points; those that lie behind the camera become NaN."""
  mapped = points @ transform[:, :2].T + transform[:, 2]
  depth = mapped[:, 2:]
  return mapped[:, :2] / np.where(depth > 1e-9, depth, np.nan)


def from_corners(corners: np.ndarray, side: int) -> np.ndarray:
  """Returns the view whose outer corners are seen at four points.

  Args:
    corners: [4, 2] in the photograph, clockwise from the top left.
    side: of the view in pixels.
  """
  own = (_CORNERS + 0.5) * side - 0.5
  rows = np.zeros((8, 8))
  for i, ((y, x), (v, u)) in enumerate(zip(own, corners, strict=True)):
    rows[2 * i] = [y, x, 1, 0, 0, 0, -v * y, -v * x]
    rows[2 * i + 1] = [0, 0, 0, y, x, 1, -u * y, -u * x]
  return np.append(np.linalg.solve(rows, corners.ravel()), 1.0).reshape(3, 3)


def corners_of(view: np.ndarray, side: int) -> np.ndarray:
  """Returns the [4, 2] points that the outer corners of a view show."""
  return project(view, (_CORNERS + 0.5) * side - 0.5)


def area(corners: np.ndarray) -> float:
  """Returns the area of a polygon of [n, 2] points, clockwise positive."""
  y, x = corners.T
  return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def random_view(
  centre: np.ndarray,
  length: float,
  side: int,
  generator: np.random.Generator,
  options: Views,
) -> np.ndarray:
  """Looks at a place, turned, shifted and skewed at random.

  Args:
    centre: (y, x) in the photograph.
    length: side of what is seen there.
    side: of the view in pixels.
    generator: of chance.
    options: how much.
  """
  angle = math.radians(generator.uniform(-options.rotation, options.rotation))
  sine, cosine = math.sin(angle), math.cos(angle)
  shift = generator.uniform(-options.shift, options.shift, 2)
  skew = generator.uniform(-options.perspective, options.perspective, (4, 2))
  turned = (_CORNERS + skew) @ np.array([[cosine, -sine], [sine, cosine]])
  return from_corners(centre + length * (turned + shift), side)


def random_pair(
  height: int,
  width: int,
  side: int,
  generator: np.random.Generator,
  options: Views,
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses two views of one place in a photograph.

  Either may reach a little beyond it.

  Args:
    height: of the photograph.
    width: of the photograph.
    side: of the views in pixels.
    generator: of chance.
    options: how the views differ.
  """
  length = random_length(min(height, width), side, generator, options)
  margin = length / 2
  centre = [
    generator.uniform(margin, n - margin) - 0.5 for n in (height, width)
  ]
  ratio = options.scale ** generator.uniform(-0.5, 0.5)
  return tuple(
    random_view(np.array(centre), factor * length, side, generator, options)
    for factor in (ratio, 1 / ratio)
  )


def random_length(
  shorter: int, side: int, generator: np.random.Generator, options: Views
) -> float:
  """Draws the side of what is seen, by its logarithm.

  Args:
    shorter: side of the photograph.
    side: of the view.
    generator: of chance.
    options: say between what.
  """
  high = options.length[1] * shorter
  low = min(max(options.length[0] * shorter, side / options.zoom), high)
  # By rounding, the logarithm's end could be a little beyond.
  return min(math.exp(generator.uniform(math.log(low), math.log(high))), high)


def follow(
  view: np.ndarray,
  homography: np.ndarray,
  side: int,
  generator: np.random.Generator,
  options: Views,
) -> np.ndarray | None:
  """Looks, in another photograph, at what a view of the first one shows.

  The other view is upright but for its random turn, whatever the homography.

  Args:
    view: of the first photograph.
    homography: [3, 3], from the first photograph to the other.
    side: of the views in pixels.
    generator: of chance.
    options: how the views differ.

  Returns:
    a view of the other photograph; None if what the first shows is mirrored,
    far too much stretched or far too small there.
  """
  corners = corners_of(view, side)
  mapped = project(homography, corners)
  stretch = math.sqrt(max(area(mapped), 0.0) / area(corners))
  # Not a number compares as false.
  if not 1 / _MOST_STRETCHED <= stretch <= _MOST_STRETCHED:
    return None
  length = math.sqrt(area(mapped)) * options.scale ** generator.uniform(-1, 1)
  if length * options.zoom * _MOST_ENLARGED < side:
    return None
  return random_view(mapped.mean(0), length, side, generator, options)


def look(
  data: bytes, *, name: str, side: int, choose: Choice
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes a photograph and looks at a part of it.

  What lies beyond the photograph mirrors it.

  Args:
    data: the whole file.
    name: of the photograph, for messages.
    side: of the view in pixels.
    choose: which view.

  Returns:
    [side, side, 3] uint8 and the view.

  Raises:
    InputError: if the photograph cannot be decoded.
  """
  view = to_part = None

  def plan(height, width):
    nonlocal view, to_part
    view = choose(height, width)
    size = np.array([height, width])
    corners = corners_of(view, side) + 0.5  # from here on edges count
    # A pixel more on each side, to interpolate with.
    start = np.clip(np.floor(corners.min(0)) - 1, 0, size - 1)
    end = np.clip(np.ceil(corners.max(0)) + 1, start + 1, size)
    zoom = min(1.0, side / math.sqrt(abs(area(corners))))
    shape = np.maximum(np.rint((end - start) * zoom), 1)
    zooms = shape / (end - start)
    to_part = np.eye(3)
    to_part[[0, 1], [0, 1]] = zooms
    to_part[:2, 2] = (0.5 - start) * zooms - 0.5
    return (*start, *end), tuple(shape.astype(int).tolist())

  part = resample_photograph(data, name=name, plan=plan)
  return warp(part, to_part @ view, side), view


def lattice(side: int, spacing: int) -> np.ndarray:
  """Returns the [n, 2] points of a view whose coordinates are multiples."""
  steps = np.arange(0, side, spacing, dtype=np.float64)
  return np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
