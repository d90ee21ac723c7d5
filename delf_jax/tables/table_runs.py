"""Runs rows of a table, and the sweeps that choose K and T for them."""

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delf_jax import measurement, whole_files
from delf_jax.data.retrieval_sets import RetrievalSet
from delf_jax.errors import InputError
from delf_jax.tables import table_inputs
from delf_jax.tables.table_config import Measurement, Table

CHOSEN = "chosen.json"
TABLE = "table.json"


def run(
  table: Table,
  one: Measurement,
  *,
  data: str,
  output: str | os.PathLike,
  cache: str | os.PathLike | None = None,
  workers: int | None = None,
) -> dict[str, Any]:
  """Measures one row on one dataset, or finds that it was measured.

  K, T and the threshold that a sweep of this row chose are taken, where the
  command line does not set them.

  Args:
    table: that the row is of.
    one: what to measure.
    data: where the dataset is.
    output: of all results.
    cache: see `measurement.evaluate`; by default within `output`.
    workers: photographs extracted at a time.

  Returns:
    what metrics.json holds.

  Raises:
    InputError: if data, checkpoint or values are unfit.
  """
  home = Path(output) / table.name
  settings = dict(one.settings)
  chosen = _read_chosen(home / one.row / CHOSEN)
  settings |= {
    path: value
    for path, value in chosen.get("chosen", {}).items()
    if path not in table.given
  }
  cache = Path(cache or Path(output) / "cache")
  table_inputs.check(settings)
  opened = table_inputs.open_dataset(settings, data, cache)
  if chosen and chosen["on"]["root"] == os.path.realpath(opened.root):
    raise InputError(
      f"{home / one.row / CHOSEN} was chosen on these very photographs; sweep "
      f"on training landmarks, or remove it"
    )
  result = _evaluate(
    settings, opened, home / one.row / one.place, cache, workers
  )
  whole_files.write_file(
    home / one.row / one.place / "settings.json",
    _json({"settings": settings, "chosen": chosen, "set": opened.name}),
  )
  return result


def write_table(table: Table, output: str | os.PathLike) -> None:
  """Writes what `delf_jax.report` lays results out by."""
  home = Path(output) / table.name
  home.mkdir(parents=True, exist_ok=True)
  whole_files.write_file(home / TABLE, _json(table.described))


def sweep(
  table: Table,
  one: Measurement,
  *,
  data: str,
  output: str | os.PathLike,
  cache: str | os.PathLike | None = None,
  workers: int | None = None,
) -> dict[str, Any]:
  """Tries K, T and thresholds for a row, and notes the best.

  The paper varies K and T "to obtain the best results for each configuration";
  here on the photographs of `data`, which must be training landmarks. Among
  equals the cheapest counts: the fewest leaves, then the fewest neighbours.

  Args: see `run`.

  Returns:
    what chosen.json holds, which `run` takes the values from.

  Raises:
    InputError: see `run`.
  """
  settings = one.settings
  cache = Path(cache or Path(output) / "cache")
  table_inputs.check(settings)
  opened = table_inputs.open_dataset(settings, data, cache)
  home = Path(output) / table.name / one.row
  grid = {
    "index.leaves": settings["sweep.leaves"],
    "neighbours": settings["sweep.neighbours"],
    "verification.threshold": settings["sweep.threshold"],
  }
  if settings["index.kind"] != "kd_tree":
    del grid["index.leaves"]
  tried = []
  for values in itertools.product(
    *(sorted(choice) for choice in grid.values())
  ):
    changes = dict(zip(grid, values, strict=True))
    place = "_".join(str(value) for value in values)
    result = _evaluate(
      {**settings, **changes}, opened, home / "sweep" / place, cache, workers
    )
    value = value_of(result, settings["sweep.metric"])
    tried.append({**changes, "value": value})
    print(
      f"{one.row}: {', '.join(f'{k} {v}' for k, v in changes.items())}: "
      f"{settings['sweep.metric']} {value:.2f}",
      flush=True,
    )
  best = max(tried, key=lambda entry: entry["value"])
  chosen = {
    "chosen": {path: best[path] for path in grid},
    "metric": settings["sweep.metric"],
    "value": best["value"],
    "on": {"set": opened.name, "root": os.path.realpath(opened.root)},
    "tried": tried,
  }
  whole_files.write_file(home / CHOSEN, _json(chosen))
  return chosen


def value_of(result: Mapping[str, Any], metric: str) -> float | None:
  """Returns a metric, "mAP" by whatever name the protocol gives it.

  Raises:
    InputError: if the protocol has no such metric.
  """
  name = metric_name(result, metric)
  if name is None:
    raise InputError(
      f"no metric {metric!r} in protocol {result['protocol']!r}; it has "
      f"{', '.join(key for key in result if '@' in key or 'AP' in key)}"
    )
  return result[name]


def metric_name(result: Mapping[str, Any], metric: str) -> str | None:
  """Returns what a result calls a metric, None if it has none such."""
  alike = ("mAP", "mAP_medium", "mAP@100") if metric == "mAP" else (metric,)
  return next((name for name in alike if name in result), None)


def _evaluate(
  settings: Mapping[str, Any],
  opened: RetrievalSet,
  output: Path,
  cache: Path,
  workers: int | None,
) -> dict[str, Any]:
  extractor, selection = table_inputs.open_features(settings, cache)
  return measurement.evaluate(
    extractor,
    opened,
    output=output,
    cache=cache,
    kind=settings["index.kind"],
    index_options=table_inputs.index_options(settings),
    selection=selection,
    workers=workers,
    **table_inputs.search_options(settings),
  )


def _read_chosen(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise InputError(f"{path}: damaged ({error}); sweep again") from error


def _json(value: Any) -> bytes:
  return (json.dumps(value, indent=1) + "\n").encode()
