"""An index together with the store it was built from, ready for photographs."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from delf_jax import extraction, index, retrieval
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.features import store


@dataclasses.dataclass(frozen=True)
class PhotographDatabase:
  """Where photographs are looked up.

  Attributes:
    searchable: what `retrieval.search` takes.
    extractor: of the features that the database holds.
    photos: the folder that its paths are relative to.
  """

  searchable: retrieval.Database
  extractor: extraction.Extractor
  photos: str

  def number_of(self, photo: str | os.PathLike) -> int | None:
    """Returns the number of a photograph in the database, or None."""
    path = os.path.relpath(
      os.path.realpath(photo), os.path.realpath(self.photos)
    )
    paths = self.searchable.paths
    return paths.index(path) if path in paths else None

  def search(
    self, photo: str | os.PathLike, **options: Any
  ) -> tuple[Photograph, list[retrieval.Match]]:
    """Extracts a photograph and looks it up; it never finds itself.

    Args:
      photo: the query.
      options: of `retrieval.search`.

    Returns:
      the query, decoded, and every candidate, best first.

    Raises:
      InputError: if the photograph cannot be used.
    """
    photograph, features = extraction.extract_file(self.extractor, photo)
    matches = retrieval.search(
      features,
      (photograph.height, photograph.width),
      self.searchable,
      leave_out=self.number_of(photo),
      **options,
    )
    return photograph, matches


def provenance(opened: store.Store) -> dict[str, Any]:
  """Describes a store for the index that is built from it."""
  return {
    "store": os.path.abspath(opened.directory),
    "store_fingerprint": opened.fingerprint,
  }


def connect(opened: store.Store, searcher: retrieval.Index):
  """Puts a store's photographs behind the rows of an index over it."""
  return retrieval.Database(
    index=searcher,
    paths=opened.paths,
    sizes=opened.sizes,
    offsets=opened.offsets,
    locations=opened.locations(),
  )


def open_database(
  index_directory: str | os.PathLike,
  *,
  store_directory: str | os.PathLike | None = None,
  features: str | None = None,
) -> PhotographDatabase:
  """Opens an index, its store and its extractor; sees that they fit.

  Args:
    index_directory: what `delf_jax.build_index` wrote.
    store_directory: the store, if it is no longer where it was.
    features: the checkpoint, if it is no longer where it was.

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
  if opened.fingerprint != origin["store_fingerprint"]:
    raise InputError(
      f"{os.fspath(index_directory)!r} was not built from the store {where!r} "
      f"as it is now; build it again with python -m delf_jax.build_index"
    )
  extractor = extraction.reopen(opened.settings, features=features)
  searcher = index.open_index(index_directory)
  return PhotographDatabase(
    searchable=connect(opened, searcher),
    extractor=extractor,
    photos=opened.settings["photos"],
  )
