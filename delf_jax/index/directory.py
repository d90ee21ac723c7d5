"""Index directories: plain `.npy` arrays and the `meta.json` that vouches for
them. Nothing is pickled, nothing that is read is run.

An array is `NAME-GENERATION.npy`. A save writes the arrays of the next
generation beside those of the present one, and then replaces `meta.json`, which
says what generation counts. That one rename is the switch: a reader sees the
old index or the new one, a killed save leaves the old one, and a reader that
has mapped the old arrays keeps them. The next save removes what a killed one
left.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from delf_jax.errors import InputError

FORMAT = "delf_jax index"
VERSION = 1

_META = "meta.json"
_TEMPORARY = _META + ".tmp"
_NAME = re.compile(r"[a-z]+(?:_[a-z]+)*")
_FILE = re.compile(_NAME.pattern + r"-[1-9][0-9]*\.npy")
_PIECE = 1 << 24  # bytes written and hashed at a time
_AGAIN = "build it again with python -m delf_jax.build_index"


def write(
  path: str | os.PathLike,
  *,
  kind: str,
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  provenance: Mapping[str, Any],
) -> None:
  """Writes an index, whole or not at all.

  Args:
    path: the directory; made when missing, its index replaced when there is
      one.
    kind: of index.
    parameters: what else the index needs, as JSON values.
    arrays: by lower-case names.
    provenance: what it was built from, as JSON values; see `read_meta`.

  Raises:
    InputError: if the directory holds something else, another process is
      writing to it, or the disk refuses; what was there is then left as it was.
  """
  path = os.fspath(path)
  arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
  for name, array in arrays.items():
    if not _NAME.fullmatch(name) or array.dtype.hasobject:
      raise ValueError(f"{name!r} with dtype {array.dtype} cannot be saved")
  with contextlib.ExitStack() as stack:
    stack.enter_context(_refusals(path))
    stack.enter_context(_locked(path))
    generation = _replaceable(path)
    _remove_strays(path, generation)
    generation += 1
    stack.callback(_remove_strays_after, path)
    files = {
      name: _write_array(_array_path(path, name, generation), array)
      for name, array in arrays.items()
    }
    meta = {
      "format": FORMAT,
      "version": VERSION,
      "kind": kind,
      "generation": generation,
      "parameters": dict(parameters),
      "provenance": dict(provenance),
      "files": files,
    }
    meta = json.loads(json.dumps(meta))  # as it will be read
    text = json.dumps({**meta, "sha256": _digest(meta)}, indent=1) + "\n"
    temporary = os.path.join(path, _TEMPORARY)
    with open(temporary, "wb") as file:
      file.write(text.encode("ascii"))
      file.flush()
      os.fsync(file.fileno())
    _sync(path)  # the arrays' names, before the name that counts on them
    os.replace(temporary, os.path.join(path, _META))
    _sync(path)


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what an index says of itself, without its arrays.

  Args:
    path: the index directory.

  Returns:
    `kind`, `version`, `generation`, `parameters`, `provenance` and `files`:
    {array: bytes, dtype, shape and sha256}.

  Raises:
    InputError: if it is missing, damaged, of a later version or no index.
  """
  path = os.fspath(path)
  where = os.path.join(path, _META)
  try:
    with open(where, "rb") as file:
      meta = json.loads(file.read())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(
      f"{path!r} is no index (it has no {_META}); give another directory, or "
      "build one with python -m delf_jax.build_index"
    ) from error
  except OSError as error:
    raise InputError(
      f"{where!r} cannot be read ({error.strerror}); give another directory"
    ) from error
  except (ValueError, RecursionError) as error:
    raise damaged(where) from error
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise InputError(
      f"{path!r} is no index (its {_META} is of something else); give another "
      "directory, or build one with python -m delf_jax.build_index"
    )
  version = meta.get("version")
  if not isinstance(version, int):
    raise damaged(where)
  if version > VERSION:
    raise InputError(
      f"the index {path!r} has format {version}, newer than the {VERSION} that "
      f"is read here; update delf_jax, or {_AGAIN}"
    )
  digest = meta.pop("sha256", None)
  if digest != _digest(meta) or not _is_sound(meta):
    raise damaged(where)
  return meta


