r"""Brings local features to other systems, and theirs into a store.

  python -m delf_jax.exchange --from STORE --to hloc --output FILE.h5
  python -m delf_jax.exchange --from STORE --to delf --output DIR
  python -m delf_jax.exchange --from FILE.h5 --to store --output STORE
  python -m delf_jax.exchange --from DIR --to store --output STORE \
    --photos PHOTOS

STORE is what delf_jax.extract wrote, FILE.h5 what hloc reads and writes, and
DIR a folder of .delf files, as the released DELF reads and writes them: of
place/a.jpg the features are in place/a.delf. Those files tell neither the
photograph's extension nor its size; --photos says where the photographs are,
and without it the names stay bare, and a photograph ends where its last feature
is.

Features that cannot be read are reported and skipped; --strict makes that an
error in the end. The same command continues a STORE that was stopped.

Then, for a STORE: python -m delf_jax.build_index --store STORE --output INDEX
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from delf_jax import program, progress
from delf_jax.data import folder
from delf_jax.data.photographs import read_photograph
from delf_jax.errors import InputError
from delf_jax.features import interchange, store
from delf_jax.features.interchange import PhotographFeatures
from delf_jax.features.local_features import LocalFeatures, empty

KINDS = ("hloc", "delf", "store")
EXTENSION = ".delf"


class Source(NamedTuple):
  """Where features are read from, one photograph at a time.

  Attributes:
    names: of the photographs.
    read: name -> its features; InputError if they cannot be used.
    descriptors: the type of number that holds them exactly.
    problems: (name, reason) of what has no place among the names.
  """

  names: Sequence[str]
  read: Callable[[str], PhotographFeatures]
  descriptors: str = "float32"
  problems: tuple[tuple[str, str], ...] = ()


class Counts(NamedTuple):
  """What became of the photographs.

  Attributes:
    done: written by this run.
    kept: that an earlier run had written.
    features: written by this run.
    skipped: (name, reason) of those that could not be used.
  """

  done: int
  kept: int
  features: int
  skipped: tuple[tuple[str, str], ...]


def exchange(
  origin: str | os.PathLike,
  to: str,
  output: str | os.PathLike,
  *,
  photos: str | os.PathLike | None = None,
  dtype: str = "float32",
) -> Counts:
  """Converts features; what they are converted from is seen from the files.

  Args:
    origin: a store, hloc's HDF5 file, or a folder of .delf files.
    to: one of `KINDS`, another than that.
    output: the file (hloc) or directory that is written.
    photos: the folder of the photographs, for .delf files.
    dtype: of the descriptors in a store; see `store.open_writer`.

  Raises:
    InputError: if `origin` holds no features that can be used, or `output`
      cannot be written or holds something else.
  """
  origin, output = os.fspath(origin), os.fspath(output)
  kind = kind_of(origin)
  if kind == to:
    raise InputError(
      f"{origin!r} is of the kind {to!r} already; choose another --to"
    )
  if photos is not None and kind != "delf":
    raise InputError("--photos is for .delf files alone; leave it out")
  with _opened(kind, origin, photos) as source:
    if to == "store":
      settings = {
        "kind": "imported",
        "format": kind,
        "features": os.path.abspath(origin),
        "photos": None if photos is None else os.path.abspath(photos),
        "dim": _dimensions(origin, source),
      }
      counts = _to_store(source, output, settings, dtype)
    else:
      write = _to_hloc if to == "hloc" else _to_delf
      counts = write(source, output)
  if not counts.done + counts.kept:
    raise InputError(
      f"none of the {len(counts.skipped)} photographs in {origin!r} could be "
      f"used; the first: {counts.skipped[0][1]}"
    )
  return counts


def kind_of(path: str) -> str:
  """Says what kind of features a path holds.

  Raises:
    InputError: if there is nothing.
  """
  if os.path.isfile(path):
    return "hloc"
  if not os.path.isdir(path):
    raise InputError(
      f"{path!r} is not there; give a store, a file of hloc or a folder of "
      f"{EXTENSION} files"
    )
  is_store = os.path.exists(os.path.join(path, "meta.json"))
  return "store" if is_store else "delf"


@contextlib.contextmanager
def _opened(
  kind: str, path: str, photos: str | os.PathLike | None
) -> Iterator[Source]:
  if kind == "hloc":
    with interchange.read_hloc(path) as images:
      yield Source(tuple(images), images.__getitem__)
  elif kind == "store":
    yield _store(path)
  else:
    yield _delf_files(path, photos)


def _store(path: str) -> Source:
  opened = store.open_store(path)
  rows = {name: i for i, name in enumerate(opened.paths)}

  def read(name):
    height, width = opened.sizes[rows[name]].tolist()
    return PhotographFeatures(opened.features(rows[name]), height, width)

  return Source(
    opened.paths, read, "float16" if opened.dtype == "float16" else "float32"
  )


def _delf_files(root: str, photos: str | os.PathLike | None) -> Source:
  """Lists .delf files, by the names of their photographs."""
  files = sorted(
    os.path.relpath(os.path.join(where, name), root)
    for where, _, names in os.walk(root)
    for name in names
    if name.endswith(EXTENSION)
  )
  if not files:
    raise InputError(
      f"no {EXTENSION} files under {root!r}; give a store, a file of hloc or a "
      f"folder of them"
    )
  problems = []
  if photos is None:
    found = {file.removesuffix(EXTENSION): file for file in files}
  else:
    found = {}
    stems = {}
    for path in folder.list_photographs(photos).paths:
      stems.setdefault(os.path.splitext(path)[0], []).append(path)
    for file in files:
      candidates = stems.get(file.removesuffix(EXTENSION), [])
      if len(candidates) == 1:
        found[candidates[0]] = file
      else:
        problems.append(
          (
            file,
            f"{file!r}: {len(candidates)} photographs of this name under "
            f"{os.fspath(photos)!r}, not one",
          )
        )

  def read(name):
    features = interchange.read_delf(os.path.join(root, found[name]))
    if photos is not None:
      photograph = read_photograph(os.path.join(photos, name))
      return PhotographFeatures(features, photograph.height, photograph.width)
    return PhotographFeatures(features, *_extent(features.locations))

  return Source(tuple(found), read, problems=tuple(problems))


def _extent(locations: np.ndarray) -> tuple[int, int]:
  """Returns the smallest height and width that locations [n, 2] lie in."""
  last = np.clip(np.max(locations, axis=0, initial=0), 0, 2**31 - 128)
  height, width = np.ceil(last).astype(int) + 1
  return int(height), int(width)


def _dimensions(origin: str, source: Source) -> int:
  """Returns the dimensions of the first photograph's that has features."""
  for name in source.names:
    with contextlib.suppress(InputError):
      features = source.read(name).features
      if len(features.mask):
        return features.descriptors.shape[1]
  raise InputError(
    f"{origin!r} holds no features that can be read; extract them again"
  )


