"""Checkpoints: of a training run, and of a model that is ready to extract.

A model checkpoint is a directory with `meta.json` (architecture, weight
layout, pixel normalisation, receptive field, extraction settings, provenance,
fingerprint) and `arrays/` (parameters, statistics and reduction, written by
Orbax). It and photographs are all that extraction needs. This module alone
knows Orbax.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils as multihost
from orbax.checkpoint import v1 as ocp

from delf_jax.errors import InputError
from delf_jax.features.reduction import Reduction
from delf_jax.models import resnet
from delf_jax.models.delf import Delf
from delf_jax.models.normalisation import Normalisation
from delf_jax.models.resnet import ResNet

FORMAT_VERSION = 1
META = "meta.json"
ARRAYS = "arrays"
MODEL = "model"  # where a training run keeps its model


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that is ready to extract.

  Attributes:
    network: the module; its `dense` method computes features.
    variables: parameters and BatchNorm statistics.
    normalisation: of pixels.
    reduction: L2 -> PCA -> L2, or None.
    extraction: keyword arguments of `features.pyramid.make_extractor`.
    provenance: what it was trained on and how; free-form JSON.
    fingerprint: hex digest of all the above but the provenance.
  """

  network: Delf
  variables: dict[str, Any]
  normalisation: Normalisation
  reduction: Reduction | None
  extraction: Mapping[str, Any]
  provenance: Mapping[str, Any]
  fingerprint: str


def build_network(
  *,
  units: tuple[int, ...],
  width: int,
  layout: str,
  num_classes: int,
  end_stride: int = 1,
  attention_hidden: int = 512,
  pool_normalised: bool = True,
  code_dim: int = 0,
  cosine_classifier: bool = False,
  frozen_norm: bool = False,
  momentum: float = 0.9,
  axis_name: str | None = None,
  dtype: str = "float32",
) -> Delf:
  """Builds the module from plain values, as a config or `meta.json` has them.

  See `Delf` and `ResNet` for what they mean.

  Raises:
    InputError: if the layout is not one of `resnet.LAYOUTS`.
  """
  if layout not in resnet.LAYOUTS:
    raise InputError(
      f"unknown weight layout {layout!r}; expected one of "
      f"{', '.join(sorted(resnet.LAYOUTS))}"
    )
  return Delf(
    backbone=ResNet(
      units=tuple(units),
      width=width,
      layout=layout,
      end_stride=end_stride,
      momentum=momentum,
      axis_name=axis_name,
      dtype=jnp.dtype(dtype),
    ),
    num_classes=num_classes,
    attention_hidden=attention_hidden,
    pool_normalised=pool_normalised,
    code_dim=code_dim,
    cosine_classifier=cosine_classifier,
    frozen_norm=frozen_norm,
  )


def _architecture(network: Delf) -> dict[str, Any]:
  backbone = network.backbone
  return {
    "units": list(backbone.units),
    "width": backbone.width,
    "layout": backbone.layout,
    "end_stride": backbone.end_stride,
    "attention_hidden": network.attention_hidden,
    "pool_normalised": network.pool_normalised,
    "code_dim": network.code_dim,
    "cosine_classifier": network.cosine_classifier,
    "num_classes": network.num_classes,
  }


def _tree(variables, reduction: Reduction | None) -> dict[str, Any]:
  tree = {"variables": variables}
  if reduction is not None:
    tree["reduction"] = dataclasses.asdict(reduction)
  return tree


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _named(tree) -> dict[str, Any]:
  return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _fingerprint(meta: Mapping[str, Any], tree) -> str:
  digest = hashlib.sha256()
  described = {
    key: meta[key] for key in ("architecture", "normalisation", "extraction")
  }
  digest.update(json.dumps(described, sort_keys=True).encode())
  for name, leaf in sorted(_named(tree).items()):
    digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def save_model(
  directory: str | os.PathLike,
  *,
  network: Delf,
  variables: Mapping[str, Any],
  normalisation: Normalisation,
  reduction: Reduction | None,
  extraction: Mapping[str, Any],
  provenance: Mapping[str, Any],
) -> str:
  """Writes a model checkpoint, whole or not at all, and replaces an old one.

  Of several processes all must call this; the first writes.

  Returns:
    its fingerprint.

  Raises:
    InputError: if it cannot be written.
  """
  directory = Path(directory)
  tree = jax.tree.map(np.asarray, _tree(dict(variables), reduction))
  field = network.receptive_field
  meta = {
    "format_version": FORMAT_VERSION,
    "architecture": _architecture(network),
    "normalisation": dataclasses.asdict(normalisation),
    "receptive_field": dataclasses.asdict(field),
    "extraction": dict(extraction),
    "reduction_dim": None if reduction is None else len(reduction.components),
    "provenance": dict(provenance),
  }
  meta["fingerprint"] = _fingerprint(json.loads(json.dumps(meta)), tree)
  mine = multihost.broadcast_one_to_all(np.int32(os.getpid()))
  new = directory.with_name(f".{directory.name}.new-{mine}")
  old = directory.with_name(f".{directory.name}.old-{mine}")
  writes = jax.process_index() == 0
  try:
    with _writing(directory):
      if writes:
        new.mkdir(parents=True)
        _check_room(new, tree)
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


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
  """Turns what Orbax and the system say of a failed write into one line."""
  try:
    yield
  except (OSError, ValueError, RuntimeError) as error:
    reason = str(error).strip().splitlines()[0]
    full = "No space left on device" in reason or "RESOURCE_EXH" in reason
    raise InputError(
      f"cannot write {path}: {'the disk is full' if full else reason[:160]}; "
      f"what was saved before is whole: make room and run the same command"
    ) from error


