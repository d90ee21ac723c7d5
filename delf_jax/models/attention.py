"""The attention head and the pooling it weighs (sections 3.2 and 3.3)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from delf_jax.models.resnet import Conv

EPSILON = 1e-12


class AttentionHead(nn.Module):
  """A 1x1 - 1x1 network that gives every location a score >= 0.

  Attributes:
    hidden: channels between the two convolutions.
    epsilon: of BatchNorm.
    momentum: of BatchNorm's running statistics.
    axis_name: mapped axis over which training statistics are averaged.
    dtype: compute precision.
  """

  hidden: int = 512
  epsilon: float = 1e-5
  momentum: float = 0.9
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [b, h, w, c] un-normalised features to [b, h, w] scores."""
    x = Conv(self.hidden, 1, dtype=self.dtype, name="conv1")(features)
    x = nn.BatchNorm(
      use_running_average=not train,
      momentum=self.momentum,
      epsilon=self.epsilon,
      axis_name=self.axis_name if train else None,
      dtype=self.dtype,
      name="bn_1",
    )(x)
    x = Conv(1, 1, use_bias=True, dtype=self.dtype, name="conv2")(nn.relu(x))
    return nn.softplus(x[..., 0].astype(jnp.float32))


def attention_pool(
  features: jax.Array, scores: jax.Array, *, normalise: bool = True
) -> jax.Array:
  """Pools a feature map with its scores (equation 1 of the paper).

  Args:
    features: [h, w, c] backbone activations, any scale.
    scores: [h, w] non-negative.
    normalise: l2-normalise every feature first and average, as the released
      system does; False is the paper's plain sum.

  Returns:
    [c] the photograph's embedding.
  """
  features = features.astype(jnp.float32)
  if not normalise:
    return jnp.einsum("hw,hwc->c", scores, features)
  unit = features * jax.lax.rsqrt(
    jnp.sum(features**2, axis=-1, keepdims=True) + EPSILON
  )
  return jnp.einsum("hw,hwc->c", scores, unit) / scores.size
