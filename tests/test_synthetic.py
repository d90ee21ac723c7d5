import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from delf_jax.data import synthetic, synthetic_buildings

# Keys of views that the tests below share, so that few buildings are drawn.
SEED = 11
VIEWS = [(landmark, view) for landmark in range(3) for view in range(4)]


def digest(*arrays) -> str:
  data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
  return hashlib.sha256(data).hexdigest()


def warp(image, homography, shape):
  """Warps with OpenCV, which wants (x, y, 1)."""
  swap = np.eye(3)[[1, 0, 2]]
  return cv2.warpPerspective(image, swap @ homography @ swap, shape[::-1])


def correlation(a, b):
  a, b = (values - values.mean(axis=0) for values in (a, b))
  return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def forget():
  synthetic._drawn.cache_clear()
  synthetic._made_pool.cache_clear()


@pytest.fixture(scope="module")
def views():
  return {key: synthetic.render_view(SEED, *key) for key in VIEWS}


@pytest.fixture(scope="module")
def bare_views():
  return {
    key: synthetic.render_view(SEED, *key, clutter=False, light=False)
    for key in VIEWS
  }


def test_same_bits_in_any_order_and_in_threads(views):
  forget()
  for key in reversed(VIEWS):
    again = synthetic.render_view(SEED, *key)
    assert digest(*again) == digest(*views[key])
  forget()
  with ThreadPoolExecutor(4) as pool:
    threaded = list(pool.map(lambda k: synthetic.render_view(SEED, *k), VIEWS))
  for key, again in zip(VIEWS, threaded, strict=True):
    assert digest(*again) == digest(*views[key])


def test_same_bits_in_another_process(views):
  program = (
    "import hashlib\n"
    "from delf_jax.data import synthetic\n"
    f"view = synthetic.render_view({SEED}, 2, 3)\n"
    "data = b''.join(part.tobytes() for part in view)\n"
    f"data += synthetic.render_clutter({SEED}, 5).tobytes()\n"
    "print(hashlib.sha256(data).hexdigest())"
  )
  printed = subprocess.run(
    [sys.executable, "-c", program], check=True, capture_output=True, text=True
  ).stdout.strip()
  clutter = synthetic.render_clutter(SEED, 5)
  assert printed == digest(*views[2, 3], clutter)


def test_global_chance_is_neither_read_nor_moved(views):
  np.random.seed(3)
  expected = np.random.random()
  np.random.seed(3)
  again = synthetic.render_view(SEED, 1, 1)
  assert np.random.random() == expected
  assert digest(*again) == digest(*views[1, 1])


def test_other_seeds_landmarks_and_views_are_others(views):
  pictures = {digest(view.pixels) for view in views.values()}
  pictures.add(digest(synthetic.render_view(SEED + 1, 0, 0).pixels))
  pictures |= {digest(synthetic.render_clutter(SEED, i)) for i in range(4)}
  assert len(pictures) == len(VIEWS) + 5


def test_shapes_types_and_both_orientations(views):
  for view in views.values():
    assert view.pixels.dtype == np.uint8 and view.mask.dtype == bool
    assert view.pixels.shape == (*view.mask.shape, 3)
    assert view.homography.dtype == np.float64
    assert view.homography[2, 2] == 1
    assert 0.05 < view.mask.mean() < 0.9
  shapes = {view.mask.shape for view in views.values()}
  assert shapes == {(240, 320), (320, 240)}


def test_the_size_is_a_choice():
  view = synthetic.render_view(SEED, 0, 0, size=(64, 96))
  assert sorted(view.mask.shape) == [64, 96]
  assert sorted(synthetic.render_clutter(SEED, 0, size=(96, 64)).shape) == [
    3,
    64,
    96,
  ]


def test_homography_puts_the_landmark_where_it_is_seen(bare_views):
  for (landmark, _), view in bare_views.items():
    picture = synthetic.landmark_picture(SEED, landmark)
    warped = warp(picture, view.homography, view.mask.shape)
    assert (view.mask == (warped[:, :, 3] >= 128)).mean() > 0.98
    inside = cv2.erode(view.mask.astype(np.uint8), np.ones((5, 5))) > 0
    inside &= warped[:, :, 3] == 255
    blurred = [
      cv2.GaussianBlur(image.astype(np.float32), (0, 0), 2)
      for image in (warped[:, :, :3], view.pixels)
    ]
    true = correlation(*(image[inside] for image in blurred))
    assert true > 0.95
    shifted = np.roll(blurred[0], (4, 4), (0, 1))
    assert correlation(shifted[inside], blurred[1][inside]) < true - 0.05


