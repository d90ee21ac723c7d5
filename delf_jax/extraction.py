"""Photographs -> features on disk, by any extractor."""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax import checkpoint, extractors, progress
from delf_jax.data import folder
from delf_jax.data.cropping import crop
from delf_jax.data.photographs import (
  Photograph,
  decode_photograph,
  read_photograph,
)
from delf_jax.errors import InputError
from delf_jax.features import reduction, store
from delf_jax.features.local_features import LocalFeatures
from delf_jax.items import Box, Item, pixel_box

MIN_SIDE = 16
# A large photograph takes a gigabyte while ResNet-50 looks at it.
MOST_WORKERS = 8
# Features of all photographs together that a reduction is learned on.
MOST_TO_LEARN_FROM = 100_000


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of a folder.

  Attributes:
    done: photographs extracted by this run.
    kept: photographs that an earlier run had extracted.
    features: stored by this run.
    skipped: (path, reason) of those that could not be used.
  """

  done: int
  kept: int
  features: int
  skipped: tuple[tuple[str, str], ...]


def learn_reduction(
  model: checkpoint.Model,
  source: Sequence[Mapping[str, Any]],
  *,
  dim: int,
  whiten: bool = False,
  photographs: int = 500,
  seed: int = 0,
) -> reduction.Reduction | None:
  """Learns L2 -> PCA -> L2 on the selected features of a seeded sample.

  Args:
    model: extracts the features; its own reduction is left aside.
    source: random access to {"image": encoded bytes, ...}.
    dim: of the result; 0 for no reduction.
    whiten: see `reduction.fit`.
    photographs: how many; those that cannot be decoded are replaced.
    seed: of the sample.

  Raises:
    InputError: if there are too few features.
  """
  if not dim:
    return None
  sample = _sample(source, photographs, seed)
  largest = max(max(photograph.pixels.shape) for photograph in sample)
  extract = extractors.delf_extractor(
    dataclasses.replace(model, reduction=None),
    max_side=max(largest, MIN_SIDE),
  )
  results = progress.track(
    in_order(extract, sample),
    label="reduction",
    unit="photograph",
    total=len(sample),
  )
  # More of each would fill the memory and teach the projection nothing.
  most = -(-MOST_TO_LEARN_FROM // len(sample))
  generator = np.random.default_rng(seed)
  features = [
    found.descriptors[
      np.sort(generator.permutation(len(found.descriptors))[:most])
    ]
    for _, found in results
  ]
  try:
    return reduction.fit(np.concatenate(features), dim, whiten=whiten)
  except ValueError as error:
    raise InputError(
      f"{error}; give more photographs or a smaller reduction"
    ) from error


def _sample(source, count: int, seed: int) -> list[Photograph]:
  """Decodes a seeded sample of photographs.

  Raises:
    InputError: if none can be decoded.
  """
  found = []
  for i in np.random.default_rng(seed).permutation(len(source)):
    if len(found) == count:
      break
    try:
      found.append(
        decode_photograph(
          source[int(i)]["image"], name=f"{i}", max_side=extractors.MAX_SIDE
        )
      )
    except InputError:
      continue
  if not found:
    raise InputError("none of the training photographs can be decoded")
  return found


def extract_file(extractor: extractors.Extractor, path: str | os.PathLike):
  """Reads one photograph and extracts it.

  Returns:
    the photograph and its features.

  Raises:
    InputError: if it cannot be read or is too small for any feature.
  """
  photograph = read_photograph(path, max_side=extractor.max_side)
  _check_size(photograph, os.fspath(path))
  return photograph, extractor.extract(photograph)


def extract_item(
  extractor: extractors.Extractor, root: str | os.PathLike, item: Item
) -> tuple[tuple[int, int], LocalFeatures]:
  """Reads one photograph, or a part of it, and extracts it.

  A part is cut out before anything else is done, so that its features are
  those of a photograph that shows nothing else: what the protocols of Oxford5k
  and its successors ask for. (Features of the whole photograph that lie in the
  box have seen what is around it, which costs or earns several points.)

  Args:
    extractor: the kind of feature.
    root: what the item's path is relative to.
    item: the photograph or its part.

  Returns:
    (height, width) of the upright original photograph, and the features, with
    locations in its pixels also for a part.

  Raises:
    InputError: if it cannot be read, the box lies outside, or it is too small
      for any feature.
  """
  path = Path(root) / item.path
  if item.box is None:
    photograph, features = extract_file(extractor, path)
    return (photograph.height, photograph.width), features
  whole = read_photograph(path)
  size = whole.height, whole.width
  max_side = extractor.max_side
  if extractor.describe is not None:
    top, left, bottom, right = pixel_box(
      item.box, height=size[0], width=size[1]
    )
    share = max(bottom - top, right - left) / max(size)
    max_side = max(1, round(share * max_side))
    if max(size) <= extractor.max_side:
      max_side = None
  part, corner = crop(whole, item, max_side=max_side)
  _check_size(part, f"{os.fspath(path)}{item.name.removeprefix(item.path)}")
  if extractor.describe is not None:
    features = extractor.describe(part, size)
  else:
    features = extractor.extract(part)
  moved = features.locations + np.array([corner], np.float32)
  return (whole.height, whole.width), features.replace(locations=moved)


def _check_size(photograph: Photograph, name: str) -> None:
  if min(photograph.height, photograph.width) < MIN_SIDE:
    raise InputError(
      f"{name!r}: {photograph.width} x {photograph.height} pixels "
      f"are too small for a feature; {MIN_SIDE} x {MIN_SIDE} is the least"
    )


def extract_folder(
  extractor: extractors.Extractor,
  photos: str | os.PathLike,
  output: str | os.PathLike,
  *,
  dtype: str = "float16",
  workers: int | None = None,
) -> Counts:
  """Extracts every photograph under a folder into a store.

  A store that an earlier run left unfinished is continued, and photographs
  that are new in the folder are added to a finished one. A photograph that
  cannot be used is skipped and reported.

  Args:
    extractor: the kind of feature.
    photos: folder, searched recursively.
    output: the store's directory.
    dtype: of descriptors on disk: "float16", "float32" or "int8".
    workers: photographs at a time; see `in_order`.

  Raises:
    InputError: if the folder holds no photograph, the store is of other
      settings, or the disk is full.
  """
  listing = folder.list_photographs(photos)
  return _extract(
    extractor,
    photos,
    [Item(path) for path in listing.paths],
    output,
    problems=listing.problems,
    dtype=dtype,
    workers=workers,
    strict=False,
  )


def extract_items(
  extractor: extractors.Extractor,
  root: str | os.PathLike,
  items: Iterable[str | tuple[str, Box | None]],
  directory: str | os.PathLike,
  *,
  dtype: str = "float16",
  workers: int | None = None,
  strict: bool = False,
) -> Counts:
  """Extracts a list of photographs, or parts of them, into a store.

  As `extract_folder` does, but of the list alone: a store is continued, and
  what cannot be used is skipped and reported. In the store an item goes by
  `Item.name`: its path, with the box behind a "#" if it has one; sizes are of
  the whole photographs, and locations in their pixels.

  Args:
    extractor: the kind of feature.
    root: folder that the paths are relative to.
    items: paths, or (path, box) with edges (top, left, bottom, right) in
      pixels of the upright original, or None for all of it.
    directory: of the store.
    dtype: of descriptors on disk: "float16", "float32" or "int8".
    workers: photographs at a time; see `in_order`.
    strict: whether an item that cannot be used is an error.

  Returns:
    what became of them, in the order of the list.

  Raises:
    InputError: if the store is of other settings, the disk is full, or
      `strict` and an item cannot be used.
    ValueError: if an item is listed twice.
  """
  items = [Item(i) if isinstance(i, str) else Item(*i) for i in items]
  return _extract(
    extractor,
    root,
    items,
    directory,
    problems=(),
    dtype=dtype,
    workers=workers,
    strict=strict,
  )


def _extract(
  extractor: extractors.Extractor,
  root: str | os.PathLike,
  items: Sequence[Item],
  directory: str | os.PathLike,
  *,
  problems: Iterable[tuple[str, str]],
  dtype: str,
  workers: int | None,
  strict: bool,
) -> Counts:
  """Extracts items into a store; `problems` are reported besides."""
  names = frozenset(item.name for item in items)
  if len(names) < len(items):
    raise ValueError("an item is listed twice")
  settings = {
    **extractor.settings,
    "features": extractor.source,
    "photos": os.path.abspath(root),
  }
  skipped = list(problems)
  done = count = 0
  with store.open_writer(directory, settings=settings, dtype=dtype) as writer:
    kept = len(names & writer.done)
    todo = [item for item in items if item.name not in writer.done]
    for path, reason in skipped:
      writer.skip(path, reason)

    def work(item):
      try:
        return extract_item(extractor, root, item)
      except InputError as error:
        return error

    results = in_order(work, todo, workers)
    for item, result in progress.track(
      results, label="extract", unit="photograph", total=len(todo)
    ):
      if isinstance(result, InputError):
        if strict:
          raise result
        writer.skip(item.name, str(result))
        skipped.append((item.name, str(result)))
        continue
      (height, width), features = result
      writer.add(item.name, height=height, width=width, features=features)
      done += 1
      count += len(features.mask)
    writer.finish()
  return Counts(done=done, kept=kept, features=count, skipped=tuple(skipped))


def in_order(
  work: Callable[[Any], Any], items: Sequence[Any], workers: int | None = None
) -> Iterator[tuple[Any, Any]]:
  """Yields (item, work(item)) in order, a few in advance on threads.

  Compiled programs leave Python's lock, so photographs run side by side.

  Args:
    work: what to do with an item.
    items: in order.
    workers: threads; by default one a core, up to `MOST_WORKERS`.
  """
  workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
  ahead = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    try:
      for item in items:
        ahead.append((item, pool.submit(work, item)))
        if len(ahead) > 2 * workers:
          first, future = ahead.popleft()
          yield first, future.result()
      while ahead:
        first, future = ahead.popleft()
        yield first, future.result()
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
