"""TensorFlow models on disk -> their tensors, PCA files and settings.

SavedModels, released tarballs, training directories and bare checkpoints of
TensorFlow 1 and 2. Only variables are read: a SavedModel's graph is a program,
and nothing here looks at it.
"""

import dataclasses
import errno
import gzip
import math
import os
import re
import shutil
import tarfile
import tempfile
import warnings
import weakref
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
from google.protobuf import (
  descriptor_pb2,
  descriptor_pool,
  message_factory,
  text_format,
)

from delf_jax.conversion import tensor_bundle
from delf_jax.errors import InputError

EXPECTED = (
  "expected a SavedModel, a directory with model/ and pca/, a checkpoint "
  "(PREFIX.index beside PREFIX.data-*, or a V1 .ckpt), a directory that holds "
  "one, or a .tar.gz of these"
)

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_VARIABLES = Path("variables", "variables")  # in a SavedModel
_SHARD = re.compile(r"\.data-\d{5}-of-\d{5}$")
# What optimizers and savers keep beside a network.
_SLOT = re.compile(
  r"(^|/)(Adam(_1)?|Momentum|RMSProp(_\d)?|Adagrad|Adadelta(_\d)?|Ftrl(_\d)?"
  r"|beta[12]_power|global_step|save_counter)$"
)
_OBJECT_SLOT = re.compile(
  r"(^|/)(_?optimizer|\.OPTIMIZER_SLOT)/|^(save_counter|step|iter|epoch)$"
)
# Of Keras' functional models the place in a list says nothing, their own name
# everything.
_PLACE = re.compile(r"(^|/)(layer(_with_weights)?-\d+|_operations/\d+)/")
_AVERAGE = "/ExponentialMovingAverage"

_WANTED = re.compile(
  r"(.+\.index|.+\.data-\d{5}-of-\d{5}|checkpoint|.+\.pbtxt|.+\.datum"
  r"|.+\.ckpt(-\d+)?)$"
)
_MOST_MEMBERS = 10_000
_MOST_BYTES = 2**33  # of all members of a tarball
_MOST_HEADER_BYTES = 2**20
_MOST_CONFIG_BYTES = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class TfWeights:
  """What a TensorFlow model holds.

  Attributes:
    tensors: name -> array. Variables of a TF2 checkpoint are named by the
      attributes that lead to them, those of a functional Keras model by their
      own names; optimizers' are left out.
    kind: "slim" for TF1's names, "object_graph" for TF2's.
    mean: file of the PCA's mean, or None.
    projection: file of its matrix, or None.
    variances: file of its variances, or None.
    settings: what a DelfConfig beside it sets: image_scales, score_threshold,
      max_feature_num, iou_threshold, use_pca, pca_dim, use_whitening.

  Files out of a tarball exist as long as this object.
  """

  tensors: Mapping[str, np.ndarray]
  kind: Literal["slim", "object_graph"]
  mean: Path | None
  projection: Path | None
  variances: Path | None
  settings: Mapping[str, Any]


def find_tf_weights(path: str | os.PathLike) -> TfWeights:
  """Reads a TensorFlow model, whichever way it is stored.

  Args:
    path: a SavedModel or a directory with `model/` and `pca/`, a directory
      with a checkpoint (its latest), a checkpoint's prefix, `.index` or
      `.data-*` file, a V1 checkpoint, or a tarball of one of these.

  Raises:
    InputError: if there is none, or it is damaged.
  """
  path = Path(path)
  try:
    if path.is_file() and _is_tarball(path):
      return _read_tarball(path)
    return _read(path)
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror or error}); {EXPECTED}"
    ) from error


def _read_tarball(path: Path) -> TfWeights:
  directory = tempfile.mkdtemp(prefix="delf_jax-")
  try:
    _extract(path, Path(directory))
    found = _read(Path(directory))
  except BaseException as error:
    shutil.rmtree(directory, ignore_errors=True)
    if isinstance(error, InputError):
      message = str(error).replace(f"{directory}/", f"{path}:")
      raise InputError(message.replace(directory, str(path))) from error
    raise
  weakref.finalize(found, shutil.rmtree, directory, ignore_errors=True)
  return found


