"""HDF5 files of weights, read in Python.

The HDF5 library trusts what a file says about itself: damaged files send it out
of its memory or round for ever. This reads the part of the format that h5py
writes unless it is told otherwise (superblock 0 or 1, groups as symbol tables,
data in one piece or in blocks, perhaps with gzip), checks every place and size
against the bytes that are there, and knows no way into another file. Names of
structures follow the HDF5 File Format Specification 3.0.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_NOWHERE = 2**64 - 1

# Arrays may be this many times as large in all as the file, for those that are
# compressed, and this many bytes larger.
_RATIO = 100
_ALLOWANCE = 64 << 20

_TEXT = 1024  # bytes of a text
_LEVELS = 32  # of a tree

# Kinds of header messages.
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL = 0x1, 0x2, 0x3, 0x6, 0x7
_LAYOUT, _FILTERS, _ATTRIBUTE = 0x8, 0xB, 0xC
_CONTINUATION, _SYMBOL_TABLE, _ATTRIBUTE_INFO = 0x10, 0x11, 0x15

_DEFLATE, _SHUFFLE = 1, 2

# Bits of exponent and fraction, and the exponent's bias, of NumPy's floats. The
# one without letters is bfloat16.
_FLOATS = {
  (5, 10, 15): "f2",
  (8, 23, 127): "f4",
  (11, 52, 1023): "f8",
  (8, 7, 127): None,
}


class UnreadError(Exception):
  """A file uses a part of HDF5 that is not read here."""


class File:
  """An HDF5 file in memory.

  What it gives raises ValueError or struct.error where the file is damaged.
  """

  def __init__(self, data: bytes) -> None:
    """Checks the start of a file.

    Args:
      data: the whole file.
    """
    if data[:8] != SIGNATURE:
      raise ValueError("no signature of HDF5")
    self.data = data
    self._heaps = {}
    self._left = _RATIO * len(data) + _ALLOWANCE
    self._steps = len(data)
    version, offsets, lengths = struct.unpack_from("<B4xBB", data, 8)
    if version > 1:
      raise UnreadError("the newer layout of HDF5")
    if (offsets, lengths) != (8, 8):
      raise UnreadError("addresses of another size than 8 bytes")
    base, _, end, _, _, root = struct.unpack_from(
      "<6Q", data, 28 if version else 24
    )
    if base:
      raise UnreadError("HDF5 inside another file")
    if end > len(data):
      raise ValueError(f"{end - len(data)} bytes are missing at its end")
    self.root = Item(self, root)

  def part(self, start: int, size: int) -> memoryview:
    """Some bytes, all of which must be there."""
    if start + size > len(self.data):
      raise ValueError("it refers to bytes beyond its end")
    return memoryview(self.data)[start : start + size]

  def text(self, start: int, number: int, size: int) -> bytes:
    """A text from a heap of texts, called a global heap collection."""
    if start not in self._heaps:
      self._heaps[start] = dict(self._objects(start))
    place, room = self._heaps[start].get(number, (0, 0))
    if size > min(room, _TEXT):
      raise ValueError(f"a text of {size} bytes")
    return bytes(self.part(place, size))

  def claim(self, size: int) -> None:
    """Counts the bytes of the arrays that have been made."""
    self._left -= size
    if self._left < 0:
      raise ValueError("its data would be much larger than the file")

  def step(self) -> None:
    """Counts the structures that have been read.

    Each takes several bytes. Without a count, a small file whose structures
    lie over each other could hold far more of them than it has bytes.
    """
    self._steps -= 1
    if self._steps < 0:
      raise ValueError("its parts lie over each other")

  def _objects(self, start: int) -> Iterator[tuple[int, tuple[int, int]]]:
    signature, size = struct.unpack_from("<4s4xQ", self.data, start)
    if signature != b"GCOL":
      raise ValueError("no texts where they should be")
    self.part(start, size)
    place, end = start + 16, start + size
    while place + 16 <= end:
      number, size = struct.unpack_from("<H6xQ", self.data, place)
      if number == 0:  # the free space at the end
        return
      self.step()
      yield number, (place + 16, size)
      place += 16 + (size + 7) // 8 * 8


class Item:
  """A group or an array of a file."""

  def __init__(self, file: File, address: int) -> None:
    """Reads the header at an address."""
    self.address = address
    self._file = file
    self._messages = list(_messages(file, address))
    self._children = None

  @property
  def is_group(self) -> bool:
    """Whether it holds other items."""
    kinds = {kind for kind, _ in self._messages}
    return bool(kinds & {_SYMBOL_TABLE, _LINK, _LINK_INFO})

  @property
  def children(self) -> dict[str, "Item"]:
    """What a group holds, by name."""
    if self._children is None:
      kinds = {kind for kind, _ in self._messages}
      if kinds & {_LINK, _LINK_INFO}:
        raise UnreadError("links, or names beyond ASCII")
      if _SYMBOL_TABLE not in kinds:
        raise ValueError("data where a group should be")
      tree, heap = struct.unpack_from("<QQ", self._message(_SYMBOL_TABLE))
      self._children = {
        name: Item(self._file, address)
        for name, address in _symbols(self._file, tree, heap)
      }
    return self._children

  def texts(self, name: str) -> list[str] | None:
    """An attribute of one or more texts.

    Returns:
      None if there is no attribute of this name.
    """
    for kind, body in self._messages:
      if kind == _ATTRIBUTE_INFO and _NOWHERE != _heap_of_attributes(body):
        raise UnreadError("attributes in the newer layout of HDF5")
      if kind == _ATTRIBUTE:
        found, datatype, dataspace, data = _attribute(body)
        if found == name:
          return _texts(self._file, datatype, _shape(dataspace), data)
    return None

  def array(self) -> np.ndarray:
    """An array's values: read-only, or of an own memory.

    Returns:
      an array of its stored type, in the machine's byte order. bfloat16 is
      float32; Keras declares it by an attribute.
    """
    if self.is_group:
      raise ValueError("a group where data should be")
    if any(kind == _EXTERNAL for kind, _ in self._messages):
      raise UnreadError("data in another file")
    shape = _shape(self._message(_DATASPACE))
    dtype = _number(self._message(_DATATYPE))
    if dtype is None and self.texts("dtype") in (None, ["bfloat16"]):
      stored = np.dtype("<u2")
    elif dtype is None:
      raise UnreadError("data that are no numbers")
    else:
      stored = dtype
    values = self._stored(shape, stored)
    if dtype is None:  # the upper half of a float32
      return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(dtype.newbyteorder("="), copy=False)

  def _message(self, kind: int) -> memoryview:
    bodies = [body for found, body in self._messages if found == kind]
    if len(bodies) != 1:
      raise ValueError(f"{len(bodies)} header messages of kind {kind}")
    return bodies[0]

  def _stored(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    layout = self._message(_LAYOUT)
    size = math.prod(shape) * dtype.itemsize
    self._file.claim(2 * size)  # bfloat16 doubles
    version, kind = struct.unpack_from("<BB", layout)
    if version == 4 and kind == 3:
      raise UnreadError("data in another file")
    if version != 3:
      raise UnreadError("data in an unusual layout")
    if kind == 2:
      return self._blocks(layout[2:], shape, dtype)
    if kind == 0:
      (present,) = struct.unpack_from("<H", layout, 2)
      data = layout[4 : 4 + present]
    else:
      start, present = struct.unpack_from("<QQ", layout, 2)
      if start == _NOWHERE:  # never written; zeros in HDF5
        start = present = 0
      data = self._file.part(start, present)
    if len(data) != size:
      raise ValueError(f"data of {size} bytes, of which {len(data)} are there")
    return np.frombuffer(data, dtype).reshape(shape)

  def _blocks(
    self, layout: memoryview, shape: tuple[int, ...], dtype: np.dtype
  ) -> np.ndarray:
    """Reads data that are stored in blocks, perhaps compressed."""
    rank, tree = struct.unpack_from("<BQ", layout)
    *block, width = struct.unpack_from(f"<{rank}L", layout, 9)
    if len(block) != len(shape) or width != dtype.itemsize or 0 in block:
      raise ValueError("blocks that do not fit their array")
    filters = [
      kind
      for found, body in self._messages
      if found == _FILTERS
      for kind in _filters(body)
    ]
    found = {}
    if tree != _NOWHERE:
      for key, address in _leaves(self._file, tree, 1, 16 + 8 * len(shape)):
        present, mask, *start = struct.unpack(f"<LL{len(shape)}Q8x", key)
        found[tuple(start)] = self._file.part(address, present), mask
    counts = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    if len(found) != math.prod(counts):
      raise ValueError(f"{len(found)} blocks of {math.prod(counts)}")
    size = math.prod(block) * width
    self._file.claim(size * len(found))
    values = np.empty(shape, dtype)
    for place in np.ndindex(*counts):
      start = tuple(i * b for i, b in zip(place, block, strict=True))
      data, mask = found[start]
      for i, kind in reversed(list(enumerate(filters))):
        if not mask >> i & 1:
          data = _unfiltered(data, kind, size, width)
      if len(data) != size:
        raise ValueError(f"a block of {len(data)} bytes instead of {size}")
      part = values[
        tuple(slice(s, s + b) for s, b in zip(start, block, strict=True))
      ]
      whole = np.frombuffer(data, dtype).reshape(block)
      part[...] = whole[tuple(slice(n) for n in part.shape)]
    return values


def _messages(file: File, address: int) -> Iterator[tuple[int, memoryview]]:
  """The messages of an object header, with their kinds."""
  if file.part(address, 4) == b"OHDR":
    raise UnreadError("an object in the newer layout of HDF5")
  version, size = struct.unpack_from("<B7xL", file.data, address)
  if version != 1:
    raise ValueError(f"an object of version {version}")
  blocks = [(address + 16, size)]
  for start, size in blocks:
    block = file.part(start, size)
    place = 0
    while place + 8 <= size:
      file.step()
      kind, length, flags = struct.unpack_from("<HHB", block, place)
      body = block[place + 8 : place + 8 + length]
      if len(body) != length:
        raise ValueError("a header message that ends beyond its header")
      if kind == _CONTINUATION:
        more = struct.unpack_from("<QQ", body)
        if more in blocks or len(blocks) > 1000:
          raise ValueError("a header that continues in itself")
        blocks.append(more)
      elif kind and flags & 2:
        raise UnreadError("types that several arrays share")
      else:
        yield kind, body
      place += 8 + length


def _leaves(
  file: File, address: int, kind: int, key_size: int
) -> Iterator[tuple[bytes, int]]:
  """What hangs on a version 1 B-tree: keys, and addresses."""
  nodes = [(address, None)]
  seen = set()
  while nodes:
    address, level = nodes.pop()
    if address in seen:
      raise ValueError("a tree with a circle")
    seen.add(address)
    signature, found, depth, count = struct.unpack(
      "<4sBBH", file.part(address, 8)
    )
    if (
      (signature, found) != (b"TREE", kind)
      or depth > _LEVELS
      or level not in (None, depth + 1)
    ):
      raise ValueError("no tree where it should be")
    step = key_size + 8
    body = file.part(address + 24, count * step)
    inner = []
    for place in range(0, count * step, step):
      file.step()
      key = bytes(body[place : place + key_size])
      (child,) = struct.unpack_from("<Q", body, place + key_size)
      if depth:
        inner.append((child, depth))
      else:
        yield key, child
    nodes.extend(reversed(inner))


def _symbols(file: File, tree: int, heap: int) -> Iterator[tuple[str, int]]:
  """The names in a group, and the addresses of what they name."""
  signature, size, start = struct.unpack("<4s4xQ8xQ", file.part(heap, 32))
  if signature != b"HEAP":
    raise ValueError("no names where they should be")
  file.part(start, size)
  seen = set()
  for _, address in _leaves(file, tree, 0, 8):
    signature, count = struct.unpack("<4s2xH", file.part(address, 8))
    if signature != b"SNOD" or address in seen:
      raise ValueError("no list of a group where it should be")
    seen.add(address)
    for place in range(address + 8, address + 8 + 40 * count, 40):
      file.step()
      offset, item, cached = struct.unpack("<QQL", file.part(place, 20))
      begin = start + offset
      end = file.data.find(b"\0", begin, min(begin + _TEXT, start + size))
      if end < 0:
        raise ValueError("a name without end")
      name = file.data[begin:end].decode()
      if cached == 2:
        raise UnreadError(f"a link {name[:100]!r}")
      yield name, item


def _shape(body: memoryview) -> tuple[int, ...]:
  version, rank = struct.unpack_from("<BB", body)
  if version not in (1, 2) or (version == 2 and body[3] == 2):
    raise UnreadError("data without a shape")
  return struct.unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)


def _number(body: memoryview) -> np.dtype | None:
  """NumPy's type for a type of numbers; None for the two bytes of bfloat16."""
  kind, bits, size = struct.unpack_from("<BHxL", body)
  kind, order = kind & 15, ">" if bits & 1 else "<"
  if kind == 0 and size in (1, 2, 4, 8):
    if struct.unpack_from("<HH", body, 8) == (0, 8 * size):
      return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
  if kind == 1 and not bits & 64:
    first, width, e_place, e, f_place, f, bias = struct.unpack_from(
      "<HHBBBBL", body, 8
    )
    letters = _FLOATS.get((e, f, bias), "")
    if (first, f_place, e_place, width) == (
      0,
      0,
      f,
      8 * size,
    ) and letters != "":
      if letters and size == int(letters[1]):
        return np.dtype(order + letters)
      if letters is None and size == 2 and order == "<":
        return None
  if kind == 5 and size == 2:  # opaque; an attribute says what it means
    return None
  raise UnreadError("data that are no numbers")


