"""Pickles of plain data, read without running their code.

A pickle is a program that may call anything. Here it may only build numbers,
strings, lists, tuples, dicts, sets and NumPy arrays; arrays are rebuilt by this
module, from their type's letters, their shape and their bytes, because NumPy's
own rebuilding trusts what it is given. A reader of another format that wraps
pickles (`delf_jax.conversion.torch_files`) adds its own names with `unpickle`.
"""

import io
import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
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
    return plain(unpickle(io.BytesIO(data)))
  except NotPlainError as error:
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


class NotPlainError(Exception):
  """A pickle asks for something that might run code."""


class Dict(dict):
  """Stands for dicts of other types; forgets what else they carry."""

  def __setstate__(self, _: Any) -> None:
    pass


class Attributes:
  """Stands for an object of a class, as a dict of its attributes."""

  __slots__ = ("state",)

  def __setstate__(self, state: Any) -> None:
    if not isinstance(state, dict) or hasattr(self, "state"):
      raise ValueError("an object whose attributes make no sense")
    self.state = state


def unpickle(
  stream: io.BytesIO,
  *,
  allowed: Mapping[tuple[str, str], Any] | None = None,
  stored: Callable[[Any], Any] | None = None,
) -> Any:
  """Runs one pickle, from where the stream stands to the pickle's end.

  Args:
    stream: in memory, so that no length in it can claim more than is there.
    allowed: by module and name, what a pickle may ask for besides plain data:
      a function, or a stand-in with a method `plain`.
    stored: gives what a persistent id stands for.

  Returns:
    what was pickled, with stand-ins for arrays: see `plain`.

  Raises:
    NotPlainError: if the pickle asks for anything else.
    Exception: of any type, if the pickle is damaged.
  """
  start = stream.tell()
  # Python makes a memo as long as the largest index that a pickle names; those
  # that Python writes name no more indices than they have steps.
  for steps, (operation, index, _) in enumerate(pickletools.genops(stream)):
    if operation.name in _MEMO and index > steps + 1:
      raise ValueError(f"memo entry {index} after {steps} steps")
  end = stream.tell()
  stream.seek(start)
  whole = io.BytesIO(stream.read(end - start))
  return _Unpickler(whole, allowed or {}, stored).load()


def plain(value: Any) -> Any:
  """Puts arrays and plain containers in the place of stand-ins.

  Args:
    value: from `unpickle`. A container that occurs twice is the same container
      twice in the result too, or a small pickle could become a huge tree.

  Returns:
    dicts, lists, tuples, sets, numbers, strings and read-only arrays.

  Raises:
    NotPlainError: if a function is left.
    Exception: of any type, if a stand-in holds nonsense.
  """
  return _plain(value, {})


_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


def _plain(value: Any, done: dict[int, Any]) -> Any:
  if id(value) in done:
    return done[id(value)]
  # As dict, because an attribute from the pickle may hide the method.
  if isinstance(value, dict):
    items = dict.items(value)
    result = {_plain(k, done): _plain(v, done) for k, v in items}
  elif type(value) in (list, tuple, set, frozenset):
    result = type(value)(_plain(v, done) for v in value)
  elif isinstance(value, _Array):
    result = value.read(done)
  elif isinstance(value, Attributes):
    result = _plain(value.state, done)
  elif value is Attributes:
    raise NotPlainError("a class")
  elif hasattr(type(value), "plain"):
    result = value.plain()
  else:
    return value
  done[id(value)] = result
  return result


class _Function:
  """A function that a pickle may call, and neither change nor keep."""

  __slots__ = ("_call", "_charge", "_name")

  def __init__(
    self, call: Callable, name: str, charge: Callable[[int], None]
  ) -> None:
    self._call = call
    self._charge = charge
    self._name = name

  def __call__(self, *arguments: Any) -> Any:
    self._charge(sum(len(a) for a in arguments if hasattr(a, "__len__")))
    return self._call(*arguments)

  def __setstate__(self, _: Any) -> None:
    raise NotPlainError(f"a changed {self._name}")

  def plain(self) -> Any:
    raise NotPlainError(f"{self._name} itself")


