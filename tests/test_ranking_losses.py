"""Losses of descriptors: values by hand, gradients, and what is mined."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.training import ranking_losses


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def descriptors(n=12, dim=4, seed=0):
  generator = np.random.default_rng(seed)
  return unit(generator.normal(size=(n, dim))).astype(np.float32)


def test_contrastive_pairs():
  query = np.array([1.0, 0.0], np.float32)
  turned = np.array([0.0, 0.4, 0.4, 2.0])  # radians
  others = np.stack([np.cos(turned), np.sin(turned)], axis=1)
  others = others.astype(np.float32)
  positive = np.array([True, True, False, False])
  apart = 2 * np.sin(0.2)
  found = ranking_losses.contrastive(query, others, positive)
  expected = 0.5 * apart**2 + 0.5 * (0.7 - apart) ** 2
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  poisoned = np.where(np.arange(4)[:, None] == 2, np.nan, others)
  found = ranking_losses.contrastive(
    query, poisoned, positive, np.arange(4) != 2
  )
  np.testing.assert_allclose(found, 0.5 * apart**2, rtol=1e-5)


def test_equal_descriptors_have_a_gradient():
  same = descriptors(1)[0]
  for positive in (True, False):
    gradient = jax.grad(ranking_losses.contrastive)(
      same, same[None], jnp.array([positive])
    )
    assert np.isfinite(gradient).all()


def test_triplets():
  query, positive, negative = descriptors(3)
  near, far = ((query - x) @ (query - x) for x in (positive, negative))
  for margin in (0.1, 3.0):
    found = ranking_losses.triplet(query, positive, negative, margin=margin)
    expected = max(0, margin + near - far) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def literal_average_precision(scores, positive, bins, low, high):
  """Adds up what every score gives to every bin, in loops."""
  step = (high - low) / (bins - 1)
  seen = right = total = 0.0
  for k in range(bins):
    centre = high - k * step
    mine = 0.0
    for score, match in zip(scores, positive, strict=True):
      share = max(0.0, 1 - abs(min(max(score, low), high) - centre) / step)
      seen += share
      right += share * match
      mine += share * match
    total += (right / seen if seen else 0.0) * mine
  return total / sum(positive)


@pytest.mark.parametrize("bins", [2, 7, 20])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_average_precision_of_bins(bins, low):
  generator = np.random.default_rng(bins)
  scores = generator.uniform(-1, 1.1, 30)
  positive = generator.random(30) < 0.3
  found = ranking_losses.average_precision(
    scores.astype(np.float32), positive, bins=bins, low=low
  )
  expected = literal_average_precision(scores, positive, bins, low, 1.0)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_many_bins_are_the_ranking_itself():
  generator = np.random.default_rng(1)
  scores = generator.permutation(np.linspace(0.01, 0.99, 25))
  positive = generator.random(25) < 0.4
  order = np.argsort(-scores)
  hits = positive[order]
  precision = np.cumsum(hits) / np.arange(1, 26)
  found = ranking_losses.average_precision(
    scores.astype(np.float32), positive, bins=2001
  )
  np.testing.assert_allclose(found, precision[hits].mean(), atol=0.02)


def test_what_is_not_there_has_no_rank():
  scores = np.array([0.9, 0.5, 0.7, 0.1], np.float32)
  positive = np.array([True, False, True, True])
  mask = np.array([True, True, False, False])
  poisoned = np.where(mask, scores, np.nan)
  value, gradient = jax.value_and_grad(ranking_losses.average_precision)(
    poisoned, positive, mask
  )
  np.testing.assert_allclose(value, 1.0, atol=1e-6)
  assert np.isfinite(gradient).all() and not gradient[2:].any()
  nothing = ranking_losses.average_precision(scores, positive, mask & False)
  np.testing.assert_allclose(nothing, 0.0)


def test_a_step_along_the_gradient_ranks_better():
  scores = jnp.array([0.62, 0.58, 0.44, 0.41])
  positive = jnp.array([False, True, False, True])
  value, gradient = jax.value_and_grad(ranking_losses.average_precision)(
    scores, positive
  )
  better = ranking_losses.average_precision(scores + 1e-4 * gradient, positive)
  assert better > value


def test_negatives_are_hard_and_of_different_clusters():
  pool = descriptors(60, 4)
  clusters = np.random.default_rng(1).integers(0, 9, 60)
  queries = descriptors(5, 4, seed=2)
  own = np.array([0, 3, 8, 3, 100])
  rows, there = jax.jit(
    jax.vmap(
      functools.partial(ranking_losses.mine_negatives, count=5),
      in_axes=(0, 0, None, None),
    )
  )(queries, own, pool, clusters)
  assert there.all()
  for query, cluster, found in zip(queries, own, rows, strict=True):
    expected, seen = [], {cluster}
    for row in np.argsort(-(pool @ query)):
      if clusters[row] not in seen:
        expected.append(row)
        seen.add(clusters[row])
    np.testing.assert_array_equal(found, expected[:5])


def test_too_few_clusters():
  pool, clusters = descriptors(6), np.array([0, 0, 1, 1, 2, 2])
  rows, there = ranking_losses.mine_negatives(
    pool[0], jnp.int32(0), pool, clusters, count=4
  )
  assert there.tolist() == [True, True, False, False]
  assert set(clusters[rows[:2]]) == {1, 2}


def test_the_hardest_triplets_of_a_query():
  sample = descriptors(20, 4)
  labels = np.arange(20) // 4
  mask = np.arange(20) != 7
  for query in (0, 5):
    every = []
    for p in np.flatnonzero((labels == labels[query]) & mask):
      for n in np.flatnonzero((labels != labels[query]) & mask):
        if p != query:
          loss = ranking_losses.triplet(sample[query], sample[p], sample[n])
          every.append((-float(loss), p, n))
    expected = [row for row in sorted(every)[:6] if row[0] < 0]
    positives, negatives, lost = ranking_losses.hardest_triplets(
      query, sample, labels, mask, count=6
    )
    found = list(
      zip(positives.tolist(), negatives.tolist(), lost.tolist(), strict=True)
    )
    assert [(p, n) for p, n, is_lost in found if is_lost] == [
      (p, n) for _, p, n in expected
    ]
  *_, lost = ranking_losses.hardest_triplets(7, sample, labels, mask, count=6)
  assert not lost.any()


@pytest.mark.parametrize("transform", [jax.vmap, jax.pmap])
def test_they_map(transform):
  sample = descriptors(6).reshape(2, 3, 4)
  found = transform(lambda x: ranking_losses.triplet(*x, margin=2.0))(sample)
  for one, parts in zip(found, sample, strict=True):
    expected = ranking_losses.triplet(*parts, margin=2.0)
    np.testing.assert_allclose(one, expected, rtol=1e-6)
