"""Extracts, indexes, searches and measures: what `delf_jax.evaluate` runs.

Training validates with the same code. Whatever measurements may share lies in
a cache, each thing under a digest of what it depends on: features, indexes and
what every query found. A measurement that is done is known by the digest of
all it depends on, the code that searches among it, and is not run again; one
that was killed goes on at the query where it was.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax import (
  cached_database,
  extractors,
  feature_cache,
  html_report,
  match_chains,
  remembered_search,
  retrieval,
  whole_files,
)
from delf_jax.data.retrieval_sets import RetrievalSet
from delf_jax.evaluation import metrics, results
from delf_jax.feature_cache import Selection
from delf_jax.global_descriptors import global_search
from delf_jax.items import Item
from delf_jax.pictures import precision_plots

METRICS, RANKINGS, CURVE = "metrics.json", "rankings.json", "curve.json"
PLOT = "precision_recall.png"

# What rankings and metrics depend on besides data and options, by their places
# in this package.
_SEARCH_CODE = (
  "retrieval.py",
  "global_descriptors/global_search.py",
  "global_descriptors/query_expansion.py",
  "voting.py",
  "word_candidates.py",
  "matching.py",
  "match_score.py",
  "geometry/*.py",
  "index/*.py",
  "cached_database.py",
)
_METRIC_CODE = (
  "measurement.py",
  "remembered_search.py",
  "match_chains.py",
  "evaluation/*.py",
)


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
    search: options of `retrieval.search`, and `expansion`: how many of the
      photographs that a query found are asked again, see `match_chains.follow`
      (none); of global descriptors those of `global_search.search`, and
      `database_neighbours` and `database_alpha` of
      `query_expansion.augment_database`.

  Returns:
    what `metrics.json` holds. Where photographs of local features were asked
    again, "without_expansion" holds the numbers that there would be otherwise.

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
  # What a photograph finds does not depend on what is made of it.
  expansion = 0 if one_each else search.pop("expansion", 0)
  if expansion:
    match_chains.check_score(search.get("score", retrieval.SCORE))
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
      "expansion": expansion,
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
  asker = remembered_search.Asker(
    cached,
    searchable,
    selection,
    cache / "rankings" / f"{searched}.jsonl",
    functools.partial(
      global_search.search if one_each else retrieval.search, **options
    ),
  )
  jobs, strangers = remembered_search.list_jobs(retrieval_set, cached)
  rankings = asker.rank(jobs)
  distractor_rankings = asker.rank(strangers)
  plain = None
  if expansion:
    plain = results.measure(retrieval_set, rankings, distractor_rankings)
    rankings = asker.expand(jobs, rankings, expansion)
    distractor_rankings = asker.expand(
      strangers, distractor_rankings, expansion
    )
  ranked = time.perf_counter()
  measured = results.measure(retrieval_set, rankings, distractor_rankings)
  result = measured.as_json()
  if plain is not None:
    result["without_expansion"] = plain.as_json()
  result["settings"] = {
    **extractor.settings,
    **json.loads(json.dumps(search, default=str)),
    **({} if one_each else {"expansion": expansion}),
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
  whole_files.write_file(path, (json.dumps(value, indent=1) + "\n").encode())
