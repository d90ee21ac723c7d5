import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from delf_jax.conversion import protobuf_wire as wire

NUMBERS = [0, 1, 127, 128, 300, 2**31, 2**63 - 1, 2**64 - 1]


def test_fields_of_a_message_that_google_wrote():
  location = descriptor_pb2.SourceCodeInfo.Location(
    path=[4, 0, 300], span=[1, 2**31 - 1], leading_comments="ü"
  )
  info = descriptor_pb2.SourceCodeInfo(location=[location, location])
  data = memoryview(info.SerializeToString())
  found = list(wire.fields(data))
  assert [(number, kind) for number, kind, _ in found] == [(1, wire.BYTES)] * 2
  inner = {number: value for number, _, value in wire.fields(found[1][2])}
  assert wire.packed_varints(inner[1]).tolist() == [4, 0, 300]
  assert wire.packed_varints(inner[2]).tolist() == [1, 2**31 - 1]
  assert str(inner[3], "utf-8") == "ü"


def test_what_is_encoded_is_what_google_reads():
  value = descriptor_pb2.UninterpretedOption()
  value.ParseFromString(
    wire.field(3, b"abc")
    + wire.field(4, 2**64 - 1)
    + wire.varint(6 << 3 | wire.FIXED64)
    + np.float64(2.5).tobytes()
  )
  assert value.identifier_value == "abc"
  assert value.positive_int_value == 2**64 - 1
  assert value.double_value == 2.5


def test_numbers():
  for number in NUMBERS:
    encoded = memoryview(wire.varint(number))
    assert wire.read_varint(encoded, 0) == (number, len(encoded))
  packed = b"".join(map(wire.varint, NUMBERS))
  found = wire.packed_varints(memoryview(packed))
  assert found.dtype == np.int64
  assert found.tolist() == [wire.signed(number) for number in NUMBERS]
  assert wire.packed_varints(memoryview(b"")).size == 0


@pytest.mark.parametrize(
  "data",
  [
    b"\x80",
    b"\x08",
    b"\x0a\x05abc",
    b"\x0d\0\0\0",
    b"\x09" + bytes(7),
    b"\x0b",  # a group
    b"\x0f",
    b"\x08" + b"\xff" * 10 + b"\1",
  ],
)
def test_damage(data):
  with pytest.raises(ValueError):
    list(wire.fields(memoryview(data)))


@pytest.mark.parametrize("data", [b"\x80", b"\1\xff", b"\xff" * 10 + b"\1"])
def test_damaged_lists(data):
  with pytest.raises(ValueError):
    wire.packed_varints(memoryview(data))
