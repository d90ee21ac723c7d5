"""Pictures of the features of one photograph.

Arrays in, pictures out, as in `delf_jax.pictures.drawing`: [h, w, 3] uint8 RGB.
"""

import numpy as np
from PIL import Image, ImageDraw

from delf_jax.pictures import drawing

# Radius of a circle of the median scale, of the height of the picture. What a
# network looks at is larger: its receptive fields would all overlap.
_MEDIAN_RADIUS = 0.014
_TOP_PERCENTILE = 98
_RADII = (0.25, 5.0)  # the smallest and the largest, in that


def draw_features(
  pixels: np.ndarray,
  locations: np.ndarray,
  scales: np.ndarray,
  scores: np.ndarray,
  *,
  size: tuple[int, int] | None = None,
  most: int = 300,
  name: str = "",
  height: int = 540,
) -> np.ndarray:
  """Draws features as circles: their size the scale, their colour the score.

  The best are drawn, the very best on top; the circles compare the scales of
  one photograph and are smaller than what the features look at. A strip below
  counts them and tells the scores.

  Args:
    pixels: [h, w, 3] uint8 RGB, upright.
    locations: [n, 2] (y, x) in pixels of the original photograph.
    scales: [n], positive.
    scores: [n], more is better.
    size: (height, width) of the original photograph, where `pixels` is a
      reduced copy of it; that of the pixels otherwise.
    most: how many are drawn.
    name: of the photograph.
    height: of the photograph in the picture, in pixels.

  Raises:
    ValueError: for shapes that disagree.
  """
  locations = np.asarray(locations, np.float64)
  scales, scores = np.asarray(scales, float), np.asarray(scores, float)
  n = len(locations)
  if locations.shape != (n, 2) or not scales.shape == scores.shape == (n,):
    raise ValueError(
      f"locations {locations.shape}, scales {scales.shape} and scores "
      f"{scores.shape} must be [n, 2], [n] and [n]"
    )
  best = np.argsort(-scores, kind="stable")[:most][::-1]
  locations, scales, scores = locations[best], scales[best], scores[best]
  margin = max(4, height // 32)
  photo = drawing.fit_photograph(pixels, height)
  # Text needs some room, whatever the photograph.
  width = max(photo.width, round(0.8 * height))
  strip = round(0.15 * height)
  canvas = Image.new(
    "RGB",
    (2 * margin + width, margin + height + strip),
    drawing.BACKGROUND,
  )
  corner = (
    margin + (width - photo.width) // 2,
    margin + (height - photo.height) // 2,
  )
  low, high = _range(scores)
  fractions = np.clip((high - scores) / (high - low), 0, 1)
  _draw_circles(
    photo,
    drawing.place_points(locations, size or pixels.shape[:2], photo.size),
    _radii(scales, height),
    drawing.ramp_colours(fractions),
  )
  canvas.paste(photo, corner)
  _draw_strip(canvas, margin, strip, name, n, len(best), (low, high))
  return np.array(canvas)


def _range(scores: np.ndarray) -> tuple[float, float]:
  """Returns the scores of the last and the first colour, never equal."""
  if not len(scores):
    return 0.0, 1.0
  # A few features far above all others would leave the rest one colour.
  low, high = scores.min(), np.percentile(scores, _TOP_PERCENTILE)
  return float(low), float(high if high > low else low + 1)


def _radii(scales: np.ndarray, height: int) -> np.ndarray:
  """Returns radii in pixels, proportional to the scales but for extremes."""
  if not len(scales):
    return scales
  relative = scales / np.median(scales)
  return _MEDIAN_RADIUS * height * np.clip(relative, *_RADII)


def _draw_circles(
  photo: Image.Image,
  centres: np.ndarray,
  radii: np.ndarray,
  colours: np.ndarray,
) -> None:
  """Draws circles ([n, 2] x, y), the last on top, in place."""
  s = drawing.SUPERSAMPLING
  unit = s * photo.height / 540
  overlay = Image.new("RGBA", (s * photo.width, s * photo.height))
  draw = ImageDraw.Draw(overlay)
  thickness = max(1, round(1.5 * unit))
  for centre, radius, colour in zip(
    s * centres, s * radii, colours, strict=True
  ):
    place = tuple(centre)
    draw.circle(
      place, radius + unit, outline=(*drawing.CASING, 130), width=thickness + s
    )
    draw.circle(place, radius, outline=(*colour, 255), width=thickness)
  overlay = overlay.reduce(s)
  photo.paste(overlay, (0, 0), overlay)


def _draw_strip(
  canvas: Image.Image,
  margin: int,
  height: int,
  name: str,
  count: int,
  shown: int,
  scores: tuple[float, float],
) -> None:
  """Draws what is below the photograph: its name, the count, the colours."""
  draw = ImageDraw.Draw(canvas)
  top = canvas.height - height
  large, small = (drawing.load_font(round(x * height)) for x in (0.25, 0.2))
  rows = top + round(0.36 * height), top + round(0.72 * height)
  right = canvas.width - margin
  name = drawing.shorten(drawing.printable(name), large, right - margin)
  draw.text((margin, rows[0]), name, drawing.TEXT, large, anchor="lm")
  note = f"{count} features" if shown == count else f"best {shown} of {count}"
  draw.text((margin, rows[1]), note, drawing.MUTED, small, anchor="lm")
  if not shown:
    return
  texts = f"score {_number(scores[0])}", _number(scores[1])
  gap = round(0.12 * height)
  ramp = drawing.ramp_colours(np.linspace(1, 0, round(1.5 * height)))
  widths = [round(small.getlength(text)) for text in texts]
  left = right - sum(widths) - len(ramp) - 2 * gap
  if left < margin + small.getlength(note) + 2 * gap:
    return
  draw.text((left, rows[1]), texts[0], drawing.MUTED, small, anchor="lm")
  bar = Image.fromarray(np.tile(ramp, (gap, 1, 1)))
  canvas.paste(bar, (left + widths[0] + gap, rows[1] - gap // 2))
  draw.text((right, rows[1]), texts[1], drawing.MUTED, small, anchor="rm")


def _number(value: float) -> str:
  return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"
