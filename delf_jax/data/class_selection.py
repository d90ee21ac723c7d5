"""Which classes are trained on, and which photographs are for validation."""

import dataclasses
import hashlib
import json
import os

import numpy as np

from delf_jax.data.photograph_list import PhotographList
from delf_jax.errors import InputError

# A class of fewer photographs keeps them all for training: one of four is
# worth more there than a measurement on it.
LEAST_TO_HOLD_OUT = 5


@dataclasses.dataclass(frozen=True)
class Selection:
  """Photographs of the classes that are trained on.

  Attributes:
    photographs: those left; `labels` index the sorted `names`, each of which
      has a training photograph; `validation` is never None.
    split: how training and validation were told apart.
  """

  photographs: PhotographList
  split: str


def read_class_names(path: str | os.PathLike) -> list[str]:
  """Reads a file of class names, as `write_class_names` writes it.

  One name a line, then nothing or a tab and a comment. Empty lines and lines
  that start with "#" say nothing. A name in double quotes is a JSON string.

  Raises:
    InputError: if the file cannot be read.
  """
  try:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
      lines = file.read().split("\n")
  except OSError as error:
    raise InputError(
      f"cannot read the class names {os.fspath(path)!r}: {error.strerror}"
    ) from error
  names = []
  for number, line in enumerate(lines, 1):
    name = line.partition("\t")[0].strip(" \r")
    if not name or name.startswith("#"):
      continue
    if name.startswith('"'):
      try:
        name = json.loads(name)
      except ValueError as error:
        raise InputError(
          f"{os.fspath(path)!r}, line {number}: {error}; a name in double "
          "quotes is a JSON string"
        ) from error
    names.append(name)
  return names


def class_line(name: str, comment: str = "") -> str:
  """Writes a class name as a line that `read_class_names` understands."""
  plain = name.isprintable() and name == name.strip() and name[:1] not in '"#'
  written = name if name and plain else json.dumps(name)
  return f"{written}\t# {comment}" if comment else written


def select(
  photographs: PhotographList,
  *,
  validation_share: float,
  min_photographs: int,
  exclude: str,
  seed: int,
) -> Selection:
  """Chooses classes and splits their photographs.

  Where a split is published and keeps photographs of trained classes for
  validation, it counts, and other classes' validation photographs are left
  out. Elsewhere (retrieval-SfM keeps whole clusters back, which suits retrieval
  and not classification) each class of n photographs, at least
  `LEAST_TO_HOLD_OUT`, holds out max(1, round(n * share)): those that come
  first by a hash of (seed, class name, path). So neither the order of files
  nor other classes matter.

  Args:
    photographs: all there are.
    validation_share: of a class, 0 to below 1; see above.
    min_photographs: classes with fewer, not counting published validation
      photographs, are left out.
    exclude: a file of names of classes to leave out, or "".
    seed: of the hold-out.

  Raises:
    InputError: if an option is out of range, fewer than two classes are left,
      or `exclude` names no class of this data set.
  """
  if not 0 <= validation_share < 1:
    raise InputError(
      f"validation_share is {validation_share}; expected 0 to below 1"
    )
  if min_photographs < 1:
    raise InputError(
      f"min_photographs is {min_photographs}; expected 1 or more"
    )
  if exclude:
    photographs = _without_classes(photographs, exclude)
  names, labels = photographs.names, photographs.labels
  published = photographs.validation
  if published is None:
    published = np.zeros(len(labels), bool)
  counts = np.bincount(labels[~published], minlength=len(names))
  trained = counts >= min_photographs
  problems = []
  few = np.flatnonzero((counts > 0) & ~trained)
  if len(few):
    problems.append(
      (
        photographs.root,
        f"{len(few):,} classes have fewer than {min_photographs} photographs "
        f"and are left out, first {names[few[0]]!r}",
      )
    )
  kept = trained[labels]
  strange = published & (counts[labels] == 0)
  if strange.any():
    problems.append(
      (
        photographs.root,
        f"{strange.sum():,} validation photographs of "
        f"{len(np.unique(labels[strange])):,} classes that have none for "
        "training are left out",
      )
    )
  photographs = photographs.keep(kept, *problems)
  if trained.sum() < 2:
    reasons = "; ".join(reason for _, reason in photographs.problems)
    raise InputError(
      f"{trained.sum()} classes with {min_photographs} photographs or more "
      f"under {photographs.root!r}, at least 2 are needed"
      + (f" ({reasons})" if reasons else "")
    )
  photographs = _sorted(photographs)
  published = photographs.validation
  if published is not None and published.any():
    return Selection(photographs, "split as published")
  held_out = _hold_out(photographs, validation_share, seed)
  split = f"{validation_share:.0%} of each class held out, seed {seed}"
  return Selection(
    photographs._replace(validation=held_out),
    split if validation_share else "none held out",
  )


def _without_classes(
  photographs: PhotographList, exclude: str
) -> PhotographList:
  wanted = set(read_class_names(exclude))
  gone = np.array([name in wanted for name in photographs.names], bool)
  if wanted and not gone.any():
    raise InputError(
      f"none of the {len(wanted):,} classes in {exclude!r} is a class of "
      f"{photographs.root!r}, such as {photographs.names[0]!r}; give the list "
      "that was made for this data set"
    )
  problems = [(exclude, f"{gone.sum():,} classes are left out as listed here")]
  unknown = sorted(wanted.difference(photographs.names))
  if unknown:
    problems.append(
      (
        exclude,
        f"{len(unknown):,} names are no class of the data set, first "
        f"{unknown[0]!r}",
      )
    )
  return photographs.keep(~gone[photographs.labels], *problems)


def _sorted(photographs: PhotographList) -> PhotographList:
  """Numbers the classes that have photographs in the order of their names."""
  used = np.unique(photographs.labels)
  order = sorted(used.tolist(), key=lambda label: photographs.names[label])
  numbers = np.zeros(len(photographs.names), np.int32)
  numbers[order] = np.arange(len(order), dtype=np.int32)
  return photographs._replace(
    names=tuple(photographs.names[label] for label in order),
    labels=numbers[photographs.labels],
  )


def _hold_out(
  photographs: PhotographList, share: float, seed: int
) -> np.ndarray:
  """Returns [n] bool, which photographs are held out; see `select`."""
  labels = photographs.labels
  held_out = np.zeros(len(labels), bool)
  if not share:
    return held_out
  counts = np.bincount(labels, minlength=len(photographs.names))
  wanted = np.maximum(1, np.floor(counts * share + 0.5).astype(int))
  wanted = np.minimum(wanted, counts - 1)
  wanted[counts < LEAST_TO_HOLD_OUT] = 0
  order = np.lexsort([hashes(photographs, seed), labels])
  starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
  ranks = np.arange(len(labels)) - starts[labels[order]]
  held_out[order] = ranks < wanted[labels[order]]
  return held_out


def hashes(photographs: PhotographList, seed: int) -> np.ndarray:
  """Returns [n] uint64, of (seed, class name, path) of every photograph."""
  prefixes = [
    hashlib.blake2b(
      f"{seed}\0{name}\0".encode("utf-8", "surrogateescape"), digest_size=8
    )
    for name in photographs.names
  ]

  def digest(path, label):
    state = prefixes[label].copy()
    state.update(path.encode("utf-8", "surrogateescape"))
    return state.digest()

  labels = photographs.labels.tolist()
  joined = b"".join(map(digest, photographs.paths, labels))
  return np.frombuffer(joined, "<u8")