def _read_all(
  source: Source, names: Sequence[str], skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, PhotographFeatures]]:
  """Yields what can be read, and notes what cannot."""
  skipped.extend(source.problems)
  for name in progress.track(
    names, label="exchange", unit="photograph", total=len(names)
  ):
    if not interchange.is_relative_name(name):
      skipped.append((name, f"{name!r} leads out of its folder"))
      continue
    try:
      yield name, source.read(name)
    except InputError as error:
      skipped.append((name, str(error)))


def _to_store(
  source: Source, output: str, settings: dict, dtype: str
) -> Counts:
  skipped = []
  done = features = 0
  with store.open_writer(output, settings=settings, dtype=dtype) as writer:
    todo = [name for name in source.names if name not in writer.done]
    for name, found in _read_all(source, todo, skipped):
      reason = _unfit(found.features, settings["dim"], dtype)
      if reason:
        skipped.append((name, f"{name!r} has {reason}"))
        continue
      writer.add(
        name,
        height=found.height,
        width=found.width,
        features=(
          found.features if len(found.features.mask) else empty(settings["dim"])
        ),
      )
      done += 1
      features += len(found.features.mask)
    for name, reason in skipped:
      writer.skip(name, reason)
    writer.finish()
  return Counts(done, len(source.names) - len(todo), features, tuple(skipped))


def _unfit(features: LocalFeatures, dim: int, dtype: str) -> str | None:
  """Says why features cannot be in a store, if so."""
  if not len(features.mask):
    return None
  if features.descriptors.shape[1] != dim:
    return (
      f"descriptors of {features.descriptors.shape[1]} dimensions, those "
      f"before it {dim}"
    )
  if dtype == "float16" and np.abs(features.descriptors).max() >= 65520:
    return "descriptors too large for float16; use --dtype float32"
  return None


def _to_hloc(source: Source, output: str) -> Counts:
  skipped = []
  done = features = 0

  def items():
    nonlocal done, features
    for name, found in _read_all(source, source.names, skipped):
      if any("\ud800" <= letter <= "\udfff" for letter in name):
        skipped.append((name, f"{name!r} is no text, as HDF5 needs it"))
        continue
      yield name, found
      done += 1
      features += len(found.features.mask)

  interchange.write_hloc(output, items(), dtype=source.descriptors)
  return Counts(done, 0, features, tuple(skipped))


def _to_delf(source: Source, output: str) -> Counts:
  skipped = []
  done = features = 0
  written = {}
  for name, found in _read_all(source, source.names, skipped):
    file = os.path.splitext(name)[0] + EXTENSION
    if file in written:
      reason = f"{name!r}: {file!r} is that of {written[file]!r}"
      skipped.append((name, reason))
      continue
    path = os.path.join(output, file)
    try:
      os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
      raise InputError(
        f"cannot write under {output!r} ({error.strerror}); choose another "
        "--output"
      ) from error
    interchange.write_delf(path, found.features)
    written[file] = name
    done += 1
    features += len(found.features.mask)
  return Counts(done, 0, features, tuple(skipped))


def main() -> int:
  """Converts as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  counts = exchange(
    values["from"].value,
    values.to,
    values.output,
    photos=values.photos,
    dtype=values.dtype,
  )
  for _, reason in counts.skipped:
    print(f"skipped {reason}")
  earlier = f", {counts.kept} were there" if counts.kept else ""
  print(
    f"{values.output}: {counts.done} photographs done{earlier}, "
    f"{len(counts.skipped)} skipped, {counts.features} features in "
    f"{program.elapsed(start)}"
  )
  return 1 if values.strict and counts.skipped else 0


if __name__ == "__main__":
  flags.DEFINE_string(
    "from", None, "a store, a file of hloc or a folder of .delf.", required=True
  )
  flags.DEFINE_enum("to", None, list(KINDS), "what to write.", required=True)
  flags.DEFINE_string(
    "output", None, "a file for hloc, or else a directory.", required=True
  )
  flags.DEFINE_string("photos", None, "the photographs of the .delf files.")
  flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float16", "float32", "int8"],
    "of descriptors in a store.",
  )
  flags.DEFINE_bool("strict", False, "exit with 1 if any was skipped.")
  program.run(main)
