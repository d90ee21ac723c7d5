"""TensorFlow's checkpoints, read and written without TensorFlow.

Format V2 ("tensor bundle") is `PREFIX.index`, a sorted table of what is where,
and `PREFIX.data-00000-of-00001`, the tensors' bytes. Format V1 is one sorted
table with the tensors inside messages. Both are as TensorFlow 2.21 writes them
(tensor_bundle.proto, saved_tensor_slice.proto, tensor.proto); all checksums are
verified, and no claim of a file makes more memory than the file itself has.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from delf_jax.conversion import protobuf_wire as wire
from delf_jax.conversion.crc32c import crc32c, masked
from delf_jax.conversion.sorted_table import (
  is_table,
  read_table,
  write_table,
)
from delf_jax.errors import InputError

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"

# DataType of types.proto.
_STRING, _BFLOAT16, _HALF, _BOOL = 7, 14, 19, 10
_DTYPES = {
  1: "<f4",
  2: "<f8",
  3: "<i4",
  4: "|u1",
  5: "<i2",
  6: "|i1",
  8: "<c8",
  9: "<i8",
  _BOOL: "|b1",
  _BFLOAT16: "<u2",  # their bits
  17: "<u2",
  18: "<c16",
  _HALF: "<f2",
  22: "<u4",
  23: "<u8",
}
_NUMBERS = {
  np.dtype(letters): number
  for number, letters in _DTYPES.items()
  if number != _BFLOAT16
}
# Fields of TensorProto by DataType: numbers as they lie in the file.
_RAW_FIELDS = {1: 5, 2: 6, 8: 9, 18: 12}
_VARINT_FIELDS = {
  3: 7,
  4: 7,
  5: 7,
  6: 7,
  9: 10,
  _BOOL: 11,
  17: 7,
  _HALF: 13,
  22: 16,
  23: 17,
}
# What Keras' objects know their children's variables by, beside attributes.
_LISTS = re.compile(
  r"_?((non_)?trainable_|all_)?variables(_indices)?|keras_api|regularization_losses"
)
_MOST_OBJECTS_DEEP = 64
_MOST_PATH_CHARACTERS = 2**26  # of all variables
_HEADER = wire.field(1, 1) + wire.field(3, wire.field(1, 1))

Slice = tuple[tuple[int, int], ...]  # start and length, -1 for all, a dimension


def _any(name: str) -> bool:
  del name
  return True


def read_bundle(
  prefix: str | os.PathLike, *, select: Callable[[str], bool] = _any
) -> dict[str, np.ndarray]:
  """Reads the tensors of a checkpoint of format V2.

  Args:
    prefix: path without `.index` and `.data-*`.
    select: says whether a tensor of this name is wanted; others are not read.

  Returns:
    name -> array, sorted by name. Half and bfloat16 come as float32;
    partitioned variables are put together; strings are left out.

  Raises:
    InputError: if a file is missing or damaged.
  """
  with _reading(f"{os.fspath(prefix)}.index"):
    bundle = _Bundle(prefix)
  tensors = {}
  for name, entry in bundle.tensors.items():
    if entry.dtype != _STRING and select(name):
      with _reading(prefix):
        tensors[name] = bundle.read(name)
  return tensors


class Variable(NamedTuple):
  """What a checkpoint of objects says of one of its tensors.

  Attributes:
    path: attributes from the saved object to the variable, with slashes
      between; None if only lists of variables lead to it.
    full_name: of the variable when it was saved.
  """

  path: str | None
  full_name: str


def read_object_graph(prefix: str | os.PathLike) -> dict[str, Variable]:
  """Reads how a checkpoint of objects names its tensors.

  A checkpoint key is the shortest way to a variable, and in SavedModels of
  Keras 2 and beside Keras 3's optimizers that is a list (`variables/7`). The
  way that people know is found in the graph of the objects.

  Returns:
    checkpoint key -> variable; empty if the checkpoint holds no objects.

  Raises:
    InputError: if a file is missing or damaged.
  """
  with _reading(f"{os.fspath(prefix)}.index"):
    bundle = _Bundle(prefix)
  if OBJECT_GRAPH not in bundle.tensors:
    return {}
  with _reading(prefix):
    (graph,) = bundle.read_strings(OBJECT_GRAPH)
    return _object_graph(graph)


def _object_graph(message: memoryview) -> dict[str, Variable]:
  """Reads a TrackableObjectGraph, breadth first from its first node."""
  nodes = list(_messages(message, 1))
  came_from = {0: (0, "")}
  level = [0] if nodes else []
  for _ in range(_MOST_OBJECTS_DEEP):
    further = []
    for node in level:
      for child in _messages(nodes[node], 1):
        number = _numbers(child).get(1, 0)
        name = _texts(child).get(2, "")
        if not 0 <= number < len(nodes):
          raise ValueError("its objects have a child that is not there")
        if number not in came_from and not _LISTS.fullmatch(name):
          came_from[number] = node, name
          further.append(number)
    level = further

  found, budget = {}, _MOST_PATH_CHARACTERS
  for number, node in enumerate(nodes):
    for attribute in _messages(node, 2):
      texts = _texts(attribute)
      if texts.get(1) != "VARIABLE_VALUE":
        continue
      path, at = [], number
      while at and at in came_from:
        at, name = came_from[at]
        path.append(name)
      joined = "/".join(reversed(path)) if number in came_from else None
      budget -= len(joined or "")
      if budget < 0:
        raise ValueError("its objects have too long names")
      found[texts.get(3, "")] = Variable(joined, texts.get(2, ""))
  return found


def is_v1(path: str | os.PathLike) -> bool:
  """Says whether a file looks like a checkpoint of format V1."""
  try:
    data = _map(path)
    return is_table(data) and not os.fspath(path).endswith(".index")
  except (OSError, ValueError):  # a name that no file can have
    return False


def read_v1(
  path: str | os.PathLike, *, select: Callable[[str], bool] = _any
) -> dict[str, np.ndarray]:
  """Reads the tensors of a checkpoint of format V1; see `read_bundle`."""
  slices, shapes = {}, {}
  with _reading(path):
    for key, value in read_table(_map(path)):
      if not key:
        for metadata in _messages(value, 1):
          for tensor in _messages(metadata, 1):
            name, shape, dtype = _tensor_metadata(tensor)
            if dtype != _STRING and select(name):
              shapes[name] = shape, dtype
        continue
      for saved in _messages(value, 2):
        name, part, data = _saved_slice(saved)
        slices.setdefault(name, []).append((part, data))
    tensors = {}
    for name in sorted(shapes):
      shape, dtype = shapes[name]
      parts = [
        (part, _proto_values(data, dtype))
        for part, data in slices.get(name, [])
      ]
      tensors[name] = _assemble(name, shape, parts)
  return tensors


def write_bundle(
  prefix: str | os.PathLike, tensors: Mapping[str, np.ndarray | bytes]
) -> None:
  """Writes a checkpoint of format V2, the same bytes for the same tensors.

  TensorFlow reads it by name (`tf.train.load_checkpoint`, a TF1 `Saver`).

  Args:
    prefix: path without `.index`; older files of this name are replaced.
    tensors: name -> array, or bytes for a scalar string.

  Raises:
    InputError: if it cannot be written.
    ValueError: if TensorFlow has no such dtype.
  """
  prefix = os.fspath(prefix)
  shard = f"{prefix}.data-00000-of-00001"
  entries, offset = {b"": _HEADER}, 0
  targets = (shard, f"{prefix}.index")
  temporary = [f"{target}.{os.getpid()}.tmp" for target in targets]
  try:
    with open(temporary[0], "wb") as file:
      for name in sorted(tensors, key=str.encode):
        number, shape, data, crc = _encode(name, tensors[name])
        entry = wire.field(1, number) + wire.field(2, _shape_proto(shape))
        if offset:
          entry += wire.field(4, offset)
        if data.nbytes:
          entry += wire.field(5, data.nbytes)
        entries[name.encode()] = entry + wire.fixed32_field(6, masked(crc))
        file.write(data)
        offset += data.nbytes
      file.flush()
      os.fsync(file.fileno())
    with open(temporary[1], "wb") as file:
      file.write(write_table(entries))
      file.flush()
      os.fsync(file.fileno())
    for source, target in zip(temporary, targets, strict=True):
      os.replace(source, target)
  except OSError as error:
    raise InputError(
      f"cannot write {prefix!r}: {error.strerror or error}; make room or "
      "choose another place"
    ) from error
  finally:
    for path in temporary:
      with contextlib.suppress(OSError):
        os.unlink(path)


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
  """Turns what goes wrong with a file into one line."""
  name = os.fspath(path)
  try:
    yield
  except OSError as error:
    raise InputError(
      f"cannot read {error.filename or name!r}: {error.strerror or error}; a "
      "checkpoint is PREFIX.index and every PREFIX.data-* beside it"
    ) from error
  except ValueError as error:
    raise InputError(
      f"{name!r} is not a whole TensorFlow checkpoint "
      f"({' '.join(str(error).split())[:160]}); copy or download it again"
    ) from error


def _map(path: str | os.PathLike) -> memoryview:
  """Maps a file; nothing of it is read yet."""
  if not os.path.getsize(path):
    return memoryview(b"")
  return memoryview(np.memmap(path, np.uint8, "r"))


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
  """Yields the messages in the fields of one number."""
  for found, kind, value in wire.fields(message):
    if (found, kind) == (number, wire.BYTES):
      yield value


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A BundleEntryProto."""

  dtype: int
  shape: tuple[int, ...]
  shard: int
  offset: int
  size: int
  crc: int
  slices: tuple[Slice, ...]


