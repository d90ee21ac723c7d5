import math
from fractions import Fraction

import numpy as np
import pytest

from delf_jax.evaluation import metrics


def slow_average_precision(ranking, positives, junk):
  """Walks down the list keeping recall and precision, in exact fractions."""
  area = Fraction(0)
  old_recall, old_precision = Fraction(0), Fraction(1)
  hits = seen = 0
  for item in ranking:
    if item in junk:
      continue
    seen += 1
    hits += item in positives
    recall, precision = Fraction(hits, len(positives)), Fraction(hits, seen)
    area += (recall - old_recall) * (old_precision + precision) / 2
    old_recall, old_precision = recall, precision
  return float(area)


def slow_precision_at_k(ranking, positives, junk, k):
  """The revisited formula; what was not returned has an infinite rank."""
  kept = [item for item in ranking if item not in junk]
  ranks = [
    kept.index(item) + 1 if item in kept else math.inf for item in positives
  ]
  k = min(max(ranks), k)
  return sum(rank <= k for rank in ranks) / k


def slow_precision_recall(scores, correct, num_positives):
  """Accepts everything at or above each score, one score at a time."""
  points = []
  for threshold in sorted(set(scores), reverse=True):
    accepted = [
      c for s, c in zip(scores, correct, strict=True) if s >= threshold
    ]
    points.append(
      (threshold, sum(accepted) / len(accepted), sum(accepted) / num_positives)
    )
  return points


def random_ranking(rng):
  """A ranking of part of 20 ids, positives (not all ranked) and junk."""
  ids = rng.permutation(20)
  ranking = list(ids[: rng.integers(0, 20)])
  labels = rng.choice(["positive", "junk", "negative"], 20, p=[0.3, 0.3, 0.4])
  positives = {item for item in range(20) if labels[item] == "positive"}
  junk = {item for item in range(20) if labels[item] == "junk"}
  return ranking, positives or {20}, junk


def test_average_precision_by_hand():
  # Hits at ranks 1 and 3 of 2 positives: (1 + 1) / 4 + (1/2 + 2/3) / 4.
  assert metrics.average_precision("axb", "ab") == pytest.approx(0.5 + 7 / 24)
  # A single positive at rank 2 averages the precisions 0 and 1/2.
  assert metrics.average_precision("xa", "a") == pytest.approx(0.25)
  assert metrics.average_precision("ab", "ab") == 1
  assert metrics.average_precision("xy", "ab") == 0
  assert metrics.average_precision("", "ab") == 0


def test_positives_that_were_not_returned_are_missed():
  assert metrics.average_precision("ab", "abcd") == pytest.approx(0.5)


def test_without_positives_nothing_is_defined():
  assert math.isnan(metrics.average_precision("xy", ""))
  assert math.isnan(metrics.precision_at_k("xy", "", k=1))


def test_average_precision_is_the_slow_one():
  rng = np.random.default_rng(0)
  for _ in range(300):
    ranking, positives, junk = random_ranking(rng)
    assert metrics.average_precision(ranking, positives, junk) == (
      pytest.approx(slow_average_precision(ranking, positives, junk), abs=1e-12)
    )


def test_junk_costs_nothing_wherever_it_is():
  for ranking in ("jaxb", "ajxb", "axjb", "axbj", "jaixb"):
    assert metrics.average_precision(ranking, "ab", "ij") == (
      metrics.average_precision("axb", "ab")
    )
    assert metrics.precision_at_k(ranking, "ab", "ij", k=2) == 0.5


def test_precision_at_k_by_hand():
  assert metrics.precision_at_k("axb", "ab", k=1) == 1
  assert metrics.precision_at_k("axb", "ab", k=2) == 0.5
  # All found by rank 3, so that is where the list is cut.
  assert metrics.precision_at_k("axbyz", "ab", k=5) == pytest.approx(2 / 3)
  # One is missing, so it is not cut, and the empty places are wrong.
  assert metrics.precision_at_k("ax", "ab", k=5) == pytest.approx(1 / 5)
  # The last positive is ranked, but after k.
  assert metrics.precision_at_k("axyb", "ab", k=3) == pytest.approx(1 / 3)


