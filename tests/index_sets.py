"""Descriptors that every kind of index is tried on, and what must hold."""

import numpy as np

from delf_jax.index import directory, exact


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_clustered(n=5000, m=200, d=40, clusters=50):
  """[n, d] descriptors, [m, d] queries around the same centres."""
  generator = np.random.default_rng(0)
  centres = generator.normal(size=(clusters, d))
  noise = 0.5 * generator.normal(size=(n + m, d))
  points = unit(centres[np.arange(n + m) % clusters] + noise)
  return np.split(points.astype(np.float32), [n])


def make_odd(name, d=8, m=50):
  """[600, d] descriptors that are not as others, and [m, d] queries."""
  generator = np.random.default_rng(0)
  noise = generator.normal(size=(600, d))
  if name == "duplicated":
    x = noise[np.arange(600) % 20]
  elif name == "one apart":
    x = np.where(np.arange(600)[:, None] < 599, 1, noise)
  elif name == "constant":
    x = np.full((600, d), 0.3)
  elif name == "zero":
    x = np.zeros((600, d))
  elif name == "ties":
    x = generator.integers(0, 2, (600, d))
  elif name == "random":
    x = noise
  elif name == "scaled":
    x = noise * 10.0 ** np.resize([-30, -9, -3, 0, 0, 1, 3, 15], d)
  elif name == "huge":
    x = 1e16 * noise
  return x.astype(np.float32), noise[:m].astype(np.float32)


def recall(rows, wanted):
  return np.mean(
    [np.isin(a, b).mean() for a, b in zip(rows, wanted, strict=True)]
  )


def assert_same(found, wanted):
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(a, b, strict=True)


def assert_well_formed(found, descriptors, queries, k, exclude=(0, 0)):
  """Everything but which of the near ones were found."""
  distances, rows = found
  n = len(descriptors)
  left = n - len(range(*slice(*exclude).indices(n)))
  there = min(k, left)
  assert distances.shape == rows.shape == (len(queries), k)
  assert (rows[:, there:] == -1).all() and (
    distances[:, there:] == np.inf
  ).all()
  rows, distances = rows[:, :there], distances[:, :there]
  assert (rows >= 0).all() and (rows < n).all()
  assert not ((rows >= exclude[0]) & (rows < exclude[1])).any()
  assert all(len(set(row)) == there for row in rows)
  # Sorted by distance, then row, and the distances are those of exact.
  assert_same((distances, rows), exact.rank(queries, descriptors, rows, there))


def hashes(path):
  """The checksums of a saved index's arrays."""
  return {
    name: file["sha256"]
    for name, file in directory.read_meta(path)["files"].items()
  }
