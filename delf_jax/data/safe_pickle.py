"""Pickles of plain data, read without running their code.

A pickle is a program that may call anything. Here it may only build numbers,
strings, lists, tuples, dicts, sets and NumPy arrays; arrays are rebuilt by this
module, from their type's letters, their shape and their bytes, because NumPy's
own rebuilding trusts what it is given.
"""

import collections
import io
import math
import os
import pickle
import re
from typing import Any

import numpy as np

from delf_jax.errors import InputError


def load(path: str | os.PathLike) -> Any:
  """Reads a pickle of plain containers, numbers, strings and NumPy arrays.

  Pickles of Python 2 are read too, byte strings as Latin-1.

  Args:
    path: the file.

  Returns:
    what was pickled; arrays are read-only.

  Raises:
    InputError: if the file cannot be read, is no whole pickle, or asks for
      anything else than plain data.
  """
  name = os.fspath(path)
  try:
    with open(path, "rb") as file:
      data = file.read()
  except OSError as error:
    raise InputError(f"cannot read {name!r}: {error.strerror}") from error
  try:
    return _plain(_Unpickler(io.BytesIO(data), encoding="latin1").load())
  except _NotPlainError as error:
    raise InputError(
      f"{name!r} asks for {error}, which plain data does not need; it was not "
      "run. Get the file from its authors again"
    ) from error
  except Exception as error:
    # pickle promises no exception types for damaged data.
    raise InputError(
      f"{name!r} is not a whole pickle of lists and arrays "
      f"({' '.join(str(error).split())[:100] or type(error).__name__}); copy "
      "or download it again"
    ) from error


class _NotPlainError(Exception):
  """A pickle asks for something that might run code."""


class _Type:
  """Stands for numpy.dtype: letters, and later their byte order."""

  def __init__(self, letters: Any, *_: Any) -> None:
    if not re.fullmatch(r"[biufSUO]\d*", str(letters)):
      raise _NotPlainError(f"arrays of {letters!r}")
    self.letters = str(letters)

  def __setstate__(self, state: tuple) -> None:
    _, order, parts, names, fields, *_ = state
    if parts is not None or names is not None or fields is not None:
      raise _NotPlainError("arrays of records")
    if order in ("<", ">"):
      self.letters = order + self.letters

  def read(self, data: Any, shape: tuple, order: str = "C") -> np.ndarray:
    if self.letters[:1] == "O":
      values = np.empty(math.prod(shape), object)
      for i, value in enumerate(data):
        values[i] = _plain(value)
    else:
      if isinstance(data, str):  # from Python 2
        data = data.encode("latin1")
      values = np.frombuffer(data, np.dtype(self.letters))
    return values.reshape(shape, order=order)


class _Array:
  """Stands for numpy.ndarray until its state is known."""

  def __init__(self, *_: Any) -> None:
    self.values = np.empty(0)

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, is_fortran, data = state
    self.values = dtype.read(data, shape, "F" if is_fortran else "C")


def _from_buffer(data: Any, dtype: _Type, shape: tuple, order: str) -> _Array:
  array = _Array()
  array.values = dtype.read(data, shape, order)
  return array


def _scalar(dtype: _Type, data: Any) -> Any:
  return dtype.read(data, (1,)).item()


def _encode(text: str, encoding: str) -> bytes:
  # How Python 3 writes bytes for Python 2 to read.
  if encoding not in ("latin1", "latin-1"):
    raise _NotPlainError(f"the text encoding {encoding!r}")
  return text.encode("latin1")


_ALLOWED = {
  **{
    (module, name): value
    for module in ("builtins", "__builtin__")
    for name, value in (
      ("bytes", bytes),
      ("set", set),
      ("frozenset", frozenset),
      ("bytearray", bytearray),
    )
  },
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("_codecs", "encode"): _encode,
  ("numpy", "ndarray"): _Array,
  ("numpy", "dtype"): _Type,
  **{
    (f"numpy.{core}.{module}", name): value
    for core in ("core", "_core")
    for module, name, value in (
      ("multiarray", "_reconstruct", _Array),
      ("multiarray", "scalar", _scalar),
      ("numeric", "_frombuffer", _from_buffer),
    )
  },
}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    try:
      return _ALLOWED[module, name]
    except KeyError as error:
      raise _NotPlainError(f"{module}.{name}") from error


def _plain(value: Any) -> Any:
  """Puts real arrays in the place of their stand-ins."""
  if isinstance(value, _Array):
    value.values.flags.writeable = False
    return value.values
  if isinstance(value, dict):
    return {_plain(k): _plain(v) for k, v in value.items()}
  if type(value) in (list, tuple):
    return type(value)(map(_plain, value))
  return value
