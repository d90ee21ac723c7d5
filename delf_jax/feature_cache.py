"""Features that many measurements share, extracted once.

A cache holds a store for each extractor and folder of photographs. Whatever of
that folder a measurement asks for is added to it: the database, queries that
are cut out of their photographs, distractor queries. Beside the store lies a
stamp of every photograph, and a photograph that was exchanged since makes the
store void.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax import extraction, extractors, whole_files
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.features.local_features import LocalFeatures
from delf_jax.items import Item

# Of the bytes in a photograph's middle that its stamp looks at.
_STAMPED = 4096
_UNREADABLE = "unreadable"


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which part of stored features is used, as if no more had been extracted.

  Features are stored best first, so the first of many are those that a smaller
  `max_features` extracts, with suppression of overlaps too, and a threshold
  drops the last. The leading dimensions of a PCA, scaled to unit length, are a
  smaller PCA.

  Attributes:
    max_features: of a photograph at most; None for all.
    min_score: features that score less are dropped (β of the paper's Table 7).
    dims: leading dimensions of the descriptors; None for all.
  """

  max_features: int | None = None
  min_score: float = 0.0
  dims: int | None = None

  def dims_of(self, dims: int) -> int:
    """Returns how many of so many dimensions are left."""
    return min(dims, self.dims or dims)

  def __call__(self, features: LocalFeatures) -> LocalFeatures:
    """Returns the part of one photograph's features ([n], compact)."""
    kept = features.scores >= self.min_score
    if self.max_features is not None:
      kept[self.max_features :] = False
    descriptors = features.descriptors[kept]
    dims = self.dims_of(descriptors.shape[1])
    if dims < descriptors.shape[1]:
      descriptors = descriptors[:, :dims]
      lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
      descriptors = descriptors / np.maximum(lengths, np.float32(1e-12))
    return LocalFeatures(
      locations=features.locations[kept],
      scales=features.scales[kept],
      scores=features.scores[kept],
      descriptors=descriptors,
      mask=features.mask[kept],
    )


EVERYTHING = Selection()


@dataclasses.dataclass(frozen=True)
class Cached:
  """The features of the items that were asked for, and perhaps of others.

  Attributes:
    opened: the store.
    numbers: name of an item -> its number in the store.
    stamps: path -> stamp of the photograph.
    skipped: (name, reason) of the items that cannot be used.
  """

  opened: store.Store
  numbers: Mapping[str, int]
  stamps: Mapping[str, str]
  skipped: tuple[tuple[str, str], ...]

  def features(self, name: str, selection: Selection) -> LocalFeatures:
    """Returns an item's features."""
    return selection(self.opened.features(self.numbers[name]))

  def size(self, name: str) -> tuple[int, int]:
    """Returns (height, width) of the upright original photograph."""
    height, width = self.opened.sizes[self.numbers[name]]
    return int(height), int(width)


def stamp(path: str | os.PathLike) -> str:
  """Returns what tells a photograph from the one that takes its place.

  That is its length and a checksum of its middle, which compression changes
  with every pixel. Times of change are not looked at: copies lose them.
  """
  try:
    with open(path, "rb") as file:
      length = file.seek(0, os.SEEK_END)
      file.seek(max(0, (length - _STAMPED) // 2))
      return f"{length}-{zlib.crc32(file.read(_STAMPED)):08x}"
  except OSError:
    return _UNREADABLE


def stamps(root: str | os.PathLike, paths: Iterable[str]) -> dict[str, str]:
  """Returns the stamp of every photograph, in order, each once."""
  return {path: stamp(Path(root) / path) for path in dict.fromkeys(paths)}


def digest(value: Any) -> str:
  """Names what JSON can hold (and dataclasses and arrays) by its content."""
  text = json.dumps(value, sort_keys=True, default=_plain)
  return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:20]


def _plain(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    return dataclasses.asdict(value)
  if isinstance(value, np.ndarray | np.generic):
    return value.tolist()
  raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def extract(
  extractor: extractors.Extractor,
  root: str | os.PathLike,
  items: Sequence[Item],
  cache: str | os.PathLike,
  *,
  workers: int | None = None,
) -> Cached:
  """Extracts what the cache does not have yet.

  A run that was killed goes on where it was.

  Args:
    extractor: the kind of feature.
    root: folder that the paths are relative to.
    items: photographs and parts of photographs.
    cache: directory of the cache.
    workers: photographs at a time.

  Raises:
    InputError: if the cache cannot be written, or none of the items be used.
  """
  root = os.path.abspath(root)
  name = digest([dict(extractor.settings), extractor.source, root])
  directory = Path(cache) / "features" / name
  beside = directory.with_name(f"{name}.stamps.json")
  found = stamps(root, [item.path for item in items])
  known = _read_stamps(beside) if directory.exists() else {}
  fresh = {path for path in found if known.get(path) != found[path]}
  # What could not be read before is in no store.
  changed = [
    path for path in fresh if known.get(path, _UNREADABLE) != _UNREADABLE
  ]
  if changed:
    print(
      f"{len(changed)} photographs under {root!r} are not what they were, such "
      f"as {min(changed)!r}: all are extracted again"
    )
    shutil.rmtree(directory)
    known = {}
  known |= found
  directory.parent.mkdir(parents=True, exist_ok=True)
  # Before the store: a photograph that is exchanged in between is noticed.
  whole_files.write_file(beside, json.dumps(known).encode())
  wanted = {item.name: item for item in items}
  opened = _open(directory)
  if opened is None or _missing(opened, wanted.values(), fresh):
    extraction.extract_items(
      extractor, root, list(wanted.values()), directory, workers=workers
    )
    opened = store.open_store(directory)
  skipped = tuple(
    (name, reason) for name, reason in opened.skipped if name in wanted
  )
  if len(skipped) == len(wanted):
    raise InputError(
      f"none of the {len(wanted)} photographs under {root!r} can be used: "
      f"{skipped[0][1] if skipped else 'there are none'}"
    )
  return Cached(
    opened=opened,
    numbers={name: number for number, name in enumerate(opened.paths)},
    stamps=found,
    skipped=skipped,
  )


def _read_stamps(path: Path) -> dict[str, str]:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}


def _open(directory: Path) -> store.Store | None:
  """Opens a complete store, or returns None where there is none."""
  try:
    return store.open_store(directory) if directory.exists() else None
  except InputError:
    return None  # unfinished or damaged, which the writer tells apart


def _missing(
  opened: store.Store, items: Iterable[Item], fresh: Collection[str]
) -> bool:
  """Says whether an item is neither stored nor known to be unusable."""
  stored = frozenset(opened.paths)
  unusable = {name for name, _ in opened.skipped}
  return any(
    item.name not in stored
    and (item.name not in unusable or item.path in fresh)
    for item in items
  )
