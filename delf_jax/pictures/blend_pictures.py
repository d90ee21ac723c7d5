"""Two photographs of one place laid over each other, standing and moving.

Whether a transform is right is seen best where one photograph turns into the
other: edges go on across the seam, or they do not.
"""

import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from delf_jax.pictures import drawing, match_pictures

# What is shown of the other photograph around the query, of what the query
# covers.
_AROUND = 0.12
# The view is at most so many times as high as it is wide, or the reverse.
_NARROWEST = 2.0
# Less of the other photograph than this, in pixels of the picture, is not worth
# a blend; nor is a query of which so few pixels are seen.
_LEAST = 16.0

_QUALITY = 80
# Of the encoder, 0 to 6: more takes much longer and saves little.
_METHOD = 2


class _Layers(NamedTuple):
  """Both photographs as the picture has them, all [h, w, ...].

  Attributes:
    image: [h, w, 3] uint8, dimmed where the query is not.
    query: [h, w, 3] uint8, warped; the same as `image` where it is not.
    left: where the query begins.
    right: where it ends.
    strip: [h', w, 3] uint8, the names.
  """

  image: np.ndarray
  query: np.ndarray
  left: float
  right: float
  strip: np.ndarray


def draw_blend(
  query_pixels: np.ndarray,
  image_pixels: np.ndarray,
  transform: np.ndarray,
  *,
  seam: float = 0.5,
  **options,
) -> np.ndarray | None:
  """Draws the query, warped, over the left part of another photograph.

  Args:
    query_pixels: see `animate_blend`, as for the rest.
    image_pixels: the same.
    transform: the same.
    seam: where the query gives way to the other photograph, from its left edge
      (0) to its right (1).
    options: query_size, image_size, query_name, image_name, query_note and
      side.

  Returns:
    A picture, or None where the transform leaves nothing to blend.

  Raises:
    ValueError: for a transform that is not [3, 3].
  """
  layers = _layers(query_pixels, image_pixels, transform, **options)
  return None if layers is None else _frame(layers, seam)


def animate_blend(
  query_pixels: np.ndarray,
  image_pixels: np.ndarray,
  transform: np.ndarray,
  *,
  query_size: tuple[int, int] | None = None,
  image_size: tuple[int, int] | None = None,
  query_name: str = "",
  image_name: str = "",
  query_note: str = "query",
  side: int = 640,
  seconds: float = 7.0,
  frames: int = 84,
) -> bytes | None:
  """Lets a seam wander between the query, warped, and another photograph.

  Left of the seam is the query, right of it the other photograph, of which the
  part around the query is shown; what the query does not reach is dimmed. The
  seam rests at both ends and begins again without end.

  Args:
    query_pixels: [h, w, 3] uint8 RGB, upright.
    image_pixels: [h', w', 3] uint8 RGB, upright.
    transform: [3, 3], maps (y, x, 1) of the query to (y, x, 1) of the other, up
      to a factor, both in pixels of the originals.
    query_size: (height, width) of the original query photograph, where
      `query_pixels` is a reduced copy of it; that of the pixels otherwise.
    image_size: the same for the other photograph.
    query_name: what the strip below calls the query.
    image_name: what the strip below calls the other photograph.
    query_note: what it says that the query is.
    side: the longer side of the photographs in the picture, in pixels.
    seconds: of one turn, there and back.
    frames: in one turn.

  Returns:
    An animated WebP file, or None where the transform leaves nothing to blend:
    it is not finite, collapses the query or puts it outside.

  Raises:
    ValueError: for a transform that is not [3, 3].
  """
  layers = _layers(
    query_pixels,
    image_pixels,
    transform,
    query_size=query_size,
    image_size=image_size,
    query_name=query_name,
    image_name=image_name,
    query_note=query_note,
    side=side,
  )
  if layers is None:
    return None
  turn = 2 * np.pi * np.arange(frames) / frames
  # From the middle on, so that the first frame, which is what a printer and a
  # reader without animation get, shows both.
  seams = (1 + np.sin(turn)) / 2
  pictures = [Image.fromarray(_frame(layers, seam)) for seam in seams]
  written = io.BytesIO()
  pictures[0].save(
    written,
    "WEBP",
    save_all=True,
    append_images=pictures[1:],
    duration=round(1000 * seconds / frames),
    loop=0,
    quality=_QUALITY,
    method=_METHOD,
    # Frames are changes of the one before: all but the first are a stripe.
    kmin=0,
    kmax=0,
  )
  return written.getvalue()


