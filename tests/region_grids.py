"""R-MAC's grid, a region at a time and in fractions, as an oracle.

Written from the description of the method. The published programs compute the
same in floating point, where 6 of the 9,640 maps up to 80 x 160 come out with a
square less or more along the long side: those with two overlaps exactly as far
from 40 %.
"""

import math
from fractions import Fraction

import numpy as np


def literal_grid(height, width, levels):
  """Lists (top, left, side) of every region of a rectangle."""
  short, long = min(height, width), max(height, width)
  extra = 0
  if height != width:
    overlaps = [
      1 - Fraction(long - short, steps * short) for steps in range(1, 7)
    ]
    misses = [abs(overlap - Fraction(2, 5)) for overlap in overlaps]
    extra = 1 + misses.index(min(misses))
  found = []
  for level in range(1, levels + 1):
    side = 2 * short // (level + 1)
    if not side:
      continue
    starts = []
    for length in (height, width):
      count = level + (extra if length == long and height != width else 0)
      step = Fraction(length - side, count - 1) if count > 1 else 0
      starts.append([math.floor(i * step) for i in range(count)])
    found += [(top, left, side) for top in starts[0] for left in starts[1]]
  return found


def literal_map_regions(height, width, levels, stride, map_size):
  """Carries them to a map as RoI pooling does; edges, the last exclusive."""
  found = []
  for top, left, side in literal_grid(height, width, levels):
    edges = []
    for start, length in ((top, map_size[0]), (left, map_size[1])):
      first = int(np.floor(start / stride + 0.5))
      last = int(np.floor((start + side - 1) / stride + 0.5))
      edges.append((min(first, length), min(max(last, first) + 1, length)))
    (top, bottom), (left, right) = edges
    if top < bottom and left < right:
      found.append((top, left, bottom, right))
  return found