class _Bundle:
  """The index of a checkpoint of format V2, and its mapped shards."""

  def __init__(self, prefix: str | os.PathLike) -> None:
    self._prefix = os.fspath(prefix)
    entries, header = {}, None
    for key, value in read_table(_map(f"{self._prefix}.index")):
      if key:
        entries[key] = _entry(value)
      else:
        header = value
    if header is None:
      raise ValueError("its index has no header")
    numbers = _numbers(header)
    if numbers.get(2, 0):
      raise ValueError("it was written by a big-endian computer")
    self._num_shards = numbers.get(1, 0)
    self._shards = {}
    self._entries = entries
    self.tensors = {
      str(key, "utf-8"): entry
      for key, entry in entries.items()
      if not key.startswith(b"\0")  # a slice's
    }
    claimed = {}
    for entry in entries.values():
      claimed[entry.shard] = claimed.get(entry.shard, 0) + entry.size
    for shard, size in claimed.items():
      # Tensors that share bytes would multiply what a small file can fill.
      if size > len(self._shard(shard)):
        raise ValueError(
          f"its tensors have {size} bytes and {self._shard_name(shard)!r} has "
          f"{len(self._shard(shard))}"
        )

  def _shard_name(self, shard: int) -> str:
    return f"{self._prefix}.data-{shard:05d}-of-{self._num_shards:05d}"

  def _shard(self, shard: int) -> memoryview:
    if shard not in self._shards:
      if not 0 <= shard < self._num_shards:
        raise ValueError(f"shard {shard} of {self._num_shards}")
      self._shards[shard] = _map(self._shard_name(shard))
    return self._shards[shard]

  def _bytes(self, entry: _Entry) -> memoryview:
    data = self._shard(entry.shard)
    if not 0 <= entry.offset <= len(data) - entry.size:
      raise ValueError("a tensor lies outside of its file")
    return data[entry.offset : entry.offset + entry.size]

  def read(self, name: str) -> np.ndarray:
    """Returns a tensor of numbers."""
    entry = self.tensors[name]
    if not entry.slices:
      return self._array(name, entry)
    parts = []
    for part in entry.slices:
      stored = self._entries.get(_slice_key(name, part))
      if stored is None:
        raise ValueError(f"a part of {name!r} is missing")
      parts.append((part, self._array(name, stored)))
    return _assemble(name, entry.shape, parts)

  def _array(self, name: str, entry: _Entry) -> np.ndarray:
    dtype = _dtype(name, entry.dtype)
    if math.prod(entry.shape) * dtype.itemsize != entry.size:
      raise ValueError(f"{name!r} has another size than its shape")
    data = self._bytes(entry)
    if masked(crc32c(data)) != entry.crc:
      raise ValueError(f"the checksum of {name!r} is wrong")
    return _native(data, entry.dtype).reshape(entry.shape)

  def read_strings(self, name: str) -> list[memoryview]:
    """Returns the elements of a tensor of strings, in row-major order."""
    entry = self.tensors[name]
    data = self._bytes(entry)
    # Every length, a checksum of the lengths, the strings.
    lengths, at = [], 0
    count = math.prod(entry.shape)
    if entry.dtype != _STRING or count > len(data):
      raise ValueError(f"{name!r} is no tensor of strings")
    for _ in range(count):
      length, at = wire.read_varint(data, at)
      lengths.append(length)
    crc = crc32c(_length_bytes(lengths))
    stored = bytes(data[at : at + 4])
    at += 4
    if stored != masked(crc).to_bytes(4, "little"):
      raise ValueError(f"the checksum of {name!r} is wrong")
    crc = crc32c(data[at:], crc32c(stored, crc))
    if masked(crc) != entry.crc or sum(lengths) != len(data) - at:
      raise ValueError(f"the checksum of {name!r} is wrong")
    strings = []
    for length in lengths:
      strings.append(data[at : at + length])
      at += length
    return strings


