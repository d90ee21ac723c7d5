"""LIFT's networks: counts, shapes, and their parts against oracles."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models import lift
from delf_jax.models.lift import PATCH, Lift


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_paper_s_networks_have_these_parameters():
  shapes = jax.eval_shape(
    Lift().init, jax.random.key(0), jnp.zeros((1, 128, 128))
  )["params"]
  # 16 filters of 25 x 25.
  assert count(shapes["detector"]) == 25 * 25 * 16 + 16
  # 64 -> 60, 30 -> 26, 13 -> 11, 5: 5 x 5 x 50 into 100 x 16, into 2 x 16.
  convolutions = (25 * 10 + 10) + (250 * 20 + 20) + (180 * 50 + 50)
  dense = (1250 * 1600 + 1600) + (100 * 32 + 32)
  assert count(shapes["orientation"]) == convolutions + dense
  # 64 -> 58, 29 -> 24, 8 -> 4, 1.
  descriptor = (49 * 32 + 32) + (36 * 32 * 64 + 64) + (25 * 64 * 128 + 128)
  assert count(shapes["descriptor"]) == descriptor
  assert set(shapes) == {"detector", "orientation", "descriptor"}


SMALL = Lift(
  kernel=9,
  hinges=(2, 3),
  orientation_channels=(2, 3, 4),
  orientation_hidden=5,
  descriptor_layers=(3, 4, 7),
)


@pytest.fixture(scope="module")
def variables():
  return jax.jit(SMALL.init)(jax.random.key(0), jnp.zeros((1, 70, 70)))


def images(number, side, seed=0):
  return jax.random.normal(jax.random.key(seed), (number, side, side))


def apply(method, values):
  return jax.jit(lambda *a: SMALL.apply(*a, method=method))(*values)


def test_shapes(variables):
  scores = apply("detect", (variables, images(2, 70)))
  assert scores.shape == (2, 70 - 8, 70 - 8) and SMALL.border == 4
  patches = images(3, PATCH)
  rotations = apply("orient", (variables, patches))
  assert rotations.shape == (3, 2)
  np.testing.assert_allclose(jnp.sum(rotations**2, axis=-1), 1.0, rtol=1e-5)
  found = apply("describe", (variables, patches))
  assert found.shape == (3, 7) and SMALL.descriptor_channels == 7
  assert apply("__call__", (variables, images(2, 70))).shape == (2, 7)


def test_gradients_flow_through_the_whole_chain(variables):
  gradients = jax.jit(
    jax.grad(lambda v: jnp.sum(SMALL.apply(v, images(2, 70)) ** 2))
  )(variables)["params"]
  for name in ("detector", "orientation", "descriptor"):
    norms = [float(jnp.sum(g**2)) for g in jax.tree.leaves(gradients[name])]
    assert np.isfinite(norms).all() and max(norms) > 0, name


def test_an_orientation_of_no_length_is_upright(variables):
  params = {
    **variables["params"],
    "orientation": jax.tree.map(
      jnp.zeros_like, variables["params"]["orientation"]
    ),
  }

  def orient(params):
    return SMALL.apply({"params": params}, images(3, PATCH), method="orient")

  found = jax.jit(orient)(params)
  np.testing.assert_allclose(found, [[1.0, 0.0]] * 3, rtol=1e-5)
  gradient = jax.jit(jax.grad(lambda p: jnp.sum(orient(p))))(params)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_hinging_hyperplanes_are_signed_sums_of_maxima():
  values = np.random.default_rng(0).normal(size=(5, 2 * 3 * 4))
  found = lift.hinging_hyperplanes(jnp.asarray(values, jnp.float32), (3, 4))
  expected = np.zeros((5, 2))
  for b in range(5):
    for c in range(2):
      for s in range(3):
        start = (c * 3 + s) * 4
        expected[b, c] += (-1) ** s * max(values[b, start : start + 4])
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("side, block", [(9, 8), (25, 8), (5, 4), (3, 1)])
def test_a_convolution_by_blocks_is_a_convolution(side, block):
  generator = np.random.default_rng(0)
  kernel = generator.normal(size=(side, side, 3)).astype(np.float32)
  image = generator.normal(size=(2, 37, 41)).astype(np.float32)
  found = jax.jit(lift.convolve, static_argnums=2)(image, kernel, block)
  half = side // 2
  expected = np.stack(
    [
      [cv2.filter2D(np.float64(one), -1, k) for k in np.moveaxis(kernel, -1, 0)]
      for one in image
    ]
  )[..., half : 37 - half, half : 41 - half]
  np.testing.assert_allclose(found, np.moveaxis(expected, 1, -1), atol=1e-4)


def test_a_convolution_by_blocks_has_the_gradient_of_one():
  kernel = jax.random.normal(jax.random.key(0), (9, 9, 4))
  image = jax.random.normal(jax.random.key(1), (2, 30, 34))
  weights = jax.random.normal(jax.random.key(2), (2, 22, 26, 4))

  def plain(kernel):
    found = jax.lax.conv_general_dilated(
      image[..., None],
      kernel[:, :, None],
      (1, 1),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.sum(found * weights)

  def ours(kernel):
    return jnp.sum(lift.convolve(image, kernel) * weights)

  found, expected = (jax.jit(jax.grad(f))(kernel) for f in (ours, plain))
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_softargmax_finds_a_peak_and_moves_with_it():
  scores = jnp.zeros((20, 30)).at[7, 21].set(3.0)
  np.testing.assert_allclose(lift.softargmax(scores), [7, 21], atol=1e-3)
  # Between two equal peaks.
  scores = scores.at[9, 25].set(3.0)
  np.testing.assert_allclose(lift.softargmax(scores), [8, 23], atol=1e-3)
  scores = jax.random.normal(jax.random.key(0), (6, 8))
  weights = np.exp(10.0 * np.asarray(scores, np.float64))
  weights /= weights.sum()
  y, x = np.mgrid[:6, :8]
  expected = [(weights * y).sum(), (weights * x).sum()]
  np.testing.assert_allclose(lift.softargmax(scores), expected, rtol=1e-4)


def test_l2_pool_is_the_root_of_the_sum_of_squares():
  values = np.random.default_rng(1).normal(size=(2, 6, 9, 3))
  found = lift.l2_pool(jnp.asarray(values, jnp.float32), 3)
  assert found.shape == (2, 2, 3, 3)
  window = values[1, 3:6, 6:9, 2]
  np.testing.assert_allclose(
    found[1, 1, 2, 2], np.sqrt((window**2).sum() + 1e-6), rtol=1e-5
  )


def test_subtractive_normalisation_takes_the_local_mean():
  values = np.random.default_rng(2).normal(size=(1, 7, 8, 3))
  found = lift.subtract_neighbours(jnp.asarray(values, jnp.float32))
  steps = np.arange(-2, 3)
  line = np.exp(-0.5 * (steps / 1.25) ** 2)
  window = np.outer(line, line)
  for y, x in ((3, 4), (0, 0), (6, 1)):
    total = weight = 0.0
    for i, dy in enumerate(steps):
      for j, dx in enumerate(steps):
        if 0 <= y + dy < 7 and 0 <= x + dx < 8:
          total += window[i, j] * values[0, y + dy, x + dx].mean()
          weight += window[i, j]
    np.testing.assert_allclose(
      found[0, y, x], values[0, y, x] - total / weight, atol=1e-5
    )
  # What is constant vanishes, also at the border.
  flat = lift.subtract_neighbours(jnp.full((1, 6, 6, 2), 5.0))
  np.testing.assert_allclose(flat, 0.0, atol=1e-5)


def test_grey_is_luma():
  pixels = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]])
  np.testing.assert_allclose(lift.grey(pixels), [[0.299, 0.587, 1.0]])
