"""Boxes of features, their overlap, and selection by score."""

import jax
import jax.numpy as jnp
from jax import export


def grid_centres(
  shape: tuple[int, int], stride: int, offset: float = 0.0
) -> jax.Array:
  """Locates the features of a map in the image that the network was given.

  Args:
    shape: height and width of the map.
    stride: of the receptive field.
    offset: of the first feature's centre, `ReceptiveField.offset`. It is zero
      with padding (size - 1) / 2, as all of the released systems count.

  Returns:
    [height * width, 2] float32 centres (y, x), row-major.
  """
  rows, columns = jnp.meshgrid(
    jnp.arange(shape[0]), jnp.arange(shape[1]), indexing="ij"
  )
  centres = jnp.stack([rows.ravel(), columns.ravel()], axis=-1)
  return stride * centres.astype(jnp.float32) + offset


def boxes(
  locations: jax.Array, scales: jax.Array, field_size: int
) -> jax.Array:
  """Returns the supports as boxes in the original photograph.

  Args:
    locations: [n, 2] centres (y, x).
    scales: [n] 1 / image scale.
    field_size: side of the receptive field at image scale 1, in pixels.

  Returns:
    [n, 4] float32 (ymin, xmin, ymax, xmax); the side is (size - 1) * scale.
  """
  half = 0.5 * (field_size - 1) * scales[:, None]
  return jnp.concatenate([locations - half, locations + half], axis=-1)


def iou(box: jax.Array, others: jax.Array) -> jax.Array:
  """Intersection over union of one box [4] with others [n, 4]: [n]."""
  box = jnp.broadcast_to(box[None, :], others.shape)
  low = jnp.maximum(box[:, :2], others[:, :2])
  high = jnp.minimum(box[:, 2:], others[:, 2:])
  intersection = jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)
  area = jnp.prod(box[:, 2:] - box[:, :2], axis=-1)
  areas = jnp.prod(others[:, 2:] - others[:, :2], axis=-1)
  union = area + areas - intersection
  return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def select(
  scores: jax.Array,
  mask: jax.Array,
  boxes: jax.Array,
  *,
  max_features: int,
  iou_threshold: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Picks the best features, greedily suppressing those that overlap.

  Args:
    scores: [n] higher is better; among equals the lower row wins.
    mask: [n] bool, rows that may be picked.
    boxes: [n, 4] supports; unused when `iou_threshold` is 1.
    max_features: how many rows to pick.
    iou_threshold: a row is suppressed if its overlap with a better picked row
      is larger than this; 1 keeps all.

  Returns:
    [max_features] int32 rows, best first, and [max_features] bool, which of
    them are real.
  """
  scores = jnp.where(mask, scores, -jnp.inf)
  if iou_threshold >= 1.0:
    if export.is_symbolic_dim(scores.shape[0]):  # perhaps too few
      scores = jnp.pad(scores, (0, max_features), constant_values=-jnp.inf)
    count = min(max_features, scores.shape[0])
    best, rows = jax.lax.top_k(scores, count)
    valid = best > -jnp.inf
    padding = (0, max_features - count)
    return jnp.pad(jnp.where(valid, rows, 0), padding), jnp.pad(valid, padding)

  def pick(i, state):
    remaining, rows, valid = state
    row = jnp.argmax(remaining)
    suppressed = iou(boxes[row], boxes) > iou_threshold
    suppressed = suppressed.at[row].set(True)
    valid = valid.at[i].set(remaining[row] > -jnp.inf)
    rows = rows.at[i].set(jnp.where(valid[i], row, 0))
    return jnp.where(suppressed, -jnp.inf, remaining), rows, valid

  state = (
    scores,
    jnp.zeros((max_features,), jnp.int32),
    jnp.zeros((max_features,), bool),
  )
  _, rows, valid = jax.lax.fori_loop(0, max_features, pick, state)
  return rows, valid
