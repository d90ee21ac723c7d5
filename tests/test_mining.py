"""Which negatives and triplets are mined, against loops over all of them."""

import jax
import numpy as np

from delf_jax.training import mining


def descriptors(count, dim=6, seed=0):
  found = np.random.default_rng(seed).normal(size=(count, dim))
  found /= np.linalg.norm(found, axis=1, keepdims=True)
  return found.astype(np.float32)


def test_negatives_are_the_nearest_of_other_clusters_and_of_each_their_own():
  pool = descriptors(40)
  clusters = np.arange(40) % 9
  mask = np.arange(40) % 11 != 0
  queries, own = descriptors(7, seed=1), np.arange(7)
  rows, there = mining.hard_negatives(
    queries, own, pool, clusters, mask, count=8
  )
  for query, cluster, found in zip(queries, own, rows.tolist(), strict=True):
    expected, taken = [], {cluster}
    for row in np.argsort(-(pool @ query)):
      if mask[row] and clusters[row] not in taken:
        expected.append(row)
        taken.add(clusters[row])
    assert found == expected[:8]
  assert there.all()
  *_, there = mining.hard_negatives(queries, own, pool, clusters, mask, count=9)
  assert (there.sum(axis=1) == 8).all()


def test_triplets_are_violated_and_queries_count_alike():
  sample = descriptors(30)
  labels = np.arange(30) // 3
  mask = np.arange(30) != 4
  rows, there = mining.draw_triplets(
    jax.random.key(0), sample, labels, mask, count=3000, hardest=3
  )
  rows = np.asarray(rows)
  assert there.all() and 4 not in rows
  query, positive, negative = rows.T
  assert (labels[query] == labels[positive]).all() and (query != positive).all()
  assert (labels[query] != labels[negative]).all()
  apart = np.sum((sample[query] - sample[positive]) ** 2, axis=1)
  farther = np.sum((sample[query] - sample[negative]) ** 2, axis=1)
  assert (0.1 + apart - farther > 0).all()
  numbers, counts = np.unique(query, return_counts=True)
  assert len(numbers) == 29 and 60 < counts.min() and counts.max() < 160
  assert len(np.unique(rows[query == 0], axis=0)) == 3
  again, _ = mining.draw_triplets(
    jax.random.key(0), sample, labels, mask, count=3000, hardest=3
  )
  np.testing.assert_array_equal(rows, again)


def test_nothing_is_violated():
  sample = np.eye(8, dtype=np.float32)[np.arange(16) // 2]
  labels = np.arange(16) // 2
  _, there = mining.draw_triplets(
    jax.random.key(0), sample, labels, np.ones(16, bool), count=5
  )
  assert not there.any()
