"""The stem's maximum against XLA's own, and where each is used."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models.pooling import max_pool


def windowed(x):
  return nn.max_pool(x, (3, 3), (2, 2))


def draw(shape, dtype=jnp.float32, levels=4):
  """Activations of few levels, so that most windows hold ties."""
  x = jax.random.randint(jax.random.key(0), shape, -levels, levels + 1)
  return x.astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def gradient(pool, x):
  y, pullback = jax.vjp(pool, x)
  # Whole numbers: sums of up to four of them are exact in any order.
  dy = jax.random.randint(jax.random.key(1), y.shape, -8, 9).astype(y.dtype)
  return pullback(dy)[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [(3, 4), (9, 9), (10, 13), (16, 16)])
def test_results_and_gradients_are_those_of_the_windowed_maximum(size, dtype):
  x = draw((2, *size, 5), dtype)
  np.testing.assert_array_equal(max_pool(x), windowed(x))
  found = gradient(max_pool, x)
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, gradient(windowed, x))


def test_an_image_smaller_than_a_window_gives_nothing():
  assert max_pool(jnp.ones((1, 2, 9, 3))).shape == (1, 0, 4, 3)


@pytest.mark.parametrize("transform", [jax.vmap, jax.pmap])
def test_it_maps(transform):
  x = draw((2, 3, 9, 10, 5))
  found = transform(lambda x: gradient(max_pool, x))(x)
  expected = jnp.stack([gradient(windowed, part) for part in x])
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ("platform", "own"), [("cpu", False), ("cuda", True), ("tpu", True)]
)
def test_other_platforms_keep_the_operations_of_xla(platform, own):
  program = (
    jax.jit(lambda x: gradient(max_pool, x))
    .trace(jnp.ones((1, 8, 8, 2)))
    .lower(lowering_platforms=(platform,))
    .as_text()
  )
  assert ("reduce_window" in program) == own
  assert ("select_and_scatter" in program) == own
