"""Photographs of procedurally made landmarks, with the truth about them.

A landmark is a planar building (`synthetic_buildings`); a view is one
photograph of it by a random camera, in random light, before and behind random
clutter, together with what no real photograph has: the mask of what is really
visible and the homography from the landmark's plane. Everything follows from
(seed, landmark, view): the same arguments give the same bits in any order and
in any process, with one build of NumPy and OpenCV.

Coordinates are (y, x, 1); whole numbers are the centres of pixels. The plane of
a landmark is measured in pixels of `landmark_picture`.
"""

import functools
import threading
from typing import NamedTuple

import cv2
import numpy as np

from delf_jax.data import synthetic_buildings, synthetic_clutter

SIZE = (320, 240)  # longer and shorter side of a photograph, in pixels

_SUPERSAMPLING = 2
_SWAP = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], np.float64)

# The first number after the seed keeps the streams of chance apart.
_LANDMARK, _CAMERA, _SCENE, _LIGHT, _CLUTTER, _POOL = range(6)

# Threads that want the same landmark wait for it and do not draw it too.
_DRAWING = threading.Lock()


class View(NamedTuple):
  """One photograph of a landmark and the truth about it.

  Attributes:
    pixels: [h, w, 3] uint8 RGB.
    mask: [h, w] bool, where the landmark is really seen: inside its outline
      and before every occluder.
    homography: [3, 3] float64, from (y, x, 1) in the landmark's plane to
      (y, x, 1) in the photograph, up to scale; the last entry is 1.
  """

  pixels: np.ndarray
  mask: np.ndarray
  homography: np.ndarray


def landmark_picture(seed: int, landmark: int) -> np.ndarray:
  """Returns a landmark seen from straight ahead, [h, w, 4] uint8 RGBA.

  The array is shared and read-only. It takes about 50 ms when it is not cached.

  Args:
    seed: of the whole collection, 0 or more.
    landmark: which landmark, 0 or more.
  """
  with _DRAWING:
    return _drawn(seed, landmark)[0]


def render_view(
  seed: int,
  landmark: int,
  view: int,
  *,
  size: tuple[int, int] = SIZE,
  clutter: bool = True,
  light: bool = True,
) -> View:
  """Photographs a landmark.

  Camera, scene and light have streams of chance of their own: leaving one out
  changes nothing in the others.

  Args:
    seed: of the whole collection, 0 or more.
    landmark: which landmark, 0 or more.
    view: which photograph of it, 0 or more.
    size: longer and shorter side in pixels; the orientation is chance.
    clutter: whether there are sky, ground, neighbours and occluders; without
      them the landmark stands before plain grey.
    light: whether light, blur and noise change the picture.
  """
  with _DRAWING:
    _, levels = _drawn(seed, landmark)
  height, width, homography, roll = _camera(
    _rng(seed, _CAMERA, landmark, view), levels[0], size
  )
  grown = (height * _SUPERSAMPLING, width * _SUPERSAMPLING)
  to_canvas = _grow(_SUPERSAMPLING) @ homography
  picture, visible = _project(levels, to_canvas, grown)
  if clutter:
    rng = _rng(seed, _SCENE, landmark, view)
    base = _apply(to_canvas, _foot(levels[0]))[:, 0]
    stage = synthetic_clutter.Stage(
      ground=float(np.clip(base.mean(), 0.25 * grown[0], 0.97 * grown[0])),
      slope=float(np.tan(roll)),
    )
    canvas = synthetic_clutter.draw_background(rng, _pool(seed), stage, grown)
    _cover(canvas, picture, visible)
    synthetic_clutter.draw_foreground(rng, _pool(seed), stage, canvas, visible)
  else:
    canvas = np.full((*grown, 3), 128, np.uint8)
    _cover(canvas, picture, visible)
  pixels = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
  share = cv2.resize(visible, (width, height), interpolation=cv2.INTER_AREA)
  if light:
    pixels = _expose(_rng(seed, _LIGHT, landmark, view), pixels)
  return View(pixels, share >= 128, homography / homography[2, 2])


