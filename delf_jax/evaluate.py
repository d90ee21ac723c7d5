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

import time

from absl import flags

from delf_jax import index, measurement, options, program


def main() -> int:
  """Evaluates as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  result = measurement.evaluate(
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
  options.define_workers()
  options.define_search()
  flags.adopt_module_key_flags(options)
  flags.DEFINE_enum("kind", "exact", index.KINDS, "of index.")
  program.run(main)
