"""Extracts, indexes, searches and measures: what `delf_jax.evaluate` runs.

Training validates with the same code.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from delf_jax import (
  database,
  drawing,
  extraction,
  html_report,
  index,
  progress,
  retrieval,
)
from delf_jax.data import folder
from delf_jax.errors import InputError
from delf_jax.evaluation import protocols
from delf_jax.features import store

Rankings = dict[str, list[tuple[str, int]]]


def evaluate(
  extractor: extraction.Extractor,
  *,
  photos: str,
  ground_truth: str,
  distractors: str | None,
  output: str,
  kind: str = "exact",
  workers: int | None = None,
  **search: Any,
) -> dict[str, Any]:
  """Extracts, indexes, searches and measures.

  Args:
    extractor: the features to measure.
    photos: folder of the database.
    ground_truth: JSON file, see `delf_jax.evaluate`.
    distractors: folder of distractor queries, or None.
    output: directory of results; its features are reused if they fit.
    kind: of index.
    workers: photographs extracted at a time.
    search: options of `retrieval.search`.

  Returns:
    what `metrics.json` holds.

  Raises:
    InputError: if a folder or the ground truth is unfit.
  """
  truth = protocols.read_ground_truth(ground_truth)
  protocols.check_paths(truth, folder.list_photographs(photos).paths)
  _check_apart(photos, distractors)
  output = Path(output)
  opened = _features(extractor, photos, output / "features", workers)
  searchable = database.connect(
    opened, index.build_index(kind, opened.descriptors())
  )
  missing = sorted({query.path for query in truth.queries} - set(opened.paths))
  for path in missing:
    print(f"query {path!r} could not be used; its positives count as missed")

  numbers = {path: i for i, path in enumerate(opened.paths)}
  queries = [query.path for query in truth.queries if query.path in numbers]
  rankings = _rank(opened, queries, searchable, leave_out=numbers, **search)
  rankings |= {path: [] for path in missing}
  distractor_rankings = {}
  if distractors:
    others = _features(
      extractor, distractors, output / "distractor_features", workers
    )
    distractor_rankings = _rank(
      others, others.paths, searchable, leave_out={}, **search
    )

  result = protocols.evaluate(truth, rankings, distractor_rankings)
  curve = result.pop("curve")
  result["settings"] = {
    **extractor.settings,
    **search,
    "index": kind,
    "photographs": len(opened.paths),
    "descriptors": int(opened.offsets[-1]),
  }
  html_report.write_png(
    output / "precision_recall.png",
    drawing.plot_precision_recall({extractor.settings["kind"]: curve}),
  )
  _write_json(
    output / "rankings.json",
    {"queries": rankings, "distractors": distractor_rankings},
  )
  _write_json(output / "metrics.json", result)
  return result


def _check_apart(photos: str, distractors: str | None) -> None:
  """Refuses folders of which one lies in the other."""
  if not distractors:
    return
  one, other = os.path.realpath(photos), os.path.realpath(distractors)
  if os.path.commonpath([one, other]) in (one, other):
    raise InputError(
      f"--distractors {distractors!r} and --photos {photos!r} overlap; a "
      f"distractor query must not be in the database"
    )


def _features(
  extractor: extraction.Extractor,
  photos: str,
  directory: Path,
  workers: int | None,
) -> store.Store:
  counts = extraction.extract_folder(
    extractor, photos, directory, workers=workers
  )
  for _, reason in counts.skipped:
    print(f"skipped {reason}")
  return store.open_store(directory)


def _rank(
  opened: store.Store,
  queries: Iterable[str],
  searchable: retrieval.Database,
  *,
  leave_out: Mapping[str, int],
  **search: Any,
) -> Rankings:
  """Searches with photographs of a store."""
  queries = list(queries)
  numbers = {path: i for i, path in enumerate(opened.paths)}
  rankings = {}
  for path in progress.track(queries, label="search", unit="query"):
    number = numbers[path]
    matches = retrieval.search(
      opened.features(number),
      tuple(opened.sizes[number]),
      searchable,
      leave_out=leave_out.get(path),
      **search,
    )
    rankings[path] = [(match.path, match.score) for match in matches]
  return rankings


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  html_report.write_file(path, (json.dumps(value, indent=1) + "\n").encode())
