"""A model's extractor as one StableHLO program, with its weights beside it.

One program serves batches and photographs of all sizes, on all the platforms
it is lowered for: the lengths of the batch, of the canvas and of every padded
pyramid level are symbols, and XLA compiles it for numbers as it does the
ordinary extractor. Behind layers of stride 2, JAX can compare and multiply
symbolic lengths only while they are polynomials and not divisions rounded
down. So a level is padded to granule * n + rest, with which every division
comes out even: by less than a granule beyond `features.pyramid`'s own
extractor, and padding changes no feature.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from delf_jax import exported, extractors
from delf_jax.checkpoint import Model
from delf_jax.errors import InputError
from delf_jax.exported import META, PROGRAM, WEIGHTS
from delf_jax.features import pyramid
from delf_jax.models.receptive_field import Layer

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LOADER = "loader.py"


def level_rule(layers: Sequence[Layer], stride: int) -> tuple[int, int]:
  """Finds the lengths behind whose layers all lengths are a * n + b, b >= 0.

  Args:
    layers: from the image to the features.
    stride: of the features.

  Returns:
    granule and rest: lengths granule * n + rest are such.
  """
  granule = math.lcm(pyramid.GRANULE, stride)
  for rest in range(granule):
    one, two = granule + rest, 2 * granule + rest
    lengths = []
    for layer in layers:
      one, two = layer.output_size(one), layer.output_size(two)
      lengths.append((one, two))
    if all(one >= two - one for one, two in lengths):
      return granule, rest
  raise ValueError(f"no rest for a granule of {granule}")


def lower(
  model: Model,
  *,
  platforms: Sequence[str],
  max_side: int,
  **options: Any,
) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
  """Lowers the extractor of a model.

  Args:
    model: a loaded checkpoint.
    platforms: of `PLATFORMS`.
    max_side: longest side of any photograph.
    options: override `model.extraction`.

  Returns:
    the portable StableHLO artifact, the weights that it reads in the order of
    its arguments, and the description of the export, without files.

  Raises:
    InputError: if a platform is unknown or `max_side` out of range.
  """
  if not platforms or not set(platforms) <= set(PLATFORMS):
    raise InputError(
      f"--platforms: expected some of {', '.join(PLATFORMS)}, not "
      f"{','.join(platforms)!r}"
    )
  if max_side > exported.MOST_SIDE:
    raise InputError(
      f"--max_side: {max_side} is too large; {exported.MOST_SIDE} is the most"
    )
  options = {**_defaults(), **model.extraction, **options}
  network, variables = extractors.pyramid_network(model)
  # The classifiers are for training; of many landmarks, they are large.
  read = jax.eval_shape(
    functools.partial(model.network.init, method="dense"),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32),
  )
  params = {name: variables["params"][name] for name in read["params"]}
  variables = {**variables, "params": params}
  run = pyramid.make_extractor(network, **options).uncompiled
  tree = {"variables": variables, "reduction": model.reduction}
  paths, weights = zip(*jax.tree.leaves_with_path(tree), strict=True)
  names = [
    jax.tree_util.keystr(path, simple=True, separator=".") for path in paths
  ]
  structure = jax.tree.structure(tree)
  levels = len(options["scales"])
  granule, rest = level_rule(model.network.feature_layers, network.stride)

  def extract(*given):
    tree = jax.tree.unflatten(structure, given[: len(names)])
    pixels, sizes, level_sizes, *shapes = given[len(names) :]
    found = run(
      tree["variables"],
      tree["reduction"],
      pixels,
      sizes,
      level_sizes,
      [leaf.shape[:2] for leaf in shapes],
    )
    return exported.Features(
      *(getattr(found, name) for name in exported.Features._fields)
    )

  with _without_source_lines():
    program = export.export(jax.jit(extract), platforms=platforms)(
      *exported.arguments(weights, levels=levels, granule=granule, rest=rest)
    )
  kept = program.module_kept_var_idx
  used = [i for i in kept if i < len(names)]
  meta = {
    "format": exported.FORMAT,
    "version": exported.VERSION,
    "fingerprint": model.fingerprint,
    "settings": {**options, "max_side": max_side},
    "normalisation": dataclasses.asdict(model.normalisation),
    "receptive_field": dataclasses.asdict(model.network.receptive_field),
    "reduction_dim": (
      None if model.reduction is None else len(model.reduction.components)
    ),
    "descriptor_dim": program.out_avals[3].shape[-1],
    "canvases": pyramid.canvases(max_side),
    "provenance": dict(model.provenance),
    "program": {
      "platforms": list(program.platforms),
      "calling_convention_version": program.calling_convention_version,
      "jax": jax.__version__,
      "granule": granule,
      "rest": rest,
      "weights": [names[i] for i in used],
    },
  }
  return (
    bytes(program.mlir_module_serialized),
    {names[i]: np.asarray(weights[i]) for i in used},
    meta,
  )


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
  """Keeps the paths of this machine out of what is lowered."""
  name = "jax_traceback_in_locations_limit"
  before = jax.config.values[name]
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def _defaults() -> dict[str, Any]:
  """What `pyramid.make_extractor` does when it is not told otherwise."""
  parameters = inspect.signature(pyramid.make_extractor).parameters.values()
  return {p.name: p.default for p in parameters if p.default is not p.empty}


def write(
  directory: str | os.PathLike,
  program: bytes,
  weights: Mapping[str, np.ndarray],
  meta: Mapping[str, Any],
) -> None:
  """Writes an export, whole or not at all, and replaces an old one.

  Args:
    directory: of the export.
    program: see `lower`, as the others.
    weights: float32.
    meta: see above.

  Raises:
    InputError: if something else lies there, or it cannot be written.
  """
  directory = Path(directory).absolute()
  files = {PROGRAM: program, WEIGHTS: _safetensors(weights)}
  meta = {
    **meta,
    "files": {
      name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
      for name, data in files.items()
    },
  }
  meta = json.loads(json.dumps(meta))  # as it will be read
  meta["sha256"] = exported.checksum(meta)
  files[META] = (json.dumps(meta, indent=1) + "\n").encode("ascii")
  files[LOADER] = Path(exported.__file__).read_bytes()
  check_replaceable(directory)
  aside = None
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(
      tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent)
    )
    new, old = aside / "new", aside / "old"
    new.mkdir()
    for name, data in files.items():
      with open(new / name, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if directory.exists():
      directory.rename(old)
    try:
      new.rename(directory)
    except BaseException:
      if old.exists():
        old.rename(directory)
      raise
  except OSError as error:
    raise InputError(
      f"cannot write {os.fspath(directory)!r}: {error.strerror}; make room or "
      f"choose another --output"
    ) from error
  finally:
    if aside is not None:
      shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(directory: str | os.PathLike) -> None:
  """Refuses a directory that holds something else than an export.

  Raises:
    InputError: naming it.
  """
  directory = Path(directory)
  try:
    if not directory.exists() or not any(directory.iterdir()):
      return
    meta = json.loads((directory / META).read_bytes())
    if isinstance(meta, dict) and meta.get("format") == exported.FORMAT:
      return
  except (OSError, ValueError, RecursionError):
    pass
  raise InputError(
    f"{os.fspath(directory)!r} exists and is no export; choose another --output"
  )


def _safetensors(weights: Mapping[str, np.ndarray]) -> bytes:
  """Writes named float32 arrays in the safetensors format."""
  header, position = {}, 0
  for name, array in weights.items():
    if array.dtype != np.float32:
      raise ValueError(f"{name} is {array.dtype}; weights are float32")
    end = position + array.nbytes
    header[name] = {
      "dtype": "F32",
      "shape": array.shape,
      "data_offsets": [position, end],
    }
    position = end
  text = json.dumps(header).encode("ascii")
  text += b" " * (-len(text) % 8)
  arrays = (array.astype("<f4").tobytes() for array in weights.values())
  return b"".join([len(text).to_bytes(8, "little"), text, *arrays])
