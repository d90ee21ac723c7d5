"""A model that is ready to extract, on disk.

A directory with `meta.json` (architecture, weight layout, pixel normalisation,
receptive field, extraction settings, provenance, fingerprint) and `arrays/`
(parameters, statistics and reduction, written by Orbax; see `compression` for
what weights may be kept as). It and photographs are all that extraction needs.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils as multihost
from orbax.checkpoint import v1 as ocp

from delf_jax.checkpoint.architecture import (
  abstract_variables,
  architecture,
  build_network,
)
from delf_jax.checkpoint.arrays import check_room, differences, named, writing
from delf_jax.checkpoint.compression import compress, expand
from delf_jax.checkpoint.shipped import NAMES, shipped
from delf_jax.errors import InputError
from delf_jax.features.reduction import Reduction
from delf_jax.models.delf import Delf
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.models.normalisation import Normalisation

FORMAT_VERSION = 1
META = "meta.json"
ARRAYS = "arrays"
MODEL = "model"  # where a training run keeps its model


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that is ready to extract.

  Attributes:
    network: the module; its `dense` method computes features, or, of a
      `GlobalDescriptor`, its call the descriptor.
    variables: parameters and BatchNorm statistics.
    normalisation: of pixels.
    reduction: L2 -> PCA -> L2, or None.
    extraction: keyword arguments of `features.pyramid.make_extractor`, or of
      `features.resolutions.make_describer`.
    provenance: what it was trained on and how; free-form JSON.
    fingerprint: hex digest of all the above but the provenance.
  """

  network: Delf | GlobalDescriptor
  variables: dict[str, Any]
  normalisation: Normalisation
  reduction: Reduction | None
  extraction: Mapping[str, Any]
  provenance: Mapping[str, Any]
  fingerprint: str


def _tree(variables, reduction: Reduction | None) -> dict[str, Any]:
  tree = {"variables": variables}
  if reduction is not None:
    tree["reduction"] = dataclasses.asdict(reduction)
  return tree


def _fingerprint(meta: Mapping[str, Any], tree) -> str:
  digest = hashlib.sha256()
  described = {
    key: meta[key] for key in ("architecture", "normalisation", "extraction")
  }
  digest.update(json.dumps(described, sort_keys=True).encode())
  for name, leaf in sorted(named(tree).items()):
    digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def save_model(
  directory: str | os.PathLike,
  *,
  network: Delf | GlobalDescriptor,
  variables: Mapping[str, Any],
  normalisation: Normalisation,
  reduction: Reduction | None,
  extraction: Mapping[str, Any],
  provenance: Mapping[str, Any],
  weights: str = "float32",
) -> str:
  """Writes a model checkpoint, whole or not at all, and replaces an old one.

  Of several processes all must call this; the first writes.

  Args:
    directory: of the checkpoint.
    network: and all the others: see `Model`.
    weights: what they are kept as: "float32", "float16" or "int8".

  Returns:
    its fingerprint, which is that of the weights as they will be read.

  Raises:
    InputError: if it cannot be written, or the directory holds anything else
      than a checkpoint, which would be lost.
  """
  directory = Path(directory)
  if not _may_replace(directory):
    raise InputError(
      f"{directory}: holds other files, and a checkpoint would take their "
      f"place; give a directory of its own"
    )
  kept = jax.tree.map(np.asarray, compress(dict(variables), weights))
  tree = jax.tree.map(np.asarray, _tree(kept, reduction))
  field = network.receptive_field
  meta = {
    "format_version": FORMAT_VERSION,
    "architecture": architecture(network),
    "normalisation": dataclasses.asdict(normalisation),
    "receptive_field": dataclasses.asdict(field),
    "extraction": dict(extraction),
    "reduction_dim": None if reduction is None else len(reduction.components),
    "weights": weights,
    "provenance": dict(provenance),
  }
  meta["fingerprint"] = _fingerprint(
    json.loads(json.dumps(meta)), _tree(expand(kept), reduction)
  )
  mine = multihost.broadcast_one_to_all(np.int32(os.getpid()))
  new = directory.with_name(f".{directory.name}.new-{mine}")
  old = directory.with_name(f".{directory.name}.old-{mine}")
  writes = jax.process_index() == 0
  try:
    with writing(directory):
      if writes:
        new.mkdir(parents=True)
        check_room(new, tree)
      ocp.save((new / ARRAYS).absolute(), tree)
      if writes:
        (new / META).write_text(json.dumps(meta, indent=2) + "\n")
        if directory.exists():
          directory.rename(old)
        new.rename(directory)
  finally:
    if writes:
      shutil.rmtree(new, ignore_errors=True)
      shutil.rmtree(old, ignore_errors=True)
  return meta["fingerprint"]


