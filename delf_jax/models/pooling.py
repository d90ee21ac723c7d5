"""The maximum over 3x3 windows with stride 2.

XLA's CPU backend runs the gradient of its windowed maximum (select-and-scatter)
as scalar code: for the stem of ResNet-50 at 224, batch 8, 100 ms of a core, and
7 ms for the maximum itself. As maxima of three strided slices, along rows and
then along columns, these are 8 ms and 1 ms. Other platforms keep XLA's own
operations.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

ROWS, COLUMNS = 1, 2  # axes of [b, h, w, c]


def max_pool(x: jax.Array) -> jax.Array:
  """Pools [b, h, w, c], padded by the caller, to [b, h', w', c].

  h' = (h - 1) // 2, and so w'. The gradient of a window goes to its first
  maximum, row by row, on every platform.
  """
  if x.shape[ROWS] < 3 or x.shape[COLUMNS] < 3:  # no window, an empty result
    return _windowed(x)
  return _max_pool(x)


@jax.custom_vjp
def _max_pool(x):
  return jax.lax.platform_dependent(
    x,
    cpu=lambda x: _max_of_three(_max_of_three(x, COLUMNS), ROWS),
    default=_windowed,
  )


def _windowed(x: jax.Array) -> jax.Array:
  return nn.max_pool(x, (3, 3), (2, 2))


def _forward(x):
  y = _max_pool(x)
  return y, (x, y)


def _backward(residuals, gradient):
  return (
    jax.lax.platform_dependent(
      *residuals,
      gradient,
      cpu=_separable_gradient,
      default=lambda x, _, gradient: jax.vjp(_windowed, x)[1](gradient)[0],
    ),
  )


_max_pool.defvjp(_forward, _backward)


def _separable_gradient(x, y, gradient):
  # The first maximum row by row lies in the first row that holds the maximum.
  rows = _max_of_three(x, COLUMNS)
  return _spread(x, rows, _spread(rows, y, gradient, ROWS), COLUMNS)


def _windows(x: jax.Array, axis: int) -> list[jax.Array]:
  """Returns the first, second and third entry of every window on an axis."""
  count = (x.shape[axis] - 1) // 2
  return [
    jax.lax.slice_in_dim(x, k, k + 2 * count - 1, 2, axis) for k in range(3)
  ]


def _max_of_three(x: jax.Array, axis: int) -> jax.Array:
  first, second, third = _windows(x, axis)
  return jnp.maximum(jnp.maximum(first, second), third)


def _spread(x, y, gradient, axis: int) -> jax.Array:
  """Returns the gradient of x, given that of y = `_max_of_three(x, axis)`."""
  first, second, _ = _windows(x, axis)
  in_first = first == y
  in_second = (second == y) & ~in_first
  nothing = jnp.zeros((), gradient.dtype)
  to_first = jnp.where(in_first, gradient, nothing)
  to_second = jnp.where(in_second, gradient, nothing)
  to_third = jnp.where(in_first | in_second, nothing, gradient)
  # Entry 2i is the first of window i and the third of window i - 1.
  even = _pad(to_first, axis, 0, 1) + _pad(to_third, axis, 1, 0)
  odd = _pad(to_second, axis, 0, 1)
  both = jnp.stack([even, odd], axis + 1)
  both = both.reshape(*x.shape[:axis], -1, *y.shape[axis + 1 :])
  # The last odd entry is in no window, and x may end before or after it.
  covered = 2 * y.shape[axis] + 1
  both = jax.lax.slice_in_dim(both, 0, covered, 1, axis)
  return _pad(both, axis, 0, x.shape[axis] - covered)


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
  around = [(0, 0)] * x.ndim
  around[axis] = (before, after)
  return jnp.pad(x, around)
