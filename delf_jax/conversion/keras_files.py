"""Weights of Keras, read without Keras.

Three layouts: the HDF5 of Keras 1 and 2 (weights alone, or a whole model with
the group `model_weights`; Keras 3 still writes the latter as `.h5`), the
`.weights.h5` of Keras 3, and its `.keras` archive, which holds such a file.
"""

import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from delf_jax.conversion import first_bytes, hdf5
from delf_jax.errors import InputError

# The members of an archive may be this many times as large as the archive, for
# one that is compressed, and this many bytes larger.
_RATIO = 100
_ALLOWANCE = 64 << 20

_DEPTH = 64  # of groups in groups

# Keras 3 numbers the variables of a layer; these are their names.
_NORMALISATION = ["gamma", "beta", "moving_mean", "moving_variance"]

# The names of Keras 1. Its "running_std" is a variance.
_KERAS_1 = {
  "W": "kernel",
  "b": "bias",
  "gamma": "gamma",
  "beta": "beta",
  "running_mean": "moving_mean",
  "running_std": "moving_variance",
}

# What Keras 3 calls the group of a model's layers, now and in TensorFlow 2.12.
_LAYERS = ("layers", "_layer_checkpoint_dependencies")

# What else Keras 3 saves of a model: no weights.
_STATES = ("metrics", "optimizer")