def _read(path: Path) -> TfWeights:
  home, prefix = _find(path)
  kind, tensors = _tensors(prefix)
  pca = _pca_directory(home)
  return TfWeights(
    tensors=tensors,
    kind=kind,
    mean=_existing(pca / "mean.datum"),
    projection=_existing(pca / "pca_proj_mat.datum"),
    variances=_existing(pca / "pca_vars.datum"),
    settings=_settings(home),
  )


def _existing(path: Path) -> Path | None:
  return path if path.is_file() else None


def _pca_directory(home: Path) -> Path:
  """Returns where PCA files are: in `pca/`, or beside the model."""
  return home / "pca" if (home / "pca").is_dir() else home


def _find(path: Path) -> tuple[Path, str]:
  """Returns the directory that may hold a PCA, and a checkpoint's prefix.

  Raises:
    InputError: if there is no checkpoint.
  """
  if not path.is_dir():
    name = _SHARD.sub("", str(path)).removesuffix(".index")
    if os.path.isfile(f"{name}.index"):
      return _home(Path(name).parent), name
    if tensor_bundle.is_v1(path):
      return _home(path.parent), str(path)
    missing = "no TensorFlow model" if path.exists() else "no such model"
    raise InputError(f"{path}: {missing}; {EXPECTED}")
  directory = path
  while True:
    for model in (directory, directory / "model"):
      if (model / _VARIABLES).with_suffix(".index").is_file():
        return _home(model), str(model / _VARIABLES)
    for model in (directory, directory / "model"):
      prefix = _checkpoint_in(model)
      if prefix is not None:
        return _home(model), prefix
    inside = [
      entry for entry in directory.iterdir() if not entry.name.startswith(".")
    ]
    if len(inside) != 1 or inside[0].is_symlink() or not inside[0].is_dir():
      raise InputError(f"{path}: no TensorFlow model in it; {EXPECTED}")
    directory = inside[0]  # as tarballs unpack


def _home(directory: Path) -> Path:
  """Returns what lies around a model: PCA and configuration."""
  if directory.name == "variables":
    directory = directory.parent
  return directory.parent if directory.name == "model" else directory


def _checkpoint_in(directory: Path) -> str | None:
  """Returns the latest checkpoint of a directory, or its only one.

  Raises:
    InputError: if it holds several and does not say which is the latest.
  """
  if not directory.is_dir():
    return None
  state = directory / "checkpoint"
  if state.is_file() and state.stat().st_size <= 2**20:
    text = state.read_text("utf-8", "replace")
    latest = re.search(r'^model_checkpoint_path: "(.+)"', text, re.MULTILINE)
    # Directories in it are those of the computer that wrote it.
    name = PurePosixPath(latest[1]).name if latest else ""
    if name and (directory / f"{name}.index").is_file():
      return str(directory / name)
    if name and tensor_bundle.is_v1(directory / name):
      return str(directory / name)
  entries = [entry for entry in sorted(directory.iterdir()) if entry.is_file()]
  found = [
    str(entry).removesuffix(".index")
    for entry in entries
    if entry.suffix == ".index"
  ] or [
    str(entry)
    for entry in entries
    if re.search(r"\.ckpt(-\d+)?$", entry.name) and tensor_bundle.is_v1(entry)
  ]
  if len(found) > 1:
    names = ", ".join(Path(prefix).name for prefix in found[:4])
    raise InputError(
      f"{directory}: holds {len(found)} checkpoints ({names}"
      f"{', ...' if found[4:] else ''}); give one of them"
    )
  return found[0] if found else None


