"""Whitening of global descriptors, learned on training photographs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from delf_jax import checkpoint, progress
from delf_jax.data import matching_pairs
from delf_jax.data.photographs import Photograph, decode_photograph
from delf_jax.data.sources import Source
from delf_jax.errors import InputError
from delf_jax.features import pyramid, reduction, whitening
from delf_jax.features.reduction import Reduction
from delf_jax.global_descriptors import global_extraction

Kind = Literal["pca", "pairs"]


def learn_reduction(
  model: checkpoint.Model,
  source: Source,
  *,
  kind: Kind = "pairs",
  dim: int = 0,
  photographs: int = 2000,
  pairs: str = "",
  max_side: int = 1024,
  seed: int = 0,
) -> Reduction | None:
  """Learns the whitening of whole descriptors.

  Args:
    model: a `GlobalDescriptor`; its own reduction is left aside.
    source: photographs to learn from.
    kind: "pca", or "pairs", what siaMAC learns (`whitening.learn`); "" for
      none.
    dim: of the result; 0 for all that can be learned.
    photographs: of a seeded sample, whole classes, or pairs, at a time; those
      that cannot be decoded are left out.
    pairs: a file of photographs that match (`matching_pairs.read_pairs`); ""
      takes those of a class for such, which should then be of one view each.
    max_side: photographs are reduced to this longest side first.
    seed: of the sample.

  Returns:
    the whitening, or None.

  Raises:
    InputError: if the kind is unknown, there are too few photographs, or no two
      that match.
  """
  if not kind:
    return None
  if kind not in get_args(Kind):
    raise InputError(
      f"unknown whitening {kind!r}; expected {' or '.join(get_args(Kind))}"
    )
  if pairs:
    matching = matching_pairs.read_pairs(pairs, source)
    order = np.random.default_rng(seed).permutation(len(matching))
    matching = matching[order[: -(-photographs // 2)]]
    rows = np.unique(matching)
  else:
    rows = _sample(source.labels, photographs, seed)
    queries, positives = pairs_of(np.asarray(source.labels)[rows])
    matching = np.stack([rows[queries], rows[positives]], axis=1)
  alone = dataclasses.replace(model, reduction=None)
  settled, max_side = global_extraction.settle(alone, {}, max_side)
  describe = global_extraction.describer(alone, max_side=max_side, **settled)
  found = {}
  for row, photograph in _decoded(source, rows, max_side):
    one = describe(photograph, (photograph.height, photograph.width))
    if len(one.descriptors):
      found[row] = len(found), one.descriptors[0]
  descriptors = np.array([one for _, one in found.values()], np.float32)
  queries, positives = (
    np.array(
      [
        [found[a][0], found[b][0]]
        for a, b in matching.tolist()
        if a in found and b in found
      ],
      np.int64,
    )
    .reshape(-1, 2)
    .T
  )
  try:
    if kind == "pca":
      most = min(descriptors.shape) if len(found) else 0
      return reduction.fit(descriptors, dim or most, whiten=True)
    return whitening.learn(descriptors, queries, positives, dim=dim)
  except (ValueError, IndexError) as error:
    raise InputError(
      f"{len(found)} photographs are too few to learn whitening from "
      f"({error}); give more, or a smaller dimension"
    ) from error


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
