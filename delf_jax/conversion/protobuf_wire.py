"""Protocol buffers' wire format: messages as a flat list of their fields.

TensorFlow's checkpoints hold a few small messages and, in the old format, all
tensors inside messages. Read by hand, a tensor stays a view of the file, and a
hostile message costs no more than its bytes.
"""

from collections.abc import Iterator

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Value = int | memoryview


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
  """Yields the fields of a message in the order they were written.

  Yields:
    number, wire type, and the value: an int of a varint, else the bytes.

  Raises:
    ValueError: if the message is damaged.
  """
  at = 0
  while at < len(message):
    key, at = read_varint(message, at)
    number, kind = key >> 3, key & 7
    if kind == VARINT:
      value, at = read_varint(message, at)
      yield number, kind, value
      continue
    if kind == BYTES:
      length, at = read_varint(message, at)
    elif kind in (FIXED32, FIXED64):
      length = 4 if kind == FIXED32 else 8
    else:
      raise ValueError(f"a field of wire type {kind}")
    if length > len(message) - at:
      raise ValueError("a field is longer than its message")
    yield number, kind, message[at : at + length]
    at += length


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
  """Returns the number at `at`, below 2**64, and where the next byte is."""
  value = shift = 0
  while True:
    if at >= len(data) or shift > 63:
      raise ValueError("a number is cut off")
    byte = data[at]
    at += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value & 2**64 - 1, at
    shift += 7


def signed(value: int) -> int:
  """Returns what an int32 or int64 field means by a varint."""
  return value - 2**64 if value >= 2**63 else value


def packed_varints(data: memoryview) -> np.ndarray:
  """Returns the numbers of a packed field as int64.

  Raises:
    ValueError: if the field is damaged.
  """
  data = np.frombuffer(data, np.uint8)
  ends = np.flatnonzero(data < 0x80)
  if not len(data):
    return np.empty(0, np.int64)
  if not len(ends) or ends[-1] != len(data) - 1:
    raise ValueError("a number is cut off")
  starts = np.concatenate([[0], ends[:-1] + 1])
  lengths = ends - starts + 1
  if lengths.max() > 10:
    raise ValueError("a number has more than 64 bits")
  values = np.zeros(len(ends), np.uint64)
  for k in range(lengths.max()):
    rows = np.flatnonzero(lengths > k)
    septet = (data[starts[rows] + k] & 0x7F).astype(np.uint64)
    values[rows] |= septet << np.uint64(7 * k)
  return values.view(np.int64)


def varint(value: int) -> bytes:
  """Encodes a number from 0 to 2**64 - 1."""
  encoded = bytearray()
  while value >= 0x80:
    encoded.append(value & 0x7F | 0x80)
    value >>= 7
  encoded.append(value)
  return bytes(encoded)


def field(number: int, value: int | bytes) -> bytes:
  """Encodes a field: an int as a varint, bytes with their length."""
  if isinstance(value, int):
    return varint(number << 3 | VARINT) + varint(value)
  return varint(number << 3 | BYTES) + varint(len(value)) + value


def fixed32_field(number: int, value: int) -> bytes:
  """Encodes a field of four bytes."""
  return varint(number << 3 | FIXED32) + value.to_bytes(4, "little")
