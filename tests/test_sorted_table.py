import numpy as np
import pytest

from delf_jax.conversion.crc32c import crc32c, masked
from delf_jax.conversion.protobuf_wire import varint
from delf_jax.conversion.sorted_table import MAGIC, read_table, write_table


def entries(count, seed=0):
  rng = np.random.default_rng(seed)
  return {
    f"net/block{i % 9}/unit_{i}/weights".encode(): rng.bytes(i % 50)
    for i in range(count)
  }


@pytest.mark.parametrize("count", [0, 1, 16, 17, 400])
def test_round_trip(count):
  table = {b"": b"header"} | entries(count)
  data = write_table(table)
  assert data == write_table(dict(reversed(table.items())))
  found = [(key, bytes(value)) for key, value in read_table(memoryview(data))]
  assert found == sorted(table.items())


def test_many_blocks():
  table = {str(i).encode() * 9: bytes(2**14) for i in range(40)}
  found = dict(read_table(memoryview(write_table(table))))
  assert found == table
  assert dict(read_table(memoryview(write_table({})))) == {}


def block(*pieces, compression=0):
  """A block of (shared, rest of the key, value), and its trailer."""
  data = b""
  for shared, rest, value in pieces:
    data += varint(shared) + varint(len(rest)) + varint(len(value))
    data += rest + value
  data += bytes(4) + b"\1\0\0\0" + bytes([compression])
  return data + masked(crc32c(data)).to_bytes(4, "little")


def table_of(*blocks, handles=None):
  """A table of blocks as they are."""
  data, found = b"", []
  for one in blocks:
    found.append(varint(len(data)) + varint(len(one) - 5))
    data += one
  index = block(
    *((0, b"%03d" % i, handle) for i, handle in enumerate(handles or found))
  )
  footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
  return memoryview(data + index + footer.ljust(40, b"\0") + MAGIC)


def test_hand_made_tables_are_read():
  first = block((0, b"abc", b"1"), (2, b"d", b""))
  found = dict(read_table(table_of(first, block((0, b"b", b"2")))))
  assert found == {b"abc": b"1", b"abd": b"", b"b": b"2"}


@pytest.mark.parametrize(
  ("table", "message"),
  [
    (table_of(block((0, b"b", b""), (0, b"a", b""))), "not sorted"),
    (table_of(block((0, b"a", b"")), block((0, b"a", b""))), "not sorted"),
    (table_of(block((1, b"a", b""))), "longer than its block"),
    (table_of(block((0, b"a", b""), compression=1)), "compressed"),
    (table_of(block(), handles=[varint(0) + varint(2**40)]), "outside"),
    (table_of(block(), handles=[varint(0) + varint(3)]), "checksum"),
    (table_of(block(), handles=[varint(0) + varint(8)] * 2), "overlap"),
    (memoryview(b""), "does not end"),
    (memoryview(bytes(40) + MAGIC), "checksum|outside|short"),
  ],
)
def test_damage(table, message):
  with pytest.raises(ValueError, match=message):
    list(read_table(table))


def test_shared_prefixes_do_not_fill_the_memory():
  long = b"k" * 2**20
  pieces = [(0, long, b"")] + [
    (2**20, i.to_bytes(2, "big"), b"") for i in range(200)
  ]
  with pytest.raises(ValueError, match="too long"):
    for _ in read_table(table_of(block(*pieces))):
      pass
