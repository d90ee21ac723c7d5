"""Draws planar buildings from random numbers, details and all.

A building is painted on a sheet twice as fine as the picture handed back and
then averaged down, so edges come out smooth. Every choice (kind, proportions,
palette, material, shape and hood of the windows, ornaments, stains) comes from
one generator: buildings differ from one another, and places on one building
differ too, down to the drawn curtain and the letters over the door.

Boxes are (top, left, bottom, right) and points (y, x), in pixels of the sheet.
"""

import cv2
import numpy as np

from delf_jax.data.synthetic_drawing import (
  HEADS,
  Box,
  Sheet,
  block,
  clock,
  column,
  cornice,
  darken,
  disc,
  door,
  emblem,
  empty_sheet,
  fill,
  frieze,
  line,
  noise,
  opening,
  outline,
  pick,
  rectangle,
  rose,
  statue,
  tint,
  vary,
  whole,
  window,
)

_FINER = 2
_SIDE = 1024  # the longer side of a sheet

_TOPS = ("spire", "pyramid", "battlements", "gable", "stepped", "dome", "onion")
_WIDE = ("hipped", "gable", "stepped", "battlements", "parapet")


def draw_building(rng: np.random.Generator) -> np.ndarray:
  """Returns a building that no other state of the generator draws.

  Args:
    rng: the only source of chance; it is advanced.

  Returns:
    [h, w, 4] uint8 RGBA, not premultiplied, cropped to the building, its foot
    on the last row; the longer side is 512 at most.
  """
  sheet = pick(rng, _KINDS)(rng)
  _weather(sheet)
  rows, columns = (np.flatnonzero(sheet.alpha.any(axis)) for axis in (1, 0))
  picture = np.dstack([sheet.pixels, sheet.alpha])
  picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  height, width = (side // _FINER for side in picture.shape[:2])
  picture = picture[-height * _FINER :, : width * _FINER]
  # Averaging must not bring in the black of what is not painted.
  alpha = cv2.merge([picture[:, :, 3]] * 3).astype(np.float32)
  size = (width, height)
  colour, share = (
    cv2.resize(field, size, interpolation=cv2.INTER_AREA)
    for field in (picture[:, :, :3] * alpha, alpha)
  )
  colour = np.rint(colour / np.maximum(share, 1)).astype(np.uint8)
  return np.dstack([colour, np.rint(share[:, :, :1]).astype(np.uint8)])


def _weather(sheet: Sheet):
  """Adds stains, streaks of rain and a dark foot, unlike on any other."""
  rng = sheet.rng
  height, width = sheet.alpha.shape
  stains = 0.07 * noise(rng, (height, width), 5, 4)
  streaks = rng.standard_normal((6, width // 6), np.float32)
  stains += 0.05 * cv2.resize(streaks, (width, height))
  foot = np.linspace(0, 1, height, dtype=np.float32)[:, None] ** 8
  shade = (1 + stains) * (1 - 0.25 * foot)
  sheet.pixels[:] = cv2.multiply(
    sheet.pixels, cv2.merge([shade] * 3), dtype=cv2.CV_8U
  )


# --- masses ------------------------------------------------------------------


def _storeys(sheet: Sheet, box: Box, rows: int, bays: int, paint: np.ndarray):
  """Draws a wall with rows of windows between mouldings and pilasters."""
  rng = sheet.rng
  top, left, bottom, right = box
  block(sheet, box, paint)
  heights = np.cumsum(rng.uniform(0.8, 1.5, rows))
  edges = top + (bottom - top) * np.concatenate([[0], heights / heights[-1]])
  bay = (right - left) / bays
  pilasters, quoins = rng.random(2) < (0.35, 0.4)
  for y0, y1 in zip(edges, edges[1:], strict=False):
    size = y1 - y0
    _windows(sheet, y0, size, left + bay * (np.arange(bays) + 0.5), bay)
    if pilasters:
      half = 0.06 * bay
      for x in np.clip(np.linspace(left, right, bays + 1), left + half, right):
        x = min(x, right - half)
        column(sheet, (y0 + 4, x - half, y1, x + half), fluted=False)
    if rng.random() < 0.3:
      frieze(sheet, (y0 + 0.02 * size, left, y0 + 0.13 * size, right))
    if rng.random() < 0.7:
      cornice(sheet, y0 + 0.06 * size, left, right, 0.08 * size)
  if quoins:
    size = (bottom - top) / (7 * rows)
    for index, y in enumerate(np.arange(top, bottom - size, size)):
      long = size * (1.4, 2.2)[index % 2]
      for x in (left, right - long):
        stone = (y, x, y + 0.88 * size, x + long)
        block(sheet, stone, vary(rng, sheet.trim, 0.08))


def _windows(sheet: Sheet, top: float, size: float, middles, bay: float):
  """Draws a row of windows, here and there a coat of arms in place of one."""
  rng = sheet.rng
  style = opening(sheet)
  shifts = (0,)
  if bay > 0.9 * size and rng.random() < 0.5:
    shifts = (-0.25 * bay, 0.25 * bay)
  width = min(rng.uniform(0.35, 0.6) * bay / len(shifts), 0.55 * size)
  height = min(width * style.slenderness, 0.62 * size)
  y = top + 0.55 * size
  for middle in middles:
    if rng.random() < 0.07:
      emblem(sheet, (y, middle), 0.3 * min(bay, size))
      continue
    for x in middle + np.array(shifts):
      pane = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
      window(sheet, pane, style)


def _portico(sheet: Sheet, box: Box):
  """Draws steps, columns, an inscribed beam and a pediment."""
  rng = sheet.rng
  top, left, bottom, right = box
  size, width, middle = bottom - top, right - left, (left + right) / 2
  rise = 0.2 * width
  tip = (top - rise, middle)
  pediment = np.array([(top, left - 16), tip, (top, right + 16)])
  fill(sheet, pediment, tint(sheet.trim, 0.85))
  fill(sheet, pediment * 0.84 + pediment.mean(0) * 0.16, sheet.stone)
  if rng.random() < 0.5:
    emblem(sheet, (top - 0.37 * rise, middle), 0.3 * rise)
  else:
    for t in np.linspace(-0.7, 0.7, whole(rng, 5, 12)):
      foot = (top - 4, middle + t * width / 2)
      statue(sheet, foot, 0.7 * rise * (1.15 - abs(t)))
  if rng.random() < 0.5:
    block(sheet, box, pick(rng, (sheet.trim, *sheet.accents)))
  else:
    _storeys(sheet, box, whole(rng, 1, 3), whole(rng, 3, 8), sheet.stone)
  darken(sheet, rectangle(box), rng.uniform(0.4, 0.75))
  half = rng.uniform(0.05, 0.1) * width
  door(sheet, middle, bottom, half, min(4.5 * half, 0.7 * size))
  frieze(sheet, (top, left - 10, top + 0.13 * size, right + 10))
  cornice(sheet, top + 6, left - 10, right + 10, 16)
  count = 2 * whole(rng, 2, 6)
  thick = rng.uniform(0.28, 0.45) * width / count
  fluted = rng.random() < 0.5
  for x in np.linspace(left + thick, right - thick, count) - thick / 2:
    shaft = (top + 0.14 * size, x, bottom - 0.1 * size, x + thick)
    column(sheet, shaft, fluted=fluted)
  for step in range(4):
    y = bottom - (4 - step) * 0.025 * size
    tread = (y, left - 8 * step, bottom, right + 8 * step)
    block(sheet, tread, tint(sheet.trim, (1.1, 0.95)[step % 2]))


# --- roofs -------------------------------------------------------------------


def _crown(sheet: Sheet, y: float, left: float, right: float, kind: str):
  """Puts a roof on a wall whose upper edge is at `y`, as room allows."""
  rng = sheet.rng
  if kind in ("spire", "pyramid"):
    slope = rng.uniform(1.5, 3) if kind == "spire" else rng.uniform(0.6, 1)
    _spire(sheet, y, left, right, min(slope * (right - left), y - 4))
  elif kind == "battlements":
    _battlements(sheet, y, left, right)
  elif kind in ("gable", "stepped"):
    height = min(rng.uniform(0.35, 0.7) * (right - left), y - 4)
    _gable(sheet, y, left, right, height, stepped=kind == "stepped")
  elif kind in ("dome", "onion"):
    height = min(rng.uniform(0.45, 0.85) * (right - left), 0.8 * y - 4)
    _dome(sheet, y, left, right, height, onion=kind == "onion")
  elif kind == "hipped":
    height = min(rng.uniform(0.15, 0.35) * (right - left), 0.7 * y)
    _hipped(sheet, y, left, right, height)
  else:
    _parapet(sheet, y, left, right)


def _spire(sheet, y, left, right, height):
  rng = sheet.rng
  width, middle = right - left, (left + right) / 2
  eave = 0.04 * width
  roof = [(y, left - eave), (y - height, middle), (y, right + eave)]
  roof = np.array(roof)
  fill(sheet, roof, sheet.roof)
  darken(sheet, np.array([(y, middle), roof[1], roof[2]]), 0.7)
  style = opening(sheet)._replace(shutters=None, hood="gable")
  for t in rng.uniform(0.1, 0.6, whole(rng, 1, 4)):
    half = 0.14 * width * (1 - t)
    low = y - t * height
    pane = (low - 2.2 * half, middle - half, low, middle + half)
    window(sheet, pane, style)
  _finial(sheet, y - height, middle, 0.12 * width + 10)


def _battlements(sheet, y, left, right):
  rng = sheet.rng
  width = right - left
  merlon = width / (2 * max(3, round(width / rng.uniform(34, 90))) + 1)
  high = y - min(1.3 * merlon, y - 4)
  swallow = rng.random() < 0.5
  for x in np.arange(left, right - merlon / 2, 2 * merlon):
    middle = [((y + high) / 2, x + merlon / 2)] if swallow else []
    ends = [(high, x + merlon), (y + 2, x + merlon)]
    fill(sheet, np.array([(y + 2, x), (high, x), *middle, *ends]), sheet.stone)
  cornice(sheet, y + merlon, left, right, 0.7 * merlon)


def _gable(sheet, y, left, right, height, *, stepped):
  rng = sheet.rng
  width, middle = right - left, (left + right) / 2
  points = [(y, left), (y - height, middle), (y, right)]
  if stepped:
    steps = whole(rng, 4, 8)
    climb = [
      (y - height * (i + j) / steps, left + 0.5 * width * i / steps)
      for i in range(steps)
      for j in (0, 1)
    ]
    points = climb + [(high, left + right - x) for high, x in reversed(climb)]
  points = np.array(points)
  fill(sheet, points, pick(rng, (sheet.wall, sheet.stone)))
  line(sheet, points, tint(sheet.trim, 1.1), 0.03 * width + 2)
  detail = pick(rng, (emblem, clock, rose))
  detail(sheet, (y - 0.36 * height, middle), 0.28 * height)
  _finial(sheet, y - height, middle, 0.12 * width + 10)


def _dome(sheet, y, left, right, height, *, onion):
  rng = sheet.rng
  width, middle = right - left, (left + right) / 2
  t = np.linspace(-1, 1, 41)
  profile = np.sqrt(1 - t**2)
  reach = width / 2
  if onion:
    profile = 0.62 * profile + 0.7 * (1 - np.abs(t)) ** 1.6
    reach *= 1.12
  shape = np.stack([y - height * profile, middle + reach * t], axis=1)
  fill(sheet, shape, sheet.roof)
  ribs = 2 * whole(rng, 3, 8) + 1
  for bend in np.sin(np.linspace(-np.pi / 2, np.pi / 2, ribs))[1:-1]:
    rib = shape[20:] - (0, middle)
    rib = rib * (1, bend) + (0, middle)
    line(sheet, rib, tint(sheet.trim, 0.8), 3)
  for edge, factor in ((0.2, 0.88), (0.5, 0.8), (0.75, 0.75)):
    side = shape[shape[:, 1] >= middle + edge * reach]
    foot = [(y, side[-1, 1]), (y, side[0, 1])]
    darken(sheet, np.concatenate([side, foot]), factor)
  tip = y - height * profile.max()
  half = 0.07 * width
  lantern = (max(tip - 3 * half, 2), middle - half, tip + 4, middle + half)
  _storeys(sheet, lantern, 1, 2, sheet.stone)
  _finial(sheet, lantern[0], middle, 2 * half)


def _hipped(sheet, y, left, right, height):
  rng = sheet.rng
  inset = rng.uniform(0.04, 0.2) * (right - left)
  ends = (left + inset, right - inset)
  for x in rng.uniform(*ends, whole(rng, 0, 4)):
    chimney = (y - 1.35 * height, x, y - 0.8 * height, x + 0.2 * height)
    block(sheet, chimney, sheet.stone)
  ridge = y - height
  slope = [(y, left - 8), (ridge, ends[0]), (ridge, ends[1]), (y, right + 8)]
  fill(sheet, np.array(slope), sheet.roof)
  style = opening(sheet)._replace(hood="gable", shutters=None, balcony=False)
  half = 0.22 * height
  for x in np.linspace(*ends, whole(rng, 3, 8))[1:-1]:
    pane = (y - 0.65 * height, x - half, y - 0.15 * height, x + half)
    window(sheet, pane, style)


def _parapet(sheet, y, left, right):
  rng = sheet.rng
  width = right - left
  rail = y - 0.07 * width - 12
  block(sheet, (rail, left, y, right), tint(sheet.trim, 0.55))
  for x in np.arange(left, right - 8, whole(rng, 14, 24)):
    block(sheet, (rail, x, y, x + 8), tint(sheet.trim, 0.95))
  block(sheet, (rail - 8, left, rail, right), sheet.trim)
  for x in np.linspace(left + 14, right - 14, whole(rng, 2, 7)):
    statue(sheet, (rail - 6, x), min(0.1 * width + 40, rail - 10))


def _finial(sheet, y, x, size):
  """Puts a ball, a cross or a flag on a tip, as far as there is room."""
  rng = sheet.rng
  size = min(size, y - 4)
  if size < 6:
    return
  gold = vary(rng, (214, 176, 70), 0.2)
  block(sheet, (y - size, x - 3, y + 4, x + 3), gold)
  kind = pick(rng, ("ball", "cross", "flag"))
  if kind == "ball":
    fill(sheet, disc((y - 0.5 * size, x), 0.25 * size), gold)
  elif kind == "cross":
    arm = (y - 0.8 * size, x - 0.3 * size, y - 0.65 * size, x + 0.3 * size)
    block(sheet, arm, gold)
  else:
    flag = np.array([(-1, 0), (-0.75, 0.8), (-0.5, 0)])
    flag = (y, x) + size * flag * (1, pick(rng, (-1, 1)))
    fill(sheet, flag, pick(rng, sheet.accents))


# --- kinds -------------------------------------------------------------------


def _palace(rng: np.random.Generator) -> Sheet:
  """A wide front with a middle part, sometimes with pavilions."""
  height = whole(rng, 560, 800)
  sheet = empty_sheet(rng, height, _SIDE)
  rows = whole(rng, 2, 5)
  eave = height * rng.uniform(0.28, 0.4)
  left, right = 40, _SIDE - 40
  _crown(sheet, eave, left, right, pick(rng, _WIDE))
  bays = whole(rng, 6, 13)
  _storeys(sheet, (eave, left, height, right), rows, bays, sheet.wall)
  cornice(sheet, eave + 8, left, right, 22)
  if rng.random() < 0.6:
    side = rng.uniform(130, 210)
    top = eave + rng.uniform(-120, 60)
    kind = pick(rng, _TOPS)
    for x in (24, _SIDE - 24 - side):
      _crown(sheet, top, x, x + side, kind)
      _storeys(sheet, (top, x, height, x + side), rows, 2, sheet.stone)
  half = rng.uniform(110, 200)
  middle = _SIDE / 2 + pick(rng, (0, 0, -120, 120))
  top = eave + rng.uniform(-80, 10)
  left, right = middle - half, middle + half
  _crown(sheet, top, left, right, pick(rng, (*_TOPS, "gable", "parapet")))
  _storeys(sheet, (top, left, height, right), rows, 3, sheet.stone)
  half *= rng.uniform(0.2, 0.34)
  door(sheet, middle, height, half, 0.8 * (height - eave) / rows)
  return sheet


def _tower(rng: np.random.Generator) -> Sheet:
  """Storeys that get narrower, a clock and a top."""
  width = whole(rng, 330, 560)
  sheet = empty_sheet(rng, _SIDE, width)
  tiers = whole(rng, 2, 6)
  middle = width / 2
  edges = np.linspace(_SIDE, rng.uniform(200, 330), tiers + 1)
  edges[1:] += rng.uniform(-30, 30, tiers)
  shrink = rng.uniform(0.8, 1)
  halves = rng.uniform(0.3, 0.44) * width * shrink ** np.arange(tiers)
  left, right = middle - halves[-1], middle + halves[-1]
  _crown(sheet, edges[-1], left, right, pick(rng, _TOPS))
  timed = rng.integers(tiers + 1)
  for tier, half in enumerate(halves):
    low, high = edges[tier], edges[tier + 1]
    left, right = middle - half, middle + half
    paint = pick(rng, (sheet.wall, sheet.stone))
    rows, bays = whole(rng, 1, 3), whole(rng, 1, 5)
    _storeys(sheet, (high, left, low, right), rows, bays, paint)
    if tier == timed:
      radius = min(0.5 * half, 0.32 * (low - high))
      clock(sheet, ((low + high) / 2, middle), radius)
    cornice(sheet, high + 10, left, right, rng.uniform(14, 34))
  half = rng.uniform(0.1, 0.16) * width
  door(sheet, middle, _SIDE, half, 3 * half)
  return sheet


def _domed(rng: np.random.Generator) -> Sheet:
  """A dome on a drum over wings, with a portico and turrets."""
  height = whole(rng, 760, 1000)
  sheet = empty_sheet(rng, height, _SIDE)
  eave = height * rng.uniform(0.6, 0.7)
  drum = eave - height * rng.uniform(0.1, 0.2)
  half, reach = rng.uniform(170, 270), rng.uniform(360, 480)
  middle = _SIDE / 2
  left, right = middle - half, middle + half
  _crown(sheet, drum, left, right, pick(rng, ("dome", "onion")))
  bays = whole(rng, 5, 10)
  _storeys(sheet, (drum, left, eave, right), 1, bays, sheet.stone)
  cornice(sheet, drum + 8, left, right, 24)
  left, right = middle - reach, middle + reach
  _crown(sheet, eave, left, right, pick(rng, ("parapet", "battlements")))
  rows, bays = whole(rng, 1, 3), whole(rng, 6, 12)
  _storeys(sheet, (eave, left, height, right), rows, bays, sheet.wall)
  if rng.random() < 0.6:
    side = rng.uniform(70, 120)
    top = eave - rng.uniform(0, 200)
    kind = pick(rng, ("spire", "dome", "onion", "pyramid"))
    for x in (left, right - side):
      _crown(sheet, top, x, x + side, kind)
      _storeys(sheet, (top, x, height, x + side), 3, 1, sheet.stone)
  half *= 0.8
  _portico(sheet, (eave - 10, middle - half, height, middle + half))
  return sheet


def _temple(rng: np.random.Generator) -> Sheet:
  """A portico as wide as the sheet, and statues on its roof."""
  height = whole(rng, 520, 760)
  sheet = empty_sheet(rng, height, _SIDE)
  top, left = 0.42 * height, rng.uniform(60, 130)
  right = _SIDE - left
  tip = top - 0.2 * (right - left)
  for foot in ((top, left), (tip, _SIDE / 2), (top, right)):
    if rng.random() < 0.7:
      statue(sheet, foot, min(foot[0] - 4, rng.uniform(60, 110)))
  _portico(sheet, (top, left, height, right))
  return sheet


def _church(rng: np.random.Generator) -> Sheet:
  """Two towers, not always alike, beside a gable with a rose window."""
  width = whole(rng, 620, 860)
  sheet = empty_sheet(rng, _SIDE, width)
  side = width * rng.uniform(0.24, 0.32)
  middle = width / 2
  nave = rng.uniform(380, 520)
  left, right = side - 20, width - side + 20
  _crown(sheet, nave, left, right, pick(rng, ("gable", "stepped", "parapet")))
  block(sheet, (nave, left, _SIDE, right), sheet.wall)
  frieze(sheet, (nave, left, nave + 30, right))
  radius = rng.uniform(0.17, 0.32) * (right - left)
  rose(sheet, (nave + 50 + 1.2 * radius, middle), radius)
  row = nave + 70 + 2.5 * radius
  rows = int((_SIDE - 210 - row) / rng.uniform(80, 140))
  if rows > 0:
    arcade = (row, left, _SIDE - 210, right)
    _storeys(sheet, arcade, rows, whole(rng, 3, 9), sheet.wall)
  door(sheet, middle, _SIDE, rng.uniform(0.12, 0.22) * (right - left), 180)
  top = rng.uniform(200, 330)
  kinds = [pick(rng, _TOPS)] * 2
  if rng.random() < 0.3:
    kinds[1] = pick(rng, _TOPS)
  rows, bays = whole(rng, 3, 6), whole(rng, 1, 3)
  for x, kind in zip((12, width - side - 12), kinds, strict=True):
    tall = top + rng.uniform(-60, 120) * (rng.random() < 0.3)
    _crown(sheet, tall, x, x + side, kind)
    _storeys(sheet, (tall, x, _SIDE, x + side), rows, bays, sheet.stone)
    cornice(sheet, tall + 10, x, x + side, 24)
  return sheet


def _castle(rng: np.random.Generator) -> Sheet:
  """Towers of many heights behind and before a curtain wall."""
  height = whole(rng, 700, 960)
  sheet = empty_sheet(rng, height, _SIDE)
  wall = height * rng.uniform(0.6, 0.72)
  towers = whole(rng, 4, 8)
  middles = np.linspace(110, _SIDE - 110, towers)
  middles = rng.permutation(middles + rng.uniform(-30, 30, towers))
  for turn, x in enumerate(middles):
    if turn == (towers + 1) // 2:
      _crown(sheet, wall, 30, _SIDE - 30, "battlements")
      curtain = (wall, 30, height, _SIDE - 30)
      _storeys(sheet, curtain, 1, whole(rng, 5, 10), sheet.wall)
    half = rng.uniform(45, 95)
    top = rng.uniform(0.25, 0.62) * height
    kind = pick(rng, ("battlements", "spire", "pyramid", "onion"))
    _crown(sheet, top, x - half, x + half, kind)
    paint = pick(rng, (sheet.wall, sheet.stone))
    rows, bays = whole(rng, 2, 5), whole(rng, 1, 3)
    _storeys(sheet, (top, x - half, height, x + half), rows, bays, paint)
  half = rng.uniform(40, 70)
  door(sheet, rng.uniform(200, _SIDE - 200), height, half, 3 * half)
  return sheet


def _bridge(rng: np.random.Generator) -> Sheet:
  """Arches on piers, open below, with a parapet and gate towers."""
  height = whole(rng, 420, 620)
  sheet = empty_sheet(rng, height, _SIDE)
  deck = height * rng.uniform(0.42, 0.55)
  rise = height - deck
  left, right = 10, _SIDE - 10
  block(sheet, (deck, left, height, right), sheet.wall)
  edges = np.linspace(30, _SIDE - 30, whole(rng, 4, 8))
  head = pick(rng, HEADS[1:4])
  pier = rng.uniform(0.1, 0.2) * (edges[1] - edges[0])
  for x0, x1 in zip(edges, edges[1:], strict=False):
    arch = (deck + 0.16 * rise, x0 + pier, height, x1 - pier)
    outer = outline((arch[0] - 22, arch[1] - 16, height, arch[3] + 16), head)
    inner = outline(arch, head)
    fill(sheet, outer, sheet.stone)
    for ends in zip(outer[1:18], inner[1:18], strict=True):
      line(sheet, ends, tint(sheet.trim, 0.6), 3)
    cv2.fillPoly(sheet.alpha, [np.rint(inner).astype(np.int32)[:, ::-1]], 0)
    if rng.random() < 0.6 and x0 > 40:
      emblem(sheet, (deck + 0.3 * rise, x0), 0.8 * pier)
  if rng.random() < 0.6:
    frieze(sheet, (deck, left, deck + 26, right))
  _crown(sheet, deck, left, right, pick(rng, ("parapet", "battlements")))
  for x in rng.permutation(edges)[: whole(rng, 1, 4)]:
    half = rng.uniform(40, 75)
    x = np.clip(x, half + 12, _SIDE - half - 12)
    top = deck * rng.uniform(0.35, 0.6)
    _crown(sheet, top, x - half, x + half, pick(rng, _TOPS))
    gate = (top, x - half, height, x + half)
    _storeys(sheet, gate, 3, whole(rng, 1, 3), sheet.stone)
  return sheet


def _pagoda(rng: np.random.Generator) -> Sheet:
  """Storeys under curved eaves, each smaller than the one below."""
  width = whole(rng, 520, 760)
  sheet = empty_sheet(rng, _SIDE, width)
  middle = width / 2
  y = _SIDE - 60
  block(sheet, (y, 30, _SIDE, width - 30), sheet.stone)
  frieze(sheet, (y, 30, y + 24, width - 30))
  sizes = np.geomspace(1, rng.uniform(0.45, 0.8), whole(rng, 3, 7))
  half = rng.uniform(0.22, 0.3) * width
  t = np.linspace(-1, 1, 31)
  for size in sizes:
    tall = 840 * size / sizes.sum()
    top = y - tall
    left, right = middle - half * size, middle + half * size
    paint = pick(rng, (sheet.wall, sheet.stone))
    _storeys(sheet, (top, left, y, right), 1, whole(rng, 2, 6), paint)
    lift = rng.uniform(0.05, 0.25) * tall
    x = middle + rng.uniform(1.45, 1.75) * half * size * t
    under = np.stack([top + 0.3 * tall - lift * t**4, x], axis=1)
    curve = (0.32 * np.abs(t) - 0.12) * tall - 0.6 * lift * t**4
    over = np.stack([top + 6 + curve, x], axis=1)
    darken(sheet, rectangle((top, left, top + 0.42 * tall, right)), 0.6)
    fill(sheet, np.concatenate([over, under[::-1]]), sheet.roof)
    edge = np.concatenate([under, under[::-1] + (6, 0)])
    fill(sheet, edge, sheet.accents[1])
    y = top
  _finial(sheet, y + 4, middle, rng.uniform(60, 110))
  return sheet


_KINDS = (
  _palace, _palace, _tower, _tower, _domed, _church, _church, _castle, _bridge,
  _pagoda, _temple,
)  # fmt: skip
