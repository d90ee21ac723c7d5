"""How much a measure would change with other queries of the same kind.

The pairs of one query are alike: it is queries that are drawn again, not pairs.
Queries and distractor queries are drawn apart, since a protocol fixes how many
there are of each.
"""

from typing import NamedTuple

import numpy as np

from delf_jax.evaluation.protocols import Pairs

# Of a sample's distribution, 2.5 % lie below and 2.5 % above the interval.
CONFIDENCE = 0.95
# Entries of a matrix held at a time: 128 MB.
_ENTRIES = 2**24
# Thresholds at a time. More would multiply more zeros where a query has few
# pairs, fewer would copy more where it has many.
_WIDTH = 128


class Resamples(NamedTuple):
  """The measures of each of b samples of queries; fractions, and counts.

  Attributes:
    means: name -> [b] mean over queries; nan where none has such positives.
    recalls: [b, p] largest recall with each of the precisions.
    true_positives: [b, p] most true positives with each of the precisions.
    areas: [b] average precision over all pairs at once.
  """

  means: dict[str, np.ndarray]
  recalls: np.ndarray
  true_positives: np.ndarray
  areas: np.ndarray


def draw(number: int, *, resamples: int, seed: int) -> np.ndarray:
  """Draws `number` of `number` things with replacement, again and again.

  Args:
    number: of things.
    resamples: b, how often.
    seed: of the draws.

  Returns:
    [b, number] uint8: how often each thing was drawn; rows sum to `number`.
  """
  generator = np.random.default_rng(seed)
  counts = np.zeros((resamples, number), np.uint8)
  for row in counts if number else ():
    row += np.bincount(
      generator.integers(0, number, number), minlength=number
    ).astype(np.uint8)
  return counts


def resample(
  pairs: Pairs,
  *,
  precisions: tuple[float, ...],
  resamples: int = 1000,
  seed: int = 0,
) -> Resamples:
  """Measures samples of the queries and of the distractor queries.

  Every number is exactly what the functions of `evaluation.metrics` give if the
  drawn queries are put in a list, each as often as it was drawn.

  Args:
    pairs: of all queries.
    precisions: p of them, from 0 to 1.
    resamples: b, how many samples.
    seed: of the draws.

  Raises:
    ValueError: for a nan score.
  """
  if np.isnan(pairs.scores).any():
    raise ValueError("a score is nan: it cannot be compared with a threshold")
  num_queries = len(pairs.positives)
  drawn = np.concatenate(
    [
      draw(num_queries, resamples=resamples, seed=seed),
      draw(pairs.num_distractors, resamples=resamples, seed=seed + 1),
    ],
    axis=1,
  )
  weights = drawn[:, :num_queries].astype(np.float64)
  return Resamples(
    {name: _means(v, weights) for name, v in pairs.per_query.items()},
    *_unranked(pairs, drawn, weights @ pairs.positives, precisions),
  )


def interval(values: np.ndarray) -> tuple[float, float]:
  """Returns the percentile interval of [b] values, leaving nan out."""
  values = values[~np.isnan(values)]
  if not len(values):
    return float("nan"), float("nan")
  tail = 50 * (1 - CONFIDENCE)
  low, high = np.percentile(values, [tail, 100 - tail])
  return float(low), float(high)


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns the weighted means [b] of values [q] that are not nan."""
  defined = ~np.isnan(values)
  total = weights[:, defined] @ values[defined]
  count = weights[:, defined].sum(axis=1)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _unranked(
  pairs: Pairs,
  drawn: np.ndarray,
  positives: np.ndarray,
  precisions: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns recalls [b, p], true positives [b, p] and areas [b].

  Only scores of correct pairs are thresholds here: between two of them nothing
  is gained and precision falls. They are gone through from the highest, a few
  at a time, so that a matrix product over the queries that have something there
  counts what all samples accept.

  Args:
    pairs: of all queries.
    drawn: [b, q + d] how often each query is in each sample.
    positives: [b] what there is to find in each sample.
    precisions: p of them.
  """
  thresholds = np.unique(pairs.scores[pairs.correct])[::-1]
  # The first threshold that accepts a pair; behind the last for none.
  columns = np.searchsorted(-thresholds, -pairs.scores)
  order = np.argsort(columns, kind="stable")
  ends = np.searchsorted(columns[order], np.arange(len(thresholds) + 1))
  samples = len(drawn)
  best = np.zeros((samples, len(precisions)))
  areas = np.zeros(samples)
  before = np.zeros((samples, 2, 1))  # what higher thresholds accept
  for start in range(0, len(thresholds), _WIDTH):
    stop = min(start + _WIDTH, len(thresholds))
    rows = order[ends[start] : ends[stop]]
    owners, increments = _increments(pairs, rows, columns - start, stop - start)
    step = max(1, _ENTRIES // max(len(owners), 2 * _WIDTH))
    for first in range(0, samples, step):
      part = slice(first, first + step)
      weights = drawn[part][:, owners].astype(np.float64)
      gained = (weights @ increments).reshape(len(weights), 2, stop - start)
      accepted = before[part] + np.cumsum(gained, axis=2)
      before[part] = accepted[:, :, -1:]
      returned, hits = accepted[:, 0], accepted[:, 1]
      precision = hits / np.maximum(returned, 1)
      for number, wanted in enumerate(precisions):
        found = np.where((precision >= wanted) & (returned > 0), hits, 0)
        best[part, number] = np.maximum(best[part, number], found.max(axis=1))
      areas[part] += np.sum(gained[:, 1] * precision, axis=1)
  scale = np.where(positives > 0, positives, np.nan)
  return best / scale[:, None], best, areas / scale


def _increments(
  pairs: Pairs, rows: np.ndarray, columns: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Counts some pairs by query and column.

  Args:
    pairs: of all queries.
    rows: [m] numbers of those that count.
    columns: [n] of all pairs; of those that count, 0 to `width` - 1.
    width: number of columns.

  Returns:
    [k] the queries that they belong to, and [k, 2 * width] float64: all of them
    by column, then the correct ones.
  """
  owners, places = np.unique(pairs.owners[rows], return_inverse=True)
  cells = places * 2 * width + columns[rows]
  right = pairs.correct[rows]
  counts = np.bincount(
    np.concatenate([cells, cells[right] + width]),
    minlength=len(owners) * 2 * width,
  )
  return owners, counts.reshape(len(owners), 2 * width).astype(np.float64)