def render_clutter(
  seed: int, index: int, *, size: tuple[int, int] = SIZE
) -> np.ndarray:
  """Returns a photograph with no landmark in it, [h, w, 3] uint8 RGB.

  It is made of what also surrounds landmarks.

  Args:
    seed: of the whole collection, 0 or more.
    index: which photograph, 0 or more.
    size: longer and shorter side in pixels; the orientation is chance.
  """
  rng = _rng(seed, _CLUTTER, index)
  height, width = _orient(rng, size, 0.35)
  grown = (height * _SUPERSAMPLING, width * _SUPERSAMPLING)
  stage = synthetic_clutter.Stage(
    ground=grown[0] * rng.uniform(0.55, 0.92),
    slope=float(np.tan(rng.normal(0, 0.08))),
  )
  canvas = synthetic_clutter.draw_background(
    rng, _pool(seed), stage, grown, crowded=True
  )
  synthetic_clutter.draw_foreground(
    rng, _pool(seed), stage, canvas, np.zeros(grown, np.uint8)
  )
  pixels = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
  return _expose(rng, pixels)


def homography_between(source: View, target: View) -> np.ndarray:
  """Returns [3, 3] float64 from (y, x, 1) of one view to (y, x, 1) of another.

  Args:
    source: a view of a landmark.
    target: another view of the same landmark.
  """
  matrix = target.homography @ np.linalg.inv(source.homography)
  return matrix / matrix[2, 2]


def encode_jpeg(pixels: np.ndarray, *, quality: int = 92) -> bytes:
  """Returns [h, w, 3] uint8 RGB as a JPEG file."""
  bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
  _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
  return data.tobytes()


def encode_mask(mask: np.ndarray) -> bytes:
  """Returns [h, w] bool as a PNG file of 0 and 255."""
  _, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
  return data.tobytes()


