"""The heads on the features: attention, its pooling, codes and classifiers."""

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


class Autoencoder(nn.Module):
  """Codes of a few channels from which the features can be rebuilt.

  The released TF2 system's reduction: a 1x1 convolution to the code and a
  1x1 convolution with a rectifier back, both with biases.

  Attributes:
    dim: channels of the code.
    dtype: compute precision.
  """

  dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, features: jax.Array, *, detached: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Maps [b, h, w, c] features to [b, h, w, dim] and [b, h, w, c].

    Args:
      features: of a backbone.
      detached: what is rebuilt passes no gradient on to the code.
    """
    code = Conv(self.dim, 1, use_bias=True, dtype=self.dtype, name="conv1")(
      features
    )
    channels = features.shape[-1]
    rebuilt = Conv(channels, 1, use_bias=True, dtype=self.dtype, name="conv2")(
      jax.lax.stop_gradient(code) if detached else code
    )
    return code, nn.relu(rebuilt)


class CosineDense(nn.Module):
  """Cosines between embeddings and one learned direction a class.

  Attributes:
    features: how many classes.
  """

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [b, c] embeddings of any length to [b, features] in [-1, 1]."""
    kernel = self.param(
      "kernel",
      nn.initializers.lecun_normal(),
      (x.shape[-1], self.features),
    )
    return l2_normalise(x) @ l2_normalise(kernel, axis=0)


def l2_normalise(x: jax.Array, *, axis: int = -1) -> jax.Array:
  """Divides by the Euclidean length along an axis; zero stays zero."""
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=axis, keepdims=True) + EPSILON)


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
  unit = l2_normalise(features)
  return jnp.einsum("hw,hwc->c", scores, unit) / scores.size
