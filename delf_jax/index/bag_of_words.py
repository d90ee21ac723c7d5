"""Bags of visual words: photographs as texts, found by an inverted file.

Sivic and Zisserman, "Video Google" (ICCV 2003), as Philbin et al. ran it in
"Object retrieval with large vocabularies and fast spatial matching" (CVPR
2007), which the DELF paper compares with: a descriptor is the word that it is
nearest to, a photograph the number of times that it has each word, times the
logarithm of how rare the word is, divided by the length. The cosine of two such
vectors is how much alike the photographs are. Optional are soft assignment
(Philbin et al., "Lost in quantization", CVPR 2008) and a stop list.

A descriptor takes 4 bytes for its word, or 8 for each of several, and the lists
take 8 for each different word of a photograph.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import directory, graph, streaming
from delf_jax.index.vocabulary import Track, Vocabulary, train

_KIND = "bag_of_words"
_WORDS = "words_"  # what the names of the vocabulary's arrays begin with
SAMPLE = 1 << 20  # descriptors that a vocabulary is learned from


class BagOfWords:
  """An inverted file of the words of photographs.

  Attributes:
    vocabulary: the words.
    soft: words of a descriptor.
    sigma: see `build`.
    stop: see `build`; may be changed.
    offsets: [p + 1], rows offsets[i] to offsets[i + 1] are of photograph i.
    nbytes: what the index holds in memory, or maps into it.
  """

  def __init__(
    self,
    words: Vocabulary,
    *,
    soft: int,
    sigma: float,
    stop: float,
    arrays: Mapping[str, np.ndarray] | None = None,
  ):
    """Starts without photographs, or with arrays that were saved."""
    self.vocabulary = words
    self.soft = soft
    self.sigma = sigma
    self.stop = stop
    empty = {
      "words": np.zeros((0, soft), np.int32),
      "weights": np.zeros((0, soft if soft > 1 else 0), np.float32),
      "offsets": np.zeros(1, np.int64),
      "starts": np.zeros(len(words) + 1, np.int64),
      "images": np.zeros(0, np.int32),
      "counts": np.zeros(0, np.float32),
    }
    self._take(dict(arrays or empty))

  def __len__(self) -> int:
    return len(self.offsets) - 1

  @property
  def offsets(self) -> np.ndarray:
    return self._arrays["offsets"]

  @property
  def nbytes(self) -> int:
    held = sum(array.nbytes for array in self._arrays.values())
    return held + self._norms.nbytes + self.vocabulary.words.nbytes

  @property
  def stop(self) -> float:
    return self._stop

  @stop.setter
  def stop(self, stop: float) -> None:
    self._stop = stop
    if hasattr(self, "_arrays"):
      self._weigh()

  def describe(self, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the words of descriptors.

    Args:
      descriptors: [m, d].

    Returns:
      words [m, soft] int32, the nearest first, and how much of the descriptor
      each has, [m, soft] float32, together one.

    Raises:
      InputError: if a descriptor is not finite or has another dimension.
    """
    distances, words = self.vocabulary.nearest(descriptors, self.soft)
    if self.soft == 1:
      return words, np.ones(words.shape, np.float32)
    # The nearest is subtracted so that one is left, however far all are. Where
    # there are fewer words than asked for, the rest are the first, of weight 0.
    reach = self.sigma * self.vocabulary.radius
    squares = np.square(distances, dtype=np.float64)
    weights = np.exp((squares[:, :1] - squares) / (2 * max(reach, 1e-12) ** 2))
    weights /= weights.sum(axis=1, keepdims=True)
    missing = words < 0
    words = np.where(missing, words[:, :1], words)
    return words, np.where(missing, 0, weights).astype(np.float32)

  def rank(
    self,
    words: np.ndarray,
    weights: np.ndarray,
    *,
    leave_out: int | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Compares a query with every photograph that shares a word with it.

    Args:
      words: [m, soft] of its descriptors, see `describe`.
      weights: [m, soft] of the same.
      leave_out: a photograph that is not compared.

    Returns:
      photographs [r] int64 and cosines [r] float64, from 0 to 1, the largest
      first; of equal ones the first photograph first.
    """
    kept = (weights > 0) & ~self._stopped[words]
    asked, places = np.unique(words[kept], return_inverse=True)
    count = np.bincount(places, weights[kept], minlength=len(asked))
    value = count * self._rarity[asked]
    starts = self._arrays["starts"]
    lengths = starts[asked + 1] - starts[asked]
    # The lists of all words, one after the other.
    entries = np.repeat(starts[asked] - np.cumsum(lengths) + lengths, lengths)
    entries += np.arange(len(entries))
    images = self._arrays["images"][entries]
    products = self._arrays["counts"][entries] * np.repeat(
      value * self._rarity[asked], lengths
    )
    sums = np.bincount(images, products, minlength=len(self))
    found = np.unique(images)
    found = found[found != (-1 if leave_out is None else leave_out)]
    length = np.sqrt(np.square(value).sum()) * self._norms[found]
    cosines = np.divide(
      sums[found], length, out=np.zeros(len(found)), where=length > 0
    )
    # Rounding may leave the cosine of a photograph with itself above one.
    cosines = np.minimum(cosines, 1.0)
    order = np.lexsort([found, -cosines])
    return found[order].astype(np.int64), cosines[order]

  def same_words(
    self, words: np.ndarray, photograph: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Pairs a query's features with those of a photograph that share a word.

    Args:
      words: [m, soft] of the query's descriptors.
      photograph: its number.

    Returns:
      features [k] of the query, ascending, and rows [k], ascending for each;
      no pair twice. Words on the stop list count for nothing.
    """
    first, last = self.offsets[photograph : photograph + 2]
    theirs = np.asarray(self._arrays["words"][first:last])
    order = np.argsort(theirs, axis=None, kind="stable")
    ordered = theirs.ravel()[order]
    mine = words.ravel()
    starts = np.searchsorted(ordered, mine, side="left")
    lengths = np.searchsorted(ordered, mine, side="right") - starts
    lengths[self._stopped[mine]] = 0
    entries = np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    entries += np.arange(len(entries))
    features = np.repeat(np.arange(len(mine)) // words.shape[1], lengths)
    rows = order[entries] // theirs.shape[1]
    pairs = np.unique(features * np.int64(max(len(theirs), 1)) + rows)
    features, rows = np.divmod(pairs, max(len(theirs), 1))
    return features, rows + first

  def add(
    self, batches: Iterable[np.ndarray], counts: Sequence[int] | np.ndarray
  ) -> None:
    """Appends photographs; their numbers and rows follow on those there are.

    Args:
      batches: their descriptors, [n, d] at a time.
      counts: [p] how many each of them has.

    Raises:
      InputError: if a descriptor is not finite or has another dimension.
    """
    found = [self.describe(batch) for batch in batches]
    words = np.concatenate(
      [np.zeros((0, self.soft), np.int32)] + [one for one, _ in found]
    )
    weights = np.concatenate(
      [np.zeros((0, self.soft), np.float32)] + [one for _, one in found]
    )
    counts = np.asarray(counts, np.int64)
    if counts.sum() != len(words):
      raise ValueError(f"{len(words)} descriptors for {counts.sum()} counted")
    arrays = self._arrays
    width = arrays["weights"].shape[1]
    offsets = np.concatenate(
      [arrays["offsets"], arrays["offsets"][-1] + np.cumsum(counts)]
    )
    self._take(
      self._listed(
        np.concatenate([arrays["words"], words]),
        np.concatenate([arrays["weights"], weights[:, :width]]),
        offsets,
      )
    )

  def remove(self, photograph: int) -> None:
    """Removes a photograph; the numbers of those after it fall."""
    first, last = self.offsets[photograph : photograph + 2]
    counts = np.delete(np.diff(self.offsets), photograph)
    gone = np.s_[int(first) : int(last)]
    self._take(
      self._listed(
        np.delete(self._arrays["words"], gone, axis=0),
        np.delete(self._arrays["weights"], gone, axis=0),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
      )
    )

  def save(
    self,
    path: str | os.PathLike,
    *,
    provenance: Mapping[str, Any] | None = None,
  ) -> None:
    """Saves to an index directory; see `directory.write`."""
    parameters, arrays = self.vocabulary.words.saved()
    directory.write(
      path,
      kind=_KIND,
      parameters={
        "soft": self.soft,
        "sigma": self.sigma,
        "stop": self.stop,
        "radius": self.vocabulary.radius,
        "features": self.vocabulary.features,
        "built_with": dict(self.vocabulary.built_with),
        "words": parameters,
      },
      arrays={
        **self._arrays,
        **{_WORDS + name: array for name, array in arrays.items()},
      },
      provenance=provenance or {},
    )

  def _listed(
    self, words: np.ndarray, weights: np.ndarray, offsets: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Makes the inverted lists: for each word its photographs, ascending."""
    images = np.repeat(
      np.arange(len(offsets) - 1), np.diff(offsets) * self.soft
    )
    keys, places = np.unique(
      words.ravel() * np.int64(len(offsets)) + images, return_inverse=True
    )
    share = weights.ravel() if self.soft > 1 else None
    counts = np.bincount(places, share, minlength=len(keys))
    kept = counts > 0
    listed, images = np.divmod(keys[kept], len(offsets))
    starts = np.searchsorted(listed, np.arange(len(self.vocabulary) + 1))
    return {
      "words": words,
      "weights": weights,
      "offsets": offsets,
      "starts": starts.astype(np.int64),
      "images": images.astype(np.int32),
      "counts": counts[kept].astype(np.float32),
    }

  def _take(self, arrays: dict[str, np.ndarray]) -> None:
    self._arrays = arrays
    self._weigh()

  def _weigh(self) -> None:
    """Works out what the words weigh, and how long the photographs are."""
    holders = np.diff(self._arrays["starts"])
    # A word that nobody has is as rare as one that one photograph has: it makes
    # a query less like all others.
    self._rarity = np.log(max(len(self), 1) / np.maximum(holders, 1))
    most = int(self.stop * len(holders))
    self._stopped = np.zeros(len(holders), bool)
    self._stopped[np.argsort(-holders, kind="stable")[:most]] = True
    self._rarity[self._stopped] = 0
    values = self._arrays["counts"] * np.repeat(self._rarity, holders)
    self._norms = np.sqrt(
      np.bincount(
        self._arrays["images"], np.square(values), minlength=len(self)
      )
    )


def build(
  batches: Callable[[], Iterable[np.ndarray]],
  counts: Sequence[int] | np.ndarray,
  features: str,
  track: Track = iter,
  *,
  vocabulary: str | os.PathLike | None = None,
  words: int = 0,
  rounds: int = 10,
  sample: int = SAMPLE,
  soft: int = 1,
  sigma: float = 0.3,
  stop: float = 0.0,
  seed: int = 0,
  threads: int | None = None,
) -> BagOfWords:
  """Builds a bag of words.

  Args:
    batches: gives all descriptors, [n, d] at a time; may be called twice.
    counts: [p] how many descriptors each photograph has.
    features: the kind of descriptors, see `vocabulary.Vocabulary`.
    track: is given the rounds of k-means, to show how far they are.
    vocabulary: a bag of words whose words are taken, learned on other
      photographs than those that are searched; by default they are learned
      on these.
    words: see `vocabulary.train`, as rounds, seed and threads.
    sample: so many descriptors are learned from, at most.
    soft: nearest words of a descriptor that share it.
    sigma: how fast their share falls with their distance d, as exp(-d^2 /
      (2 (sigma r)^2)), where r is the radius of the vocabulary.
    stop: part of the vocabulary, the most frequent words, that counts for
      nothing.

  Raises:
    InputError: if a descriptor is unfit, or the vocabulary is missing or of
      another kind of features.
  """
  if soft < 1 or sigma <= 0 or not 0 <= stop < 1 or sample < 1:
    raise ValueError(f"{soft=}, {sigma=}, {stop=}, {sample=}")
  if vocabulary is not None:
    if words:
      raise InputError(
        "words is not for a given vocabulary: its words are all taken"
      )
    found = open_vocabulary(vocabulary)
    if found.features != features:
      raise InputError(
        f"the words of {os.fspath(vocabulary)!r} are of {found.features} "
        f"features, and these are {features}"
      )
  else:
    total = int(np.sum(counts))
    found = train(
      streaming.sampled(batches(), total, sample, seed)
      if total
      else np.zeros((0, 1), np.float32),
      features=features,
      words=words,
      rounds=rounds,
      seed=seed,
      track=track,
      threads=threads,
    )
  built = BagOfWords(found, soft=soft, sigma=sigma, stop=stop)
  built.add(batches(), counts)
  return built


def open_vocabulary(path: str | os.PathLike) -> Vocabulary:
  """Opens the words of a bag of words, without its photographs.

  Raises:
    InputError: if it is missing, damaged or something else.
  """
  meta, arrays = directory.read(path, kinds=(_KIND,))
  try:
    return _vocabulary(meta["parameters"], arrays, verify=True)
  except (KeyError, TypeError, ValueError) as error:
    raise directory.damaged(path, error) from error


def restore(
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  verify: bool = True,
) -> BagOfWords:
  """Makes the index that was saved; see `delf_jax.index.open_index`.

  Raises:
    ValueError: if the arrays do not fit together.
  """
  found = _vocabulary(parameters, arrays, verify=verify)
  soft, stop = int(parameters["soft"]), float(parameters["stop"])
  sigma = float(parameters["sigma"])
  if soft < 1 or not sigma > 0 or not 0 <= stop < 1:
    raise ValueError("a parameter is out of range")
  own = {
    name: array for name, array in arrays.items() if not name.startswith(_WORDS)
  }
  _check(own, len(found), soft, verify=verify)
  return BagOfWords(found, soft=soft, sigma=sigma, stop=stop, arrays=own)


def _vocabulary(
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  verify: bool,
) -> Vocabulary:
  return Vocabulary(
    words=graph.restore(
      parameters["words"],
      {
        name.removeprefix(_WORDS): array
        for name, array in arrays.items()
        if name.startswith(_WORDS)
      },
      verify=verify,
    ),
    radius=float(parameters["radius"]),
    features=str(parameters["features"]),
    built_with=dict(parameters["built_with"]),
  )


def _check(
  arrays: Mapping[str, np.ndarray], words: int, soft: int, *, verify: bool
) -> None:
  """Sees that a search stays within the arrays.

  Raises:
    ValueError: if it would not.
  """
  expected = {
    "words": (np.int32, 2),
    "weights": (np.float32, 2),
    "offsets": (np.int64, 1),
    "starts": (np.int64, 1),
    "images": (np.int32, 1),
    "counts": (np.float32, 1),
  }
  if arrays.keys() != expected.keys() or any(
    (arrays[name].dtype, arrays[name].ndim) != kind
    for name, kind in expected.items()
  ):
    raise ValueError("its arrays are others than those of a bag of words")
  offsets, starts = arrays["offsets"], arrays["starts"]
  rows, entries = len(arrays["words"]), len(arrays["images"])
  if (
    arrays["words"].shape[1] != soft
    or arrays["weights"].shape != ((rows, soft) if soft > 1 else (rows, 0))
    or len(arrays["counts"]) != entries
    or len(starts) != words + 1
    or not len(offsets)
    or not _ascends(offsets, rows)
    or not _ascends(starts, entries)
    or not _within(arrays["images"], len(offsets) - 1)
  ):
    raise ValueError("its arrays do not fit together")
  if verify and not (
    _within(arrays["words"], words)
    and (np.isfinite(arrays["counts"]) & (arrays["counts"] > 0)).all()
    and (arrays["weights"] >= 0).all()
  ):
    raise ValueError("a number is out of range")


def _ascends(bounds: np.ndarray, last: int) -> bool:
  return bool(
    bounds[0] == 0 and bounds[-1] == last and (np.diff(bounds) >= 0).all()
  )


def _within(numbers: np.ndarray, count: int) -> bool:
  return not numbers.size or bool(numbers.min() >= 0 and numbers.max() < count)
