"""Features in other systems' files: .datum and .delf of DELF, HDF5 of hloc.

The released DELF keeps arrays (`.datum`) and the features of one photograph
(`.delf`) as protocol buffers; hloc keeps the features of many photographs in
one HDF5 file.

All three count pixels as `LocalFeatures` does, with the centre of the first
pixel at (0, 0), so that only the order of the axes changes: DELF's x and y are
fields, and hloc's keypoints are (x, y). The half pixel by which COLMAP's
coordinates differ is added by hloc when it fills COLMAP's database, and is not
in its feature files.
"""

import contextlib
import io
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from delf_jax.errors import InputError
from delf_jax.features.local_features import LocalFeatures, compact

# Larger protocol buffers are refused before they are read: parsed, a made-up
# one takes a multiple of its size.
MOST_BYTES = 2**28

# No filter of HDF5 makes data smaller than by about this factor, so what
# claims to be larger is not in the file.
MOST_COMPRESSION = 1100
MOST_GROUPS_DEEP = 64

# What hloc's extractors call the scores.
_SCORES = ("scores", "keypoint_scores")


class PhotographFeatures(NamedTuple):
  """The features of one photograph, and its size.

  Attributes:
    features: NumPy arrays, all valid.
    height: of the photograph that the locations refer to, in pixels.
    width: the same.
  """

  features: LocalFeatures
  height: int
  width: int


def _messages() -> tuple[type[Message], type[Message]]:
  """Returns the classes DatumProto and DelfFeatures (delf/protos/*.proto)."""
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(
    name="delf_jax.proto", package="delf.protos", syntax="proto2"
  )

  def add(name, *fields):
    message = file.message_type.add(name=name)
    for number, (label, kind, repeated) in enumerate(fields, 1):
      entry = message.field.add(name=label, number=number)
      entry.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
      if isinstance(kind, str):
        entry.type, entry.type_name = field.TYPE_MESSAGE, f".delf.protos.{kind}"
      else:
        entry.type = kind
        if repeated:
          entry.options.packed = True
    return message

  add("DatumShape", ("dim", field.TYPE_INT64, True))
  add("FloatList", ("value", field.TYPE_FLOAT, True))
  add("Uint32List", ("value", field.TYPE_UINT32, True))
  datum = add(
    "DatumProto",
    ("shape", "DatumShape", False),
    ("float_list", "FloatList", False),
    ("uint32_list", "Uint32List", False),
  )
  datum.oneof_decl.add(name="kind_oneof")
  for entry in datum.field[1:]:
    entry.oneof_index = 0
  numbers = ("x", "y", "scale", "orientation", "strength")
  add(
    "DelfFeature",
    ("descriptor", "DatumProto", False),
    *((name, field.TYPE_FLOAT, False) for name in numbers),
  )
  add("DelfFeatures", ("feature", "DelfFeature", True))
  # A pool of its own: the released package may be loaded beside this one.
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return tuple(
    message_factory.GetMessageClass(
      pool.FindMessageTypeByName(f"delf.protos.{name}")
    )
    for name in ("DatumProto", "DelfFeatures")
  )


_Datum, _DelfFeatures = _messages()


def read_datum(path: str | os.PathLike) -> np.ndarray:
  """Reads an array that the released DELF wrote, such as pca/mean.datum.

  Args:
    path: a `.datum` file.

  Returns:
    float32 or uint32, of the shape that the file gives.

  Raises:
    InputError: if the file cannot be read or is no such array.
  """
  try:
    datum = _parse(path, _Datum)
    if not datum.HasField("shape") and not datum.WhichOneof("kind_oneof"):
      raise ValueError("it holds no array")
    return _to_array(datum)
  except (DecodeError, ValueError) as error:
    raise _damaged(path, "array (.datum)", error) from error


