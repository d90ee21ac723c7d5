"""Extracts features with what `delf_jax.export` wrote, and with JAX alone.

  from loader import load  # the copy beside the export; or delf_jax.exported

  extractor = load("DIR")
  features = extractor(pixels)  # [h, w, 3] uint8, RGB
  features.locations, features.scales, features.scores, features.descriptors

An export is a directory: `program.stablehlo` (the extractor, a portable
StableHLO artifact that JAX compiles here), `weights.safetensors` (its first
arguments), `meta.json` (what it is, and checksums) and `loader.py` (this file,
which imports JAX, NumPy and the standard library). Nothing is unpickled, and a
program that calls anything outside itself is refused.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FORMAT = "delf_jax export"
VERSION = 1
META = "meta.json"
PROGRAM = "program.stablehlo"
WEIGHTS = "weights.safetensors"

# The longest side of a canvas that a meta.json is believed.
MOST_SIDE = 1 << 14
# Checks of lengths that run while compiling, and how JAX before 0.10 selects
# the largest. Any other custom call could reach out of the program.
HARMLESS_CALLS = ("shape_assertion", "mhlo.topk")

_DAMAGED = "copy it again, or export again"


class ExportError(Exception):
  """An export, or a photograph, that cannot be used; the message is one line.

  The message names the file or the argument and says what to do.
  """


class Features(NamedTuple):
  """Local features of one photograph, or of several with a leading axis.

  Attributes:
    locations: [n, 2] float32, (y, x) in pixels of what was given; the centre of
      the receptive field.
    scales: [n] float32, how much larger the feature's support is than at image
      scale 1 (1 / image scale).
    scores: [n] float32, what the features were selected by, best first.
    descriptors: [n, d] float32, of unit length.
    mask: [n] bool, True for real rows; the others are zero.
  """

  locations: np.ndarray
  scales: np.ndarray
  scores: np.ndarray
  descriptors: np.ndarray
  mask: np.ndarray


class Extractor:
  """An opened export; `load` makes it.

  Photographs are padded to one of the canvases of the export, and the program
  is compiled once for every canvas and batch size, at the first photograph
  that needs it. May be called from several threads.

  Attributes:
    meta: what `meta.json` says: settings, fingerprint, provenance and so on.
  """

  def __init__(
    self,
    meta: Mapping[str, Any],
    program: export.Exported,
    weights: Sequence[np.ndarray],
  ):
    """Puts the weights on the default device."""
    self.meta = meta
    self._run = jax.jit(program.call)
    self._weights = jax.device_put(list(weights))

  def __call__(self, pixels: np.ndarray) -> Features:
    """Extracts the features of one photograph.

    Args:
      pixels: [h, w, 3] uint8, RGB, upright.

    Returns:
      the valid rows alone, NumPy arrays.

    Raises:
      ExportError: if the pixels are of another dtype or shape, or larger than
        the export was made for.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 3:
      raise ExportError(
        f"pixels of shape {pixels.shape}; a photograph is [height, width, 3]"
      )
    found = self.batch(pixels[None], np.array([pixels.shape[:2]]))
    return Features(*(leaf[found.mask] for leaf in found))

  def batch(self, pixels: np.ndarray, sizes: np.ndarray) -> Features:
    """Extracts the features of photographs that share one padded array.

    Padding and company change no feature.

    Args:
      pixels: [b, h, w, 3] uint8, RGB; what lies beyond a photograph's size is
        ignored.
      sizes: [b, 2] integers, true (height, width) of each photograph.

    Returns:
      arrays with a leading axis [b] and `max_features` rows each; `mask` says
      which are real.

    Raises:
      ExportError: as for one photograph, or if a size does not fit the array.
    """
    pixels, sizes = np.asarray(pixels), np.asarray(sizes)
    _check_photographs(pixels, sizes)
    height, width = self._canvas(*sizes.max(axis=0).tolist())
    canvas = np.zeros((len(pixels), height, width, 3), np.uint8)
    part = pixels[:, :height, :width]
    canvas[:, : part.shape[1], : part.shape[2]] = part
    scales = self.meta["settings"]["scales"]
    level_sizes = [
      [[_level_size(n, scale) for n in size] for scale in scales]
      for size in sizes.tolist()
    ]
    rule = self.meta["program"]
    shapes = [
      [_padded(_level_size(n, scale), rule) for n in (height, width)]
      for scale in scales
    ]
    found = self._run(
      *self._weights,
      canvas,
      sizes.astype(np.int32),
      np.array(level_sizes, np.int32),
      *(np.zeros((*shape, 0), bool) for shape in shapes),
    )
    return Features(*jax.device_get(found))

  def _canvas(self, height: int, width: int) -> tuple[int, int]:
    for rows, columns in self.meta["canvases"]:
      if height <= rows and width <= columns:
        return rows, columns
    raise ExportError(
      f"a photograph of {width} x {height} pixels; this export takes sides of "
      f"up to {self.meta['settings']['max_side']}: reduce the photograph, or "
      f"export again with a larger --max_side"
    )


