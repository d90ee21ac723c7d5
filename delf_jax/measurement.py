"""Extracts, indexes, searches and measures: what `delf_jax.evaluate` runs.

Training validates with the same code. Whatever measurements may share lies in
a cache, each thing under a digest of what it depends on: features, indexes and
what every query found. A measurement that is done is known by the digest of
all it depends on, the code that searches among it, and is not run again; one
that was killed goes on at the query where it was.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax import (
  cached_database,
  extractors,
  feature_cache,
  global_search,
  html_report,
  precision_plots,
  progress,
  retrieval,
)
from delf_jax.data.retrieval_sets import RetrievalSet
from delf_jax.errors import InputError
from delf_jax.evaluation import metrics, results
from delf_jax.feature_cache import Selection
from delf_jax.items import Item

Ranking = list[tuple[str, float]]
Rankings = dict[str, Ranking]

METRICS, RANKINGS, CURVE = "metrics.json", "rankings.json", "curve.json"
PLOT = "precision_recall.png"

# What rankings and metrics depend on besides data and options, by their places
# in this package.
_SEARCH_CODE = (
  "retrieval.py",
  "global_search.py",
  "query_expansion.py",
  "voting.py",
  "word_candidates.py",
  "matching.py",
  "match_score.py",
  "geometry/*.py",
  "index/*.py",
  "cached_database.py",
)
_METRIC_CODE = ("measurement.py", "evaluation/*.py")


def evaluate(
  extractor: extractors.Extractor,
  retrieval_set: RetrievalSet,
  *,
  output: str | Path,
  cache: str | Path | None = None,
  kind: str = "exact",
  index_options: Mapping[str, Any] | None = None,
  selection: Selection = feature_cache.EVERYTHING,
  workers: int | None = None,
  **search: Any,
) -> dict[str, Any]:
  """Extracts, indexes, searches and measures, as far as it is not done.

  Queries are cut out of their photographs before extraction where the set says
  so. A query whose photograph is in the database does not find itself, unless
  the ground truth lists it among what is to be found.

  Memory: the index, and the descriptors of the database as float32, but with
  an inverted file, where they stay on the disk.

  Args:
    extractor: the features to measure.
    retrieval_set: database, queries and distractor queries.
    output: directory of results: metrics.json, rankings.json, curve.json and
      precision_recall.png.
    cache: directory of what measurements share; by default within `output`.
    kind: of index.
    index_options: of its `build`.
    selection: which part of the extracted features is used.
    workers: photographs extracted at a time.
    search: options of `retrieval.search`; of global descriptors those of
      `global_search.search`, and `database_neighbours` and `database_alpha` of
      `query_expansion.augment_database`.

  Returns:
    what `metrics.json` holds.

  Raises:
    InputError: if photographs or options are unfit.
  """
  output = Path(output)
  cache = Path(cache or output / "cache")
  index_options = dict(index_options or {})
  one_each = extractor.settings["kind"] == "global"
  if not one_each and search.get("score", retrieval.SCORE) == "probability":
    search["calibration"] = search.get(
      "calibration"
    ) or extractors.calibration_of(extractor.settings, extractor.source)
  start = time.perf_counter()
  items = _items(retrieval_set)
  stamps = feature_cache.stamps(
    retrieval_set.root, [item.path for item in items]
  )
  searched = feature_cache.digest(
    {
      "features": dict(extractor.settings),
      "selection": selection,
      "database": [[path, stamps[path]] for path in retrieval_set.database],
      "index": [kind, cached_database.described(kind, index_options)],
      "search": [search, _code(_SEARCH_CODE)],
    }
  )
  depends = feature_cache.digest(
    {
      "searched": searched,
      "stamps": stamps,
      "set": {
        field.name: getattr(retrieval_set, field.name)
        for field in dataclasses.fields(retrieval_set)
      },
      "code": _code(_METRIC_CODE),
    }
  )
  done = read_result(output)
  if done and done["depends"] == depends:
    return done

  cached = feature_cache.extract(
    extractor, retrieval_set.root, items, cache, workers=workers
  )
  for _, reason in (*retrieval_set.problems, *cached.skipped):
    print(f"skipped {reason}")
  extracted = time.perf_counter()
  searchable = cached_database.open_database(
    cached, retrieval_set.database, cache, kind, index_options, selection
  )
  options = dict(search)
  if one_each:
    searchable = global_search.prepare(
      searchable,
      neighbours=options.pop("database_neighbours", 0),
      alpha=options.pop("database_alpha", 0.0),
    )
  indexed = time.perf_counter()
  journal = cache / "rankings" / f"{searched}.jsonl"
  rankings, distractor_rankings = _rank(
    retrieval_set,
    cached,
    searchable,
    selection,
    journal,
    options,
    global_search.search if one_each else retrieval.search,
  )
  ranked = time.perf_counter()
  measured = results.measure(retrieval_set, rankings, distractor_rankings)
  result = measured.as_json()
  result["settings"] = {
    **extractor.settings,
    **json.loads(json.dumps(search, default=str)),
    "selection": dataclasses.asdict(selection),
    "index": kind,
    "index_options": index_options,
    "photographs": len(searchable.paths),
    "descriptors": int(searchable.offsets[-1]),
  }
  result["seconds"] = {
    "extract": round(extracted - start, 2),
    "index": round(indexed - extracted, 2),
    "search": round(ranked - indexed, 2),
    "metrics": round(time.perf_counter() - ranked, 2),
  }
  result["depends"] = depends
  output.mkdir(parents=True, exist_ok=True)
  name = extractor.settings["kind"]
  pixels, _ = precision_plots.plot({name: measured.curve})
  html_report.write_png(output / PLOT, pixels)
  _write_json(
    output / RANKINGS, {"queries": rankings, "distractors": distractor_rankings}
  )
  _write_json(output / CURVE, _points(measured.curve))
  # Last: it says that the rest is there.
  _write_json(output / METRICS, result)
  return result


def read_result(output: str | Path) -> dict[str, Any] | None:
  """Returns what `evaluate` wrote to a directory, or None."""
  try:
    found = json.loads((Path(output) / METRICS).read_text())
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) and "depends" in found else None


def _items(retrieval_set: RetrievalSet) -> list[Item]:
  """Lists what is extracted, each once."""
  return list(
    dict.fromkeys(
      [
        *map(Item, retrieval_set.database),
        *retrieval_set.query_items,
        *retrieval_set.distractor_items,
      ]
    )
  )


def _code(patterns: Iterable[str]) -> str:
  """Returns a digest of sources of this package."""
  package = Path(__file__).parent
  return feature_cache.digest(
    {
      str(path.relative_to(package)): path.read_text()
      for pattern in patterns
      for path in sorted(package.glob(pattern))
    }
  )


def _rank(
  retrieval_set: RetrievalSet,
  cached: feature_cache.Cached,
  searchable: retrieval.Database,
  selection: Selection,
  journal: Path,
  options: Mapping[str, Any],
  search: Callable[..., Sequence[retrieval.Match | global_search.Found]],
) -> tuple[Rankings, Rankings]:
  """Searches with every query that the journal does not know yet.

  Returns:
    what the queries and what the distractor queries found. A query that could
    not be used found nothing; a distractor query that could not be used is left
    out, since its silence says nothing.

  Raises:
    InputError: if none of the distractor queries could be used.
  """
  numbers = {path: number for number, path in enumerate(searchable.paths)}
  known = _read_journal(journal)

  def key(item: Item, left_out: str | None) -> str:
    return json.dumps([item.name, cached.stamps[item.path], left_out])

  jobs = [
    (query.item, retrieval_set.left_out(query))
    for query in retrieval_set.truth.queries
  ]
  for item, _ in jobs:
    if item.name not in cached.numbers:
      print(
        f"query {item.name!r} could not be used: all it had to find counts "
        f"as missed"
      )
  strangers = [
    item
    for item in retrieval_set.distractor_items
    if item.name in cached.numbers
  ]
  lost = len(retrieval_set.distractor_items) - len(strangers)
  if lost and not strangers:
    raise InputError(f"none of the {lost} distractor queries could be used")
  if lost:
    print(f"{lost} distractor queries could not be used and are left out")
  jobs += [(item, None) for item in strangers]
  missing = [
    (item, left_out)
    for item, left_out in jobs
    if item.name in cached.numbers and key(item, left_out) not in known
  ]
  journal.parent.mkdir(parents=True, exist_ok=True)
  with open(journal, "a") as file:
    for item, left_out in progress.track(missing, label="search", unit="query"):
      matches = search(
        cached.features(item.name, selection),
        cached.size(item.name),
        searchable,
        leave_out=numbers.get(left_out),
        **options,
      )
      known[key(item, left_out)] = [(one.path, one.score) for one in matches]
      entry = [key(item, left_out), known[key(item, left_out)]]
      file.write(json.dumps(entry) + "\n")
      file.flush()
  found = [
    (item.name, known.get(key(item, left_out), [])) for item, left_out in jobs
  ]
  count = len(retrieval_set.truth.queries)
  return dict(found[:count]), dict(found[count:])


def _read_journal(path: Path) -> Rankings:
  """Reads what earlier runs found, and cuts off a line that was not finished.

  Another measurement with the same database may have asked the same queries.
  """
  try:
    content = path.read_bytes()
  except OSError:
    return {}
  whole = content[: content.rfind(b"\n") + 1]
  if len(whole) < len(content):
    html_report.write_file(path, whole)
  entries = map(json.loads, whole.splitlines())
  return {
    key: [(found, score) for found, score in ranking]
    for key, ranking in entries
  }


def read_curve(output: str | Path) -> precision_plots.Curve | None:
  """Returns the curve that `evaluate` wrote to a directory, or None."""
  try:
    found = json.loads((Path(output) / CURVE).read_text())
  except (OSError, ValueError):
    return None
  arrays = {name: np.array(values) for name, values in found.items()}
  if "recall" in arrays:
    return metrics.PrecisionRecall(**arrays)
  return metrics.PrecisionCounts(**arrays)


def _points(
  curve: precision_plots.Curve,
) -> dict[str, list[float]]:
  """Thins a curve to the thresholds at which it finds more."""
  found = np.asarray(curve[-1])  # recall, or true positives
  kept = np.flatnonzero(np.diff(found, prepend=-1) > 0)
  return {
    name: np.asarray(values)[kept].tolist()
    for name, values in curve._asdict().items()
  }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  html_report.write_file(path, (json.dumps(value, indent=1) + "\n").encode())