def _tensors(
  prefix: str,
) -> tuple[Literal["slim", "object_graph"], dict[str, np.ndarray]]:
  """Reads a checkpoint's variables by their usual names."""
  if not os.path.isfile(f"{prefix}.index"):
    read: Callable[..., dict[str, np.ndarray]] = tensor_bundle.read_v1
    graph = {}
  else:
    read = tensor_bundle.read_bundle
    graph = tensor_bundle.read_object_graph(prefix)
  if not graph:
    tensors = read(prefix, select=lambda name: not _SLOT.search(name))
    return "slim", _without_averages(tensors)
  names = _object_names(graph)
  tensors = read(prefix, select=names.__contains__)
  named = {names[key]: value for key, value in tensors.items()}
  return "object_graph", dict(sorted(named.items()))


def _object_names(
  graph: Mapping[str, tensor_bundle.Variable],
) -> dict[str, str]:
  """Returns checkpoint key -> usual name, for a network's variables."""
  names = {}
  exported = any(key.startswith("variables/") for key in graph)
  for key, variable in graph.items():
    if exported and key.startswith("_all_variables/"):
      continue  # copies, which Keras 3 exports beside the variables
    name = variable.path or key.removesuffix(_VALUE)
    if _OBJECT_SLOT.search(name):
      continue
    placed = variable.path is None or _PLACE.search(name)
    if placed and variable.full_name:
      name = variable.full_name
    # Keras 3 keeps kernels behind a property.
    names[key] = re.sub(r"/_kernel$", "/kernel", name)
  if len(set(names.values())) < len(names):
    return {key: key.removesuffix(_VALUE) for key in names}
  return names


