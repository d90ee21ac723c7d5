import time

import numpy as np
import pytest

from delf_jax.evaluation import bootstrap, metrics
from delf_jax.evaluation.protocols import Pairs

PRECISIONS = (0.9, 0.6, 0.3)


def make(*, queries=6, distractors=4, seed=0, levels=9, most=12):
  """Pairs with ties, queries without pairs, and one without positives."""
  rng = np.random.default_rng(seed)
  scores, correct, owners = [], [], []
  positives = rng.integers(1, 9, queries)
  positives[0] = 0
  for owner in range(queries + distractors):
    n = int(rng.integers(0, most))
    found = rng.random(n) < 0.5
    if owner >= queries:
      found[:] = False
    else:
      found[np.flatnonzero(found)[positives[owner] :]] = False
    scores.extend(rng.integers(1, levels, n) + 3 * found)
    correct.extend(found)
    owners.extend([owner] * n)
  values = rng.random(queries)
  values[0] = np.nan
  return Pairs(
    per_query={"mAP": values, "none": np.full(queries, np.nan)},
    scores=np.array(scores, np.float64),
    correct=np.array(correct, bool),
    owners=np.array(owners, np.int64),
    positives=positives,
    num_distractors=distractors,
  )


def drawn_again(pairs, weights, distractor_weights):
  """Writes each query's pairs as often as it was drawn, and measures that."""
  every = np.concatenate([weights, distractor_weights])
  rows = np.repeat(np.arange(len(pairs.scores)), every[pairs.owners])
  positives = int(weights @ pairs.positives)
  scores, correct = pairs.scores[rows], pairs.correct[rows]
  values = np.repeat(pairs.per_query["mAP"], weights)
  mean = metrics.mean_over_queries(values)
  if not positives:
    return mean, [np.nan] * len(PRECISIONS), [0] * len(PRECISIONS), np.nan
  curve = metrics.precision_recall(scores, correct, positives)
  counts = metrics.precision_counts(scores, correct)
  return (
    mean,
    [metrics.recall_at_precision(curve, p) for p in PRECISIONS],
    [metrics.true_positives_at_precision(counts, p) for p in PRECISIONS],
    metrics.global_average_precision(scores, correct, positives),
  )


@pytest.mark.parametrize(("entries", "width"), [(2**24, 64), (64, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_each_sample_is_measured_as_if_it_were_the_set(
  monkeypatch, entries, width, seed
):
  # Few entries at a time, so that thresholds and samples come in parts.
  monkeypatch.setattr(bootstrap, "_ENTRIES", entries)
  monkeypatch.setattr(bootstrap, "_WIDTH", width)
  pairs = make(seed=seed, distractors=4 * (seed % 2))
  found = bootstrap.resample(
    pairs, precisions=PRECISIONS, resamples=40, seed=seed
  )
  weights = bootstrap.draw(6, resamples=40, seed=seed)
  others = bootstrap.draw(pairs.num_distractors, resamples=40, seed=seed + 1)
  for i in range(40):
    mean, recalls, counts, area = drawn_again(pairs, weights[i], others[i])
    np.testing.assert_allclose(found.means["mAP"][i], mean)
    np.testing.assert_allclose(found.recalls[i], recalls)
    np.testing.assert_allclose(found.true_positives[i], counts)
    np.testing.assert_allclose(found.areas[i], area)
  assert np.isnan(found.means["none"]).all()


def test_the_order_of_pairs_does_not_matter():
  pairs = make(seed=7)
  order = np.random.default_rng(0).permutation(len(pairs.scores))
  shuffled = pairs._replace(
    scores=pairs.scores[order],
    correct=pairs.correct[order],
    owners=pairs.owners[order],
  )
  one, other = (
    bootstrap.resample(p, precisions=PRECISIONS, resamples=50)
    for p in (pairs, shuffled)
  )
  np.testing.assert_array_equal(one.recalls, other.recalls)
  np.testing.assert_array_equal(one.areas, other.areas)


def test_draws_are_seeded_and_of_the_right_number():
  drawn = bootstrap.draw(20, resamples=500, seed=3)
  assert drawn.shape == (500, 20) and (drawn.sum(axis=1) == 20).all()
  np.testing.assert_array_equal(
    drawn, bootstrap.draw(20, resamples=500, seed=3)
  )
  assert (drawn != bootstrap.draw(20, resamples=500, seed=4)).any()
  # Every thing is drawn once on the average.
  assert abs(drawn.mean(axis=0) - 1).max() < 0.2
  assert bootstrap.draw(0, resamples=5, seed=0).shape == (5, 0)


def test_the_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(1)
  hits = 0
  for trial in range(200):
    values = rng.random(60)
    pairs = make(queries=60, seed=trial)._replace(per_query={"m": values})
    found = bootstrap.resample(pairs, precisions=(), resamples=200, seed=trial)
    low, high = bootstrap.interval(found.means["m"])
    hits += low <= 0.5 <= high
  assert 176 <= hits <= 199


def test_intervals_leave_nan_out():
  assert bootstrap.interval(np.array([np.nan, 1, 1])) == (1, 1)
  assert np.isnan(bootstrap.interval(np.array([np.nan]))).all()
  low, high = bootstrap.interval(np.arange(1001.0))
  assert (low, high) == pytest.approx((25, 975))


def test_nothing_returned():
  pairs = make()._replace(
    scores=np.zeros(0), correct=np.zeros(0, bool), owners=np.zeros(0, np.int64)
  )
  found = bootstrap.resample(pairs, precisions=PRECISIONS, resamples=10)
  assert (found.recalls == 0).all() and (found.areas == 0).all()
  with pytest.raises(ValueError, match="nan"):
    bootstrap.resample(
      make()._replace(scores=np.full(len(make().scores), np.nan)),
      precisions=PRECISIONS,
    )


def test_a_large_set_takes_seconds():
  pairs = make(queries=70, distractors=1600, most=200, levels=5000)
  start = time.perf_counter()
  bootstrap.resample(pairs, precisions=(0.9, 0.95), resamples=1000)
  assert time.perf_counter() - start < 20