def _check_room(path: Path, tree) -> None:
  """Refuses to begin what cannot end: Orbax reports a full disk at length."""
  needed = 1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + 2**16
  free = shutil.disk_usage(path).free
  if free < needed:
    raise InputError(
      f"cannot write {path}: {free / 2**20:.1f} MiB are free on the disk and a "
      f"checkpoint takes {needed / 2**20:.1f}; what was saved before is whole: "
      f"make room and run the same command"
    )


def find_model(path: str | os.PathLike) -> Path:
  """Returns the model checkpoint at `path` or inside the training run there.

  Raises:
    InputError: if there is none.
  """
  path = Path(path)
  for candidate in (path, path / MODEL):
    if (candidate / META).is_file():
      return candidate
  if not path.exists():
    raise InputError(
      f"{path}: no such checkpoint; expected a directory that "
      f"delf_jax.train wrote, or rootsift or sift"
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
    tree = _load_arrays(path, network, meta["reduction_dim"])
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


def _load_arrays(path: Path, network: Delf, reduction_dim: int | None):
  """Restores the arrays and refuses those of another architecture."""
  variables = abstract_variables(network)
  reduction = None
  if reduction_dim is not None:
    attention = variables["params"]["attention"]
    channels = network.code_dim or attention["conv1"]["kernel"].shape[2]
    shapes = ((channels,), (reduction_dim, channels), (reduction_dim,))
    reduction = Reduction(
      *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    )
  expected = _tree(variables, reduction)
  found = _read_tree_shapes(path / ARRAYS)
  problems = _differences(_named(expected), found)
  if problems:
    raise InputError(
      f"{path}: its arrays are of another network than the "
      f"{network.backbone.layout!r} one that {META} declares: "
      f"{problems}; use the checkpoint as it was written"
    )
  return _restore(path / ARRAYS, expected)


def abstract_variables(network: Delf) -> dict[str, Any]:
  """Returns the shapes and types of a network's variables."""
  network = network.clone(backbone=network.backbone.clone(axis_name=None))
  return jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )


def check_same_architecture(network: Delf, other: Delf, name: str) -> None:
  """Refuses weights of a backbone that another network cannot take.

  Args:
    network: the one to be filled.
    other: the one that the checkpoint holds.
    name: of the checkpoint, for the message.

  Raises:
    InputError: naming every field that differs.
  """
  ours, theirs = _architecture(network), _architecture(other)
  keys = ("units", "width", "layout", "end_stride")
  differing = [
    f"{key} {theirs[key]} instead of {ours[key]}"
    for key in keys
    if theirs[key] != ours[key]
  ]
  if differing:
    raise InputError(
      f"{name}: a checkpoint of another network: {', '.join(differing)}; "
      f"change the config's model or start from another checkpoint"
    )


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  missing = sorted(expected.keys() - found.keys())
  extra = sorted(found.keys() - expected.keys())
  shapes = [
    f"{name} is {found[name]}, not {tuple(expected[name].shape)}"
    for name in sorted(expected.keys() & found.keys())
    if found[name] != tuple(expected[name].shape)
  ]
  parts = [f"missing {name}" for name in missing]
  parts += [f"unexpected {name}" for name in extra] + shapes
  shown = parts[:4] + ([f"and {len(parts) - 4} more"] if parts[4:] else [])
  return ", ".join(shown)


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
    return {name: tuple(leaf.shape) for name, leaf in _named(metadata).items()}
  except Exception as error:
    raise _unreadable(path, error) from error


