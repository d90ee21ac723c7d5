"""The filters that LIFT's detector begins with."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models import lift
from delf_jax.training import detector_start

HINGES = (4, 4)
HALF = 12


@jax.jit
def score(image):
  filters = detector_start.blob_filters(2 * HALF + 1, HINGES)
  sums = lift.convolve(jnp.asarray(image, jnp.float32)[None], filters)
  return lift.hinging_hyperplanes(sums, HINGES)[0, ..., 0]


def test_scores_are_those_of_second_derivatives():
  image = np.random.default_rng(0).normal(size=(60, 70))
  image = cv2.GaussianBlur(image, (0, 0), 2)
  sigma = detector_start.SIGMA
  smooth = cv2.GaussianBlur(
    image, (25, 25), sigma, borderType=cv2.BORDER_REFLECT
  )
  yy, xx = np.zeros((2, 60, 70))
  yy[1:-1] = smooth[2:] - 2 * smooth[1:-1] + smooth[:-2]
  xx[:, 1:-1] = smooth[:, 2:] - 2 * smooth[:, 1:-1] + smooth[:, :-2]
  xy = np.gradient(np.gradient(smooth, axis=0), axis=1)
  expected = np.abs(yy + xx) - np.maximum(np.abs(xx - yy), np.abs(2 * xy))
  expected *= detector_start.GAIN * sigma**2
  inside = slice(HALF, -HALF)
  expected = expected[inside, inside]
  found = score(image)
  error = np.abs(found - expected).max() / np.abs(expected).max()
  assert error < 0.08


@pytest.mark.parametrize("sign", [1, -1])
def test_blobs_and_corners_score_and_edges_do_not(sign):
  y, x = np.mgrid[:81, :81] - 40.0
  blob = sign * np.exp(-(y**2 + x**2) / (2 * detector_start.SIGMA**2))
  found = score(blob)
  middle = 40 - HALF
  assert np.unravel_index(found.argmax(), found.shape) == (middle, middle)
  assert found.max() > 0.5
  for angle in (0.0, 0.4, np.pi / 4, 1.3):
    across = np.cos(angle) * x + np.sin(angle) * y
    assert score(sign * np.tanh(across / 3)).max() < 0.2 * found.max()
  corner = score(sign * ((x > 0) & (y > 0)))
  top = np.array(np.unravel_index(corner.argmax(), corner.shape))
  assert (np.abs(top - middle) <= 4).all() and corner.max() > 0.2


def test_a_constant_and_a_slope_are_nothing():
  y, x = np.mgrid[:40, :40]
  np.testing.assert_allclose(score(5.0 + 0 * x), 0, atol=1e-4)
  np.testing.assert_allclose(score(0.1 * y + 0.2 * x), 0, atol=1e-4)


@pytest.mark.parametrize("hinges", [(2, 2), (1, 4), (3, 1)])
def test_fewer_hinges_hold_what_fits(hinges):
  filters = detector_start.blob_filters(9, hinges)
  assert filters.shape == (9, 9, hinges[0] * hinges[1])
  np.testing.assert_allclose(filters.sum((0, 1)), 0, atol=1e-5)
  whole = detector_start.blob_filters(9, HINGES).reshape(9, 9, *HINGES)
  parts = filters.reshape(9, 9, *hinges)
  np.testing.assert_array_equal(parts, whole[:, :, : hinges[0], : hinges[1]])