def test_homography_between_views_shows_the_same_texture(bare_views):
  for landmark in range(3):
    source, target = (bare_views[landmark, view] for view in (0, 1))
    matrix = synthetic.homography_between(source, target)
    shape = target.mask.shape
    both = warp(source.mask.astype(np.uint8), matrix, shape) > 0
    both &= target.mask
    both = cv2.erode(both.astype(np.uint8), np.ones((7, 7))) > 0
    assert both.sum() > 1000
    warped = cv2.GaussianBlur(warp(source.pixels, matrix, shape), (0, 0), 2)
    there = cv2.GaussianBlur(target.pixels, (0, 0), 2)
    assert (
      correlation(warped[both].astype(float), there[both].astype(float)) > 0.85
    )


def test_homographies_compose(views):
  a, b, c = (views[0, view] for view in range(3))
  between = synthetic.homography_between
  np.testing.assert_allclose(between(a, a), np.eye(3), atol=1e-9)
  composed = between(b, c) @ between(a, b)
  np.testing.assert_allclose(
    composed / composed[2, 2], between(a, c), rtol=1e-6, atol=1e-6
  )


def test_mask_is_the_landmark_and_nothing_before_it(bare_views):
  hidden = 0
  for key, bare in bare_views.items():
    view = synthetic.render_view(SEED, *key, light=False)
    np.testing.assert_array_equal(view.homography, bare.homography)
    assert not (view.mask & ~bare.mask).any()
    change = np.abs(view.pixels.astype(int) - bare.pixels).max(axis=2)
    # The rim of the mask is half something else.
    inner = cv2.erode(view.mask.astype(np.uint8), np.ones((3, 3))) > 0
    assert change[inner].max() < 128 and np.percentile(change[inner], 99) < 24
    occluded = bare.mask & ~view.mask
    hidden += occluded.sum()
    if occluded.sum() > 500:
      assert (change[occluded] > 8).mean() > 0.8
    assert view.mask.sum() > 0.4 * bare.mask.sum()
  assert hidden > 5000


def test_light_changes_pixels_alone(views):
  for key in VIEWS[:4]:
    dark = synthetic.render_view(SEED, *key, light=False)
    np.testing.assert_array_equal(dark.mask, views[key].mask)
    np.testing.assert_array_equal(dark.homography, views[key].homography)
    assert (dark.pixels != views[key].pixels).any()


def test_buildings_fill_their_picture_with_many_colours():
  for index in range(6):
    picture = synthetic_buildings.draw_building(np.random.default_rng(index))
    assert picture.dtype == np.uint8 and max(picture.shape[:2]) <= 512
    alpha = picture[:, :, 3]
    assert alpha[-1].max() > 100 and alpha[:, 0].any() and alpha[0].any()
    colours, counts = np.unique(
      picture[alpha == 255] // 32, axis=0, return_counts=True
    )
    assert len(colours) > 12 and counts.max() < 0.8 * counts.sum()


def test_a_shared_picture_cannot_be_changed():
  with pytest.raises(ValueError, match="read-only"):
    synthetic.landmark_picture(SEED, 0)[0, 0] = 0


def test_encoded_pictures_come_back(views):
  view = views[0, 0]
  data = np.frombuffer(synthetic.encode_jpeg(view.pixels), np.uint8)
  decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB).astype(int)
  assert np.abs(decoded - view.pixels).mean() < 8
  data = np.frombuffer(synthetic.encode_mask(view.mask), np.uint8)
  mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
  np.testing.assert_array_equal(mask, view.mask * np.uint8(255))


def rootsift(pixels):
  grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
  detector = cv2.SIFT_create(nfeatures=500)
  keypoints, descriptors = detector.detectAndCompute(grey, None)
  descriptors /= descriptors.sum(axis=1, keepdims=True)
  return np.float32([point.pt for point in keypoints]), np.sqrt(descriptors)


def inliers(a, b):
  matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(a[1], b[1])
  source = a[0][[match.queryIdx for match in matches]]
  target = b[0][[match.trainIdx for match in matches]]
  _, kept = cv2.estimateAffine2D(source, target, ransacReprojThreshold=10)
  return int(kept.sum())


def test_views_of_one_landmark_match_and_others_do_not(views):
  features = {key: rootsift(view.pixels) for key, view in views.items()}
  same, other = [], []
  for index, a in enumerate(VIEWS):
    for b in VIEWS[:index]:
      group = same if a[0] == b[0] else other
      group.append(inliers(features[a], features[b]))
  assert np.mean(same) > 2.5 * np.mean(other)
  assert np.median(same) > np.percentile(other, 95)
