"""What all pictures and plots share: arrays in, pictures out.

A picture is [h, w, 3] uint8 RGB; `delf_jax.html_report` writes it to a file.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFont

BACKGROUND = (22, 24, 29)
TEXT = (236, 238, 241)
MUTED = (154, 160, 170)
CASING = (8, 10, 14)  # around lines, so that they show on any ground
# Lines are drawn so much larger and averaged down, which makes them smooth.
SUPERSAMPLING = 3

# From the smallest residual to the largest. Lightness falls all the way, so the
# order survives colour blindness and a grey print; and cyan and magenta are
# rare in photographs of places, where yellow and brown would drown.
_RAMP = np.asarray(
  [(80, 250, 255), (90, 180, 255), (150, 110, 255), (225, 30, 190)], np.float64
)

# The widest that a photograph is drawn, in heights; a panorama is shown lower.
_WIDEST = 2.0

# Of the palette that Okabe and Ito made for colour-blind readers, what shows on
# white; the line styles tell further curves apart.
_CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
_CURVE_STYLES = ("-", "--", ":", "-.")


def draw_photograph(pixels: np.ndarray, *, height: int = 540) -> np.ndarray:
  """Resizes a photograph ([h, w, 3] uint8) as pictures of matches show it."""
  return np.array(fit_photograph(pixels, height))


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


def fit_photograph(pixels: np.ndarray, height: int) -> Image.Image:
  """Returns the photograph at this height, or lower if it would be too wide."""
  h, w = pixels.shape[:2]
  scale = min(height / h, _WIDEST * height / w)
  size = max(1, round(scale * w)), max(1, round(scale * h))
  return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def placement(original: tuple[int, int], drawn: tuple[int, int]) -> np.ndarray:
  """Returns where a drawing has the pixels of a photograph.

  Whole coordinates are centres of pixels in the original, and corners of pixels
  in the drawing.

  Args:
    original: (height, width) of the photograph.
    drawn: (width, height) of the drawing.

  Returns:
    [3, 3] float64, maps (y, x, 1) of the photograph to (x, y, 1) of the
    drawing.
  """
  across, down = np.divide(drawn, original[::-1])
  return np.asarray(
    [(0, across, across / 2), (down, 0, down / 2), (0, 0, 1)], np.float64
  )


def place_points(
  points: np.ndarray, original: tuple[int, int], drawn: tuple[int, int]
) -> np.ndarray:
  """Maps [n, 2] (y, x) to [n, 2] (x, y) of a drawing; see `placement`."""
  matrix = placement(original, drawn)
  return points @ matrix[:2, :2].T + matrix[:2, 2]


def ramp_colours(fractions: np.ndarray, ramp: np.ndarray = _RAMP) -> np.ndarray:
  """Returns [..., 3] uint8 colours of a ramp, for fractions [...] in [0, 1].

  Args:
    fractions: any shape.
    ramp: [k, 3] colours at even distances, joined by straight lines.
  """
  knots = np.linspace(0, 1, len(ramp))
  channels = [np.interp(fractions, knots, channel) for channel in ramp.T]
  return np.stack(channels, axis=-1).round().astype(np.uint8)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
  """Takes characters out of the middle until the text is no wider."""
  shortened, kept = text, len(text)
  while kept and font.getlength(shortened) > width:
    kept -= 1
    shortened = text[: kept // 2] + "…" + text[len(text) - (kept + 1) // 2 :]
  return shortened


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
