"""What the distillation stage learns: to extract what another network does.

A small network, the student, is shown what a larger one, its teacher, makes of
the same pixels: the descriptor, the length and the attention score of every
location (Hinton et al., "Distilling the knowledge in a neural network", 2015,
for the idea). No labels are needed, and any photographs will do.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from delf_jax.models.attention import l2_normalise
from delf_jax.models.delf import Delf
from delf_jax.models.normalisation import Normalisation

# Pixels [b, h, w, 3] uint8 -> features [b, h', w', c], scores [b, h', w'].
Teacher = Callable[[jax.Array], tuple[jax.Array, jax.Array | None]]


def compare(
  found: tuple[jax.Array, jax.Array | None],
  taught: tuple[jax.Array, jax.Array | None],
) -> dict[str, jax.Array]:
  """Compares what two networks extract from the same photographs.

  Args:
    found: of the student: features [b, h, w, c] and attention scores [b, h, w];
      None of both networks if these have no such head.
    taught: of the teacher, in the same shapes.

  Returns:
    sums over photographs: "features", the squared error of a photograph's
    features as a share of their squared length, in which long ones count most,
    as they do when features are selected; "scores", likewise of attention
    (without it left out); "correct", the share of its locations whose
    descriptor is more like the teacher's of that location than like any other
    of the photograph; "count" of photographs.
  """
  features, scores = found
  true_features, true_scores = taught
  rows = l2_normalise(features).reshape(len(features), -1, features.shape[-1])
  columns = l2_normalise(true_features).reshape(rows.shape)
  similarity = jnp.einsum("bic,bjc->bij", rows, columns)
  own = jnp.diagonal(similarity, axis1=1, axis2=2)
  hits = own >= jnp.max(similarity, axis=2)
  sums = {
    "features": jnp.sum(_unexplained(features, true_features)),
    "correct": jnp.sum(jnp.mean(hits.astype(jnp.float32), axis=1)),
    "count": jnp.float32(len(features)),
  }
  if scores is not None:
    sums["scores"] = jnp.sum(_unexplained(scores, true_scores))
  return sums


def make_objective(
  network: Delf, *, teacher: Teacher, normalise: Normalisation
) -> Callable[..., tuple[jax.Array, tuple[dict, dict]]]:
  """Builds what a step of this stage differentiates.

  Args:
    network: the student.
    teacher: see `Teacher`.
    normalise: of the student's pixels.

  Returns:
    objective(params, batch_stats, batch, key) -> loss, (batch statistics,
    figures), of a batch {"pixels": [..., h, w, 3] uint8}.
  """

  def objective(params, batch_stats, batch, key):
    del key  # nothing is left to chance
    pixels = _photographs(batch)
    found, updates = network.apply(
      {"params": params, "batch_stats": batch_stats},
      normalise(pixels),
      train=True,
      method="dense",
      mutable=["batch_stats"],
    )
    figures = _figures(compare(found, jax.lax.stop_gradient(teacher(pixels))))
    return figures["loss"], (updates["batch_stats"], figures)

  return objective


def make_evaluation_step(
  network: Delf,
  *,
  teacher: Teacher,
  normalise: Normalisation,
  axis_name: str | None = None,
) -> Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict]:
  """Builds the pure step that validates the stage.

  Returns:
    step(variables, batch) -> sums over the photographs of the batch: "loss",
    "correct" and "count".
  """

  def evaluation_step(variables, batch):
    pixels = _photographs(batch)
    found = network.apply(variables, normalise(pixels), method="dense")
    sums = compare(found, teacher(pixels))
    sums = {
      "loss": sums["features"] + sums.get("scores", 0.0),
      "correct": sums["correct"],
      "count": sums["count"],
    }
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return evaluation_step


def _photographs(batch: Mapping[str, jax.Array]) -> jax.Array:
  """Lines up the views of pairs, or whatever the batch holds."""
  pixels = batch["pixels"]
  return pixels.reshape(-1, *pixels.shape[-3:])


def _unexplained(found: jax.Array, true: jax.Array) -> jax.Array:
  """Returns [b] squared errors as shares of the squared truth."""
  axes = tuple(range(1, true.ndim))
  tiny = jnp.finfo(jnp.float32).tiny
  errors = jnp.sum((found - true) ** 2, axis=axes)
  return errors / jnp.maximum(jnp.sum(true**2, axis=axes), tiny)


def _figures(sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Turns sums over a batch into means, and adds up the losses."""
  count = sums["count"]
  figures = {"accuracy": sums["correct"] / count}
  losses = {"features_loss": sums["features"] / count}
  if "scores" in sums:
    losses["scores_loss"] = sums["scores"] / count
  return {"loss": sum(losses.values()), **figures, **losses}
