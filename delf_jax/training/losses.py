"""Classification losses on logits or cosines."""

import jax
import jax.numpy as jnp
import optax

from delf_jax.errors import InputError

KINDS = ("softmax", "arcface")


def classification(
  logits: jax.Array,
  targets: jax.Array,
  *,
  kind: str = "softmax",
  label_smoothing: float = 0.0,
  scale: float = 30.0,
  margin: float = 0.15,
) -> jax.Array:
  """Cross-entropy between logits and target distributions.

  Args:
    logits: [b, c]; cosines for "arcface".
    targets: [b, c], rows sum to one: a class, or a mixture of two.
    kind: one of `KINDS`.
    label_smoothing: share of every target that is spread over all classes.
    scale: of the cosines, for "arcface".
    margin: angle in radians that the true class is handicapped by, for
      "arcface".

  Returns:
    [b] float32 losses.
  """
  if kind == "arcface":
    logits = scale * add_angle(logits, margin * targets)
  smoothed = (
    1.0 - label_smoothing
  ) * targets + label_smoothing / targets.shape[-1]
  return optax.softmax_cross_entropy(logits, smoothed)


def check_loss(*, kind: str = "softmax", **options: float) -> None:
  """Refuses what `classification` cannot take.

  Raises:
    InputError: if the kind or an option is unknown, or out of range.
  """
  if kind not in KINDS:
    raise InputError(
      f"unknown loss {kind!r}; expected {' or '.join(map(repr, KINDS))}"
    )
  unknown = options.keys() - {"label_smoothing", "scale", "margin"}
  if unknown:
    raise InputError(
      f"config.loss has no option {', '.join(sorted(unknown))}; expected "
      f"label_smoothing, scale, margin"
    )
  if not 0 <= options.get("label_smoothing", 0.0) < 1:
    raise InputError("config.loss.label_smoothing must lie in [0, 1)")


def add_angle(cosines: jax.Array, angles: jax.Array) -> jax.Array:
  """Returns cos(arccos(cosines) + angles) for angles in [0, pi).

  Where the sum passes pi the cosine would rise again; there it goes on to
  fall, linearly, as in the released code of ArcFace (Deng et al., CVPR 2019).

  Args:
    cosines: any shape, in [-1, 1].
    angles: the same shape, in radians.
  """
  inside = jnp.clip(cosines, -1.0, 1.0)
  # The derivative of the square root is infinite at zero.
  sines = jnp.sqrt(jnp.maximum(1.0 - inside**2, 1e-9))
  turned = inside * jnp.cos(angles) - sines * jnp.sin(angles)
  beyond = inside - angles * jnp.sin(angles)
  return jnp.where(inside > -jnp.cos(angles), turned, beyond)


def mix(
  pixels: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Mixes every photograph with its neighbour in the batch (mixup).

  Photograph 2i is paired with 2i + 1, and one share is drawn for the whole
  batch: the result does not depend on how the batch is split over devices.

  Args:
    pixels: [b, h, w, 3] float, b even.
    targets: [b, c].
    key: of the share.
    alpha: the share is Beta(alpha, alpha).

  Returns:
    the mixed pixels and targets.
  """
  share = jax.random.beta(key, alpha, alpha)

  def blend(x):
    pairs = x.reshape(-1, 2, *x.shape[1:])
    return (share * pairs + (1.0 - share) * pairs[:, ::-1]).reshape(x.shape)

  return blend(pixels), blend(targets)
