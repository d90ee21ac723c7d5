"""Pictures of matches and plots of curves: arrays in, pictures out.

A picture is [h, w, 3] uint8 RGB; `delf_jax.html_report` writes it to a file.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from delf_jax.evaluation.metrics import PrecisionRecall, recall_at_precision

BACKGROUND = (22, 24, 29)
TEXT = (236, 238, 241)
MUTED = (154, 160, 170)
_CASING = (8, 10, 14)

# From the smallest residual to the largest. Lightness falls all the way, so the
# order survives colour blindness and a grey print; and cyan and magenta are
# rare in photographs of places, where yellow and brown would drown.
_RAMP = np.asarray(
  [(80, 250, 255), (90, 180, 255), (150, 110, 255), (225, 30, 190)], np.float64
)

# Lines are drawn so much larger and averaged down, which makes them smooth.
_SUPERSAMPLING = 3
# The widest that a photograph is drawn, in heights; a panorama is shown lower.
_WIDEST = 2.0

# Of the palette that Okabe and Ito made for colour-blind readers, what shows on
# white; the line styles tell further curves apart.
_CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
_CURVE_STYLES = ("-", "--", ":", "-.")


def draw_matches(
  query_pixels: np.ndarray,
  image_pixels: np.ndarray,
  query_locations: np.ndarray,
  image_locations: np.ndarray,
  *,
  query_size: tuple[int, int] | None = None,
  image_size: tuple[int, int] | None = None,
  residuals: np.ndarray | None = None,
  max_residual: float | None = None,
  transform: np.ndarray | None = None,
  query_name: str = "",
  image_name: str = "",
  height: int = 540,
) -> np.ndarray:
  """Draws two photographs side by side and their inliers between them.

  A line joins the two ends of each inlier, coloured by its residual, the best
  on top. The frame of the query, mapped by the transform, is outlined in the
  other photograph, and what is outside of it dimmed. A strip below names both
  and counts the lines.

  Args:
    query_pixels: [h, w, 3] uint8 RGB, upright.
    image_pixels: [h', w', 3] uint8 RGB, upright.
    query_locations: [n, 2] (y, x) in pixels of the original query photograph.
    image_locations: [n, 2] (y, x), the same in the other photograph.
    query_size: (height, width) of the original query photograph, where
      `query_pixels` is a reduced copy of it; that of the pixels otherwise.
    image_size: the same for the other photograph.
    residuals: [n] in pixels of the other photograph; one colour without them.
    max_residual: the residual at the far end of the colours, such as the
      threshold of RANSAC; the largest of `residuals` otherwise.
    transform: [2, 3], maps (y, x, 1) of the query to (y, x) of the other.
    query_name: what the strip calls the query.
    image_name: what the strip calls the other photograph.
    height: of both photographs in the picture, in pixels.

  Returns:
    A picture a little higher than `height`, as wide as the photographs need.

  Raises:
    ValueError: for shapes that disagree, or a `max_residual` that is not
      positive.
  """
  query_locations = np.asarray(query_locations, np.float64)
  image_locations = np.asarray(image_locations, np.float64)
  n = len(query_locations)
  if query_locations.shape != (n, 2) or image_locations.shape != (n, 2):
    raise ValueError(
      f"locations {query_locations.shape} and {image_locations.shape} must both"
      " be [n, 2]"
    )
  if residuals is not None and np.shape(residuals) != (n,):
    raise ValueError(f"residuals {np.shape(residuals)} must be [{n}]")
  if transform is not None and np.shape(transform) != (2, 3):
    raise ValueError(f"transform {np.shape(transform)} must be [2, 3]")
  if max_residual is not None and not max_residual > 0:
    raise ValueError(f"max_residual must be positive, not {max_residual}")
  query_size = query_size or query_pixels.shape[:2]
  image_size = image_size or image_pixels.shape[:2]
  colours = np.tile(_RAMP[:1].astype(np.uint8), (n, 1))
  if residuals is not None:
    worst_first = np.argsort(-np.asarray(residuals), kind="stable")
    residuals = np.asarray(residuals, np.float64)[worst_first]
    query_locations = query_locations[worst_first]
    image_locations = image_locations[worst_first]
    if max_residual is None:
      max_residual = float(np.max(residuals, initial=1.0))
    colours = ramp_colours(residuals / max_residual)

  margin = max(4, height // 32)
  photos = _fit(query_pixels, height), _fit(image_pixels, height)
  corners = (
    (margin, margin + (height - photos[0].height) // 2),
    (
      2 * margin + photos[0].width,
      margin + (height - photos[1].height) // 2,
    ),
  )
  strip_top = margin + height
  strip_height = round(0.15 * height)
  canvas = Image.new(
    "RGB",
    (3 * margin + photos[0].width + photos[1].width, strip_top + strip_height),
    BACKGROUND,
  )
  for photo, corner in zip(photos, corners, strict=True):
    canvas.paste(photo, corner)
  if transform is not None:
    frame = _frame(query_size, transform)
    if np.isfinite(frame).all():
      outline = _place(frame, image_size, photos[1].size)
      _draw_outline(canvas, outline, corners[1], photos[1].size)
  _draw_lines(
    canvas,
    _place(query_locations, query_size, photos[0].size) + corners[0],
    _place(image_locations, image_size, photos[1].size) + corners[1],
    colours,
  )
  _draw_strip(
    canvas,
    top=strip_top,
    columns=tuple(corner[0] for corner in corners),
    margin=margin,
    names=(query_name, image_name),
    inliers=n,
    max_residual=None if residuals is None else max_residual,
  )
  return np.array(canvas)


def draw_photograph(pixels: np.ndarray, *, height: int = 540) -> np.ndarray:
  """Resizes a photograph ([h, w, 3] uint8) as `draw_matches` does, unframed."""
  return np.array(_fit(pixels, height))


def plot_precision_recall(
  curves: Mapping[str, PrecisionRecall], *, title: str = "", width: int = 1400
) -> np.ndarray:
  """Plots precision against recall, with R@90 and R@95 marked and told.

  Args:
    curves: name -> curve, as `evaluate` returns it under "curve".
    title: one line above the plot.
    width: of the picture, in pixels; its height follows.

  Returns:
    A picture on a white ground.
  """
  from matplotlib.ticker import PercentFormatter

  def draw(figure):
    axes = figure.add_subplot()
    for precision in (90, 95):
      axes.axhline(
        precision, color="#8a909a", linewidth=0.8, linestyle=(0, (4, 3))
      )
      axes.annotate(
        f"{precision} %",
        (1, precision),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        verticalalignment="center",
        color="#5f6672",
        fontsize=8,
      )
    for number, (name, curve) in enumerate(curves.items()):
      _plot_curve(axes, number, name, curve)
    axes.set(xlim=(0, 100), ylim=(0, 103))
    axes.set_xlabel("Recall of the easy and hard positives")
    axes.set_ylabel("Precision over all queries together")
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_formatter(PercentFormatter(symbol=" %"))
    dress_axes(axes)
    if title:
      axes.set_title(printable(title), loc="left", fontweight="bold", pad=10)
    if curves:
      figure.legend(loc="outside lower left", frameon=False, handlelength=2.4)

  inches = 7.0
  height = 0.64 * inches + 0.22 * len(curves)
  return render_figure(draw, inches=(inches, height), width=width)


def render_figure(
  draw: Callable[[Any], None], *, inches: tuple[float, float], width: int
) -> np.ndarray:
  """Makes a picture, on a white ground, of a matplotlib figure.

  Args:
    draw: fills the `matplotlib.figure.Figure` that it is given.
    inches: width and height, in which points are 1/72.
    width: of the picture, in pixels.
  """
  # Figures are made without pyplot: it keeps them in a global list, and opens
  # windows where there is a display.
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  settings = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,
    "text.usetex": False,
  }
  with matplotlib.rc_context(settings):
    figure = Figure(
      figsize=inches,
      dpi=width / inches[0],
      layout="constrained",
      facecolor="white",
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    canvas = FigureCanvasAgg(figure)
    draw(figure)
    canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def dress_axes(axes: Any) -> None:
  """Gives matplotlib axes the plots' one look: a light grid, no box."""
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_tick_params(color="#c4c8ce", labelcolor="#3c424c")
  axes.grid(color="#e8eaed", linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color("#c4c8ce")


def curve_style(number: int) -> tuple[str, str]:
  """Returns the colour and the line style of a plot's curve, from 0 on."""
  return (
    _CURVE_COLOURS[number % len(_CURVE_COLOURS)],
    _CURVE_STYLES[number // len(_CURVE_COLOURS) % len(_CURVE_STYLES)],
  )


def visible(text: str) -> str:
  r"""Returns one line in which nothing hides: \n, \x1b, \udcff are spelled out.

  File names may hold any character but "/" and NUL: line ends, marks that turn
  the direction of writing, bytes that are no text at all.
  """
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
    for c in text
  )


def printable(text: str) -> str:
  """Returns `visible(text)` with a mark for what the pictures' font lacks."""
  known = _characters()
  return "".join(
    c if ord(c) in known else "\N{REPLACEMENT CHARACTER}" for c in visible(text)
  )


def _fit(pixels: np.ndarray, height: int) -> Image.Image:
  """Returns the photograph at this height, or lower if it would be too wide."""
  h, w = pixels.shape[:2]
  scale = min(height / h, _WIDEST * height / w)
  size = max(1, round(scale * w)), max(1, round(scale * h))
  return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def _place(
  points: np.ndarray, original: tuple[int, int], drawn: tuple[int, int]
) -> np.ndarray:
  """Maps (y, x) of an original to (x, y) in a drawing of (width, height).

  Whole coordinates are centres of pixels in the original, and corners of pixels
  in the drawing.
  """
  scale = np.divide(drawn, original[::-1])
  return (points[:, ::-1] + 0.5) * scale


def _frame(size: tuple[int, int], transform: np.ndarray) -> np.ndarray:
  """Returns the [4, 2] (y, x) corners of a photograph, transformed."""
  bottom, right = size[0] - 0.5, size[1] - 0.5
  corners = np.asarray(
    [(-0.5, -0.5, 1), (-0.5, right, 1), (bottom, right, 1), (bottom, -0.5, 1)]
  )
  with np.errstate(over="ignore", invalid="ignore"):
    return corners @ np.asarray(transform, np.float64).T


def _clip(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Clips a convex polygon ([n, 2] x, y) to a little more than a photograph.

  A transform may throw a corner further than a picture can hold. The edges that
  clipping adds lie outside the photograph, where they are not seen.
  """
  beyond = 9.0
  for axis, sign, limit in (
    (0, 1, -beyond),
    (1, 1, -beyond),
    (0, -1, size[0] + beyond),
    (1, -1, size[1] + beyond),
  ):
    kept = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
      starts_in = sign * (start[axis] - limit) >= 0
      if starts_in:
        kept.append(start)
      if starts_in != (sign * (end[axis] - limit) >= 0):
        crossing = start + (end - start) * (
          (limit - start[axis]) / (end[axis] - start[axis])
        )
        crossing[axis] = limit
        kept.append(crossing)
    polygon = np.reshape(kept, (-1, 2))
  return polygon


def _draw_outline(
  canvas: Image.Image,
  outline: np.ndarray,
  corner: tuple[int, int],
  size: tuple[int, int],
) -> None:
  """Outlines a polygon ([4, 2] x, y) in a photograph and dims the rest of it.

  The photograph is that of `size` (width, height) at `corner` (x, y) of the
  canvas, which is changed in place.
  """
  s = _SUPERSAMPLING
  overlay = Image.new("RGBA", (s * size[0], s * size[1]), (*_CASING, 85))
  outline = s * _clip(outline, size)
  if len(outline) > 1:
    draw = ImageDraw.Draw(overlay)
    draw.polygon([tuple(point) for point in outline], fill=(*_CASING, 0))
    # Closed past its first corner, so that this one is rounded as well.
    path = [tuple(point) for point in outline[[*range(len(outline)), 0, 1]]]
    unit = s * canvas.height / 640
    for colour, width in (
      ((*_CASING, 150), 4.5 * unit),
      ((255, 255, 255, 255), 2 * unit),
    ):
      draw.line(path, fill=colour, width=round(width), joint="curve")
  overlay = overlay.reduce(s)
  canvas.paste(overlay, corner, overlay)


def ramp_colours(fractions: np.ndarray, ramp: np.ndarray = _RAMP) -> np.ndarray:
  """Returns [..., 3] uint8 colours of a ramp, for fractions [...] in [0, 1].

  Args:
    fractions: any shape.
    ramp: [k, 3] colours at even distances, joined by straight lines.
  """
  knots = np.linspace(0, 1, len(ramp))
  channels = [np.interp(fractions, knots, channel) for channel in ramp.T]
  return np.stack(channels, axis=-1).round().astype(np.uint8)


def _draw_lines(
  canvas: Image.Image,
  starts: np.ndarray,
  ends: np.ndarray,
  colours: np.ndarray,
) -> None:
  """Draws lines ([n, 2] x, y to [n, 2] x, y), the last on top, in place."""
  n = len(starts)
  s = _SUPERSAMPLING
  # Few lines may be bold; many must leave the photographs to be seen.
  crowd = min(1.0, (40 / max(n, 1)) ** 0.5)
  unit = s * canvas.height / 640
  alpha = round(255 * max(0.2, 0.85 * crowd))
  thickness = max(1, round(unit * (0.8 + 0.7 * crowd)))
  radius = unit * (1.7 + 2.0 * crowd)
  lines = Image.new("RGBA", (s * canvas.width, s * canvas.height))
  draw = ImageDraw.Draw(lines)
  segments = [
    (*start, *end) for start, end in zip(s * starts, s * ends, strict=True)
  ]
  if crowd > 0.5:
    for segment in segments:
      draw.line(segment, fill=(*_CASING, 110), width=thickness + round(unit))
  for segment, colour in zip(segments, colours, strict=True):
    draw.line(segment, fill=(*colour, alpha), width=thickness)
  for segment, colour in zip(segments, colours, strict=True):
    for point in (segment[:2], segment[2:]):
      draw.circle(point, radius + unit, fill=(*_CASING, 220))
      draw.circle(point, radius, fill=(*colour, 255))
  lines = lines.reduce(s)
  canvas.paste(lines, (0, 0), lines)


def _draw_strip(
  canvas: Image.Image,
  *,
  top: int,
  columns: tuple[int, int],
  margin: int,
  names: tuple[str, str],
  inliers: int,
  max_residual: float | None,
) -> None:
  """Draws what is below the photographs: names, inliers, the colours."""
  draw = ImageDraw.Draw(canvas)
  height = canvas.height - top
  large, small = load_font(round(0.25 * height)), load_font(round(0.2 * height))
  rows = top + round(0.36 * height), top + round(0.72 * height)
  counted = "1 line" if inliers == 1 else f"{inliers} lines"
  rights = columns[1] - margin, canvas.width - margin
  for column, right, name, note in zip(
    columns, rights, names, ("query", counted), strict=True
  ):
    name = shorten(printable(name), large, right - column)
    draw.text((column, rows[0]), name, TEXT, large, anchor="lm")
    draw.text((column, rows[1]), note, MUTED, small, anchor="lm")
  if max_residual is None:
    return
  right = canvas.width - margin
  texts = "residual  0", f"{max_residual:.3g} px"
  widths = [round(small.getlength(text)) for text in texts]
  gap = round(0.12 * height)
  bar = Image.fromarray(
    np.tile(ramp_colours(np.linspace(0, 1, 2 * height)), (gap, 1, 1))
  )
  left = right - sum(widths) - bar.width - 2 * gap
  if left < columns[1] + small.getlength(counted) + 2 * gap:
    return
  draw.text((left, rows[1]), texts[0], MUTED, small, anchor="lm")
  left += widths[0] + gap
  canvas.paste(bar, (left, rows[1] - gap // 2))
  draw.text((right, rows[1]), texts[1], MUTED, small, anchor="rm")


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
  """Takes characters out of the middle until the text is no wider."""
  shortened, kept = text, len(text)
  while kept and font.getlength(shortened) > width:
    kept -= 1
    shortened = text[: kept // 2] + "…" + text[len(text) - (kept + 1) // 2 :]
  return shortened


def _plot_curve(axes, number: int, name: str, curve: PrecisionRecall) -> None:
  """Draws one curve and its marks on matplotlib axes."""
  at_90, at_95 = (100 * recall_at_precision(curve, p) for p in (0.90, 0.95))
  colour, style = curve_style(number)
  recall, precision = 100 * curve.recall, 100 * curve.precision
  axes.plot(
    recall,
    precision,
    color=colour,
    linestyle=style,
    linewidth=1.8,
    solid_joinstyle="round",
    # A leading space, since an underscore there would hide the entry.
    label=f" {printable(name)}   ● R@90 {at_90:.1f} %   ○ R@95 {at_95:.1f} %",
  )
  for wanted, reached in ((90, at_90), (95, at_95)):
    if reached:
      axes.plot(
        reached,
        np.max(precision[recall == reached]),
        marker="o",
        markersize=7,
        markerfacecolor=colour if wanted == 90 else "white",
        markeredgecolor="white" if wanted == 90 else colour,
        markeredgewidth=1.5,
        linestyle="none",
        clip_on=False,
        zorder=4,
      )


@functools.cache
def _font_file() -> str:
  """Returns the path of the one font that is always there: matplotlib's."""
  import matplotlib

  return os.path.join(
    matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"
  )


@functools.cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
  """Returns the font of all pictures, `size` pixels high and at least 8."""
  return ImageFont.truetype(_font_file(), max(8, size))


@functools.cache
def _characters() -> frozenset[int]:
  """Returns the code points that the font can draw."""
  from matplotlib.ft2font import FT2Font

  return frozenset(FT2Font(_font_file()).get_charmap())
