"""The re-creation of CONGAS against formulas, and what it must not notice."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.features import congas, reduction

CANVAS = (192, 256)


def scene(height=160, width=200, seed=0):
  """Returns [height, width, 3] uint8 with blobs of many sizes."""
  rng = np.random.default_rng(seed)
  image = np.full((height, width, 3), 120, np.uint8)
  for _ in range(60):
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    colour = rng.integers(256, size=3).tolist()
    cv2.circle(image, centre, int(rng.integers(2, 14)), colour, -1)
  return cv2.GaussianBlur(image, (0, 0), 1)


run = functools.partial(jax.jit, static_argnames=("max_features",))(
  congas.extract
)


def extract(pixels, *, canvas=CANVAS, filling=0, learned=None):
  """Returns the features and angles of a photograph on a canvas, compact."""
  padded = np.full((*canvas, 3), filling, np.uint8)
  height, width = pixels.shape[:2]
  padded[:height, :width] = pixels
  features, angles = run(
    learned, padded, np.array([height, width]), max_features=200
  )
  mask = np.asarray(features.mask)
  return jax.tree.map(lambda leaf: np.asarray(leaf)[mask], features), (
    np.asarray(angles)[mask]
  )


def nearest(one, other):
  """For each [n, 2] location the row of the nearest other, and how far."""
  gaps = np.linalg.norm(one[:, None] - other[None], axis=-1)
  return gaps.argmin(1), gaps.min(1)


@pytest.mark.parametrize("sigma", [0.8, 1.6])
def test_the_blur_is_opencvs(sigma):
  padded = np.random.default_rng(0).random((48, 64), np.float32)
  image = padded[:40, :50]
  expected = cv2.GaussianBlur(
    image, (15, 15), sigma, borderType=cv2.BORDER_REPLICATE
  )
  found = jax.jit(congas.blur)(
    jnp.asarray(padded),
    jnp.array(image.shape),
    jnp.asarray(congas.gaussian(sigma, 7)),
  )
  np.testing.assert_allclose(found[:40, :50], expected, atol=1e-6)


def test_the_laplacian_of_a_parabola_is_its_curvature():
  y, x = np.mgrid[:9, :8].astype(np.float32)
  found = congas.laplacian(jnp.asarray(1.5 * y**2 - 0.25 * x**2 + x))
  np.testing.assert_allclose(found[1:-1, 1:-1], 2.5, rtol=1e-5)


@pytest.mark.parametrize("sigma", [2.5, 5.0, 9.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_blob_lies_where_it_was_drawn(sigma, sign):
  y, x = np.mgrid[:160, :200]
  blob = np.exp(-((y - 70.3) ** 2 + (x - 100.6) ** 2) / (2 * sigma**2))
  grey = np.rint(128 + sign * 100 * blob).astype(np.uint8)
  features, _ = extract(np.repeat(grey[..., None], 3, 2))
  np.testing.assert_allclose(features.locations[0], [70.3, 100.6], atol=0.3)
  # sigma^2 times the Laplacian of a blob, blurred by sigma, is largest where
  # sigma is the blob's own, and half its contrast there.
  np.testing.assert_allclose(features.scales[0], sigma, rtol=0.05)
  np.testing.assert_allclose(features.scores[0], 0.5 * 100 / 255, rtol=0.05)


def test_an_edge_has_no_features_and_its_end_has():
  pixels = np.full((160, 200, 3), 60, np.uint8)
  pixels[:, 90:] = 200
  assert not len(extract(pixels)[0].mask)
  pixels[:80] = 60
  features, _ = extract(pixels)
  _, gaps = nearest(np.array([[80.0, 90.0]]), features.locations)
  assert gaps[0] < 8


def test_padding_never_changes_a_bit():
  pixels = scene(101, 143)
  features, angles = extract(pixels)
  assert len(features.mask) > 40
  for canvas, filling in [((112, 144), 0), (CANVAS, 255)]:
    others, other_angles = extract(pixels, canvas=canvas, filling=filling)
    jax.tree.map(np.testing.assert_array_equal, others, features)
    np.testing.assert_array_equal(other_angles, angles)


def test_a_quarter_turn_turns_everything():
  pixels = scene(161, 193)  # sides of 32 k + 1: grids turn onto each other
  features, angles = extract(pixels, canvas=(256, 256))
  turned, turned_angles = extract(np.rot90(pixels).copy(), canvas=(256, 256))
  y, x = features.locations.T
  rows, gaps = nearest(np.stack([192 - x, y], 1), turned.locations)
  assert np.mean(gaps < 1e-2) > 0.95
  np.testing.assert_allclose(
    turned.scales[rows][gaps < 1e-2], features.scales[gaps < 1e-2], rtol=1e-3
  )
  swing = np.angle(np.exp(1j * (turned_angles[rows] - angles + np.pi / 2)))
  assert np.mean(np.abs(swing) < 0.02) > 0.9
  alike = (turned.descriptors[rows] * features.descriptors).sum(1)
  assert np.mean(alike > 0.99) > 0.9


@pytest.mark.parametrize("angle, zoom", [(30, 1.0), (0, 1.5), (-70, 0.8)])
def test_a_turned_and_enlarged_photograph_has_the_same_features(angle, zoom):
  pixels = scene(240, 240)
  matrix = cv2.getRotationMatrix2D((119.5, 119.5), angle, zoom)
  warped = cv2.warpAffine(pixels, matrix, (240, 240), borderValue=(120,) * 3)
  one, angles = extract(pixels, canvas=(256, 256))
  other, other_angles = extract(warped, canvas=(256, 256))
  mapped = np.c_[one.locations[:, ::-1], np.ones(len(one.mask))] @ matrix.T
  mapped = mapped[:, ::-1]
  inside = (np.abs(mapped - 119.5) < 80).all(1)
  inside &= (np.abs(one.locations - 119.5) < 80).all(1)
  inside[60:] = False
  rows, gaps = nearest(mapped[inside], other.locations)
  near = gaps < 2
  assert near.mean() > 0.7
  ratio = other.scales[rows][near] / one.scales[inside][near]
  assert abs(np.median(ratio) / zoom - 1) < 0.08
  swing = other_angles[rows][near] - angles[inside][near] + np.radians(angle)
  swing = np.angle(np.exp(1j * swing))
  assert abs(np.median(swing)) < 0.05 and np.median(np.abs(swing)) < 0.2
  best = (one.descriptors[inside][near] @ other.descriptors.T).argmax(1)
  errors = np.linalg.norm(other.locations[best] - mapped[inside][near], axis=1)
  assert np.mean(errors < 3) > 0.6


def test_light_changes_no_descriptor():
  pixels = scene()
  half = (pixels // 2 * 2).astype(np.uint8)
  one, _ = extract(half)
  other, _ = extract((half // 2 + 60).astype(np.uint8))
  rows, gaps = nearest(other.locations, one.locations)
  assert np.mean(gaps < 0.3) > 0.9
  alike = (one.descriptors[rows] * other.descriptors).sum(1)[gaps < 0.3]
  assert np.mean(alike > 0.98) > 0.9


def test_wavelets_answer_to_waves_and_not_to_constants():
  bank = congas.wavelets()
  assert bank.shape == (congas.SIDE**2, congas.DIM)
  np.testing.assert_allclose(bank.sum(0), 0, atol=1e-5)
  # A quarter turn of the patch moves each ring by a quarter of its points, and
  # turns the wavelets at the middle; those at the rings are counted from their
  # own directions.
  patch = np.random.default_rng(0).normal(size=(congas.SIDE, congas.SIDE))

  def answer(image):
    responses = (image.ravel() @ bank).reshape(-1, congas.DIRECTIONS, 2)
    rings = responses[1:].reshape(
      len(congas.RINGS), congas.ANGLES, congas.DIRECTIONS, 2
    )
    return responses[0], rings

  middle, rings = answer(patch)
  turned_middle, turned = answer(np.rot90(patch, -1))  # from x towards y
  np.testing.assert_allclose(
    turned, np.roll(rings, congas.ANGLES // 4, axis=1), atol=1e-5
  )
  half = congas.DIRECTIONS // 2
  np.testing.assert_allclose(turned_middle[half:], middle[:half], atol=1e-5)


def test_a_reduction_shortens_the_descriptors():
  raw, _ = extract(scene())
  learned = reduction.fit(raw.descriptors, 40)
  short, _ = extract(scene(), learned=learned)
  np.testing.assert_array_equal(short.locations, raw.locations)
  np.testing.assert_allclose(
    short.descriptors, reduction.reduce(learned, raw.descriptors), atol=1e-5
  )


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (5, 5), (16, 9), (30, 40)])
def test_small_photographs_give_few_features_or_none(size):
  pixels = np.random.default_rng(0).integers(256, size=(*size, 3))
  features, _ = extract(pixels.astype(np.uint8))
  assert np.isfinite(features.descriptors).all()
  assert (features.locations < size).all()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_photograph_gives_none(value):
  features, _ = extract(np.full((150, 200, 3), value, np.uint8), filling=77)
  assert not len(features.mask)
