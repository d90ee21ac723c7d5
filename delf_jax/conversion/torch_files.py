"""Weights of PyTorch, read and written without PyTorch.

Three formats, told apart by their first bytes: safetensors; the zip archive of
`torch.save` since 1.6, with a pickle `data.pkl` and a member `data/KEY` for
each storage; and the stream that `torch.save` wrote before, with five pickles
and then the storages. A pickle is a program: it runs in `data.safe_pickle`,
where it may build tensors and plain values only.
"""

import io
import json
import math
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from delf_jax.conversion import first_bytes
from delf_jax.data import safe_pickle
from delf_jax.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

# PyTorch's names of types, NumPy's letters, and the names of typed storages.
_TYPES = {
  "float64": ("<f8", "DoubleStorage"),
  "float32": ("<f4", "FloatStorage"),
  "float16": ("<f2", "HalfStorage"),
  "bfloat16": ("<u2", "BFloat16Storage"),
  "complex128": ("<c16", "ComplexDoubleStorage"),
  "complex64": ("<c8", "ComplexFloatStorage"),
  "int64": ("<i8", "LongStorage"),
  "int32": ("<i4", "IntStorage"),
  "int16": ("<i2", "ShortStorage"),
  "int8": ("|i1", "CharStorage"),
  "uint8": ("|u1", "ByteStorage"),
  "bool": ("|b1", "BoolStorage"),
  "uint64": ("<u8", None),
  "uint32": ("<u4", None),
  "uint16": ("<u2", None),
}

# The types of safetensors, by PyTorch's names.
_SAFETENSORS = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U64": "uint64",
  "U32": "uint32",
  "U16": "uint16",
  "U8": "uint8",
  "BOOL": "bool",
}


def read_torch(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what torch.save or safetensors wrote.

  Args:
    path: the file, of any name.

  Returns:
    what was saved, mostly names and tensors, or dicts of these: dicts of any
    kind are dicts, tensors and parameters are NumPy arrays, data types and
    devices are their names ("float32", "cuda:0"), sizes are tuples. bfloat16
    becomes float32, which holds it exactly. The arrays are read-only, may
    share memory, and have the strides of the tensors.

  Raises:
    InputError: if the file cannot be read, is damaged or of another kind, or
      if its pickle asks for anything but tensors and plain values, such as
      the class of a whole model.
  """
  name = os.fspath(path)
  what = "PyTorch file"
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise InputError(f"cannot read {name!r}: it is not a file")
    with open(path, "rb") as file:
      start = file.read(first_bytes.LENGTH)
      file.seek(0)
      if start[:4] == b"PK\x03\x04":
        value = _read_zip(file, name)
      elif start[:1] == b"\x80":
        value = _read_stream(io.BytesIO(file.read()), name)
      elif start[5:9] == b"\0\0\0{":  # the length of a header in JSON
        what = "safetensors file"
        value = _read_safetensors(file.read(), name)
      else:
        raise InputError(f"{name!r} {first_bytes.advice(start)}")
  except InputError:
    raise
  except OSError as error:
    reason = error.strerror or error
    raise InputError(f"cannot read {name!r}: {reason}") from error
  except safe_pickle.NotPlainError as error:
    raise InputError(
      f"{name!r} asks for {error}, which is neither a tensor nor plain data; "
      "it was not run. If you trust the file, load it with PyTorch and save "
      "the model's state_dict()"
    ) from error
  except Exception as error:
    # pickle and zipfile promise no exception types for damaged data.
    raise InputError(
      f"{name!r} is not a whole {what} "
      f"({' '.join(str(error).split())[:100] or type(error).__name__}); copy "
      "or download it again"
    ) from error
  if not isinstance(value, dict):
    raise InputError(
      f"{name!r} holds a {type(value).__name__}, not tensors by name; save a "
      "state_dict()"
    )
  return value


def write_torch(
  path: str | os.PathLike, tensors: Mapping[str, np.ndarray]
) -> None:
  """Writes tensors as torch.save does; the same tensors give the same bytes.

  `torch.load` reads them, also with weights_only, as an OrderedDict.

  Args:
    path: of the file, replaced when the new one is whole.
    tensors: by name, of any shapes; floats, integers, bool and complex.

  Raises:
    InputError: if the file cannot be written.
    ValueError: if a tensor is of another type.
  """
  arrays = _little_endian(tensors)
  rows = []
  for key, (name, array) in enumerate(arrays.items()):
    storage = _type_of(name, array, storage=True)
    sizes = [max(n, 1) for n in array.shape]
    strides = tuple(math.prod(sizes[i + 1 :]) for i in range(array.ndim))
    rows.append(
      _pickled(name)
      + b"ctorch._utils\n_rebuild_tensor_v2\n(("
      + _pickled("storage")
      + f"ctorch\n{storage}\n".encode()
      + b"".join(map(_pickled, (str(key), "cpu", array.size)))
      + b"tQ"
      + b"".join(map(_pickled, (0, array.shape, strides, False)))
      + b"ccollections\nOrderedDict\n)RtR"
    )
  program = b"\x80\x02ccollections\nOrderedDict\n)R(" + b"".join(rows) + b"u."

  def write(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
      _add(archive, "data.pkl", program)
      _add(archive, "byteorder", b"little")
      for key, array in enumerate(arrays.values()):
        _add(archive, f"data/{key}", array.tobytes())
      _add(archive, "version", b"3\n")

  _replace(path, write)


def write_safetensors(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes tensors as safetensors, always the same bytes for the same tensors.

  The library's own writer puts the metadata in an order that changes.

  Args:
    path: of the file, replaced when the new one is whole.
    tensors: by name, of any shapes; floats, integers and bool.
    metadata: texts by name; none are written if it is empty.

  Raises:
    InputError: if the file cannot be written.
    ValueError: if a tensor is of another type.
  """
  types = {torch: name for name, torch in _SAFETENSORS.items()}
  # Large types first, as the format asks, so that all data are aligned.
  arrays = dict(
    sorted(
      _little_endian(tensors).items(), key=lambda x: (-x[1].itemsize, x[0])
    )
  )
  header = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
  end = 0
  for name, array in arrays.items():
    kind = types.get(_type_of(name, array))
    if kind is None or name == "__metadata__":
      raise ValueError(f"safetensors cannot hold {name!r}, of {array.dtype}")
    start, end = end, end + array.nbytes
    header[name] = {
      "dtype": kind,
      "shape": array.shape,
      "data_offsets": [start, end],
    }
  text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)

  def write(file: IO[bytes]) -> None:
    file.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
      file.write(array.tobytes())

  _replace(path, write)


