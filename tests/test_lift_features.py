"""Points of a scale space: padding, maxima, and covariance with known parts."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.features import lift_features
from delf_jax.features.lift_features import Network
from delf_jax.models.lift import PATCH

SCALES = (0.5, 0.7071, 1.0)


def blobs(height=150, width=170, seed=0):
  """A smooth texture of 3 to 20 pixels."""
  generator = np.random.default_rng(seed)
  image = sum(
    sigma
    * cv2.GaussianBlur(
      generator.normal(size=(height, width)).astype(np.float32), (0, 0), sigma
    )
    for sigma in (3, 6)
  )
  image = 128 + 40 * image / image.std()
  return np.repeat(image[:, :, None], 3, 2).clip(0, 255).astype(np.uint8)


def known_network(border=7):
  """A blob detector, the gradient's direction and blurred pixels.

  All turn with the image by quarter turns exactly.
  """
  steps = np.arange(-border, border + 1)
  r2 = steps[:, None] ** 2 + steps[None, :] ** 2
  kernel = (1 - r2 / 9.0) * np.exp(-r2 / 9.0)
  kernel = jnp.asarray(kernel - kernel.mean(), jnp.float32)

  def detect(variables, images):
    del variables
    return jax.lax.conv_general_dilated(
      images[..., None],
      kernel[:, :, None, None],
      (1, 1),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[..., 0]

  def orient(variables, patches):
    del variables
    middle = patches[:, 8:-8, 8:-8]
    line = jnp.arange(48.0) - 23.5
    moment = jnp.stack(
      [
        jnp.einsum("bhw,w->b", middle, line),
        jnp.einsum("bhw,h->b", middle, line),
      ],
      -1,
    )
    return moment / jnp.linalg.norm(moment, axis=-1, keepdims=True)

  def describe(variables, patches):
    del variables
    inside = patches[:, 16:-16, 16:-16]
    return inside.reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(-1, 64)

  return Network(
    detect=detect,
    orient=orient,
    describe=describe,
    grey=lambda pixels: pixels.mean(-1).astype(jnp.float32) - 128.0,
    border=border,
  )


extractor = lift_features.make_extractor(
  known_network(), scales=SCALES, max_features=40
)


def extract(pixels, canvas=None):
  size = np.array(pixels.shape[:2])
  padded = np.zeros((*(canvas or size), 3), np.uint8)
  padded[: size[0], : size[1]] = pixels
  found = extractor(None, None, padded, size)
  return jax.tree.map(lambda x: np.asarray(x)[np.asarray(found.mask)], found)


def test_features_are_in_order_inside_and_of_unit_length():
  found = extract(blobs())
  assert 10 < len(found.scores) <= 40
  assert (np.diff(found.scores) <= 0).all()
  known = np.array([[1 / scale for scale in SCALES]])
  assert (np.abs(found.scales[:, None] - known).min(1) < 1e-5).all()
  lengths = np.linalg.norm(found.descriptors, axis=1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-4)
  least = found.locations.min(0)
  most = (np.array([149, 169]) - found.locations).min(0)
  assert (least > 5).all() and (most > 5).all()


def test_padding_changes_nothing():
  pixels = blobs()
  expected, found = extract(pixels), extract(pixels, (208, 192))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), found, expected
  )


def nearest(one, other):
  """Distances from each location of one to the nearest of the other."""
  apart = one[:, None] - other[None]
  apart = np.sqrt((apart**2).sum(-1))
  return apart.min(1), apart.argmin(1)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_quarter_turn_turns_the_features(turns):
  pixels = blobs(160, 160)
  one = extract(pixels)
  other = extract(np.ascontiguousarray(np.rot90(pixels, turns)))
  moved = one.locations
  for _ in range(turns):  # np.rot90 takes (y, x) to (159 - x, y)
    moved = np.stack([159 - moved[:, 1], moved[:, 0]], axis=1)
  distance, row = nearest(moved, other.locations)
  assert (distance < 0.5).mean() > 0.9
  good = distance < 0.5
  alike = (one.descriptors * other.descriptors[row]).sum(1)[good]
  assert np.median(alike) > 0.99


def test_half_the_size_has_the_features_of_coarser_levels():
  pixels = blobs(192, 192)
  half = cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_AREA)
  one, other = extract(pixels), extract(half)
  coarse = one.scales > 1.9
  distance, row = nearest(
    (one.locations[coarse] + 0.5) / 2 - 0.5, other.locations
  )
  assert coarse.sum() >= 4 and (distance < 1.5).mean() > 0.7
  alike = (one.descriptors[coarse] * other.descriptors[row]).sum(1)
  assert np.median(alike) > 0.9


def test_maxima_against_brute_force():
  generator = np.random.default_rng(3)
  sizes = np.array([[9, 12], [13, 17], [18, 24]])
  scores = [generator.normal(size=size).astype(np.float32) for size in sizes]
  masks = [np.ones(size, bool) for size in sizes]
  for mask in masks:
    mask[0], mask[:, -2:] = False, False
  found = lift_features.maxima(
    [jnp.asarray(s) for s in scores],
    [jnp.asarray(m) for m in masks],
    jnp.asarray(sizes),
    window=3,
  )
  for k, score in enumerate(scores):
    expected = np.zeros(score.shape, bool)
    for y, x in np.argwhere(masks[k]):
      around = masks[k][max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
      if around.size < 9 or not around.all():
        continue
      others = []
      for level in (k - 1, k, k + 1):
        if not 0 <= level < 3:
          continue
        ratio = sizes[level] / sizes[k]
        centre = np.rint((np.array([y, x]) + 0.5) * ratio - 0.5).astype(int)
        centre = np.clip(centre, 0, sizes[level] - 1)
        for dy in (-1, 0, 1):
          for dx in (-1, 0, 1):
            place = centre + (dy, dx)
            inside = (place >= 0).all() and (place < sizes[level]).all()
            own = level == k and not (dy or dx)
            if inside and not own and masks[level][tuple(place)]:
              others.append(scores[level][tuple(place)])
      expected[y, x] = score[y, x] > max(others)
    np.testing.assert_array_equal(found[k], expected)
    assert expected.any()


def test_refinement_finds_the_top_of_a_parabola():
  y, x = np.mgrid[:9, :9]
  scores = -((y - 4.3) ** 2) - 2 * (x - 3.8) ** 2
  found = lift_features.refine(
    jnp.asarray(scores, jnp.float32), jnp.array([4]), jnp.array([4])
  )
  np.testing.assert_allclose(found, [[4.3, 3.8]], atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (20, 90)])
def test_the_blank_and_the_small_have_no_features(size):
  assert len(extract(np.full((*size, 3), 90, np.uint8)).scores) == 0


def test_the_patch_of_a_feature_is_what_it_says():
  network = known_network()
  kept = {}

  def describe(variables, patches):
    kept["shape"] = patches.shape
    return patches.reshape(len(patches), -1)

  given = Network(
    network.detect, network.orient, describe, network.grey, network.border
  )
  run = lift_features.make_extractor(given, scales=(1.0,), max_features=3)
  run(None, None, blobs(), np.array([150, 170]))
  assert kept["shape"][1:] == (PATCH, PATCH)
