r"""Measures retrieval with and without distractor queries (section 4).

Photographs of your own:

  python -m delf_jax.evaluate --photos DIR --ground_truth FILE.json \
    --distractors DIR2 --features RUN --output RESULTS

Every photograph under --photos is in the database; each query of the ground
truth searches all of it but itself, and every photograph under --distractors
is a query that has nothing to find. FILE.json lists, for each query, the
"easy", "hard" and "junk" photographs, and perhaps its "box" (top, left, bottom,
right, in pixels); paths are relative to --photos. --clutter DIR3, as often as
you like, adds photographs to the database that are right for no query.

RESULTS/metrics.json receives, in percent, mAP_medium and mAP_hard
(trapezoidal), mP@1, mP@5, mP@10 (medium), and R@90 and R@95: the largest
recall, over all queries and distractor queries at once, whose precision is at
least 90 or 95 %; and 95 % intervals of all, from drawing the queries again.
Photographs that a query finds are asked again, and what they find it has found
too, by a chain of matches; the paper does not (--expansion=0), and the numbers
without it are printed beside. Next to the numbers are the precision-recall
plot, the rankings, and a cache of features, which another run with the same
settings reuses. --option NAME=VALUE sets an
option of the --kind of index. Philbin's bag of words, ranked by its words alone
(without --candidates 0 they are verified), with those of other photographs:

  python -m delf_jax.build_index --store STORE --kind bag_of_words \
    --output WORDS
  python -m delf_jax.evaluate --photos DIR --ground_truth FILE.json \
    --features rootsift --kind bag_of_words --option vocabulary=WORDS \
    --candidates 0 --output RESULTS

A checkpoint of global descriptors (configs/siamac.py, dir.py) ranks by their
dot product and verifies nothing; --expansion=1 asks again with the mean of the
query and the first photograph it found, --expansion=5 --alpha=3 with five
weighted ones, and --database_expansion=5 does so with the database.

A row of a table of the paper, all of them, or all on synthetic landmarks:

  python -m delf_jax.evaluate --config configs/tables/table1.py:ROW --data DIR
  python -m delf_jax.evaluate --config configs/tables/table1.py:small

Any value can be changed: --config.index.kind=exact, --config.features.pca=128,
--config.verification.model=similarity; a value that does not exist is refused
with a list of those that do. Photographs of your own are a dataset too:
--config.dataset.name=json, with photos/, ground_truth.json and distractors/ in
--data. What is done already is not done again. --sweep tries K, T and the
threshold on the photographs of --data, which should be training landmarks, and
the row takes the best of them from then on. Then:

  python -m delf_jax.report --results RESULTS --output REPORT
"""

import collections
import time

from absl import flags
from ml_collections import config_flags

from delf_jax import index, measurement, options, program, run_config
from delf_jax.data import retrieval_sets
from delf_jax.errors import InputError
from delf_jax.tables import table_config, table_runs

_OWN = (
  "photos",
  "ground_truth",
  "distractors",
  "clutter",
  "features",
  "option",
  *options.FEATURE_OPTIONS,
  *options.EXPANSION_OPTIONS,
)
_OF_TABLES = ("data", "cache", "sweep")


def evaluate_photographs(values: flags.FlagValues) -> int:
  """Measures photographs of the user's own, as the flags say."""
  start = time.perf_counter()
  missing = [
    name for name in ("photos", "ground_truth") if not values[name].value
  ]
  if missing:
    raise InputError(
      f"--{' and --'.join(missing)} must be given, or --config with a table"
    )
  extractor = options.open_extractor(values)
  if extractor.describe is not None:
    options.refuse(
      values,
      ("kind",),
      "does not apply: a global descriptor is compared with all of them",
    )
    search = options.expansion_options(values)
  else:
    search = options.search_options(values)
    search["expansion"] = options.local_expansion(values)
  result = measurement.evaluate(
    extractor,
    retrieval_sets.open_set(
      "json",
      values.photos,
      ground_truth=values.ground_truth,
      distractors=values.distractors,
      clutter=values.clutter,
    ),
    output=values.output,
    kind=values.kind,
    index_options=options.parse_options(values.option),
    workers=values.workers,
    **search,
  )
  without = result.get("without_expansion")
  for name, value in result.items():
    if isinstance(value, float):
      line = f"{name:>10}  {_with_interval(result, name)}"
      if without:
        line = f"{line:35}without expansion {_with_interval(without, name)}"
      print(line)
  print(
    f"{result['num_queries']} queries and {result['num_distractors']} "
    f"distractor queries in {program.elapsed(start)}; "
    f"{values.output}/metrics.json and precision_recall.png"
  )
  return 0


