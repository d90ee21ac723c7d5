"""An index together with the store it was built from, ready for photographs."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from delf_jax import extraction, extractors, index, match_chains, retrieval
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.global_descriptors import global_search

BATCH = 1 << 17  # descriptors
# 8 bits a dimension change a length by less.
LENGTH_TOLERANCE = 0.03


@dataclasses.dataclass(frozen=True)
class PhotographDatabase:
  """Where photographs are looked up.

  Attributes:
    searchable: what `retrieval.search` takes.
    extractor: of the features that the database holds.
    photos: the folder that its paths are relative to.
  """

  searchable: retrieval.Database
  extractor: extractors.Extractor
  photos: str

  def number_of(self, photo: str | os.PathLike) -> int | None:
    """Returns the number of a photograph in the database, or None."""
    path = os.path.relpath(
      os.path.realpath(photo), os.path.realpath(self.photos)
    )
    paths = self.searchable.paths
    return paths.index(path) if path in paths else None

  def search(
    self,
    photo: str | os.PathLike,
    *,
    expansion: int = 0,
    least: float = retrieval.MIN_PROBABILITY,
    **options: Any,
  ) -> tuple[Photograph, list[retrieval.Match]]:
    """Extracts a photograph and looks it up; it never finds itself.

    Args:
      photo: the query.
      expansion: how many of the photographs that it finds are asked again; see
        `match_chains.follow`. Candidates must be scored by their probability.
      least: those found with a smaller probability are not asked; nothing that
        they find is more probable. What the query finds itself, with this
        probability or a larger one, is never said to be found by way of others.
      options: of `retrieval.search`.

    Returns:
      the query, decoded, and every candidate, best first.

    Raises:
      InputError: if the photograph cannot be used, or its matches cannot be
        chained.
    """
    if expansion:
      match_chains.check_score(options.get("score", retrieval.SCORE))
    photograph, features = extraction.extract_file(self.extractor, photo)
    itself = self.number_of(photo)
    matches = retrieval.search(
      features,
      (photograph.height, photograph.width),
      self.searchable,
      leave_out=itself,
      **options,
    )
    if expansion:
      matches = self._expand(matches, itself, expansion, least, options)
    return photograph, matches

  def _expand(
    self,
    matches: Sequence[retrieval.Match],
    itself: int | None,
    most: int,
    least: float,
    options: Mapping[str, Any],
  ) -> list[retrieval.Match]:
    """Adds what the photographs found find; see `match_chains.follow`."""
    paths = self.searchable.paths
    numbers = {path: number for number, path in enumerate(paths)}
    links = {}

    def ask(path):
      number = numbers[path]
      found = retrieval.search(
        retrieval.features_of(self.searchable, number),
        tuple(self.searchable.sizes[number]),
        self.searchable,
        leave_out=number,
        **options,
      )
      links[path] = {
        match.path: match for match in found if numbers[match.path] != itself
      }
      return {other: match.score for other, match in links[path].items()}

    found = {match.path: match for match in matches}
    chains = match_chains.follow(
      {path: match.score for path, match in found.items()},
      ask,
      most=most,
      least=least,
    )
    for path, chain in chains.items():
      match, via = found.get(path), chain.via
      probability = chain.probability
      if match is not None and match.probability >= least:
        # What it found itself needs nobody between.
        probability, via = match.probability, ()
      elif via:
        match = links[via[-1]][path]
      found[path] = dataclasses.replace(
        match,
        score=chain.score,
        probability=probability,
        via=via,
        support=chain.support,
      )
    return sorted(found.values(), key=lambda match: -match.score)

  def rank(
    self, photo: str | os.PathLike, **options: Any
  ) -> tuple[Photograph, list[global_search.Found]]:
    """Describes a photograph and ranks all others by it.

    Args:
      photo: the query.
      options: of `global_search.search`.

    Returns:
      the query, decoded, and the photographs, the most similar first.

    Raises:
      InputError: if the photograph cannot be used, or the features are local.
    """
    photograph, features = extraction.extract_file(self.extractor, photo)
    everything = np.arange(int(self.searchable.offsets[-1]))
    found = global_search.search(
      features,
      (photograph.height, photograph.width),
      dataclasses.replace(
        self.searchable, descriptors=self.searchable.descriptors[everything]
      ),
      leave_out=self.number_of(photo),
      **options,
    )
    return photograph, found


def descriptor_batches(
  opened: store.Store, *, start: int = 0, rows: int = BATCH
) -> Iterator[np.ndarray]:
  """Yields a store's descriptors, after looking at every one of them.

  Descriptors must be of unit length, as all that `delf_jax.extract` writes
  are; distances between others say little. Zeros are let through: they are
  what a photograph of one colour has.

  Args:
    opened: the store.
    start: the first row.
    rows: at most so many in a batch.

  Yields:
    [rows, dim] float32.

  Raises:
    InputError: naming the photograph of a descriptor that is not finite or
      not of unit length.
  """
  for first in range(start, int(opened.offsets[-1]), rows):
    batch = opened.descriptors(first, first + rows)
    with np.errstate(over="ignore", invalid="ignore"):
      lengths = np.sqrt(np.square(batch).sum(axis=1))
      bad = ~(np.abs(lengths - 1) <= LENGTH_TOLERANCE) & (lengths != 0)
    if bad.any():
      row = int(np.argmax(bad))
      name = opened.paths[int(opened.image_of(np.array(first + row)))]
      raise InputError(
        f"{opened.directory}: a descriptor of {name!r} has the length "
        f"{lengths[row]:.3g} instead of 1; extract it again, or normalise what "
        f"you import"
      )
    yield batch


def kind_of_features(settings: Mapping[str, Any]) -> str:
  """Names what makes descriptors of two stores comparable.

  Args:
    settings: of a store.
  """
  names = ("kind", "fingerprint", "reduction")
  return " ".join(str(settings[name]) for name in names if name in settings)


def provenance(
  opened: store.Store,
  *,
  photographs: int | None = None,
  removed: Collection[int] = (),
) -> dict[str, Any]:
  """Describes a store for the index that is built from it.

  Args:
    opened: the store.
    photographs: how many of its photographs, from the first; by default all.
    removed: the numbers of those among them that are not in the index.
  """
  count = len(opened.paths) if photographs is None else photographs
  return {
    "store": os.path.abspath(opened.directory),
    "store_fingerprint": opened.fingerprint,
    "photographs": count,
    "listing": _listing(opened, count),
    "removed": sorted(removed),
  }


def _listing(opened: store.Store, count: int) -> str:
  """A digest of the settings, the first photographs and their rows."""
  digest = hashlib.sha256(json.dumps(opened.settings, sort_keys=True).encode())
  for path in opened.paths[:count]:
    digest.update(path.encode(errors="surrogateescape") + b"\0")
  digest.update(opened.offsets[: count + 1].astype("<i8").tobytes())
  return digest.hexdigest()


def check_origin(
  index_directory: str | os.PathLike,
  origin: Mapping[str, Any],
  opened: store.Store,
) -> None:
  """Sees that an index was built from a store, which may have grown since.

  Raises:
    InputError: if it was not.
  """
  count = origin.get("photographs", 0)
  if opened.fingerprint == origin.get("store_fingerprint") or (
    count < len(opened.paths)
    and _listing(opened, count) == origin.get("listing")
  ):
    return
  raise InputError(
    f"{os.fspath(index_directory)!r} was not built from the store "
    f"{opened.directory!r} as it is now; build it again with python -m "
    f"delf_jax.build_index"
  )


def connect(
  opened: store.Store,
  searcher: index.Index | index.PhotographIndex,
  *,
  photographs: int | None = None,
  removed: Collection[int] = (),
) -> retrieval.Database:
  """Puts a store's photographs behind the rows of an index over it.

  Args:
    opened: the store.
    searcher: over its descriptors, or a bag of words of its photographs.
    photographs: of how many, from the first; by default all.
    removed: the numbers of those among them that it leaves out.
  """
  kept = np.ones(len(opened.paths), bool)
  kept[list(removed)] = False
  if photographs is not None:
    kept[photographs:] = False
  counts = np.diff(opened.offsets)[kept]
  offsets = np.concatenate([[0], np.cumsum(counts)])
  return retrieval.Database(
    index=searcher,
    paths=tuple(itertools.compress(opened.paths, kept)),
    sizes=opened.sizes[kept],
    offsets=offsets,
    calibration=extractors.calibration_of(opened.settings),
    **{
      name: StoredRows(
        getattr(opened, name), shape, offsets, opened.offsets[:-1][kept]
      )
      for name, shape in (
        ("locations", (2,)),
        ("scales", ()),
        ("descriptors", (opened.dim,)),
      )
    },
  )


@dataclasses.dataclass(frozen=True)
class StoredRows:
  """What a store knows of features, read when somebody asks.

  A query asks for those of its candidates; those of a billion features would
  fill more memory than their index.

  Attributes:
    read: (start, stop) -> [stop - start, *shape] of store rows.
    shape: of one row.
    offsets: [p + 1] the index rows of p photographs.
    starts: [p] the first store row of each.
  """

  read: Callable[[int, int], np.ndarray]
  shape: tuple[int, ...]
  offsets: np.ndarray
  starts: np.ndarray

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    """Returns those of index rows [m], [m, *shape] float32."""
    rows = np.asarray(rows)
    found = np.empty((len(rows), *self.shape), np.float32)
    images = np.searchsorted(self.offsets, rows, side="right") - 1
    for image in np.unique(images):
      mine = images == image
      first = self.starts[image]
      count = self.offsets[image + 1] - self.offsets[image]
      whole = self.read(first, first + count)
      found[mine] = whole[rows[mine] - self.offsets[image]]
    return found


def open_database(
  index_directory: str | os.PathLike,
  *,
  store_directory: str | os.PathLike | None = None,
  features: str | None = None,
  verify: bool = True,
) -> PhotographDatabase:
  """Opens an index, its store and its extractor; sees that they fit.

  Args:
    index_directory: what `delf_jax.build_index` wrote.
    store_directory: the store, if it is no longer where it was.
    features: the checkpoint, if it is no longer where it was.
    verify: see `index.open_index`.

  Raises:
    InputError: if any is missing or damaged, or they do not belong together.
  """
  origin: Mapping[str, Any] = index.read_meta(index_directory)["provenance"]
  where = os.fspath(store_directory or origin["store"])
  if not os.path.isdir(where):
    raise InputError(
      f"{where!r}: the store that {os.fspath(index_directory)!r} was built "
      f"from is not there; say where it is with --store"
    )
  opened = store.open_store(where)
  check_origin(index_directory, origin, opened)
  extractor = extractors.reopen(opened.settings, features=features)
  searcher = index.open_index(index_directory, verify=verify)
  return PhotographDatabase(
    searchable=connect(
      opened,
      searcher,
      photographs=origin["photographs"],
      removed=origin["removed"],
    ),
    extractor=extractor,
    photos=opened.settings["photos"],
  )
