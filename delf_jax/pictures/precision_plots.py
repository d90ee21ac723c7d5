"""Plots of precision against recall, or against true positives, for reports.

Precision over all queries at once (equations 2 and 3 of the paper); where
nobody knows how much there is to find, true positives take the place of recall
(figure 4 of the paper).
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from delf_jax.evaluation.metrics import (
  PrecisionCounts,
  PrecisionRecall,
  recall_at_precision,
  true_positives_at_precision,
)
from delf_jax.pictures.drawing import (
  curve_style,
  dress_axes,
  printable,
  render_figure,
)

Curve = PrecisionRecall | PrecisionCounts

_INCHES = 7.0
_MARKED = {90: "●", 95: "○"}


def plot(
  curves: Mapping[str, Curve], *, title: str = "", width: int = 1400
) -> tuple[np.ndarray, bytes]:
  """Plots curves over one another, with 90 and 95 % marked and told.

  Args:
    curves: name -> curve; all of recall, or all of true positives.
    title: one line above the plot.
    width: of the picture, in pixels; its height follows.

  Returns:
    a picture on a white ground, [h, w, 3] uint8, and the same as the content of
    an SVG file. The same curves give the same bytes.
  """
  import matplotlib

  svg = io.BytesIO()

  def draw(figure):
    _draw(figure, curves, title)
    figure.savefig(svg, format="svg", metadata={"Date": None})

  with matplotlib.rc_context(
    {"svg.fonttype": "none", "svg.hashsalt": "delf_jax"}
  ):
    pixels = render_figure(
      draw,
      inches=(_INCHES, 0.64 * _INCHES + 0.22 * len(curves)),
      width=width,
    )
  return pixels, svg.getvalue()


def _draw(figure: Any, curves: Mapping[str, Curve], title: str) -> None:
  from matplotlib.ticker import MaxNLocator, PercentFormatter

  counts = any(isinstance(curve, PrecisionCounts) for curve in curves.values())
  axes = figure.add_subplot()
  for precision in (85, 90, 95) if counts else (90, 95):
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
    _draw_curve(axes, number, name, curve)
  axes.set_ylim(0, 103)
  axes.set_ylabel("Precision over all queries together")
  axes.yaxis.set_major_formatter(PercentFormatter(symbol=" %"))
  if counts:
    axes.set_xlim(left=0)
    axes.set_xlabel("True positives over all queries together")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  else:
    axes.set_xlim(0, 100)
    axes.set_xlabel("Recall over all queries together")
    axes.xaxis.set_major_formatter(PercentFormatter(symbol=" %"))
  dress_axes(axes)
  if title:
    axes.set_title(printable(title), loc="left", fontweight="bold", pad=10)
  if curves:
    figure.legend(loc="outside lower left", frameon=False, handlelength=2.4)


def _draw_curve(axes: Any, number: int, name: str, curve: Curve) -> None:
  """Draws one curve and its marks on matplotlib axes."""
  colour, style = curve_style(number)
  precision = 100 * np.asarray(curve.precision)
  if isinstance(curve, PrecisionCounts):
    found = np.asarray(curve.true_positives)
    reached = {p: true_positives_at_precision(curve, p / 100) for p in _MARKED}
    told = [f"TP@{p} {value:.0f}" for p, value in reached.items()]
  else:
    found = 100 * np.asarray(curve.recall)
    reached = {p: 100 * recall_at_precision(curve, p / 100) for p in _MARKED}
    told = [f"R@{p} {value:.1f} %" for p, value in reached.items()]
  marks = zip(_MARKED.values(), told, strict=True)
  axes.plot(
    found,
    precision,
    color=colour,
    linestyle=style,
    linewidth=1.8,
    solid_joinstyle="round",
    # A leading space, since an underscore there would hide the entry.
    label=f" {printable(name)}   {'   '.join(map(' '.join, marks))}",
  )
  for wanted, value in reached.items():
    if not value:
      continue
    axes.plot(
      value,
      np.max(precision[found == value]),
      marker="o",
      markersize=7,
      markerfacecolor=colour if wanted == 90 else "white",
      markeredgecolor="white" if wanted == 90 else colour,
      markeredgewidth=1.5,
      linestyle="none",
      clip_on=False,
      zorder=4,
    )