def evaluate_table(values: flags.FlagValues) -> int:
  """Measures rows of a table; returns the exit status.

  A row that cannot be measured is an error where it was asked for by name, and
  among others it is skipped with a line that says why.
  """
  start = time.perf_counter()
  config = run_config.read(values.config).to_dict()
  table = table_config.read_table(
    config, config_flags.get_override_values(flags.FLAGS["config"])
  )
  table_runs.write_table(table, values.output)
  work = table_runs.sweep if values.sweep else table_runs.run
  measured, failed = 0, collections.Counter()
  for one in table.measurements:
    try:
      result = work(
        table,
        one,
        data=values.data or "",
        output=values.output,
        cache=values.cache,
        workers=values.workers,
      )
    except InputError as error:
      failed[str(error)] += 1
      # What many rows lack is said once.
      if not table.single and failed[str(error)] == 1:
        print(f"{one.row} ({one.place}) skipped: {error}", flush=True)
      continue
    measured += 1
    if values.sweep:
      taken = ", ".join(f"{k} {v}" for k, v in result["chosen"].items())
      print(f"{one.row}: chosen {taken}", flush=True)
      continue
    # Columns that the command line made the same are one measurement.
    for metric in dict.fromkeys(column.metric for column in one.columns):
      name = table_runs.metric_name(result, metric)
      if name is None:
        print(f"{one.row}: no {metric} on {one.place}", flush=True)
        continue
      print(
        f"{one.row} ({one.place}): {metric} {_with_interval(result, name)}",
        flush=True,
      )
  if table.single and failed:
    raise InputError(next(iter(failed)))
  again = failed.total() - len(failed)
  if again:
    print(f"{again} more skipped for the same reasons")
  print(
    f"{measured} of {len(table.measurements)} measurements in "
    f"{program.elapsed(start)}; {values.output}/{table.name}"
  )
  return 0 if measured else 1


def _with_interval(result, name: str) -> str:
  value = result[name]
  if value is None:
    return "not defined"
  low_high = result["intervals"].get(name)
  if low_high is None:
    return f"{value:5.1f}"
  return f"{value:5.1f} [{low_high[0]:.1f}, {low_high[1]:.1f}]"


def main() -> int:
  """Evaluates as the flags say."""
  values = flags.FLAGS
  given = values.config is not None
  if given:
    options.refuse(values, _OWN, "is not for --config; use --config.VALUE")
  else:
    options.refuse(values, _OF_TABLES, "needs --config")
  return evaluate_table(values) if given else evaluate_photographs(values)


if __name__ == "__main__":
  config_flags.DEFINE_config_file(
    "config",
    None,
    "a file of configs/tables, with :all, :small, :ROW or :small,ROW.",
    lock_config=False,
    # `table_config` knows which values there are.
    accept_new_attributes=True,
  )
  flags.DEFINE_string("data", None, "folder of the config's dataset.")
  flags.DEFINE_string("cache", None, "what rows share (OUTPUT/cache).")
  flags.DEFINE_boolean("sweep", False, "choose K, T and threshold on --data.")
  flags.DEFINE_string("photos", None, "the database.")
  flags.DEFINE_string("ground_truth", None, "JSON, see above.")
  flags.DEFINE_string("distractors", None, "folder of distractor queries.")
  flags.DEFINE_multi_string(
    "clutter", [], "more of the database, right for no query; may be repeated."
  )
  flags.DEFINE_string("output", "results", "directory of results.")
  options.define_features()
  options.define_workers()
  options.define_search()
  options.define_expansion()
  flags.adopt_module_key_flags(options)
  flags.DEFINE_enum("kind", "exact", index.KINDS, "of index.")
  flags.DEFINE_multi_string(
    "option", [], "name=value, of the kind of index; may be repeated."
  )
  program.run(main)