class _Type:
  """Stands for numpy.dtype: letters, and later their byte order."""

  def __init__(self, letters: Any, *_: Any) -> None:
    if type(letters) is not str:
      raise NotPlainError("arrays of a type without letters")
    if not re.fullmatch(r"[biufSUO]\d*", letters):
      raise NotPlainError(f"arrays of {letters[:50]!r}")
    self.letters = letters

  def __setstate__(self, state: tuple) -> None:
    _, order, parts, names, fields, *_ = state
    if parts is not None or names is not None or fields is not None:
      raise NotPlainError("arrays of records")
    if order in ("<", ">"):
      self.letters = order + self.letters

  def read(self, data: Any) -> np.ndarray:
    if self.letters[:1] == "O":
      values = np.empty(len(data), object)
      for i, value in enumerate(data):
        values[i] = value
      data.clear()  # so that a second array cannot be made of the same list
      return values
    if isinstance(data, str):  # from Python 2
      data = data.encode("latin1")
    return np.frombuffer(data, np.dtype(self.letters))

  def plain(self) -> np.dtype:
    return np.dtype(self.letters)


class _Array:
  """Stands for numpy.ndarray, also before its state is known."""

  def __init__(self, *_: Any) -> None:
    self._values, self._shape, self._order = np.empty(0), (0,), "C"

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, is_fortran, data = state
    self.set(dtype.read(data), shape, "F" if is_fortran else "C")

  def set(self, values: np.ndarray, shape: tuple, order: str) -> None:
    # All numbers, or their product could be the repetition of a list.
    if not all(type(n) is int for n in shape):
      raise ValueError("the shape of an array holds no whole numbers")
    if math.prod(shape) != len(values):  # reshape would take -1 too
      raise ValueError(f"{len(values)} values for the shape {shape}")
    self._values, self._shape, self._order = values, shape, order

  def read(self, done: dict[int, Any]) -> np.ndarray:
    if self._values.dtype == object:
      for i, value in enumerate(self._values):
        self._values[i] = _plain(value, done)
    values = self._values.reshape(self._shape, order=self._order)
    values.flags.writeable = False
    return values


def _from_buffer(data: Any, dtype: _Type, shape: tuple, order: str) -> _Array:
  array = _Array()
  array.set(dtype.read(data), shape, order)
  return array


def _scalar(dtype: _Type, data: Any) -> Any:
  return dtype.read(data).item()


def _encode(text: str, encoding: str) -> bytes:
  # How Python 3 writes bytes for Python 2 to read.
  if encoding not in ("latin1", "latin-1"):
    raise NotPlainError("another text encoding than Latin-1")
  return text.encode("latin1")


def _bytes(data: Any = b"") -> bytes:
  if isinstance(data, int):
    raise ValueError(f"{data} zeros")
  return bytes(data)


def _byte_array(data: Any = b"") -> bytearray:
  return bytearray(_bytes(data))


_ALLOWED = {
  **{
    (module, name): value
    for module in ("builtins", "__builtin__")
    for name, value in (
      ("bytes", _bytes),
      ("bytearray", _byte_array),
      ("set", set),
      ("frozenset", frozenset),
    )
  },
  ("collections", "OrderedDict"): Dict,
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
  def __init__(
    self,
    stream: io.BytesIO,
    allowed: Mapping[tuple[str, str], Any],
    stored: Callable[[Any], Any] | None,
  ) -> None:
    super().__init__(stream, encoding="latin1")
    self._allowed = allowed
    self._stored = stored
    # What its calls may be given in all. A pickle that gives the same large
    # value to many calls could otherwise fill the memory with copies.
    self._allowance = 1000 + 4 * len(stream.getbuffer())

  def find_class(self, module: str, name: str) -> Any:
    shown = "".join(c if c.isprintable() else "?" for c in f"{module}.{name}")
    found = self._allowed.get((module, name), _ALLOWED.get((module, name)))
    if found is None:
      raise NotPlainError(shown[:100])
    if found is Attributes:  # a type, as the step that makes objects wants it
      return found
    return _Function(found, shown, self._charge) if callable(found) else found

  def persistent_load(self, reference: Any) -> Any:
    if self._stored is None:
      raise ValueError("it refers to data outside of it")
    return self._stored(reference)

  def _charge(self, length: int) -> None:
    self._allowance -= length
    if self._allowance < 0:
      raise ValueError("it copies its data again and again")
