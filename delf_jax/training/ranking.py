"""The stage that learns global descriptors by comparing photographs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from delf_jax.errors import InputError
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.models.normalisation import Normalisation
from delf_jax.training import ranking_losses

KINDS = ("contrastive", "triplet", "average_precision")


def make_objective(
  network: GlobalDescriptor,
  *,
  normalise: Normalisation,
  loss: Mapping[str, Any] | None = None,
  axis_name: str | None = None,
) -> Callable[..., tuple[jax.Array, tuple[dict, dict]]]:
  """Builds what a step of the stage differentiates.

  A batch is {"pixels": [b, r, h, w, 3] uint8, "labels": [b, r], "mask": [b, r]
  bool, the photographs that there are}, with "sizes" [b, r, 2], true heights
  and widths, if photographs are padded. What a tuple of r photographs is
  depends on the kind of loss:
    contrastive: a query, its positive and negatives;
    triplet: a query, a positive and a negative;
    average_precision: photographs of one class; every one is a query to all
      others of the batch, on each device by itself.

  Args:
    network: the module.
    normalise: of pixels.
    loss: "kind", one of `KINDS`, and keyword arguments of that function of
      `ranking_losses`.
    axis_name: mapped axis, or None.

  Returns:
    objective(params, batch_stats, batch, key) -> loss, (batch statistics,
    figures), whose means over the axis are those of the whole batch. The loss
    is the mean over queries; "accuracy" the share of them whose nearest
    photograph matches.

  Raises:
    InputError: if the kind is unknown.
  """
  compare = _comparison(loss)

  def objective(params, batch_stats, batch, key):
    del key  # nothing is left to chance
    descriptors, updates = _describe(
      network,
      {"params": params, "batch_stats": batch_stats},
      batch,
      normalise,
      train=True,
      mutable=["batch_stats"],
    )
    sums = compare(descriptors, batch)
    count, share = sums["count"], 1.0
    if axis_name is not None:
      count = jax.lax.psum(count, axis_name)
      share = jax.lax.axis_size(axis_name)
    count = jnp.maximum(count, 1.0)
    figures = {
      "loss": share * sums["loss"] / count,
      "accuracy": share * sums["correct"] / count,
    }
    return figures["loss"], (updates.get("batch_stats", {}), figures)

  return objective


def make_evaluation_step(
  network: GlobalDescriptor,
  *,
  normalise: Normalisation,
  loss: Mapping[str, Any] | None = None,
  axis_name: str | None = None,
) -> Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict]:
  """Builds the pure step that validates the stage.

  Returns:
    step(variables, batch) -> sums over the queries of the batch: "loss",
    "correct" and "count".
  """
  compare = _comparison(loss)

  def evaluation_step(variables, batch):
    sums = compare(_describe(network, variables, batch, normalise), batch)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return evaluation_step


def _describe(network, variables, batch, normalise, **options):
  """Returns [b, r, d] descriptors of a batch, and updates if there are any."""
  pixels, sizes = batch["pixels"], batch.get("sizes")
  found = network.apply(
    variables,
    normalise(pixels.reshape(-1, *pixels.shape[-3:])),
    None if sizes is None else sizes.reshape(-1, 2),
    **options,
  )
  if not options:
    return found.reshape(*pixels.shape[:2], -1)
  return found[0].reshape(*pixels.shape[:2], -1), found[1]


def _comparison(loss: Mapping[str, Any] | None):
  """Returns (descriptors, batch) -> sums, of a kind of loss."""
  options = dict(loss or {})
  kind = options.pop("kind", "contrastive")
  if kind not in KINDS:
    raise InputError(
      f"unknown loss {kind!r} of global descriptors; expected one of "
      f"{', '.join(KINDS)}"
    )
  compare = {
    "contrastive": _tuples,
    "triplet": _triplets,
    "average_precision": _lists,
  }[kind]
  return lambda descriptors, batch: compare(descriptors, batch, options)


def _sums(losses, right, counts):
  """Adds up queries, those that count."""
  return {
    "loss": jnp.sum(jnp.where(counts, losses, 0.0)),
    "correct": jnp.sum(jnp.where(counts, right, False).astype(jnp.float32)),
    "count": jnp.sum(counts.astype(jnp.float32)),
  }


def _tuples(descriptors, batch, options):
  """Sums of [q, 1 + k, d] descriptors: query, positive, negatives."""
  queries, others = descriptors[:, 0], descriptors[:, 1:]
  there = batch["mask"][:, 1:]
  positive = jnp.broadcast_to(jnp.arange(there.shape[1]) == 0, there.shape)
  losses = jax.vmap(
    lambda *tuple_: ranking_losses.contrastive(*tuple_, **options)
  )(queries, others, positive, there)
  similar = jnp.einsum("qd,qkd->qk", queries, others)
  first = jnp.argmax(jnp.where(there, similar, -jnp.inf), axis=1)
  return _sums(losses, first == 0, batch["mask"][:, 0] & there[:, 0])


def _triplets(descriptors, batch, options):
  """Sums of [t, 3, d] descriptors."""
  losses = jax.vmap(lambda x: ranking_losses.triplet(*x, **options))(
    descriptors
  )
  query, positive, negative = jnp.moveaxis(descriptors, 1, 0)
  nearer = jnp.sum(query * (positive - negative), axis=-1) > 0
  return _sums(losses, nearer, jnp.all(batch["mask"], axis=1))


def _lists(descriptors, batch, options):
  """Sums of [c, r, d] descriptors; a query counts if it can match."""
  flat = descriptors.reshape(-1, descriptors.shape[-1])
  labels, there = batch["labels"].reshape(-1), batch["mask"].reshape(-1)
  similar = jnp.einsum("nd,md->nm", flat, flat)
  others = ~jnp.eye(len(labels), dtype=bool) & there[None, :]
  alike = (labels[:, None] == labels[None, :]) & others
  precisions = jax.vmap(
    lambda *ranking: ranking_losses.average_precision(*ranking, **options)
  )(similar, alike, others)
  first = jnp.argmax(jnp.where(others, similar, -jnp.inf), axis=1)[:, None]
  right = jnp.take_along_axis(alike, first, axis=1)[:, 0]
  return _sums(1.0 - precisions, right, jnp.any(alike, axis=1) & there)
