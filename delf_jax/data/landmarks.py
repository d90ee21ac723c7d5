"""The training data sets: photographs of landmarks and their classes.

`open_dataset` opens any of them, straight from the files as they were
downloaded, or prepared once as TFDS array_record files.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from delf_jax.data import class_selection, landmark_lists, pair_sources
from delf_jax.data.photograph_list import PhotographList, Problems
from delf_jax.data.sources import FileSource, Source
from delf_jax.errors import InputError

_READERS: dict[str, Callable[..., PhotographList]] = {
  "folder": landmark_lists.read_folder,
  "table": landmark_lists.read_table,
  "landmarks_full": functools.partial(
    landmark_lists.read_landmarks, variant="full"
  ),
  "landmarks_clean": functools.partial(
    landmark_lists.read_landmarks, variant="clean"
  ),
  "retrieval_sfm_30k": functools.partial(
    landmark_lists.read_retrieval_sfm, variant="30k"
  ),
  "retrieval_sfm_120k": functools.partial(
    landmark_lists.read_retrieval_sfm, variant="120k"
  ),
  "google_landmarks_v1": landmark_lists.read_google_v1,
  "google_landmarks_v2": landmark_lists.read_google_v2,
  "google_landmarks_v2_clean": landmark_lists.read_google_v2_clean,
}
KINDS = (*_READERS, "synthetic", "unlabelled")

# The options of every kind in `_READERS`; see `open_dataset`.
_COMMON = {
  "validation_share": 0.1,
  "min_photographs": 2,
  "exclude": "",
  "seed": 0,
}

_SHOWN = 5  # problems in a summary


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Photographs of landmarks to train on.

  Attributes:
    train: what to train on; every class has a photograph there.
    validation: other photographs of the same classes, maybe none, in an order
      in which the first few show many classes.
    names: of the classes; label i is called names[i].
    problems: (file or folder, reason) of what was left out.
    title: what data set this is, and where.
    split: how training and validation were told apart.
  """

  train: Source
  validation: Source
  names: tuple[str, ...]
  problems: Problems
  title: str
  split: str

  def summary(self) -> str:
    """Describes the data set in a few lines for people."""
    if not self.names:
      return f"{self.title}\n  training    {len(self.train):,} photographs"
    counts = np.bincount(self.train.labels, minlength=len(self.names))
    unseen = len(np.unique(self.validation.labels))
    lines = [
      self.title,
      f"  training    {len(self.train):,} photographs of {len(self.names):,} "
      f"classes, {counts.min():,} to {counts.max():,} each",
      f"  validation  {len(self.validation):,} photographs of {unseen:,} "
      f"classes ({self.split})",
    ]
    lines += [f"  {reason}: {path}" for path, reason in self.problems[:_SHOWN]]
    more = len(self.problems) - _SHOWN
    if more > 0:
      lines.append(f"  and {more:,} more problems")
    return "\n".join(line.encode("utf-8", "replace").decode() for line in lines)


def open_dataset(
  kind: str, path: str | os.PathLike, *, data_dir: str = "", **options: Any
) -> Dataset:
  """Opens a data set of landmarks.

  Kinds, with their own options: "folder" (path/landmark/.../photograph),
  "table" (a CSV file describes a folder), "landmarks_full", "landmarks_clean",
  "retrieval_sfm_30k", "retrieval_sfm_120k", "google_landmarks_v1",
  "google_landmarks_v2", "google_landmarks_v2_clean": see the function of
  `landmark_lists` that reads each. "synthetic": see
  `synthetic_landmarks.open_synthetic`; its path is where the photographs are
  kept, and may be "" to make each whenever it is asked for. "unlabelled": all
  photographs under the path, of no class; its options are `exclude` and `only`
  of `pair_sources.open_pairs`, and what is said below of classes, which it has
  none of, is not looked at.

  Options of every other kind:

  - validation_share (0.1): of each class, held out where no split is published;
  - min_photographs (2): classes with fewer are left out;
  - exclude (""): a file of names of classes to leave out, such as
    `delf_jax.find_overlap` writes;
  - seed (0): of the hold-out.

  `class_selection.select` says exactly what they do.

  Args:
    kind: one of `KINDS`.
    path: the folder of the data set.
    data_dir: "": photographs are read from their files. Else a folder: they are
      copied, as they are, into array_record files there, once. What is
      prepared is then opened without looking at `path`, so nothing that
      changes there is seen: remove the folder to prepare it again. Several
      processes may open it, but one should prepare it first.
    options: see above.

  Raises:
    InputError: if the kind or an option is unknown, a list is missing or unfit,
      or too little is left to train on.
  """
  path = os.fspath(path)
  if kind == "synthetic":
    return _open_synthetic(data_dir or path, options)
  if kind == "unlabelled":
    return _open_unlabelled(path, options)
  if kind not in _READERS:
    raise InputError(
      f"unknown kind of data set {kind!r}; expected one of {', '.join(KINDS)}"
    )
  if not path:
    raise InputError(f"the data set {kind!r} needs the path of its folder")
  parameters = inspect.signature(_READERS[kind]).parameters
  allowed = {*parameters, *_COMMON} - {"root", "variant"}
  _check_options(kind, options, allowed)
  options = {**_COMMON, **options}
  collect = functools.partial(_collect, kind, path, options)
  if not data_dir:
    sources, kept = collect()
  else:
    from delf_jax.data import records  # takes a second to load

    sources, kept = records.open_prepared(
      data_dir, _name(kind, path, options), collect
    )
  return Dataset(
    train=sources["train"],
    validation=sources["validation"],
    names=tuple(kept["names"]),
    problems=tuple((where, why) for where, why in kept["problems"]),
    title=kept["title"],
    split=kept["split"],
  )


