"""What surrounds landmarks: sky, ground, houses, trees, people and cars.

All of it is textured and none of it tells one place from another. Materials and
little figures come from a pool that all photographs of a collection share;
houses and trees are put together from the pool anew in every photograph.
Everything is drawn into a canvas finer than the photograph, in its pixels.
"""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from delf_jax.data import synthetic_drawing

_TILE = 512

_SKIES = (
  ((96, 150, 214), (196, 220, 238)), ((58, 108, 190), (170, 204, 236)),
  ((168, 174, 182), (206, 208, 208)), ((120, 132, 160), (238, 186, 140)),
  ((206, 210, 214), (228, 228, 224)), ((84, 92, 120), (150, 156, 170)),
)  # fmt: skip
_SKINS = ((232, 190, 160), (196, 146, 110), (120, 82, 60), (84, 56, 42))


class Stage(NamedTuple):
  """Where things stand.

  Attributes:
    ground: row at which the landmark meets the ground.
    slope: rows the horizon falls in one column.
  """

  ground: float
  slope: float


@dataclasses.dataclass(frozen=True)
class Pool:
  """The parts that all photographs share; sprites are [h, w, 4] uint8 RGBA."""

  clouds: np.ndarray  # [tile, tile] uint8
  leaves: tuple[np.ndarray, ...]  # [tile, tile, 3] uint8, like the next three
  grounds: tuple[np.ndarray, ...]
  walls: tuple[np.ndarray, ...]
  roofs: tuple[np.ndarray, ...]
  windows: tuple[np.ndarray, ...]  # [h, w, 3] uint8
  people: tuple[np.ndarray, ...]
  cars: tuple[np.ndarray, ...]
  lamps: tuple[np.ndarray, ...]


def make_pool(rng: np.random.Generator) -> Pool:
  """Returns the parts that the photographs of one collection share.

  Args:
    rng: the only source of chance; it is advanced.
  """
  clouds = synthetic_drawing.noise(rng, (_TILE, _TILE), 3, 6)
  return Pool(
    clouds=cv2.convertScaleAbs(np.maximum(clouds, 0), alpha=150),
    leaves=tuple(
      _leaves(rng, colour)
      for colour in ((70, 104, 44), (52, 84, 50), (112, 116, 40), (150, 92, 40))
    ),
    grounds=tuple(_grounds(rng)),
    walls=tuple(
      synthetic_drawing.masonry(
        rng, (_TILE, _TILE), colour, brick=(course, 2 * course), joint=2,
        contrast=contrast,
      )
      for colour, course, contrast in (
        ((168, 92, 72), 9, 0.12), ((206, 198, 180), 60, 0.02),
        ((184, 160, 128), 16, 0.08), ((150, 150, 150), 120, 0.02),
        ((222, 206, 160), 80, 0.02), ((126, 92, 70), 11, 0.1),
      )
    ),
    roofs=tuple(
      synthetic_drawing.masonry(
        rng, (_TILE, _TILE), colour, brick=(10, 9), joint=-2, contrast=0.1
      )
      for colour in ((146, 76, 56), (84, 86, 92), (110, 84, 64))
    ),
    windows=tuple(_window(rng) for _ in range(12)),
    people=tuple(_person(rng) for _ in range(20)),
    cars=tuple(_car(rng) for _ in range(10)),
    lamps=tuple(_lamp(rng) for _ in range(5)),
  )  # fmt: skip


def draw_background(
  rng: np.random.Generator,
  pool: Pool,
  stage: Stage,
  shape: tuple[int, int],
  *,
  crowded: bool = False,
) -> np.ndarray:
  """Returns sky, ground and what stands behind a landmark, [h, w, 3] uint8.

  Args:
    rng: the only source of chance; it is advanced.
    pool: the parts to use.
    stage: where things stand.
    shape: height and width.
    crowded: whether houses and trees are the subject: more, and larger.
  """
  height, width = shape
  canvas = _sky(rng, pool, shape)
  horizon = max(stage.ground - rng.uniform(0.02, 0.14) * height, 0.1 * height)
  _lay_ground(rng, pool, stage, canvas, horizon)
  things = rng.integers(4, 11) if crowded else rng.integers(1, 7)
  wild = rng.random() < 0.25
  for depth in np.sort(rng.random(things)):
    x = rng.uniform(-0.05, 1.05) * width
    foot = _foot(stage, x, width, horizon + depth * (stage.ground - horizon))
    tall = height * rng.uniform(0.15, 0.6 if crowded else 0.4)
    if wild or rng.random() < 0.4:
      sprite = _tree(rng, pool, tall)
    else:
      sprite = _house(rng, pool, tall, tall * rng.uniform(0.6, 1.9))
    _paste(canvas, sprite, foot, x)
  return canvas


