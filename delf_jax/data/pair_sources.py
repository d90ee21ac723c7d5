"""Where the pairs of views come from: single photographs, or pairs of them.

A source is picklable and answers `len(source)` and `source[i]`, a `Pair` still
encoded. Photographs need no labels: a pair is then twice the same one.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from delf_jax.data import folder
from delf_jax.data.class_selection import read_class_names
from delf_jax.data.sources import FileSource
from delf_jax.errors import InputError

# Of a photograph that may show the same place as no other.
ALONE = -1

# What a file of verified pairs holds; see `write_verified`.
_ARRAYS = ("paths", "pairs", "homographies", "inliers", "ends")


class Pair(NamedTuple):
  """Two photographs, or twice the same one.

  Attributes:
    first: encoded.
    second: encoded; None: the same photograph.
    name: of the first.
    group: pairs of one group, 0 or more, may show the same place; `ALONE`.
    homography: [3, 3] from points (y, x, 1) of the first to those of the
      second, in pixels; None: the same photograph.
    inliers: [n, 2] points of the first near which that holds; None: everywhere.
  """

  first: bytes
  second: bytes | None
  name: str
  group: int
  homography: np.ndarray | None = None
  inliers: np.ndarray | None = None


class PairSource(Protocol):
  """Pairs by number; can be pickled."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Pair:
    """The files of a pair; one that is missing is empty."""


class Photographs:
  """Single photographs, each paired with itself."""

  def __init__(self, files: FileSource) -> None:
    """Takes files whose labels are groups."""
    self.files = files

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, i: int) -> Pair:
    example = self.files[i]
    return Pair(example["image"], None, example["name"], example["label"])


class VerifiedPairs:
  """Pairs of photographs with a plane that both show."""

  def __init__(
    self,
    files: FileSource,
    pairs: np.ndarray,
    homographies: np.ndarray,
    inliers: Sequence[np.ndarray],
  ) -> None:
    """Takes what `write_verified` wrote.

    Args:
      files: of the photographs; their labels are groups.
      pairs: [n, 2] numbers of photographs.
      homographies: [n, 3, 3].
      inliers: n arrays [m, 2].
    """
    self._files = files
    self._pairs = pairs
    self._homographies = homographies
    self._inliers = inliers

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, i: int) -> Pair:
    first, second = (self._files[int(k)] for k in self._pairs[i])
    return Pair(
      first["image"],
      second["image"],
      first["name"],
      first["label"],
      self._homographies[i],
      self._inliers[i],
    )


class Mixture:
  """Sources one after the other, each as often as it counts.

  Attributes:
    originals: [m] positions of the m pairs that there are, each once.
    rows: [len(self)] which of them is at each position.
  """

  def __init__(self, sources: Sequence[tuple[PairSource, int]]) -> None:
    """Takes sources with the number of times that each counts."""
    self._sources = [source for source, _ in sources]
    self._ends = np.cumsum([len(source) * times for source, times in sources])
    starts = [0, *self._ends[:-1]]
    known = [0, *np.cumsum([len(source) for source, _ in sources])[:-1]]
    self.originals = np.concatenate(
      [
        start + np.arange(len(source))
        for start, (source, _) in zip(starts, sources, strict=True)
      ]
    )
    self.rows = np.concatenate(
      [
        first + np.tile(np.arange(len(source)), times)
        for first, (source, times) in zip(known, sources, strict=True)
      ]
    )

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> Pair:
    which = int(np.searchsorted(self._ends, i, side="right"))
    source = self._sources[which]
    before = self._ends[which - 1] if which else 0
    return source[int(i - before) % len(source)]


def open_pairs(sources: Mapping[str, Mapping[str, Any]]) -> Mixture:
  """Opens and mixes sources of pairs.

  Args:
    sources: by any names. Each says `path`, a folder of photographs at any
      depth (one whose path is "" is left out), and may say

      - repeat (1): how often its photographs count in an epoch;
      - grouped (False): photographs in one folder at the top of `path`, or in
        folders of one name, of whatever source, may show the same place, and
        are then no examples against each other;
      - exclude (""): a file of names of folders to leave out, at any depth;
      - only (""): a file of names of folders to take, and no others;
      - verified (""): a file of `write_verified`: pairs of photographs instead
        of single ones, always grouped: by the first folder on their path
        whose name is a group of a source before, or the folder they are in.

  Raises:
    InputError: if an option is unknown, or nothing is left.
  """
  found = []
  groups: dict[str, int] = {}
  for name, options in sources.items():
    unknown = sorted(
      set(options)
      - {"path", "repeat", "grouped", "exclude", "only", "verified"}
    )
    if unknown or "path" not in options:
      says = f"has no option {unknown[0]!r}" if unknown else "needs a path"
      raise InputError(
        f"the source {name!r} of photographs {says}; it takes path, repeat, "
        f"grouped, exclude, only, verified"
      )
    options = dict(options)
    path, repeat = options.pop("path"), options.pop("repeat", 1)
    if not path:
      continue
    if repeat < 1:
      raise InputError(
        f"the source {name!r} counts {repeat} times; give 1 or more, or no path"
      )
    verified = options.pop("verified", "")
    if verified:
      options.pop("grouped", None)
      source = read_verified(path, verified, groups=groups, **options)
    else:
      source = list_photographs(path, groups=groups, **options)
    found.append((source, repeat))
  if not found:
    raise InputError(
      f"none of the sources of photographs ({', '.join(sources) or 'none'}) "
      f"has a path; give one, as in --config.correspondence.sources.pool.path="
      f"DIR"
    )
  return Mixture(found)