def _collect(
  kind: str, path: str, options: Mapping[str, Any]
) -> tuple[dict[str, FileSource], dict[str, Any]]:
  """Reads the list of a data set; returns its sources and the rest."""
  own = {k: v for k, v in options.items() if k not in _COMMON}
  common = {k: options[k] for k in _COMMON}
  selection = class_selection.select(_READERS[kind](path, **own), **common)
  photographs = selection.photographs
  validation = photographs.keep(photographs.validation)
  order = np.argsort(class_selection.hashes(validation, options["seed"]))
  numbers = {
    "train": np.flatnonzero(~photographs.validation),
    "validation": np.flatnonzero(photographs.validation)[order],
  }
  sources = {
    split: FileSource(
      photographs.root,
      [photographs.paths[i] for i in rows],
      photographs.labels[rows],
    )
    for split, rows in numbers.items()
  }
  return sources, {
    "names": photographs.names,
    "problems": photographs.problems,
    "title": f"{kind} in {path}",
    "split": selection.split,
  }


def _name(kind: str, path: str, options: Mapping[str, Any]) -> str:
  """Names prepared data; a different name for whatever is different."""
  exclude = options["exclude"]
  told = {
    **options,
    "path": os.path.abspath(path),
    "exclude": class_selection.read_class_names(exclude) if exclude else [],
  }
  text = json.dumps(told, sort_keys=True, default=dict)
  return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _open_synthetic(data_dir: str, options: Mapping[str, Any]) -> Dataset:
  # Takes a second to load.
  from delf_jax.data import synthetic_landmarks

  parameters = inspect.signature(synthetic_landmarks.open_synthetic).parameters
  _check_options("synthetic", options, {*parameters} - {"data_dir"})
  splits = synthetic_landmarks.open_synthetic(data_dir, **options)
  names = synthetic_landmarks.class_names(
    int(splits["train"].labels.max(initial=-1)) + 1
  )
  if len(names) < 2:
    raise InputError(
      f"{len(names)} synthetic landmarks with training views, at least 2 are "
      "needed; raise num_landmarks and train_views"
    )
  return Dataset(
    train=splits["train"],
    validation=splits["validation"],
    names=names,
    problems=(),
    title=f"synthetic landmarks{f' in {data_dir}' if data_dir else ''}",
    split="views of their own",
  )


def _open_unlabelled(path: str, options: Mapping[str, Any]) -> Dataset:
  _check_options("unlabelled", options, {"only", *_COMMON})
  names = {key: options[key] for key in ("exclude", "only") if key in options}
  photographs = pair_sources.list_photographs(path, **names).files
  return Dataset(
    train=photographs,
    validation=FileSource(path, (), np.zeros(0)),
    names=(),
    problems=(),
    title=f"photographs in {path}",
    split="none",
  )


def _check_options(
  kind: str, options: Mapping[str, Any], allowed: set[str]
) -> None:
  unknown = sorted(set(options) - allowed)
  if unknown:
    raise InputError(
      f"the data set {kind!r} has no option {unknown[0]!r}; its options are "
      f"{', '.join(sorted(allowed))}"
    )
