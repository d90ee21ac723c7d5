"""Votes, verification and ranking on features whose truth is known."""

import dataclasses

import numpy as np
import pytest

from delf_jax import retrieval
from delf_jax.errors import InputError
from delf_jax.features.local_features import LocalFeatures
from delf_jax.index import exact

TURN = np.array([[0.9, -0.3, 60.0], [0.3, 0.9, -20.0]], np.float32)


def apply_affine(transform, points):
  return points @ transform[:2, :2].T + transform[:2, 2]


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
    locations=np.float32(size)
    * apply_affine(transform, features.locations[rows]),
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
    scales=np.concatenate([f.scales for f in photographs]),
    descriptors=np.concatenate([f.descriptors for f in photographs]),
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
  assert found[0].inlier_count >= 55
  np.testing.assert_allclose(found[0].transform[:2], TURN, atol=0.05)
  np.testing.assert_array_equal(found[0].transform[2], [0, 0, 1])
  inliers = found[0].inliers
  assert (found[0].residuals[inliers] <= 20).all() and found[0].reach == 20
  np.testing.assert_allclose(
    apply_affine(found[0].transform, found[0].query_locations[inliers]),
    found[0].image_locations[inliers],
    atol=20,
  )
  assert retrieval.accept(found) == found[:1]
  # By way of others it must be supported as well.
  for via, support, kept in [((), 0.0, 1), (("a",), 0.1, 0), (("a",), 0.2, 1)]:
    one = dataclasses.replace(found[0], via=via, support=support)
    assert len(retrieval.accept([one])) == kept
  assert all(match.inlier_count <= 8 for match in found[1:])
  assert "4.jpg" not in [match.path for match in found]
  assert "1.jpg" not in [match.path for match in found]


def test_a_query_may_find_itself_when_it_is_not_left_out(scene):
  query, database = scene
  found = retrieval.search(query, (600, 800), database, neighbours=2)
  assert found[0].path == "4.jpg" and found[0].inlier_count == 120


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
  assert found[0].inlier_count == found[1].inlier_count >= 75
  np.testing.assert_allclose(
    4 * found[0].transform[:2], found[1].transform[:2], rtol=1e-3, atol=1e-2
  )
  np.testing.assert_allclose(
    4 * found[0].residuals, found[1].residuals, atol=0.1
  )
  assert (found[0].reach, found[1].reach) == (20, 80)
  assert retrieval.accept(found[:1]) and retrieval.accept(found[1:])


def test_chance_is_what_shuffled_matches_give(scene):
  generator = np.random.default_rng(0)
  locations = generator.uniform(0, 400, (80, 2)).astype(np.float32)
  crowd = generator.normal(300, 12, (80, 2)).astype(np.float32)
  collapse = np.array([[0.05, 0, 290], [0, 0.05, 290], [0, 0, 1]], np.float32)
  query, database = scene
  found = retrieval.search(query, (600, 800), database, neighbours=4)[0]
  match = dataclasses.replace(
    found,
    inlier_count=60,
    transform=collapse,
    query_locations=locations,
    image_locations=crowd,
    inliers=np.ones(80, bool),
  )
  mapped = apply_affine(collapse, locations)
  shuffled = [
    np.sum(
      np.linalg.norm(mapped - crowd[generator.permutation(80)], axis=1) <= 20
    )
    for _ in range(400)
  ]
  np.testing.assert_allclose(
    match.expected_by_chance(), np.mean(shuffled), rtol=0.05
  )


@pytest.mark.parametrize(
  "options",
  [
    {"matching": "votes"},
    {"matching": "ratio"},
    {"counting": "plain"},
    {"transforms": "any"},
    {"score": "weighted"},
    {"score": "inliers"},
    {"model": "similarity"},
    {"model": "homography"},
    {"error": "symmetric"},
    {"sampling": "prosac"},
    {"sampling": "scale"},
    {"num_hypotheses": 200},
  ],
  ids=lambda options: "-".join(map(str, *options.items())),
)
def test_every_option_finds_the_place(scene, options):
  query, database = scene
  found = retrieval.search(
    query, (600, 800), database, neighbours=4, leave_out=4, **options
  )
  assert found[0].path == "2.jpg" and found[0].inlier_count >= 50
  np.testing.assert_allclose(found[0].transform[:2], TURN, rtol=0.1, atol=5)
  scores = [match.score for match in found]
  assert scores == sorted(scores, reverse=True)


