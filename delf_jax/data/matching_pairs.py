"""Which photographs of a training set match: a query and a positive each."""

import os
from collections.abc import Sequence

import numpy as np

from delf_jax.data import safe_pickle
from delf_jax.data.examples import Order, random_generator
from delf_jax.data.sources import Source
from delf_jax.errors import InputError

# The first number after the seed keeps this stream of chance apart from others.
_POSITIVE = 210


class MatchingPairs:
  """The endless order of queries, each with a photograph that matches it.

  A pure function of the seed and the position: every query once an epoch, in a
  new order.
  """

  def __init__(
    self, labels: np.ndarray, pairs: np.ndarray | None, *, seed: int
  ) -> None:
    """Takes what matches.

    Args:
      labels: [n] int, of the photographs.
      pairs: [p, 2] queries and positives; None: every photograph is a query,
        and a positive any other one of its label, by chance.
      seed: of the order and of that.

    Raises:
      InputError: if nothing matches.
    """
    self._labels = np.asarray(labels)
    self._seed = seed
    self._pairs = pairs
    if pairs is None:
      _, which, counts = np.unique(
        self._labels, return_inverse=True, return_counts=True
      )
      self._queries = np.flatnonzero(counts[which] > 1)
      order = np.argsort(self._labels, kind="stable")
      self._members = dict(
        zip(
          np.unique(self._labels).tolist(),
          np.split(order, np.cumsum(counts)[:-1]),
          strict=True,
        )
      )
    if not len(self):
      raise InputError(
        "no two photographs of the training set match; give photographs, two "
        "or more of a class, or other pairs"
      )
    self._order = Order(len(self), None, seed=seed, sampling="photograph")

  def __len__(self) -> int:
    """Queries of an epoch."""
    return len(self._queries if self._pairs is None else self._pairs)

  def __call__(self, position: int) -> tuple[int, int]:
    """Returns a query and its positive, by its position in the order."""
    row = self._order(position)
    if self._pairs is not None:
      return int(self._pairs[row, 0]), int(self._pairs[row, 1])
    query = int(self._queries[row])
    members = self._members[int(self._labels[query])]
    generator = random_generator(self._seed, _POSITIVE, position)
    return query, int(generator.choice(members[members != query]))


def read_pairs(path: str | os.PathLike, source: Source) -> np.ndarray:
  """Reads pairs of photographs that were found to match.

  Args:
    path: .pkl, the lists "qidxs" and "pidxs" under "train" of
      retrieval-SfM-30k or -120k, in the layout of the authors' code (siaMAC's
      queries and positives); .npz, what `delf_jax.find_correspondences` wrote,
      of which every pair counts both ways.
    source: the photographs; the pairs of others are left out.

  Returns:
    [p, 2] rows of the source.

  Raises:
    InputError: if the file is unfit, or none of its pairs is of the source.
  """
  path = os.fspath(path)
  names = getattr(source, "names", None)
  if names is None:
    raise InputError(
      f"{path!r} names photographs, which need their files: leave "
      f"config.dataset.data_dir empty"
    )
  if path.endswith(".pkl"):
    paths, pairs = _read_pickle(path)
    known = {name.rpartition("/")[2]: i for i, name in enumerate(names)}
  elif path.endswith(".npz"):
    paths, pairs = _read_verified(path)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    known = {name: i for i, name in enumerate(names)}
  else:
    raise InputError(
      f"{path!r}: expected retrieval-SfM-120k.pkl, or the .npz of "
      f"delf_jax.find_correspondences"
    )
  rows = np.array([known.get(name, -1) for name in paths], np.int64)
  found = rows[pairs]
  found = np.unique(found[(found >= 0).all(axis=1)], axis=0)
  if not len(found):
    raise InputError(
      f"{path!r}: none of its {len(pairs):,} pairs is of the training "
      f"photographs, such as {names[0]!r}"
    )
  return found


def _read_verified(path: str) -> tuple[Sequence[str], np.ndarray]:
  try:
    with np.load(path) as file:
      return file["paths"].tolist(), np.asarray(file["pairs"], np.int64)
  except (OSError, ValueError, KeyError) as error:
    raise InputError(
      f"{path!r}: cannot be read as a file of verified pairs ({error}); write "
      f"it with delf_jax.find_correspondences"
    ) from error


def _read_pickle(path: str) -> tuple[Sequence[str], np.ndarray]:
  content = safe_pickle.load(path)
  try:
    part = content["train"]
    paths = [str(cid) for cid in part["cids"]]
    pairs = np.array([part["qidxs"], part["pidxs"]], np.int64).T
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < len(paths):
      raise ValueError("a number is none of a photograph")
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{path!r} has no lists cids, qidxs and pidxs under 'train' ({error}); "
      f"expected retrieval-SfM-120k.pkl"
    ) from error
  return paths, pairs.reshape(-1, 2)