class _Name:
  """Stands for a type or a device of PyTorch."""

  __slots__ = ("name",)

  def __init__(self, name: str) -> None:
    self.name = name

  def __setstate__(self, _: Any) -> None:
    raise safe_pickle.NotPlainError(f"a changed {self.name}")

  def plain(self) -> str:
    return self.name


class _Record:
  """The bytes of a storage, known once the pickle has been read."""

  def __init__(self, kind: str, count: int) -> None:
    """Promises `count` elements of a PyTorch type."""
    self.itemsize = np.dtype(_TYPES[kind][0]).itemsize
    self.size = count * self.itemsize
    self._data = None
    self._values = {}

  def fill(self, data: bytes | memoryview) -> None:
    if len(data) != self.size:
      raise ValueError(f"a storage has {len(data)} bytes, not {self.size}")
    self._data = data

  def values(self, kind: str) -> np.ndarray:
    """All its elements, as elements of a type; shared by who asks for it."""
    if self._data is None:
      raise ValueError("the data of a storage are not in the file")
    if kind not in self._values:
      self._values[kind] = _decode(self._data, kind)
    return self._values[kind]


class _Storage:
  """Stands for a storage, or a part of one."""

  def __init__(self, record: _Record, kind: str, start: int, count: int):
    if not 0 <= start <= start + count <= record.size // record.itemsize:
      raise ValueError("a part of a storage lies outside of it")
    self.record, self.kind, self.start, self.count = record, kind, start, count

  def __setstate__(self, _: Any) -> None:
    raise safe_pickle.NotPlainError("a changed storage")

  def plain(self) -> np.ndarray:
    values = self.record.values(self.kind)
    return values[self.start : self.start + self.count]


class _Tensor:
  """Stands for a tensor until the bytes of its storage are known."""

  def __init__(
    self,
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    kind: str,
  ) -> None:
    self._storage, self._kind = storage, kind
    self._offset, self._shape, self._strides = offset, shape, strides

  def __setstate__(self, _: Any) -> None:
    raise safe_pickle.NotPlainError("a changed tensor")

  def plain(self) -> np.ndarray:
    storage, shape, strides = self._storage, self._shape, self._strides
    if self._kind == storage.kind:
      values = storage.plain()
    else:  # an untyped storage
      values = storage.record.values(self._kind)
    numbers = (self._offset, *shape, *strides)
    if len(shape) != len(strides) or not all(
      type(n) is int and n >= 0 for n in numbers
    ):
      raise ValueError("a tensor whose shape and strides make no sense")
    if math.prod(shape) == 0:
      result = np.zeros(shape, values.dtype)
    else:
      last = self._offset + sum(
        (n - 1) * s for n, s in zip(shape, strides, strict=True)
      )
      # Strides of zero could make a huge tensor of one value.
      if last >= len(values) or math.prod(shape) > len(values):
        raise ValueError(
          f"a tensor of shape {shape} in a storage of {len(values)}"
        )
      result = np.lib.stride_tricks.as_strided(
        values[self._offset :],
        shape,
        [s * values.itemsize for s in strides],
        writeable=False,
      )
    result.flags.writeable = False
    return result


