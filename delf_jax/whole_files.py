"""Files that are written whole or not at all."""

import contextlib
import os

from delf_jax.errors import InputError


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
  """Writes a file under a temporary name beside it, and renames it.

  Raises:
    InputError: if it cannot be written; the old file, if any, is still there.
  """
  path = os.fspath(path)
  unfinished = f"{path}.{os.getpid()}.tmp"
  try:
    with open(unfinished, "wb") as file:
      file.write(content)
    os.replace(unfinished, path)
  except OSError as error:
    raise InputError(
      f"{path!r} cannot be written: {error.strerror or error}; make room or"
      " choose another place"
    ) from error
  finally:
    with contextlib.suppress(OSError):
      os.unlink(unfinished)
