"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, in NumPy.

A checksum is linear over bits, so a message may be folded: its first row of
words, advanced by the length of a row, is added to the second, and so on, until
one row is left that has the checksum of the whole. NumPy folds whole rows at a
time; three lengths of row take any message to a few hundred bytes.
"""

import functools
from typing import Any

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_MASK_DELTA = 0xA282EAD8
_ROWS = (2**16, 2**12, 2**8)  # bytes


def crc32c(data: Any, crc: int = 0) -> int:
  """Returns the CRC-32C of bytes.

  Args:
    data: anything with a contiguous buffer.
    crc: of the bytes before these, to continue it.
  """
  data = np.frombuffer(data, np.uint8)
  register = crc ^ 0xFFFFFFFF
  for row in _ROWS:
    if len(data) >= 2 * row:
      data = _fold(data, row, register)
      register = 0
  table = _byte_table()
  for byte in data.tobytes():
    register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
  return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
  """Returns a CRC as TensorFlow stores it beside the data it is of."""
  rotated = (crc >> 15) | (crc << 17)
  return (rotated + _MASK_DELTA) & 0xFFFFFFFF


def _fold(data: np.ndarray, row: int, register: int) -> np.ndarray:
  """Returns fewer than two rows that, from register 0, leave the same CRC."""
  rows = len(data) // row
  words = np.frombuffer(data, "<u4", rows * row // 4).reshape(rows, -1)
  low, high = _advance_tables(row)
  folded = words[0].copy()
  folded[0] ^= register
  for following in words[1:]:
    shifted = low[folded & 0xFFFF]
    shifted ^= high[folded >> 16]
    shifted ^= following
    folded = shifted
  rest = data[rows * row :]
  return np.concatenate([folded.astype("<u4").view(np.uint8), rest])


@functools.cache
def _byte_table() -> list[int]:
  """Returns the register after each byte."""
  table = []
  for register in range(256):
    for _ in range(8):
      register = (register >> 1) ^ (_POLYNOMIAL if register & 1 else 0)
    table.append(register)
  return table


@functools.cache
def _advance_tables(length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns what `length` zero bytes make of a register's two halves.

  Args:
    length: a power of two.

  Returns:
    two uint32 [65536], for the lower and the upper 16 bits; their sum (xor) is
    the new register.
  """
  table = _byte_table()
  columns = [
    table[(1 << bit) & 0xFF] ^ ((1 << bit) >> 8) for bit in range(32)
  ]  # of one zero byte
  for _ in range(length.bit_length() - 1):
    columns = [_apply(columns, column) for column in columns]
  halves = []
  for part in (columns[:16], columns[16:]):
    values = np.zeros(1, np.uint32)
    for column in part:
      values = np.concatenate([values, values ^ np.uint32(column)])
    halves.append(values)
  return halves[0], halves[1]


def _apply(columns: list[int], register: int) -> int:
  """Multiplies a matrix over bits, given by its columns, with a register."""
  product = 0
  for bit, column in enumerate(columns):
    if register >> bit & 1:
      product ^= column
  return product