def draw_foreground(
  rng: np.random.Generator,
  pool: Pool,
  stage: Stage,
  canvas: np.ndarray,
  visible: np.ndarray,
):
  """Draws what stands before a landmark into the canvas.

  Args:
    rng: the only source of chance; it is advanced.
    pool: the parts to use.
    stage: where things stand.
    canvas: [h, w, 3] uint8; changed in place.
    visible: [h, w] uint8, how much of the landmark is seen; changed in place.
  """
  height, width = visible.shape
  things = ["person"] * min(int(rng.geometric(0.25)) - 1, 12)
  things += ["car"] * int(rng.integers(0, 3)) * (rng.random() < 0.5)
  things += ["lamp"] * int(rng.integers(0, 3)) * (rng.random() < 0.5)
  things += ["tree"] * int(rng.integers(1, 4)) * (rng.random() < 0.45)
  things += ["bush"] * int(rng.integers(1, 6)) * (rng.random() < 0.4)
  spare = 0.45 * cv2.sumElems(visible)[0]
  person = height * rng.uniform(0.06, 0.16)
  for depth, index in zip(
    np.sort(rng.random(len(things))), rng.permutation(len(things)), strict=True
  ):
    thing = things[index]
    near = 1 + 1.6 * depth**2
    x = rng.uniform(-0.05, 1.05) * width
    drop = (0.02 + 0.25 * depth**2) * height
    foot = _foot(stage, x, width, stage.ground + drop)
    tall = person * near * rng.uniform(0.9, 1.1)
    if thing == "person":
      sprite = _scaled(rng, pool.people, tall)
    elif thing == "car":
      sprite = _scaled(rng, pool.cars, 0.9 * tall)
    elif thing == "lamp":
      sprite = _scaled(rng, pool.lamps, 3 * tall)
    elif thing == "tree":
      sprite = _tree(rng, pool, tall * rng.uniform(2, 5))
    else:
      sprite = _tree(rng, pool, tall * rng.uniform(0.4, 0.9), trunk=0.0)
    _paste(canvas, sprite, foot, x, visible, spare)


def _foot(stage: Stage, x: float, width: int, row: float) -> float:
  return row + stage.slope * (x - width / 2)


def _paste(
  canvas: np.ndarray,
  sprite: np.ndarray,
  foot: float,
  x: float,
  visible: np.ndarray | None = None,
  spare: float = 0.0,
):
  """Sets a sprite on its foot, `x` its middle, and hides what is behind it.

  Nothing happens where less than `spare` would be left of `visible`.
  """
  height, width = canvas.shape[:2]
  top = round(foot) - sprite.shape[0]
  left = round(x - sprite.shape[1] / 2)
  rows = slice(max(top, 0), min(top + sprite.shape[0], height))
  columns = slice(max(left, 0), min(left + sprite.shape[1], width))
  if rows.start >= rows.stop or columns.start >= columns.stop:
    return
  region = (rows, columns)
  part = sprite[
    rows.start - top : rows.stop - top,
    columns.start - left : columns.stop - left,
  ]
  alpha = part[:, :, 3]
  rest = 255 - alpha
  if visible is not None:
    remaining = visible.copy()
    remaining[region] = cv2.multiply(visible[region], rest, scale=1 / 255)
    if cv2.sumElems(remaining)[0] < spare:
      return
    visible[:] = remaining
  under = cv2.multiply(canvas[region], cv2.merge([rest] * 3), scale=1 / 255)
  over = cv2.multiply(
    np.ascontiguousarray(part[:, :, :3]), cv2.merge([alpha] * 3), scale=1 / 255
  )
  canvas[region] = cv2.add(under, over)


def _scaled(rng: np.random.Generator, sprites, tall: float) -> np.ndarray:
  """Returns one of the sprites, `tall` pixels high, perhaps mirrored."""
  sprite = sprites[rng.integers(len(sprites))]
  tall = max(tall, 4)
  width = max(2, round(sprite.shape[1] * tall / sprite.shape[0]))
  sprite = cv2.resize(
    sprite, (width, round(tall)), interpolation=cv2.INTER_AREA
  )
  return sprite[:, ::-1] if rng.random() < 0.5 else sprite


