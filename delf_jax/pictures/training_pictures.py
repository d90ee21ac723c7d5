"""Pictures of a training run: curves over its steps, maps of the scores.

Arrays in, pictures out, as in `delf_jax.pictures.drawing`: [h, w, 3] uint8 RGB.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from delf_jax.pictures import drawing

# From the lowest score to the highest: matplotlib's "inferno", even to the eye
# and to the colour-blind. Low scores darken the photograph, high ones light up.
_SCORE_RAMP = np.asarray(
  [
    (0, 0, 4),
    (33, 12, 74),
    (87, 16, 110),
    (138, 34, 106),
    (188, 55, 84),
    (228, 90, 49),
    (249, 142, 9),
    (249, 203, 53),
    (252, 255, 164),
  ],
  np.float64,
)
_COLOUR_SHARE = 0.62  # of an overlay; the rest is the photograph, in grey
# A few positions of a map are far above all others, and would leave the rest
# dark.
TOP_PERCENTILE = 98

_MOST_MARKS = 40  # more points than these are a line without marks
_LONGEST_NAME = 48
_WIDEST_MEAN = 300  # wider is slow, and no smoother to the eye


@dataclasses.dataclass(frozen=True)
class Curve:
  """One curve of a plot.

  Attributes:
    name: in the legend; empty to be left out of it.
    steps: [n] where it has values.
    values: [n]; what is not finite leaves a gap.
    colour: number, see `drawing.curve_style`.
    noisy: whether the values are drawn thin, and thick their running mean.
    marked: whether each value has a mark, unless they are many.
  """

  name: str
  steps: Sequence[int]
  values: Sequence[float]
  colour: int = 0
  noisy: bool = False
  marked: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
  """One plot of several.

  Attributes:
    title: what the values are.
    curves: over the same steps.
    percent: whether the values are percentages.
  """

  title: str
  curves: Sequence[Curve]
  percent: bool = False


def running_mean(values: Sequence[float]) -> np.ndarray:
  """Smooths a noisy curve.

  Args:
    values: [n]; what is not finite counts for nothing.

  Returns:
    [n] means weighted by a Gaussian, whose standard deviation is a sixtieth of
    all values and at most `_WIDEST_MEAN`; few are left as they are. Gaps stay
    gaps.
  """
  values = np.asarray(values, np.float64)
  known = np.isfinite(values)
  sigma = min(len(values) / 60, _WIDEST_MEAN)
  if sigma < 0.5:
    return np.where(known, values, np.nan)
  reach = min(len(values) - 1, round(3 * sigma))
  weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
  # Of "full", the middle: "same" is as long as the longer of the two.
  inside = slice(reach, reach + len(values))
  sums = np.convolve(np.where(known, values, 0.0), weights)[inside]
  totals = np.convolve(known.astype(np.float64), weights)[inside]
  return np.divide(sums, totals, out=np.full_like(values, np.nan), where=known)


def plot_curves(
  panels: Sequence[Panel],
  *,
  columns: int = 2,
  shared_legend: bool = False,
  width: int = 1400,
) -> np.ndarray:
  """Plots panels in rows, all over the same range of steps.

  Args:
    panels: at least one, each of at least one curve.
    columns: panels a row; fewer panels make a picture less wide.
    shared_legend: whether the curves of all panels are the same and named once,
      below them; otherwise each panel names its own.
    width: of a picture of full rows, in pixels.
  """
  used = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  curves = [curve for panel in panels for curve in panel.curves]
  last = max(max(curve.steps, default=0) for curve in curves)

  def draw(figure):
    grid = list(figure.subplots(rows, used, squeeze=False).flat)
    for number, axes in enumerate(grid):
      if number >= len(panels):
        axes.set_axis_off()
        continue
      _draw_panel(axes, panels[number])
      axes.locator_params(axis="x", nbins=14 // columns, integer=True)
      axes.set_xlim(0, 1.01 * max(last, 1))
      if number + used >= len(panels):
        axes.set_xlabel("Step")
      if not shared_legend:
        _name_curves(axes)
    if shared_legend:
      named = {}
      for axes in grid:
        handles, names = axes.get_legend_handles_labels()
        named = dict(zip(names, handles, strict=True)) | named
      figure.legend(
        named.values(),
        named,
        loc="outside lower left",
        ncols=2 if len(named) > 5 else 1,
        handlelength=3.2,
        frameon=False,
      )

  inches = 10.0 / columns
  height = rows * (0.5 * inches + 0.75)
  if shared_legend:
    height += 0.22 * len({curve.name for curve in curves}) + 0.2
  return drawing.render_figure(
    draw,
    inches=(used * inches, height),
    width=round(width * used / columns),
  )


def plot_final(
  runs: Mapping[str, int],
  figures: Mapping[str, tuple[Sequence[float], bool]],
  *,
  width: int = 1400,
) -> np.ndarray:
  """Plots one dot a run and figure, runs below each other.

  Args:
    runs: name -> number of its colour, [n] of them.
    figures: title -> [n] values, nan where a run has none, and whether they are
      percentages; at least one.
    width: of the picture, in pixels.
  """
  columns = min(4, len(figures))
  rows = -(-len(figures) // columns)

  def draw(figure):
    grid = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes in grid[len(figures) :]:
      axes.set_axis_off()
    for axes, (title, (values, percent)) in zip(
      grid, figures.items(), strict=False
    ):
      for row, (number, value) in enumerate(
        zip(runs.values(), values, strict=True)
      ):
        if np.isfinite(value):
          colour, _ = drawing.curve_style(number)
          axes.plot(
            [value],
            [row],
            marker="o",
            markersize=8,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=1.2,
            clip_on=False,
            zorder=3,
          )
      _dress(axes, title, axes.xaxis, percent)
      axes.margins(x=0.12)
      axes.locator_params(axis="x", nbins=4)
      axes.set_yticks(range(len(runs)), [_name(name) for name in runs])
      axes.tick_params(axis="y", length=0)
      axes.spines["left"].set_visible(False)
    grid[0].set_ylim(len(runs) - 0.4, -0.6)

  return drawing.render_figure(
    draw, inches=(10.0, rows * (0.9 + 0.3 * len(runs))), width=width
  )


def draw_scores(
  pixels: np.ndarray,
  l2_norm: np.ndarray,
  attention: np.ndarray,
  *,
  stride: int,
  mask: np.ndarray | None = None,
  name: str = "",
  width: int = 1400,
) -> np.ndarray:
  """Draws a photograph and, over it, its scores (Figure 3 of the paper).

  Side by side: the photograph, the L2 norm of its features, the attention they
  get and, if it is known, where the landmark is. Each map has its own colours,
  from its smallest value to its `TOP_PERCENTILE`, which are written below.

  Args:
    pixels: [h, w, 3] uint8 RGB.
    l2_norm: [h', w'], at least one feature.
    attention: [h', w'].
    stride: feature (i, j) looks at pixel (stride * i, stride * j).
    mask: [h, w] bool, where the landmark is.
    name: of the photograph.
    width: of the picture at most, in pixels.

  Returns:
    A picture as wide as the photographs need, which are at most three tenths
    of `width` high.

  Raises:
    ValueError: for shapes that disagree, or maps without a feature.
  """
  h, w = pixels.shape[:2]
  if l2_norm.ndim != 2 or not l2_norm.size or l2_norm.shape != attention.shape:
    raise ValueError(
      f"maps {l2_norm.shape} and {attention.shape} must both be [h', w'] with "
      f"a feature"
    )
  if mask is not None and mask.shape != (h, w):
    raise ValueError(f"mask {mask.shape} must be that of {(h, w)} pixels")
  margin = width // 120
  cells_wide = 3 + (mask is not None)
  scale = min(0.3 * width / h, ((width - margin) / cells_wide - margin) / w)
  size = max(1, int(scale * h)), max(1, int(scale * w))
  photograph = Image.fromarray(pixels).resize(
    size[::-1], Image.Resampling.LANCZOS
  )
  grey = np.asarray(photograph.convert("L"), np.float64)[..., np.newaxis]
  cells = [_Cell("Photograph", photograph, note=name)]
  for title, scores in (("L2 norm", l2_norm), ("Attention", attention)):
    low, high = _range(scores)
    known = np.where(np.isfinite(scores), scores, low)
    fractions = (upsample(known, stride, (h, w), size) - low) / (high - low)
    colours = drawing.ramp_colours(np.clip(fractions, 0, 1), _SCORE_RAMP)
    blended = _COLOUR_SHARE * colours + (1 - _COLOUR_SHARE) * grey
    cells.append(
      _Cell(title, Image.fromarray(blended.astype(np.uint8)), (low, high))
    )
  if mask is not None:
    inside = Image.fromarray(mask).resize(size[::-1])
    dark = Image.fromarray((0.22 * grey[..., 0]).astype(np.uint8))
    landmark = Image.composite(photograph, dark.convert("RGB"), inside)
    cells.append(_Cell("Landmark", landmark, note="ground truth"))
  return _draw_cells(cells, margin=margin, strip=max(48, 7 * margin))


def upsample(
  scores: np.ndarray,
  stride: int,
  size: tuple[int, int],
  drawn: tuple[int, int],
) -> np.ndarray:
  """Interpolates a map between the pixels that its features look at.

  Args:
    scores: [h', w']; feature (i, j) looks at pixel (stride * i, stride * j),
      and beyond the outermost features their values go on.
    stride: in pixels of the photograph.
    size: (height, width) of the photograph.
    drawn: (height, width) that the photograph is resized to.

  Returns:
    [*drawn], bilinear.
  """

  def along(values, length, drawn_length):
    # Whole coordinates are centres of pixels, before and after resizing.
    centres = (np.arange(drawn_length) + 0.5) * length / drawn_length - 0.5
    places = np.clip(centres / stride, 0, len(values) - 1)
    before = np.minimum(places.astype(int), max(len(values) - 2, 0))
    after = np.minimum(before + 1, len(values) - 1)
    share = (places - before)[:, np.newaxis]
    return (1 - share) * values[before] + share * values[after]

  scores = np.asarray(scores, np.float64)
  rows = along(scores, size[0], drawn[0])
  return along(rows.T, size[1], drawn[1]).T


@dataclasses.dataclass(frozen=True)
class _Cell:
  """One of the pictures side by side, with a note or a range of colours."""

  title: str
  picture: Image.Image
  scores: tuple[float, float] | None = None
  note: str = ""


def _range(scores: np.ndarray) -> tuple[float, float]:
  """The values of the first and the last colour, which are never equal."""
  known = scores[np.isfinite(scores)]
  if not known.size:
    return 0.0, 1.0
  low, high = float(known.min()), float(np.percentile(known, TOP_PERCENTILE))
  if high <= low:
    high = float(known.max())
  return (low, high) if high > low else (low, low + 1.0)


def _draw_cells(
  cells: Sequence[_Cell], *, margin: int, strip: int
) -> np.ndarray:
  """Puts pictures of one size side by side, with a strip of text below."""
  width, height = cells[0].picture.size
  # Text needs some room, whatever the photograph.
  column = max(width, 5 * strip // 2)
  canvas = Image.new(
    "RGB",
    (margin + len(cells) * (column + margin), margin + height + strip),
    drawing.BACKGROUND,
  )
  draw = ImageDraw.Draw(canvas)
  large = drawing.load_font(round(0.25 * strip))
  small = drawing.load_font(round(0.2 * strip))
  top = margin + height
  rows = top + round(0.34 * strip), top + round(0.72 * strip)
  for number, cell in enumerate(cells):
    left = margin + number * (column + margin)
    canvas.paste(cell.picture, (left + (column - width) // 2, margin))
    draw.text((left, rows[0]), cell.title, drawing.TEXT, large, anchor="lm")
    if cell.scores is None:
      note = drawing.shorten(drawing.printable(cell.note), small, column)
      draw.text((left, rows[1]), note, drawing.MUTED, small, anchor="lm")
      continue
    low, high = map(_number, cell.scores)
    draw.text((left, rows[1]), low, drawing.MUTED, small, anchor="lm")
    left += round(small.getlength(low)) + 8
    shown = (
      _COLOUR_SHARE
      * drawing.ramp_colours(np.linspace(0, 1, strip), _SCORE_RAMP)
      + (1 - _COLOUR_SHARE) * 128
    )
    thick = round(0.14 * strip)
    bar = np.tile(shown.astype(np.uint8), (thick, 1, 1))
    canvas.paste(Image.fromarray(bar), (left, rows[1] - thick // 2))
    left += strip + 8
    draw.text((left, rows[1]), high, drawing.MUTED, small, anchor="lm")
  return np.array(canvas)


def _number(value: float) -> str:
  return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _draw_panel(axes: Any, panel: Panel) -> None:
  for curve in panel.curves:
    colour, style = drawing.curve_style(curve.colour)
    values = np.asarray(curve.values, np.float64)
    thick = values
    if curve.noisy:
      thick = running_mean(values)
      axes.plot(curve.steps, values, color=colour, alpha=0.3, linewidth=0.9)
    # A single point makes no line.
    most = _MOST_MARKS if curve.marked else 1
    axes.plot(
      curve.steps,
      thick,
      color=colour,
      linestyle=style,
      linewidth=1.8,
      solid_joinstyle="round",
      marker="o" if np.isfinite(values).sum() <= most else None,
      markersize=5,
      markeredgecolor="white",
      markeredgewidth=0.8,
      # Values may lie on the border, such as an accuracy of 0 or 100 %.
      clip_on=False,
      zorder=3,
      label=_name(curve.name) if curve.name else None,
    )
  _dress(axes, panel.title, axes.yaxis, panel.percent)
  axes.xaxis.set_major_formatter("{x:,.0f}")
  values = np.concatenate([curve.values for curve in panel.curves])
  values = values[np.isfinite(values)]
  if values.size and values.min() >= 0:
    axes.set_ylim(0, 1.06 * values.max() or 1)


def _name_curves(axes: Any) -> None:
  """Names few curves in the line of the title, and more inside the plot."""
  names = axes.get_legend_handles_labels()[1]
  if 0 < len(names) <= 3:
    axes.legend(
      loc="lower right",
      bbox_to_anchor=(1.0, 0.985),
      ncols=len(names),
      fontsize=8.5,
      borderaxespad=0.2,
      columnspacing=0.9,
      frameon=False,
      handlelength=1.2,
      handletextpad=0.3,
    )
  elif names:
    axes.legend(loc="center right", fontsize=8.5, edgecolor="white")


def _dress(axes: Any, title: str, axis: Any, percent: bool) -> None:
  """Gives axes their title and look; `axis` is the one of the values."""
  drawing.dress_axes(axes)
  axes.set_title(
    drawing.printable(title), loc="left", fontweight="bold", fontsize=10, pad=8
  )
  if percent:
    axis.set_major_formatter("{x:g} %")
  else:
    axis.get_major_formatter().set_useOffset(False)


def _name(name: str) -> str:
  """Makes a name of any length and kind fit for a plot."""
  name = drawing.printable(name)
  if len(name) > _LONGEST_NAME:
    half = _LONGEST_NAME // 2
    name = f"{name[:half]}…{name[-half:]}"
  return f" {name}"  # with an underscore in front matplotlib would hide it
