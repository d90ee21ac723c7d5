"""Augmentations, each against an independent oracle or a property."""

import colorsys
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from delf_jax.data import augmentation
from delf_jax.data.augmentation import Augmentation
from delf_jax.errors import InputError

STRONG = Augmentation(
  crop_area=(0.2, 1.0),
  homography=0.1,
  flip=0.5,
  brightness=0.4,
  contrast=0.4,
  saturation=0.4,
  hue=0.1,
  greyscale=0.2,
  blur=0.5,
  jpeg=0.5,
  erasing=0.5,
)


def rng(seed=0):
  return np.random.default_rng(seed)


def photograph(height=60, width=80, seed=0):
  """Smooth enough to be resampled, without a symmetry, and read-only."""
  small = rng(seed).integers(40, 216, (6, 8, 3), np.uint8)
  image = Image.fromarray(small).resize((width, height), Image.BICUBIC)
  return np.asarray(image)


def clipped(values):
  return np.clip(np.rint(values), 0, 255)


def test_nothing_happens_by_default():
  pixels = photograph()
  np.testing.assert_array_equal(Augmentation().change(pixels, rng()), pixels)


def test_the_same_generator_gives_the_same_bits_and_others_do_not():
  pixels = photograph()
  results = [STRONG.change(pixels, rng(i)) for i in (0, 0, 1)]
  np.testing.assert_array_equal(results[0], results[1])
  assert not np.array_equal(results[0], results[2])
  assert {r.shape for r in results} == {pixels.shape}
  assert {r.dtype for r in results} == {np.dtype(np.uint8)}


def test_from_config():
  built = Augmentation.from_config({"flip": 0.5, "blur_sigma": [0.5, 1]})
  assert built == Augmentation(flip=0.5, blur_sigma=(0.5, 1.0))
  assert hash(built) == hash(Augmentation(flip=0.5, blur_sigma=(0.5, 1.0)))
  assert Augmentation.from_config({}) == Augmentation()


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"flips": 0.5}, "unknown augmentation 'flips'; expected crop_area"),
    ({"flip": 1.5}, "flip is 1.5; give a probability"),
    ({"flip": "often"}, "flip is 'often'; give a number"),
    ({"flip": float("nan")}, "flip is nan"),
    ({"brightness": -0.1}, "brightness is -0.1; give a strength from 0 to 1"),
    ({"hue": 0.6}, "hue is 0.6; give a strength from 0 to 0.5"),
    ({"homography": 0.25}, "homography is 0.25"),
    ({"crop_area": (0.5, 0.2)}, "crop_area is .*; give two growing numbers"),
    ({"crop_area": (0.0, 1.0)}, "crop_area"),
    ({"crop_area": (0.5, 1.1)}, "crop_area"),
    ({"crop_area": 0.5}, "crop_area is 0.5; give two numbers"),
    ({"crop_aspect": (1, 2, 3)}, "crop_aspect"),
    ({"crop_aspect": (1, float("inf"))}, "crop_aspect"),
    ({"blur_sigma": (0, 1)}, "blur_sigma"),
    ({"jpeg_quality": (50, 101)}, "jpeg_quality"),
    ({"erasing_area": ("a", "b")}, "erasing_area"),
  ],
)
def test_a_silly_config_is_refused(config, message):
  with pytest.raises(InputError, match=message):
    Augmentation.from_config(config)


def test_every_option_does_something():
  pixels = photograph()
  changes = {
    **dict.fromkeys(["flip", "greyscale", "blur", "jpeg", "erasing"], 1.0),
    **dict.fromkeys(["brightness", "contrast", "saturation", "hue"], 0.4),
    "noise": 20.0,
  }
  geometry = {"crop_area", "crop_aspect", "homography"}
  ranges = {"blur_sigma", "jpeg_quality", "erasing_area"}
  names = {field.name for field in dataclasses.fields(Augmentation)}
  assert set(changes) | geometry | ranges == names
  for name, value in changes.items():
    changed = Augmentation(**{name: value}).change(pixels, rng())
    assert np.abs(changed.astype(int) - pixels).mean() > 0.3, name


def test_flip_mirrors_as_often_as_it_says():
  pixels = photograph()
  mirrored = Augmentation(flip=1.0).change(pixels, rng())
  np.testing.assert_array_equal(mirrored, pixels[:, ::-1])
  generator = rng()
  half = Augmentation(flip=0.3)
  count = sum(
    np.array_equal(half.change(pixels, generator), mirrored)
    for _ in range(1000)
  )
  assert 250 < count < 350


