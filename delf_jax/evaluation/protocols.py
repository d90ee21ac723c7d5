"""What counts as right for a query, and the benchmark built on it."""

import dataclasses
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from delf_jax.errors import InputError
from delf_jax.evaluation import metrics
from delf_jax.items import Box, Item, is_box

Ranking = Sequence[tuple[str, float]]

_LISTS = ("easy", "hard", "junk")
PRECISIONS = {"R@90": 0.90, "R@95": 0.95}
_CUTOFFS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class QueryTruth:
  """What the database holds for one query.

  Attributes:
    path: the query photograph, relative to the database's root like the rest.
    easy: photographs that clearly show the same place.
    hard: photographs that show it from another side, small, hidden, at night.
    junk: photographs that count neither as right nor as wrong.
    box: the part of the photograph that is the query: edges (top, left, bottom,
      right) in pixels of the upright original; None for all of it.
  """

  path: str
  easy: tuple[str, ...] = ()
  hard: tuple[str, ...] = ()
  junk: tuple[str, ...] = ()
  box: Box | None = None

  @property
  def item(self) -> Item:
    """What to extract for the query: the part in its box, cut out."""
    return Item(self.path, self.box)

  @property
  def id(self) -> str:
    """What rankings are keyed by: the path, with the box if there is one.

    Features of the whole photograph go by another name than the query's, so
    that a query with a box cannot be searched for uncropped by oversight.
    """
    return self.item.name


@dataclasses.dataclass(frozen=True)
class GroundTruth:
  """The queries of a benchmark and what is right for each of them.

  Attributes:
    queries: in the order of the file, no query twice.
    source: where it was read from, for messages.
    keeps_queries: whether a query's own photograph stays in the database and
      counts as the lists say, as in the original Oxford5k and Paris6k, where it
      is one of the positives. Otherwise it is left out of its own search.
  """

  queries: tuple[QueryTruth, ...]
  source: str = dataclasses.field(default="the ground truth", compare=False)
  keeps_queries: bool = False