def _may_replace(directory: Path) -> bool:
  if not directory.exists():
    return True
  return directory.is_dir() and (
    (directory / META).is_file() or not any(directory.iterdir())
  )


def find_model(path: str | os.PathLike) -> Path:
  """Returns the model checkpoint at `path` or inside the training run there.

  Args:
    path: or the name of a checkpoint that comes with the package.

  Raises:
    InputError: if there is none.
  """
  path = shipped(os.fspath(path)) or Path(path)
  for candidate in (path, path / MODEL):
    if (candidate / META).is_file():
      return candidate
  if not path.exists():
    raise InputError(
      f"{path}: no such checkpoint; expected a directory that "
      f"delf_jax.train wrote, {', '.join(NAMES)}, rootsift or sift"
    )
  raise InputError(
    f"{path}: holds no finished model ({META} is missing); run "
    f"delf_jax.train with this --workdir to finish it"
  )


def load_model(path: str | os.PathLike) -> Model:
  """Reads a model checkpoint, or the one inside a training run's directory.

  Raises:
    InputError: if it is missing, damaged, of a future version, or its arrays
      do not fit the architecture it declares.
  """
  path = find_model(path)
  try:
    meta = json.loads((path / META).read_text())
    version = meta["format_version"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{path / META}: not a readable checkpoint description ({error})"
    ) from error
  if version > FORMAT_VERSION:
    raise InputError(
      f"{path}: written by a newer delf_jax (format {version}, this one "
      f"reads {FORMAT_VERSION}); update delf_jax"
    )
  try:
    network = build_network(**meta["architecture"])
    normalisation = Normalisation(
      **{key: tuple(value) for key, value in meta["normalisation"].items()}
    )
    tree = _load_arrays(
      path, network, meta["reduction_dim"], meta.get("weights", "float32")
    )
    fingerprint = _fingerprint(meta, tree)
    if fingerprint != meta["fingerprint"]:
      raise InputError(
        f"{path}: damaged, or edited by hand: the arrays and {META} do not "
        f"have the fingerprint they were written with; copy it again or "
        f"train again"
      )
    reduction = tree.get("reduction")
    return Model(
      network=network,
      variables=tree["variables"],
      normalisation=normalisation,
      reduction=None if reduction is None else Reduction(**reduction),
      extraction=meta["extraction"],
      provenance=meta["provenance"],
      fingerprint=fingerprint,
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f"{path / META}: not a checkpoint description of this version "
      f"({type(error).__name__}: {error})"
    ) from error


def _load_arrays(
  path: Path,
  network: Delf | GlobalDescriptor,
  reduction_dim: int | None,
  weights: str,
):
  """Restores the arrays and refuses those of another architecture."""
  variables = jax.eval_shape(
    functools.partial(compress, weights=weights), abstract_variables(network)
  )
  reduction = None
  if reduction_dim is not None:
    channels = network.descriptor_channels
    shapes = ((channels,), (reduction_dim, channels), (reduction_dim,))
    reduction = Reduction(
      *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    )
  expected = _tree(variables, reduction)
  found = _read_tree_shapes(path / ARRAYS)
  problems = differences(named(expected), found)
  if problems:
    raise InputError(
      f"{path}: its arrays are of another network than the one that {META} "
      f"declares: {problems}; use the checkpoint as it was written"
    )
  tree = _restore(path / ARRAYS, expected)
  return {**tree, "variables": expand(tree["variables"])}


def _unreadable(path: Path, error: Exception) -> InputError:
  reason = str(error).strip().splitlines() or [type(error).__name__]
  return InputError(
    f"{path}: cannot be read as a checkpoint ({reason[0][:160]}); it may be "
    f"truncated: copy it again or train again"
  )


def _read_tree_shapes(path: Path) -> dict[str, tuple[int, ...]]:
  # Orbax reports damage with many exception types; all mean the same here.
  try:
    metadata = ocp.metadata(path.absolute()).metadata
    if metadata is None:  # what Orbax makes of a damaged description
      raise ValueError("its description is damaged")
    return {name: tuple(leaf.shape) for name, leaf in named(metadata).items()}
  except Exception as error:
    raise _unreadable(path, error) from error


def _restore(path: Path, abstract):
  empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
  try:
    return ocp.load(path.absolute(), empty)
  except Exception as error:
    raise _unreadable(path, error) from error