def _without_averages(
  tensors: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Drops moving averages of variables that are there themselves."""
  return {
    name.removesuffix(_AVERAGE): value
    for name, value in tensors.items()
    if not name.endswith(_AVERAGE) or name.removesuffix(_AVERAGE) not in tensors
  }


def _config_type() -> type:
  """Returns the class DelfConfig (delf/protos/delf_config.proto)."""
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(
    name="delf_jax_config.proto", package="delf.protos", syntax="proto2"
  )

  def add(name: str, *fields: tuple[int, str, int | str]) -> None:
    message = file.message_type.add(name=name)
    for number, label, kind in fields:
      entry = message.field.add(name=label, number=number)
      entry.label = field.LABEL_OPTIONAL
      if isinstance(kind, str):
        entry.type, entry.type_name = field.TYPE_MESSAGE, f".delf.protos.{kind}"
      else:
        entry.type = kind

  add(
    "DelfPcaParameters",
    (3, "pca_dim", field.TYPE_INT32),
    (4, "use_whitening", field.TYPE_BOOL),
  )
  add(
    "DelfLocalFeatureConfig",
    (1, "use_pca", field.TYPE_BOOL),
    (3, "iou_threshold", field.TYPE_FLOAT),
    (4, "max_feature_num", field.TYPE_INT32),
    (5, "score_threshold", field.TYPE_FLOAT),
    (6, "pca_parameters", "DelfPcaParameters"),
  )
  add(
    "DelfConfig",
    (2, "image_scales", field.TYPE_FLOAT),
    (3, "delf_local_config", "DelfLocalFeatureConfig"),
  )
  file.message_type[-1].field[0].label = field.LABEL_REPEATED
  # A pool of its own: the released package may be loaded beside this one.
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName("delf.protos.DelfConfig")
  )


_Config = _config_type()


def _settings(home: Path) -> dict[str, Any]:
  """Reads the DelfConfig beside a model; {} if there is none.

  Raises:
    InputError: if it cannot be understood, or there are several.
  """
  configs = []
  for entry in sorted(home.iterdir()):
    if entry.suffix != ".pbtxt" or not entry.is_file():
      continue
    if entry.stat().st_size > _MOST_CONFIG_BYTES:
      continue  # a graph's
    text = entry.read_text("utf-8", "replace")
    if re.search(r"\b(delf_local_config|image_scales)\b", text):
      configs.append((entry, text))
  if len(configs) > 1:
    raise InputError(
      f"{home}: holds {len(configs)} DelfConfigs "
      f"({configs[0][0].name}, {configs[1][0].name}); keep the one that is "
      "meant"
    )
  if not configs:
    return {}
  ((path, text),) = configs
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of a path's backslashes
      config = text_format.Parse(text, _Config(), allow_unknown_field=True)
  except (text_format.ParseError, RecursionError, ValueError) as error:
    raise InputError(
      f"{path}: not a DelfConfig ({' '.join(str(error).split())[:120]}); "
      "correct it or take it away"
    ) from error
  local = config.delf_local_config
  settings = {
    descriptor.name: _shortest(value)
    for message in (local, local.pca_parameters)
    for descriptor, value in message.ListFields()
    if descriptor.name != "pca_parameters"
  }
  if config.image_scales:
    settings["image_scales"] = tuple(map(_shortest, config.image_scales))
  for name, value in settings.items():
    values = value if isinstance(value, tuple) else (value,)
    # A threshold may be 0; no scales, no features and no dimensions may not.
    lowest = 0.0 if "threshold" in name or name.startswith("use") else 1e-6
    if not all(math.isfinite(v) and v >= lowest for v in values):
      raise InputError(f"{path}: {name} is {value}; correct it")
  return settings


def _shortest(value: Any) -> Any:
  """Returns a float32 as the decimal number that it was written as."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


class _Bounded:
  """A file of which no header can ask for much; `budget` is what it may."""

  def __init__(self, file: BinaryIO) -> None:
    self._file = file
    self.budget = _MOST_HEADER_BYTES
    self.seek, self.tell = file.seek, file.tell

  def read(self, size: int = -1) -> bytes:
    self.budget -= size
    if size < 0 or self.budget < 0:
      raise tarfile.ReadError("a header is too long")
    return self._file.read(size)


def _is_tarball(path: Path) -> bool:
  if path.name.endswith((".tar", ".tar.gz", ".tgz")):
    return True
  with open(path, "rb") as file:
    return file.read(2) == b"\x1f\x8b"


def _extract(path: Path, directory: Path) -> None:
  """Extracts from a tarball what `_read` may need, and nothing else.

  Raises:
    InputError: if it is damaged, too large, or wants to write elsewhere.
  """
  try:
    with open(path, "rb") as file:
      zipped = file.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(path, "rb") as file:
      bounded = _Bounded(file)
      with tarfile.open(fileobj=bounded, mode="r:") as archive:
        _extract_members(archive, bounded, directory)
  except _HostileError as error:
    raise InputError(
      f"{path}: {error}; nothing of it was used. Get the file from its "
      "authors again"
    ) from error
  except (
    tarfile.TarError,
    EOFError,
    OSError,
    RecursionError,
    ValueError,
    zlib.error,
  ) as error:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
      raise InputError(
        f"{path}: no room to unpack it in {directory.parent}; set TMPDIR to a "
        "directory with more"
      ) from error
    raise InputError(
      f"{path}: not a whole tarball ({' '.join(str(error).split())[:120]}); "
      "copy or download it again"
    ) from error


class _HostileError(Exception):
  """A tarball asks for what no model needs."""


def _extract_members(
  archive: tarfile.TarFile, file: _Bounded, directory: Path
) -> None:
  count = size = 0
  while (member := archive.next()) is not None:
    file.budget = _MOST_HEADER_BYTES + member.size
    count += 1
    size += max(member.size, 0)
    if count > _MOST_MEMBERS or size > _MOST_BYTES:
      raise _HostileError("it holds too much for a model")
    place = PurePosixPath(member.name)
    if member.isdir() or not _WANTED.match(place.name):
      continue
    if place.name.startswith("._"):
      continue  # macOS' metadata
    if not member.isreg() or member.issparse():
      raise _HostileError(f"{member.name!r} in it is no plain file")
    if place.is_absolute() or ".." in place.parts:
      raise _HostileError(f"{member.name!r} leads out of it")
    target = directory.joinpath(place)
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.extractfile(member) as source, open(target, "wb") as copy:
      shutil.copyfileobj(source, copy)
    if target.stat().st_size != member.size:
      raise tarfile.ReadError(f"{member.name!r} is cut off")