def jittered(pixels, **strengths):
  return augmentation.jitter_colour(pixels, rng(3), **strengths).astype(float)


def changed(pixels, mean=0.0, **factors):
  """Colours changed exactly, without rounding."""
  matrix = augmentation.colour_matrix(mean, **factors)
  return pixels @ matrix[:, :3].T + matrix[:, 3]


def test_brightness_multiplies_by_a_factor_of_the_range():
  pixels = photograph()
  factor = rng(3).uniform(0.6, 1.4)
  np.testing.assert_allclose(
    jittered(pixels, brightness=0.4), clipped(factor * pixels), atol=1
  )


def test_contrast_keeps_the_mean():
  # Little contrast, so that nothing is clipped.
  pixels = (100 + photograph() // 8).astype(np.uint8)
  factor = rng(3).uniform(0.5, 1.5)
  result = jittered(pixels, contrast=0.5)
  luma = pixels @ augmentation.LUMA
  expected = luma.mean() + factor * (pixels - luma.mean())
  np.testing.assert_allclose(result, expected, atol=1)
  assert result @ augmentation.LUMA == pytest.approx(luma, abs=30)
  assert (result @ augmentation.LUMA).mean() == pytest.approx(
    luma.mean(), abs=0.6
  )


def test_no_saturation_is_pillows_grey():
  pixels = photograph()
  grey = np.asarray(Image.fromarray(pixels).convert("L"))
  for result in (
    jittered(pixels, greyscale=1.0),
    jittered(pixels, greyscale=1.0, saturation=0.5, hue=0.5),
    changed(pixels, saturation=0.0),
  ):
    np.testing.assert_allclose(result, np.stack([grey] * 3, 2), atol=1.01)


def test_saturation_and_hue_against_colorsys():
  pixels = photograph(12, 16).astype(float)
  result = changed(pixels, saturation=0.7, hue=1 / 6)
  # colorsys has rounded constants of its own: 3 grey levels of difference.
  for before, after in zip(
    pixels.reshape(-1, 3), result.reshape(-1, 3), strict=True
  ):
    y, i, q = colorsys.rgb_to_yiq(*before)
    new_y, new_i, new_q = colorsys.rgb_to_yiq(*after)
    expected = 0.7 * complex(i, q) * np.exp(2j * np.pi / 6)
    assert new_y == pytest.approx(y, abs=3)
    assert complex(new_i, new_q) == pytest.approx(expected, abs=3)


def test_hue_spares_grey_and_comes_back_after_a_circle():
  greys = np.repeat(np.arange(256.0)[:, None], 3, axis=1)
  np.testing.assert_allclose(changed(greys, hue=0.37), greys, atol=1e-9)
  pixels = photograph().astype(float)
  thirds = pixels
  for _ in range(3):
    thirds = changed(thirds, hue=1 / 3)
  np.testing.assert_allclose(thirds, pixels, atol=1e-6)


def test_the_composed_matrix_is_one_change_after_the_other():
  pixels = photograph().astype(float)
  options = {"saturation": 0.5, "hue": 0.1, "brightness": 1.2, "contrast": 0.8}
  mean = (pixels @ augmentation.LUMA).mean()
  step = pixels
  for name, value in options.items():
    step = changed(step, (step @ augmentation.LUMA).mean(), **{name: value})
  np.testing.assert_allclose(changed(pixels, mean, **options), step, atol=1e-9)


def test_blur_spreads_a_point_as_a_gaussian():
  pixels = np.zeros((31, 31, 3), np.uint8)
  pixels[15, 15] = 255
  across = np.exp(-((np.arange(31) - 15) ** 2) / (2 * 1.5**2))
  expected = 255 * np.outer(across, across) / across.sum() ** 2
  result = augmentation.blur(pixels, sigma=1.5)
  np.testing.assert_allclose(result[:, :, 1], expected, atol=1)
  flat = np.full((9, 9, 3), 77, np.uint8)
  assert (augmentation.blur(flat, sigma=2.0) == 77).all()


def test_recompression_is_pillows():
  pixels = photograph()
  errors = []
  for quality in (95, 60, 20):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    expected = np.asarray(Image.open(stream)).astype(float)
    result = augmentation.recompress(pixels, quality=quality)
    assert np.abs(result - expected).mean() < 1
    errors.append(np.abs(result.astype(float) - pixels).mean())
  assert errors == sorted(errors)


def test_erasing_covers_a_rectangle_of_the_asked_size():
  pixels = np.full((50, 70, 3), 128, np.uint8)
  pixels.setflags(write=False)
  shares = []
  for seed in range(50):
    result = augmentation.erase(pixels, rng(seed), area=(0.1, 0.3))
    touched = (result != 128).any(2)
    rows, columns = np.nonzero(touched.any(1))[0], np.nonzero(touched.any(0))[0]
    covered = touched[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert covered.mean() > 0.99  # a pixel of noise may be grey by chance
    shares.append(covered.size / touched.size)
  assert 0.05 < min(shares) and max(shares) < 0.33
  assert np.mean(shares) == pytest.approx(0.2, abs=0.04)


def test_random_parts_have_the_asked_area_and_aspect():
  parts = np.array(
    [
      augmentation.random_part(
        300, 400, rng(seed), area=(0.1, 0.4), aspect=(0.75, 4 / 3)
      )
      for seed in range(2000)
    ]
  )
  top, left, bottom, right = parts.T
  area = (bottom - top) * (right - left) / (300 * 400)
  aspect = (right - left) / (bottom - top)
  assert 0.1 <= area.min() < 0.11 and 0.39 < area.max() <= 0.4
  assert area.mean() == pytest.approx(0.25, abs=0.01)
  assert 0.75 <= aspect.min() < 0.76 and 1.32 < aspect.max() <= 4 / 3 + 1e-9
  assert np.log(aspect).mean() == pytest.approx(0, abs=0.02)
  assert top.min() >= 0 and left.min() >= 0
  assert 280 < bottom.max() <= 300 and 380 < right.max() <= 400


def test_a_part_that_does_not_fit_is_cut():
  part = augmentation.random_part(
    10, 1000, rng(), area=(1.0, 1.0), aspect=(1.0, 1.0)
  )
  assert part[0] == 0 and part[2] == 10 and part[3] - part[1] == 100


def test_corners_move_within_their_bounds_and_stay_convex():
  strength = augmentation.MAX_HOMOGRAPHY - 1e-6
  for seed in range(300):
    corners = augmentation.displaced_corners(
      (10, 0, 60, 100), 200, 100, rng(seed), strength=strength
    )
    still = np.array([[10, 0], [10, 100], [60, 100], [60, 0]])
    assert (np.abs(corners - still) <= (12.5, 25)).all()
    assert corners.min() >= 0 and corners[:, 1].max() <= 100
    sides = np.roll(corners, -1, 0) - corners
    following = np.roll(sides, -1, 0)
    turns = sides[:, 1] * following[:, 0] - sides[:, 0] * following[:, 1]
    assert (turns > 0).all()
  none = augmentation.displaced_corners((1, 2, 3, 4), 9, 9, rng(), strength=0.0)
  np.testing.assert_array_equal(none, [[1, 2], [1, 4], [3, 4], [3, 2]])


def test_unwarping_the_whole_changes_nothing():
  pixels = photograph(40, 40)
  corners = np.array([[0.0, 0], [0, 40], [40, 40], [40, 0]])
  np.testing.assert_array_equal(
    augmentation.unwarp(pixels, corners, 40), pixels
  )


def test_unwarping_finds_the_right_place_for_every_pixel():
  # Brightness tells the place, so that the result can be computed exactly.
  y, x = np.mgrid[:100, :120] + 0.5
  pixels = np.stack([2 * y, 2 * x, y + x], 2).astype(np.uint8)
  corners = np.array([[20.0, 10], [5, 110], [90, 95], [80, 30]])
  side = 64
  # The homography from the unit square, by its eight equations.
  unit = np.array([[0.0, 0], [0, 1], [1, 1], [1, 0]])
  rows, values = [], []
  for (v, u), place in zip(unit, corners, strict=True):
    for axis in range(2):
      row = np.zeros(8)
      row[3 * axis : 3 * axis + 3] = v, u, 1
      row[6:] = -v * place[axis], -u * place[axis]
      rows.append(row)
      values.append(place[axis])
  homography = np.append(np.linalg.solve(rows, values), 1).reshape(3, 3)
  v, u = (np.mgrid[:side, :side] + 0.5) / side
  mapped = np.stack([v, u, np.ones_like(v)], 2) @ homography.T
  expected = mapped[:, :, :2] / mapped[:, :, 2:]
  result = augmentation.unwarp(pixels, corners, side)
  # A pixel holds the value of its centre, cut to whole numbers.
  np.testing.assert_allclose(result[:, :, 0], 2 * expected[:, :, 0], atol=1.5)
  np.testing.assert_allclose(result[:, :, 1], 2 * expected[:, :, 1], atol=1.5)
