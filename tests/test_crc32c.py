import numpy as np
import pytest

from delf_jax.conversion.crc32c import crc32c, masked

# RFC 3720, appendix B.4, and the check value of the CRC catalogues.
KNOWN = {
  b"": 0x00000000,
  b"123456789": 0xE3069283,
  bytes(32): 0x8A9136AA,
  b"\xff" * 32: 0x62A8AB43,
  bytes(range(32)): 0x46DD794E,
  bytes(range(31, -1, -1)): 0x113FDB5C,
}


def bit_by_bit(data, register=0xFFFFFFFF):
  """The definition, one bit after the other."""
  for byte in data:
    register ^= byte
    for _ in range(8):
      register = register >> 1 ^ 0x82F63B78 * (register & 1)
  return register ^ 0xFFFFFFFF


@pytest.mark.parametrize("data", KNOWN)
def test_known_values(data):
  assert crc32c(data) == KNOWN[data]


def test_all_lengths_of_rows():
  data = np.random.default_rng(0).bytes(200_000)
  for length in (1, 255, 511, 512, 513, 4095, 8191, 8192, 12_345, 131_072):
    assert crc32c(data[:length]) == bit_by_bit(data[:length])
  assert crc32c(data[3:]) == bit_by_bit(data[3:])  # not aligned


def test_parts_continue_each_other():
  data = np.random.default_rng(1).bytes(300_001)
  for cut in (0, 1, 600, 140_000, len(data)):
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_any_buffer():
  array = np.arange(1000, dtype=np.float64).reshape(10, 100)
  assert crc32c(array) == crc32c(array.tobytes())
  assert crc32c(memoryview(array.tobytes())) == crc32c(array)
  assert crc32c(np.empty((0, 3))) == 0


def test_masked():
  # TensorFlow's files end every empty block with these bytes: the CRC of a
  # restart list of one and of the byte that says that nothing is compressed.
  block = bytes(4) + b"\x01\0\0\0" + b"\0"
  assert masked(crc32c(block)).to_bytes(4, "little").hex() == "c0f2a1b0"
