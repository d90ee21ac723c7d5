"""BatchNorm, with the rectifier that follows it, and its gradient.

Differentiated by hand, because what JAX derives keeps the centred activations
beside the activations and passes over them more often. With
`flax.linen.BatchNorm`, the training step of ResNet-50 at 224, batch 8, needs
1.13 instead of 0.78 GB of temporary memory, and 11 to 16 % more time on four
CPU cores. Names, results and statistics are those of Flax.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

POSITIONS = (0, 1, 2)  # axes of [b, h, w, c] that statistics are taken over


class BatchNorm(nn.Module):
  """Normalises channels by their batch or running statistics.

  Attributes:
    momentum: of the running statistics.
    epsilon: added to variances.
    axis_name: mapped axis over which batch statistics are averaged.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, rectify: bool = False
  ) -> jax.Array:
    """Maps [b, h, w, c] to the same; computes in float32, returns x's dtype.

    Args:
      x: activations.
      train: use batch statistics, and update the running ones.
      rectify: set negative results to zero.
    """
    features = (x.shape[-1],)
    mean = self.variable("batch_stats", "mean", jnp.zeros, features)
    var = self.variable("batch_stats", "var", jnp.ones, features)
    scale = self.param("scale", nn.initializers.ones, features)
    bias = self.param("bias", nn.initializers.zeros, features)
    if not train:
      return _normalise(
        x, mean.value, var.value, scale, bias, self.epsilon, rectify
      )
    # While parameters are drawn nothing is mapped, and nothing learned.
    axis_name = None if self.is_initializing() else self.axis_name
    y, batch_mean, batch_var = batch_norm(
      x, scale, bias, self.epsilon, rectify, axis_name
    )
    if not self.is_initializing():
      for running, batch in ((mean, batch_mean), (var, batch_var)):
        # Not in place: the arrays may be of NumPy, and the caller's.
        kept = running.value * self.momentum
        running.value = kept + (1.0 - self.momentum) * batch
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  rectify: bool,
  axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises by batch statistics.

  Args:
    x: [b, h, w, c].
    scale: [c] float32.
    bias: [c] float32.
    epsilon: added to variances.
    rectify: set negative results to zero.
    axis_name: mapped axis that the batch is spread over, or None.

  Returns:
    [b, h, w, c] in the dtype of x; [c] float32 mean and [c] float32 variance,
    through which no gradient flows.
  """
  exact = x.astype(jnp.float32)
  mean, mean_of_squares = _average(
    (jnp.mean(exact, POSITIONS), jnp.mean(exact * exact, POSITIONS)), axis_name
  )
  # Rounding can make the difference negative.
  var = jnp.maximum(0.0, mean_of_squares - mean * mean)
  return _normalise(x, mean, var, scale, bias, epsilon, rectify), mean, var


def _normalise(x, mean, var, scale, bias, epsilon, rectify):
  gain = jax.lax.rsqrt(var + epsilon) * scale
  y = (x - _channels(mean)) * _channels(gain) + _channels(bias)
  y = y.astype(x.dtype)
  return nn.relu(y) if rectify else y


def _forward(x, scale, bias, epsilon, rectify, axis_name):
  y, mean, var = batch_norm(x, scale, bias, epsilon, rectify, axis_name)
  # y costs no memory: the next convolution keeps it anyway.
  kept = y if rectify else None
  return (y, mean, var), (x, kept, mean, var, scale)


def _backward(epsilon, rectify, axis_name, residuals, cotangents):
  x, y, mean, var, scale = residuals
  dy = cotangents[0]
  if rectify:
    dy = jnp.where(y > 0, dy, jnp.zeros((), dy.dtype))
  dy, exact = dy.astype(jnp.float32), x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(var + epsilon)
  # With unit = (x - mean) * inverse, y = unit * scale + bias. The sums are
  # taken over x, because unit would be written to memory to be summed.
  dbias = jnp.sum(dy, POSITIONS)
  dscale = (jnp.sum(dy * exact, POSITIONS) - mean * dbias) * inverse
  count = x.size // x.shape[-1]
  mean_dy, mean_dy_unit = _average((dbias / count, dscale / count), axis_name)
  # dx = gain * (dy - mean_dy - unit * mean_dy_unit), as a line in x.
  gain = scale * inverse
  slope = -gain * inverse * mean_dy_unit
  offset = -gain * mean_dy - slope * mean
  dx = dy * _channels(gain) + exact * _channels(slope) + _channels(offset)
  return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_forward, _backward)


def _average(values, axis_name: str | None):
  return values if axis_name is None else jax.lax.pmean(values, axis_name)


def _channels(values: jax.Array) -> jax.Array:
  """Returns [1, 1, 1, c] of [c]."""
  return values[None, None, None, :]
