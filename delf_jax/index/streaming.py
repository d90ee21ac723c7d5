"""Builds an index of descriptors that never are in memory all at once."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from delf_jax import index

# The one kind that can be built so.
KIND = "inverted_file"
SAMPLE = 1 << 21  # descriptors that it is trained with


def build(
  batches: Callable[[], Iterable[np.ndarray]],
  total: int,
  *,
  folder: str | os.PathLike,
  seed: int = 0,
  sample: int = SAMPLE,
  probes: int = 5,
  visit: int = 0,
  rerank: int = 0,
  threads: int | None = None,
  **training: Any,
) -> index.Index:
  """Builds an inverted file.

  Args:
    batches: gives all descriptors, [n, d] at a time; it is called twice.
    total: how many they are.
    folder: where files that have no names may be written.
    seed: of what is random.
    sample: so many descriptors are trained with, at most.
    probes, visit, rerank, threads: see `inverted_file.Writer`.
    **training: of `inverted_file.train`.

  Raises:
    InputError: if a descriptor or an option is unfit.
  """
  inverted_file = index.module(KIND)
  trained = index.call(
    inverted_file.train,
    KIND,
    sampled(batches(), total, sample, seed),
    seed=seed,
    size=total,
    threads=threads,
    **training,
  )
  with index.call(
    inverted_file.Writer,
    KIND,
    trained,
    probes=probes,
    visit=visit,
    rerank=rerank,
    threads=threads,
    folder=folder,
  ) as writer:
    for batch in batches():
      writer.add(batch)
    return writer.finish()


def sampled(
  batches: Iterable[np.ndarray], total: int, count: int, seed: int
) -> np.ndarray:
  """A seeded sample of descriptors, [count, d] or all there are."""
  if count >= total:
    return np.concatenate(list(batches))
  rows = np.sort(np.random.default_rng(seed).choice(total, count, False))
  found, row = [], 0
  for batch in batches:
    first, last = np.searchsorted(rows, [row, row + len(batch)])
    found.append(batch[rows[first:last] - row])
    row += len(batch)
  return np.concatenate(found)
