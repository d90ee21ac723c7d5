"""A photograph, or a part of it, as lists of what to extract name it.

The queries of Oxford5k, Paris6k and their successors are parts of photographs:
boxes. The same photograph lies whole in the database, so the two need names
that differ. Nothing is opened here: `data.cropping` cuts.
"""

import math
from typing import NamedTuple

# Edges (top, left, bottom, right) in pixels of the upright original.
Box = tuple[float, float, float, float]


class Item(NamedTuple):
  """A photograph, or a part of it.

  Attributes:
    path: of the photograph.
    box: its part: edges (top, left, bottom, right) in pixels of the upright
      original; None for all of it.
  """

  path: str
  box: Box | None = None

  @property
  def name(self) -> str:
    """The path, and behind a "#" the box: `a.jpg#34.1,136.5,955.7,648.5`."""
    if self.box is None:
      return self.path
    return f"{self.path}#{','.join(f'{edge:.10g}' for edge in self.box)}"


def is_box(value: object) -> bool:
  """Says whether a value is four finite edges that enclose something."""
  return (
    isinstance(value, list | tuple)
    and len(value) == 4
    and all(
      isinstance(edge, int | float) and not isinstance(edge, bool)
      for edge in value
    )
    and all(map(math.isfinite, value))
    and value[0] < value[2]
    and value[1] < value[3]
  )


def pixel_box(
  box: Box, *, height: int, width: int
) -> tuple[int, int, int, int]:
  """Returns a box's edges on the grid of pixels, inside the photograph.

  Each edge is rounded to the nearest (halves to the even one), as the
  published evaluations of Oxford5k and Paris6k round it.

  Args:
    box: edges (top, left, bottom, right) in pixels.
    height: of the photograph.
    width: of the photograph.

  Returns:
    (top, left, bottom, right); empty if the box lies outside.
  """
  top, left, bottom, right = map(round, box)
  top, bottom = (min(max(edge, 0), height) for edge in (top, bottom))
  left, right = (min(max(edge, 0), width) for edge in (left, right))
  return top, left, bottom, right
