"""BatchNorm against Flax's: names, results, statistics, gradients, devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models.batch_norm import BatchNorm


def activations(shape=(6, 5, 7, 4), dtype=jnp.float32):
  """Activations and a gradient; channels differ in mean and deviation."""
  keys = jax.random.split(jax.random.key(0))
  channels = jnp.arange(1.0, shape[-1] + 1)[None, None, None]
  x = jax.random.normal(keys[0], shape) * channels + 2.0 * channels - 3.0
  dy = jax.random.normal(keys[1], shape)
  return x.astype(dtype), dy.astype(dtype)


def draw_variables(features=4):
  keys = iter(jax.random.split(jax.random.key(1), 4))

  def draw():
    return jax.random.uniform(next(keys), (features,), minval=0.5, maxval=1.5)

  return {
    "params": {"scale": draw(), "bias": draw() - 1.0},
    "batch_stats": {"mean": draw(), "var": draw()},
  }


def ours(variables, x, *, train=True, rectify=False, axis_name=None):
  return BatchNorm(epsilon=1e-3, axis_name=axis_name).apply(
    variables, x, train=train, rectify=rectify, mutable=["batch_stats"]
  )


def flax(variables, x, *, train=True, rectify=False):
  y, updates = nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-3, dtype=x.dtype
  ).apply(variables, x, mutable=["batch_stats"])
  return (nn.relu(y) if rectify else y), updates


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=("train", "rectify", "axis_name")
)
def gradients(apply, variables, x, dy, **options):
  _, pullback = jax.vjp(
    lambda params, x: apply({**variables, "params": params}, x, **options)[0],
    variables["params"],
    x,
  )
  return pullback(dy)


def assert_close(actual, expected, **tolerances):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerances
    ),
    actual,
    expected,
  )


def test_variables_have_the_names_and_beginnings_of_flax():
  x, _ = activations()
  drawn = BatchNorm(axis_name="nowhere").init(jax.random.key(0), x, train=True)
  expected = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, drawn, expected)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_results_and_statistics_are_those_of_flax(train, rectify, dtype):
  x, _ = activations(dtype=dtype)
  variables = draw_variables()
  y, updates = ours(variables, x, train=train, rectify=rectify)
  expected, statistics = flax(variables, x, train=train, rectify=rectify)
  assert y.dtype == dtype
  assert_close(y, expected, rtol=1e-5, atol=1e-5)
  assert_close(updates, statistics, rtol=1e-6)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_gradients_are_those_of_flax(train, rectify):
  x, dy = activations()
  options = {"train": train, "rectify": rectify}
  assert_close(
    gradients(ours, draw_variables(), x, dy, **options),
    gradients(flax, draw_variables(), x, dy, **options),
    rtol=1e-4,
    atol=1e-5,
  )


def test_gradients_in_bfloat16_are_rounded_once():
  x, dy = activations(dtype=jnp.bfloat16)
  variables = draw_variables()
  params, dx = gradients(ours, variables, x, dy, rectify=True)
  assert dx.dtype == jnp.bfloat16
  # The rectifier's decisions are those of the rounded results in both.
  gate = ours(variables, x, rectify=True)[0] > 0
  expected = gradients(
    flax,
    variables,
    x.astype(jnp.float32),
    jnp.where(gate, dy, 0.0).astype(jnp.float32),
  )
  assert_close((params, dx), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("transform", [jax.pmap, jax.vmap])
def test_a_batch_on_two_devices_is_one_batch(transform):
  x, dy = activations()
  variables = draw_variables()

  def run(x, dy, axis_name=None):
    options = {"rectify": True, "axis_name": axis_name}
    y, updates = ours(variables, x, **options)
    return y, updates, gradients(ours, variables, x, dy, **options)

  y, updates, (dparams, dx) = transform(
    lambda x, dy: run(x, dy, "batch"), axis_name="batch"
  )(*(array.reshape(2, 3, *array.shape[1:]) for array in (x, dy)))
  dparams = jax.tree.map(lambda parts: parts.sum(0), dparams)
  updates = jax.tree.map(lambda parts: parts[1], updates)
  assert_close(
    (y.reshape(x.shape), updates, (dparams, dx.reshape(x.shape))),
    run(x, dy),
    rtol=1e-4,
    atol=1e-5,
  )
