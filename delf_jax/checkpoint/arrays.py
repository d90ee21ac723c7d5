"""Trees of arrays on disk, and what can go wrong with them, in one line."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from delf_jax.errors import InputError


def path_name(path) -> str:
  """Names a leaf by its place in a tree: params.backbone.conv1.kernel."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def named(tree) -> dict[str, Any]:
  """Flattens a tree into {name: leaf}."""
  return {
    path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)
  }


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """Says how the shapes found differ from those expected; empty if not."""
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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
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


def check_room(path: Path, tree) -> None:
  """Refuses to begin what cannot end: Orbax reports a full disk at length."""
  needed = 1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + 2**16
  free = shutil.disk_usage(path).free
  if free < needed:
    raise InputError(
      f"cannot write {path}: {free / 2**20:.1f} MiB are free on the disk and a "
      f"checkpoint takes {needed / 2**20:.1f}; what was saved before is whole: "
      f"make room and run the same command"
    )
