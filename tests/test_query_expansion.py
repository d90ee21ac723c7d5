"""Expansion of queries and databases, against loops in NumPy."""

import numpy as np
import pytest

from delf_jax.global_descriptors import query_expansion


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def descriptors(n=40, dim=8, seed=0):
  generator = np.random.default_rng(seed)
  return unit(generator.normal(size=(n, dim))).astype(np.float32)


def test_top_1_is_the_mean_of_the_two():
  query, first = descriptors(2)
  found = query_expansion.expand(query, first[None])
  np.testing.assert_allclose(found, unit((query + first) / 2), atol=1e-6)


def test_similarities_to_the_power_alpha():
  query, *found = descriptors(6)
  total = query.astype(np.float64)
  for one in found:
    total = total + max(float(one @ query), 0) ** 3 * one
  np.testing.assert_allclose(
    query_expansion.expand(query, np.stack(found), alpha=3.0),
    unit(total),
    atol=1e-6,
  )


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_what_was_not_found_does_not_count(alpha):
  query, *found = descriptors(5)
  found = np.stack(found)
  mask = np.array([True, False, True, False])
  poisoned = np.where(mask[:, None], found, np.nan)
  np.testing.assert_allclose(
    query_expansion.expand(query, poisoned, mask, alpha=alpha),
    query_expansion.expand(query, found[mask], alpha=alpha),
    atol=1e-6,
  )
  nothing = query_expansion.expand(query, poisoned, mask & False, alpha=alpha)
  np.testing.assert_allclose(nothing, query, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
@pytest.mark.parametrize("block", [7, 1024])
def test_databases(alpha, block):
  database = descriptors()
  found = query_expansion.augment_database(
    database, neighbours=3, alpha=alpha, block=block
  )
  similar = database @ database.T
  np.fill_diagonal(similar, -np.inf)
  for i, row in enumerate(similar):
    total = database[i].astype(np.float64)
    for j in np.argsort(-row)[:3]:
      total = total + (max(row[j], 0) ** alpha if alpha else 1) * database[j]
    np.testing.assert_allclose(found[i], unit(total), atol=1e-5)


def test_one_photograph_has_no_neighbours():
  database = descriptors(1)
  found = query_expansion.augment_database(database, neighbours=3)
  np.testing.assert_array_equal(found, database)