def _texts(message: memoryview) -> dict[int, str]:
  """Returns the texts among a message's fields."""
  return {
    number: str(value, "utf-8")
    for number, kind, value in wire.fields(message)
    if kind == wire.BYTES
  }


def _numbers(message: memoryview) -> dict[int, int]:
  """Returns the numbers among a message's fields."""
  return {
    number: wire.signed(value)
    for number, kind, value in wire.fields(message)
    if kind == wire.VARINT
  }


def _entry(message: memoryview) -> _Entry:
  numbers, shape, crc, slices = {}, (), 0, []
  for number, kind, value in wire.fields(message):
    if kind == wire.VARINT:
      numbers[number] = wire.signed(value)
    elif (number, kind) == (2, wire.BYTES):
      shape = _shape(value)
    elif (number, kind) == (6, wire.FIXED32):
      crc = int.from_bytes(value, "little")
    elif (number, kind) == (7, wire.BYTES):
      slices.append(_slice(value))
  size = numbers.get(5, 0)
  if size < 0:
    raise ValueError("a tensor of less than no bytes")
  return _Entry(
    dtype=numbers.get(1, 0),
    shape=shape,
    shard=numbers.get(3, 0),
    offset=numbers.get(4, 0),
    size=size,
    crc=crc,
    slices=tuple(slices),
  )