def _rebuild_tensor(
  storage: _Storage,
  offset: int,
  shape: tuple,
  strides: tuple,
  requires_grad: bool = False,
  hooks: Any = None,
  metadata: Any = None,
) -> _Tensor:
  if metadata:
    raise safe_pickle.NotPlainError("a negated or conjugate tensor")
  return _Tensor(storage, offset, shape, strides, storage.kind)


def _rebuild_tensor_v3(
  storage: _Storage,
  offset: int,
  shape: tuple,
  strides: tuple,
  requires_grad: bool,
  hooks: Any,
  kind: _Name,
  metadata: Any = None,
) -> _Tensor:
  if metadata:
    raise safe_pickle.NotPlainError("a negated or conjugate tensor")
  return _Tensor(storage, offset, shape, strides, kind.name)


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
  return tensor


def _rebuild_from_type(
  rebuild: Callable, _: Any, arguments: tuple, __: Any
) -> _Tensor:
  # The third is the tensor's class, one of those below; the last, attributes.
  return rebuild(*arguments)


def _device(*parts: str | int) -> str:
  if not all(type(part) in (str, int) for part in parts):
    raise ValueError("a device whose name makes no sense")
  return ":".join(map(str, parts))


_ALLOWED = {
  **{("torch", kind): _Name(kind) for kind in _TYPES},
  **{
    ("torch", storage): _Name(kind)
    for kind, (_, storage) in _TYPES.items()
    if storage
  },
  ("torch", "UntypedStorage"): _Name("uint8"),
  ("torch.storage", "UntypedStorage"): _Name("uint8"),
  ("torch", "Tensor"): _Name("Tensor"),
  ("torch.nn.parameter", "Parameter"): _Name("Parameter"),
  ("torch.nn.parameter", "Buffer"): _Name("Buffer"),
  ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
  ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
  ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
  ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
  ("torch", "Size"): tuple,
  ("torch", "device"): _device,
  # What DIR's checkpoints keep beside the weights.
  ("sklearn.decomposition.pca", "PCA"): safe_pickle.Attributes,
  ("sklearn.decomposition._pca", "PCA"): safe_pickle.Attributes,
  # What the states of optimisers and schedules are made of.
  ("collections", "Counter"): safe_pickle.Dict,
  ("collections", "defaultdict"): lambda _=None, *a: safe_pickle.Dict(*a),
  ("builtins", "dict"): safe_pickle.Dict,
  ("__builtin__", "dict"): safe_pickle.Dict,
}


class _Records(dict):
  """The storages that a pickle names, by key."""

  def stored(self, reference: tuple) -> _Storage:
    """Gives what a persistent id stands for."""
    what, name, key, _, count, *view = reference
    if what != "storage":
      raise safe_pickle.NotPlainError("a stored object")
    if type(key) is not str or type(count) is not int or count < 0:
      raise ValueError("a storage without key or size")
    record = self.setdefault(key, _Record(name.name, count))
    if view and view[0] is not None:  # a part of it, until PyTorch 0.3
      _, start, count = view[0]
      return _Storage(record, name.name, start, count)
    return _Storage(record, name.name, 0, count)


def _read_zip(file: IO[bytes], name: str) -> Any:
  """Reads the format of torch.save since PyTorch 1.6."""
  with zipfile.ZipFile(file) as archive:
    members = {member.filename: member for member in archive.infolist()}
    pickles = [m for m in members if m.split("/")[-1] == "data.pkl"]
    if not pickles:
      raise InputError(
        f"{name!r} is a zip archive without data.pkl; give the .pth file that "
        "torch.save wrote"
      )
    folder = min(pickles, key=len)[: -len("data.pkl")]
    if folder + "constants.pkl" in members:
      raise InputError(
        f"{name!r} is a TorchScript program; load it with PyTorch and save "
        "the model's state_dict()"
      )
    for member in members.values():
      if (
        member.compress_type != zipfile.ZIP_STORED
        or member.compress_size != member.file_size
      ):
        raise InputError(
          f"{name!r} has been packed again; give the file as torch.save "
          "wrote it"
        )
    # Stored members that do not lie over each other fill the file at most.
    if sum(m.file_size for m in members.values()) > os.stat(name).st_size:
      raise ValueError("its parts are larger than the whole")
    order = folder + "byteorder"
    if order in members and archive.read(order) != b"little":
      raise InputError(_BIG_ENDIAN.format(name))
    records = _Records()
    value = safe_pickle.unpickle(
      io.BytesIO(archive.read(folder + "data.pkl")),
      allowed=_ALLOWED,
      stored=records.stored,
    )
    for key, record in records.items():
      record.fill(archive.read(f"{folder}data/{key}"))
    return safe_pickle.plain(value)


