"""One look for every progress bar, and for the figures beside it."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

DELAY_SECONDS = 2.0  # shorter work shows no bar

# What the line of a training run shows, and how it is called there.
_LINE = {
  "loss": "loss",
  "accuracy": "accuracy",
  "mAP": "mAP",
  "R@90": "R@90",
  "images_per_second": "images/s",
  "data_wait_share": "waiting",
}
_RETRIEVAL = ("mAP", "mP@", "R@")


def track(
  items: Iterable[T], *, label: str, unit: str, total: int | None = None
) -> Iterator[T]:
  """Yields the items and shows how fast and how long still, on stderr.

  Args:
    items: anything iterable.
    label: what is being done.
    unit: what is counted, in the singular.
    total: how many there are, when `items` has no length.
  """
  return iter(bar(items, label=label, unit=unit, total=total))


def bar(
  items: Iterable[T] | None = None,
  *,
  label: str,
  unit: str,
  total: int | None = None,
) -> tqdm:
  """Returns the bar itself, for loops that also show figures."""
  return tqdm(
    items,
    desc=label,
    unit=f" {unit}",
    total=total,
    delay=DELAY_SECONDS,
    dynamic_ncols=True,
    # A log file gets a line now and then, not one a step.
    mininterval=0.2 if sys.stderr.isatty() else 10.0,
  )


def say(line: str) -> None:
  """Prints a line on stderr, above the bars that are shown."""
  tqdm.write(line, file=sys.stderr)


def describe(figures: Mapping[str, float | None]) -> str:
  """Puts the figures that matter most on one line, for the end of a bar.

  Args:
    figures: name -> value, as `delf_jax.journal` knows them; what has no place
      in the line is left out.

  Returns:
    such as "loss 1.234  accuracy 56.7 %  images/s 123  waiting 2 %".
  """
  return "  ".join(
    f"{label} {show_figure(name, figures[name])}"
    for name, label in _LINE.items()
    if name in figures
  )


def show_figure(name: str, value: float | None) -> str:
  """Writes a figure as people read it: fractions in percent, few digits.

  Args:
    name: of the figure, which says what it is.
    value: None where it is not known.
  """
  if value is None:
    return "–"
  if name == "data_wait_share":
    return f"{100 * value:.0f} %"
  if is_fraction(name):
    return f"{100 * value:.1f} %"
  if name.endswith(("loss", "auc")) and abs(value) < 1000:
    return f"{value:.3f}"
  return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def is_fraction(name: str) -> bool:
  """Says whether a figure of this name is a fraction, shown in percent."""
  return name.endswith(("accuracy", "share")) or name.startswith(_RETRIEVAL)
