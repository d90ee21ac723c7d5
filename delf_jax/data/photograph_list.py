"""What a data set's list says, compared with what lies on the disk."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from delf_jax import progress
from delf_jax.errors import InputError

Problems = tuple[tuple[str, str], ...]


class PhotographList(NamedTuple):
  """Labelled photographs, in the order of their list.

  Attributes:
    root: the folder of the photographs.
    paths: [n] relative to `root`, with "/" between their parts.
    labels: [n] int32, the index in `names` of each photograph's class.
    names: of the classes, in any order; some may have no photograph.
    validation: [n] bool, which photographs the authors keep for validation, or
      None where they publish no split.
    problems: (file or folder, reason) of what was left out.
  """

  root: str
  paths: Sequence[str]
  labels: np.ndarray
  names: Sequence[str]
  validation: np.ndarray | None
  problems: Problems

  def keep(self, kept: np.ndarray, *problems: tuple[str, str]):
    """Returns the list of the photographs for which `kept` ([n] bool) holds."""
    if kept.all():
      return self._replace(problems=(*self.problems, *problems))
    return self._replace(
      paths=[self.paths[i] for i in np.flatnonzero(kept)],
      labels=self.labels[kept],
      validation=None if self.validation is None else self.validation[kept],
      problems=(*self.problems, *problems),
    )


def are_files(root: str, paths: Sequence[str]) -> np.ndarray:
  """Says which files are there; every folder is listed once.

  Listing is what keeps this fast: a million calls of `stat` take minutes on a
  network's disk. Whether an entry is a readable file shows when it is read.

  Args:
    root: of the paths.
    paths: [n] relative to `root`, with "/" between their parts.

  Returns:
    [n] bool. What lies in a folder that cannot be read is not there.
  """
  folders = {}
  numbers = np.fromiter(
    (folders.setdefault(p.rpartition("/")[0], len(folders)) for p in paths),
    np.int32,
    len(paths),
  )
  order = np.argsort(numbers, kind="stable")
  counts = np.bincount(numbers, minlength=len(folders))
  found = np.zeros(len(paths), bool)
  start = 0
  for folder, count in progress.track(
    zip(folders, counts, strict=True),
    label="look for photographs",
    unit="folder",
    total=len(folders),
  ):
    rows = order[start : start + count]
    start += count
    try:
      entries = set(os.listdir(os.path.join(root, folder)))
    except (OSError, ValueError):  # ValueError: a null character
      continue
    found[rows] = [paths[i].rpartition("/")[2] in entries for i in rows]
  return found


def without_missing(photographs: PhotographList) -> PhotographList:
  """Leaves out the photographs whose files are not there.

  Raises:
    InputError: if none is there.
  """
  found = are_files(photographs.root, photographs.paths)
  if found.all():
    return photographs
  first = photographs.paths[int(np.argmin(found))]
  return photographs.keep(
    found, missing(photographs.root, first, found=found.sum(), of=len(found))
  )


def missing(root: str, first: str, *, found: int, of: int) -> tuple[str, str]:
  """Describes missing photographs, all in one problem.

  Raises:
    InputError: if none was found.
  """
  if not found:
    raise InputError(
      f"none of the {of:,} photographs is under {root!r}, for example "
      f"{first!r}; give the folder that their paths start from"
    )
  return (
    root,
    f"{of - found:,} of {of:,} photographs are missing, first {first!r}",
  )


def without_repeats(photographs: PhotographList) -> PhotographList:
  """Leaves out what is listed more than once.

  A photograph listed twice in one class stays once, for training if one of
  the two is. One that is listed in several classes has no certain class: all
  its entries are left out.
  """
  paths, labels = photographs.paths, photographs.labels
  # Equal paths have equal hashes; whether the reverse holds is looked at.
  hashes = np.fromiter(map(hash, paths), np.int64, len(paths))
  order = np.argsort(hashes, kind="stable")
  shared = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
  if not len(shared):
    return photographs
  entries = {}
  for i in sorted({*order[shared].tolist(), *order[shared + 1].tolist()}):
    entries.setdefault(paths[i], []).append(i)
  kept = np.ones(len(paths), bool)
  repeated, disputed = [], []
  for path, rows in entries.items():
    if len(rows) == 1:
      continue
    kept[rows] = False
    if len(set(labels[rows].tolist())) > 1:
      disputed.append(path)
      continue
    repeated.append(path)
    validation = photographs.validation
    trained = [r for r in rows if validation is None or not validation[r]]
    kept[(trained or rows)[0]] = True
  problems = [
    (photographs.root, f"{len(of):,} photographs {what}, first {of[0]!r}")
    for of, what in (
      (repeated, "are listed more than once and used once"),
      (disputed, "are listed in several classes and left out"),
    )
    if of
  ]
  return photographs.keep(kept, *problems)