def _layers(
  query_pixels: np.ndarray,
  image_pixels: np.ndarray,
  transform: np.ndarray,
  *,
  query_size: tuple[int, int] | None = None,
  image_size: tuple[int, int] | None = None,
  query_name: str = "",
  image_name: str = "",
  query_note: str = "query",
  side: int = 640,
) -> _Layers | None:
  """Warps the query and cuts the part of the other photograph around it."""
  if np.shape(transform) != (3, 3):
    raise ValueError(f"transform {np.shape(transform)} must be [3, 3]")
  query_size = query_size or query_pixels.shape[:2]
  image_size = image_size or image_pixels.shape[:2]
  view = _view(query_size, transform, image_size)
  if view is None:
    return None
  left, top, right, bottom = view
  scale = side / max(right - left, bottom - top)
  size = (
    max(1, round(scale * (right - left))),
    max(1, round(scale * (bottom - top))),
  )
  shown = np.asarray(
    [
      (size[0] / (right - left), 0, -left * size[0] / (right - left)),
      (0, size[1] / (bottom - top), -top * size[1] / (bottom - top)),
      (0, 0, 1),
    ]
  ) @ drawing.placement(image_size, image_size[::-1])
  outline = match_pictures.outline_frame(query_size, transform, shown, size)
  if outline is None or _area(outline) < _LEAST:
    return None
  reduced = np.divide(image_pixels.shape[1::-1], image_size[::-1])
  image = Image.fromarray(image_pixels).resize(
    size,
    Image.Resampling.BICUBIC,
    box=tuple(np.multiply(view, np.tile(reduced, 2))),
    reducing_gap=3.0,
  )
  warped = _warp(query_pixels, query_size, shown @ transform, outline, size)
  if warped is None:
    return None
  covered = _covered(outline, size)
  unit = max(size) / 640
  dimmed = image.copy()
  match_pictures.draw_outline(dimmed, outline, (0, 0), size, unit=unit)
  query = Image.composite(warped, image, covered)
  match_pictures.draw_outline(query, outline, (0, 0), size, unit=unit)
  return _Layers(
    image=np.asarray(dimmed),
    query=np.asarray(query),
    left=max(0.0, outline[:, 0].min()),
    right=min(float(size[0]), outline[:, 0].max()),
    strip=_strip(size[0], query_name, image_name, query_note),
  )