def test_precision_at_k_is_the_revisited_formula():
  rng = np.random.default_rng(1)
  for _ in range(300):
    ranking, positives, junk = random_ranking(rng)
    for k in (1, 5, 10):
      assert metrics.precision_at_k(ranking, positives, junk, k=k) == (
        pytest.approx(slow_precision_at_k(ranking, positives, junk, k))
      )


def test_means_leave_out_what_is_not_defined():
  assert metrics.mean_over_queries([0.5, math.nan, 1.0]) == 0.75
  assert math.isnan(metrics.mean_over_queries([math.nan]))
  assert math.isnan(metrics.mean_over_queries([]))


def test_precision_recall_by_hand():
  curve = metrics.precision_recall([9, 7, 7, 3], [True, True, False, True], 5)
  np.testing.assert_array_equal(curve.thresholds, [9, 7, 3])
  np.testing.assert_allclose(curve.precision, [1, 2 / 3, 3 / 4])
  np.testing.assert_allclose(curve.recall, [1 / 5, 2 / 5, 3 / 5])
  # Precision may recover below a bad threshold: the largest recall counts.
  assert metrics.recall_at_precision(curve, 0.75) == pytest.approx(3 / 5)
  assert metrics.recall_at_precision(curve, 0.76) == pytest.approx(1 / 5)


def test_no_threshold_is_precise_enough():
  curve = metrics.precision_recall([2, 2], [True, False], 1)
  assert metrics.recall_at_precision(curve, 0.9) == 0


def test_nothing_was_retrieved():
  curve = metrics.precision_recall([], [], 3)
  assert [len(values) for values in curve] == [0, 0, 0]
  assert metrics.recall_at_precision(curve, 0.9) == 0


def test_a_precision_that_is_exactly_reached_counts():
  for precision, hits, returned in ((0.9, 18, 20), (0.95, 95, 100)):
    correct = np.arange(returned) < hits
    curve = metrics.precision_recall(np.ones(returned), correct, returned)
    assert metrics.recall_at_precision(curve, precision) == hits / returned


def test_precision_recall_is_the_brute_force_in_any_order():
  rng = np.random.default_rng(2)
  for _ in range(100):
    n = int(rng.integers(1, 60))
    scores = rng.integers(1, 12, n).astype(float)
    correct = rng.random(n) < scores / 12
    num_positives = int(correct.sum() + rng.integers(1, 5))
    points = slow_precision_recall(
      scores.tolist(), correct.tolist(), num_positives
    )
    shuffled = rng.permutation(n)
    for order in (np.arange(n), shuffled):
      curve = metrics.precision_recall(
        scores[order], correct[order], num_positives
      )
      np.testing.assert_array_equal(np.stack(curve, axis=1), points)
      for precision in (0.5, 0.9, 0.95):
        assert metrics.recall_at_precision(curve, precision) == max(
          [r for _, p, r in points if p >= precision], default=0
        )


@pytest.mark.parametrize(
  "call",
  [
    lambda: metrics.average_precision("aab", "a"),
    lambda: metrics.average_precision("ab", "a", "a"),
    lambda: metrics.precision_at_k("ab", "a", k=0),
    lambda: metrics.precision_recall([math.nan], [True], 1),
    lambda: metrics.precision_recall([1.0], [True, False], 1),
    lambda: metrics.precision_recall([1.0, 2.0], [True, True], 1),
    lambda: metrics.precision_recall([], [], 0),
  ],
)
def test_mistakes_raise(call):
  with pytest.raises(ValueError):
    call()


def test_area_under_roc_counts_pairs():
  generator = np.random.default_rng(0)
  scores = generator.integers(0, 8, 60)
  positive = generator.random(60) < 0.4
  pairs = [
    (a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]
  ]
  assert metrics.area_under_roc(scores, positive) == pytest.approx(
    np.mean(pairs)
  )
  assert metrics.area_under_roc([3, 2, 1], [True, False, False]) == 1.0
  with pytest.raises(ValueError, match="positives and negatives"):
    metrics.area_under_roc([1, 2], [True, True])


