"""What the correspondence stage learns: one place, seen twice, looks the same.

Points of two views that show the same must have more similar descriptors than
a point has with any other of the batch: InfoNCE (van den Oord et al.,
"Representation learning with contrastive predictive coding", 2018), both ways.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from delf_jax.errors import InputError
from delf_jax.models.attention import l2_normalise
from delf_jax.models.delf import Delf
from delf_jax.models.normalisation import Normalisation
from delf_jax.models.receptive_field import ReceptiveField

TEMPERATURE = 0.07
# In pixels: features nearer than this see nearly the same.
RADIUS = 24.0
# Similarity of what is not to be compared.
_NEVER = -1e9


def sample(maps: jax.Array, positions: jax.Array) -> jax.Array:
  """Interpolates a feature map bilinearly.

  As a product with a matrix of weights, which has no slow scatter for its
  gradient; maps are small.

  Args:
    maps: [h, w, c].
    positions: [n, 2] (y, x) in steps of the map; beyond its ends, the ends.

  Returns:
    [n, c].
  """

  def weights(coordinates, length):
    inside = jnp.clip(coordinates, 0.0, length - 1.0)
    grid = jnp.arange(length, dtype=jnp.float32)
    return jnp.maximum(1.0 - jnp.abs(inside[:, None] - grid[None, :]), 0.0)

  rows = weights(positions[:, 0], maps.shape[0])
  columns = weights(positions[:, 1], maps.shape[1])
  both = rows[:, :, None] * columns[:, None, :]
  return jnp.einsum(
    "np,pc->nc",
    both.reshape(len(positions), -1),
    maps.reshape(-1, maps.shape[-1]),
  )


def describe(
  codes: jax.Array, points: jax.Array, field: ReceptiveField
) -> jax.Array:
  """Returns the descriptors of points of a photograph.

  Args:
    codes: [h, w, c] un-normalised.
    points: [n, 2] (y, x) in pixels.
    field: of the codes.

  Returns:
    [n, c] of unit length.
  """
  positions = (points - field.offset) / field.stride
  return l2_normalise(sample(l2_normalise(codes), positions))


def contrast(
  descriptors: jax.Array,
  points: jax.Array,
  valid: jax.Array,
  groups: jax.Array,
  *,
  temperature: float = TEMPERATURE,
  radius: float = RADIUS,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  """Compares every point with its counterpart and with all other points.

  Left out are points of the same pair nearer than `radius` to the counterpart,
  and points of other pairs of the same group.

  Args:
    descriptors: [b, 2, n, c] of unit length, of the points of both views.
    points: [b, 2, n, 2] (y, x) in pixels.
    valid: [b, n] bool.
    groups: [b] int32; pairs of one group, 0 or more, may show the same place.
    temperature: of the softmax over cosine similarities.
    radius: in pixels.
    axis_name: mapped axis, over all of which points are compared, or None.

  Returns:
    sums over the points of this device, both ways: "loss", "correct" (the
    counterpart was the most similar) and "count".
  """
  b, _, n, _ = descriptors.shape
  pairs = jnp.arange(b)
  everything = (descriptors, points, valid, groups, pairs)
  if axis_name is not None:
    pairs = pairs + b * jax.lax.axis_index(axis_name)
    everything = jax.tree.map(
      lambda x: jax.lax.all_gather(x, axis_name, tiled=True),
      (descriptors, points, valid, groups, pairs),
    )
  others, other_points, other_valid, other_groups, other_pairs = everything
  same = pairs[:, None] == other_pairs[None, :]  # [b, B]
  related = same | (
    (groups[:, None] == other_groups[None, :]) & (groups[:, None] >= 0)
  )
  own = same[:, None, :, None] & jnp.eye(n, dtype=bool)[None, :, None, :]
  own = own.reshape(b * n, -1)  # [rows, columns]
  sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
  for view in range(2):
    rows = descriptors[:, view].reshape(b * n, -1)
    columns = others[:, 1 - view].reshape(len(other_pairs) * n, -1)
    # A row's counterpart lies in the other view, where the columns are.
    apart = (
      points[:, 1 - view][:, :, None, None]
      - (other_points[:, 1 - view][None, None])
    )
    far = jnp.sum(apart**2, axis=-1) > radius**2  # [b, n, B, n]
    fit = ~related[:, None, :, None] | (same[:, None, :, None] & far)
    fit = fit & other_valid[None, None]
    fit = fit.reshape(own.shape) | own
    similarity = jnp.einsum("ic,jc->ij", rows, columns)
    logits = jnp.where(fit, similarity / temperature, _NEVER)
    target = jnp.sum(jnp.where(own, logits, 0.0), axis=1)
    losses = jax.nn.logsumexp(logits, axis=1) - target
    hits = target >= jnp.max(logits, axis=1)
    mask = valid.reshape(-1)
    found = {"loss": losses, "correct": hits, "count": jnp.ones_like(losses)}
    for name, value in found.items():
      sums[name] += jnp.sum(jnp.where(mask, value, 0.0))
  return sums


def check_options(options: Mapping[str, Any]) -> None:
  """Refuses options that `contrast` does not take.

  Raises:
    InputError: naming one.
  """
  unknown = sorted(set(options) - {"temperature", "radius"})
  if unknown:
    raise InputError(
      f"config.correspondence.loss has no option {unknown[0]!r}; it takes "
      f"temperature, radius"
    )
  if options.get("temperature", TEMPERATURE) <= 0:
    raise InputError("config.correspondence.loss.temperature must be above 0")


def make_objective(
  network: Delf,
  *,
  normalise: Normalisation,
  loss: Mapping[str, Any] | None = None,
  reconstruction_weight: float = 10.0,
  axis_name: str | None = None,
) -> Callable[..., tuple[jax.Array, tuple[dict, dict]]]:
  """Builds what a step of this stage differentiates.

  Args:
    network: the module.
    normalise: of pixels.
    loss: keyword arguments of `contrast`.
    reconstruction_weight: of the decoder's error, which no other part of the
      network feels.
    axis_name: mapped axis, or None.

  Returns:
    objective(params, batch_stats, batch, key) -> loss, (batch statistics,
    figures), whose means over the axis are those of the whole batch; a batch
    is {"pixels": [b, 2, h, w, 3] uint8, "points": [b, 2, n, 2], "valid":
    [b, n], "groups": [b]}.
  """
  options = dict(loss or {})
  check_options(options)
  field = network.receptive_field

  def objective(params, batch_stats, batch, key):
    del key  # nothing is left to chance
    (codes, errors), updates = network.apply(
      {"params": params, "batch_stats": batch_stats},
      _all_views(batch["pixels"], normalise),
      train=True,
      method="codes",
      mutable=["batch_stats"],
    )
    sums = _compare(codes, batch, field, options, axis_name)
    count, share = sums["count"], 1.0
    if axis_name is not None:
      count = jax.lax.psum(count, axis_name)
      share = jax.lax.axis_size(axis_name)
    figures = {
      "loss": share * sums["loss"] / jnp.maximum(count, 1.0),
      "accuracy": share * sums["correct"] / jnp.maximum(count, 1.0),
    }
    total = figures["loss"]
    if errors is not None:
      figures["reconstruction_loss"] = jnp.mean(errors)
      total += reconstruction_weight * figures["reconstruction_loss"]
    return total, (updates["batch_stats"], figures)

  return objective


def make_evaluation_step(
  network: Delf,
  *,
  normalise: Normalisation,
  loss: Mapping[str, Any] | None = None,
  axis_name: str | None = None,
) -> Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict]:
  """Builds the pure step that validates the stage.

  Returns:
    step(variables, batch) -> sums over the points of the batch: "loss",
    "correct" and "count".
  """
  options = dict(loss or {})
  field = network.receptive_field

  def evaluation_step(variables, batch):
    codes, _ = network.apply(
      variables, _all_views(batch["pixels"], normalise), method="codes"
    )
    sums = _compare(codes, batch, field, options, axis_name)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return evaluation_step


def _all_views(pixels: jax.Array, normalise: Normalisation) -> jax.Array:
  """Lines up [b, 2, h, w, 3] views as [2 b, h, w, 3] normalised pixels."""
  return normalise(pixels.reshape(-1, *pixels.shape[2:]))


def _compare(codes, batch, field, options, axis_name):
  """Returns the sums of `contrast` of [2 b, h, w, c] codes."""
  points = batch["points"]
  codes = codes.reshape(*points.shape[:2], *codes.shape[1:])
  descriptors = jax.vmap(jax.vmap(lambda c, p: describe(c, p, field)))(
    codes, points
  )
  return contrast(
    descriptors,
    points,
    batch["valid"],
    batch["groups"],
    axis_name=axis_name,
    **options,
  )
