"""Photographs -> batches: read ahead, in order, by threads or processes."""

import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from delf_jax.data import examples, view_pairs
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.examples import (
  SAMPLINGS,
  EvaluationExamples,
  Source,
  TrainingExamples,
)
from delf_jax.data.pair_sources import PairSource
from delf_jax.data.photograph_tuples import Tuples, collate_tuples
from delf_jax.data.views import Views
from delf_jax.data.workers import Workers
from delf_jax.errors import InputError

# Batches that are ready or being made while one is used.
_AHEAD = 2

# Bytes of pixels that one request to a worker makes: enough that the request
# itself costs nothing beside them, and little enough to share a batch out.
_REQUEST = 2**20


def training_batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  resize: int,
  crop: int,
  start: int = 0,
  scales: Sequence[float] = (1.0,),
  sampling: str = "photograph",
  augmentation: Augmentation | None = None,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  threads: int = 2,
) -> "Batches":
  """Iterates for ever over cut and shuffled photographs.

  What is at a place of a batch, which photograph and how it is cut and changed,
  is a pure function of the seed and that place: the same on any number of
  processes, workers and threads, and after any interruption. The number of
  batches consumed is all the state there is.

  A photograph that cannot be read is left out, reported in `skipped`, and
  another one takes its place.

  Args:
    source: the photographs. With `workers` it is pickled.
    seed: of the order and all else, 0 or more.
    batch_size: of all processes together.
    resize: side to which the largest central square is resized.
    crop: side of the random window in it (250 and 224, then 900 and 720 in
      sections 3.2 and 3.3.2 of the paper).
    start: batches consumed before.
    scales: the window is resized by one of them, drawn for each whole batch.
    sampling: "photograph", each once an epoch, or "class", each class as often
      as any other.
    augmentation: what else happens to them.
    process_index: of this process, which gets the rows of its share.
    process_count: how many processes share a batch.
    workers: processes that decode, beside this one; 0 decodes in this one.
    threads: that decode, in this process or in each worker.

  Returns:
    an iterator of {"pixels": [b, s, s, 3] uint8, "labels": [b] int32, "names":
    list of b str} with b = batch_size / process_count, s = round(crop * scale).

  Raises:
    InputError: if an option or the source is unfit; while iterating, if hardly
      a photograph can be read.
  """
  if sampling not in SAMPLINGS:
    raise InputError(
      f"unknown sampling {sampling!r}; expected {' or '.join(SAMPLINGS)}"
    )
  _check(source, batch_size, process_count, resize, crop)
  if not scales or not all(
    0 < scale <= 1 and round(crop * scale) for scale in scales
  ):
    raise InputError(
      f"scales {tuple(scales)} must be above 0 and at most 1, and leave a pixel"
    )
  _check_order(seed, start, workers, threads)
  make = functools.partial(
    TrainingExamples,
    source,
    seed=seed,
    batch_size=batch_size,
    resize=resize,
    crop=crop,
    scales=tuple(scales),
    sampling=sampling,
    augmentation=augmentation,
  )
  return _batches(
    make,
    first=start,
    last=None,
    batch_size=batch_size,
    row_size=3 * crop * crop,
    process_index=process_index,
    process_count=process_count,
    workers=workers,
    threads=threads,
    collate=_labels,
  )