def write_datum(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes an array of numbers as float32 for the released DELF.

  Args:
    path: a `.datum` file; replaced as a whole.
    array: of any shape.

  Raises:
    InputError: if the file cannot be written.
  """
  datum = _Datum()
  _fill(datum, array)
  _write(path, datum.SerializeToString())


def read_delf(path: str | os.PathLike) -> LocalFeatures:
  """Reads the features of one photograph as the released DELF writes them.

  Args:
    path: a `.delf` file.

  Returns:
    NumPy features in the file's order, all valid: its strength as the score;
    orientations are left out. The descriptors of a file without features are
    [0, 0].

  Raises:
    InputError: if the file cannot be read or holds no such features.
  """
  try:
    message = _parse(path, _DelfFeatures)
    if not message.feature and message.ByteSize():
      raise ValueError("it holds something else")
    return _features(
      locations=[(feature.y, feature.x) for feature in message.feature],
      scales=[feature.scale for feature in message.feature],
      scores=[feature.strength for feature in message.feature],
      descriptors=[_to_array(feature.descriptor) for feature in message.feature]
      or np.zeros((0, 0)),
    )
  except (DecodeError, ValueError) as error:
    raise _damaged(path, "features (.delf)", error) from error


def write_delf(path: str | os.PathLike, features: LocalFeatures) -> None:
  """Writes the features of one photograph for the released DELF's tools.

  Args:
    path: a `.delf` file; replaced as a whole.
    features: of one photograph, padded or not. The orientation, which they
      do not have, is written as 0, as the released extractor does.

  Raises:
    InputError: if the file cannot be written.
  """
  features = compact(features)
  message = _DelfFeatures()
  for (y, x), scale, score, descriptor in zip(
    features.locations.tolist(),
    features.scales.tolist(),
    features.scores.tolist(),
    features.descriptors,
    strict=True,
  ):
    feature = message.feature.add(
      x=x, y=y, scale=scale, orientation=0.0, strength=score
    )
    _fill(feature.descriptor, descriptor)
  _write(path, message.SerializeToString())


def _parse(path: str | os.PathLike, kind: type[Message]) -> Message:
  """Reads a whole message; DecodeError or ValueError if it is none."""
  name = os.fspath(path)
  try:
    with open(path, "rb", opener=_without_waiting) as file:
      status = os.fstat(file.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name!r} is no regular file; give a copy of it")
      if status.st_size > MOST_BYTES:
        raise ValueError(f"{status.st_size:,} bytes are too many")
      data = file.read(MOST_BYTES + 1)
  except OSError as error:
    raise InputError(f"cannot read {name!r}: {error.strerror}") from error
  return kind.FromString(data)


def _without_waiting(path: str, flags: int) -> int:
  """Opens a file; of a pipe, without waiting for its writer."""
  return os.open(path, flags | os.O_NONBLOCK)


def _damaged(path: str | os.PathLike, what: str, error: Exception):
  reason = " ".join(str(error).split())[:100] or type(error).__name__
  return InputError(
    f"{os.fspath(path)!r} holds no whole {what} of DELF ({reason}); copy or "
    "download it again"
  )


def _to_array(datum: Message) -> np.ndarray:
  """Returns what a DatumProto holds; ValueError if its shape does not fit."""
  kind = datum.WhichOneof("kind_oneof") or "float_list"
  values = getattr(datum, kind).value
  shape = tuple(datum.shape.dim)
  if min(shape, default=0) < 0 or math.prod(shape) != len(values):
    raise ValueError(f"{len(values)} numbers for the shape {shape}")
  dtype = np.float32 if kind == "float_list" else np.uint32
  # Not np.array, which would make a list of Python's numbers first.
  return np.fromiter(values, dtype, len(values)).reshape(shape)


def _fill(datum: Message, array: np.ndarray) -> None:
  array = np.asarray(array, np.float32)
  # What is empty is written as such, and not left out.
  datum.shape.SetInParent()
  datum.shape.dim.extend(array.shape)
  datum.float_list.SetInParent()
  datum.float_list.value.extend(array.ravel().tolist())


def _features(
  *, locations: Any, scales: Any, scores: Any, descriptors: Any
) -> LocalFeatures:
  """Checks features that were read; ValueError says what is wrong."""
  if len({np.shape(descriptor) for descriptor in descriptors}) > 1:
    raise ValueError("the descriptors have different lengths")
  with np.errstate(over="ignore"):  # float64 that becomes infinite
    arrays = {
      "locations": np.asarray(locations, np.float32).reshape(-1, 2),
      "scales": np.asarray(scales, np.float32),
      "scores": np.asarray(scores, np.float32),
      "descriptors": np.asarray(descriptors, np.float32),
    }
  n = len(arrays["locations"])
  if arrays["descriptors"].ndim != 2 or n > arrays["descriptors"].size:
    raise ValueError("the descriptors are no vectors")
  if {len(values) for values in arrays.values()} != {n}:
    raise ValueError("other numbers of scores or scales than of features")
  for name, values in arrays.items():
    if not np.isfinite(values).all():
      raise ValueError(f"{name} that are not finite")
  return LocalFeatures(**arrays, mask=np.ones(n, bool))


def _write(path: str | os.PathLike, data: bytes) -> None:
  with _replacing(path) as unfinished, open(unfinished, "wb") as file:
    file.write(data)


@contextlib.contextmanager
def _replacing(path: str | os.PathLike) -> Iterator[str]:
  """Gives a temporary name beside `path`, and renames it when all went well.

  Raises:
    InputError: if it cannot be written; the old file, if any, is still there.
  """
  path = os.fspath(path)
  unfinished = f"{path}.{os.getpid()}.tmp"
  try:
    yield unfinished
    os.replace(unfinished, path)
  except OSError as error:
    raise InputError(
      f"{path!r} cannot be written: {error.strerror or error}; make room or "
      "choose another place"
    ) from error
  finally:
    with contextlib.suppress(OSError):
      os.unlink(unfinished)


class HlocFile(Mapping):
  """The photographs of hloc's feature file, each read when it is asked for.

  A mapping from names to `PhotographFeatures`, and a context manager that
  closes the file; `read_hloc` makes it. Names hold "/" between folders.
  Looking up a name raises InputError if that photograph's features are damaged
  or incomplete; the others can still be read.
  """

  def __init__(self, path: str, file: Any, names: tuple[str, ...]) -> None:
    """Takes over an open `h5py.File`."""
    self._path = path
    self._file = file
    self._names = names
    self._known = frozenset(names)

  def __getitem__(self, name: str) -> PhotographFeatures:
    if name not in self._known:
      raise KeyError(name)
    try:
      return _read_group(self._file[name])
    except Exception as error:
      # h5py promises no exception types for damaged data.
      reason = " ".join(str(error).split())[:120] or type(error).__name__
      raise InputError(
        f"{self._path!r}: the features of {name!r} cannot be used ({reason}); "
        "extract them again"
      ) from error

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)

  def __contains__(self, name: object) -> bool:
    return name in self._known

  def __enter__(self) -> "HlocFile":
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()


def read_hloc(path: str | os.PathLike) -> HlocFile:
  """Opens the local features that hloc (or `write_hloc`) wrote.

  A photograph's `keypoints` [n, 2] are (x, y), its `descriptors` [d, n], its
  `image_size` (width, height), of any type of number. Without `scores` the
  scores are 0, without `scales` the scales are 1; hloc's scales, where it has
  them, are in units of its own. Descriptors stay as they are, of unit length
  or not.

  Args:
    path: the HDF5 file.

  Raises:
    InputError: if it cannot be opened, is damaged, or holds no local features.
  """
  h5py = _h5py(path)
  name = os.fspath(path)
  file = None
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise OSError("no regular file")
    file = h5py.File(path, "r")
    names, others = _list(h5py, file)
  except Exception as error:
    # h5py promises no exception types for damaged data.
    if file is not None:
      file.close()
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    raise InputError(
      f"cannot read {name!r} as HDF5 ({reason}); copy or extract it again"
    ) from error
  if not names:
    file.close()
    found = f"; it has {', '.join(sorted(others)[:5])}" if others else ""
    raise InputError(
      f"{name!r} holds no local features (keypoints and descriptors){found}; "
      "give the file that hloc's extract_features wrote"
    )
  return HlocFile(name, file, tuple(sorted(names)))


def write_hloc(
  path: str | os.PathLike,
  items: Iterable[tuple[str, PhotographFeatures]],
  *,
  dtype: str = "float32",
) -> None:
  """Writes local features as hloc reads them, one photograph at a time.

  Args:
    path: the HDF5 file; replaced as a whole.
    items: (name, features) of photographs; names with "/" between folders,
      and no surrogate escapes.
    dtype: of the descriptors, "float16" or "float32". Everything else is
      float32: hloc's default, float16, moves keypoints by a pixel from 2048
      pixels on.

  Raises:
    InputError: if the file cannot be written, or a name does not fit in.
  """
  h5py = _h5py(path)
  with _replacing(path) as unfinished, _Output(unfinished, "w+") as output:
    with h5py.File(output, "w") as file:
      for name, photograph in items:
        _write_group(_new_group(file, name), photograph, dtype)
        output.check()
    output.check()


def _write_group(
  group: Any, photograph: PhotographFeatures, dtype: str
) -> None:
  features = compact(photograph.features)
  data = {
    "keypoints": features.locations[:, ::-1].astype(np.float32),
    "descriptors": features.descriptors.T.astype(dtype),
    "scores": features.scores.astype(np.float32),
    "scales": features.scales.astype(np.float32),
    "image_size": np.array([photograph.width, photograph.height], np.int64),
  }
  for key, values in data.items():
    group.create_dataset(key, data=values)


class _Output(io.FileIO):
  """A file that never tells HDF5 of an error.

  HDF5 1.14 crashes the process when it cannot write, on a full disk. So the
  error is kept until `check` is called, and what HDF5 writes until then is
  lost.
  """

  _error = None

  def check(self) -> None:
    """Raises the first error there was, if any."""
    if self._error is not None:
      raise self._error

  def write(self, data: memoryview) -> int:
    rest = memoryview(data)
    try:
      while len(rest) and self._error is None:
        rest = rest[super().write(rest) :]
    except OSError as error:
      self._error = error
    return len(data)

  def truncate(self, size: int | None = None) -> int:
    try:
      if self._error is None:
        return super().truncate(size)
    except OSError as error:
      self._error = error
    return size or 0


def _h5py(path: str | os.PathLike) -> Any:
  try:
    import h5py
  except ImportError as error:
    raise InputError(
      f"{os.fspath(path)!r}: HDF5 needs h5py: pip install 'delf_jax[convert]'"
    ) from error
  return h5py


def is_relative_name(name: str) -> bool:
  """Says whether a photograph's name stays below where it is put."""
  parts = name.split("/")
  return "\0" not in name and not {"", ".", ".."}.intersection(parts)


def _new_group(file: Any, name: str) -> Any:
  """Makes the group of a photograph; InputError if its name is no good."""
  group = None
  if is_relative_name(name):
    # A part of the name is another's dataset; or it is no text.
    with contextlib.suppress(TypeError, ValueError):
      group = file.require_group(name)
  if group is None or "keypoints" in group:
    raise InputError(
      f"a photograph cannot be called {name!r} in a file of hloc, beside the "
      "others; rename it and extract again"
    )
  return group


def _list(h5py: Any, file: Any) -> tuple[list[str], set[str]]:
  """Finds the groups that are photographs.

  Returns:
    their names, and the names of the datasets that are in no such group.
  """
  names, others, seen = [], set(), set()

  def visit(group, path):
    # A link may lead back to a group above.
    identity = h5py.h5o.get_info(group.id).addr
    if identity in seen or len(path) > MOST_GROUPS_DEEP:
      return
    seen.add(identity)
    datasets = set()
    for key in group:
      # h5py gives names that are no text as bytes, and cannot look them up.
      if isinstance(key, bytes) or not isinstance(
        group.get(key, getlink=True), h5py.HardLink
      ):
        continue
      if group.get(key, getclass=True) is h5py.Group:
        visit(group[key], (*path, key))
      else:
        datasets.add(key)
    if path and "keypoints" in datasets and "descriptors" in datasets:
      names.append("/".join(path))
    else:
      others.update(datasets)

  visit(file, ())
  return names, others


def _read_group(group: Any) -> PhotographFeatures:
  """Reads one photograph; any exception if it is not as it should be."""
  keypoints = _read_dataset(group, "keypoints")
  if keypoints.ndim != 2 or keypoints.shape[1] != 2:
    raise ValueError(f"keypoints of the shape {keypoints.shape}, not [n, 2]")
  n = len(keypoints)
  descriptors = _read_dataset(group, "descriptors")
  if descriptors.ndim != 2 or descriptors.shape[1] != n:
    raise ValueError(
      f"descriptors of the shape {descriptors.shape}, not [d, {n}]"
    )
  scores = next((key for key in _SCORES if key in group), None)
  size = _read_dataset(group, "image_size")
  if size.shape != (2,) or not (size >= 1).all() or not (size < 2**31).all():
    raise ValueError(f"an image_size of {size.tolist()}")
  return PhotographFeatures(
    features=_features(
      locations=keypoints[:, ::-1],
      scales=_read_dataset(group, "scales") if "scales" in group else [1.0] * n,
      scores=_read_dataset(group, scores) if scores else [0.0] * n,
      descriptors=np.ascontiguousarray(descriptors.T),
    ),
    height=int(size[1]),
    width=int(size[0]),
  )


def _read_dataset(group: Any, name: str) -> np.ndarray:
  """Reads numbers that lie in this file and are as many as it can hold."""
  import h5py

  if not isinstance(group.get(name, getlink=True), h5py.HardLink):
    raise ValueError(f"its {name} are missing or elsewhere")
  data = group[name]
  if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "fiu":
    raise ValueError(f"its {name} are no numbers")
  if data.external or data.is_virtual:
    raise ValueError(f"its {name} are in another file")
  # A chunk is unpacked as a whole.
  chunk = math.prod(data.chunks or ()) * data.dtype.itemsize
  stored = min(data.id.get_storage_size(), data.file.id.get_filesize())
  if data.nbytes and max(data.nbytes, chunk) > MOST_COMPRESSION * stored:
    raise ValueError(f"its {name} claim {data.nbytes:,} bytes and are not here")
  return data[()]
