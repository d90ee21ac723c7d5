"""Fitting probabilities to evidence whose law is known."""

import numpy as np
import pytest

from delf_jax import calibration, match_score
from delf_jax.errors import InputError

COUNT = len(match_score.NAMES)


def draw(n, weights, bias, seed=0):
  """Evidence, and truth drawn with the probability that the weights say."""
  generator = np.random.default_rng(seed)
  evidence = generator.normal(2.0, 0.5, (n, COUNT))
  log_odds = (evidence - 2.0) @ weights + bias
  positive = generator.uniform(size=n) < 1 / (1 + np.exp(-log_odds))
  return evidence, positive


def law(**weights):
  return np.array([weights.get(name, 0.0) for name in match_score.NAMES])


def test_the_fit_finds_the_law():
  weights = law(inliers=3.0, cells=1.0, chance=-2.0)
  evidence, positive = draw(60_000, weights, -1.0)
  fitted = calibration.fit(evidence, positive, provenance={"of": "a test"})
  found = np.array(fitted.weights) / np.array(fitted.scale)
  np.testing.assert_allclose(found, weights, atol=0.15)
  assert fitted.provenance == {"of": "a test"}
  again = calibration.fit(evidence, positive)
  assert again.weights == fitted.weights and again.bias == fitted.bias


def test_no_weight_has_the_wrong_sign():
  weights = law(inliers=3.0, nearness=-2.0, chance=2.0)
  evidence, positive = draw(5_000, weights, 0.0)
  fitted = calibration.fit(evidence, positive)
  for name, weight in zip(match_score.NAMES, fitted.weights, strict=True):
    assert weight * calibration.SIGNS[name] >= 0
  assert fitted.weights[match_score.NAMES.index("nearness")] == 0
  assert fitted.weights[match_score.NAMES.index("inliers")] > 0


def test_weighted_candidates_count_like_copies():
  evidence, positive = draw(2_000, law(inliers=3.0), 0.0)
  twice = np.concatenate([np.arange(2_000), np.arange(500)])
  copies = calibration.fit(evidence[twice], positive[twice])
  weighted = calibration.fit(
    evidence, positive, sample_weights=np.where(np.arange(2_000) < 500, 2, 1)
  )
  np.testing.assert_allclose(
    match_score.probability(evidence, weighted),
    match_score.probability(evidence, copies),
    atol=0.02,
  )


def test_held_out_probabilities_keep_what_they_promise():
  evidence, positive = draw(20_000, law(inliers=4.0, turn=-2.0), -2.0)
  groups = np.arange(20_000) % 7
  held_out = calibration.cross_validate(evidence, positive, groups)
  rows = calibration.reliability(held_out, positive)
  assert sum(row.count for row in rows) == 20_000
  for row in rows:
    assert abs(row.predicted - row.observed) < 4 / np.sqrt(row.count) + 0.01
  best = calibration.log_loss(
    1 / (1 + np.exp(2 - (evidence - 2) @ law(inliers=4.0, turn=-2.0))), positive
  )
  assert calibration.log_loss(held_out, positive) < best + 0.01


def test_places_are_held_out_together():
  # Within a place the truth says nothing about the rest: noise alone.
  generator = np.random.default_rng(0)
  groups = np.repeat(np.arange(10), 200)
  evidence = generator.normal(size=(10, COUNT))[groups]
  positive = generator.uniform(size=10)[groups] < 0.5
  held_out = calibration.cross_validate(evidence, positive, groups)
  for group in range(10):
    assert len(np.unique(held_out[groups == group])) == 1


def test_reliability_of_made_up_numbers():
  rows = calibration.reliability(
    [0.0, 0.1, 0.4, 1.0], [False, True, False, True], edges=(0.0, 0.2, 0.3, 1.0)
  )
  assert rows == [
    calibration.Bin(2, pytest.approx(0.05), 0.5),
    calibration.Bin(2, pytest.approx(0.7), 0.5),
  ]


def test_too_little_is_refused():
  evidence, positive = draw(1_000, law(inliers=3.0), 0.0)
  few = np.zeros(1_000, bool)
  few[:3] = True
  with pytest.raises(InputError, match="3 candidates of the same place"):
    calibration.fit(evidence, few)
  with pytest.raises(InputError, match="3 of other places"):
    calibration.fit(evidence, ~few)
  with pytest.raises(InputError, match="show one place"):
    calibration.cross_validate(evidence, positive, np.zeros(1_000, int))