def evaluation_batches(
  source: Source,
  *,
  batch_size: int,
  resize: int,
  crop: int,
  process_index: int = 0,
  process_count: int = 1,
  limit: int | None = None,
  threads: int = 2,
) -> "Batches":
  """Iterates once over all photographs, cut in their centre.

  Args:
    source: the photographs.
    batch_size: of all processes together.
    resize: side to which the largest central square is resized.
    crop: side of the window in the centre of that.
    process_index: of this process, which gets the rows of its share.
    process_count: how many processes share a batch.
    limit: takes so many photographs at most, the first ones.
    threads: that decode.

  Returns:
    an iterator of {"pixels": [b, crop, crop, 3] uint8, "labels": [b] int32,
    "weights": [b] float32, "names": list of b str}, equally many for every
    process. Weights are 0 in the padding of the last batch and for photographs
    that cannot be read, which are reported in `skipped`; pixels are 0 there.

  Raises:
    InputError: if an option or the source is unfit.
  """
  _check(source, batch_size, process_count, resize, crop)
  if limit is not None and limit < 1:
    raise InputError(f"limit {limit} leaves no photograph; give 1 or more")
  make = functools.partial(
    EvaluationExamples, source, resize=resize, crop=crop, limit=limit
  )
  count = min(len(source), limit or len(source))
  return _batches(
    make,
    first=0,
    last=-(-count // batch_size),
    batch_size=batch_size,
    row_size=3 * crop * crop,
    process_index=process_index,
    process_count=process_count,
    workers=0,
    threads=threads,
    collate=examples.collate,
  )


def pair_batches(
  source: PairSource,
  *,
  seed: int,
  batch_size: int,
  crop: int,
  points: int,
  spacing: int = 16,
  start: int = 0,
  last: int | None = None,
  views: Views | None = None,
  augmentation: Augmentation | None = None,
  look_alikes: np.ndarray | None = None,
  family: int = 1,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  threads: int = 2,
) -> "Batches":
  """Iterates over pairs of views, with points that both of them show.

  The same holds of them as of `training_batches`.

  Args:
    source: the photographs, alone or in pairs. With `workers` it is pickled.
    seed: of the order and all else, 0 or more.
    batch_size: of all processes together.
    crop: side of the views.
    points: rows for points of a pair.
    spacing: points of the first view are multiples of it, in pixels: the
      stride of the features.
    start: batches consumed before.
    last: batches after which to stop; None goes on for ever.
    views: how the views of a pair differ.
    augmentation: what happens to each view after it was cut.
    look_alikes: [len(source), k] pairs that look like each; None: all are
      drawn by chance.
    family: of so many pairs in a row, all but the first are look-alikes of
      that.
    process_index: of this process, which gets the rows of its share.
    process_count: how many processes share a batch.
    workers: processes that decode, beside this one; 0 decodes in this one.
    threads: that decode, in this process or in each worker.

  Returns:
    an iterator of {"pixels": [b, 2, crop, crop, 3] uint8, "names": list of b
    str} and of what `view_pairs.collate` adds, with b = batch_size /
    process_count and n = points.

  Raises:
    InputError: if an option or the source is unfit; while iterating, if hardly
      a photograph can be read.
  """
  _check(source, batch_size, process_count, crop, crop)
  _check_order(seed, start, workers, threads)
  if points < 1 or spacing < 1:
    raise InputError(
      f"{points} points a pair, {spacing} pixels apart, are none; give at "
      "least 1 of each"
    )
  make = functools.partial(
    view_pairs.ViewPairs,
    source,
    seed=seed,
    side=crop,
    points=points,
    spacing=spacing,
    options=views,
    augmentation=augmentation,
    look_alikes=look_alikes,
    family=family,
  )
  return _batches(
    make,
    first=start,
    last=last,
    batch_size=batch_size,
    row_size=2 * 3 * crop * crop,
    process_index=process_index,
    process_count=process_count,
    workers=workers,
    threads=threads,
    collate=view_pairs.collate,
  )


def tuple_batches(
  tuples: Tuples,
  *,
  batch_size: int,
  start: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  threads: int = 2,
) -> "Batches":
  """Iterates once over a list of tuples of photographs.

  The same holds of them as of `training_batches`, but that a photograph that
  cannot be read leaves a gap.

  Args:
    tuples: the photographs, as many as fill whole batches. With `workers` they
      are pickled.
    batch_size: in tuples, of all processes together.
    start: batches of the list that are left out.
    process_index: of this process, which gets the rows of its share.
    process_count: how many processes share a batch.
    workers: processes that decode, beside this one; 0 decodes in this one.
    threads: that decode, in this process or in each worker.

  Returns:
    an iterator of {"pixels": [b, r, side, side, 3] uint8, "names": list of b
    str} and of what `collate_tuples` adds, with b = batch_size / process_count.

  Raises:
    InputError: if an option is unfit.
  """
  if batch_size < 1 or batch_size % process_count or len(tuples) % batch_size:
    raise InputError(
      f"a batch of {batch_size} does not divide {len(tuples)} tuples among "
      f"{process_count} processes; change the batch size"
    )
  _check_order(0, start, workers, threads)
  return _batches(
    functools.partial(_itself, tuples),
    first=start,
    last=len(tuples) // batch_size,
    batch_size=batch_size,
    row_size=int(np.prod(tuples.shape(0))),
    process_index=process_index,
    process_count=process_count,
    workers=workers,
    threads=threads,
    collate=collate_tuples,
  )


def _itself(tuples: Tuples) -> Tuples:
  """Makes of tuples what fills rows: themselves. Workers unpickle it."""
  return tuples


def _labels(rows: Sequence[examples.Example]) -> dict[str, np.ndarray]:
  return {"labels": examples.collate(rows)["labels"]}


def _check_order(seed: int, start: int, workers: int, threads: int) -> None:
  """Refuses an order or a number of readers that there is not."""
  if seed < 0 or start < 0:
    raise InputError(
      f"seed {seed} and start {start} must not be negative; change them"
    )
  if workers < 0 or threads < 1:
    raise InputError(
      f"{workers} workers and {threads} threads cannot decode; give 0 or more "
      "workers and at least 1 thread"
    )


def _check(
  source: Source | PairSource,
  batch_size: int,
  process_count: int,
  resize: int,
  crop: int,
) -> None:
  """Refuses what no batches can be made of."""
  if not len(source):
    raise InputError("no photographs to make batches of; check the data set")
  if batch_size < 1 or batch_size % process_count:
    raise InputError(
      f"a batch of {batch_size} does not divide among {process_count} "
      "processes; change the batch size"
    )
  if not 1 <= crop <= resize:
    raise InputError(
      f"a window of {crop} does not fit a square of {resize} pixels; make "
      "crop smaller or resize larger"
    )


def _batches(
  make: Callable[[], "_Rows"],
  *,
  first: int,
  last: int | None,
  batch_size: int,
  row_size: int,
  process_index: int,
  process_count: int,
  workers: int,
  threads: int,
  collate: Callable[[Sequence[Any]], dict[str, np.ndarray]],
) -> "Batches":
  """Starts to read batches `first` to `last` - 1."""
  filler = make()
  rows = batch_size // process_count
  pool = None
  part = 1
  if workers:
    part = min(rows, max(1, _REQUEST // row_size))
    pool = Workers(make, count=workers, threads=threads, size=part * row_size)
  loader = _Loader(
    filler,
    pool,
    first=first,
    batch_size=batch_size,
    offset=process_index * rows,
    rows=rows,
    part=part,
  )
  return Batches(
    loader, last=last, threads=threads * max(1, workers), collate=collate
  )


class _Rows(Protocol):
  """What makes the rows of batches."""

  def shape(self, batch: int) -> tuple[int, ...]:
    """Returns the shape of the pixels of each of a batch's rows."""
    ...

  def fill(self, position: int, pixels: np.ndarray) -> list[Any]:
    """Fills rows; returns what else belongs to each: `name`, `skipped`, ..."""
    ...


class _Loader:
  """Fills parts of batches in any order; Grain's threads call it."""

  def __init__(
    self,
    filler: _Rows,
    pool: Workers | None,
    *,
    first: int,
    batch_size: int,
    offset: int,
    rows: int,
    part: int,
  ) -> None:
    self._filler = filler
    self._pool = pool
    self._batch_size = batch_size
    self._offset = offset
    self._rows = rows
    self._part = part
    self._lock = threading.Lock()
    self._pixels = {}
    self._closed = False
    self.first = first
    self.parts = -(-rows // part)

  def __call__(self, element: int) -> list[Any]:
    """Fills part `element % parts` of batch `element // parts`."""
    if self._closed:  # nobody wants what was to be read ahead
      return []
    batch, part = divmod(int(element), self.parts)
    with self._lock:
      if batch not in self._pixels:
        shape = (self._rows, *self._filler.shape(batch))
        self._pixels[batch] = np.empty(shape, np.uint8)
      pixels = self._pixels[batch]
    start = part * self._part
    pixels = pixels[start : start + self._part]
    position = batch * self._batch_size + self._offset + start
    return (self._pool or self._filler).fill(position, pixels)

  def take(self, batch: int) -> np.ndarray:
    """Hands over the pixels of a batch, all parts of which are filled."""
    with self._lock:
      return self._pixels.pop(batch)

  def close(self) -> None:
    self._closed = True
    if self._pool is not None:
      self._pool.close()


class Batches(Iterator[dict[str, Any]]):
  """Batches, read ahead; see the functions above that make them.

  Close it, or use it in a `with` statement, to end its processes at once; they
  also end with the last reference to it and with this process.

  Attributes:
    skipped: name -> reason of the photographs that could not be read, in the
      batches taken so far.
    waited: seconds that the consumer has spent waiting for batches.
  """

  def __init__(
    self,
    loader: _Loader,
    *,
    last: int | None,
    threads: int,
    collate: Callable[[Sequence[Any]], dict[str, np.ndarray]],
  ) -> None:
    self.skipped: dict[str, str] = {}
    self.waited = 0.0
    self._loader = loader
    self._batch = loader.first
    self._last = last
    self._collate = collate
    elements = grain.MapDataset.range(
      loader.first * loader.parts,
      2**62 if last is None else last * loader.parts,
    )
    options = grain.ReadOptions(
      num_threads=threads,
      prefetch_buffer_size=max(_AHEAD * loader.parts, 2 * threads),
    )
    self._read = iter(elements.map(loader).to_iter_dataset(options))
    self.close = weakref.finalize(self, loader.close)

  def __next__(self) -> dict[str, Any]:
    if not self.close.alive:
      raise ValueError("these batches are closed")
    if self._batch == self._last:
      raise StopIteration
    start = time.perf_counter()
    try:
      rows = []
      for _ in range(self._loader.parts):
        rows += next(self._read)
    except BaseException:
      self.close()
      raise
    finally:
      self.waited += time.perf_counter() - start
    for row in rows:
      self.skipped.update(row.skipped)
    batch = {
      "pixels": self._loader.take(self._batch),
      "names": [row.name for row in rows],
      **self._collate(rows),
    }
    self._batch += 1
    return batch

  def __enter__(self) -> "Batches":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
