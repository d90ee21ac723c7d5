"""Whitening of global descriptors, learned on training photographs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from delf_jax import checkpoint, global_extraction, progress
from delf_jax.data.photographs import Photograph, decode_photograph
from delf_jax.errors import InputError
from delf_jax.features import pyramid, reduction, whitening

Kind = Literal["pca", "pairs"]


def learn(
  model: checkpoint.Model,
  source: Sequence[Mapping[str, Any]],
  labels: np.ndarray,
  *,
  kind: Kind = "pairs",
  dim: int = 0,
  photographs: int = 2000,
  max_side: int = 1024,
  seed: int = 0,
) -> checkpoint.Model:
  """Learns the whitening of whole descriptors.

  Args:
    model: a `GlobalDescriptor`; its own reduction is left aside.
    source: random access to {"image": encoded bytes, ...}.
    labels: [n] int of the source: photographs with the same one match. They
      should be of one view each, not of one place alone.
    kind: "pca", or "pairs", what siaMAC learns (`whitening.learn`).
    dim: of the result; 0 for all that can be learned.
    photographs: of a seeded sample, whole labels at a time; those that cannot
      be decoded are left out.
    max_side: photographs are reduced to this longest side first.
    seed: of the sample.

  Returns:
    the model with the whitening as its reduction.

  Raises:
    InputError: if there are too few photographs, or no two that match.
  """
  rows = _sample(labels, photographs, seed)
  alone = dataclasses.replace(model, reduction=None)
  settled, max_side = global_extraction.settle(alone, {}, max_side)
  describe = global_extraction.describer(alone, max_side=max_side, **settled)
  found, kept = [], []
  for row, photograph in _decoded(source, rows, max_side):
    one = describe(photograph, (photograph.height, photograph.width))
    found += list(one.descriptors)
    kept += [row] * len(one.descriptors)
  descriptors = np.array(found, np.float32)
  try:
    if kind == "pca":
      most = min(descriptors.shape) if len(found) else 0
      learned = reduction.fit(descriptors, dim or most, whiten=True)
    else:
      queries, positives = pairs_of(np.asarray(labels)[kept])
      learned = whitening.learn(descriptors, queries, positives, dim=dim)
  except (ValueError, IndexError) as error:
    raise InputError(
      f"{len(found)} photographs are too few to learn whitening from "
      f"({error}); give more, or a smaller dimension"
    ) from error
  return dataclasses.replace(model, reduction=learned)


def start_regional_layer(
  model: checkpoint.Model,
  source: Sequence[Mapping[str, Any]],
  *,
  photographs: int = 500,
  max_side: int = 800,
  seed: int = 0,
) -> checkpoint.Model:
  """Starts the projection of regions as their PCA, as DIR does.

  Args:
    model: a `GlobalDescriptor` with `regional_dim`.
    source: random access to {"image": encoded bytes, ...}.
    photographs: of a seeded sample.
    max_side: photographs are reduced to this longest side.
    seed: of the sample.

  Returns:
    the model with new parameters "regional".

  Raises:
    InputError: if there are fewer regions than dimensions.
  """
  network = model.network
  rows = np.random.default_rng(seed).permutation(len(source))[:photographs]

  @jax.jit
  def regions(pixels, sizes):
    _, found = network.apply(
      model.variables,
      model.normalisation(pixels),
      sizes,
      mutable=["intermediates"],
    )
    (pair,) = found["intermediates"]["regions"]
    return pair

  vectors = []
  for _, photograph in _decoded(source, rows, max_side):
    size = photograph.pixels.shape[:2]
    canvas = np.zeros(
      (1, *pyramid.canvas_for(*size, max_side=max_side), 3), np.uint8
    )
    canvas[0, : size[0], : size[1]] = photograph.pixels
    found, there = regions(canvas, np.array([size], np.int32))
    vectors.append(np.asarray(found)[np.asarray(there)])
  try:
    learned = reduction.fit(
      np.concatenate(vectors), network.regional_dim, whiten=True
    )
  except ValueError as error:
    raise InputError(f"{error}; give more photographs") from error
  params = {
    **model.variables["params"],
    "regional": whitening.as_layer(learned),
  }
  return dataclasses.replace(
    model, variables={**model.variables, "params": params}
  )


def pairs_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Pairs every row with the next of the same label, in a ring.

  Args:
    labels: [n] int.

  Returns:
    [p] rows and [p] rows; two of a label are one pair, and one alone is none.
  """
  first, second = [], []
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    following = np.roll(rows, -1)
    count = len(rows) if len(rows) > 2 else len(rows) - 1
    first += rows[:count].tolist()
    second += following[:count].tolist()
  return np.array(first, np.int64), np.array(second, np.int64)


def _sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Draws labels until there are enough photographs of them."""
  labels = np.asarray(labels)
  order = np.random.default_rng(seed).permutation(np.unique(labels))
  drawn = [np.flatnonzero(labels == label) for label in order]
  return np.concatenate([*drawn, np.zeros(0, np.int64)])[:count]


def _decoded(
  source: Sequence[Mapping[str, Any]], rows: np.ndarray, max_side: int
):
  """Yields (row, photograph) of those that can be decoded."""
  for row in progress.track(
    rows.tolist(), label="whitening", unit="photograph", total=len(rows)
  ):
    try:
      photograph: Photograph = decode_photograph(
        source[row]["image"], name=f"{row}", max_side=max_side
      )
    except InputError:
      continue
    yield row, photograph
