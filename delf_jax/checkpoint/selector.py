"""A learned selection of a detector's features, on disk.

A directory with `meta.json` (what it selects from, its size, extraction,
provenance, fingerprint) and `arrays.npz`. It and photographs are all that
extraction needs.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.checkpoint.arrays import (
  check_room,
  differences,
  named,
  path_name,
  writing,
)
from delf_jax.checkpoint.model import META, MODEL
from delf_jax.errors import InputError
from delf_jax.models.selector import Selector

FORMAT = "delf_jax selector"
VERSION = 1
ARRAYS = "arrays.npz"

_DESCRIBED = ("architecture", "features", "geometry", "extraction")


@dataclasses.dataclass(frozen=True)
class SelectorModel:
  """A learned selection, ready to extract.

  Attributes:
    selector: the module; its `scores` method scores features.
    variables: parameters and statistics of the inputs.
    features: settings of the stores it was trained on, to extract their like.
    geometry: what joins a descriptor; see `features.selection.inputs`.
    extraction: "score" and "max_features" of `features.selection.selecting`.
    provenance: what it was trained on and how; free-form JSON.
    fingerprint: hex digest of all the above but the provenance.
  """

  selector: Selector
  variables: dict[str, Any]
  features: Mapping[str, Any]
  geometry: tuple[str, ...]
  extraction: Mapping[str, Any]
  provenance: Mapping[str, Any]
  fingerprint: str = ""


def find_selector(path: str | os.PathLike) -> Path | None:
  """Returns the learned selection at `path` or inside the run there, if any."""
  for candidate in (Path(path), Path(path) / MODEL):
    try:
      meta = json.loads((candidate / META).read_text())
    except (OSError, ValueError):
      continue
    if isinstance(meta, dict) and meta.get("format") == FORMAT:
      return candidate
  return None


def save_selector(directory: str | os.PathLike, model: SelectorModel) -> str:
  """Writes a learned selection, whole or not at all, and replaces an old one.

  Returns:
    its fingerprint.

  Raises:
    InputError: if it cannot be written, or the directory holds anything else.
  """
  directory = Path(directory)
  taken = directory.exists() and find_selector(directory) != directory
  if taken and any(directory.iterdir()):
    raise InputError(
      f"{directory}: holds other files, and a checkpoint would take their "
      f"place; give a directory of its own"
    )
  arrays = {n: np.asarray(leaf) for n, leaf in named(model.variables).items()}
  meta = {
    "format": FORMAT,
    "format_version": VERSION,
    "architecture": _architecture(model.selector),
    "features": dict(model.features),
    "geometry": list(model.geometry),
    "extraction": dict(model.extraction),
    "provenance": dict(model.provenance),
  }
  meta = json.loads(json.dumps(meta))
  meta["fingerprint"] = _fingerprint(meta, arrays)
  new = directory.with_name(f".{directory.name}.new-{os.getpid()}")
  old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
  try:
    with writing(directory):
      new.mkdir(parents=True)
      check_room(new, arrays)
      np.savez(new / ARRAYS, **arrays)
      (new / META).write_text(json.dumps(meta, indent=2) + "\n")
      if directory.exists():
        directory.rename(old)
      new.rename(directory)
  finally:
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
  return meta["fingerprint"]


def load_selector(path: str | os.PathLike) -> SelectorModel:
  """Reads a learned selection, or the one inside a run's directory.

  Raises:
    InputError: if there is none, or it is damaged or of a future version.
  """
  found = find_selector(path)
  if found is None:
    raise InputError(f"{path}: holds no selection that was learned")
  meta = json.loads((found / META).read_text())
  try:
    if meta["format_version"] > VERSION:
      raise InputError(
        f"{found}: written by a newer delf_jax (format "
        f"{meta['format_version']}, this one reads {VERSION}); update delf_jax"
      )
    selector = Selector(**meta["architecture"])
    expected = jax.eval_shape(
      selector.init,
      jax.random.key(0),
      jnp.zeros((1, selector.channels)),
      jnp.ones(1, bool),
    )
    arrays = _read_arrays(found)
    problems = differences(
      named(expected), {name: leaf.shape for name, leaf in arrays.items()}
    )
    if problems or _fingerprint(meta, arrays) != meta["fingerprint"]:
      raise InputError(
        f"{found}: damaged, or edited by hand: the arrays and {META} do not "
        f"have the fingerprint they were written with; copy it again or train "
        f"again"
      )
    return SelectorModel(
      selector=selector,
      variables=jax.tree.map_with_path(
        lambda path, _: arrays[path_name(path)], expected
      ),
      features=meta["features"],
      geometry=tuple(meta["geometry"]),
      extraction=meta["extraction"],
      provenance=meta["provenance"],
      fingerprint=meta["fingerprint"],
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f"{found / META}: not a checkpoint description of this version "
      f"({type(error).__name__}: {error})"
    ) from error


def _architecture(selector: Selector) -> dict[str, int]:
  names = ("channels", "num_classes", "hidden", "words")
  return {name: getattr(selector, name) for name in names}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
  try:
    with open(path / ARRAYS, "rb") as file:
      arrays = np.load(file, allow_pickle=False)
      return {name: arrays[name] for name in arrays.files}
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise InputError(
      f"{path / ARRAYS}: cannot be read ({error}); copy it again or train again"
    ) from error


def _fingerprint(
  meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> str:
  digest = hashlib.sha256()
  described = {key: meta[key] for key in _DESCRIBED}
  digest.update(json.dumps(described, sort_keys=True).encode())
  for name, leaf in sorted(arrays.items()):
    digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