def _heap_of_attributes(body: memoryview) -> int:
  return struct.unpack_from("<Q", body, 4 if body[1] & 1 else 2)[0]


def _attribute(body: memoryview) -> tuple[str, Any, Any, memoryview]:
  """The name of an attribute, its type, its shape and its data."""
  version, flags, *sizes = struct.unpack_from("<BBHHH", body)
  if version not in (1, 2, 3) or (version > 1 and flags):
    raise UnreadError("types that several attributes share")
  place = 9 if version == 3 else 8
  parts = []
  for size in sizes:
    parts.append(body[place : place + size])
    place += size if version > 1 else (size + 7) // 8 * 8
  name = bytes(parts[0]).split(b"\0")[0].decode()
  return name, parts[1], parts[2], body[place:]


def _texts(
  file: File, datatype: memoryview, shape: tuple[int, ...], data: memoryview
) -> list[str]:
  kind, bits, size = struct.unpack_from("<BHxL", datatype)
  count = math.prod(shape)
  if count == 0:  # of whatever type
    return []
  if size == 0 or count * size > len(data):
    raise ValueError(f"{count} texts in {len(data)} bytes")
  cells = [data[i * size : (i + 1) * size] for i in range(count)]
  if kind & 15 == 3:
    return [bytes(cell).rstrip(b"\0 ").decode() for cell in cells]
  if kind & 15 == 9 and bits & 15 == 1 and size == 16:
    texts = []
    for cell in cells:
      length, start, number = struct.unpack("<LQL", cell)
      texts.append(file.text(start, number, length).decode())
    return texts
  raise UnreadError("a name that is no text")


def _filters(body: memoryview) -> list[int]:
  version, count = struct.unpack_from("<BB", body)
  place = 8 if version == 1 else 2
  kinds = []
  for _ in range(count):
    if version == 1:
      kind, length, _, values = struct.unpack_from("<4H", body, place)
      place += 8 + (length + 7) // 8 * 8 + 4 * (values + values % 2)
    else:
      kind, _, values = struct.unpack_from("<3H", body, place)
      place += 6 + 4 * values
    if kind not in (_DEFLATE, _SHUFFLE):
      raise UnreadError(f"compression of kind {kind}")
    kinds.append(kind)
  return kinds


def _unfiltered(
  data: bytes | memoryview, kind: int, size: int, width: int
) -> bytes:
  if kind == _DEFLATE:  # one more than it should give is enough to see it
    return zlib.decompressobj().decompress(data, size + 1)
  # The first bytes of all numbers, then the second, ...
  return np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()
