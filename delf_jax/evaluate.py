r"""Measures retrieval with and without distractor queries (section 4).

  python -m delf_jax.evaluate --photos DIR --ground_truth FILE.json \
    --distractors DIR2 --features RUN --output RESULTS

Every photograph under --photos is in the database; each query of the ground
truth searches all of it but itself, and every photograph under --distractors
is a query that has nothing to find. FILE.json lists, for each query, the
"easy", "hard" and "junk" photographs; paths are relative to --photos.

RESULTS/metrics.json receives, in percent, mAP_medium and mAP_hard
(trapezoidal), mP@1, mP@5, mP@10 (medium), and R@90 and R@95: the largest
recall, over all queries and distractor queries at once, whose precision is at
least 90 or 95 %.
Beside it are the precision-recall plot, the rankings, and the features, which
another run with the same settings reuses.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from delf_jax import (
  database,
  drawing,
  extraction,
  index,
  options,
  program,
  progress,
  report,
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
    ground_truth: JSON file, see above.
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
  report.write_png(
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
  report.write_file(path, (json.dumps(value, indent=1) + "\n").encode())


def main() -> int:
  """Evaluates as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  result = evaluate(
    options.open_extractor(values),
    photos=values.photos,
    ground_truth=values.ground_truth,
    distractors=values.distractors,
    output=values.output,
    kind=values.kind,
    workers=values.workers,
    **options.search_options(values),
  )
  for name, value in result.items():
    if isinstance(value, float):
      print(f"{name:>10}  {value:5.1f}")
  print(
    f"{result['num_queries']} queries and {result['num_distractors']} "
    f"distractor queries in {program.elapsed(start)}; "
    f"{values.output}/metrics.json and precision_recall.png"
  )
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("photos", None, "the database.", required=True)
  flags.DEFINE_string("ground_truth", None, "JSON, see above.", required=True)
  flags.DEFINE_string("distractors", None, "folder of distractor queries.")
  flags.DEFINE_string("output", None, "directory of results.", required=True)
  options.define_features()
  options.define_search()
  flags.adopt_module_key_flags(options)
  flags.DEFINE_enum("kind", "exact", ["exact", "graph"], "of index.")
  program.run(main)
