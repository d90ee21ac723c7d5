"""Patches against OpenCV's sampler, and their gradients."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models.spatial_transformer import crop, grid, interpolate, turn


def textured(height, width, seed=0):
  generator = np.random.default_rng(seed)
  return cv2.GaussianBlur(
    generator.normal(size=(height, width)).astype(np.float32), (0, 0), 2
  )


def rotation(degrees):
  angle = np.deg2rad(degrees)
  return jnp.array([np.cos(angle), np.sin(angle)], jnp.float32)


@pytest.mark.parametrize("degrees", [0, 30, -75, 180])
@pytest.mark.parametrize("zoom", [1.0, 0.6, 1.7])
def test_a_patch_is_what_opencv_samples(degrees, zoom):
  image = textured(50, 70)
  centre, side = np.array([24.3, 33.8]), 15
  angle = np.deg2rad(degrees)
  own = np.arange(side) - (side - 1) / 2
  v, u = np.meshgrid(own, own, indexing="ij")
  x = centre[1] + zoom * (np.cos(angle) * u - np.sin(angle) * v)
  y = centre[0] + zoom * (np.sin(angle) * u + np.cos(angle) * v)
  expected = cv2.remap(
    image,
    x.astype(np.float32),
    y.astype(np.float32),
    cv2.INTER_LINEAR,
    borderMode=cv2.BORDER_REPLICATE,
  )
  found = crop(
    jnp.asarray(image),
    jnp.asarray(centre, jnp.float32),
    rotation(degrees),
    side=side,
    zoom=zoom,
  )
  # OpenCV rounds positions to a 32nd of a pixel.
  np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_quarter_turn_is_exact():
  image = textured(31, 31)
  centre = jnp.array([15.0, 15.0])
  upright = crop(jnp.asarray(image), centre, rotation(0), side=31)
  np.testing.assert_allclose(upright, image, atol=1e-6)
  # Its x axis points down: what was on the left is now at the top... turned
  # against the clock, as seen.
  turned = crop(jnp.asarray(image), centre, rotation(90), side=31)
  np.testing.assert_allclose(turned, np.rot90(image), atol=1e-5)


def test_beyond_the_ends_are_the_ends_and_padding_is_never_read():
  image = jnp.asarray(textured(20, 30))
  padded = jnp.pad(image, ((0, 9), (0, 5)), constant_values=jnp.nan)
  points = jnp.array([[-5.0, 3.0], [40.0, 50.0], [19.0, 29.0], [18.7, 28.2]])
  size = jnp.array([20, 30])
  found = interpolate(padded[None], points, size=size)
  np.testing.assert_allclose(found, interpolate(image[None], points))
  np.testing.assert_allclose(
    found[:3], [image[0, 3], image[19, 29]] + [image[19, 29]]
  )


def test_an_image_of_one_pixel_has_patches():
  found = crop(jnp.full((1, 1), 3.0), jnp.zeros(2), rotation(20), side=4)
  np.testing.assert_array_equal(found, np.full((4, 4), 3.0))


def test_turning_back_undoes_it():
  vectors = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
  there = turn(vectors, rotation(40))
  back = turn(there, rotation(-40))
  np.testing.assert_allclose(back, vectors, atol=1e-6)


def test_gradients_reach_centre_angle_and_zoom():
  # Of the plane y + 3 x, the mean over a patch is that of its centre.
  y, x = np.mgrid[:40, :40]
  plane = jnp.asarray(y + 3.0 * x, jnp.float32)

  def mean(centre):
    return jnp.mean(crop(plane, centre, rotation(25), side=9))

  slope = jax.grad(mean)(jnp.array([19.4, 20.2]))
  np.testing.assert_allclose(slope, [1.0, 3.0], rtol=1e-4)
  image = jnp.asarray(textured(40, 40))

  def corner(angle, zoom):
    r = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return crop(image, jnp.array([19.4, 20.2]), r, side=9, zoom=zoom)[0, 2]

  for k, h in ((0, 1e-3), (1, 1e-3)):
    low, high = [0.4, 1.1], [0.4, 1.1]
    low[k] -= h
    high[k] += h
    numeric = (corner(*high) - corner(*low)) / (2 * h)
    exact = jax.grad(corner, argnums=k)(0.4, 1.1)
    np.testing.assert_allclose(exact, numeric, rtol=0.05, atol=1e-3)


def test_a_grid_is_as_large_as_its_zoom_says():
  points = grid(jnp.zeros(2), rotation(33), side=5, zoom=2.5)
  assert points.shape == (5, 5, 2)
  steps = np.linalg.norm(np.diff(points, axis=1), axis=-1)
  np.testing.assert_allclose(steps, 2.5, rtol=1e-5)
