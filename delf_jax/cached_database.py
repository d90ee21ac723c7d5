"""Features of a cache as a database to search, with an index that is kept."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax import database, feature_cache, index, progress, retrieval
from delf_jax.feature_cache import Selection
from delf_jax.index import streaming

# Options of a kind that only its searches look at: attributes of the index.
_SEARCH_TIME = {"kd_tree": ("leaves",)}
# Building these costs less than reading them from the disk.
_NEVER_KEPT = ("exact",)
# Photographs whose descriptors are coded at a time.
_BATCH = 128


# These take descriptors a batch at a time.
_STREAMED = (streaming.KIND, index.BAG_OF_WORDS)


def described(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what an index depends on besides its descriptors, as JSON values.

  Args:
    kind: of index.
    options: of its `build`; a file among them counts by its content.

  Raises:
    InputError: if there is no such file.
  """
  found = dict(options)
  if kind == index.BAG_OF_WORDS and "vocabulary" in found:
    meta = index.read_meta(found["vocabulary"])
    found["vocabulary"] = [meta["parameters"], meta["files"]]
  return found


def open_database(
  cached: feature_cache.Cached,
  paths: Iterable[str],
  cache: Path,
  kind: str,
  options: Mapping[str, Any],
  selection: Selection,
) -> retrieval.Database:
  """Indexes the features of the photographs that could be used.

  Args:
    cached: the features.
    paths: of the photographs; those without features are left out.
    cache: directory where indexes are kept.
    kind: of index.
    options: of its `build`.
    selection: of every photograph's features.

  Raises:
    InputError: if an option is unfit.
  """
  paths = tuple(path for path in paths if path in cached.numbers)
  offsets, descriptors, locations, scales = _gather(
    cached, paths, selection, whole=kind not in _STREAMED
  )
  later = {
    name: options[name]
    for name in _SEARCH_TIME.get(kind, ())
    if name in options
  }
  early = {name: value for name, value in options.items() if name not in later}
  name = feature_cache.digest(
    [
      dict(cached.opened.settings),
      [[path, cached.stamps[path]] for path in paths],
      selection,
      kind,
      described(kind, early),
    ]
  )
  directory = cache / "indexes" / name
  if kind in _NEVER_KEPT:
    searcher = index.build_index(kind, descriptors, **options)
  elif directory.exists():
    searcher = index.open_index(directory)
    for option, value in later.items():
      setattr(searcher, option, value)
  else:
    directory.parent.mkdir(parents=True, exist_ok=True)
    if kind == streaming.KIND:
      searcher = streaming.build(
        descriptors.batches,
        int(offsets[-1]),
        folder=directory.parent,
        **options,
      )
    elif kind == index.BAG_OF_WORDS:
      searcher = index.call(
        index.module(kind).build,
        kind,
        descriptors.batches,
        np.diff(offsets),
        database.kind_of_features(cached.opened.settings),
        functools.partial(progress.track, label="words", unit="round"),
        **options,
      )
    else:
      searcher = index.build_index(kind, descriptors, **options)
    searcher.save(directory)
  return retrieval.Database(
    index=searcher,
    paths=paths,
    sizes=np.array([cached.size(path) for path in paths]).reshape(-1, 2),
    offsets=offsets,
    locations=locations,
    scales=scales,
    descriptors=descriptors,
  )


@dataclasses.dataclass(frozen=True)
class _StoredDescriptors:
  """Descriptors of photographs, read from the cache when somebody asks.

  Attributes:
    cached: where they are.
    paths: [p] of the photographs.
    offsets: [p + 1] rows of each.
    selection: of every photograph's features.
  """

  cached: feature_cache.Cached
  paths: Sequence[str]
  offsets: np.ndarray
  selection: Selection

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    """Returns those of rows [m], [m, d] float32."""
    rows = np.asarray(rows)
    images = np.searchsorted(self.offsets, rows, side="right") - 1
    asked, numbers = np.unique(images, return_inverse=True)
    found = np.empty(
      (len(rows), self.selection.dims_of(self.cached.opened.dim)), np.float32
    )
    for number, image in enumerate(asked):
      mine = numbers == number
      found[mine] = self._of(image)[rows[mine] - self.offsets[image]]
    return found

  def batches(self) -> Iterator[np.ndarray]:
    """Yields all of them, [n, d] float32, those of some photographs a time."""
    for first in range(0, len(self.paths), _BATCH):
      last = min(first + _BATCH, len(self.paths))
      yield np.concatenate([self._of(image) for image in range(first, last)])

  def _of(self, image: int) -> np.ndarray:
    features = self.cached.features(self.paths[image], self.selection)
    return features.descriptors


def _gather(
  cached: feature_cache.Cached,
  paths: Sequence[str],
  selection: Selection,
  *,
  whole: bool,
) -> tuple[np.ndarray, retrieval.Rows, np.ndarray, np.ndarray]:
  """Returns offsets, descriptors, locations and scales of photographs.

  The descriptors stay where they are unless `whole`.
  """
  offsets = np.zeros(len(paths) + 1, np.int64)
  store = cached.opened
  most = sum(
    int(store.offsets[number + 1] - store.offsets[number])
    for number in map(cached.numbers.__getitem__, paths)
  )
  dims = selection.dims_of(store.dim)
  descriptors = np.empty((most if whole else 0, dims), np.float32)
  locations = np.empty((most, 2), np.float32)
  scales = np.empty(most, np.float32)
  for number, path in enumerate(paths):
    features = cached.features(path, selection)
    start, stop = offsets[number], offsets[number] + len(features.mask)
    if whole:
      descriptors[start:stop] = features.descriptors
    locations[start:stop] = features.locations
    scales[start:stop] = features.scales
    offsets[number + 1] = stop
  count = offsets[-1]
  return (
    offsets,
    descriptors[:count]
    if whole
    else _StoredDescriptors(cached, paths, offsets, selection),
    locations[:count],
    scales[:count],
  )