def _view(
  query_size: tuple[int, int],
  transform: np.ndarray,
  image_size: tuple[int, int],
) -> tuple[float, float, float, float] | None:
  """Returns (left, top, right, bottom) of the part that is shown.

  In pixels of the original photograph, counted from its corner.
  """
  size = image_size[::-1]
  outline = match_pictures.outline_frame(
    query_size, transform, drawing.placement(image_size, size), size, beyond=0.0
  )
  if outline is None or len(outline) < 3:
    return None
  low, high = outline.min(axis=0), outline.max(axis=0)
  if np.any(high - low < 1e-3 * max(size)):
    return None
  extent = high - low
  wanted = np.maximum(extent, extent.max() / _NARROWEST)
  around = (wanted - extent) / 2 + _AROUND * extent.max()
  low, high = np.maximum(low - around, 0), np.minimum(high + around, size)
  return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _warp(
  pixels: np.ndarray,
  original: tuple[int, int],
  transform: np.ndarray,
  outline: np.ndarray,
  size: tuple[int, int],
) -> Image.Image | None:
  """Warps a photograph into a picture of `size` (width, height).

  Args:
    pixels: [h, w, 3] uint8.
    original: (height, width) of the photograph they are of.
    transform: [3, 3], maps (y, x, 1) of the original to (x, y, 1) of the
      picture.
    outline: [n, 2] (x, y) of the photograph's frame in the picture.
    size: of the picture.

  Returns:
    the warped photograph, black around it; None if it collapses.
  """
  # From corners of the photograph's pixels, (x, y, 1), as Pillow has them.
  forward = transform @ np.linalg.inv(
    drawing.placement(original, pixels.shape[1::-1])
  )
  if not np.linalg.cond(forward) < 1e12:
    return None
  back = np.linalg.inv(forward)
  seen = _pixels_seen(back, outline)
  if seen < _LEAST:
    return None
  # A warp takes single pixels: of a query that shrinks, pixels are averaged
  # first.
  factor = max(1, math.floor(math.sqrt(seen / _area(outline))))
  photograph = Image.fromarray(pixels)
  if factor > 1:
    reduced = photograph.reduce(factor)
    back = np.diag([1 / factor, 1 / factor, 1]) @ back
    photograph = reduced
  return photograph.transform(
    size,
    Image.Transform.PERSPECTIVE,
    tuple((back / back[2, 2]).ravel()[:8]),
    Image.Resampling.BICUBIC,
  )


def _pixels_seen(back: np.ndarray, outline: np.ndarray) -> float:
  """Returns the area of the part of the query that is seen, in its pixels."""
  corners = np.column_stack([outline, np.ones(len(outline))]) @ back.T
  return _area(corners[:, :2] / corners[:, 2:])


def _area(polygon: np.ndarray) -> float:
  """Returns the area of a polygon, [n, 2] (x, y)."""
  if len(polygon) < 3:
    return 0.0
  x, y = (polygon - polygon[0]).T
  return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _covered(outline: np.ndarray, size: tuple[int, int]) -> Image.Image:
  """Returns how much of every pixel lies in a polygon, as grey."""
  s = drawing.SUPERSAMPLING
  mask = Image.new("L", (s * size[0], s * size[1]))
  ImageDraw.Draw(mask).polygon(
    [tuple(point) for point in s * outline], fill=255
  )
  return mask.reduce(s)


def _frame(layers: _Layers, seam: float) -> np.ndarray:
  """Puts the layers together, with the seam at a share of the query."""
  height, width = layers.image.shape[:2]
  at = layers.left + seam * (layers.right - layers.left)
  centres = np.arange(width) + 0.5
  mixed = np.where(
    centres[None, :, None] < at, layers.query, layers.image
  ).astype(np.float64)
  apart = abs(centres - at)
  half = max(1.0, max(width, height) / 640)
  for colour, reach, strength in (
    (drawing.CASING, 2.5 * half, 0.5),
    ((255, 255, 255), half, 0.95),
  ):
    share = strength * np.clip(reach + 0.5 - apart, 0, 1)[None, :, None]
    mixed = share * np.asarray(colour) + (1 - share) * mixed
  return np.concatenate([mixed.round().astype(np.uint8), layers.strip])


def _strip(
  width: int, query_name: str, image_name: str, query_note: str
) -> np.ndarray:
  """Names both photographs, each on its side of the seam."""
  height = max(32, width // 9)
  strip = Image.new("RGB", (width, height), drawing.BACKGROUND)
  draw = ImageDraw.Draw(strip)
  large, small = (drawing.load_font(round(x * height)) for x in (0.26, 0.22))
  margin = height // 5
  room = width / 2 - 1.5 * margin
  for name, note, x, anchor in (
    (query_name, f"left: {query_note}", margin, "l"),
    (image_name, "right: match", width - margin, "r"),
  ):
    name = drawing.shorten(drawing.printable(name), large, room)
    note = drawing.shorten(note, small, room)
    draw.text((x, 0.32 * height), name, drawing.TEXT, large, f"{anchor}m")
    draw.text((x, 0.7 * height), note, drawing.MUTED, small, f"{anchor}m")
  return np.asarray(strip)
