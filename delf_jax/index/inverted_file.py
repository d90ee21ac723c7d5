"""The inverted file: lists of short codes, the paper's large-scale index.

Descriptors are sorted into the lists of the words that they are nearest to, and
what they differ by from their word is kept as a code of 50 bits (see
`product_quantization`). A query looks into the lists of its 5 nearest words and
estimates its distances to all that lie there from tables of its distances to
the centroids: section 5.2 of the DELF paper, whose authors never released their
index. A descriptor takes 6.25 bytes for the code and about 2 for its row, and
the words with their rotations and centroids take 12 kB each.

Tables are rounded to 16 bits for a first look, 32 entries at a time, and what
might be among the k nearest is measured with the tables themselves: the answer
is that of the tables, in float32, to the bit. The scan is compiled by numba.
Written in JAX it has to gather every table entry from memory, or to multiply
codes spelt out as ones and zeros: 100 times slower or worse on a CPU (measured
by tests/benchmarks/inverted_file.py), for XLA has no look-up in a register. A
processor without AVX-512 measures every entry, 10 times slower.

trained = train(sample, size=10**9)
with Writer(trained, folder="/large/disk") as writer:
  for batch in batches:
    writer.add(batch)
  writer.finish().save(path, provenance={"store": ...})
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import directory, exact
from delf_jax.index import inverted_file_kernels as kernels
from delf_jax.index import product_quantization as quantization
from delf_jax.index.inverted_file_training import Trained, train
from delf_jax.index.product_quantization import Quantiser
from delf_jax.index.threads import frozen, in_threads

_KIND = "inverted_file"
_QUERIES = 64  # that a thread takes at a time
_PIECE = 1 << 16  # descriptors that are coded at a time
_LARGEST = np.iinfo(np.int32).max  # rows are int32


@dataclasses.dataclass
class _Part:
  """Lists of descriptors that were added together.

  Attributes:
    first: the number of its first row.
    n: how many rows it spans.
    sizes: [words] int64, entries of each list.
    codes: [blocks, bytes] uint8; see `kernels`.
    rows: [r] uint64, the rows of the lists, counted from `first`.
    vectors: [n, d] uint8, or [0, d] where nothing is re-ranked.
    alive: [blocks] uint32, a bit an entry; empty when none was removed.
  """

  first: int
  n: int
  sizes: np.ndarray
  codes: np.ndarray
  rows: np.ndarray
  vectors: np.ndarray
  alive: np.ndarray = dataclasses.field(
    default_factory=lambda: frozen(np.zeros(0, np.uint32))
  )

  def __post_init__(self):
    self.block_starts = frozen(_block_starts(self.sizes))
    self.starts = frozen(kernels.row_starts(self.n, self.sizes))

  @property
  def nbytes(self) -> int:
    return sum(
      value.nbytes
      for value in vars(self).values()
      if isinstance(value, np.ndarray)
    )


class InvertedFileIndex:
  """Nearest neighbours by codes in inverted lists.

  Attributes:
    threads: that build and search; all usable cores by default. The results do
      not depend on it.
    probes, visit, rerank: see `Writer`; they may be changed, but for a rerank
      of 0.
    nbytes: what the index holds in memory, or maps into it.
    trained: what its lists and codes are made with.
  """

  def __init__(
    self,
    trained: Trained,
    part: _Part,
    *,
    probes: int,
    visit: int,
    rerank: int,
    threads: int | None = None,
  ):
    """Use `build`, or `Writer`."""
    self.trained = trained
    self.threads = threads or exact.usable_cores()
    self.probes = probes
    self.visit = visit
    self.rerank = rerank
    # What was there at first, and what was added since.
    self._parts = [part]
    self._living = frozen(part.sizes)
    # Ranges of removed rows, in numbers from before any was removed.
    self._removed = np.zeros((0, 2), np.int64)

  def __len__(self) -> int:
    return int(self._living.sum())

  @property
  def nbytes(self) -> int:
    held = [*self.trained.arrays.values(), *self.trained.columns]
    return sum(a.nbytes for a in held) + sum(p.nbytes for p in self._parts)

  def search(
    self,
    queries: np.ndarray,
    k: int,
    *,
    exclude: tuple[int, int] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds k near descriptors of each query.

    Looks into the lists of the query's nearest words: `probes` of them, no
    further one when `visit` entries were seen, and more of them where they
    hold too few to find k.

    Args:
      queries: [m, d].
      k: at least 1.
      exclude: rows [start, stop) are left out.

    Returns:
      distances [m, k] float32, ascending, and rows [m, k] int32; equal
      distances in the order of rows. Where fewer than k rows are left the tail
      is (inf, -1). Distances are estimates: Euclidean ones to what the codes
      stand for, or with re-ranking to the descriptors in 8 bits.

    Raises:
      InputError: if a query is not finite or has another dimension.
    """
    d = self.trained.centres.shape[1]
    queries = frozen(exact.checked(queries, name="query", dimension=d))
    n = len(self)
    start, stop = exact.checked_range(k, exclude, n)
    needed = min(k + stop - start, n)
    left_out = self._stored_range(start, stop)
    count = k * max(1, self.rerank)
    found = [
      self._search_part(part, queries, count, needed, left_out)
      for part in self._parts
    ]
    distances, rows = _merged(found, count)
    if self.rerank:
      for part in self._parts:
        self._measure(part, queries, rows, distances)
      distances, rows = _merged([(distances, rows)], k)
    if len(self._removed):
      gaps, removed = self._shifts()
      shift = removed[np.searchsorted(gaps, rows, side="right")]
      rows = np.where(rows < 0, -1, rows - shift)
    return distances, rows.astype(np.int32)

  def add(self, descriptors: np.ndarray) -> None:
    """Appends descriptors; their rows follow on those that are there.

    Raises:
      InputError: if a descriptor is not finite or has another dimension.
    """
    last = self._parts[-1]
    writer = Writer(self.trained, rerank=self.rerank, threads=self.threads)
    writer.add(descriptors)
    part = writer.finish()._parts[0]
    part.first = last.first + last.n
    _check_size(part.first + part.n)
    self._living = frozen(self._living + part.sizes)
    self._parts.append(part)
    # What was added lately goes together, so that there are few parts and
    # nothing is copied often. The first part may be larger than the memory.
    while len(self._parts) > 2 and self._parts[-2].n <= 2 * self._parts[-1].n:
      pair = self._parts[-2:]
      gathered = self._gathered(
        pair, np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros
      )
      gathered.first = pair[0].first
      self._parts[-2:] = [gathered]

  def remove(self, start: int, stop: int) -> None:
    """Removes rows [start, stop); the numbers of the rows after them fall.

    The codes are masked, and left out by the next `save`.
    """
    n = len(self)
    if not 0 <= start <= stop <= n:
      raise ValueError(f"rows [{start}, {stop}) of {n} cannot be removed")
    if start == stop:
      return
    first, last = self._stored_range(start, stop)
    lost = np.zeros(len(self._living), np.int64)
    for part in self._parts:
      alive = part.alive.copy()
      if not len(alive):
        alive = np.full(len(part.codes), 0xFFFFFFFF, np.uint32)
      kernels.kill(
        part.rows,
        part.block_starts,
        part.sizes,
        part.starts,
        part.n,
        alive,
        first - part.first,
        last - part.first,
        lost,
      )
      part.alive = frozen(alive)
    self._living = frozen(self._living - lost)
    inside = (self._removed[:, 0] >= first) & (self._removed[:, 1] <= last)
    ranges = np.concatenate([self._removed[~inside], [[first, last]]])
    self._removed = ranges[np.argsort(ranges[:, 0])]

  def save(
    self,
    path: str | os.PathLike,
    *,
    provenance: Mapping[str, Any] | None = None,
  ) -> None:
    """Saves to an index directory; see `directory.write`."""
    part = self._parts[0]
    if len(self._parts) > 1 or len(self._removed):
      part = self._gathered(self._parts, *self._shifts(), np.zeros)
    directory.write(
      path,
      kind=_KIND,
      parameters={
        "bits": self.trained.bits,
        "probes": self.probes,
        "visit": self.visit,
        "rerank": self.rerank,
        "built_with": dict(self.trained.built_with),
      },
      arrays={
        **self.trained.arrays,
        "sizes": part.sizes,
        "codes": part.codes,
        "rows": part.rows,
        "vectors": part.vectors,
      },
      provenance=provenance or {},
    )

  def _search_part(
    self,
    part: _Part,
    queries: np.ndarray,
    count: int,
    needed: int,
    left_out: tuple[int, int],
  ) -> tuple[np.ndarray, np.ndarray]:
    """The nearest entries of a part by their codes, [m, count]."""
    distances = np.full((len(queries), count), np.inf, np.float32)
    rows = np.full((len(queries), count), -1, np.int64)
    quantiser = self.trained.quantiser
    in_threads(
      lambda first, last: kernels.search(
        queries,
        *self.trained.columns,
        self.trained.centres,
        quantiser.rotation_of,
        quantiser.rotations,
        quantiser.codebook_of,
        quantiser.codebooks,
        self.trained.bits,
        part.codes,
        part.rows,
        part.block_starts,
        part.sizes,
        part.starts,
        part.n,
        part.alive,
        self._living,
        self.probes,
        self.visit,
        needed,
        kernels.WIDE,
        left_out[0] - part.first,
        left_out[1] - part.first,
        distances,
        rows,
        first,
        last,
      ),
      len(queries),
      self.threads,
      piece=_QUERIES,
    )
    return distances, np.where(rows < 0, -1, rows + part.first)

  def _measure(
    self,
    part: _Part,
    queries: np.ndarray,
    rows: np.ndarray,
    distances: np.ndarray,
  ) -> None:
    """Writes the distances to a part's 8-bit descriptors."""
    in_threads(
      lambda first, last: kernels.measure(
        queries,
        part.vectors,
        self.trained.lowest,
        self.trained.step,
        part.first,
        rows,
        distances,
        first,
        last,
      ),
      len(queries),
      self.threads,
      piece=_QUERIES,
    )

  def _gathered(
    self,
    parts: list[_Part],
    gaps: np.ndarray,
    removed: np.ndarray,
    allocate: Callable[..., np.ndarray],
  ) -> _Part:
    """Makes one part of several; rows move down by `removed` after `gaps`."""
    base = parts[0].first
    n = parts[-1].first + parts[-1].n - base - int(removed[-1])
    sizes = [part.sizes for part in parts]
    for i, part in enumerate(parts):
      if len(part.alive):
        sizes[i] = kernels.count_alive(
          part.alive, part.block_starts, part.sizes
        )
    gathered = _empty_part(self.trained, n, sum(sizes), allocate)
    filled = np.zeros(len(self._living), np.int64)
    for part in parts:
      kernels.move(
        part.codes,
        part.rows,
        part.block_starts,
        part.sizes,
        part.starts,
        part.n,
        part.alive,
        gaps,
        removed,
        filled,
        gathered.codes,
        gathered.rows,
        gathered.block_starts,
        gathered.sizes,
        gathered.starts,
        gathered.n,
        part.first - base,
        self.trained.bits,
        self.trained.subvectors,
      )
    gathered.vectors = np.concatenate([part.vectors for part in parts])
    if len(gaps) and self.rerank:
      gone = [np.arange(*pair) for pair in self._removed]
      gathered.vectors = np.delete(
        gathered.vectors, np.concatenate(gone), axis=0
      )
    _freeze(gathered)
    return gathered

  def _shifts(self) -> tuple[np.ndarray, np.ndarray]:
    """Where removed ranges start, and how many rows are gone by then."""
    gone = np.cumsum(np.diff(self._removed, axis=1))
    return self._removed[:, 0].copy(), np.concatenate([[0], gone])

  def _stored_range(self, start: int, stop: int) -> tuple[int, int]:
    """A range of rows in numbers from before any was removed."""
    if start == stop:
      return 0, 0
    gaps, removed = self._shifts()
    # Row r is at r + removed[i] if i ranges start before it.
    ends = np.array([start, stop - 1])
    before = np.searchsorted(gaps - removed[:-1], ends, side="right")
    first, last = ends + removed[before]
    return int(first), int(last) + 1


