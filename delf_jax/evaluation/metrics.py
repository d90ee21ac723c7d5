"""Pure functions of rankings and scores; fractions, not percent.

A ranking is a sequence of distinct ids (paths, rows: anything hashable), best
first. Junk is taken out of it before anything is counted, so junk costs nothing
and earns nothing. Positives that are absent from a ranking were missed.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np


class PrecisionRecall(NamedTuple):
  """One point for each distinct score, from the highest to the lowest.

  Attributes:
    thresholds: [t] float64, strictly decreasing. What scores at least the
      threshold is accepted.
    precision: [t] float64, the correct share of what is accepted.
    recall: [t] float64, the accepted share of the positives; never decreases.
  """

  thresholds: np.ndarray
  precision: np.ndarray
  recall: np.ndarray


class PrecisionCounts(NamedTuple):
  """One point for each distinct score, from the highest to the lowest.

  For sets of which nobody knows how much there is to find.

  Attributes:
    thresholds: [t] float64, strictly decreasing. What scores at least the
      threshold is accepted.
    precision: [t] float64, the correct share of what is accepted.
    true_positives: [t] int64, how much of it is correct; never decreases.
  """

  thresholds: np.ndarray
  precision: np.ndarray
  true_positives: np.ndarray


def average_precision(
  ranking: Sequence[Hashable],
  positives: Collection[Hashable],
  junk: Collection[Hashable] = (),
) -> float:
  """Area under one query's precision-recall curve, by the trapezoidal rule.

  Each positive at (0-based) rank r with i positives before it adds the mean of
  the precision before it, i / r (1 at the top of the list), and after it,
  (i + 1) / (r + 1), divided by the number of positives. This is the measure of
  the Oxford and Paris benchmarks, plain and revisited; the rectangular one is
  larger.

  Args:
    ranking: distinct ids, best first.
    positives: ids to be found; those absent from `ranking` add nothing.
    junk: ids to be ignored.

  Returns:
    In [0, 1]; nan without positives, where it is not defined.

  Raises:
    ValueError: for an id that is ranked twice, or positive and junk.
  """
  ranks = _positive_ranks(ranking, positives, junk)
  num_positives = len(frozenset(positives))
  if not num_positives:
    return float("nan")
  found = np.arange(len(ranks))
  before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
  after = (found + 1) / (ranks + 1)
  return float(np.sum(before + after) / (2 * num_positives))


def average_precision_at_k(
  ranking: Sequence[Hashable],
  positives: Collection[Hashable],
  junk: Collection[Hashable] = (),
  *,
  k: int = 100,
) -> float:
  """Average precision of the first k, as Google Landmarks v2 defines it.

  The precision at each positive among the first k, summed, and divided by the
  number of positives or by k, whichever is less (Weyand et al., Google
  Landmarks Dataset v2, 2020, equation 2). It is the rectangular rule.

  Args:
    ranking: distinct ids, best first.
    positives: ids to be found.
    junk: ids to be ignored.
    k: at least 1.

  Returns:
    In [0, 1]; nan without positives.

  Raises:
    ValueError: for k below 1, an id that is ranked twice, or positive and junk.
  """
  if k < 1:
    raise ValueError(f"k must be at least 1, not {k}")
  ranks = _positive_ranks(ranking, positives, junk)
  num_positives = len(frozenset(positives))
  if not num_positives:
    return float("nan")
  ranks = ranks[ranks < k]
  precisions = np.arange(1, len(ranks) + 1) / (ranks + 1)
  return float(np.sum(precisions) / min(num_positives, k))


def precision_at_k(
  ranking: Sequence[Hashable],
  positives: Collection[Hashable],
  junk: Collection[Hashable] = (),
  *,
  k: int,
) -> float:
  """Share of positives among the first k, as the revisited benchmark has it.

  If every positive is among the first k, then k is lowered to the rank of the
  last of them: a query with 3 positives can reach 1 at k = 10. Otherwise k
  stays, also where the ranking is shorter: places left empty are wrong.

  Args:
    ranking: distinct ids, best first.
    positives: ids to be found.
    junk: ids to be ignored; they take no place among the first k.
    k: at least 1.

  Returns:
    In [0, 1]; nan without positives.

  Raises:
    ValueError: for k below 1, an id that is ranked twice, or positive and junk.
  """
  if k < 1:
    raise ValueError(f"k must be at least 1, not {k}")
  ranks = _positive_ranks(ranking, positives, junk)
  num_positives = len(frozenset(positives))
  if not num_positives:
    return float("nan")
  found = int(np.sum(ranks < k))
  places = int(ranks[-1]) + 1 if found == num_positives else k
  return found / places


def mean_over_queries(values: Iterable[float]) -> float:
  """Mean of the values that are defined; nan if none is.

  Queries without positives have no average precision (nan), and the revisited
  benchmark leaves them out.
  """
  values = np.fromiter(values, np.float64)
  values = values[~np.isnan(values)]
  return float(np.mean(values)) if len(values) else float("nan")


def precision_recall(
  scores: np.ndarray, correct: np.ndarray, num_positives: int
) -> PrecisionRecall:
  """Precision and recall of everything returned, at every threshold.

  Equations 2 and 3 of the paper: the retrieved pairs of all queries are taken
  together, whichever query they belong to, and one threshold accepts or rejects
  them. Equal scores are accepted together, so the order of the input does not
  matter.

  Args:
    scores: [n] of every retrieved (query, photograph) pair, higher is better.
    correct: [n] bool, whether the pair shows the same place.
    num_positives: how many correct pairs there are to find, retrieved or not.

  Returns:
    The curve, empty if nothing was retrieved.

  Raises:
    ValueError: for nan scores, shapes that disagree, no positives at all, or
      more correct pairs than there are positives.
  """
  found = int(np.sum(correct))
  if num_positives < max(1, found):
    raise ValueError(
      f"{found} correct pairs and {num_positives} positives: recall is"
      " not defined"
    )
  curve = precision_counts(scores, correct)
  return PrecisionRecall(
    curve.thresholds, curve.precision, curve.true_positives / num_positives
  )


def precision_counts(
  scores: np.ndarray, correct: np.ndarray
) -> PrecisionCounts:
  """Precision and true positives of everything returned, at every threshold.

  The precision-TP curve of the paper's figure 4. Equal scores are accepted
  together, so the order of the input does not matter.

  Args:
    scores: [n] of every retrieved (query, photograph) pair, higher is better.
    correct: [n] bool, whether the pair shows the same place.

  Returns:
    The curve, empty if nothing was retrieved.

  Raises:
    ValueError: for nan scores, or shapes that disagree.
  """
  scores = np.asarray(scores, np.float64)
  correct = np.asarray(correct, bool)
  if scores.ndim != 1 or scores.shape != correct.shape:
    raise ValueError(
      f"scores {scores.shape} and correct {correct.shape} must both be [n]"
    )
  if np.isnan(scores).any():
    raise ValueError("a score is nan: it cannot be compared with a threshold")
  order = np.argsort(-scores, kind="stable")
  scores = scores[order]
  hits = np.cumsum(correct[order])
  is_last_of_its_score = np.append(scores[1:] != scores[:-1], True)
  last = np.flatnonzero(is_last_of_its_score[: len(scores)])
  return PrecisionCounts(
    thresholds=scores[last],
    precision=hits[last] / (last + 1),
    true_positives=hits[last],
  )


def recall_at_precision(curve: PrecisionRecall, precision: float) -> float:
  """The largest recall of any threshold with at least this precision.

  R@90% of the paper for `precision` 0.9. Nothing is interpolated: the result
  is the recall of a threshold that a user could set, and 0 if none is precise
  enough.
  """
  return float(np.max(curve.recall[curve.precision >= precision], initial=0.0))


def true_positives_at_precision(
  curve: PrecisionCounts, precision: float, *, interpolate: bool = False
) -> float:
  """The most true positives of any threshold with at least this precision.

  TP@90% of the paper for `precision` 0.9 (section 5.4).

  Args:
    curve: of precision and true positives.
    precision: from 0 to 1.
    interpolate: goes on from that threshold in a straight line towards the
      next, to where the precision is met exactly. The paper's numbers are not
      whole, so something of the kind was done there; by default nothing is, and
      the result is what a user could have.

  Returns:
    a count; 0 if no threshold is precise enough.
  """
  enough = np.flatnonzero(curve.precision >= precision)
  if not len(enough):
    return 0.0
  last = int(enough[-1])
  found = float(curve.true_positives[last])
  if not interpolate or last + 1 == len(curve.precision):
    return found
  above, below = curve.precision[last : last + 2]
  more = float(curve.true_positives[last + 1]) - found
  return found + more * float((above - precision) / (above - below))


def global_average_precision(
  scores: np.ndarray, correct: np.ndarray, num_positives: int
) -> float:
  """Average precision over the predictions of all queries at once (GAP).

  Also micro-AP: the precision down to each correct prediction, summed, and
  divided by the number of queries that have something to find (Perronnin et
  al., 2009; Google Landmarks v2). There, predictions of one score are sorted by
  their ids; here they are accepted together, so that the order of the input
  does not matter.

  Args:
    scores: [n] confidence of each prediction, at most one a query.
    correct: [n] bool.
    num_positives: queries with something to find.

  Returns:
    In [0, 1].

  Raises:
    ValueError: as `precision_recall`.
  """
  curve = precision_recall(scores, correct, num_positives)
  gained = np.diff(curve.recall, prepend=0.0)
  return float(np.sum(gained * curve.precision))


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
  """Probability that a positive scores above a negative; ties count half.

  Args:
    scores: [n] float.
    positive: [n] bool, with some of both kinds.

  Raises:
    ValueError: if there are no positives or no negatives.
  """
  scores, positive = np.asarray(scores), np.asarray(positive, bool)
  above = int(positive.sum())
  below = len(positive) - above
  if not above or not below:
    raise ValueError("an area needs positives and negatives")
  _, groups, sizes = np.unique(scores, return_inverse=True, return_counts=True)
  ranks = np.cumsum(sizes) - (sizes - 1) / 2  # of a group of ties, the mean
  wins = ranks[groups][positive].sum() - above * (above + 1) / 2
  return float(wins / (above * below))


def _positive_ranks(
  ranking: Sequence[Hashable],
  positives: Collection[Hashable],
  junk: Collection[Hashable],
) -> np.ndarray:
  """Returns the 0-based ranks of the ranked positives, junk taken out."""
  positives, junk = frozenset(positives), frozenset(junk)
  if positives & junk:
    raise ValueError(
      f"positive and junk: {sorted(map(repr, positives & junk))}"
    )
  if len(frozenset(ranking)) != len(ranking):
    raise ValueError("the ranking has an id twice")
  kept = [item for item in ranking if item not in junk]
  return np.asarray(
    [rank for rank, item in enumerate(kept) if item in positives], np.int64
  )
