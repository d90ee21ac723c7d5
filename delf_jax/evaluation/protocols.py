"""What counts as right for a query, and the benchmark built on it."""

import dataclasses
import json
import os
from collections.abc import Collection, Mapping, Sequence

from delf_jax.errors import InputError
from delf_jax.evaluation import metrics

Ranking = Sequence[tuple[str, float]]

_LISTS = ("easy", "hard", "junk")
_PRECISIONS = {"R@90": 0.90, "R@95": 0.95}
_CUTOFFS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class QueryTruth:
  """What the database holds for one query.

  Attributes:
    path: the query photograph, relative to the database's root like the rest.
    easy: photographs that clearly show the same place.
    hard: photographs that show it from another side, small, hidden, at night.
    junk: photographs that count neither as right nor as wrong.
  """

  path: str
  easy: tuple[str, ...] = ()
  hard: tuple[str, ...] = ()
  junk: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GroundTruth:
  """The queries of a benchmark and what is right for each of them.

  Attributes:
    queries: in the order of the file, no photograph twice.
    source: where it was read from, for messages.
  """

  queries: tuple[QueryTruth, ...]
  source: str = dataclasses.field(default="the ground truth", compare=False)


def read_ground_truth(path: str | os.PathLike[str]) -> GroundTruth:
  """Reads ground truth in the form of the revisited benchmark, as JSON.

  The form is `{"queries": [{"query": PATH, "easy": [PATH, ...], "hard": [...],
  "junk": [...]}, ...]}`; other keys are ignored.

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
    first = numbers.setdefault(query.path, number)
    if first != number:
      raise InputError(
        f"{source}: {query.path!r} is query {first} and again"
        f" query {number}; keep one"
      )
  if not any(query.easy or query.hard for query in queries):
    raise InputError(
      f"{source}: no query has an easy or hard photograph, so"
      " there is nothing to find"
    )
  return GroundTruth(queries, source)


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


def evaluate(
  ground_truth: GroundTruth,
  rankings: Mapping[str, Ranking],
  distractor_rankings: Mapping[str, Ranking],
) -> dict[str, float | int | None | metrics.PrecisionRecall]:
  """Measures ranked and unranked retrieval.

  Ranked: "medium" counts easy and hard as positives; "hard" counts hard and
  ignores easy; junk is always ignored; positives that were not returned are
  missed; queries without positives are left out of the means. Unranked
  (section 4.2 of the paper): the pairs of all queries and distractor queries
  are accepted by one threshold on their score, R@P is the largest recall whose
  precision is at least P, and every easy and hard positive is to be found.

  Args:
    ground_truth: the queries; each has to have a ranking, an empty one if
      nothing was returned for it.
    rankings: query -> (path, score) pairs, best first, without the query. The
      order alone counts for mAP and mP, the scores alone for R@P. A score that
      is not positive (no inliers) keeps its place in the order, but was not
      returned in the sense of R@P.
    distractor_rankings: the same for queries that have nothing to find.

  Returns:
    `mAP_medium`, `mAP_hard`, `mP@1`, `mP@5`, `mP@10` (medium), `R@90`, `R@95`
    in percent, None where no query has such positives; `num_queries`,
    `num_distractors`; and `curve`, the `PrecisionRecall` behind R@P (fractions,
    and not JSON: pop it before writing the rest).

  Raises:
    ValueError: if `rankings` and the queries disagree, or a ranking holds its
      own query, a photograph twice, or a nan score, or nothing is to be found.
  """
  queries = ground_truth.queries
  if set(rankings) != {query.path for query in queries}:
    raise ValueError("rankings must be of exactly the ground truth's queries")
  medium, hard = [], []
  precisions: dict[int, list[float]] = {k: [] for k in _CUTOFFS}
  scores: list[float] = []
  correct: list[bool] = []
  for query in queries:
    paths = [path for path, _ in rankings[query.path]]
    if query.path in paths:
      raise ValueError(f"{query.path!r} is in its own ranking")
    positives = frozenset(query.easy + query.hard)
    junk = frozenset(query.junk)
    medium.append(metrics.average_precision(paths, positives, junk))
    hard.append(
      metrics.average_precision(paths, query.hard, junk.union(query.easy))
    )
    for k, values in precisions.items():
      values.append(metrics.precision_at_k(paths, positives, junk, k=k))
    for path, score in rankings[query.path]:
      # A nan passes, to be refused by precision_recall.
      if path not in junk and not score <= 0:
        scores.append(score)
        correct.append(path in positives)
  for ranking in distractor_rankings.values():
    returned = [score for _, score in ranking if not score <= 0]
    scores.extend(returned)
    correct.extend([False] * len(returned))
  curve = metrics.precision_recall(
    scores,
    correct,
    sum(len(query.easy) + len(query.hard) for query in queries),
  )
  fractions = {
    "mAP_medium": metrics.mean_over_queries(medium),
    "mAP_hard": metrics.mean_over_queries(hard),
  }
  for k, values in precisions.items():
    fractions[f"mP@{k}"] = metrics.mean_over_queries(values)
  for name, precision in _PRECISIONS.items():
    fractions[name] = metrics.recall_at_precision(curve, precision)
  return {
    **{name: _percent(fraction) for name, fraction in fractions.items()},
    "num_queries": len(queries),
    "num_distractors": len(distractor_rankings),
    "curve": curve,
  }


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
  return QueryTruth(path, *(tuple(entry[key]) for key in _LISTS))


def _percent(fraction: float) -> float | None:
  """Returns percent; None for nan, which JSON cannot say."""
  return None if fraction != fraction else 100 * fraction
