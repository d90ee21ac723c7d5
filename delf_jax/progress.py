"""One look for every progress bar: count, rate and time left."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

DELAY_SECONDS = 2.0  # shorter work shows no bar


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
