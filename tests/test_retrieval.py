"""Votes, verification and ranking on features whose truth is known."""

import functools

import numpy as np
import pytest

from delf_jax import retrieval
from delf_jax.features.local_features import LocalFeatures
from delf_jax.geometry.transforms import apply_affine
from delf_jax.index import exact

TURN = np.array([[0.9, -0.3, 60.0], [0.3, 0.9, -20.0]], np.float32)


def random_features(generator, n, size=(600, 800)):
  descriptors = generator.normal(size=(n, 16))
  descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
  return LocalFeatures(
    locations=generator.uniform((0, 0), size, (n, 2)).astype(np.float32),
    scales=np.ones(n, np.float32),
    scores=np.ones(n, np.float32),
    descriptors=descriptors.astype(np.float32),
    mask=np.ones(n, bool),
  )


def see_again(generator, features, rows, transform, size=1.0):
  """The same features in another photograph, which is `size` times larger."""
  noise = generator.normal(scale=0.02, size=(len(rows), 16))
  return features.replace(
    locations=size
    * np.asarray(apply_affine(transform, features.locations[rows])),
    scales=features.scales[rows],
    scores=features.scores[rows],
    descriptors=(features.descriptors[rows] + noise).astype(np.float32),
    mask=features.mask[rows],
  )


def database_of(photographs, sizes=None):
  counts = [len(features.mask) for features in photographs]
  return retrieval.Database(
    index=exact.build(np.concatenate([f.descriptors for f in photographs])),
    paths=[f"{i}.jpg" for i in range(len(photographs))],
    sizes=np.array(sizes or [(600, 800)] * len(photographs)),
    offsets=np.concatenate([[0], np.cumsum(counts)]),
    locations=np.concatenate([f.locations for f in photographs]),
  )


@pytest.fixture(scope="module")
def scene():
  generator = np.random.default_rng(0)
  query = random_features(generator, 120)
  others = [random_features(generator, n) for n in (90, 0, 150)]
  same = see_again(generator, query, np.arange(60), TURN)
  photographs = [others[0], others[1], same, others[2], query]
  return query, database_of(photographs)


def test_the_photograph_of_the_same_place_comes_first(scene):
  query, database = scene
  found = retrieval.search(
    query, (600, 800), database, neighbours=4, leave_out=4
  )
  assert found[0].path == "2.jpg"
  assert found[0].score >= 55
  np.testing.assert_allclose(found[0].transform, TURN, atol=0.05)
  inliers = found[0].inliers
  assert (found[0].residuals[inliers] <= 20).all() and found[0].reach == 20
  np.testing.assert_allclose(
    apply_affine(found[0].transform, found[0].query_locations[inliers]),
    found[0].image_locations[inliers],
    atol=20,
  )
  assert retrieval.accept(found) == found[:1]
  assert all(match.score <= 8 for match in found[1:])
  assert "4.jpg" not in [match.path for match in found]
  assert "1.jpg" not in [match.path for match in found]


def test_a_query_may_find_itself_when_it_is_not_left_out(scene):
  query, database = scene
  found = retrieval.search(query, (600, 800), database, neighbours=2)
  assert found[0].path == "4.jpg" and found[0].score == 120


def test_the_same_search_gives_the_same_bits(scene):
  query, database = scene
  first, second = (
    retrieval.search(query, (600, 800), database, neighbours=4)
    for _ in range(2)
  )
  for a, b in zip(first, second, strict=True):
    assert (a.path, a.score, a.votes) == (b.path, b.score, b.votes)
    np.testing.assert_array_equal(a.transform, b.transform)


def test_fewer_candidates_are_the_best_of_many(scene):
  query, database = scene
  many = retrieval.search(query, (600, 800), database, neighbours=4)
  few = retrieval.search(
    query, (600, 800), database, neighbours=4, candidates=2
  )
  assert [m.path for m in few] == [m.path for m in many[:2]]
  assert [m.score for m in few] == [m.score for m in many[:2]]


def test_a_query_without_features_finds_nothing(scene):
  _, database = scene
  empty = random_features(np.random.default_rng(0), 0)
  assert retrieval.search(empty, (10, 10), database) == []


def test_a_large_photograph_is_judged_as_its_reduction():
  # Noise of 30 pixels at 4096 is 7.5 at the reference size: inliers.
  generator = np.random.default_rng(1)
  query = random_features(generator, 80)
  small = see_again(generator, query, np.arange(80), TURN)
  shaken = generator.uniform(-7, 7, (80, 2)).astype(np.float32)
  small = small.replace(locations=small.locations + shaken)
  large = small.replace(locations=4 * small.locations)
  found = [
    retrieval.search(query, (768, 1024), database_of([f], [size]))[0]
    for f, size in [(small, (768, 1024)), (large, (3072, 4096))]
  ]
  assert found[0].score == found[1].score >= 75
  np.testing.assert_allclose(
    4 * found[0].transform, found[1].transform, rtol=1e-3, atol=1e-2
  )
  np.testing.assert_allclose(
    4 * found[0].residuals, found[1].residuals, atol=0.1
  )
  assert (found[0].reach, found[1].reach) == (20, 80)
  assert retrieval.accept(found[:1]) and retrieval.accept(found[1:])


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
  search = functools.partial(
    retrieval.vote, rows, distances, offsets, votes=votes
  )
  found = search(candidates=10)
  assert [c.image for c in found] == ranked
  for c in found:
    matches = zip(c.features.tolist(), c.rows.tolist(), strict=True)
    assert dict(matches) == expected[c.image]
  assert [c.image for c in search(candidates=2)] == ranked[:2]


def test_no_neighbour_is_no_vote():
  nothing = np.full((3, 2), -1)
  far = np.full((3, 2), np.inf)
  assert retrieval.vote(nothing, far, np.array([0, 4]), candidates=5) == []


def test_one_to_one_counts_distinct_features_and_places():
  features = np.array([0, 0, 1, 2, 3])
  places = np.array([[1, 1], [2, 2], [3, 3], [3, 3], [3, 3]], np.float32)
  count = retrieval.count_inliers
  assert count(features, places, counting="plain") == 5
  assert count(features, places, counting="one_to_one") == 3
  assert count(features[:2], places[:2], counting="one_to_one") == 1
  assert count(features[:0], places[:0], counting="one_to_one") == 0


def test_chance_is_what_shuffled_matches_give():
  generator = np.random.default_rng(0)
  query = generator.uniform(0, 400, (80, 2)).astype(np.float32)
  crowd = generator.normal(300, 12, (80, 2)).astype(np.float32)
  collapse = np.array([[0.05, 0, 290], [0, 0.05, 290]], np.float32)
  match = retrieval.Match(
    path="crowd.jpg",
    score=60,
    transform=collapse,
    query_locations=query,
    image_locations=crowd,
    inliers=np.ones(80, bool),
    residuals=np.zeros(80, np.float32),
    reach=20.0,
  )
  mapped = np.asarray(apply_affine(collapse, query))
  shuffled = [
    np.sum(
      np.linalg.norm(mapped - crowd[generator.permutation(80)], axis=1) <= 20
    )
    for _ in range(400)
  ]
  np.testing.assert_allclose(
    match.expected_by_chance(), np.mean(shuffled), rtol=0.05
  )
  assert retrieval.accept([match]) == []