def _restore(path: Path, abstract):
  empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
  try:
    return ocp.load(path.absolute(), empty)
  except Exception as error:
    raise _unreadable(path, error) from error


class RunCheckpoints:
  """The checkpoints of one training stage, newest last.

  Saving happens in the background; a killed run leaves whole checkpoints. Of
  several processes all call every method; the first writes, and all read.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int = 2,
    best_by: str | None = None,
  ):
    """Opens or makes `directory`.

    Args:
      directory: of the stage.
      keep: how many of the newest checkpoints stay.
      best_by: the figure whose highest value among the saved `figures` marks
        a checkpoint that stays as well.
    """
    policies = ocp.training.preservation_policies
    preserved = [policies.LatestN(keep)]
    if best_by is not None:
      preserved.append(
        policies.BestN(
          get_metric_fn=lambda figures: figures[best_by],
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._best_by = best_by
    self._directory = Path(directory).absolute()
    with _writing(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
    self._checkpointer = ocp.training.Checkpointer(
      self._directory,
      preservation_policy=policies.AnyPreservationPolicy(preserved),
      cleanup_tmp_directories=True,
    )

  def save(
    self,
    step: int,
    state,
    *,
    batches: int,
    figures: Mapping[str, float] | None = None,
  ) -> None:
    """Begins to save what a run needs to go on after `step`.

    Args:
      step: of the stage.
      state: tree of arrays, the same on every process.
      batches: taken from the data so far: the state of its iterator.
      figures: of the validation at this step, if there was one.

    Raises:
      InputError: if this one, or the one before, cannot be written.
    """
    arrays = _as_arrays(state)
    if figures is None or self._best_by not in figures:
      figures = None
    with _writing(self._directory):
      self._checkpointer.wait()
      _check_room(self._directory, arrays)
      self._checkpointer.save_async(
        step,
        arrays,
        metrics=None if figures is None else dict(figures),
        custom_metadata={"batches": batches},
        force=True,
      )

  @property
  def steps(self) -> tuple[int, ...]:
    """The steps that have a checkpoint, ascending."""
    return tuple(info.step for info in self._checkpointer.checkpoints)

  def best(self) -> int | None:
    """Returns the step with the highest figure; None before a validation."""
    scored = [
      (info.metrics[self._best_by], info.step)
      for info in self._checkpointer.checkpoints
      if info.metrics
    ]
    return max(scored)[1] if scored else None

  def restore(self, state, step: int | None = None) -> tuple[Any, int]:
    """Returns a saved state and how many batches it had taken.

    Args:
      state: of the same shapes; returned, with 0, if nothing was saved.
      step: which checkpoint; the newest by default.

    Raises:
      InputError: if the checkpoint is damaged or of another network.
    """
    infos = {info.step: info for info in self._checkpointer.checkpoints}
    if not infos:
      return state, 0
    step = max(infos) if step is None else step
    arrays = _as_arrays(state)
    where = f"{self._directory}/{step}"
    try:
      metadata = self._checkpointer.metadata(infos[step])
      found = {
        name: tuple(leaf.shape)
        for name, leaf in _named(metadata.metadata).items()
      }
      batches = metadata.custom_metadata["batches"]
      if not found:  # what Orbax makes of a damaged description
        raise ValueError("its description is damaged")
    except Exception as error:
      raise self._unreadable(step, error) from error
    problems = _differences(_named(arrays), found)
    if problems:
      raise InputError(
        f"{where}: a checkpoint of another network or optimiser: {problems}; "
        f"use another --workdir or the config it was started with"
      )
    try:
      loaded = self._checkpointer.load(infos[step], arrays)
    except Exception as error:
      raise self._unreadable(step, error) from error
    return (
      jax.tree.map_with_path(lambda path, _: loaded[_name(path)], state),
      batches,
    )

  def _unreadable(self, step: int, error: Exception) -> InputError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    others = [other for other in self.steps if other != step]
    way = (
      f"remove it to go on from step {others[-1]}"
      if others
      else ("remove it to begin the stage anew")
    )
    return InputError(
      f"{self._directory}/{step}: cannot be read as a checkpoint "
      f"({reason[0][:160]}); {way}"
    )

  def close(self) -> None:
    """Waits for a save in progress.

    Raises:
      InputError: if it could not be written.
    """
    with _writing(self._directory):
      self._checkpointer.close()


def _as_arrays(state) -> dict[str, np.ndarray]:
  """Flattens any tree into NumPy arrays, named by their place in it."""
  return {
    _name(path): np.asarray(leaf)
    for path, leaf in jax.tree.leaves_with_path(state)
  }
