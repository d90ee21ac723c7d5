"""Where in a folder of downloads a published set lies, and what is missing."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from delf_jax.data import folder
from delf_jax.errors import InputError


class Source(NamedTuple):
  """Photographs that somebody publishes.

  Attributes:
    title: for messages.
    folder: what to call the folder that they are put into.
    others: what others call it; small letters.
    pattern: of the file names, without extension; everything else under the
      folder is left aside.
    count: how many there are.
    fetch: what to download, and from where.
  """

  title: str
  folder: str
  others: tuple[str, ...]
  pattern: str
  count: int
  fetch: str

  def absent(self, directory: str, what: str) -> InputError:
    """Returns the error that says what to fetch and where to put it."""
    return InputError(
      f"{what}; fetch {self.fetch}, and unpack it into "
      f"{os.path.join(directory, self.folder)!r}"
    )


def place_of(directory: str | os.PathLike, source: Source) -> str:
  """Returns the folder of a source, relative to `directory`.

  It is the first one in `directory` that is called like it, whatever its
  letters' case, or `directory` itself, "", if there is none.

  Raises:
    InputError: if `directory` is not a readable folder.
  """
  names = {source.folder, *source.others}
  try:
    entries = sorted(os.listdir(directory))
  except OSError as error:
    raise source.absent(
      os.fspath(directory),
      f"cannot read the folder {os.fspath(directory)!r} "
      f"({error.strerror or error})",
    ) from error
  for entry in entries:
    if entry.lower() in names and os.path.isdir(os.path.join(directory, entry)):
      return entry
  return ""


def photographs(
  directory: str | os.PathLike,
  source: Source,
  *,
  left_out: Iterable[str] = (),
  complete: bool = True,
) -> dict[str, str]:
  """Finds the photographs of a source, at any depth.

  Args:
    directory: of the downloads, or of this set alone.
    source: what to look for.
    left_out: names, without extension, that are passed over.
    complete: whether another number than the published is an error.

  Returns:
    name without extension -> path relative to `directory`, sorted by name.

  Raises:
    InputError: if there are none, one is there twice, or, with `complete`,
      their number is not as published.
  """
  found: dict[str, str] = {}
  left_out = frozenset(left_out)
  for path in _listed(directory, source):
    name = Path(path).stem
    if name in left_out or not re.fullmatch(source.pattern, name):
      continue
    if name in found:
      raise InputError(
        f"{source.title}: {name!r} is there twice, as {found[name]!r} and as "
        f"{path!r}; keep one of them"
      )
    found[name] = path
  _check_count(directory, source, len(found), complete=complete)
  return dict(sorted(found.items()))


def paths(
  directory: str | os.PathLike, source: Source, *, complete: bool = True
) -> list[str]:
  """Finds the photographs of a source that nobody refers to by name.

  Args:
    directory: of the downloads.
    source: what to look for; its pattern is not used.
    complete: whether another number than the published is an error.

  Returns:
    paths relative to `directory`.

  Raises:
    InputError: as `photographs`, but the same name may be there twice.
  """
  found = _listed(directory, source)
  _check_count(directory, source, len(found), complete=complete)
  return found


def _listed(directory: str | os.PathLike, source: Source) -> list[str]:
  directory = os.fspath(directory)
  place = place_of(directory, source)
  try:
    listing = folder.list_photographs(os.path.join(directory, place))
  except InputError as error:
    raise source.absent(directory, f"{source.title}: {error}") from error
  return [f"{place}/{path}" if place else path for path in listing.paths]


def _check_count(
  directory: str | os.PathLike, source: Source, found: int, *, complete: bool
) -> None:
  if not found or (complete and found != source.count):
    raise source.absent(
      os.fspath(directory),
      f"{found:,} photographs of {source.title} under "
      f"{os.path.join(directory, place_of(directory, source))!r}, published "
      f"are {source.count:,}",
    )


def find_file(
  directory: str | os.PathLike,
  names: Sequence[str],
  *,
  places: Sequence[str] = ("",),
  fetch: str,
) -> str:
  """Returns the path of the first of several files that is there.

  Args:
    directory: of the downloads.
    names: of the file.
    places: folders under `directory` to look in, in this order.
    fetch: what to download, for the error.

  Raises:
    InputError: if there is none.
  """
  for place in places:
    for name in names:
      path = os.path.join(directory, place, name)
      if os.path.isfile(path):
        return path
  raise InputError(
    f"no file {' or '.join(names)} in {os.fspath(directory)!r}; fetch {fetch}, "
    "and put it there"
  )


def check_known(
  wanted: Mapping[str, Iterable[str]], known: Mapping[str, str], *, title: str
) -> None:
  """Checks that the photographs of a ground truth are there.

  Args:
    wanted: query -> names of its photographs.
    known: names of the photographs that are there.
    title: of the set.

  Raises:
    InputError: naming the first that is not.
  """
  for query, names in wanted.items():
    for name in names:
      if name not in known:
        raise InputError(
          f"{title}: the ground truth of {query!r} names {name!r}, which is "
          "not among the photographs; unpack all of them"
        )
