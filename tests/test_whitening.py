"""Learned whitening against what it promises."""

import numpy as np
import pytest

from delf_jax.features import reduction, whitening


def photographs(places=60, views=2, dim=12):
  """Places far apart; views of one differ along some directions only."""
  generator = np.random.default_rng(0)
  place = generator.normal(size=(places, 1, dim)) * np.linspace(3, 1, dim)
  view = generator.normal(size=(places, views, dim)) * np.linspace(0.2, 2, dim)
  descriptors = (place + view).reshape(-1, dim)
  descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
  first = np.arange(places) * views
  return descriptors.astype(np.float32), first, first + 1


def projected(learned, descriptors):
  return (descriptors - learned.mean) @ np.asarray(learned.components).T


def test_differences_of_pairs_become_white_and_directions_sorted():
  descriptors, queries, positives = photographs()
  learned = whitening.learn(descriptors, queries, positives)
  found = projected(learned, descriptors)
  apart = found[queries] - found[positives]
  np.testing.assert_allclose(
    apart.T @ apart / len(apart), np.eye(12), atol=2e-3
  )
  spread = found.T @ found
  variances = np.diag(spread)
  assert (np.diff(variances) <= 1e-3 * variances[0]).all()
  np.testing.assert_allclose(
    spread - np.diag(variances), 0, atol=1e-3 * variances[0]
  )
  np.testing.assert_allclose(found[queries].mean(0), 0, atol=1e-3)


def test_fewer_dimensions_are_the_first():
  descriptors, queries, positives = photographs()
  whole = whitening.learn(descriptors, queries, positives)
  part = whitening.learn(7 * descriptors, queries, positives, dim=5)
  np.testing.assert_allclose(part.components, whole.components[:5], atol=1e-3)


def test_pairs_are_told_apart_better():
  descriptors, queries, positives = photographs()
  half = len(queries) // 2
  learned = whitening.learn(descriptors, queries[:half], positives[:half])

  def right(found):
    similar = found[queries[half:]] @ found[positives[half:]].T
    return (similar.argmax(1) == np.arange(len(similar))).mean()

  found = np.asarray(reduction.reduce(learned, descriptors))
  assert right(found) > right(descriptors)


def test_fewer_pairs_than_dimensions():
  descriptors, queries, positives = photographs()
  learned = whitening.learn(descriptors, queries[:5], positives[:5])
  assert np.isfinite(learned.components).all()


@pytest.mark.parametrize(("pairs", "dim"), [(0, 0), (10, 13)])
def test_what_cannot_be_learned(pairs, dim):
  descriptors, queries, positives = photographs()
  with pytest.raises(ValueError, match=f"of 12 dimensions from {pairs} quer"):
    whitening.learn(descriptors, queries[:pairs], positives[:pairs], dim=dim)


def test_a_layer_that_does_the_same():
  descriptors, *_ = photographs()
  learned = reduction.fit(descriptors, 6, whiten=True)
  layer = whitening.as_layer(learned)
  found = descriptors @ layer["kernel"] + layer["bias"]
  found /= np.linalg.norm(found, axis=1, keepdims=True)
  np.testing.assert_allclose(
    found, reduction.reduce(learned, descriptors), atol=1e-5
  )