def read_keras(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the weights of a Keras model.

  Args:
    path: a `.h5`, `.weights.h5` or `.keras` file, of any name.

  Returns:
    arrays by "layer/variable", of the stored type, kernels in Keras' layout
    (height, width, in, out); bfloat16 becomes float32, which holds it exactly.
    Layers of a model inside the model are "model/layer/variable". The
    variables are named as Keras 2 and 3 name them: kernel, bias, gamma, beta,
    moving_mean, moving_variance.

    `.weights.h5` has no names of variables: four vectors of one size are taken
    for a batch normalisation, one array of two or more axes for a kernel, one
    and a vector for kernel and bias; the others keep their number ("layer/0").
    The layers have their names since Keras 3.6. Before, and from TensorFlow's
    Keras, they have that of their class and a number, in the order of
    `model.layers` ("conv2d", "conv2d_1", "batch_normalization"); in a `.keras`
    archive the model's configuration still gives the names. In a subclassed
    model, without a name it is the attribute's. The states of optimiser and
    metrics are left out.

  Raises:
    InputError: if the file cannot be read, is damaged or of another kind, or
      uses parts of HDF5 that weights do not need, such as links.
  """
  name = os.fspath(path)
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise InputError(f"cannot read {name!r}: it is not a file")
    with open(path, "rb") as file:
      start = file.read(first_bytes.LENGTH)
      file.seek(0)
      if start.startswith(hdf5.SIGNATURE):
        return _Reader(name, file.read()).read({})
      if start.startswith(b"PK\x03\x04"):
        data, names = _unpack(file, name)
        return _Reader(name, data).read(names)
  except InputError:
    raise
  except OSError as error:
    reason = error.strerror or error
    raise InputError(f"cannot read {name!r}: {reason}") from error
  except hdf5.UnreadError as error:
    raise InputError(
      f"{name!r} holds {error}, which weights do not need; load it with Keras "
      "and save the weights again"
    ) from error
  except Exception as error:
    # zipfile promises no exception types for damaged data.
    raise InputError(
      f"{name!r} is not a whole Keras file "
      f"({' '.join(str(error).split())[:100] or type(error).__name__}); copy "
      "or download it again"
    ) from error
  raise InputError(f"{name!r} {first_bytes.advice(start)}")


def _unpack(
  file: IO[bytes], name: str
) -> tuple[bytes, dict[tuple[str, ...], str]]:
  """Unpacks a `.keras` archive: its HDF5 file, and names by group."""
  with zipfile.ZipFile(file) as archive:
    members = {member.filename: member for member in archive.infolist()}
    weights = members.get("model.weights.h5")
    if weights is None:
      raise InputError(
        f"{name!r} is a zip archive without model.weights.h5; give a .keras "
        "file that model.save wrote"
      )
    names = {}
    if "config.json" in members:
      config = json.loads(_member(archive, members["config.json"], name))
      names = dict(_configured(config, ()))
    return _member(archive, weights, name), names


def _member(
  archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str
) -> bytes:
  if member.file_size > _RATIO * os.path.getsize(name) + _ALLOWANCE:
    raise ValueError("its parts are much larger than the whole")
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f"compression of kind {member.compress_type}")
  with archive.open(member) as file:
    # Up to what it claims: without a limit, all would be unpacked first.
    return file.read(member.file_size)


def _configured(
  config: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
  """The groups of the layers in a model's configuration, and their names."""
  inner = config.get("config")
  layers = inner.get("layers") if isinstance(inner, dict) else None
  seen = {}
  for layer in layers if isinstance(layers, list) else ():
    # conv2d, conv2d_1, conv2d_2 ...
    kind = _snake_case(layer["class_name"])
    number = seen[kind] = seen.get(kind, -1) + 1
    group = (*path, _LAYERS[0], f"{kind}_{number}" if number else kind)
    yield group, layer["config"]["name"]
    yield from _configured(layer, group)


def _snake_case(name: str) -> str:
  return re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()


class _Reader:
  """Reads one HDF5 file."""

  def __init__(self, name: str, data: bytes) -> None:
    self._name = name
    self._root = hdf5.File(data).root
    self._visited = set()
    self._found = {}

  def read(self, names: Mapping[tuple[str, ...], str]) -> dict[str, np.ndarray]:
    """Reads a file of any layout; `names` are those of layers by group."""
    root = self._root.children.get("model_weights", self._root)
    if root.texts("layer_names") or root.texts("layer_names0"):
      self._read_classic(root)
    elif {"vars", *_LAYERS} & root.children.keys():
      self._read_numbered(root, (), [], names)
    else:
      raise InputError(
        f"{self._name!r} is an HDF5 file without weights of Keras; give what "
        "save_weights or save wrote, of Keras 1.0 or later"
      )
    return self._found

  def _read_classic(self, root: hdf5.Item) -> None:
    """Reads the layout of Keras 1 and 2: weights listed by layer."""
    layers = _list(root, "layer_names")
    if "top_level_model_weights" in root.children:
      layers.append("top_level_model_weights")
    for layer in layers:
      group = _item(root, layer)
      for weight in _list(group, "weight_names"):
        array = _item(group, weight).array()
        self._add(_classic_name(layer, weight), array)

  def _read_numbered(
    self,
    group: hdf5.Item,
    place: tuple[str, ...],
    path: list[str],
    names: Mapping[tuple[str, ...], str],
  ) -> None:
    """Reads the layout of Keras 3: groups of groups, variables by number.

    Args:
      group: to read.
      place: of the group in the file.
      path: what it is called in the result.
      names: of groups, by place, where the group itself has none.
    """
    if group.address in self._visited or len(place) > _DEPTH:
      raise ValueError("a group inside itself")
    self._visited.add(group.address)
    own = group.children.get("vars")
    if own is not None:
      if place:
        given = own.texts("name") or [names.get(place, path[-1])]
        path = [*path[:-1], given[0]]
      arrays = {
        key: item.array()
        for key, item in sorted(
          own.children.items(), key=lambda x: (len(x[0]), x[0])
        )
      }
      for variable, array in _named(arrays).items():
        self._add("/".join([*(path or ["vars"]), variable]), array)
    for key, child in group.children.items():
      if key == "vars" or (key in _STATES and not place):
        continue
      is_list = key in _LAYERS
      self._read_numbered(
        child,
        (*place, _LAYERS[0] if is_list else key),
        path if is_list else [*path, key],
        names,
      )

  def _add(self, key: str, array: np.ndarray) -> None:
    if key in self._found:
      raise InputError(
        f"{self._name!r} holds two weights called {key[:100]!r}; save the "
        "model again, with different names of layers"
      )
    self._found[key] = array


def _item(group: hdf5.Item, path: str) -> hdf5.Item:
  for key in path.split("/"):
    if key not in group.children:
      raise ValueError(f"{key[:50]!r} is listed but not there")
    group = group.children[key]
  return group


def _list(item: hdf5.Item, name: str) -> list[str]:
  """A list of names, which Keras splits into numbered ones if it is long."""
  names = item.texts(name)
  if names is None:
    names = []
    number = 0
    while (part := item.texts(f"{name}{number}")) is not None:
      names += part
      number += 1
  return names


def _classic_name(layer: str, weight: str) -> str:
  """Names a weight of Keras 1 or 2.

  Args:
    layer: its group: a layer, or a model inside the model.
    weight: its name there, such as conv1/kernel:0 in a layer conv1 or in a
      model, outer/conv1/kernel, conv1_1/kernel:0 if the model was built twice,
      and conv1_W:0 or conv1_W_1:0 in Keras 1.
  """
  scope, _, variable = re.sub(r":\d+$", "", weight).rpartition("/")
  if not scope:
    found = re.fullmatch(rf"(?:.*_)?({'|'.join(_KERAS_1)})(?:_\d+)?", variable)
    if found and layer != "top_level_model_weights":
      variable = _KERAS_1[found[1]]
    return f"{layer}/{variable}"
  _, is_inside, rest = f"/{scope}/".partition(f"/{layer}/")
  if is_inside:
    scope = rest.strip("/")
  elif re.fullmatch(rf"(.*/)?{re.escape(layer)}_\d+", scope):
    scope = ""
  return "/".join(part for part in (layer, scope, variable) if part)


def _named(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Names the variables of a layer by their shapes, if these say enough."""
  names = list(arrays)
  shapes = [array.shape for array in arrays.values()]
  if names == [str(i) for i in range(len(names))]:
    ranks = [len(shape) for shape in shapes]
    if ranks == [1] * 4 and len(set(shapes)) == 1:
      names = _NORMALISATION
    elif ranks[:1] and ranks[0] >= 2 and ranks[1:] in ([], [1]):
      names = ["kernel", "bias"]
  return dict(zip(names, arrays.values(), strict=False))
