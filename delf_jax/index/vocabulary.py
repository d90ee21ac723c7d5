"""Visual words: the centres of k-means, found by approximate nearest words.

Philbin et al., "Object retrieval with large vocabularies and fast spatial
matching" (CVPR 2007), section 3.1: in every round of k-means a descriptor goes
to a word that is nearly always the nearest, which a forest of KD-trees finds
there, and a walk over the graph of the words here: of 20,000 words it finds the
nearest for 998 descriptors of 1,000, and takes as long for a million.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import exact, graph, inverted_file_training

Track = Callable[[range], Iterable[int]]

MOST_WORDS = 1_000_000  # as many as the paper tried
PER_WORD = 16  # descriptors of the sample, as in the paper
_MEASURED = 1 << 16  # descriptors that the radius is measured on


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Words, and what finds the nearest.

  Attributes:
    words: index over them.
    radius: root mean square of the distances of descriptors to their words.
    features: the kind of descriptors; words of another kind mean nothing.
    built_with: how it was trained, as JSON values.
  """

  words: graph.GraphIndex
  radius: float
  features: str
  built_with: Mapping[str, Any]

  def __len__(self) -> int:
    return len(self.words)

  def nearest(
    self, descriptors: np.ndarray, count: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances and words, [n, count], of descriptors [n, d]."""
    return self.words.search(descriptors, count)


def train(
  sample: np.ndarray,
  *,
  features: str = "",
  words: int = 0,
  rounds: int = 10,
  seed: int = 0,
  track: Track = iter,
  threads: int | None = None,
) -> Vocabulary:
  """Finds words for descriptors like a sample.

  The same sample and seed give the same bits with any number of threads.

  Args:
    sample: [n, d].
    features: see `Vocabulary`.
    words: at most this many; 0 takes one for 16 descriptors of the sample, and
      no more than a million.
    rounds: of k-means.
    seed: of the descriptors that the words start from.
    track: is given the rounds, to show how far they are.
    threads: that share the work; all usable cores by default.

  Raises:
    InputError: if there is no descriptor, or one is not finite.
  """
  if words < 0 or rounds < 1:
    raise ValueError(f"{words=}, {rounds=}")
  sample = exact.checked(sample, name="descriptor")
  n = len(sample)
  if not n:
    raise InputError(
      "there are no features to learn words from; give a vocabulary that was "
      "learned on other photographs"
    )
  count = min(words or max(1, min(n // PER_WORD, MOST_WORDS)), n)

  def index_of(centres: np.ndarray) -> graph.GraphIndex:
    return graph.build(centres, seed=seed, builder="walk", threads=threads)

  def assign(descriptors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return index_of(centres).search(descriptors, 1)[1][:, 0]

  found = index_of(
    inverted_file_training.cluster(
      sample, count, seed=seed, assign=assign, rounds=track(range(rounds))
    )
  )
  chosen = np.random.default_rng(seed).permutation(n)[:_MEASURED]
  distances, _ = found.search(sample[np.sort(chosen)], 1)
  return Vocabulary(
    words=found,
    radius=float(np.sqrt(np.square(distances, dtype=np.float64).mean())),
    features=features,
    built_with={"seed": seed, "sample": n, "rounds": rounds},
  )
