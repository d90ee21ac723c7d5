"""Finds the photographs of an index that show the same place as a query.

  python -m delf_jax.query --index INDEX --photo FILE
  python -m delf_jax.query --index INDEX --photo FILE --report DIR
  python -m delf_jax.query --photo FILE --against FILE2 --features RUN

Prints a line a match (path, probability, inliers, what the transform does and
its [3, 3] numbers, which map (y, x, 1) of the query to (y, x, 1) of the match,
for a homography up to a factor), or "no match"; both exit with 0. --json prints
the same for programs. --report writes DIR/index.html with both photographs side
by side and the inliers drawn. A photograph that is itself in the index does not
find itself. --against compares two photographs without an index.

Photographs that it finds are asked again, --expansion of them, and what they
find is found by way of them ("via"): the side of a building finds its back. Its
probability is the product of those of the matches on the way, and inliers and
transform are those of the last. It is called a match if the query itself also
matches enough of what is linked to it, so that one mistake brings no place.

Of global descriptors it prints a line a photograph, the most similar first
(path, similarity), as many as --most says; nothing is verified, so that none is
no match. --expansion asks again with the mean of the query and what it found.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from delf_jax import (
  database,
  extraction,
  extractors,
  html_report,
  options,
  presentation,
  program,
  retrieval,
)
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.global_descriptors import global_search
from delf_jax.pictures import drawing

# What only one of the two forms takes, and what only verified matches have.
_OF_AN_INDEX = ("store", "verify", "candidates", "votes")
_OF_A_PAIR = ("max_side", *options.FEATURE_OPTIONS)
_VERIFIED = ("report", "min_probability")


def as_json(
  photo: str,
  matches: Sequence[retrieval.Match],
  accepted: Sequence[retrieval.Match],
) -> dict[str, Any]:
  """Describes a search for programs: the matches and the best rejected one."""

  def describe(match):
    return {
      "path": match.path,
      "via": list(match.via),
      "probability": round(match.probability, 6),
      "support": round(match.support, 6),
      "inliers": match.inlier_count,
      "score": match.score,
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


def compare_photographs(
  extractor: extractors.Extractor, photo: str, other: str, **search: Any
) -> tuple[Photograph, retrieval.Match]:
  """Matches two photographs, without an index.

  Args:
    extractor: of their features.
    photo: the query.
    other: what it is compared with.
    **search: options of `retrieval.compare`.

  Returns:
    the query, decoded, and the match, whose path is `other`.

  Raises:
    InputError: if a photograph cannot be used.
  """
  photograph, features = extraction.extract_file(extractor, photo)
  image, others = extraction.extract_file(extractor, other)
  match = retrieval.compare(
    features,
    (photograph.height, photograph.width),
    others,
    (image.height, image.width),
    **search,
  )
  return photograph, dataclasses.replace(match, path=other)


def rank_photographs(
  values: flags.FlagValues, opened: database.PhotographDatabase
) -> int:
  """Ranks the photographs of an index by global descriptors."""
  options.refuse(
    values,
    (*_VERIFIED, "database_expansion"),
    "does not apply to global descriptors here",
  )
  found = options.expansion_options(values)
  _, ranking = opened.rank(
    values.photo, expansion=found["expansion"], alpha=found["alpha"]
  )
  _print_similar(values, ranking[: values.most])
  return 0


def compare_descriptors(
  values: flags.FlagValues, extractor: extractors.Extractor
) -> int:
  """Compares two photographs by global descriptors."""
  options.refuse(
    values,
    (*_VERIFIED, *options.SEARCH_OPTIONS, *options.EXPANSION_OPTIONS),
    "does not apply to two global descriptors",
  )
  one, other = (
    extraction.extract_file(extractor, path)[1].descriptors
    for path in (values.photo, values.against)
  )
  found = [
    global_search.Found(values.against, float(similarity))
    for similarity in (one @ other.T).ravel()
  ]
  _print_similar(values, found)
  return 0


def _print_similar(
  values: flags.FlagValues, found: Sequence[global_search.Found]
) -> None:
  if values.json:
    similar = [
      {"path": one.path, "similarity": round(one.score, 6)} for one in found
    ]
    print(json.dumps({"photo": values.photo, "similar": similar}))
    return
  for one in found:
    print(f"{drawing.visible(one.path)}  similarity {one.score:.4f}")
  if not found:
    print("nothing to compare: too small for the network")


def main() -> int:
  """Searches as the flags say."""
  values = flags.FLAGS
  search = options.search_options(values)
  if (values.index is None) == (values.against is None):
    raise InputError(
      "give either --index, to search it, or --against, to compare two "
      "photographs"
    )
  if values.against is not None:
    options.refuse(
      values, _OF_AN_INDEX, "is an option of a search; --against has no index"
    )
    extractor = options.open_extractor(values)
    if extractor.describe is not None:
      return compare_descriptors(values, extractor)
    options.refuse(
      values, options.EXPANSION_OPTIONS, "does not apply to two photographs"
    )
    for name in ("candidates", "votes"):
      del search[name]
    photograph, match = compare_photographs(
      extractor, values.photo, values.against, **search
    )
    matches, photos = [match], ""
  else:
    options.refuse(
      values, _OF_A_PAIR, "does not apply: the index says how it was extracted"
    )
    opened = database.open_database(
      values.index,
      store_directory=values.store,
      features=values.features,
      verify=values.verify,
    )
    if opened.extractor.describe is not None:
      return rank_photographs(values, opened)
    photograph, matches = opened.search(
      values.photo,
      expansion=options.local_expansion(values),
      least=values.min_probability,
      **search,
    )
    photos = opened.photos
  accepted = retrieval.accept(matches, min_probability=values.min_probability)
  if values.json:
    print(json.dumps(as_json(values.photo, matches, accepted)))
  elif accepted:
    for match in accepted:
      numbers = " ".join(f"{value:.5g}" for value in match.transform.ravel())
      print(
        f"{drawing.visible(match.path)}  {presentation.describe_match(match)}  "
        f"[{numbers}]"
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
        photos,
        min_probability=values.min_probability,
      ),
    )
    if not values.json:
      print(f"report: {page}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("index", None, "what delf_jax.build_index wrote.")
  flags.DEFINE_string("photo", None, "the query photograph.", required=True)
  flags.DEFINE_string(
    "against", None, "a photograph to compare with, instead of an index."
  )
  flags.DEFINE_string("store", None, "the store, if it was moved.")
  flags.DEFINE_bool(
    "verify",
    True,
    "read all of the index first and compare checksums; --noverify opens a "
    "huge one at once, if you trust it.",
  )
  flags.DEFINE_float(
    "min_probability",
    retrieval.MIN_PROBABILITY,
    "photographs that match with a lower probability are no matches.",
    lower_bound=0.0,
    upper_bound=1.0,
  )
  options.define_features()
  options.define_search()
  options.define_expansion()
  flags.adopt_module_key_flags(options)
  flags.DEFINE_integer(
    "most", 10, "photographs listed by global descriptors.", lower_bound=1
  )
  flags.DEFINE_bool("json", False, "print JSON.")
  flags.DEFINE_string("report", None, "write an HTML report here.")
  program.run(main)
