"""What the three stages of LIFT learn (Yi et al., ECCV 2016, section 3).

The descriptor first, then the orientation with the descriptor as it is, then
the detector with both as they are. Quadruplets come from
`training.quadruplets`; the step is that of `training.step`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from delf_jax.models.lift import PATCH, SHARPNESS, Lift, cut, grey
from delf_jax.models.normalisation import Normalisation
from delf_jax.models.spatial_transformer import turn
from delf_jax.training import quadruplets
from delf_jax.training.quadruplets import Cutting, Quadruplets

STAGES = ("descriptor", "orientation", "detector")
# How the four patches share the detector's loss of classes, and their classes.
_SHARES = (1 / 6, 1 / 6, 1 / 6, 3 / 6)
_CLASSES = (1.0, 1.0, 1.0, -1.0)
# Two points of one place count as one within so many pixels of a patch.
_SAME = 5.0
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Loss:
  """What `config.STAGE.loss` may say.

  Attributes:
    margin: of the descriptors of what does not belong together.
    mine_every: steps after which the share of pairs that are learned from,
      those with the largest losses, is halved; 0: always all of them.
    mine_most: one pair of so many is the least share.
    class_weight: of the detector's loss of classes.
    overlap_steps: in which the detector learns from how much its two patches
      overlap, before it learns from their descriptors.
  """

  margin: float = 4.0
  mine_every: int = 0
  mine_most: int = 8
  class_weight: float = 1e-5
  overlap_steps: int = 0


def distances(one: jax.Array, other: jax.Array) -> jax.Array:
  """Euclidean distances [q] of [q, d], with a gradient also at 0."""
  return jnp.sqrt(jnp.sum((one - other) ** 2, axis=-1) + _EPSILON)


def hardest(
  losses: jax.Array, mask: jax.Array, share: jax.Array | float
) -> jax.Array:
  """Returns [q] bool: the given share of the largest losses, one or more."""
  order = jnp.argsort(jnp.where(mask, -losses, jnp.inf))
  rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
  return mask & (rank < jnp.maximum(jnp.ceil(share * jnp.sum(mask)), 1.0))


def overlap_loss(offset: jax.Array, side: int = PATCH) -> jax.Array:
  """How little two upright patches overlap.

  One minus intersection over union, and how far apart they are beyond two
  sides, so that there is a slope from everywhere.

  Args:
    offset: [q, 2] from one patch's centre to the other's.
    side: of both.

  Returns:
    [q].
  """
  both = jnp.prod(jnp.maximum(side - jnp.abs(offset), 0.0), axis=-1)
  either = 2.0 * side**2 - both
  length = jnp.sqrt(jnp.sum(offset**2, axis=-1) + _EPSILON)
  beyond = jnp.maximum(length - 2.0 * side, 0.0) / jnp.sqrt(either)
  return 1.0 - both / either + beyond


def class_loss(scores: jax.Array, blank: jax.Array) -> jax.Array:
  """Squared hinge: what stands out should score above 1, the rest below -1.

  Args:
    scores: [q, 4, h, w] maps of quadruplets.
    blank: [q] bool, whether the fourth counts.

  Returns:
    [q].
  """
  flat = SHARPNESS * scores.reshape(*scores.shape[:2], -1)
  # A maximum that every position has a part in.
  best = jax.nn.logsumexp(flat, axis=-1) - jnp.log(flat.shape[-1])
  best = best / SHARPNESS
  wanted = jnp.array([_CLASSES])
  hinge = jnp.maximum(0.0, 1.0 - wanted * best) ** 2
  counts = (wanted > 0) | blank[:, None]
  return jnp.sum(jnp.array([_SHARES]) * jnp.where(counts, hinge, 0.0), axis=-1)


def make_objective(
  network: Lift,
  *,
  stage: str,
  normalise: Normalisation,
  cutting: Cutting,
  loss: Loss,
  axis_name: str | None = None,
) -> Callable[..., tuple[jax.Array, tuple[dict, dict]]]:
  """Builds what a step of a stage differentiates.

  Args:
    network: the module.
    stage: one of `STAGES`.
    normalise: of pixels.
    cutting: of quadruplets.
    loss: of the stage. Pairs are mined among those of a device.
    axis_name: mapped axis, or None.

  Returns:
    objective(params, batch_stats, batch, key) -> loss, (no statistics,
    figures), whose means over the axis are those of the whole batch; a batch
    is {"pixels": [b, 2, h, w, 3] uint8, "points": [b, 2, n, 2], "valid":
    [b, n], "groups": [b], "step": int32 steps done before}.
  """
  learn = {
    "descriptor": _describe,
    "orientation": _orient,
    "detector": _detect,
  }[stage]

  def objective(params, batch_stats, batch, key):
    four = quadruplets.make(
      grey(normalise(batch["pixels"])),
      batch["points"],
      batch["valid"],
      batch["groups"],
      key,
      cutting,
    )

    def apply(method, *arguments):
      return network.apply({"params": params}, *arguments, method=method)

    sums, counts = learn(apply, four, loss, batch["step"])
    if axis_name is not None:
      counts = jax.lax.pmean(counts, axis_name)
    figures = {
      name: value / jnp.maximum(counts[name], _EPSILON)
      for name, value in sums.items()
    }
    return figures["loss"], (batch_stats, figures)

  return objective


def describe(
  network: Lift,
  params: dict,
  batch: dict,
  key: jax.Array,
  *,
  normalise: Normalisation,
  cutting: Cutting,
) -> tuple[jax.Array, jax.Array]:
  """Describes points of the first views, turned as they are known to be.

  Args:
    network: the module.
    params: of it.
    batch: see `make_objective`.
    key: of chance.
    normalise: of pixels.
    cutting: of quadruplets.

  Returns:
    [q, d] descriptors and [q] bool, which are real.
  """
  four = quadruplets.make(
    grey(normalise(batch["pixels"])),
    batch["points"],
    batch["valid"],
    batch["groups"],
    key,
    cutting,
  )

  def apply(method, *arguments):
    return network.apply({"params": params}, *arguments, method=method)

  return _known(apply, four, (0,))[0], four.mask


def _describe(apply, four: Quadruplets, loss: Loss, step):
  """Patches of one point near each other, others a margin apart."""
  first, second, other = _known(apply, four, (0, 1, 2))
  pairs = distances(first, second)
  others = jnp.maximum(0.0, loss.margin - distances(first, other))
  ratio = 1.0
  if loss.mine_every:
    halvings = (step // loss.mine_every).astype(jnp.float32)
    ratio = jnp.minimum(2.0**halvings, float(loss.mine_most))
  total = count = 0.0
  for losses in (pairs, others):
    learned = hardest(jax.lax.stop_gradient(losses), four.mask, 1.0 / ratio)
    total += jnp.sum(jnp.where(learned, losses, 0.0))
    count += jnp.sum(learned)
  correct = matched(first, second, four.mask)
  sums = {
    "loss": total,
    "pair_distance": jnp.sum(jnp.where(four.mask, pairs, 0.0)),
    "accuracy": jnp.sum(correct),
  }
  real = jnp.sum(four.mask).astype(jnp.float32)
  # Half of the pairs belong together.
  return sums, {"loss": 0.5 * count, "pair_distance": real, "accuracy": real}


def matched(first: jax.Array, second: jax.Array, mask: jax.Array) -> jax.Array:
  """Which points are the nearest to their counterparts, of all there are.

  Args:
    first: [q, d] descriptors.
    second: [q, d] of the counterparts.
    mask: [q] bool.

  Returns:
    [q] bool, False where masked.
  """
  apart = jnp.sum(first**2, axis=-1)[:, None] - 2.0 * first @ second.T
  apart = apart + jnp.sum(second**2, axis=-1)[None, :]
  apart = jnp.where(mask[None, :], apart, jnp.inf)
  return mask & (jnp.argmin(apart, axis=1) == jnp.arange(len(mask)))


def _known(apply, four, which):
  """Describes some patches where and as the quadruplets say."""
  q = len(four.mask)
  which = jnp.array(which)
  patches = cut(
    *(
      jnp.swapaxes(x[:, which], 0, 1).reshape(-1, *x.shape[2:])
      for x in (four.patches, four.points, four.rotations)
    )
  )
  return apply("describe", patches).reshape(len(which), q, -1)


def _own(apply, four, points):
  """Turns and describes the first two patches around [2 q, 2] points.

  Returns:
    [2, q, 2] rotations and [2, q, d] descriptors.
  """
  q = len(four.mask)
  images = jnp.swapaxes(four.patches[:, :2], 0, 1)
  images = images.reshape(-1, *images.shape[2:])
  rotations = apply("turned", images, points)
  found = apply("describe", cut(images, points, rotations))
  return rotations.reshape(2, q, 2), found.reshape(2, q, -1)


def _orient(apply, four: Quadruplets, loss: Loss, step):
  """Turned as the network says, patches of one point look the same."""
  del loss, step
  points = jnp.swapaxes(four.points[:, :2], 0, 1).reshape(-1, 2)
  rotations, (first, second) = _own(apply, four, points)
  pairs = distances(first, second)
  sums = {
    "loss": jnp.where(four.mask, pairs, 0.0),
    "angle_error": jnp.where(four.mask, disagreement(rotations, four), 0.0),
    "accuracy": matched(first, second, four.mask),
  }
  return _sums(sums, four.mask)


def disagreement(rotations: jax.Array, four: Quadruplets) -> jax.Array:
  """By how many degrees, [q], two rotations [2, q, 2] differ in the world."""
  known = jnp.swapaxes(four.rotations[:, :2], 0, 1)
  cosine = jnp.sum(rotations * known, axis=-1)
  sine = rotations[..., 1] * known[..., 0] - rotations[..., 0] * known[..., 1]
  angles = jnp.arctan2(sine, cosine)
  apart = angles[0] - angles[1]
  return jnp.rad2deg(jnp.abs(jnp.arctan2(jnp.sin(apart), jnp.cos(apart))))


def _detect(apply, four: Quadruplets, loss: Loss, step):
  """The detector finds the same point in both patches, and one only there."""
  q = len(four.mask)
  images = jnp.swapaxes(four.patches, 0, 1)
  images = images.reshape(-1, *images.shape[2:])
  scores, points = apply("locate", images)
  classes = class_loss(
    jnp.swapaxes(scores.reshape(4, q, *scores.shape[1:]), 0, 1), four.blank
  )
  points = points[: 2 * q]
  _, (first, second) = _own(apply, four, points)
  offset = displacement(points.reshape(2, q, 2), four)
  pairs = jnp.where(
    step < loss.overlap_steps, overlap_loss(offset), distances(first, second)
  )
  near = jnp.sum(offset**2, axis=-1) <= _SAME**2
  sums = {
    "loss": jnp.where(four.mask, pairs + loss.class_weight * classes, 0.0),
    "class_loss": jnp.where(four.mask, classes, 0.0),
    "same_point_share": four.mask & near,
    "accuracy": matched(first, second, four.mask),
  }
  return _sums(sums, four.mask)


def displacement(points: jax.Array, four: Quadruplets) -> jax.Array:
  """How far, [q, 2], two points [2, q, 2] are apart in the world.

  In pixels of the first patch's size, along the direction known there.
  """
  back = jnp.array([[1.0, -1.0]])
  one, other = (
    jax.vmap(turn)(points[k] - four.points[:, k], four.rotations[:, k] * back)
    for k in range(2)
  )
  return one - other


def _sums(values, mask):
  real = jnp.sum(mask).astype(jnp.float32)
  sums = {name: jnp.sum(value) for name, value in values.items()}
  return sums, dict.fromkeys(sums, real)
