"""Photographs that look alike to a network: hard examples for its successor.

Points of two photographs drawn by chance are easily told apart, those of two
beaches or of two Gothic fronts are not.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax import checkpoint, hosts, progress, whole_files
from delf_jax.data import pair_sources, pipeline
from delf_jax.errors import InputError
from delf_jax.models.attention import l2_normalise

# Of every photograph so many are found, and drawn from.
NEIGHBOURS = 24
# Photographs more alike than this may show the same: cosines of descriptors
# less the mean of all.
MOST_ALIKE = 0.97

# Of a run's directory.
FILE = "look_alikes.npy"

_BATCH = 64
_ROWS = 512  # compared with all others at a time


def find(
  source: pair_sources.Mixture,
  model: checkpoint.Model,
  *,
  side: int,
  neighbours: int = NEIGHBOURS,
) -> np.ndarray:
  """Finds, for every pair of a source, those whose photographs look like it.

  A photograph (the first of its pair) is described by the sum of the network's
  codes over its central square.

  Args:
    source: the pairs.
    model: with codes.
    side: to which squares are reduced, in pixels.
    neighbours: how many are found.

  Returns:
    [len(source), k] int32 positions in the source, ascending. Photographs of
    one group, of one file name, or more alike than `MOST_ALIKE` are not among
    each other's, unless there are too few others.

  Raises:
    InputError: if there is one photograph alone.
  """
  firsts = _Firsts(source)
  if len(firsts) < 2:
    raise InputError(
      "one photograph alone has no look-alikes; give more, or "
      "config.correspondence.family 1"
    )

  @jax.jit
  def describe(pixels):
    codes, _ = model.network.apply(
      model.variables, model.normalisation(pixels), method="codes"
    )
    return l2_normalise(jnp.sum(codes, axis=(1, 2)))

  described, groups, names = [], [], []
  batches = pipeline.evaluation_batches(
    firsts, batch_size=_BATCH, resize=side, crop=side
  )
  total = -(-len(firsts) // _BATCH)
  with contextlib.closing(batches):
    for batch in progress.track(
      batches, label="look-alikes", unit="batch", total=total
    ):
      described.append(np.asarray(describe(batch["pixels"])))
      groups.append(batch["labels"])
      names += batch["names"]
  count = len(firsts)
  descriptors = np.concatenate(described)[:count]
  descriptors -= descriptors.mean(axis=0)
  lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
  descriptors /= np.maximum(lengths, np.finfo(np.float32).tiny)
  groups = np.concatenate(groups)[:count]
  files = [name.rpartition("/")[2] for name in names[:count]]
  _, files = np.unique(files, return_inverse=True)
  neighbours = min(neighbours, count - 1)
  found = np.empty((count, neighbours), np.int64)
  for start in range(0, count, _ROWS):
    rows = slice(start, start + _ROWS)
    alike = descriptors[rows] @ descriptors.T
    related = groups[rows, None] == groups[None, :]
    related &= groups[None, :] != pair_sources.ALONE
    related |= files[rows, None] == files[None, :]
    alike = np.where(related | (alike > MOST_ALIKE), -2.0, alike)
    nearest = np.argpartition(-alike, neighbours, axis=1)[:, :neighbours]
    found[rows] = np.sort(nearest, axis=1)
  return source.originals[found][source.rows].astype(np.int32)


def found_before(
  directory: Path,
  source: pair_sources.Mixture,
  model: checkpoint.Model,
  *,
  side: int,
) -> np.ndarray:
  """Returns what `find` found for a run, or finds it and keeps it.

  Args:
    directory: of the run.
    source: see `find`, as the rest.
    model: see there.
    side: see there.
  """
  kept = directory / FILE
  with hosts.primary_first("look-alikes are found"):
    if kept.exists():
      found = np.load(kept)
    else:
      found = find(source, model, side=side)
      if hosts.is_primary():
        content = io.BytesIO()
        np.save(content, found)
        whole_files.write_file(kept, content.getvalue())
  return found


class _Firsts:
  """The first photograph of every pair, each pair once, as a source."""

  def __init__(self, source: pair_sources.Mixture) -> None:
    self._source = source

  def __len__(self) -> int:
    return len(self._source.originals)

  def __getitem__(self, i: int) -> dict[str, Any]:
    pair = self._source[int(self._source.originals[i])]
    return {"image": pair.first, "label": pair.group, "name": pair.name}
