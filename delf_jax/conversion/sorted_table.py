"""Sorted string tables: the container of TensorFlow's checkpoint indices.

LevelDB's table, unfiltered and uncompressed: blocks of entries (the length that
the key shares with the one before, the lengths of the rest and of the value,
then both) with a list of restarts, each block followed by its compression and
its masked CRC-32C; a block of block addresses; and a footer that says where
that is.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from delf_jax.conversion.crc32c import crc32c, masked
from delf_jax.conversion.protobuf_wire import read_varint, varint

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")

_FOOTER = 48
_TRAILER = 5
_RESTART_INTERVAL = 16
_BLOCK_BYTES = 2**18
# Keys are expanded from prefixes; what a file claims of them is bounded.
_MAX_KEY_BYTES = 2**26


def is_table(data: memoryview) -> bool:
  """Says whether bytes end as a table does."""
  return len(data) >= _FOOTER and data[-len(MAGIC) :] == MAGIC


def read_table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
  """Yields the keys, ascending, and their values, which are views of `data`.

  Raises:
    ValueError: if the table is damaged or compressed.
  """
  if not is_table(data):
    raise ValueError("it does not end as a table does")
  footer = data[-_FOOTER:]
  _, _, at = _handle(footer, 0)
  offset, size, _ = _handle(footer, at)
  budget = [_MAX_KEY_BYTES]
  end, last = 0, None
  for _, address in _entries(_block(data, offset, size), budget):
    offset, size, _ = _handle(address, 0)
    if offset < end:
      raise ValueError("its blocks overlap")
    end = offset + size
    for key, value in _entries(_block(data, offset, size), budget):
      if last is not None and key <= last:
        raise ValueError("its keys are not sorted")
      last = key
      yield key, value


def _handle(data: memoryview, at: int) -> tuple[int, int, int]:
  """Returns a block's offset and size, and where the next byte is."""
  offset, at = read_varint(data, at)
  size, at = read_varint(data, at)
  return offset, size, at


def _block(data: memoryview, offset: int, size: int) -> memoryview:
  """Returns a block's entries, without its restarts, checked."""
  if offset + size + _TRAILER > len(data) - _FOOTER:
    raise ValueError("a block lies outside of the file")
  stored = data[offset : offset + size + 1]
  crc = int.from_bytes(
    data[offset + size + 1 : offset + size + _TRAILER], "little"
  )
  if masked(crc32c(stored)) != crc:
    raise ValueError("a block's checksum is wrong")
  if stored[size]:
    raise ValueError(
      "its blocks are compressed; restore and save it again with TensorFlow, "
      "which does not compress"
    )
  restarts = int.from_bytes(stored[max(size - 4, 0) : size], "little")
  entries = size - 4 - 4 * restarts
  if entries < 0:
    raise ValueError("a block is too short for its restarts")
  return stored[:entries]


def _entries(
  block: memoryview, budget: list[int]
) -> Iterator[tuple[bytes, memoryview]]:
  """Yields a block's keys and values; takes the keys' bytes from `budget`."""
  key, at = b"", 0
  while at < len(block):
    shared, at = read_varint(block, at)
    rest, at = read_varint(block, at)
    length, at = read_varint(block, at)
    if shared > len(key) or rest + length > len(block) - at:
      raise ValueError("an entry is longer than its block")
    key = key[:shared] + bytes(block[at : at + rest])
    budget[0] -= len(key)
    if budget[0] < 0:
      raise ValueError("its keys are too long")
    at += rest
    yield key, block[at : at + length]
    at += length


def write_table(entries: Mapping[bytes, bytes]) -> bytes:
  """Returns a table; equal entries give equal bytes.

  With fewer than 256 KiB of entries these are the bytes that TensorFlow writes.
  """
  table = bytearray()

  def append(block: bytes) -> bytes:
    handle = varint(len(table)) + varint(len(block))
    stored = block + b"\0"  # not compressed
    table.extend(stored + masked(crc32c(stored)).to_bytes(4, "little"))
    return handle

  addresses, waiting, size = [], [], 0
  for key in sorted(entries):
    waiting.append((key, entries[key]))
    size += len(key) + len(entries[key])
    if size >= _BLOCK_BYTES:
      block = append(_build(waiting, _RESTART_INTERVAL))
      addresses.append((key, block))
      waiting, size = [], 0
  if waiting:
    last = _short_successor(waiting[-1][0])
    addresses.append((last, append(_build(waiting, _RESTART_INTERVAL))))
  footer = append(_build([], _RESTART_INTERVAL))  # of no further metadata
  footer += append(_build(addresses, 1))
  table.extend(footer.ljust(_FOOTER - len(MAGIC), b"\0") + MAGIC)
  return bytes(table)


def _build(entries: list[tuple[bytes, bytes]], interval: int) -> bytes:
  """Returns a block of entries; every `interval`-th key is whole."""
  block, restarts, before = bytearray(), [], b""
  for i, (key, value) in enumerate(entries):
    shared = 0
    if i % interval == 0:
      restarts.append(len(block))
    else:
      while shared < len(before) and before[shared] == key[shared]:
        shared += 1
    block += varint(shared) + varint(len(key) - shared) + varint(len(value))
    block += key[shared:] + value
    before = key
  restarts = restarts or [0]
  block += np.array([*restarts, len(restarts)], "<u4").tobytes()
  return bytes(block)


def _short_successor(key: bytes) -> bytes:
  """Returns the shortest key that does not come before `key`."""
  for i, byte in enumerate(key):
    if byte != 0xFF:
      return key[:i] + bytes([byte + 1])
  return key