def _shape(message: memoryview) -> tuple[int, ...]:
  """Reads a TensorShapeProto."""
  shape = tuple(_numbers(dim).get(1, 0) for dim in _messages(message, 2))
  if len(shape) > 32 or min(shape, default=0) < 0:
    raise ValueError(f"a tensor of the shape {shape[:33]}")
  return shape


def _shape_proto(shape: Sequence[int]) -> bytes:
  return b"".join(
    wire.field(2, wire.field(1, int(size)) if size else b"") for size in shape
  )


def _slice(message: memoryview) -> Slice:
  """Reads a TensorSliceProto; an extent without a length is all."""
  return tuple(
    (numbers.get(1, 0), numbers.get(2, -1))
    for numbers in map(_numbers, _messages(message, 1))
  )


def _slice_key(name: str, part: Slice) -> bytes:
  """Encodes where the index keeps one part of a partitioned variable.

  The encoding sorts as what it encodes: a zero, the name with its zeros and
  0xff escaped, how many dimensions, and the start and length of each.
  """
  escaped = name.encode().replace(b"\0", b"\0\xff").replace(b"\xff", b"\xff\0")
  if b"\0" in name.encode():
    raise ValueError(f"the name {name!r}")
  key = b"\0" + escaped + b"\0\1" + bytes([1, len(part)])
  return key + b"".join(
    _ordered(number) for extent in part for number in extent
  )


