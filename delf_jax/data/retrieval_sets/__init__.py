"""Benchmarks of retrieval, read from what their users downloaded."""

import functools
import os
from typing import Any

from delf_jax.data.retrieval_sets import (
  google_landmarks,
  gps,
  holidays,
  own,
  oxford_paris,
)
from delf_jax.data.retrieval_sets.retrieval_set import RetrievalSet
from delf_jax.errors import InputError

__all__ = ["NAMES", "RetrievalSet", "open_set"]

_OPEN = {
  "json": own.open_json,
  "synthetic": own.open_synthetic,
  "oxford5k": functools.partial(oxford_paris.open_classic, city="oxford5k"),
  "paris6k": functools.partial(oxford_paris.open_classic, city="paris6k"),
  "oxford105k": functools.partial(
    oxford_paris.open_classic, city="oxford5k", flickr100k=True
  ),
  "paris106k": functools.partial(
    oxford_paris.open_classic, city="paris6k", flickr100k=True
  ),
  "roxford5k": functools.partial(oxford_paris.open_revisited, city="oxford5k"),
  "rparis6k": functools.partial(oxford_paris.open_revisited, city="paris6k"),
  "roxford5k+1m": functools.partial(
    oxford_paris.open_revisited, city="oxford5k", million=True
  ),
  "rparis6k+1m": functools.partial(
    oxford_paris.open_revisited, city="paris6k", million=True
  ),
  "holidays": holidays.open_holidays,
  "gldv2_retrieval": google_landmarks.open_retrieval,
  "gldv2_recognition": google_landmarks.open_recognition,
  "gps": gps.open_gps,
}

NAMES = tuple(_OPEN)


def open_set(
  name: str, directory: str | os.PathLike, **options: Any
) -> RetrievalSet:
  """Opens a benchmark.

  | names | photographs | queries | measured |
  |---|---|---|---|
  | oxford5k, paris6k | 5,062; 6,392 | 55 boxes | mAP, R@P |
  | oxford105k, paris106k | 100,071 more | the same | the same |
  | roxford5k, rparis6k | 4,993; 6,322 | 70 boxes | easy, medium, hard; R@P |
  | roxford5k+1m, rparis6k+1m | 1,001,001 more | the same | the same |
  | holidays | 1,491 | 500 | mAP, R@P |
  | gldv2_retrieval | 761,757 | by usage | mAP@100, R@P |
  | gldv2_recognition | 1,580,470 | by usage | GAP, top1 |
  | gps | database.csv | queries.csv | TP@P |
  | json | a folder | a JSON file | easy, medium, hard; R@P |
  | synthetic | written if absent | | easy, medium, hard; R@P |

  Of the first four rows, `distractors` adds that many queries from the other
  city (the starred sets of the paper). They are checked by the numbers above,
  which `complete=False` leaves undone; `RetrievalSet.fingerprint` is a hash of
  the names, to compare with others'.

  Queries come with their boxes, and their names (`QueryTruth.id`) contain them:
  whoever extracts `RetrievalSet.query_items` searches with cropped queries.
  Only the option `crop_queries=False` takes the boxes away.

  Args:
    name: one of `NAMES`.
    directory: where its photographs are; see the function that opens it.
    options: of that function.

  Raises:
    InputError: if there is no such set, or it is not there as its authors
      publish it; the message says what to fetch and where to put it.
  """
  if name not in _OPEN:
    raise InputError(f"no retrieval set {name!r}; there are {', '.join(NAMES)}")
  return _OPEN[name](directory, **options)
