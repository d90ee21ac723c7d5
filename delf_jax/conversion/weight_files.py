"""One way to read every weight file, whatever wrote it."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax.conversion.keras_files import read_keras
from delf_jax.conversion.tf_models import TfWeights, find_tf_weights
from delf_jax.conversion.torch_files import read_torch
from delf_jax.errors import InputError

HDF5 = b"\x89HDF\r\n\x1a\n"
GZIP = b"\x1f\x8b"
TAR = 257, b"ustar"
TABLE_END = bytes.fromhex("57fb808b247547db")  # of a TensorFlow index
KERAS_ENDINGS = (".h5", ".hdf5", ".keras")
TENSORFLOW_ENDINGS = (".index", ".ckpt")
# Where training scripts keep a state dict among other things.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")


@dataclasses.dataclass(frozen=True)
class WeightFile:
  """What a weight file holds.

  Attributes:
    tensors: by name; nested dictionaries are joined by dots.
    tensorflow: what comes beside a TensorFlow checkpoint.
    saved: all that a PyTorch file holds, the state dict and what is beside it.
  """

  tensors: Mapping[str, np.ndarray]
  tensorflow: TfWeights | None = None
  saved: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(path: str | os.PathLike) -> WeightFile:
  """Reads a weight file or directory; its first bytes say what wrote it.

  Raises:
    InputError: if there is none, or it is damaged or not understood.
  """
  path = Path(path)
  if _is_tensorflow(path):
    found = find_tf_weights(path)
    return WeightFile(found.tensors, found)
  if not path.exists():
    raise InputError(f"{path}: no such weight file")
  if _has(path, 0, HDF5) or path.name.endswith(KERAS_ENDINGS):
    return WeightFile(read_keras(path))
  saved = read_torch(path)
  return WeightFile(state_dict(saved), saved=saved)


def _is_tensorflow(path: Path) -> bool:
  if path.is_dir() or path.with_name(path.name + ".index").is_file():
    return True
  if not path.is_file():
    return False
  if path.name.endswith(TENSORFLOW_ENDINGS) or ".data-0" in path.name:
    return True
  end = max(path.stat().st_size - len(TABLE_END), 0)
  return _has(path, 0, GZIP) or _has(path, *TAR) or _has(path, end, TABLE_END)


def _has(path: Path, offset: int, magic: bytes) -> bool:
  with open(path, "rb") as file:
    file.seek(offset)
    return file.read(len(magic)) == magic


def state_dict(saved: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Finds the tensors in what a PyTorch script has saved.

  Args:
    saved: nested dictionaries of arrays and other values.

  Returns:
    arrays by their joined names, without the wrappers that training scripts
    and `DataParallel` add.
  """
  for wrapper in WRAPPERS:
    inside = saved.get(wrapper)
    if isinstance(inside, Mapping) and inside:
      saved = inside
      break
  found = {}

  def collect(tree: Mapping[Any, Any], prefix: str) -> None:
    for name, value in tree.items():
      if isinstance(value, Mapping):
        collect(value, f"{prefix}{name}.")
      elif isinstance(value, np.ndarray):
        found[f"{prefix}{name}"] = value

  collect(saved, "")
  if found and all(name.startswith("module.") for name in found):
    found = {name.removeprefix("module."): found[name] for name in found}
  return found


def fingerprint(path: str | os.PathLike) -> tuple[str, int]:
  """Returns the SHA-256 and the size of a file, or of a checkpoint's files.

  Several files are hashed in the order of their names, names included.
  """
  path = Path(path)
  if path.is_file():
    files = [path]
  elif path.is_dir():
    files = sorted(file for file in path.rglob("*") if file.is_file())
  else:  # the prefix of a checkpoint
    files = sorted(path.parent.glob(f"{path.name}.*"))
  digest, size = hashlib.sha256(), 0
  for file in files:
    if len(files) > 1:
      where = file.relative_to(path if path.is_dir() else path.parent)
      digest.update(f"{where.as_posix()}\0".encode())
    with open(file, "rb") as stream:
      while block := stream.read(2**20):
        digest.update(block)
        size += len(block)
  return digest.hexdigest(), size
