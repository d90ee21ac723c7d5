"""Extrema in scale space against loops, and parabolas with a known top."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.features import scale_space


def loop_over_maxima(responses):
  """Returns the (layer, y, x) above all neighbours, by looking at each."""
  padded = np.pad(responses, 1, constant_values=-np.inf)
  found = []
  for layer, y, x in np.ndindex(*responses.shape):
    if layer in (0, len(responses) - 1):
      continue
    around = padded[layer : layer + 3, y : y + 3, x : x + 3]
    if (around >= responses[layer, y, x]).sum() == 1:
      found.append((layer, y, x))
  return found


def test_grey_is_opencvs():
  pixels = np.random.default_rng(0).integers(256, size=(50, 60, 3), dtype="u1")
  np.testing.assert_array_equal(
    scale_space.to_grey(jnp.asarray(pixels)),
    cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY),
  )


@pytest.mark.parametrize(
  "shape", [(4, 13, 17), (5, 1, 9), (3, 2, 2), (2, 5, 5)]
)
def test_maxima_are_those_of_a_loop(shape):
  responses = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  found = np.argwhere(scale_space.is_maximum(jnp.asarray(responses)))
  assert [tuple(row) for row in found.tolist()] == loop_over_maxima(responses)


def test_of_equal_neighbours_one_is_the_maximum():
  for shift in [(0, 1), (1, 0), (1, 1), (1, -1)]:
    responses = np.zeros((3, 7, 7), np.float32)
    responses[1, 3, 3] = responses[1, 3 + shift[0], 3 + shift[1]] = 1
    assert scale_space.is_maximum(jnp.asarray(responses))[1].sum() == 1
  # A plateau that reaches the border has one too; nothing comes of it, as its
  # response is not above the threshold of any detector.
  assert scale_space.is_maximum(jnp.zeros((3, 7, 7))).sum() <= 1


def quadratic(top, curvature, height):
  """Samples a parabola on [3, 3, 3] around the middle."""
  steps = np.stack(np.meshgrid(*[[-1.0, 0, 1]] * 3, indexing="ij"), -1) - top
  return height + np.einsum("...i,ij,...j->...", steps, curvature, steps) / 2


def test_the_top_of_a_parabola_is_found():
  rng = np.random.default_rng(2)
  for _ in range(20):
    root = rng.normal(size=(3, 3))
    curvature = -(root @ root.T + 0.3 * np.eye(3))
    top = rng.uniform(-0.8, 0.8, 3)
    height = rng.uniform(1, 2)
    offset, response = scale_space.refine(
      jnp.asarray(quadratic(top, curvature, height), jnp.float32)
    )
    np.testing.assert_allclose(offset, top, atol=2e-4)
    np.testing.assert_allclose(response, height, rtol=1e-4)


def test_what_has_no_top_is_not_refined():
  saddle = quadratic(np.zeros(3), np.diag([-1.0, -1.0, 1.0]), 1)
  for neighbours in (saddle, np.zeros((3, 3, 3))):
    offset, _ = scale_space.refine(jnp.asarray(neighbours, jnp.float32))
    assert not (np.abs(offset) <= 1).all()


def test_extrema_of_all_octaves_come_best_first():
  rng = np.random.default_rng(3)
  octaves, tops = [], []
  for shape in [(4, 30, 40), (4, 15, 20)]:
    layer, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    responses = np.zeros(shape)
    for place in [(1.2, 7.3, 9.8), (1.9, 8.6, 14.4)]:
      height = rng.uniform(1, 2)
      gap = np.stack([layer, y, x], -1) - place
      parabola = height - (gap**2 @ np.array([0.3, 0.2, 0.25]))
      responses = np.maximum(responses, parabola)
      tops.append((height, len(octaves), *place))
    octaves.append((jnp.asarray(responses, jnp.float32), jnp.ones(shape, bool)))
  tops = np.array(sorted(tops, reverse=True))
  found = scale_space.find_extrema(octaves, threshold=0.5, max_features=8)
  best = scale_space.best_of(found, found.mask, 8)
  assert best.mask.sum() == 4 and best.mask[:4].all()
  np.testing.assert_allclose(best.response[:4], tops[:, 0], rtol=1e-3)
  np.testing.assert_array_equal(best.octave[:4], tops[:, 1])
  np.testing.assert_allclose(best.layer[:4], tops[:, 2], atol=1e-3)
  np.testing.assert_allclose(best.location[:4], tops[:, 3:], atol=1e-3)
  # What is not allowed is left out, but it still is a neighbour.
  nowhere = [(r, jnp.zeros(r.shape, bool)) for r, _ in octaves]
  none = scale_space.find_extrema(nowhere, threshold=0.5, max_features=8)
  assert not none.mask.any()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(none))


def test_fewer_elements_than_features():
  octave = jnp.zeros((4, 2, 2)), jnp.ones((4, 2, 2), bool)
  found = scale_space.find_extrema([octave], threshold=0.5, max_features=50)
  best = scale_space.best_of(found, found.mask, 50)
  assert best.mask.shape == (50,) and not best.mask.any()
