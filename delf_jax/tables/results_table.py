"""Results of rows laid out as tables, beside the paper's numbers."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from delf_jax import measurement
from delf_jax.errors import InputError
from delf_jax.pictures.precision_plots import Curve
from delf_jax.tables import table_runs

# In place of a number: what was not measured, and what cannot be yet.
MISSING = "–"
# What is told of how a row was measured.
SETTINGS = (
  "",
  "features",
  "photographs",
  "features of one",
  "queries",
  "index",
  "verification",
)


@dataclasses.dataclass(frozen=True)
class Grid:
  """A table of texts.

  Attributes:
    title: what it shows.
    header: of the columns; the first names the rows.
    rows: cells, as many as the header has.
  """

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Results:
  """What is there of one table.

  Attributes:
    name: of the table.
    described: its table.json: title, columns, small, rows.
    found: row -> place -> metrics.json.
    curves: place -> title of a row -> its curve.
    settings: how the rows were measured, one line each, as `SETTINGS` names
      it.
  """

  name: str
  described: Mapping[str, Any]
  found: Mapping[str, Mapping[str, Mapping[str, Any]]]
  curves: Mapping[str, Mapping[str, Curve]]
  settings: tuple[tuple[str, ...], ...]


def read(directory: str | os.PathLike) -> list[Results]:
  """Reads all tables that `delf_jax.evaluate` left in a directory.

  Raises:
    InputError: if there are none, or one is damaged.
  """
  directory = Path(directory)
  homes = sorted(
    path.parent for path in directory.glob(f"*/{table_runs.TABLE}")
  )
  if not homes:
    raise InputError(
      f"no results of a table under {os.fspath(directory)!r}; run python -m "
      f"delf_jax.evaluate --config configs/tables/table1.py:small --output "
      f"{os.fspath(directory)}"
    )
  return [_read_table(home) for home in homes]


def _read_table(home: Path) -> Results:
  try:
    described = json.loads((home / table_runs.TABLE).read_text())
    titles = {name: title for name, title, _ in described["rows"]}
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{home / table_runs.TABLE}: damaged ({error}); evaluate a row again"
    ) from error
  found: dict[str, dict[str, Any]] = {}
  curves: dict[str, dict[str, Curve]] = {}
  settings: list[tuple[str, ...]] = []
  for row, title in titles.items():
    places = {path.parent.name for path in home.glob(f"{row}/*/settings.json")}
    for place in sorted(places, key=_in_order):
      directory = home / row / place
      result = measurement.read_result(directory)
      if result is None:
        continue
      found.setdefault(row, {})[place] = result
      curve = measurement.read_curve(directory)
      if curve is not None:
        curves.setdefault(place, {})[title] = curve
      written = json.loads((directory / "settings.json").read_text())
      settings.append((f"{title}, {_told(place)}", *_how(written, result)))
  return Results(
    name=home.name,
    described=described,
    found=found,
    curves=dict(sorted(curves.items(), key=lambda one: _in_order(one[0]))),
    settings=tuple(settings),
  )


def _in_order(place: str) -> tuple[str, float]:
  """Sorts places by their set, then by the number of distractor queries."""
  name, _, count = place.rpartition("-")
  return name, float(count) if count.isdigit() else float("inf")


def _told(place: str) -> str:
  """Says what a place is, such as "json, 40 distractor queries"."""
  name, _, count = place.rpartition("-")
  return f"{name}, {count} distractor queries"


def _how(
  written: Mapping[str, Any], result: Mapping[str, Any]
) -> tuple[str, ...]:
  """Says what a row was measured with, as `SETTINGS` names it."""
  settings, measured = written["settings"], result["settings"]
  features = settings["features.kind"]
  if features == "delf":
    name = settings["features.checkpoint"].removeprefix("@")
    dims = settings["features.pca"]
    reduced = {0: "no PCA", -1: "its own PCA"}.get(dims, f"PCA {dims}")
    parts = [
      name,
      settings["features.score"],
      f"{len(settings['features.scales'])} scales",
      reduced,
    ]
    if settings["features.iou_threshold"] < 1:
      parts.append(f"IoU {settings['features.iou_threshold']:g}")
    if settings["features.score_threshold"] > 0:
      parts.append(f"β = {settings['features.score_threshold']:g}")
    features = ", ".join(parts)
  kind = settings["index.kind"]
  kind += f", T = {settings['index.leaves']}" if kind == "kd_tree" else ""
  chosen, swept = written.get("chosen"), ""
  if chosen:
    swept = f"; swept on {chosen['on']['set']}, by {chosen['metric']}"
  photographs = measured["photographs"]
  verification = [
    settings["verification.model"],
    settings["verification.matching"],
    f"{settings['verification.counting']} counts",
    f"{settings['verification.transforms']} transforms",
    f"{settings['verification.threshold']:g} pixels",
    f"{settings['candidates']} candidates",
  ]
  return (
    f"{features}, {settings['features.max_side']} pixels",
    f"{photographs}",
    f"{measured['descriptors'] / max(photographs, 1):.0f}",
    f"{result['num_queries']}",
    f"{kind}, K = {settings['neighbours']}" + swept,
    ", ".join(verification),
  )


def grids(results: Results) -> list[Grid]:
  """Lays out one table: the paper's datasets, then whatever else there is.

  A cell is the value, the interval in brackets, and, where the dataset is the
  paper's, its number in parentheses. In the other grids the paper's numbers
  have columns of their own, to compare trends. The last grid says how the rows
  were measured.
  """
  described = results.described
  title = described["title"]
  paper, small = described["columns"], described["small"]
  usual = {place for _, _, place in paper}
  small_places = {place for _, _, place in small}
  found = {place for places in results.found.values() for place in places}
  made = []
  if found & usual or not found:
    made.append(_on_the_papers(results, f"{title}; in parentheses the paper's"))
  if found & small_places:
    made.append(_beside(results, f"{title}, in small", small))
  elsewhere = sorted(found - usual - small_places, key=_in_order)
  # What the table is about, and what it is not about where there is room.
  metrics = list(dict.fromkeys(metric for _, metric, _ in (*paper, *small)))
  if len(elsewhere) == 1 and "mAP" not in metrics:
    metrics.append("mAP")
  others = [
    (f"{', '.join(place.rsplit('-', 1))}: {metric}", metric, place)
    for place in elsewhere
    for metric in metrics
    if any(
      table_runs.metric_name(places[place], metric)
      for places in results.found.values()
      if place in places
    )
  ]
  if others:
    made.append(
      _beside(
        results,
        f"{title}, on other photographs (set, number of distractor queries)",
        others,
      )
    )
  if results.settings:
    made.append(_how_measured(results))
  return made


def _how_measured(results: Results) -> Grid:
  """The settings in which rows differ; its title says the others."""
  columns = list(zip(SETTINGS, *results.settings, strict=True))
  named, alike = columns[:2], []
  for column in columns[2:]:
    name, *values = column
    if len(set(values)) == 1:
      alike.append(f"{name} {values[0]}")
    else:
      named.append(column)
  header, *rows = zip(*named, strict=True)
  shared = f"; all of them: {'; '.join(alike)}" if alike else ""
  return Grid(
    title=f"How these rows were measured{shared}",
    header=header,
    rows=rows,
  )


def _on_the_papers(results: Results, title: str) -> Grid:
  """Our numbers, and in parentheses the paper's."""
  paper = results.described["columns"]
  return Grid(
    title=title,
    header=["", *(label for label, *_ in paper)],
    rows=[
      [
        name,
        *(
          f"{_cell(results, row, metric, place)} ({_paper(number) or MISSING})"
          for (_, metric, place), number in zip(paper, numbers, strict=True)
        ),
      ]
      for row, name, numbers in results.described["rows"]
    ],
  )


def _beside(
  results: Results, title: str, columns: Iterable[Sequence[str]]
) -> Grid:
  """Our numbers, then the paper's on its own datasets."""
  columns = list(columns)
  paper = results.described["columns"]
  return Grid(
    title=title,
    header=[
      "",
      *(label for label, *_ in columns),
      *(f"paper: {label}" for label, *_ in paper),
    ],
    rows=[
      [
        name,
        *(_cell(results, row, metric, place) for _, metric, place in columns),
        *(_paper(number) for number in numbers),
      ]
      for row, name, numbers in results.described["rows"]
    ],
  )


def _cell(results: Results, row: str, metric: str, place: str) -> str:
  result = results.found.get(row, {}).get(place)
  name = result and table_runs.metric_name(result, metric)
  if not name:
    return MISSING
  value = result[name]
  if value is None:
    return "undefined"
  interval = result["intervals"].get(name)
  if interval is None:
    return f"{value:.1f}"
  return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def _paper(number: float | None) -> str:
  return "" if number is None else f"{number:g}"


def markdown(grid: Grid) -> str:
  """Writes a grid as a table in Markdown."""
  lines = [grid.header, ["---"] * len(grid.header), *grid.rows]
  return "\n".join(
    f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
    for line in lines
  )
