"""What an inverted file is trained with: words, rotations and centroids."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from delf_jax.index import exact
from delf_jax.index import inverted_file_kernels as kernels
from delf_jax.index import product_quantization as quantization
from delf_jax.index.product_quantization import Quantiser
from delf_jax.index.threads import frozen, in_threads

MOST_WORDS = 8000  # as in the paper
_ROUNDS = 20  # of the k-means that finds the words
_SAMPLED = 512  # descriptors a word that it is given


@dataclasses.dataclass(frozen=True)
class Trained:
  """What is known before the first descriptor is added.

  Attributes:
    centres: [words, d] float32, the words.
    quantiser: of the residuals.
    lowest, step: [d] float32; a descriptor of 8-bit numbers b is
      lowest + step b.
    bits: of a code of a sub-vector.
    built_with: how it was trained, as JSON values.
  """

  centres: np.ndarray
  quantiser: Quantiser
  lowest: np.ndarray
  step: np.ndarray
  bits: int
  built_with: Mapping[str, Any]

  @property
  def subvectors(self) -> int:
    return self.quantiser.codebooks.shape[1]

  @functools.cached_property
  def columns(self) -> tuple[np.ndarray, np.ndarray]:
    """The words for comparing many at a time; see `kernels.assign`."""
    return _columns(self.centres)

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    return {
      "centres": self.centres,
      "rotation_of": self.quantiser.rotation_of,
      "rotations": self.quantiser.rotations,
      "codebook_of": self.quantiser.codebook_of,
      "codebooks": self.quantiser.codebooks,
      "lowest": self.lowest,
      "step": self.step,
    }

  def encode(
    self, descriptors: np.ndarray, threads: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words [n] int32 and codes [n, M] uint8 of descriptors."""
    words = _assigned(descriptors, self.columns, threads)
    codes = np.empty((len(descriptors), self.subvectors), np.uint8)
    order = np.argsort(words, kind="stable")
    quantiser = self.quantiser
    in_threads(
      lambda first, last: kernels.encode(
        descriptors,
        order,
        words,
        self.centres,
        quantiser.rotation_of,
        quantiser.rotations,
        quantiser.codebook_of,
        quantiser.codebooks,
        codes,
        first,
        last,
      ),
      len(descriptors),
      threads,
      piece=1 << 12,
    )
    return words, codes

  def shorten(self, descriptors: np.ndarray) -> np.ndarray:
    """Returns descriptors in 8 bits a number, [n, d] uint8."""
    with np.errstate(over="ignore"):  # far outside is at the end
      scaled = (descriptors - self.lowest) / np.where(self.step, self.step, 1)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def train(
  sample: np.ndarray,
  *,
  seed: int = 0,
  size: int | None = None,
  words: int = 0,
  subvectors: int = 0,
  bits: int = 5,
  rotation: str = "local",
  codebooks: str = "local",
  threads: int | None = None,
) -> Trained:
  """Finds words, rotations and centroids for descriptors like a sample.

  The same sample and seed give the same bits with any number of threads.

  Args:
    sample: [n, d]; some hundreds a word serve well, and all that will be added
      serve best.
    seed: of the k-means.
    size: how many descriptors will be added; as many as the sample by default.
    words: at most this many; 0 takes the square root of size, but no more than
      one for 32 descriptors of the sample and 8,000 in all, the paper's number
      for a billion.
    subvectors: that a residual is cut into; 0 takes one for 4 dimensions.
    bits: of the code of a sub-vector: 4, 5 (as in the paper) or 8.
    rotation: of residuals: "local" (each word its own, LOPQ), "global" or
      "none" (plain IVF-PQ).
    codebooks: "local" (each word its own centroids) or "global".
    threads: that share the work; all usable cores by default.

  Raises:
    InputError: if a descriptor is not finite.
  """
  sample = frozen(exact.checked(sample, name="descriptor"))
  n, d = sample.shape
  if (
    bits not in quantization.BITS
    or rotation not in quantization.ROTATIONS
    or codebooks not in quantization.CODEBOOKS
    or not 0 <= subvectors <= d
    or words < 0
  ):
    raise ValueError(
      f"{bits=}, {rotation=}, {codebooks=}, {subvectors=}, {words=}"
    )
  threads = threads or exact.usable_cores()
  subvectors = subvectors or -(-d // 4)
  wanted = words or min(
    round((n if size is None else size) ** 0.5), n // 32, MOST_WORDS
  )
  centres = cluster(
    sample,
    max(1, min(wanted, n)),
    seed=seed,
    assign=lambda some, words: _assigned(some, _columns(words), threads),
  )
  quantiser = quantization.train(
    sample,
    _assigned(sample, _columns(centres), threads),
    centres,
    subvectors=subvectors,
    bits=bits,
    rotation=rotation,
    codebooks=codebooks,
    seed=seed,
    threads=threads,
  )
  lowest = sample.min(axis=0, initial=np.inf)
  highest = sample.max(axis=0, initial=-np.inf)
  if n == 0:
    lowest, highest = np.zeros((2, d), np.float32)
  return Trained(
    centres=frozen(centres),
    quantiser=Quantiser(
      **{
        field.name: frozen(getattr(quantiser, field.name))
        for field in dataclasses.fields(quantiser)
      }
    ),
    lowest=frozen(lowest.astype(np.float32)),
    step=frozen(((highest - lowest) / 255).astype(np.float32)),
    bits=bits,
    built_with={
      "seed": seed,
      "sample": n,
      "rotation": rotation,
      "codebooks": codebooks,
    },
  )


def cluster(
  sample: np.ndarray,
  count: int,
  *,
  seed: int,
  assign: Callable[[np.ndarray, np.ndarray], np.ndarray],
  rounds: Iterable[int] = range(_ROUNDS),
) -> np.ndarray:
  """Finds words by k-means, from random descriptors of the sample.

  Args:
    sample: [n, d] float32; some hundreds a word are looked at.
    count: of the words.
    seed: of the choice.
    assign: descriptors [m, d] and words [count, d] -> the nearest word of each
      descriptor, [m] int32.
    rounds: the words move in each.

  Returns:
    [count, d] float32.
  """
  n, d = sample.shape
  if n == 0:
    return np.zeros((count, d), np.float32)
  generator = np.random.default_rng([seed, 2])
  chosen = generator.permutation(n)[: max(count, _SAMPLED * count)]
  centres = sample[chosen[:count]].copy()
  some = frozen(sample[np.sort(chosen)])
  for _ in rounds:
    words = assign(some, centres)
    sums = np.zeros((count, d))
    sizes = np.zeros(count, np.int64)
    kernels.add_up(some, words, sums, sizes)
    centres = (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(sizes == 0)
    # They move to where most descriptors are.
    large = np.argsort(-sizes, kind="stable")[: len(empty)]
    aside = 1e-3 * generator.standard_normal((len(large), d))
    centres[empty[: len(large)]] = centres[large] * (1 + aside)
  return centres


def _columns(centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[blocks, d, LANES] words and [blocks, LANES] their squared norms."""
  count, d = centres.shape
  blocks = -(-count // kernels.LANES)
  columns = np.zeros((blocks * kernels.LANES, d), np.float32)
  norms = np.full(blocks * kernels.LANES, np.inf, np.float32)  # inf: no word
  columns[:count] = centres
  norms[:count] = np.square(centres, dtype=np.float64).sum(axis=1)
  columns = columns.reshape(blocks, kernels.LANES, d).transpose(0, 2, 1)
  return frozen(columns), frozen(norms.reshape(blocks, kernels.LANES))


def _assigned(
  descriptors: np.ndarray,
  columns: tuple[np.ndarray, np.ndarray],
  threads: int,
) -> np.ndarray:
  """[n] int32, the nearest word of each."""
  words = np.zeros(len(descriptors), np.int32)
  in_threads(
    lambda first, last: kernels.assign(
      descriptors, *columns, words, first, last
    ),
    len(descriptors),
    threads,
    piece=1 << 10,
  )
  return words
