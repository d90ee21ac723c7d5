"""MAT files of version 5: numbers, strings and cells of them.

The format is described in MathWorks' "MAT-File Format" (level 5). Only what
lists of photographs need is read: no structures, objects or functions.
"""

import os
import struct
import zlib
from typing import Any

import numpy as np

from delf_jax.errors import InputError

_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR = 1, 4
_NUMERIC = range(6, 16)
_TYPES = {
  1: "i1",
  2: "u1",
  3: "i2",
  4: "u2",
  5: "i4",
  6: "u4",
  7: "f4",
  9: "f8",
  12: "i8",
  13: "u8",
}
_TEXTS = {16: "utf-8", 17: "utf-16", 18: "utf-32"}


def load(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the variables of a MAT file.

  Args:
    path: the file.

  Returns:
    name -> a NumPy array, a string (of a char array of one row), or for a cell
    array a flat list of these. What is of another kind is left out.

  Raises:
    InputError: if the file cannot be read, is damaged, or is of version 4 or
      7.3.
  """
  name = os.fspath(path)
  try:
    with open(path, "rb") as file:
      data = memoryview(file.read())
  except OSError as error:
    raise InputError(f"cannot read {name!r}: {error.strerror}") from error
  if bytes(data[:10]) != b"MATLAB 5.0" or len(data) < 128:
    raise InputError(
      f"{name!r} is no MAT file of version 5; save it in MATLAB with -v7"
    )
  order = "<" if bytes(data[126:128]) == b"IM" else ">"
  try:
    return dict(
      variable
      for kind, body in _elements(data[128:], order)
      if kind == _MATRIX and (variable := _variable(body, order))
    )
  except (
    LookupError,
    RecursionError,
    ValueError,
    struct.error,
    zlib.error,
  ) as error:
    raise InputError(
      f"{name!r} is a damaged MAT file ({error}); copy or download it again"
    ) from error


def _elements(data: memoryview, order: str):
  """Yields (type, content) of the elements, compressed ones opened."""
  at = 0
  while at + 8 <= len(data):
    kind, size = struct.unpack_from(order + "II", data, at)
    if kind >> 16:  # a small one: type, size and content in eight bytes
      kind, size, start, at = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    else:
      start = at + 8
      at = start + size
      if kind != _COMPRESSED:
        at += -size % 8
    if start + size > len(data):
      raise ValueError("it ends too early")
    content = data[start : start + size]
    if kind == _COMPRESSED:
      yield from _elements(memoryview(zlib.decompress(content)), order)
    else:
      yield kind, content
  if at < len(data):
    raise ValueError("it ends too early")


def _variable(body: memoryview, order: str) -> tuple[str, Any] | None:
  """Reads one matrix; None if it is of a kind that is not read."""
  parts = list(_elements(body, order))
  (_, flags), (_, sizes), (_, name), *parts = parts
  kind = struct.unpack_from(order + "I", flags)[0] & 0xFF
  shape = tuple(np.frombuffer(sizes, order + "i4").tolist())
  name = bytes(name).decode("latin1")
  if kind == _CELL:
    cells = [_variable(cell, order) for _, cell in parts]
    return name, [None if cell is None else cell[1] for cell in cells]
  if kind == _CHAR:
    return name, _text(*parts[0], order) if parts else ""
  if kind in _NUMERIC:
    stored, content = parts[0]
    values = np.frombuffer(content, order + _TYPES[stored])
    return name, values.reshape(shape, order="F")
  return None


def _text(kind: int, content: memoryview, order: str) -> str:
  if kind in _TEXTS:
    suffix = "" if kind == 16 else "-le" if order == "<" else "-be"
    return bytes(content).decode(_TEXTS[kind] + suffix)
  return "".join(map(chr, np.frombuffer(content, order + _TYPES[kind])))