def test_one_correspondence_is_enough_where_nothing_is_turned():
  generator = np.random.default_rng(2)
  query = random_features(generator, 90)
  grown = np.array([[1.5, 0, -40], [0, 1.5, 25]], np.float32)
  same = see_again(generator, query, np.arange(30), grown)
  same = same.replace(scales=np.full(30, 1.5, np.float32))
  found = [
    retrieval.search(
      query,
      (600, 800),
      database_of([same]),
      neighbours=2,
      model="translation_scale",
      sampling="exhaustive",
      seed=seed,
    )[0]
    for seed in (0, 1)
  ]
  assert found[0].inlier_count == 30
  np.testing.assert_allclose(found[0].transform[:2], grown, rtol=0.02, atol=2)
  np.testing.assert_array_equal(found[0].transform, found[1].transform)


def test_a_homography_holds_in_the_pixels_of_the_originals():
  generator = np.random.default_rng(3)
  query = random_features(generator, 150, size=(1500, 2000))
  truth = np.array([[1.1, 0.1, 50], [-0.05, 1.2, 80], [1e-4, 5e-5, 1]])
  image = see_again(generator, query, np.arange(150), np.eye(2, 3))
  mapped = np.column_stack([query.locations, np.ones(150)]) @ truth.T
  image = image.replace(
    locations=(mapped[:, :2] / mapped[:, 2:]).astype(np.float32)
  )
  match = retrieval.compare(
    query, (1500, 2000), image, (3000, 4000), model="homography"
  )
  assert match.inlier_count >= 140
  np.testing.assert_allclose(
    match.transform / match.transform[2, 2], truth, rtol=0.02, atol=0.5
  )
  assert match.reach == pytest.approx(20 * 4000 / 1024)


@pytest.mark.parametrize("matching", ["votes", "mutual"])
def test_a_repeated_pattern_counts_once(matching):
  # All windows of one facade look like one window of another.
  generator = np.random.default_rng(4)
  window = random_features(generator, 1)
  query = see_again(generator, window, np.zeros(60, int), np.eye(2, 3))
  query = query.replace(
    locations=generator.uniform(0, 15, (60, 2)).astype(np.float32)
  )
  image = window.replace(locations=np.array([[7.0, 7.0]], np.float32))
  others = random_features(generator, 40)
  database = database_of([image, others])
  options = {"neighbours": 2, "matching": matching, "transforms": "any"}
  once = retrieval.search(query, (600, 800), database, **options)
  once = {match.path: match for match in once}["0.jpg"]
  assert once.votes == 1 and once.inlier_count == 0
  plain = retrieval.search(
    query, (600, 800), database, counting="plain", **options
  )
  plain = {match.path: match for match in plain}["0.jpg"]
  assert plain.votes == (60 if matching == "votes" else 1)


def test_two_photographs_match_as_in_a_search(scene):
  query, database = scene
  rows = np.arange(*database.offsets[2:4])
  other = LocalFeatures(
    locations=database.locations[rows],
    scales=database.scales[rows],
    scores=np.ones(len(rows), np.float32),
    descriptors=database.descriptors[rows],
    mask=np.ones(len(rows), bool),
  )
  match = retrieval.compare(query, (600, 800), other, (600, 800))
  assert match.inlier_count >= 55 and match.path == ""
  assert match.query_features == 120 and match.image_size == (600, 800)
  np.testing.assert_allclose(match.transform[:2], TURN, atol=0.05)
  assert retrieval.accept([match]) == [match]
  back = retrieval.compare(other, (600, 800), query, (600, 800))
  assert back.inlier_count == match.inlier_count
  np.testing.assert_allclose(
    back.transform @ match.transform, np.eye(3), atol=0.2
  )


def test_a_photograph_without_features_matches_nothing(scene):
  query, _ = scene
  empty = random_features(np.random.default_rng(0), 0)
  for one, other in ((query, empty), (empty, query), (empty, empty)):
    match = retrieval.compare(one, (60, 80), other, (30, 40))
    assert match.inlier_count == match.votes == 0
    assert match.image_size == (30, 40)
    assert match.expected_by_chance() == 0
    assert retrieval.accept([match]) == []


def test_features_of_two_kinds_are_refused(scene):
  query, _ = scene
  other = query.replace(descriptors=np.tile(query.descriptors, 2))
  with pytest.raises(InputError, match="16 dimensions and the index 32"):
    retrieval.compare(query, (60, 80), other, (60, 80))


@pytest.mark.parametrize("matching", ["votes", "mutual", "ratio"])
def test_a_candidate_is_the_same_in_any_company(scene, matching):
  query, database = scene
  options = {"neighbours": 4, "leave_out": 4, "matching": matching}
  many = retrieval.search(query, (600, 800), database, **options)
  alone = retrieval.search(query, (600, 800), database, candidates=1, **options)
  same = next(match for match in many if match.path == alone[0].path)
  for field in dataclasses.fields(retrieval.Match):
    np.testing.assert_array_equal(
      getattr(alone[0], field.name), getattr(same, field.name)
    )