def _sign(rng: np.random.Generator) -> int:
  return -1 if rng.random() < 0.5 else 1


def _crop(
  rng: np.random.Generator, tiles, height: int, width: int
) -> np.ndarray:
  """Returns a piece of a tile, stretched, mirrored, brighter or darker.

  So two photographs share a material but hardly ever a patch of it.
  """
  tile = tiles[rng.integers(len(tiles))]
  sides = np.array((height, width)) * rng.uniform(0.7, 1.4, 2)
  rows, columns = np.clip(np.rint(sides).astype(int), 4, 3 * _TILE // 4)
  top, left = rng.integers(_TILE - rows), rng.integers(_TILE - columns)
  piece = tile[top : top + rows, left : left + columns]
  piece = piece[:: _sign(rng), :: _sign(rng)]
  piece = cv2.convertScaleAbs(piece, alpha=rng.uniform(0.75, 1.2))
  return cv2.resize(piece, (width, height))


# --- sky and ground ----------------------------------------------------------


def _sky(rng: np.random.Generator, pool: Pool, shape) -> np.ndarray:
  height, width = shape
  high, low = np.array(_SKIES[rng.integers(len(_SKIES))], np.float32)
  tint = rng.normal(1, 0.05, 3).astype(np.float32)
  t = np.linspace(0, 1, height, dtype=np.float32)[:, None] ** rng.uniform(
    0.6, 2
  )
  column = (high[None, :] * (1 - t) + low[None, :] * t) * tint[None, :]
  column = np.clip(column, 0, 255).astype(np.uint8)
  canvas = cv2.resize(column[:, None, :], (width, height))
  if rng.random() < 0.7:
    rows = int(rng.integers(120, _TILE))
    columns = int(rng.integers(120, _TILE))
    top = rng.integers(_TILE - rows + 1)
    left = rng.integers(_TILE - columns + 1)
    clouds = pool.clouds[top : top + rows, left : left + columns]
    clouds = cv2.resize(clouds, (width, height))
    clouds = cv2.convertScaleAbs(clouds, alpha=rng.uniform(0.4, 1))
    white = cv2.merge([clouds] * 3)
    canvas = cv2.add(
      cv2.multiply(canvas, 255 - white, scale=1 / 255),
      cv2.convertScaleAbs(white, alpha=rng.uniform(0.7, 0.97)),
    )
  return canvas


def _lay_ground(
  rng: np.random.Generator,
  pool: Pool,
  stage: Stage,
  canvas: np.ndarray,
  horizon: float,
):
  """Lays one of the grounds in perspective below the horizon."""
  height, width = canvas.shape[:2]
  tile = pool.grounds[rng.integers(len(pool.grounds))]
  start = rng.integers(0, _TILE // 2, 2)
  side = int(rng.integers(_TILE // 4, _TILE // 2))
  piece = tile[start[0] : start[0] + side, start[1] : start[1] + side]
  piece = cv2.convertScaleAbs(piece, alpha=rng.uniform(0.75, 1.15))
  rise = stage.slope * width
  left, right = horizon - rise, horizon + rise
  deep = max(height, left, right) + 40
  cv2.warpPerspective(
    piece,
    cv2.getPerspectiveTransform(
      np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32),
      np.array(
        [[-0.5 * width, left], [1.5 * width, right], [3.5 * width, deep],
         [-2.5 * width, deep]], np.float32,
      ),
    ),
    (width, height),
    dst=canvas,
    borderMode=cv2.BORDER_TRANSPARENT,
  )  # fmt: skip


def _grounds(rng: np.random.Generator):
  """Yields grass, two pavements, asphalt, sand and water."""
  for colour, rough, blades in (
    ((92, 124, 60), 0.16, 3), ((110, 110, 112), 0.08, 1),
    ((206, 184, 142), 0.07, 1), ((70, 104, 126), 0.12, 9),
  ):  # fmt: skip
    field = 1 + rough * synthetic_drawing.noise(rng, (_TILE, _TILE), 8, 5)
    grain = rng.standard_normal((_TILE, _TILE // blades + 1), np.float32)
    field += rough * cv2.resize(grain, (_TILE, _TILE))
    yield cv2.convertScaleAbs(cv2.merge([field * float(c) for c in colour]))
  for colour, course, length in (
    ((176, 168, 156), 22, 26),
    ((140, 112, 98), 12, 24),
  ):
    yield synthetic_drawing.masonry(
      rng, (_TILE, _TILE), colour, brick=(course, length), joint=-2,
      contrast=0.1,
    )  # fmt: skip


# --- trees and houses, new in every photograph -------------------------------


def _leaves(rng: np.random.Generator, colour) -> np.ndarray:
  """Returns foliage: many small leaves, lighter ones over darker ones."""
  tile = np.full((_TILE, _TILE, 3), [c // 3 for c in colour], np.uint8)
  count = 10000
  spots = rng.integers(0, _TILE, (count, 2)).tolist()
  lengths = rng.integers(3, 6, count).tolist()
  turns = rng.uniform(0, 180, count).tolist()
  shades = np.linspace(0.5, 1.5, count) * rng.uniform(0.8, 1.2, count)
  paints = np.minimum(np.array(colour) * shades[:, None], 255).tolist()
  for spot, length, turn, paint in zip(
    spots, lengths, turns, paints, strict=True
  ):
    cv2.ellipse(tile, spot, (length, 2), turn, 0, 360, paint, -1)
  return tile


def _tree(
  rng: np.random.Generator, pool: Pool, tall: float, *, trunk: float = 0.22
) -> np.ndarray:
  """Returns a tree of its own shape; `trunk` is a share of the height."""
  height = max(12, round(tall))
  width = max(10, round(tall * rng.uniform(0.5, 1.1)))
  crown = np.zeros((height, width), np.uint8)
  bottom = (1 - trunk) * height
  pointed = rng.random() < 0.3
  for y in np.linspace(0.18, 0.9, int(rng.integers(12, 26))):
    reach = 0.36 * (y if pointed else np.sqrt(1 - (2 * y - 1) ** 2))
    x = 0.5 + rng.uniform(-reach, reach)
    radius = rng.uniform(0.1, 0.18) * min(width, bottom)
    cv2.circle(
      crown, (round(x * width), round(y * bottom)), round(radius), 255, -1
    )
  leaves = _crop(rng, pool.leaves, height, width)
  # Leaves stick out: the green channel of the foliage frays the outline.
  soft = cv2.GaussianBlur(crown, (0, 0), max(1.0, height / 60))
  crown = cv2.threshold(
    cv2.addWeighted(soft, 1, leaves[:, :, 1], 0.7, -40), 127, 255,
    cv2.THRESH_BINARY,
  )[1]  # fmt: skip
  crown[soft < 25] = 0
  if trunk:
    half = max(1, round(0.02 * height))
    middle = width // 2
    bark = (
      slice(round(0.5 * bottom), height),
      slice(middle - half, middle + half),
    )
    bare = crown[bark] == 0
    leaves[bark][bare] = [int(c * rng.uniform(0.7, 1.2)) for c in (84, 66, 52)]
    crown[bark] = 255
  return np.dstack([leaves, crown])


def _house(
  rng: np.random.Generator, pool: Pool, tall: float, wide: float
) -> np.ndarray:
  """Returns a plain house put together from shared walls, roofs and windows."""
  height, width = max(24, round(tall)), max(24, round(wide))
  eave = round(height * rng.uniform(0.0, 0.4))
  sprite = np.zeros((height, width, 4), np.uint8)
  sprite[eave:, :, :3] = _crop(rng, pool.walls, height - eave, width)
  sprite[eave:, :, 3] = 255
  if eave > 3:
    inset = round(rng.uniform(0.02, 0.5) * width)
    roof = np.array(
      [[0, eave], [inset, 0], [width - 1 - inset, 0], [width - 1, eave]]
    )
    mask = np.zeros((eave, width), np.uint8)
    cv2.fillPoly(mask, [roof.astype(np.int32)], 255)
    sprite[:eave, :, :3] = _crop(rng, pool.roofs, eave, width)
    sprite[:eave, :, 3] = mask
  window = pool.windows[rng.integers(len(pool.windows))]
  floors = max(1, round((height - eave) / rng.uniform(40, 90)))
  bays = max(1, round(width / rng.uniform(40, 90)))
  cell = ((height - eave) / floors, width / bays)
  size = (max(4, round(0.5 * cell[1])), max(4, round(0.58 * cell[0])))
  window = cv2.resize(window, size, interpolation=cv2.INTER_AREA)
  for floor in range(floors):
    for bay in range(bays):
      top = round(eave + (floor + 0.2) * cell[0])
      left = round((bay + 0.25) * cell[1])
      place = sprite[top : top + size[1], left : left + size[0], :3]
      place[:] = window[: place.shape[0], : place.shape[1]]
  return sprite


# --- figures of the pool -----------------------------------------------------


def _window(rng: np.random.Generator) -> np.ndarray:
  height, width = 64, int(rng.integers(32, 56))
  frame = rng.integers(120, 250, 3)
  picture = np.full((height, width, 3), frame, np.uint8)
  glass = picture[6:-4, 5:-5]
  shades = np.linspace(0.6, 1.3, glass.shape[0])[:, None, None]
  glass[:] = np.clip(shades * rng.integers(40, 130, 3)[None, None, :], 0, 255)
  for row in np.linspace(0, glass.shape[0], int(rng.integers(2, 5)))[1:-1]:
    glass[int(row) : int(row) + 3] = frame
  for column in np.linspace(0, glass.shape[1], int(rng.integers(2, 4)))[1:-1]:
    glass[:, int(column) : int(column) + 3] = frame
  return picture


def _person(rng: np.random.Generator) -> np.ndarray:
  sprite = np.zeros((128, 56, 4), np.uint8)
  coat, legs, hair = (
    (*(int(c) for c in rng.integers(20, 220, 3)), 255) for _ in range(3)
  )
  skin = (*_SKINS[rng.integers(len(_SKINS))], 255)
  stride = int(rng.integers(2, 14))
  for side in (-1, 1):
    cv2.line(sprite, (28, 70), (28 + side * stride, 124), legs, 10)
    hand = (28 + side * int(rng.integers(12, 24)), int(rng.integers(40, 78)))
    cv2.line(sprite, (28 + side * 9, 32), hand, coat, 7)
    cv2.circle(sprite, hand, 4, skin, -1)
  cv2.rectangle(sprite, (17, 27), (39, int(rng.integers(70, 96))), coat, -1)
  for row in range(32, 70, int(rng.integers(6, 30))):
    cv2.line(sprite, (18, row), (38, row), legs, 2)
  cv2.circle(sprite, (28, 14), 10, skin, -1)
  cv2.ellipse(sprite, (28, 10), (11, 9), 0, 180, 360, hair, -1)
  return sprite


def _car(rng: np.random.Generator) -> np.ndarray:
  sprite = np.zeros((80, 200, 4), np.uint8)
  paint = tuple(int(c) for c in rng.integers(30, 230, 3))
  front, rear = rng.integers(24, 70), rng.integers(24, 60)
  body = [[4, 62], [6, 40], [front, 34], [front + 24, 8], [188 - rear, 6],
          [200 - rear // 2, 36], [196, 62]]  # fmt: skip
  cv2.fillPoly(sprite, [np.array(body, np.int32)], (*paint, 255))
  glass = [[front + 10, 34], [front + 28, 13], [182 - rear, 11],
           [188 - rear // 2, 34]]  # fmt: skip
  cv2.fillPoly(sprite, [np.array(glass, np.int32)], (46, 56, 68, 255))
  cv2.line(sprite, (105, 8), (105, 60), (*(c // 2 for c in paint), 255), 3)
  cv2.line(sprite, (5, 48), (195, 48), (*(c // 2 for c in paint), 255), 2)
  for x in (44, 156):
    cv2.circle(sprite, (x, 62), 17, (24, 24, 26, 255), -1)
    cv2.circle(sprite, (x, 62), 8, (150, 152, 156, 255), -1)
  return sprite


def _lamp(rng: np.random.Generator) -> np.ndarray:
  sprite = np.zeros((300, 60, 4), np.uint8)
  iron = (*(int(c) for c in rng.integers(20, 90, 3)), 255)
  glow = (250, 244, 210, 255)
  cv2.line(sprite, (30, 299), (30, 40), iron, 5)
  cv2.rectangle(sprite, (22, 270), (38, 299), iron, -1)
  kind = rng.integers(3)
  if kind == 0:
    cv2.circle(sprite, (30, 28), 15, glow, -1)
  elif kind == 1:
    for x in (12, 48):
      cv2.line(sprite, (30, 60), (x, 36), iron, 4)
      cv2.circle(sprite, (x, 28), 10, glow, -1)
  else:
    lantern = np.array([[18, 14], [42, 14], [36, 44], [24, 44]], np.int32)
    cv2.fillPoly(sprite, [lantern], glow)
    cv2.polylines(sprite, [lantern], True, iron, 3)
    cv2.line(sprite, (14, 12), (46, 12), iron, 4)
  return sprite
