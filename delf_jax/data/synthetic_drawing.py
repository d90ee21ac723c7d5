"""Paint, materials and architectural details for procedurally made buildings.

Boxes are (top, left, bottom, right) and points (y, x), in pixels of the sheet.
Chance comes from the sheet's generator, so a detail is never drawn twice alike.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

HEADS = ("flat", "segment", "round", "pointed", "ogee")
_HOODS = ("none", "gable", "bar", "keystone", "none")
_WALLS = (
  (206, 184, 146), (226, 220, 206), (160, 84, 66), (188, 140, 122),
  (222, 188, 110), (150, 148, 144), (196, 118, 82), (168, 188, 196),
  (178, 190, 152), (118, 96, 84), (236, 208, 196), (142, 124, 104),
)  # fmt: skip
_ROOFS = (
  (150, 74, 54), (86, 92, 104), (98, 150, 132), (112, 78, 58), (70, 70, 74),
  (196, 160, 70), (60, 96, 140), (172, 112, 74),
)  # fmt: skip
_CURTAINS = ((210, 205, 190), (150, 140, 128), (30, 30, 34), (186, 170, 130))
_WOODS = ((96, 62, 40), (70, 48, 36), (122, 88, 56), (60, 66, 64))
_CLOCKS = (((236, 232, 216), (24, 24, 28)), ((28, 34, 60), (232, 200, 90)))
_IRON = (40, 40, 44)

# A standing figure of height 1, as (y, x) from its foot.
_FIGURE = np.array([
  [0, -0.2], [-0.12, -0.2], [-0.14, -0.13], [-0.62, -0.15], [-0.78, -0.16],
  [-0.8, -0.05], [-0.82, -0.07], [-0.95, -0.06], [-1, 0], [-0.95, 0.06],
  [-0.82, 0.07], [-0.8, 0.05], [-0.78, 0.16], [-0.7, 0.3], [-0.6, 0.14],
  [-0.14, 0.13], [-0.12, 0.2], [0, 0.2],
])  # fmt: skip
_HAND = 13  # the row above that an arm may move


class Opening(NamedTuple):
  """How the windows of one row look; lengths are shares of the width."""

  head: str
  hood: str
  panes: tuple[int, int]
  frame: float
  slenderness: float
  sill: bool
  shutters: Colour | None
  balcony: bool


@dataclasses.dataclass(frozen=True)
class Sheet:
  """What a building is drawn on, and the materials it is built from."""

  rng: np.random.Generator
  pixels: np.ndarray  # [h, w, 3] uint8 RGB
  alpha: np.ndarray  # [h, w] uint8
  wall: np.ndarray  # [h, w, 3] uint8, like the next two
  stone: np.ndarray
  roof: np.ndarray
  trim: Colour
  glass: Colour
  accents: tuple[Colour, ...]


def empty_sheet(rng: np.random.Generator, height: int, width: int) -> Sheet:
  """Returns an empty sheet with a palette and materials of its own."""

  def laid(colour):
    course = whole(rng, 7, 26)
    return masonry(
      rng,
      (height, width),
      colour,
      brick=(course, int(course * rng.uniform(1.5, 3.5))),
      joint=pick(rng, (-3, -2, 2, 3)),
      contrast=rng.uniform(0.03, 0.16),
      bands=pick(rng, (0, 0, 0, 2, 3, 5)),
    )

  return Sheet(
    rng=rng,
    pixels=np.zeros((height, width, 3), np.uint8),
    alpha=np.zeros((height, width), np.uint8),
    wall=laid(vary(rng, pick(rng, _WALLS), 0.15)),
    stone=laid(vary(rng, pick(rng, _WALLS), 0.2)),
    roof=masonry(
      rng,
      (height, width),
      vary(rng, pick(rng, _ROOFS), 0.2),
      brick=(whole(rng, 8, 40), whole(rng, 8, 30)),
      joint=-2,
      contrast=rng.uniform(0.05, 0.15),
    ),
    trim=vary(rng, tint(pick(rng, _WALLS), 1.15), 0.2),
    glass=vary(rng, (58, 66, 84), 0.35),
    accents=tuple(_muted(rng) for _ in range(4)),
  )


# --- chance ------------------------------------------------------------------


def whole(rng: np.random.Generator, low: int, high: int) -> int:
  """Returns an integer from `low` to `high` - 1."""
  return int(rng.integers(low, high))


def pick(rng: np.random.Generator, options: Sequence):
  """Returns one of the options."""
  return options[rng.integers(len(options))]


def tint(colour: Colour, factor: float) -> Colour:
  """Returns the colour, brighter or darker."""
  return tuple(int(min(255, max(0, c * factor))) for c in colour)


def vary(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
  """Returns the colour, brighter or darker, and each channel moved a bit."""
  factors = rng.uniform(1 - amount, 1 + amount, 4)
  channels = np.array(colour) * factors[0] * (1 + factors[1:]) / 2
  return tuple(int(c) for c in np.clip(channels, 8, 250))


def _muted(rng: np.random.Generator) -> Colour:
  """Returns any colour, as dull as paint gets after some years outdoors."""
  colour = rng.uniform(30, 225, 3)
  return tuple(int(c) for c in 0.62 * colour + 0.38 * colour.mean())


def noise(
  rng: np.random.Generator, shape: tuple[int, int], cells: int, octaves: int
) -> np.ndarray:
  """Returns fractal noise [height, width] float32 of unit variance or so.

  Args:
    rng: where the values come from.
    shape: height and width in pixels.
    cells: cells of the coarsest octave along the longer side.
    octaves: each has twice the cells and .6 times the strength of the last.
  """
  total = np.zeros(shape, np.float32)
  for octave in range(octaves):
    side = max(shape) / (cells * 2**octave)
    coarse = (int(shape[0] / side) + 2, int(shape[1] / side) + 2)
    grid = rng.standard_normal(coarse, np.float32) * 0.6**octave
    total += cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
  return total


def masonry(
  rng: np.random.Generator,
  shape: tuple[int, int],
  colour: Colour,
  *,
  brick: tuple[int, int],
  joint: int,
  contrast: float,
  bands: int = 0,
) -> np.ndarray:
  """Returns courses of bricks, blocks or tiles, [height, width, 3] uint8.

  Args:
    rng: where the shade of each brick and the grain come from.
    shape: height and width in pixels.
    colour: mean colour, RGB.
    brick: height and length of one, in pixels.
    joint: thickness of the mortar in pixels; negative for darker mortar.
    contrast: standard deviation of the shade between bricks.
    bands: every that many courses are lighter; 0 for none.
  """
  height, width = shape
  course, length = brick
  courses = height // course + 1
  x = np.arange(width)[None, :] + rng.integers(length, size=courses)[:, None]
  shades = rng.normal(1, contrast, (courses, width // length + 2))
  mortar = 1.18 if joint > 0 else 0.72
  lines = np.take_along_axis(shades, x // length, axis=1)
  lines = np.where(x % length < abs(joint), mortar, lines)
  if bands:
    lines[::bands] *= 1.35
  field = np.repeat(lines.astype(np.float32), course, axis=0)[:height]
  rows = np.arange(height) % course
  field[rows < abs(joint)] = mortar
  field *= 1 + 0.1 * (0.5 - rows / course).astype(np.float32)[:, None]
  field += 0.04 * rng.standard_normal(shape, np.float32)
  field += 0.03 * noise(rng, shape, 6, 3)
  return cv2.convertScaleAbs(cv2.merge([field * float(c) for c in colour]))


# --- paint -------------------------------------------------------------------


def fill(sheet: Sheet, points: np.ndarray, paint: Colour | np.ndarray):
  """Fills a polygon [n, 2] with a colour, or from a material [h, w, 3]."""
  corners = np.rint(points).astype(np.int32)[:, ::-1]
  cv2.fillPoly(sheet.alpha, [corners], 255)
  if isinstance(paint, tuple):
    cv2.fillPoly(sheet.pixels, [corners], paint)
    return
  region, mask = _region(sheet, corners)
  if mask.size:
    part = sheet.pixels[region]
    sheet.pixels[region] = cv2.copyTo(paint[region], mask, part)


def block(sheet: Sheet, box: Box, paint: Colour | np.ndarray):
  """Fills a box."""
  fill(sheet, rectangle(box), paint)


def darken(sheet: Sheet, points: np.ndarray, factor: float):
  """Multiplies what is inside a polygon [n, 2]: shadows and highlights."""
  corners = np.rint(points).astype(np.int32)[:, ::-1]
  region, mask = _region(sheet, corners)
  if mask.size:
    part = sheet.pixels[region]
    shaded = cv2.convertScaleAbs(part, alpha=factor)
    sheet.pixels[region] = cv2.copyTo(shaded, mask, part)


def _region(sheet: Sheet, corners: np.ndarray):
  """Returns the slices around a polygon (x, y) and its mask inside them."""
  height, width = sheet.alpha.shape
  left, top = np.maximum(corners.min(0), 0)
  right, bottom = np.minimum(corners.max(0) + 1, (width, height))
  region = (slice(top, max(bottom, top)), slice(left, max(right, left)))
  mask = np.zeros(sheet.alpha[region].shape, np.uint8)
  if mask.size:
    cv2.fillPoly(mask, [corners - (left, top)], 255)
  return region, mask


def line(sheet: Sheet, points, colour: Colour, thickness: float):
  """Draws an open line through points [n, 2] on what is already there."""
  corners = np.rint(np.asarray(points)).astype(np.int32)[:, ::-1]
  thickness = max(1, round(thickness))
  cv2.polylines(sheet.pixels, [corners], False, colour, thickness)


def rectangle(box: Box) -> np.ndarray:
  """Returns the polygon [4, 2] of a box."""
  top, left, bottom, right = box
  return np.array([[top, left], [top, right], [bottom, right], [bottom, left]])


def disc(centre, radius: float, sides: int = 40) -> np.ndarray:
  """Returns the polygon [sides, 2] of a circle."""
  angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
  spokes = np.stack([np.sin(angles), np.cos(angles)], axis=1)
  return np.array(centre) + radius * spokes


def outline(box: Box, head: str) -> np.ndarray:
  """Returns the polygon [n, 2] of an opening with a flat or arched head."""
  top, left, bottom, right = box
  half = (right - left) / 2
  t = -np.cos(np.linspace(0, np.pi, 19))
  circle = np.sqrt(np.maximum(1 - t**2, 0))
  rise, curve = {
    "flat": (0, np.ones_like(t)),
    "segment": (0.5, 1 - t**2),
    "round": (1, circle),
    "pointed": (1.6, np.sqrt(np.maximum(4 - (1 + np.abs(t)) ** 2, 0) / 3)),
    "ogee": (1.5, (circle + 1 - np.abs(t)) / 2),
  }[head]
  height = min(rise * half, 0.7 * (bottom - top))
  arch = np.stack([top + height * (1 - curve), left + half * (1 + t)], axis=1)
  return np.concatenate([arch, [[bottom, right], [bottom, left]]])


# --- details -----------------------------------------------------------------


def opening(sheet: Sheet) -> Opening:
  """Returns a kind of window."""
  rng = sheet.rng
  return Opening(
    head=pick(rng, HEADS),
    hood=pick(rng, _HOODS),
    panes=(whole(rng, 1, 6), whole(rng, 1, 4)),
    frame=rng.uniform(0.05, 0.2),
    slenderness=rng.uniform(1.2, 2.6),
    sill=rng.random() < 0.6,
    shutters=pick(rng, sheet.accents) if rng.random() < 0.3 else None,
    balcony=rng.random() < 0.15,
  )


def window(sheet: Sheet, box: Box, style: Opening):
  """Draws one window; what is behind its panes differs from the next."""
  rng = sheet.rng
  top, left, bottom, right = box
  width, height = right - left, bottom - top
  if width < 6:
    return
  frame = max(2, style.frame * width)
  dark = tint(sheet.trim, 0.6)
  if style.shutters and rng.random() < 0.85:
    for x in (left - 0.5 * width, right):
      leaf = (top + 0.15 * width, x, bottom, x + 0.5 * width)
      block(sheet, leaf, vary(rng, style.shutters, 0.1))
      for y in np.arange(leaf[0], bottom, max(5, width / 6)):
        line(sheet, [(y, x), (y, leaf[3])], tint(style.shutters, 0.7), 1)
  outer = (top - frame, left - frame, bottom + frame / 2, right + frame)
  outer = outline(outer, style.head)
  darken(sheet, outer + frame / 2, 0.75)
  fill(sheet, outer, vary(rng, sheet.trim, 0.05))
  glass = outline(box, style.head)
  fill(sheet, glass, vary(rng, sheet.glass, 0.3))
  darken(sheet, np.minimum(glass, [top + 0.4 * width, np.inf]), 0.6)
  if rng.random() < 0.5:
    pale = vary(rng, pick(rng, (*sheet.accents[:2], *_CURTAINS)), 0.25)
    low = bottom - rng.uniform(0.2, 0.55) * height
    block(sheet, (low, left, bottom, right), tint(pale, 0.7))
  rows, columns = style.panes
  for x in np.linspace(left, right, columns + 1)[1:-1]:
    line(sheet, [(top + 2, x), (bottom, x)], dark, width / 18)
  for y in np.linspace(top, bottom, rows + 1)[1:-1]:
    line(sheet, [(y, left), (y, right)], dark, width / 22)
  if style.hood == "gable":
    eave = top - 1.6 * frame
    tip = (eave - 0.4 * width, (left + right) / 2)
    side = 0.22 * width
    roof = np.array([(eave, left - side), tip, (eave, right + side)])
    fill(sheet, roof, dark)
    fill(sheet, roof * 0.75 + roof.mean(0) * 0.25, sheet.trim)
  elif style.hood == "bar":
    under, ends = top - 1.7 * frame, (left - 2 * frame, right + 2 * frame)
    block(sheet, (under - 1.3 * frame, ends[0], under, ends[1]), sheet.trim)
    shadow = (under, ends[0], under + frame / 2, ends[1])
    darken(sheet, rectangle(shadow), 0.6)
  elif style.hood == "keystone":
    stone = np.array([[-2.5, -0.14], [-2.5, 0.14], [0.8, 0.08], [0.8, -0.08]])
    stone = (top, (left + right) / 2) + stone * (frame, width)
    fill(sheet, stone, tint(sheet.trim, 1.15))
  ends = (left - 0.2 * width, right + 0.2 * width)
  if style.sill or style.balcony:
    sill = (bottom, ends[0], bottom + frame, ends[1])
    block(sheet, sill, tint(sheet.trim, 1.08))
  if style.balcony:
    rail = bottom - 0.35 * height
    for x in np.linspace(*ends, 8):
      line(sheet, [(rail, x), (bottom, x)], _IRON, 2)
    line(sheet, [(rail, ends[0]), (rail, ends[1])], _IRON, 3)


def door(sheet: Sheet, middle: float, foot: float, half: float, tall: float):
  """Draws a portal of nested arches around two leaves of panelled wood."""
  rng = sheet.rng
  head = pick(rng, HEADS)
  box = (foot - tall, middle - half, foot, middle + half)
  step = half * rng.uniform(0.08, 0.16)
  for ring in range(whole(rng, 2, 5), 0, -1):
    out = ring * step
    grown = (box[0] - out, box[1] - out, foot, box[3] + out)
    fill(sheet, outline(grown, head), tint(sheet.trim, (1.1, 0.7)[ring % 2]))
  wood = vary(rng, pick(rng, (*sheet.accents[:2], *_WOODS)), 0.2)
  fill(sheet, outline(box, head), tint(wood, 0.7))
  lintel = foot - 0.65 * tall
  panel = half / 4
  for y in np.arange(lintel, foot - 2 * panel, 2.6 * panel):
    for x in (box[1] + panel, middle + panel):
      leaf = (y, x, y + 2 * panel, x + 2 * panel)
      block(sheet, leaf, vary(rng, wood, 0.25))
  line(sheet, [(lintel, middle), (foot, middle)], (20, 18, 16), 3)
  line(sheet, [(lintel, box[1]), (lintel, box[3])], tint(sheet.trim, 0.9), 6)


def cornice(sheet: Sheet, y: float, left: float, right: float, size: float):
  """Draws a moulding with dentils whose lower edge is at `y`."""
  darken(sheet, rectangle((y, left, y + 0.7 * size, right)), 0.65)
  for low, high, out, shade in (
    (0.0, 0.4, 0.1, 0.8), (0.4, 0.65, 0.3, 1.0), (0.65, 1.0, 0.5, 1.15),
  ):  # fmt: skip
    ends = (left - out * size, right + out * size)
    band = (y - high * size, ends[0], y - low * size, ends[1])
    block(sheet, band, tint(sheet.trim, shade))
  if size > 10:
    for x in np.arange(left, right - size / 3, 0.8 * size):
      dentil = (y - 0.35 * size, x, y, x + 0.4 * size)
      block(sheet, dentil, tint(sheet.trim, 1.1))


def column(sheet: Sheet, box: Box, *, fluted: bool):
  """Draws a shaft in the round with its capital and base."""
  top, left, bottom, right = box
  width = right - left
  shades = (0.95, 1.12, 1.05, 0.92, 0.78, 0.6)
  if fluted:
    shades = np.repeat(shades, 2) * np.tile((0.85, 1.05), len(shades))
  edges = np.linspace(left, right, len(shades) + 1)
  for shade, x0, x1 in zip(shades, edges, edges[1:], strict=False):
    block(sheet, (top, x0, bottom, x1), tint(sheet.trim, shade))
  for y0, y1, out in (
    (top, top + 0.3 * width, 0.3 * width),
    (top + 0.3 * width, top + 0.55 * width, 0.14 * width),
    (bottom - 0.35 * width, bottom, 0.22 * width),
  ):
    block(sheet, (y0, left - out, y1, right + out), tint(sheet.trim, 1.05))
    line(sheet, [(y1, left), (y1, right)], tint(sheet.trim, 0.6), 2)


def emblem(sheet: Sheet, centre, radius: float):
  """Draws a coat of arms, mirrored, in the building's accent colours."""
  rng = sheet.rng
  middle = np.array(centre)
  field = disc(centre, radius)
  darken(sheet, field + radius / 8, 0.6)
  if rng.random() < 0.5:
    shield = [[-1, -0.8], [-1, 0.8], [0.2, 0.8], [1.1, 0], [0.2, -0.8]]
    field = middle + radius * np.array(shield)
  fill(sheet, field, tint(sheet.trim, 1.15))
  fill(sheet, 0.15 * middle + 0.85 * field, pick(rng, sheet.accents))
  for _ in range(whole(rng, 2, 5)):
    shape = rng.uniform([-0.6, 0], [0.6, 0.55], (whole(rng, 3, 6), 2))
    paint = vary(rng, pick(rng, (*sheet.accents, (240, 220, 120))), 0.2)
    for side in (1, -1):
      fill(sheet, middle + radius * shape * (1, side), paint)