_BIG_ENDIAN = (
  "{!r} was saved on a big-endian machine; load and save it again with "
  "PyTorch on another"
)


def _read_stream(stream: io.BytesIO, name: str) -> Any:
  """Reads the format of torch.save before PyTorch 1.6."""
  if safe_pickle.unpickle(stream) != _MAGIC:
    raise InputError(
      f"{name!r} is a pickle, but not one of PyTorch; give the file that "
      "torch.save wrote"
    )
  if safe_pickle.unpickle(stream) != _PROTOCOL:
    raise ValueError(f"a protocol other than {_PROTOCOL}")
  if safe_pickle.unpickle(stream)["little_endian"] is not True:
    raise InputError(_BIG_ENDIAN.format(name))
  records = _Records()
  value = safe_pickle.unpickle(stream, allowed=_ALLOWED, stored=records.stored)
  keys = safe_pickle.unpickle(stream)
  data = stream.getbuffer()
  start = stream.tell()
  for key in keys:
    if type(key) is not str or key not in records:
      raise ValueError("a storage that no tensor uses")
    record = records[key]
    (count,) = struct.unpack_from("<q", data, start)
    start += 8
    if count * record.itemsize != record.size:
      raise ValueError(f"a storage of {count} elements, not as announced")
    record.fill(data[start : start + record.size])
    start += record.size
  return safe_pickle.plain(value)


def _read_safetensors(data: bytes, name: str) -> dict[str, np.ndarray]:
  try:
    import safetensors
  except ImportError as error:
    raise InputError(
      f"reading {name!r} needs safetensors: pip install 'delf_jax[convert]'"
    ) from error
  tensors = {}
  for key, entry in safetensors.deserialize(data):
    if entry["dtype"] not in _SAFETENSORS:
      raise InputError(
        f"{name!r} holds {key[:100]!r} as {entry['dtype']}, which has no "
        "counterpart in NumPy; save it as float32"
      )
    values = _decode(entry["data"], _SAFETENSORS[entry["dtype"]])
    tensors[key] = values.reshape(entry["shape"])
    tensors[key].flags.writeable = False
  return tensors


def _decode(data: bytes | bytearray | memoryview, kind: str) -> np.ndarray:
  """The values of bytes, in NumPy's nearest type: exact for all of them."""
  if kind == "bool":  # NumPy trusts that every byte is 0 or 1
    return np.frombuffer(data, np.uint8) != 0
  values = np.frombuffer(data, _TYPES[kind][0])
  if kind == "bfloat16":  # the upper half of a float32
    return (values.astype(np.uint32) << 16).view(np.float32)
  return values


def _little_endian(
  tensors: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  arrays = {name: np.asarray(array) for name, array in tensors.items()}
  return {
    name: array.astype(array.dtype.newbyteorder("<"), copy=False)
    for name, array in arrays.items()
  }


def _type_of(name: str, array: np.ndarray, *, storage: bool = False) -> str:
  """PyTorch's name of an array's type, or of a storage of that type."""
  for kind, (letters, storage_name) in _TYPES.items():
    if array.dtype == np.dtype(letters) and kind != "bfloat16":
      if storage and storage_name is None:
        break
      return storage_name if storage else kind
  raise ValueError(f"{name!r} is of type {array.dtype}, which cannot be saved")


def _pickled(value: Any) -> bytes:
  """The steps that push a value: what lies between the start and the stop."""
  return pickle.dumps(value, protocol=2)[2:-1]


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
  # A ZipInfo made by hand carries no time and no owner.
  archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


def _replace(
  path: str | os.PathLike, write: Callable[[IO[bytes]], None]
) -> None:
  """Writes a file beside the path, and renames it when it is whole."""
  name = os.fspath(path)
  temporary = name + ".tmp"
  try:
    try:
      with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, name)
    except BaseException:
      if os.path.exists(temporary):
        os.unlink(temporary)
      raise
  except OSError as error:
    raise InputError(f"cannot write {name!r}: {error.strerror}") from error