def load(directory: str | os.PathLike) -> Extractor:
  """Opens an export; the first photograph of a size takes longer (compiling).

  Raises:
    ExportError: if it is missing, damaged, of a newer version, or was not made
      for the platform that JAX runs on here.
  """
  directory = os.fspath(directory)
  meta = _read_meta(directory)
  platform = export.default_export_platform()
  platforms = meta["program"]["platforms"]
  if platform not in platforms:
    raise ExportError(
      f"{directory!r} was exported for {', '.join(platforms)} and JAX runs on "
      f"{platform} here; export again with --platforms="
      f"{','.join([*platforms, platform])}, or set JAX_PLATFORMS"
    )
  weights = _read_weights(directory, meta)
  return Extractor(meta, _read_program(directory, meta, weights), weights)


def _level_size(length: int, scale: float) -> int:
  """Length of a pyramid level, rounded half to even."""
  return round(length * scale)


def _padded(length: int, rule: Mapping[str, Any]) -> int:
  """The least granule * n + rest, n > 0, that holds a level."""
  steps = -((rule["rest"] - length) // rule["granule"])
  return rule["granule"] * max(steps, 1) + rule["rest"]


def _check_photographs(pixels: np.ndarray, sizes: np.ndarray) -> None:
  if pixels.dtype != np.uint8:
    raise ExportError(
      f"pixels of dtype {pixels.dtype}; photographs are uint8, from 0 to 255"
    )
  if pixels.ndim != 4 or pixels.shape[3] != 3 or not len(pixels):
    raise ExportError(
      f"pixels of shape {pixels.shape}; a batch is [photographs, height, "
      f"width, 3], RGB"
    )
  if sizes.shape != (len(pixels), 2) or sizes.dtype.kind not in "iu":
    raise ExportError(
      f"sizes of shape {sizes.shape} and dtype {sizes.dtype}; they are "
      f"integers (height, width), one pair for each of {len(pixels)}"
    )
  if sizes.min() < 1 or (sizes > np.array(pixels.shape[1:3])[None]).any():
    raise ExportError(
      f"sizes from {sizes.min(axis=0).tolist()} to "
      f"{sizes.max(axis=0).tolist()} do not fit pixels of shape {pixels.shape}"
    )


def _read_meta(directory: str) -> dict[str, Any]:
  """Reads and checks `meta.json`."""
  path = os.path.join(directory, META)
  try:
    with open(path, "rb") as file:
      meta = json.loads(file.read())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise ExportError(
      f"{directory!r} is no export (it has no {META}); make one with "
      f"python -m delf_jax.export"
    ) from error
  except OSError as error:
    raise ExportError(f"{path!r} cannot be read ({error.strerror})") from error
  except (ValueError, RecursionError) as error:
    raise ExportError(f"{path!r} is damaged; {_DAMAGED}") from error
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise ExportError(
      f"{directory!r} is no export (its {META} is of something else); make one "
      f"with python -m delf_jax.export"
    )
  version = meta.get("version")
  if isinstance(version, int) and version > VERSION:
    raise ExportError(
      f"the export {directory!r} has format {version}, newer than the "
      f"{VERSION} that is read here; use the loader.py beside it"
    )
  digest = meta.pop("sha256", None)
  if digest != checksum(meta) or not _is_sound(meta):
    raise ExportError(f"{path!r} is damaged; {_DAMAGED}")
  supported = (
    export.minimum_supported_calling_convention_version,
    export.maximum_supported_calling_convention_version,
  )
  convention = meta["program"]["calling_convention_version"]
  if not supported[0] <= convention <= supported[1]:
    raise ExportError(
      f"{directory!r} was exported with JAX {meta['program']['jax']} and JAX "
      f"{jax.__version__} here cannot call it; export again with a JAX of the "
      f"same age"
    )
  return meta


def checksum(meta: Mapping[str, Any]) -> str:
  """The sha256 of a description, in hexadecimal digits."""
  return hashlib.sha256(
    json.dumps(meta, sort_keys=True).encode("ascii")
  ).hexdigest()


def _is_sound(meta: Mapping[str, Any]) -> bool:
  # The sum holds for what was written; a file made to deceive may carry a
  # right one and ask for all memory.
  try:
    settings, program = meta["settings"], meta["program"]
    counts = (
      settings["max_features"],
      settings["max_side"],
      meta["descriptor_dim"],
      program["granule"],
      *(side for canvas in meta["canvases"] for side in canvas),
    )
    return (
      all(isinstance(n, int) and 0 < n <= 1 << 20 for n in counts)
      and all(0 < len(canvas) <= 2 for canvas in meta["canvases"])
      and max(max(canvas) for canvas in meta["canvases"]) <= MOST_SIDE
      and isinstance(program["rest"], int)
      and 0 <= program["rest"] <= 1 << 10
      and isinstance(program["calling_convention_version"], int)
      and all(isinstance(name, str) for name in program["platforms"])
      and all(isinstance(name, str) for name in program["weights"])
      and 0 < len(settings["scales"]) <= 1 << 8
      and all(0 < scale <= 4 for scale in settings["scales"])
      and all(
        isinstance(meta["files"][name]["bytes"], int)
        for name in (PROGRAM, WEIGHTS)
      )
    )
  except (AttributeError, KeyError, TypeError, ValueError):
    return False


def _read(directory: str, name: str, meta: Mapping[str, Any]) -> bytes:
  """Reads a file and compares it with its checksum."""
  path, expected = os.path.join(directory, name), meta["files"][name]
  try:
    size = os.stat(path).st_size
    if size != expected["bytes"]:
      raise ExportError(
        f"{path!r} is damaged ({size} bytes instead of {expected['bytes']}); "
        f"{_DAMAGED}"
      )
    with open(path, "rb") as file:
      data = file.read()
  except FileNotFoundError as error:
    raise ExportError(f"{path!r} is missing; {_DAMAGED}") from error
  except OSError as error:
    raise ExportError(f"{path!r} cannot be read ({error.strerror})") from error
  if hashlib.sha256(data).hexdigest() != expected["sha256"]:
    raise ExportError(
      f"{path!r} is damaged (its checksum is another); {_DAMAGED}"
    )
  return data


def _read_weights(directory: str, meta: Mapping[str, Any]) -> list[np.ndarray]:
  """Views the arrays of a safetensors file, all float32."""
  data = _read(directory, WEIGHTS, meta)
  start = 8 + int.from_bytes(data[:8], "little")
  try:
    header = json.loads(data[8:start])
    found = []
    for name in meta["program"]["weights"]:
      shape = tuple(header[name]["shape"])
      first, last = header[name]["data_offsets"]
      if (
        header[name]["dtype"] != "F32"
        or not all(isinstance(n, int) and n >= 0 for n in (*shape, first))
        or last - first != 4 * math.prod(shape)
      ):
        raise ValueError(f"{name} is not as declared")
      flat = np.frombuffer(data, "<f4", math.prod(shape), start + first)
      found.append(flat.reshape(shape))
    return found
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    path = os.path.join(directory, WEIGHTS)
    raise ExportError(
      f"{path!r} is damaged ({type(error).__name__}); {_DAMAGED}"
    ) from error


def arguments(
  weights: Sequence[np.ndarray],
  *,
  levels: int,
  granule: int,
  rest: int,
) -> list[jax.ShapeDtypeStruct]:
  """Describes what the program is called with, lengths as symbols.

  Args:
    weights: or what has their shapes.
    levels: of the pyramid.
    granule: the lengths of a level are granule * n + rest.
    rest: see `granule`.

  Returns:
    weights, pixels [b, h, w, 3], sizes [b, 2], level_sizes [b, levels, 2], and
    for each level an empty array [height, width, 0], whose shape is that of
    the padded level.
  """
  sides = [
    f"{granule}*{side}{k} + {rest}" for k in range(levels) for side in "hw"
  ]
  b, h, w, *sides = export.symbolic_shape(", ".join(["b", "h", "w", *sides]))
  described = [
    *((leaf.shape, np.float32) for leaf in weights),
    ((b, h, w, 3), np.uint8),
    ((b, 2), np.int32),
    ((b, levels, 2), np.int32),
    *((tuple(sides[2 * k : 2 * k + 2]) + (0,), bool) for k in range(levels)),
  ]
  return [jax.ShapeDtypeStruct(*leaf) for leaf in described]


def _read_program(
  directory: str, meta: Mapping[str, Any], weights: Sequence[np.ndarray]
) -> export.Exported:
  """Makes the program callable.

  JAX's own file format needs a package more to be read. The artifact inside,
  with its calling convention, is what is stable about it, so a function with
  the same arguments and results is exported here, and its program replaced.
  """
  settings, program = meta["settings"], meta["program"]
  widths = {
    "locations": (2,),
    "descriptors": (meta["descriptor_dim"],),
  }

  def nothing(*given):
    shape = (given[len(weights)].shape[0], settings["max_features"])
    return Features(
      **{
        name: jnp.zeros(
          shape + widths.get(name, ()), bool if name == "mask" else np.float32
        )
        for name in Features._fields
      }
    )

  described = arguments(
    weights,
    levels=len(settings["scales"]),
    granule=program["granule"],
    rest=program["rest"],
  )
  artifact = _read(directory, PROGRAM, meta)
  outside = export.export(jax.jit(nothing), platforms=program["platforms"])(
    *described
  )
  found = dataclasses.replace(
    outside,
    fun_name="delf_jax",
    mlir_module_serialized=artifact,
    calling_convention_version=program["calling_convention_version"],
    module_kept_var_idx=tuple(range(len(described))),
  )
  path = os.path.join(directory, PROGRAM)
  try:
    text = found.mlir_module()
  except Exception as error:  # of jaxlib, of several kinds
    raise ExportError(
      f"{path!r}, written with JAX {program['jax']}, cannot be read by JAX "
      f"{jax.__version__}; update JAX, or export again with this one"
    ) from error
  calls = set(re.findall(r"custom_call\b\W*[\w.]*", text))
  strangers = calls - {f"custom_call @{name}" for name in HARMLESS_CALLS}
  if strangers:
    raise ExportError(
      f"{path!r} calls what lies outside of it "
      f"({', '.join(sorted(strangers))}); export again from the checkpoint"
    )
  if _signature(text) != _signature(outside.mlir_module()):
    raise ExportError(
      f"{path!r} is not the program of these weights; {_DAMAGED}"
    )
  return found


def _signature(text: str) -> list[str]:
  """The types that a module's main function takes and returns."""
  line = re.search(r"func\.func public @main\(.*", text)
  return re.findall(r"tensor<[^>]*>", line[0]) if line else []