def clock(sheet: Sheet, centre, radius: float):
  """Draws a clock with twelve strokes that shows any time."""
  rng = sheet.rng
  face, hands = pick(rng, _CLOCKS)
  fill(sheet, disc(centre, 1.2 * radius), sheet.trim)
  fill(sheet, disc(centre, radius), face)
  for inner, outer in zip(
    disc(centre, 0.78 * radius, 12),
    disc(centre, 0.94 * radius, 12),
    strict=True,
  ):
    line(sheet, [inner, outer], hands, radius / 10)
  for reach, thickness in ((0.5, 7), (0.75, 11)):
    end = pick(rng, disc(centre, reach * radius, 12))
    line(sheet, [centre, end], hands, radius / thickness)


def rose(sheet: Sheet, centre, radius: float):
  """Draws a rose window: petals of coloured glass in stone tracery."""
  rng = sheet.rng
  fill(sheet, disc(centre, 1.15 * radius), sheet.trim)
  fill(sheet, disc(centre, radius), tint(sheet.trim, 0.5))
  petals = whole(rng, 6, 15)
  for reach, size, count in ((0.75, 0.8, petals), (0.36, 0.5, petals // 2)):
    spot = 2.1 * radius * size * reach / count
    for petal in disc(centre, reach * radius, count):
      glass = vary(rng, pick(rng, sheet.accents), 0.3)
      fill(sheet, disc(petal, spot, 14), glass)
  fill(sheet, disc(centre, radius / 7), sheet.accents[0])


def frieze(sheet: Sheet, box: Box):
  """Draws a band of letters, of tiles or of little reliefs."""
  rng = sheet.rng
  top, left, bottom, right = box
  size = bottom - top
  kind = pick(rng, ("letters", "tiles", "reliefs"))
  ground = tint(pick(rng, (sheet.trim, *sheet.accents)), 0.9)
  block(sheet, box, ground)
  ink = tint(ground, 0.45 if sum(ground) > 300 else 1.9)
  for x in np.arange(left + 0.2 * size, right - 0.8 * size, 0.85 * size):
    middle = np.array([top + 0.5 * size, x + 0.35 * size])
    if kind == "letters":
      strokes = rng.uniform(-1, 1, (whole(rng, 2, 5), 2)).round()
      strokes = middle + strokes * (0.3 * size, 0.22 * size)
      line(sheet, strokes, ink, size / 9)
    elif kind == "tiles":
      tile = rectangle((-0.4, -0.36, 0.4, 0.36)) * size + middle
      fill(sheet, tile, vary(rng, pick(rng, sheet.accents), 0.25))
      dot = disc(middle, 0.2 * size, whole(rng, 3, 9))
      fill(sheet, dot, pick(rng, sheet.accents))
    else:
      relief = rng.uniform(-0.42, 0.42, (5, 2)) * size + middle
      fill(sheet, relief + size / 14, tint(ground, 0.5))
      fill(sheet, relief, vary(rng, tint(ground, 1.25), 0.1))


def statue(sheet: Sheet, foot, height: float):
  """Draws a standing figure on a plinth, its right side in shadow."""
  rng = sheet.rng
  figure = _FIGURE.copy()
  figure[_HAND] = rng.uniform([-1.1, 0.2], [-0.3, 0.5])
  figure = np.array(foot) + height * figure * (1, pick(rng, (-1, 1)))
  bronze = ((86, 130, 112), (70, 64, 58), tint(sheet.trim, 1.1))
  colour = pick(rng, bronze)
  fill(sheet, figure, tint(colour, 0.7))
  lit = (figure - foot) * (0.97, 0.7) + foot - (0, height / 24)
  fill(sheet, lit, colour)