def _rng(*key: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _pool(seed: int) -> synthetic_clutter.Pool:
  with _DRAWING:
    return _made_pool(seed)


@functools.lru_cache(maxsize=4)
def _made_pool(seed: int) -> synthetic_clutter.Pool:
  return synthetic_clutter.make_pool(_rng(seed, _POOL))


@functools.lru_cache(maxsize=128)
def _drawn(
  seed: int, landmark: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
  """Returns a landmark's picture, and it premultiplied at 1, 1/2 and 1/4."""
  picture = synthetic_buildings.draw_building(_rng(seed, _LANDMARK, landmark))
  picture.setflags(write=False)
  alpha = picture[:, :, 3]
  colour = cv2.multiply(
    picture[:, :, :3], cv2.merge([alpha] * 3), scale=1 / 255
  )
  levels = [np.dstack([colour, alpha])]
  for _ in range(2):
    height, width = (side // 2 for side in levels[-1].shape[:2])
    # An odd last row or column is cut so that a level is exactly half.
    even = levels[-1][: 2 * height, : 2 * width]
    levels.append(
      cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
    )
  return picture, tuple(levels)


def _orient(rng: np.random.Generator, size, upright: float) -> tuple[int, int]:
  long, short = max(size), min(size)
  return (long, short) if rng.random() < upright else (short, long)


def _apply(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Maps points [n, 2] (y, x)."""
  mapped = np.c_[points, np.ones(len(points))] @ homography.T
  return mapped[:, :2] / mapped[:, 2:]


def _corners(picture: np.ndarray) -> np.ndarray:
  bottom, right = picture.shape[0] - 1, picture.shape[1] - 1
  return np.array([[0, 0], [0, right], [bottom, right], [bottom, 0]], float)


def _foot(picture: np.ndarray) -> np.ndarray:
  return _corners(picture)[2:]


def _grow(factor: float) -> np.ndarray:
  """Returns [3, 3] to a raster `factor` times finer; pixel edges coincide."""
  return np.array(
    [[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1.0]]
  )


def _camera(rng: np.random.Generator, picture: np.ndarray, size):
  """Chooses where the camera stands and what it looks at.

  Returns:
    (height, width, homography [3, 3] from the plane to the photograph, roll in
    radians).
  """
  rows, columns = picture.shape[:2]
  height, width = _orient(rng, size, 0.7 if rows > columns else 0.25)
  filled = picture[:, :, 3].mean() / 255
  frame = np.array([[0, 0], [0, width], [height, width], [height, 0]])
  corners = _corners(picture)
  while True:
    steep = rng.random() < 0.4
    yaw = rng.uniform(-1.2, 1.2) if steep else rng.normal(0, 0.35)
    pitch = rng.uniform(-0.12, 0.45)
    roll = np.clip(rng.normal(0, 0.09), -0.3, 0.3)
    rotation = _rotation(yaw, pitch, roll)
    focal = rng.uniform(0.8, 1.8) * max(height, width)
    close = rng.random() < 0.12  # then part of it is all that is seen
    least, smallest, largest = (0.3, 0.8, 1.6) if close else (0.6, 0.16, 0.72)
    area = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
    area *= height * width
    distance = focal * np.sqrt(rows * columns * filled / area)
    for _ in range(4):
      homography = _look(rotation, focal, distance, rows, columns)
      depths = np.c_[corners, np.ones(4)] @ homography[2]
      if depths.min() < 0.3 * distance:
        break
      seen = _apply(homography, corners)
      distance *= np.sqrt(
        cv2.contourArea(seen.astype(np.float32)) * filled / area
      )
    # The nearest edge of the landmark must stay well before the camera.
    if depths.min() < 0.3 * distance:
      continue
    low, high = seen.min(0), seen.max(0)
    extent = high - low
    free = (height, width) - extent
    slack = rng.uniform(0, 0.2) * extent
    start = rng.uniform(
      np.minimum(free, 0) - slack, np.maximum(free, 0) + slack
    )
    if free[0] > 0:  # a building stands on the ground, it does not hang
      start[0] = free[0] - abs(rng.normal(0, 0.12)) * height
    shift = np.eye(3)
    shift[:2, 2] = start - low
    placed = (seen + shift[:2, 2]).astype(np.float32)
    inside, _ = cv2.intersectConvexConvex(placed, frame.astype(np.float32))
    inside *= filled
    if inside > least * area and 0.14 < inside / (height * width) < 0.8:
      return height, width, shift @ homography, roll


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
  """Returns [3, 3]; axes are y down, x right, z away from the camera."""
  (sy, cy), (sp, cp), (sr, cr) = (
    (np.sin(angle), np.cos(angle)) for angle in (yaw, pitch, roll)
  )
  about_y = np.array([[1, 0, 0], [0, cy, -sy], [0, sy, cy]])
  about_x = np.array([[cp, 0, -sp], [0, 1, 0], [sp, 0, cp]])
  about_z = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
  return about_z @ about_x @ about_y


def _look(rotation, focal, distance, rows, columns) -> np.ndarray:
  """Returns the homography of a pinhole camera before the middle of a plane."""
  centre = np.eye(3)
  centre[:2, 2] = -(rows - 1) / 2, -(columns - 1) / 2
  pose = np.column_stack([rotation[:, 0], rotation[:, 1], [0, 0, distance]])
  return np.diag([focal, focal, 1.0]) @ pose @ centre


def _project(levels, homography: np.ndarray, shape):
  """Warps the level of the landmark whose pixels are nearest in size.

  Returns:
    ([h, w, 3] uint8 premultiplied, [h, w] uint8 alpha).
  """
  seen = _apply(homography, _corners(levels[0])).astype(np.float32)
  scale = np.sqrt(cv2.contourArea(seen) / np.prod(levels[0].shape[:2]))
  level = int(np.clip(np.floor(np.log2(1.2 / scale)), 0, len(levels) - 1))
  matrix = homography @ np.linalg.inv(_grow(0.5**level))
  warped = cv2.warpPerspective(
    levels[level], _SWAP @ matrix @ _SWAP, (shape[1], shape[0])
  )
  return np.ascontiguousarray(warped[:, :, :3]), warped[:, :, 3].copy()


def _cover(canvas: np.ndarray, picture: np.ndarray, alpha: np.ndarray):
  """Lays a premultiplied picture over the canvas, in place."""
  rest = cv2.merge([255 - alpha] * 3)
  cv2.add(cv2.multiply(canvas, rest, scale=1 / 255), picture, dst=canvas)


def _expose(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
  """Lights the scene from a side and takes the photograph with a real camera.

  Directional shading, perhaps the edge of a shadow, white balance, exposure,
  gamma, contrast, blur and noise.
  """
  height, width = pixels.shape[:2]
  y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
  x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
  angle = rng.uniform(0, 2 * np.pi)
  slope = rng.uniform(0, 0.35)
  field = 1 + slope * (np.sin(angle) * y + np.cos(angle) * x)
  if rng.random() < 0.4:
    angle = rng.uniform(0, 2 * np.pi)
    reach = rng.uniform(-0.6, 0.6)
    sharp = rng.uniform(8, 60)
    side = np.sin(angle) * y + np.cos(angle) * x - reach
    shade = 0.5 + 0.5 * np.clip(sharp * side, -1, 1)
    field = field * (1 - rng.uniform(0.2, 0.6) * shade)
  field = field.astype(np.float32)
  lit = cv2.multiply(pixels, cv2.merge([field] * 3), dtype=cv2.CV_8U)
  # The camera chooses its exposure, and not always well.
  mean = max(float(lit.mean()), 20)
  exposure = (110 / mean) ** 0.6
  exposure *= 2 ** (rng.normal(0, 0.3) - 1.2 * (rng.random() < 0.06))
  warmth, tint = rng.normal(0, (0.1, 0.03))
  gains = exposure * np.exp([warmth, tint, -warmth])
  gamma = np.exp(rng.normal(0, 0.15))
  contrast = np.exp(rng.normal(0, 0.15))
  pivot = min(exposure * mean / 255, 0.6) ** gamma
  levels = np.arange(256)[:, None] / 255 * gains[None, :]
  levels = np.clip(levels, 0, 1) ** gamma
  levels = np.clip(pivot + contrast * (levels - pivot), 0, 1) * 255
  table = np.rint(levels).astype(np.uint8)[None, :, :]
  taken = cv2.LUT(lit, table)
  blur = abs(rng.normal(0, 1))
  if rng.random() < 0.12:
    taken = cv2.filter2D(taken, -1, _motion(rng))
  elif blur > 0.35:
    taken = cv2.GaussianBlur(taken, (0, 0), min(blur, 2.2))
  grain = rng.standard_normal(taken.shape, np.float32)
  grain *= np.exp(rng.uniform(0, np.log(14)))
  return cv2.add(taken, grain, dtype=cv2.CV_8U)


def _motion(rng: np.random.Generator) -> np.ndarray:
  """Returns the kernel of a hand that moved 3 to 6 pixels."""
  angle = rng.uniform(0, np.pi)
  reach = rng.uniform(1.5, 3)
  kernel = np.zeros((9, 9), np.uint8)
  ends = [
    (
      round(64 + 16 * s * reach * np.cos(angle)),
      round(64 + 16 * s * reach * np.sin(angle)),
    )
    for s in (-1, 1)
  ]
  cv2.line(kernel, *ends, 255, 1, cv2.LINE_AA, 4)
  return kernel.astype(np.float32) / kernel.sum()
