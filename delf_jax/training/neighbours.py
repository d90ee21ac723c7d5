"""Attention that learns which features find their place again.

A feature is worth keeping if its nearest neighbour in other photographs shows
the same landmark. Within a batch that can be seen from labels alone, and the
attention head learns to foresee it: its score s stands for the probability
1 - exp(-s). Descriptors stay as they are. (The paper's attention, which learns
by classifying, has to tell every landmark from every other by it; this one is
taught location by location, which few landmarks suffice for.)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from delf_jax.models.attention import l2_normalise
from delf_jax.models.delf import Delf
from delf_jax.models.normalisation import Normalisation

# Scores are taken to be at least this, whose logarithm is a number.
_LEAST = 1e-6
_NONE = -2.0


def found_again(
  features: jax.Array,
  labels: jax.Array,
  usable: jax.Array,
  *,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Says which features have their nearest neighbour at their own landmark.

  Args:
    features: [b, n, c] of unit length, n of each photograph.
    labels: [b] int32 landmarks.
    usable: [b] bool; other photographs are not looked at.
    axis_name: mapped axis over all of which photographs are compared, or None.

  Returns:
    [b, n] bool, the most similar feature of all other photographs is of one
    with the same label, and [b] bool, whether that can be said: there are
    photographs of the same and of other landmarks.
  """
  numbers = jnp.arange(len(labels))
  everything = (features, labels, usable, numbers)
  if axis_name is not None:
    numbers = numbers + len(labels) * jax.lax.axis_index(axis_name)
    everything = jax.tree.map(
      lambda x: jax.lax.all_gather(x, axis_name, tiled=True),
      (features, labels, usable, numbers),
    )
  others, other_labels, other_usable, other_numbers = everything

  def nearest(other):
    return jnp.max(jnp.einsum("bnc,mc->bnm", features, other), axis=-1)

  similarity = jax.lax.map(nearest, others)  # [B, b, n]
  same = labels[None, :] == other_labels[:, None]  # [B, b]
  fit = other_usable[:, None] & (numbers[None, :] != other_numbers[:, None])

  def best(which):
    return jnp.max(jnp.where(which[:, :, None], similarity, _NONE), axis=0)

  own, foreign = same & fit, ~same & fit
  known = usable & jnp.any(own, axis=0) & jnp.any(foreign, axis=0)
  return best(own) > best(foreign), known


def losses_of(scores: jax.Array, found: jax.Array) -> jax.Array:
  """Cross-entropy of the probability 1 - exp(-score); any shape."""
  scores = jnp.maximum(scores, _LEAST)
  # Either form of log(1 - exp(-s)) loses its digits where the other is used.
  likely = jnp.where(
    scores < jnp.log(2.0),
    jnp.log(-jnp.expm1(-scores)),
    jnp.log1p(-jnp.exp(-scores)),
  )
  return jnp.where(found, -likely, scores)


def make_objective(
  network: Delf,
  *,
  normalise: Normalisation,
  axis_name: str | None = None,
) -> Callable[..., tuple[jax.Array, tuple[dict, dict]]]:
  """Builds what a step of this kind of attention stage differentiates.

  Args:
    network: the module, with an attention head.
    normalise: of pixels.
    axis_name: mapped axis, or None.

  Returns:
    objective(params, batch_stats, batch, key) -> loss, (batch statistics,
    figures), whose means over the axis are those of the whole batch; a batch
    is {"pixels": [b, h, w, 3] uint8, "labels": [b]}.
  """

  def objective(params, batch_stats, batch, key):
    del key  # nothing is left to chance
    outputs, updates = network.apply(
      {"params": params, "batch_stats": batch_stats},
      normalise(batch["pixels"]),
      train=True,
      method="dense",
      mutable=["batch_stats"],
    )
    usable = jnp.ones(batch["labels"].shape, bool)
    sums = _compare(outputs, batch["labels"], usable, axis_name)
    count, share = sums.pop("count"), 1.0
    if axis_name is not None:
      count = jax.lax.psum(count, axis_name)
      share = jax.lax.axis_size(axis_name)
    figures = {
      name: share * value / jnp.maximum(count, 1.0)
      for name, value in sums.items()
    }
    figures["accuracy"] = figures.pop("correct")
    return figures["loss"], (updates["batch_stats"], figures)

  return objective


def make_evaluation_step(
  network: Delf,
  *,
  normalise: Normalisation,
  axis_name: str | None = None,
) -> Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict]:
  """Builds the pure step that validates this kind of attention stage.

  Returns:
    step(variables, {"pixels", "labels", "weights" [b]}) -> sums over the
    locations of photographs with a weight, of which something can be said:
    "loss", "correct" (the probability is on the right side of a half) and
    "count".
  """

  def evaluation_step(variables, batch):
    outputs = network.apply(
      variables, normalise(batch["pixels"]), method="dense"
    )
    sums = _compare(outputs, batch["labels"], batch["weights"] > 0, axis_name)
    del sums["found"]
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return evaluation_step


def _compare(outputs, labels, usable, axis_name) -> dict[str, jax.Array]:
  """Returns sums over the locations of this device's photographs."""
  features, scores = outputs
  batch = len(labels)
  unit = jax.lax.stop_gradient(
    l2_normalise(features.reshape(batch, -1, features.shape[-1]))
  )
  found, known = found_again(unit, labels, usable, axis_name=axis_name)
  scores = scores.reshape(batch, -1)
  values = {
    "loss": losses_of(scores, found),
    "correct": (scores > jnp.log(2.0)) == found,
    "found": found,
    "count": jnp.ones_like(scores),
  }
  return {
    name: jnp.sum(jnp.where(known[:, None], value, 0.0))
    for name, value in values.items()
  }