def read_ground_truth(path: str | os.PathLike[str]) -> GroundTruth:
  """Reads ground truth in the form of the revisited benchmark, as JSON.

  The form is `{"queries": [{"query": PATH, "easy": [PATH, ...], "hard": [...],
  "junk": [...]}, ...]}`; other keys are ignored. A query that is a part of its
  photograph has "box": [top, left, bottom, right], in pixels of the upright
  original; then the photograph may be the query of other boxes too.

  Raises:
    InputError: if the file cannot be read, is not of that form, or contradicts
      itself (a query twice, a photograph twice in one query, a query among its
      own photographs, nothing to find).
  """
  source = f"ground truth {os.fspath(path)!r}"
  try:
    with open(path, "rb") as file:
      content = json.loads(file.read())
  except OSError as error:
    raise InputError(
      f"{source} cannot be read: {error.strerror or error}"
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(f"{source} is not JSON: {error}") from error
  entries = content.get("queries") if isinstance(content, dict) else None
  if not isinstance(entries, list):
    raise InputError(
      f'{source} has no list of queries: it must be {{"queries": [...]}}'
    )
  if not entries:
    raise InputError(f"{source} has no queries")
  queries = tuple(
    _read_query(entry, f"{source}, query {number}")
    for number, entry in enumerate(entries, start=1)
  )
  numbers: dict[str, int] = {}
  for number, query in enumerate(queries, start=1):
    first = numbers.setdefault(query.id, number)
    if first != number:
      raise InputError(
        f"{source}: {query.id!r} is query {first} and again"
        f" query {number}; keep one"
      )
  if not any(query.easy or query.hard for query in queries):
    raise InputError(
      f"{source}: no query has an easy or hard photograph, so"
      " there is nothing to find"
    )
  return GroundTruth(queries, source)


def uncropped(ground_truth: GroundTruth) -> GroundTruth:
  """Takes the boxes away, so that whole photographs are the queries.

  Published numbers are of cropped queries; this is for comparison alone.
  Queries that differed only in their boxes become one.
  """
  queries = {
    query.path: dataclasses.replace(query, box=None)
    for query in ground_truth.queries
  }
  return dataclasses.replace(ground_truth, queries=tuple(queries.values()))


def check_paths(ground_truth: GroundTruth, paths: Collection[str]) -> None:
  """Checks that every photograph of the ground truth is in the database.

  Args:
    ground_truth: what to check.
    paths: the photographs of the database, in the same relative form.

  Raises:
    InputError: naming the first few that are not there.
  """
  known = frozenset(paths)
  missing = list(
    dict.fromkeys(
      path
      for query in ground_truth.queries
      for path in (query.path, *query.easy, *query.hard, *query.junk)
      if path not in known
    )
  )
  if missing:
    named = ", ".join(repr(path) for path in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise InputError(
      f"{ground_truth.source}: not among the {len(known)} photographs of the"
      f" database: {named}{more}; are the paths relative to --photos?"
    )


class Pairs(NamedTuple):
  """What was returned, of all queries and distractor queries, and what counts.

  Attributes:
    per_query: name of a measure -> [q] float64, fractions; nan for a query
      without such positives, which its mean leaves out.
    scores: [n] float64, of the returned (query, photograph) pairs.
    correct: [n] bool.
    owners: [n] int64, the query of each pair: 0 to q - 1, then distractors.
    positives: [q] int64, how many correct pairs there are to find.
    num_distractors: d.
  """

  per_query: dict[str, np.ndarray]
  scores: np.ndarray
  correct: np.ndarray
  owners: np.ndarray
  positives: np.ndarray
  num_distractors: int


def evaluate(
  ground_truth: GroundTruth,
  rankings: Mapping[str, Ranking],
  distractor_rankings: Mapping[str, Ranking],
) -> dict[str, float | int | None | metrics.PrecisionRecall]:
  """Measures ranked and unranked retrieval.

  Ranked, in the three set-ups of the revisited benchmark: "easy" counts easy as
  positives and ignores hard; "medium" counts both; "hard" counts hard and
  ignores easy; junk is always ignored; positives that were not returned are
  missed; queries without positives are left out of the means. Unranked
  (section 4.2 of the paper): the pairs of all queries and distractor queries
  are accepted by one threshold on their score, R@P is the largest recall whose
  precision is at least P, and every easy and hard positive is to be found.

  Args:
    ground_truth: the queries; each has to have a ranking, an empty one if
      nothing was returned for it.
    rankings: query id -> (path, score) pairs, best first, without the query's
      own photograph (unless the ground truth keeps it). The order alone counts
      for mAP and mP, the scores alone for R@P. A score that is not positive
      (no inliers) keeps its place in the order, but was not returned in the
      sense of R@P.
    distractor_rankings: the same for queries that have nothing to find.

  Returns:
    `mAP_easy`, `mAP_medium`, `mAP_hard`, `mP@1`, `mP@5`, `mP@10` (medium; with
    `_easy` and `_hard` behind them, of those), `R@90`, `R@95` in percent, None
    where no query has such positives; `num_queries`, `num_distractors`; and
    `curve`, the `PrecisionRecall` behind R@P (fractions, and not JSON: pop it
    before writing the rest).

  Raises:
    ValueError: if `rankings` and the queries disagree, or a ranking holds its
      own query, a photograph twice, or a nan score, or nothing is to be found.
  """
  pairs = collect(ground_truth, rankings, distractor_rankings)
  curve = metrics.precision_recall(
    pairs.scores, pairs.correct, int(pairs.positives.sum())
  )
  fractions = {
    name: metrics.mean_over_queries(values)
    for name, values in pairs.per_query.items()
  }
  for name, precision in PRECISIONS.items():
    fractions[name] = metrics.recall_at_precision(curve, precision)
  return {
    **{name: percent(fraction) for name, fraction in fractions.items()},
    "num_queries": len(ground_truth.queries),
    "num_distractors": len(distractor_rankings),
    "curve": curve,
  }


def collect(
  ground_truth: GroundTruth,
  rankings: Mapping[str, Ranking],
  distractor_rankings: Mapping[str, Ranking],
) -> Pairs:
  """Judges what was returned; see `evaluate`, which sums it up."""
  queries = ground_truth.queries
  if set(rankings) != {query.id for query in queries}:
    raise ValueError("rankings must be of exactly the ground truth's queries")
  per_query: dict[str, list[float]] = {}
  scores, correct, owners = [], [], []
  for number, query in enumerate(queries):
    paths = [path for path, _ in rankings[query.id]]
    if query.path in paths and not ground_truth.keeps_queries:
      raise ValueError(f"{query.path!r} is in its own ranking")
    positives = frozenset(query.easy + query.hard)
    junk = frozenset(query.junk)
    for setup, wanted, ignored in (
      ("easy", query.easy, junk.union(query.hard)),
      ("medium", positives, junk),
      ("hard", query.hard, junk.union(query.easy)),
    ):
      area = metrics.average_precision(paths, wanted, ignored)
      per_query.setdefault(f"mAP_{setup}", []).append(area)
      # Those of medium go by the name that they had before there were others.
      suffix = "" if setup == "medium" else f"_{setup}"
      for k in _CUTOFFS:
        share = metrics.precision_at_k(paths, wanted, ignored, k=k)
        per_query.setdefault(f"mP@{k}{suffix}", []).append(share)
    for path, score in rankings[query.id]:
      # A nan passes, to be refused by precision_recall.
      if path not in junk and not score <= 0:
        scores.append(score)
        correct.append(path in positives)
        owners.append(number)
  for number, ranking in enumerate(distractor_rankings.values(), len(queries)):
    returned = [score for _, score in ranking if not score <= 0]
    scores.extend(returned)
    correct.extend([False] * len(returned))
    owners.extend([number] * len(returned))
  return Pairs(
    per_query={name: np.array(v) for name, v in per_query.items()},
    scores=np.array(scores, np.float64),
    correct=np.array(correct, bool),
    owners=np.array(owners, np.int64),
    positives=np.array([len(q.easy) + len(q.hard) for q in queries], np.int64),
    num_distractors=len(distractor_rankings),
  )


def percent(fraction: float) -> float | None:
  """Returns percent; None for nan, which JSON cannot say."""
  return None if fraction != fraction else 100 * fraction


def _read_query(entry: object, where: str) -> QueryTruth:
  """Checks one query of the file; `where` begins its messages."""
  if not isinstance(entry, dict):
    raise InputError(f"{where} is not an object with a query and its lists")
  for key in ("query", *_LISTS):
    if key not in entry:
      raise InputError(f"{where} has no {key!r}")
  path = entry["query"]
  if not isinstance(path, str) or not path:
    raise InputError(f"{where}: 'query' must be the path of a photograph")
  lists_of: dict[str, str] = {}
  for key in _LISTS:
    if not isinstance(entry[key], list) or not all(
      isinstance(item, str) and item for item in entry[key]
    ):
      raise InputError(f"{where}: {key!r} must be a list of paths")
    for item in entry[key]:
      if item == path:
        raise InputError(f"{where} lists itself, {path!r}, as {key!r}")
      if item in lists_of:
        raise InputError(
          f"{where} lists {item!r} as {lists_of[item]!r} and again as {key!r}"
        )
      lists_of[item] = key
  box = entry.get("box")
  if box is not None and not is_box(box):
    raise InputError(
      f"{where}: 'box' must be [top, left, bottom, right], edges in pixels"
    )
  return QueryTruth(
    path,
    *(tuple(entry[key]) for key in _LISTS),
    box=None if box is None else tuple(box),
  )