def _ordered(number: int) -> bytes:
  """Encodes an int64: as many leading ones as bytes, the sign, the number."""
  bits = (~number if number < 0 else number).bit_length() + 1  # with the sign
  size = max(1, -(-bits // 7))
  if size > 8:
    raise ValueError("a part of a variable starts too far away")
  value = number & (1 << 8 * size) - 1
  ones = (1 << size) - 1 << 7 * size
  return (value ^ ones).to_bytes(size, "big")


def _dtype(name: str, number: int) -> np.dtype:
  if number not in _DTYPES:
    raise ValueError(f"{name!r} has TensorFlow's type {number}, not a number")
  return np.dtype(_DTYPES[number])


def _native(data: memoryview | np.ndarray, number: int) -> np.ndarray:
  """Returns a copy of a tensor's elements in a type that NumPy computes in."""
  if number == _BOOL:
    return np.frombuffer(data, np.uint8) != 0
  values = np.frombuffer(data, _DTYPES[number])
  if number == _BFLOAT16:
    return (values.astype(np.uint32) << 16).view(np.float32)
  if number == _HALF:
    return values.astype(np.float32)
  return values.astype(values.dtype.newbyteorder("="))


def _assemble(
  name: str, shape: tuple[int, ...], parts: list[tuple[Slice, np.ndarray]]
) -> np.ndarray:
  """Puts a tensor together from its parts, which must cover it once.

  Args:
    name: for messages.
    shape: of the whole.
    parts: where each lies, and its elements in row-major order.
  """
  if math.prod(shape) != sum(values.size for _, values in parts) or not parts:
    raise ValueError(f"the parts of {name!r} do not make its shape {shape}")
  whole = np.zeros(shape, parts[0][1].dtype)
  covered = np.zeros(shape, bool)
  for part, values in parts:
    if part and len(part) != len(shape):
      raise ValueError(f"a part of {name!r} has other dimensions")
    place = tuple(
      slice(start, size if length < 0 else start + length)
      for (start, length), size in zip(part, shape, strict=False)
    )
    if any(
      place.start < 0 or place.stop > size
      for place, size in zip(place, shape, strict=False)
    ):
      raise ValueError(f"a part of {name!r} lies outside of it")
    whole[place] = values.reshape(whole[place].shape)
    covered[place] = True
  if not covered.all():
    raise ValueError(f"the parts of {name!r} overlap")
  return whole


def _tensor_metadata(
  message: memoryview,
) -> tuple[str, tuple[int, ...], int]:
  """Reads a SavedSliceMeta: name, shape, type."""
  name, shape, dtype = "", (), 0
  for number, kind, value in wire.fields(message):
    if (number, kind) == (1, wire.BYTES):
      name = str(value, "utf-8")
    elif (number, kind) == (2, wire.BYTES):
      shape = _shape(value)
    elif (number, kind) == (3, wire.VARINT):
      dtype = value
  return name, shape, dtype


def _saved_slice(message: memoryview) -> tuple[str, Slice, memoryview]:
  """Reads a SavedSlice: name, place, TensorProto."""
  name, part, data = "", (), memoryview(b"")
  for number, kind, value in wire.fields(message):
    if (number, kind) == (1, wire.BYTES):
      name = str(value, "utf-8")
    elif (number, kind) == (2, wire.BYTES):
      part = _slice(value)
    elif (number, kind) == (3, wire.BYTES):
      data = value
  return name, part, data


def _proto_values(message: memoryview, dtype: int) -> np.ndarray:
  """Reads the elements of a TensorProto, in row-major order."""
  letters = _dtype("a tensor", dtype)
  raw, numbers = [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
  for number, kind, value in wire.fields(message):
    if number == _RAW_FIELDS.get(dtype) and kind != wire.VARINT:
      raw.append(np.frombuffer(value, np.uint8))  # packed or one by one
    elif number == _VARINT_FIELDS.get(dtype) and kind == wire.BYTES:
      numbers.append(wire.packed_varints(value))
    elif number == _VARINT_FIELDS.get(dtype) and kind == wire.VARINT:
      numbers.append(np.array([wire.signed(value)]))
  if dtype in _RAW_FIELDS:
    return _native(np.concatenate(raw), dtype)
  values = np.concatenate(numbers)
  if dtype == _HALF:
    values = values.astype(np.uint16)  # their bits
  else:
    values = values.astype(letters)
  return _native(values, dtype)


def _encode(
  name: str, value: np.ndarray | bytes
) -> tuple[int, tuple[int, ...], np.ndarray, int]:
  """Returns a tensor's type, shape, bytes and CRC."""
  if isinstance(value, bytes):
    lengths = crc32c(_length_bytes([len(value)]))
    stored = masked(lengths).to_bytes(4, "little")
    data = wire.varint(len(value)) + stored + value
    crc = crc32c(value, crc32c(stored, lengths))
    return _STRING, (), np.frombuffer(data, np.uint8), crc
  array = np.asarray(value)
  little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
  if little.dtype not in _NUMBERS:
    raise ValueError(f"{name!r}: TensorFlow has no type {array.dtype}")
  data = little.reshape(-1).view(np.uint8)
  return _NUMBERS[little.dtype], array.shape, data, crc32c(data)


def _length_bytes(lengths: Sequence[int]) -> bytes:
  """Returns string lengths as their checksum sees them."""
  return b"".join(
    length.to_bytes(4 if length < 2**32 else 8, "little") for length in lengths
  )
