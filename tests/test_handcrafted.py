"""SIFT against OpenCV called by hand, and where features must lie."""

import cv2
import numpy as np
import pytest

from delf_jax.features.handcrafted import BASE_DIAMETER, DIM, KINDS, extract


def scene(height=160, width=200, seed=0):
  """Returns [height, width, 3] uint8 with blobs of many sizes."""
  rng = np.random.default_rng(seed)
  image = np.full((height, width, 3), 120, np.uint8)
  for _ in range(60):
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    colour = rng.integers(256, size=3).tolist()
    cv2.circle(image, centre, int(rng.integers(2, 14)), colour, -1)
  return cv2.GaussianBlur(image, (0, 0), 1)


def table(features):
  return np.column_stack(
    [
      features.locations,
      features.scales,
      features.scores,
      features.descriptors,
    ]
  )


@pytest.mark.parametrize("kind", KINDS)
def test_the_features_are_opencvs(kind):
  pixels = scene()
  grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
  keypoints, raw = cv2.SIFT_create().detectAndCompute(grey, None)
  if kind == "rootsift":
    expected = np.sqrt(raw / np.abs(raw).sum(1, keepdims=True))
  else:
    expected = raw / np.sqrt((raw**2).sum(1, keepdims=True))
  features = extract(pixels, kind=kind, max_features=10_000)
  assert len(features.mask) == len(keypoints) > 50
  ours = sorted(table(features).tolist())
  theirs = sorted(
    [*k.pt[::-1], k.size / 3.2, k.response, *d]
    for k, d in zip(keypoints, expected.tolist(), strict=True)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  for leaf in (features.locations, features.scales, features.scores):
    assert leaf.dtype == np.float32
  assert features.descriptors.dtype == np.float32
  np.testing.assert_allclose(
    np.linalg.norm(features.descriptors, axis=1), 1, rtol=1e-5
  )


def test_the_best_are_kept_in_order_whatever_the_ties():
  # The same patch four times: every response occurs four times or more.
  pixels = np.tile(scene(96, 96), (2, 2, 1))
  everything = extract(pixels, max_features=10_000)
  assert (np.diff(everything.scores) <= 0).all()
  assert len(np.unique(everything.scores)) < len(everything.scores)
  for count in (1, 7, 50, 51, 52, 53):
    best = extract(pixels, max_features=count)
    assert len(best.mask) == count and best.mask.all()
    np.testing.assert_array_equal(table(best), table(everything)[:count])


def test_opencvs_threads_change_nothing():
  pixels = scene(480, 640)
  threads = cv2.getNumThreads()
  results = []
  try:
    for number in (1, 2, 4):
      cv2.setNumThreads(number)
      results.append(table(extract(pixels, max_features=300)))
  finally:
    cv2.setNumThreads(threads)
  for result in results[1:]:
    np.testing.assert_array_equal(result, results[0])


def test_a_blob_lies_where_it_was_drawn():
  y, x = np.mgrid[:120, :160]
  blob = np.exp(-((y - 40.0) ** 2 + (x - 100.0) ** 2) / (2 * 6.0**2))
  pixels = np.repeat((255 * blob).astype(np.uint8)[..., None], 3, 2)
  features = extract(pixels)
  np.testing.assert_allclose(features.locations[0], [40, 100], atol=0.6)
  # A difference of Gaussians answers best at the blob's own sigma.
  sigma = features.scales[0] * BASE_DIAMETER / 2
  assert 4.5 < sigma < 7.5


def test_a_reduced_photograph_gives_the_originals_coordinates():
  original = scene(300, 400)
  reduced = cv2.resize(original, (200, 150), interpolation=cv2.INTER_AREA)
  plain = extract(reduced)
  mapped = extract(reduced, size=(300, 400))
  np.testing.assert_allclose(
    mapped.locations, plain.locations * 2 + 0.5, rtol=1e-6
  )
  np.testing.assert_allclose(mapped.scales, plain.scales * 2, rtol=1e-6)
  np.testing.assert_array_equal(mapped.descriptors, plain.descriptors)
  # So features of both copies fall onto each other.
  full = extract(original, max_features=5000)
  gaps = np.linalg.norm(
    mapped.locations[:50, None] - full.locations[None], axis=-1
  ).min(axis=1)
  assert np.median(gaps) < 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 2), (5, 5), (16, 9)])
def test_small_photographs_give_few_features_or_none(size):
  rng = np.random.default_rng(0)
  pixels = rng.integers(256, size=(*size, 3)).astype(np.uint8)
  features = extract(pixels)
  assert features.descriptors.shape == (len(features.mask), DIM)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_photograph_gives_none(value):
  features = extract(np.full((200, 300, 3), value, np.uint8))
  assert features.locations.shape == (0, 2)
  assert features.descriptors.shape == (0, DIM)


def test_views_of_other_arrays_do():
  pixels = scene()
  bgr = np.ascontiguousarray(pixels[:, :, ::-1])
  frozen = pixels.copy()
  frozen.setflags(write=False)
  for view in (bgr[:, :, ::-1], frozen):
    np.testing.assert_array_equal(table(extract(view)), table(extract(pixels)))


def test_arguments_that_make_no_sense():
  with pytest.raises(ValueError, match="kind"):
    extract(scene(), kind="surf")
  with pytest.raises(ValueError, match="max_features"):
    extract(scene(), max_features=0)
  with pytest.raises(ValueError, match="uint8"):
    extract(scene()[:, :, 0])
  with pytest.raises(ValueError, match="uint8"):
    extract(scene() / 255)
