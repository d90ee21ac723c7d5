"""Votes of neighbours whose truth is known."""

import functools

import numpy as np
import pytest

from delf_jax import voting


@pytest.mark.parametrize(
  "votes", ["count", "distance", "bursts", "distance_bursts"]
)
def test_a_query_feature_votes_once_a_photograph_by_its_nearest(votes):
  generator = np.random.default_rng(0)
  offsets = np.array([0, 5, 5, 12, 20])
  rows = generator.integers(-1, 20, (30, 6))
  distances = np.sort(generator.random((30, 6), np.float32), axis=1)
  distances = np.where(rows < 0, np.inf, distances)
  distances[3] = np.where(rows[3] < 0, np.inf, 0)  # all of them copies
  expected, near = {}, {}
  for feature, neighbours in enumerate(rows):
    last = max(d for d in distances[feature] if d < np.inf)
    for row, distance in zip(neighbours, distances[feature], strict=True):
      if row >= 0:
        image = int(np.searchsorted(offsets, row, side="right")) - 1
        expected.setdefault(image, {}).setdefault(feature, int(row))
        weight = 1 - (distance / last) ** 2 if last else 1
        near.setdefault(image, {}).setdefault(feature, weight)
  chosen = [row for matches in expected.values() for row in matches.values()]

  def weight(image):
    return sum(
      (near[image][feature] if votes.startswith("distance") else 1)
      / (chosen.count(row) ** 0.5 if votes.endswith("bursts") else 1)
      for feature, row in expected[image].items()
    )

  ranked = sorted(expected, key=lambda i: (-weight(i), i))
  search = functools.partial(voting.vote, rows, distances, offsets, votes=votes)
  found = search(candidates=10)
  assert [c.image for c in found] == ranked
  for c in found:
    matches = zip(c.features.tolist(), c.rows.tolist(), strict=True)
    assert dict(matches) == expected[c.image]
  assert [c.image for c in search(candidates=2)] == ranked[:2]


def test_no_neighbour_is_no_vote():
  nothing = np.full((3, 2), -1)
  far = np.full((3, 2), np.inf)
  assert voting.vote(nothing, far, np.array([0, 4]), candidates=5) == []


def test_the_background_is_the_last_neighbour_there_is():
  rows = np.array([[3, 1, 2], [5, -1, -1], [-1, -1, -1]])
  distances = np.array([[1, 2, 3], [0.5, np.inf, np.inf], [np.inf] * 3])
  np.testing.assert_array_equal(voting.farthest(rows, distances), [3, 0.5, 0])
  far = voting.farthest(np.zeros((0, 4), int), np.zeros((0, 4)))
  assert far.shape == (0,)


def test_closeness_falls_from_one_to_nothing():
  distances = np.array([0, 0.5, 1, 2, 0, 3], np.float32)
  background = np.array([1, 1, 1, 1, 0, 0], np.float32)
  np.testing.assert_allclose(
    voting.closeness(distances, background), [1, 0.75, 0, 0, 1, 0]
  )