class Writer:
  """Builds an index from descriptors that come in a stream.

  They are coded as they come; what is kept of each until the end is its word
  and its code. A killed process leaves nothing: its files have no names.
  """

  def __init__(
    self,
    trained: Trained,
    *,
    probes: int = 5,
    visit: int = 0,
    rerank: int = 0,
    threads: int | None = None,
    folder: str | os.PathLike | None = None,
  ):
    """Starts without descriptors.

    Args:
      trained: by `train`.
      probes: lists that a search looks into.
      visit: entries after which a search looks into no further list; 0 sets no
        limit.
      rerank: candidates for each of the k neighbours that are measured with
        their descriptors in 8 bits (d bytes each, mapped from disk when
        opened); 0 keeps none.
      threads: that build and search; all usable cores by default.
      folder: a directory on a disk with room for 21 bytes a descriptor
        of 10 codes, and d more with `rerank`; by default
        everything is kept in memory.
    """
    if probes < 1 or visit < 0 or rerank < 0:
      raise ValueError(f"{probes=}, {visit=}, {rerank=}")
    self._trained = trained
    self._options = {"probes": probes, "visit": visit, "rerank": rerank}
    self._threads = threads or exact.usable_cores()
    self._folder = folder
    self._sizes = np.zeros(len(trained.centres), np.int64)
    self._entries = _Spill(folder)
    self._vectors = _Spill(folder)

  def add(self, descriptors: np.ndarray) -> None:
    """Takes the next descriptors, [n, d].

    Raises:
      InputError: if one is not finite or has another dimension.
    """
    trained = self._trained
    d = trained.centres.shape[1]
    descriptors = frozen(
      exact.checked(descriptors, name="descriptor", dimension=d)
    )
    _check_size(int(self._sizes.sum()) + len(descriptors))
    for start in range(0, len(descriptors), _PIECE):
      piece = descriptors[start : start + _PIECE]
      self.add_codes(*trained.encode(piece, self._threads))
      if self._options["rerank"]:
        self._vectors.append(trained.shorten(piece))

  def add_codes(self, words: np.ndarray, codes: np.ndarray) -> None:
    """Takes the next descriptors as `Trained.encode` gives them.

    For work that is divided among machines; nothing can be re-ranked then.
    """
    self._sizes += np.bincount(words, minlength=len(self._sizes))
    entries = np.empty(len(words), self._entry)
    entries["word"], entries["codes"] = words, codes
    self._entries.append(entries)

  def finish(self) -> InvertedFileIndex:
    """Returns the index of all that was added."""
    trained = self._trained
    n = int(self._sizes.sum())
    part = _empty_part(trained, n, self._sizes, self._allocate)
    filled = np.zeros(len(self._sizes), np.int64)
    row = 0
    for entries in self._entries.pieces(self._entry):
      kernels.scatter(
        entries["word"].astype(np.int32),
        np.ascontiguousarray(entries["codes"]),
        row,
        filled,
        part.block_starts,
        part.sizes,
        part.starts,
        n,
        trained.bits,
        part.codes,
        part.rows,
      )
      row += len(entries)
    if self._options["rerank"]:
      part.vectors = self._vectors.whole((n, trained.centres.shape[1]))
    _freeze(part)
    self.close()
    return InvertedFileIndex(
      trained, part, **self._options, threads=self._threads
    )

  def close(self) -> None:
    """Forgets what was added; `finish` and leaving a `with` do it too."""
    self._entries.close()
    self._vectors.close()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  @property
  def _entry(self) -> np.dtype:
    word = np.uint16 if len(self._sizes) <= 1 << 16 else np.int32
    return np.dtype(
      [("word", word), ("codes", np.uint8, (self._trained.subvectors,))]
    )

  def _allocate(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros, in memory or in a file without a name."""
    if self._folder is None or 0 in shape:
      return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=self._folder) as file:
      return np.asarray(np.memmap(file, dtype, "w+", shape=shape))


class _Spill:
  """Arrays, one after the other, in memory or in a file without a name."""

  def __init__(self, folder: str | os.PathLike | None):
    self._arrays: list[np.ndarray] = []
    self._file = folder and tempfile.TemporaryFile(dir=folder)

  def append(self, array: np.ndarray) -> None:
    if self._file:
      self._file.write(np.ascontiguousarray(array).view(np.uint8).data)
    else:
      self._arrays.append(array)

  def close(self) -> None:
    self._arrays = []
    if self._file:
      self._file.close()

  def pieces(self, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yields what was appended, some at a time."""
    if not self._file:
      yield from self._arrays
      return
    self._file.seek(0)
    while True:
      content = self._file.read(_PIECE * dtype.itemsize)
      if not content:
        return
      yield np.frombuffer(content, dtype)

  def whole(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns all that was appended, as one array of bytes."""
    if not shape[0]:
      return np.zeros(shape, np.uint8)
    if not self._file:
      return np.concatenate(self._arrays)
    self._file.flush()
    return np.asarray(np.memmap(self._file, np.uint8, "r", shape=shape))


def build(
  descriptors: np.ndarray,
  *,
  seed: int = 0,
  words: int = 0,
  subvectors: int = 0,
  bits: int = 5,
  rotation: str = "local",
  codebooks: str = "local",
  sample: int = 1 << 21,
  probes: int = 5,
  visit: int = 0,
  rerank: int = 0,
  threads: int | None = None,
) -> InvertedFileIndex:
  """Builds an inverted file.

  The same descriptors and seed give the same bits with any number of threads.

  Args:
    descriptors: [n, d]; n may be 0.
    seed: of the sample and of the k-means.
    words, subvectors, bits, rotation, codebooks: see `train`.
    sample: at most so many descriptors are trained with.
    probes, visit, rerank: see `Writer`.
    threads: that build and search; all usable cores by default.

  Raises:
    InputError: if a descriptor is not finite.
  """
  descriptors = exact.checked(descriptors, name="descriptor")
  n = len(descriptors)
  some = descriptors
  if n > sample:
    generator = np.random.default_rng([seed, 0])
    some = descriptors[np.sort(generator.choice(n, sample, replace=False))]
  writer = Writer(
    train(
      some,
      seed=seed,
      size=n,
      words=words,
      subvectors=subvectors,
      bits=bits,
      rotation=rotation,
      codebooks=codebooks,
      threads=threads,
    ),
    probes=probes,
    visit=visit,
    rerank=rerank,
    threads=threads,
  )
  writer.add(descriptors)
  return writer.finish()


def restore(
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  verify: bool = True,
) -> InvertedFileIndex:
  """Makes the index that was saved; see `delf_jax.index.open_index`.

  Without `verify` only the words' numbers are read. Even then no search reads
  outside of the arrays, whatever they hold.

  Raises:
    ValueError: if the arrays do not fit together.
  """
  options = {
    name: int(parameters[name]) for name in ["probes", "visit", "rerank"]
  }
  bits = int(parameters["bits"])
  if options["probes"] < 1 or min(options.values()) < 0:
    raise ValueError("a parameter is out of range")
  _check_arrays(arrays, bits, options["rerank"])
  trained = Trained(
    centres=frozen(arrays["centres"]),
    quantiser=Quantiser(
      **{
        field.name: frozen(arrays[field.name])
        for field in dataclasses.fields(Quantiser)
      }
    ),
    lowest=frozen(arrays["lowest"]),
    step=frozen(arrays["step"]),
    bits=bits,
    built_with=dict(parameters["built_with"]),
  )
  sizes = frozen(arrays["sizes"])
  part = _Part(
    0,
    int(sizes.sum()),
    sizes,
    *(frozen(arrays[name]) for name in ["codes", "rows", "vectors"]),
  )
  if (len(part.codes), len(part.rows)) != (
    part.block_starts[-1],
    part.starts[-1],
  ):
    raise ValueError("its lists do not fit together")
  if verify and not (
    all(
      np.isfinite(array).all()
      for array in trained.arrays.values()
      if array.dtype == np.float32
    )
    and kernels.is_sound(part.rows, part.sizes, part.starts, part.n)
  ):
    raise ValueError("its lists do not hold its rows")
  return InvertedFileIndex(trained, part, **options)


def _check_arrays(
  arrays: Mapping[str, np.ndarray], bits: int, rerank: int
) -> None:
  words, d = arrays["centres"].shape
  own_books, subvectors, width, centroids = arrays["codebooks"].shape
  own_rotations = len(arrays["rotations"])
  sizes = arrays["sizes"]
  shapes = {
    "centres": (np.float32, (words, d)),
    "rotation_of": (np.int32, (words,)),
    "rotations": (np.float32, (own_rotations, d, subvectors * width)),
    "codebook_of": (np.int32, (words,)),
    "codebooks": (np.float32, (own_books, subvectors, width, centroids)),
    "lowest": (np.float32, (d,)),
    "step": (np.float32, (d,)),
    "sizes": (np.int64, (words,)),
    "codes": (np.uint8, (len(arrays["codes"]), 4 * bits * subvectors)),
    "rows": (np.uint64, (arrays["rows"].size,)),
  }
  if (
    bits not in quantization.BITS
    or centroids != 1 << bits
    or not words * d * subvectors * width
    or any(
      arrays[name].dtype != dtype or arrays[name].shape != shape
      for name, (dtype, shape) in shapes.items()
    )
    or not _is_within(arrays["rotation_of"], own_rotations)
    or not _is_within(arrays["codebook_of"], own_books)
    or not _is_within(sizes, _LARGEST)
    or sizes.sum() > _LARGEST
    or arrays["vectors"].dtype != np.uint8
    or arrays["vectors"].shape != (int(sizes.sum()) * (rerank > 0), d)
  ):
    raise ValueError("its arrays do not fit together")


def _is_within(numbers: np.ndarray, end: int) -> bool:
  return bool(((numbers >= 0) & (numbers < end)).all())


def _check_size(n: int) -> None:
  if n > _LARGEST:
    raise InputError(
      f"{n} descriptors are more than the {_LARGEST} that one index holds; "
      "keep fewer features a photograph, or build several indexes"
    )


def _block_starts(sizes: np.ndarray) -> np.ndarray:
  starts = np.zeros(len(sizes) + 1, np.int64)
  np.cumsum(-(-sizes // kernels.BLOCK), out=starts[1:])
  return starts


def _empty_part(
  trained: Trained,
  n: int,
  sizes: np.ndarray,
  allocate: Callable[..., np.ndarray],
) -> _Part:
  """A part of n rows whose lists are to be filled."""
  sizes = frozen(sizes)
  stride = 4 * trained.bits * trained.subvectors
  return _Part(
    0,
    n,
    sizes,
    allocate((int(_block_starts(sizes)[-1]), stride), np.uint8),
    allocate((int(kernels.row_starts(n, sizes)[-1]),), np.uint64),
    np.zeros((0, trained.centres.shape[1]), np.uint8),
  )


def _freeze(part: _Part) -> None:
  for name in ["codes", "rows", "vectors"]:
    setattr(part, name, frozen(getattr(part, name)))


def _merged(
  found: list[tuple[np.ndarray, np.ndarray]], count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The first `count` by (distance, row), each [m, count]."""
  distances, rows = (
    np.concatenate(a, axis=1) for a in zip(*found, strict=True)
  )
  if len(found) == 1 and rows.shape[1] == count:
    return distances, rows
  keys = np.where(rows < 0, np.iinfo(np.int64).max, rows)
  order = np.lexsort((keys, distances), axis=-1)[:, :count]
  return (
    np.take_along_axis(distances, order, axis=1),
    np.take_along_axis(rows, order, axis=1),
  )
