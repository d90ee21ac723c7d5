"""Finds the photographs of an index that show the same place as a query.

  python -m delf_jax.query --index INDEX --photo FILE
  python -m delf_jax.query --index INDEX --photo FILE --report DIR

Prints a line a match (path, inliers, what the affine transform does and its
[2, 3] numbers, which map (y, x, 1) of the query to (y, x) of the match), or "no
match"; both exit with 0. --json prints the same for programs. --report
writes DIR/index.html with both photographs side by side and the inliers drawn.
A photograph that is itself in the index does not find itself.
"""

import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from delf_jax import (
  database,
  drawing,
  html_report,
  options,
  presentation,
  program,
  retrieval,
)


def as_json(
  photo: str,
  matches: Sequence[retrieval.Match],
  accepted: Sequence[retrieval.Match],
) -> dict[str, Any]:
  """Describes a search for programs: the matches and the best rejected one."""

  def describe(match):
    return {
      "path": match.path,
      "inliers": match.score,
      "expected_by_chance": round(match.expected_by_chance(), 2),
      "votes": match.votes,
      "transform": match.transform.tolist(),
    }

  rejected = [match for match in matches if match not in accepted]
  return {
    "photo": photo,
    "matches": [describe(match) for match in accepted],
    "best_rejected": describe(rejected[0]) if rejected else None,
  }


def main() -> int:
  """Searches as the flags say."""
  values = flags.FLAGS
  opened = database.open_database(
    values.index,
    store_directory=values.store,
    features=values.features,
    verify=values.verify,
  )
  photograph, matches = opened.search(
    values.photo, **options.search_options(values)
  )
  accepted = retrieval.accept(matches, min_inliers=values.min_inliers)
  if values.json:
    print(json.dumps(as_json(values.photo, matches, accepted)))
  elif accepted:
    for match in accepted:
      numbers = " ".join(f"{value:.3f}" for value in match.transform.ravel())
      print(
        f"{drawing.visible(match.path)}  inliers {match.score}  "
        f"{html_report.describe_transform(match.transform)}  [{numbers}]"
      )
  else:
    print("no match")
  if values.report:
    page = html_report.write_report(
      values.report,
      title="The same place?",
      sections=presentation.query_sections(
        values.photo,
        photograph,
        matches,
        opened.photos,
        min_inliers=values.min_inliers,
      ),
    )
    if not values.json:
      print(f"report: {page}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string(
    "index", None, "what delf_jax.build_index wrote.", required=True
  )
  flags.DEFINE_string("photo", None, "the query photograph.", required=True)
  flags.DEFINE_string("store", None, "the store, if it was moved.")
  flags.DEFINE_string("features", None, "the checkpoint, if it was moved.")
  flags.DEFINE_bool(
    "verify",
    True,
    "read all of the index first and compare checksums; --noverify opens a "
    "huge one at once, if you trust it.",
  )
  flags.DEFINE_integer(
    "min_inliers",
    retrieval.MIN_INLIERS,
    "fewer inliers are no match.",
    lower_bound=1,
  )
  options.define_search()
  flags.adopt_module_key_flags(options)
  flags.DEFINE_bool("json", False, "print JSON.")
  flags.DEFINE_string("report", None, "write an HTML report here.")
  program.run(main)
