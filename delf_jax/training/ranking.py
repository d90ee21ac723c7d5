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
) -> Callable[..., tuple[jax.Array, tuple[dict, dict]]]:
  """Builds what a step of the stage differentiates.

  The batch, by the kind of loss, each with "sizes" [..., 2], the true height
  and width of every photograph, if they are padded:
    contrastive: "pixels" [q, 1 + k, h, w, 3] uint8, queries and what they are
      compared with, "positive" and "mask" [q, k] bool;
    triplet: "pixels" [t, 3, h, w, 3], query, positive and negative, and "mask"
      [t] bool;
    average_precision: "pixels" [n, h, w, 3] and "labels" [n]: every photograph
      is a query to all others, on each device by itself.

  Args:
    network: the module.
    normalise: of pixels.
    loss: "kind", one of `KINDS`, and keyword arguments of that function of
      `ranking_losses`.

  Returns:
    objective(params, batch_stats, batch, key) -> loss, (batch statistics,
    figures). The loss is the mean over queries; "accuracy" the share of them
    whose nearest photograph matches.

  Raises:
    InputError: if the kind is unknown.
  """
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

  def objective(params, batch_stats, batch, key):
    del key
    pixels = batch["pixels"]
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    sizes = batch.get("sizes")
    descriptors, updates = network.apply(
      {"params": params, "batch_stats": batch_stats},
      normalise(flat),
      None if sizes is None else sizes.reshape(-1, 2),
      train=True,
      mutable=["batch_stats"],
    )
    descriptors = descriptors.reshape(*pixels.shape[:-3], -1)
    value, right = compare(descriptors, batch, options)
    figures = {"loss": value, "accuracy": right}
    return value, (updates.get("batch_stats", {}), figures)

  return objective


def _tuples(descriptors, batch, options):
  """Loss and accuracy of [q, 1 + k, d] descriptors."""
  queries, others = descriptors[:, 0], descriptors[:, 1:]
  losses = jax.vmap(
    lambda *tuple_: ranking_losses.contrastive(*tuple_, **options)
  )(queries, others, batch["positive"], batch["mask"])
  similar = jnp.einsum("qd,qkd->qk", queries, others)
  similar = jnp.where(batch["mask"], similar, -jnp.inf)
  first = jnp.argmax(similar, axis=1)[:, None]
  right = jnp.take_along_axis(batch["positive"], first, axis=1)
  return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))


def _triplets(descriptors, batch, options):
  """Loss and accuracy of [t, 3, d] descriptors."""
  losses = jax.vmap(lambda x: ranking_losses.triplet(*x, **options))(
    descriptors
  )
  query, positive, negative = jnp.moveaxis(descriptors, 1, 0)
  nearer = jnp.sum(query * (positive - negative), axis=-1) > 0
  count = jnp.maximum(jnp.sum(batch["mask"]), 1)

  def mean(values):
    return jnp.sum(jnp.where(batch["mask"], values, 0.0)) / count

  return mean(losses), mean(nearer.astype(jnp.float32))


def _lists(descriptors, batch, options):
  """Loss and accuracy of [n, d] descriptors; a query counts if it can match."""
  labels = batch["labels"]
  similar = jnp.einsum("nd,md->nm", descriptors, descriptors)
  others = ~jnp.eye(len(labels), dtype=bool)
  alike = (labels[:, None] == labels[None, :]) & others
  precisions = jax.vmap(
    lambda *ranking: ranking_losses.average_precision(*ranking, **options)
  )(similar, alike, others)
  first = jnp.argmax(jnp.where(others, similar, -jnp.inf), axis=1)[:, None]
  right = jnp.take_along_axis(alike, first, axis=1)[:, 0]
  counts = jnp.any(alike, axis=1)
  number = jnp.maximum(jnp.sum(counts), 1)
  return (
    jnp.sum(jnp.where(counts, 1.0 - precisions, 0.0)) / number,
    jnp.sum(jnp.where(counts, right, False)) / number,
  )