def list_photographs(
  path: str,
  *,
  grouped: bool = False,
  exclude: str = "",
  only: str = "",
  groups: dict[str, int] | None = None,
) -> Photographs:
  """Lists the photographs of a folder; see `open_pairs`.

  Args:
    path: the folder.
    grouped: whether labels are groups, not all `ALONE`.
    exclude: a file of names of folders.
    only: a file of names of folders.
    groups: by names of folders; receives those that are new.

  Raises:
    InputError: if there are none.
  """
  paths = folder.list_photographs(path).paths
  keep = _wanted(paths, exclude=exclude, only=only)
  paths = [p for p, wanted in zip(paths, keep, strict=True) if wanted]
  if not paths:
    raise InputError(
      f"{path!r}: {only or exclude!r} leaves no photograph of it; check the "
      f"names of folders in it"
    )
  labels = [ALONE] * len(paths)
  if grouped:
    groups = {} if groups is None else groups
    tops = [path.partition("/")[0] for path in paths]
    labels = [groups.setdefault(name, len(groups)) for name in tops]
  return Photographs(FileSource(path, paths, labels))


def write_verified(
  path: str | os.PathLike,
  *,
  paths: Sequence[str],
  pairs: np.ndarray,
  homographies: np.ndarray,
  inliers: Sequence[np.ndarray],
) -> None:
  """Writes pairs of photographs that show one plane.

  Args:
    path: the file.
    paths: of the photographs, relative to their folder.
    pairs: [n, 2] numbers of photographs; a pair may come again with another
      plane.
    homographies: [n, 3, 3] from points (y, x, 1) of the first photograph to
      the second, in pixels of the upright originals.
    inliers: n arrays [m, 2] of points in the first near which that holds.
  """
  np.savez_compressed(
    path,
    paths=np.array(paths, np.str_),
    pairs=np.asarray(pairs, np.int32),
    homographies=np.asarray(homographies, np.float64),
    inliers=np.concatenate(inliers).astype(np.float32),
    ends=np.cumsum([len(points) for points in inliers]),
  )


def read_verified(
  root: str,
  path: str,
  *,
  exclude: str = "",
  only: str = "",
  groups: dict[str, int] | None = None,
) -> VerifiedPairs:
  """Reads what `write_verified` wrote; see `open_pairs`.

  Pairs are left out if one of their photographs is.

  Args:
    root: the folder that the file's paths are relative to.
    path: the file.
    exclude: a file of names of folders.
    only: a file of names of folders.
    groups: by names of folders; receives those that are new.

  Raises:
    InputError: if the file is missing or unfit, or nothing is left.
  """
  try:
    with np.load(path) as file:
      paths, pairs, homographies, inliers, ends = (file[a] for a in _ARRAYS)
  except (OSError, ValueError, KeyError) as error:
    raise InputError(
      f"{path!r}: cannot be read as a file of verified pairs ({error}); write "
      f"it with delf_jax.find_correspondences"
    ) from error
  keep = _wanted(paths, exclude=exclude, only=only)
  rows = np.flatnonzero(keep[pairs].all(axis=1))
  if not len(rows):
    raise InputError(f"{path!r}: no verified pair is left; check exclude, only")
  parts = np.split(inliers.astype(np.float64), ends[:-1])
  labels = _join(paths, {} if groups is None else groups)
  return VerifiedPairs(
    FileSource(root, paths.tolist(), labels),
    pairs[rows],
    homographies[rows],
    [parts[row] for row in rows],
  )


def _join(paths: Sequence[str], groups: dict[str, int]) -> list[int]:
  """Returns the groups of verified pairs' paths; see `open_pairs`."""
  before = set(groups)
  labels = []
  for path in paths:
    folders = path.split("/")[:-1] or [""]
    name = next((name for name in folders if name in before), folders[-1])
    labels.append(groups.setdefault(name, len(groups)))
  return labels


def _wanted(paths: Sequence[str], *, exclude: str, only: str) -> np.ndarray:
  """Returns [n] bool, whether a path is in one of the wanted folders."""
  above = [set(path.split("/")[:-1]) for path in paths]
  keep = np.ones(len(paths), bool)
  if exclude:
    names = set(read_class_names(exclude))
    keep &= [names.isdisjoint(folders) for folders in above]
  if only:
    names = set(read_class_names(only))
    keep &= [not names.isdisjoint(folders) for folders in above]
  return keep
