"""Searches with a bag of words, on features whose truth is known."""

import dataclasses

import numpy as np
import pytest

from delf_jax import retrieval, voting, word_candidates
from delf_jax.errors import InputError
from delf_jax.index import bag_of_words, exact
from tests.test_retrieval import (
  TURN,
  apply_affine,
  database_of,
  random_features,
  see_again,
)

SIZE = (600, 800)
# Both ways to match that a bag of words makes sense with.
MATCHINGS = ["votes", "mutual"]


def with_words(database, **options):
  """The same photographs behind a bag of words."""
  built = bag_of_words.build(
    lambda: [database.descriptors],
    np.diff(database.offsets),
    "some",
    **{"words": 40, **options},
  )
  return dataclasses.replace(database, index=built)


@pytest.fixture(scope="module")
def scene():
  generator = np.random.default_rng(0)
  query = random_features(generator, 120)
  others = [random_features(generator, n) for n in (90, 0, 150, 70, 1)]
  same = see_again(generator, query, np.arange(60), TURN)
  photographs = [others[0], others[1], same, *others[2:], query]
  return query, with_words(database_of(photographs))


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("score", ["inliers", "probability", "weighted"])
def test_the_place_is_found_by_its_words(scene, matching, score):
  query, database = scene
  found = retrieval.search(
    query, SIZE, database, matching=matching, score=score, leave_out=6
  )
  assert found[0].path == "2.jpg" and found[0].inlier_count >= 40
  np.testing.assert_allclose(found[0].transform[:2], TURN, atol=0.5)
  inliers = found[0].inliers
  np.testing.assert_allclose(
    apply_affine(found[0].transform, found[0].query_locations[inliers]),
    found[0].image_locations[inliers],
    atol=20,
  )
  assert retrieval.accept(found) == found[:1]
  scores = [match.score for match in found]
  assert scores == sorted(scores, reverse=True)
  paths = [match.path for match in found]
  assert "6.jpg" not in paths and "1.jpg" not in paths  # itself, an empty one
  assert len(set(paths)) == len(paths)
  for match in found[1:]:
    if match.inlier_count < 4:
      assert -1 <= match.score <= 0


def test_verified_ones_come_first_and_the_rest_by_their_words(scene):
  query, database = scene
  plain = retrieval.search(query, SIZE, database, candidates=0)
  words, weights = database.index.describe(query.descriptors)
  images, cosines = database.index.rank(words, weights)
  assert [match.path for match in plain] == [f"{i}.jpg" for i in images]
  np.testing.assert_allclose(
    [match.score + 1 for match in plain], cosines, atol=1e-12
  )
  assert all(match.votes == match.inlier_count == 0 for match in plain)
  assert plain[0].path == "6.jpg" and plain[0].image_size == SIZE
  few = retrieval.search(
    query, SIZE, database, candidates=2, score="inliers", matching="votes"
  )
  assert {match.path for match in few[:2]} == {"6.jpg", "2.jpg"}
  assert [match.score for match in few[:2]] == [
    match.inlier_count for match in few[:2]
  ]
  assert few[2:] and all(match.votes == 0 for match in few[2:])
  assert [match.path for match in few[2:]] == [
    match.path for match in plain if match.path not in ("6.jpg", "2.jpg")
  ]


def test_a_candidate_that_fails_keeps_its_place_among_the_unverified():
  generator = np.random.default_rng(5)
  query = random_features(generator, 60)
  # The same descriptors, elsewhere: most alike, and no transform explains it.
  shuffled = query.replace(
    locations=generator.uniform(0, 5000, (60, 2)).astype(np.float32)
  )
  others = [random_features(generator, 60) for _ in range(3)]
  database = with_words(database_of([*others, shuffled]))
  found = retrieval.search(
    query, SIZE, database, score="inliers", matching="votes", threshold=1.0
  )
  failed = next(match for match in found if match.path == "3.jpg")
  assert failed.inlier_count < 4
  assert failed.score == pytest.approx(0, abs=1e-6)
  assert found[0] is failed


@pytest.mark.parametrize("matching", MATCHINGS)
def test_a_candidate_is_the_same_in_any_company(scene, matching):
  query, database = scene
  options = {"leave_out": 6, "matching": matching}
  many = retrieval.search(query, SIZE, database, **options)
  alone = retrieval.search(query, SIZE, database, candidates=1, **options)
  assert alone[0].path == many[0].path
  for field in dataclasses.fields(retrieval.Match):
    np.testing.assert_array_equal(
      getattr(alone[0], field.name), getattr(many[0], field.name)
    )


def test_putative_matches_are_the_nearest_with_the_same_word(scene):
  query, database = scene
  words, _ = database.index.describe(query.descriptors)
  found = word_candidates.candidate(
    query.descriptors, database.index, database.descriptors, words, 2
  )
  rows = np.arange(*database.offsets[2:4])
  theirs, _ = database.index.describe(database.descriptors[rows])
  expected = []
  for feature, descriptor in enumerate(query.descriptors):
    same = rows[theirs[:, 0] == words[feature, 0]]
    if len(same):
      apart = np.linalg.norm(database.descriptors[same] - descriptor, axis=1)
      expected.append((feature, same[np.argmin(apart)], apart.min()))
  features, chosen, distances = map(np.array, zip(*expected, strict=True))
  assert isinstance(found, voting.Candidate) and found.image == 2
  np.testing.assert_array_equal(found.features, features)
  np.testing.assert_array_equal(found.rows, chosen)
  np.testing.assert_allclose(found.distances, distances, atol=1e-6)


def test_the_background_is_the_last_neighbour_in_the_first_photographs(scene):
  query, database = scene
  ranking = word_candidates.rank(query.descriptors, database.index, leave_out=6)
  found = word_candidates.farthest(
    query.descriptors,
    ranking.images,
    database.descriptors,
    database.offsets,
    20,
  )
  # Few photographs: all that share a word but the one that is left out.
  rows = np.concatenate(
    [np.arange(*database.offsets[i : i + 2]) for i in np.sort(ranking.images)]
  )
  expected, _ = exact.build(database.descriptors[rows]).search(
    query.descriptors, 20
  )
  np.testing.assert_allclose(found, expected[:, -1], atol=1e-4)


def test_empty_photographs_and_queries():
  generator = np.random.default_rng(1)
  one, empty = random_features(generator, 50), random_features(generator, 0)
  database = with_words(database_of([empty, one, empty]), words=10)
  found = retrieval.search(one, SIZE, database)
  assert [match.path for match in found] == ["1.jpg"]
  assert found[0].inlier_count == 50
  assert retrieval.search(empty, SIZE, database) == []
  # One photograph: no word is rare, and it is verified all the same.
  alone = with_words(database_of([one]), words=10)
  assert retrieval.search(one, SIZE, alone)[0].inlier_count == 50
  assert retrieval.search(one, SIZE, alone, leave_out=0) == []


def test_only_words_do_without_candidates(scene):
  query, database = scene
  nearest = dataclasses.replace(
    database, index=exact.build(database.descriptors)
  )
  with pytest.raises(InputError, match="only a bag of words can do without"):
    retrieval.search(query, SIZE, nearest, candidates=0)
