"""Agreement of features: known answers, and loops written out."""

import numpy as np
import pytest

from delf_jax.evaluation import keypoint_measures as measures
from delf_jax.evaluation.keypoint_measures import Side

EVERYWHERE = np.ones((100, 120), bool)
ASLANT = np.array([[1.1, 0.2, -4.0], [-0.1, 0.9, 6.0], [4e-4, -3e-4, 1.0]])


def points(n, seed=0):
  return np.random.default_rng(seed).uniform(15, 85, (n, 2))


def side(locations, scales=None, shown=EVERYWHERE):
  scales = np.ones(len(locations)) if scales is None else scales
  return Side(np.asarray(locations, float), np.asarray(scales, float), shown)


def one_by_one(n):
  return np.arange(n), np.arange(n)


def test_the_same_features_agree():
  here = points(30)
  there = measures.project(ASLANT, here)
  sizes = measures.stretches(ASLANT, here)
  wide = np.ones((500, 500), bool)
  found = measures.compare(
    side(here, shown=wide), side(there, sizes, wide), one_by_one(30), ASLANT
  )
  assert found.common == 30
  assert found.repeatability == found.matching_score == 1
  assert found.accuracies == (1.0,) * 10


def test_lengths_grow_as_a_loop_says():
  for point in points(5):
    rows = []
    for shift in ((0.5, 0), (0, 0.5)):
      ends = [
        ASLANT @ np.array([*(point + sign * np.array(shift)), 1])
        for sign in (1, -1)
      ]
      rows.append(ends[0][:2] / ends[0][2] - ends[1][:2] / ends[1][2])
    expected = np.sqrt(abs(np.linalg.det(np.array(rows))))
    found = measures.stretches(ASLANT, point[None])
    np.testing.assert_allclose(found, [expected])


def test_shares_are_of_the_smaller_number_that_both_show():
  here = np.array([[50, 20.0], [50, 40], [50, 60], [50, 80], [5, 5]])
  there = here + [0, 10]
  there[1] += [0, 2.5]  # near enough for 3 pixels, not for 2
  there[2] += [0, 6]  # too far
  shown = EVERYWHERE.copy()
  shown[:10] = False  # hides the last
  shift = np.array([[1, 0, 0], [0, 1, 10], [0, 0, 1.0]])
  found = measures.compare(
    side(here, shown=shown), side(there[:4]), one_by_one(4), shift
  )
  assert found.common == 4
  assert found.repeatability == found.matching_score == 3 / 4
  assert found.accuracies == (0.5, 0.5, *(0.75,) * 3, *(1.0,) * 5)
  # A hidden feature counts for nothing, wherever it is matched.
  rows = np.array([0, 4]), np.array([0, 2])
  found = measures.compare(
    side(here, shown=shown), side(there[:4]), rows, shift
  )
  assert found.matching_score == 1 / 4 and found.accuracies[0] == 1


def test_counterparts_are_one_to_one_and_of_one_scale():
  here = np.array([[50, 20.0], [50, 21], [50, 60]])
  there = np.array([[50, 20.4], [50, 60], [10, 10]])
  none = np.zeros(0, int), np.zeros(0, int)
  found = measures.compare(side(here), side(there), none, np.eye(3))
  assert found.repeatability == 2 / 3
  assert found.matching_score == 0 and found.accuracies == (0.0,) * 10
  found = measures.compare(
    side(here), side(there, [1, 1.5, 1]), none, np.eye(3)
  )
  assert found.repeatability == 1 / 3


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_a_loop(seed):
  generator = np.random.default_rng(seed)
  here = points(60, seed)
  there = measures.project(ASLANT, here)[generator.permutation(60)[:50]]
  there = there + generator.normal(0, 2, there.shape)
  sizes = generator.uniform(0.7, 1.6, 50)
  mine = measures.stretches(ASLANT, here)
  mapped = measures.project(ASLANT, here)

  def gap(i, j):
    if abs(np.log(mine[i] / sizes[j])) > np.log(2) / 2:
      return np.inf
    apart = np.hypot(*(mapped[i] - there[j]))
    return apart if apart <= 3 else np.inf

  pairs = {(i, j): gap(i, j) for i in range(60) for j in range(50)}
  expected = sum(
    np.isfinite(value)
    and value == min(pairs[i, k] for k in range(50))
    and value == min(pairs[k, j] for k in range(60))
    for (i, j), value in pairs.items()
  )
  rows = np.zeros(0, int), np.zeros(0, int)
  wide = np.ones((500, 500), bool)
  found = measures.compare(
    side(here, shown=wide), side(there, sizes, wide), rows, ASLANT
  )
  assert 5 < expected
  assert found.repeatability == pytest.approx(expected / found.common)


def test_without_features_there_is_nothing_to_compare():
  rows = np.zeros(0, int), np.zeros(0, int)
  nobody = side(np.zeros((0, 2)))
  assert measures.compare(nobody, side(points(3)), rows, np.eye(3)) is None


def test_what_lies_behind_is_nowhere():
  behind = np.array([[1, 0, 0], [0, 1, 0], [0, -0.05, 1.0]])
  mapped = measures.project(behind, np.array([[5.0, 10.0], [5.0, 40.0]]))
  np.testing.assert_allclose(mapped[0], [10, 20])
  assert np.isnan(mapped[1]).all()
  assert measures.lie_in(mapped, EVERYWHERE).tolist() == [True, False]
