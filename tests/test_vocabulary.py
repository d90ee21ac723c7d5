"""Visual words, beside k-means of scikit-learn and brute force."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from delf_jax.errors import InputError
from delf_jax.index import vocabulary
from tests.index_sets import assert_same, make_clustered


@pytest.fixture(scope="module")
def sample():
  return make_clustered(3000, 200, 16, clusters=60)[0]


@pytest.fixture(scope="module")
def queries():
  return make_clustered(3000, 200, 16, clusters=60)[1]


@pytest.fixture(scope="module")
def found(sample):
  return vocabulary.train(sample, words=40, rounds=6, features="some")


def distances_to(queries, words):
  differences = queries[:, None].astype(np.float64) - words[None]
  return np.sqrt(np.square(differences).sum(axis=2))


def test_words_are_those_of_lloyds_algorithm(sample, found):
  # Our seeded start, then scikit-learn's rounds.
  start = sample[np.random.default_rng([0, 2]).permutation(len(sample))[:40]]
  expected = KMeans(
    40, init=start, n_init=1, max_iter=6, tol=0, algorithm="lloyd"
  ).fit(sample)
  np.testing.assert_allclose(
    found.words.descriptors, expected.cluster_centers_, atol=1e-5
  )


def test_nearest_words_are_those_of_brute_force(queries, found):
  distances, words = found.nearest(queries, 3)
  expected = distances_to(queries, found.words.descriptors)
  order = np.argsort(expected, axis=1)[:, :3]
  assert (words == order).mean() > 0.98
  np.testing.assert_allclose(
    distances, np.take_along_axis(expected, words, axis=1), rtol=1e-5
  )


def test_the_radius_is_how_far_descriptors_are(sample, found):
  nearest = distances_to(sample, found.words.descriptors).min(axis=1)
  assert found.radius == pytest.approx(np.sqrt(np.mean(nearest**2)), rel=1e-4)


def test_the_same_bits_with_any_number_of_threads(sample, found):
  again = vocabulary.train(sample, words=40, rounds=6, threads=1)
  assert_same(found.words.saved()[1].values(), again.words.saved()[1].values())
  other = vocabulary.train(sample, words=40, rounds=6, seed=1)
  assert (other.words.descriptors != found.words.descriptors).any()


def test_how_many_words(sample):
  assert len(vocabulary.train(sample[:170], rounds=1)) == 10
  assert len(vocabulary.train(sample[:5], rounds=1)) == 1
  assert len(vocabulary.train(sample[:5], words=9, rounds=1)) == 5
  same = np.repeat(sample[:1], 30, axis=0)
  found = vocabulary.train(same, words=4, rounds=3)
  assert len(found) == 4 and found.radius == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_learned_from(sample):
  with pytest.raises(InputError, match="no features to learn words from"):
    vocabulary.train(sample[:0])
  poisoned = sample[:50].copy()
  poisoned[7, 3] = np.nan
  with pytest.raises(InputError, match="not finite"):
    vocabulary.train(poisoned)
  with pytest.raises(ValueError, match="rounds=0"):
    vocabulary.train(sample, rounds=0)