def read(
  path: str | os.PathLike, *, kinds: Collection[str], verify: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads an index.

  Args:
    path: the index directory.
    kinds: the kinds that the caller knows.
    verify: also compare the checksums of the arrays, which reads them whole.

  Returns:
    what `read_meta` says, and the arrays, read-only and mapped into memory.

  Raises:
    InputError: as `read_meta`; if the kind is unknown, or if an array is
      missing or not the one that was saved.
  """
  path = os.fspath(path)
  meta = read_meta(path)
  while True:
    if meta["kind"] not in kinds:
      raise InputError(
        f"the index {path!r} is of the unknown kind {meta['kind']!r} (known: "
        f"{', '.join(kinds)}); update delf_jax, or {_AGAIN}"
      )
    try:
      arrays = {
        name: _read_array(
          _array_path(path, name, meta["generation"]), file, verify=verify
        )
        for name, file in meta["files"].items()
      }
      return meta, arrays
    except FileNotFoundError as error:
      # A writer may have replaced the index since meta.json was read.
      now = read_meta(path)
      if now["generation"] == meta["generation"]:
        raise InputError(f"{error.filename!r} is missing; {_AGAIN}") from error
      meta = now


def damaged(path: str | os.PathLike, reason: object = "") -> InputError:
  """Returns the error for a file or an index that is not as it was saved."""
  detail = f" ({' '.join(str(reason).split())})" if str(reason) else ""
  return InputError(f"{os.fspath(path)!r} is damaged{detail}; {_AGAIN}")


def _array_path(path: str, name: str, generation: int) -> str:
  return os.path.join(path, f"{name}-{generation}.npy")


def _digest(meta: Mapping[str, Any]) -> str:
  return hashlib.sha256(
    json.dumps(meta, sort_keys=True).encode("ascii")
  ).hexdigest()


def _is_sound(meta: Mapping[str, Any]) -> bool:
  # The sum holds for what was written here; a file made to deceive may carry
  # a right sum and lead out of the directory.
  try:
    return (
      isinstance(meta["kind"], str)
      and isinstance(meta["generation"], int)
      and meta["generation"] > 0
      and isinstance(meta["parameters"], dict)
      and isinstance(meta["provenance"], dict)
      and all(
        _NAME.fullmatch(name)
        and isinstance(file["bytes"], int)
        and isinstance(file["dtype"], str)
        and all(isinstance(side, int) for side in file["shape"])
        and isinstance(file["sha256"], str)
        for name, file in meta["files"].items()
      )
    )
  except (AttributeError, KeyError, TypeError):
    return False


def _write_array(path: str, array: np.ndarray) -> dict[str, Any]:
  digest = hashlib.sha256()
  with open(path, "w+b") as file:
    np.lib.format.write_array_header_1_0(
      file, np.lib.format.header_data_from_array_1_0(array)
    )
    file.seek(0)
    digest.update(file.read())
    # Not ndarray.tofile: it forgets why the disk refused.
    content = array.reshape(-1).view(np.uint8)
    for start in range(0, len(content), _PIECE):
      piece = content[start : start + _PIECE]
      file.write(piece)
      digest.update(piece)
    size = file.tell()
    file.flush()
    os.fsync(file.fileno())
  return {
    "bytes": size,
    "dtype": array.dtype.str,
    "shape": list(array.shape),
    "sha256": digest.hexdigest(),
  }


def _read_array(
  path: str, expected: Mapping[str, Any], *, verify: bool
) -> np.ndarray:
  try:
    size = os.stat(path).st_size
    if size != expected["bytes"]:
      raise damaged(path, f"{size} bytes instead of {expected['bytes']}")
    if verify:
      with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      if digest != expected["sha256"]:
        raise damaged(path, "its checksum is another")
    array = np.load(
      path,
      # There is nothing to map in an array without elements.
      mmap_mode="r" if math.prod(expected["shape"]) else None,
      allow_pickle=False,
    )
  except FileNotFoundError:
    raise
  except OSError as error:
    raise InputError(
      f"{path!r} cannot be read ({error.strerror}); {_AGAIN}"
    ) from error
  except (ValueError, EOFError) as error:
    raise damaged(path) from error
  if [array.dtype.str, list(array.shape)] != [
    expected["dtype"],
    expected["shape"],
  ]:
    raise damaged(path, "its dtype or shape is another")
  array = np.asarray(array)
  array.flags.writeable = False
  return array


@contextlib.contextmanager
def _refusals(path: str) -> Iterator[None]:
  """Turns a disk's refusal into a line for the user."""
  try:
    yield
  except OSError as error:
    raise InputError(
      f"the index {path!r} cannot be written ({error.strerror}); make room or "
      "choose another directory"
    ) from error


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
  """Makes the directory if need be, and keeps other writers out of it."""
  try:
    os.makedirs(path)
    made = True
  except FileExistsError:
    made = False
    if not os.path.isdir(path):
      raise InputError(
        f"{path!r} is a file; choose another directory for the index"
      ) from None
  handle = os.open(path, os.O_RDONLY)
  try:
    # The lock ends with the process. Some network file systems have none.
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(handle)
    raise InputError(
      f"another process is writing the index {path!r}; wait for it or choose "
      "another directory"
    ) from error
  except OSError:
    pass
  try:
    yield
  except BaseException:
    if made:
      with contextlib.suppress(OSError):
        os.rmdir(path)
    raise
  finally:
    os.close(handle)


def _replaceable(path: str) -> int:
  """Returns the generation of the index at hand, 0 when there is none.

  Raises:
    InputError: if the directory holds something else.
  """
  refusal = InputError(
    f"{path!r} exists and is no index; choose another directory"
  )
  try:
    with open(os.path.join(path, _META), "rb") as file:
      meta = json.loads(file.read())
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
      raise refusal
    generation = meta.get("generation")
    if isinstance(generation, int) and generation > 0:
      return generation
  except (FileNotFoundError, ValueError, RecursionError):
    pass
  # Without a sound meta.json, all that lies here must be an index's remains.
  names = set(os.listdir(path)) - {_META, _TEMPORARY}
  if not all(_FILE.fullmatch(name) for name in names):
    raise refusal
  return 0


def _remove_strays(path: str, generation: int) -> None:
  """Removes all arrays but those of one generation."""
  for name in os.listdir(path):
    if name == _TEMPORARY or (
      _FILE.fullmatch(name) and not name.endswith(f"-{generation}.npy")
    ):
      os.unlink(os.path.join(path, name))


def _remove_strays_after(path: str) -> None:
  # Whether the save succeeded or not: what meta.json does not name must go.
  with contextlib.suppress(OSError, InputError):
    _remove_strays(path, _replaceable(path))


def _sync(path: str) -> None:
  # So that a rename outlives a power cut.
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