def slow_global_average_precision(scores, correct, num_positives):
  """Down the groups of equal scores; each hit earns its group's precision."""
  total = Fraction(0)
  for score in sorted(set(scores)):
    accepted = [c for s, c in zip(scores, correct, strict=True) if s >= score]
    hits = sum(
      c for s, c in zip(scores, correct, strict=True) if s == score and c
    )
    total += hits * Fraction(sum(accepted), len(accepted))
  return float(total / num_positives)


def test_global_average_precision_by_hand():
  # Hits at ranks 1 and 3, and one query without an answer.
  gap = metrics.global_average_precision([9, 8, 7], [True, False, True], 3)
  assert gap == pytest.approx((1 + 2 / 3) / 3)
  # Of equal scores, one right and one wrong: in neither order 1.
  for correct in ([True, False], [False, True]):
    assert metrics.global_average_precision([5, 5], correct, 1) == 0.5
  assert metrics.global_average_precision([], [], 4) == 0


def test_global_average_precision_is_the_slow_one_in_any_order():
  rng = np.random.default_rng(5)
  for _ in range(100):
    n = int(rng.integers(1, 30))
    scores, correct = rng.integers(0, 8, n), rng.random(n) < 0.4
    positives = int(correct.sum() + rng.integers(1, 4))
    ours = metrics.global_average_precision(scores, correct, positives)
    slow = slow_global_average_precision(
      scores.tolist(), correct.tolist(), positives
    )
    assert ours == pytest.approx(slow)
    order = rng.permutation(n)
    assert ours == metrics.global_average_precision(
      scores[order], correct[order], positives
    )


def test_average_precision_at_k_by_hand():
  at = metrics.average_precision_at_k
  # Hits at ranks 1 and 3 of two: rectangular, unlike the trapezoidal one.
  assert at("axb", "ab", k=100) == pytest.approx((1 + 2 / 3) / 2)
  assert at("axb", "ab", k=2) == pytest.approx(1 / 2)
  # More positives than places: the places are the denominator.
  assert at("ab", "abcd", k=2) == 1
  assert at("jaxb", "ab", "j", k=3) == pytest.approx((1 + 2 / 3) / 2)
  assert math.isnan(at("ab", ""))
  with pytest.raises(ValueError, match="k must be"):
    at("ab", "a", k=0)


def test_average_precision_at_k_is_the_published_sum():
  rng = np.random.default_rng(6)
  for _ in range(50):
    ranking, positives, junk = random_ranking(rng)
    k = int(rng.integers(1, 12))
    kept = [item for item in ranking if item not in junk][:k]
    total = hits = 0
    for place, item in enumerate(kept, start=1):
      if item in positives:
        hits += 1
        total += hits / place
    expected = total / min(len(positives), k)
    ours = metrics.average_precision_at_k(ranking, positives, junk, k=k)
    assert ours == pytest.approx(expected)


def test_true_positives_at_precision():
  # Precisions 1, 1, 2/3, 3/4, 3/5.
  curve = metrics.precision_counts([9, 8, 7, 6, 5], [1, 1, 0, 1, 0])
  np.testing.assert_array_equal(curve.true_positives, [1, 2, 2, 3, 3])
  at = metrics.true_positives_at_precision
  assert at(curve, 0.9) == 2
  assert at(curve, 0.75) == 3
  assert at(curve, 0.5) == 3
  # Half-way from 3 at 3/4 to 3 at 3/5; from 2 at 1 to 2 at 2/3.
  assert at(curve, 0.7, interpolate=True) == 3
  assert at(curve, 0.9, interpolate=True) == 2
  rising = metrics.precision_counts([9, 8, 8, 8], [1, 1, 0, 0])
  # 1 at precision 1, 2 at precision 1/2: the line meets 3/4 at 1.5.
  assert at(rising, 0.75) == 1
  assert at(rising, 0.75, interpolate=True) == pytest.approx(1.5)
  assert at(rising, 0.5, interpolate=True) == 2
  for interpolate in (False, True):
    worst = metrics.precision_counts([9], [0])
    assert at(worst, 0.9, interpolate=interpolate) == 0
    assert at(metrics.precision_counts([], []), 0.9) == 0
