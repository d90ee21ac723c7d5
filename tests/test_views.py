"""Views: where they look, and the map from one to another."""

import io

import numpy as np
import pytest
from PIL import Image

from delf_jax.data import views
from delf_jax.data.views import Views
from delf_jax.errors import InputError

SIDE = 48


def rng(seed=0):
  return np.random.default_rng(seed)


def ramp(height=120, width=160):
  """A photograph whose red is y and whose green is x."""
  pixels = np.zeros((height, width, 3), np.uint8)
  pixels[..., 0] = np.arange(height)[:, None]
  pixels[..., 1] = np.arange(width)[None]
  return pixels


def encode(pixels, kind="PNG"):
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, kind, quality=95)
  return stream.getvalue()


def look(pixels, view, kind="PNG"):
  found, chosen = views.look(
    encode(pixels, kind), name="x", side=SIDE, choose=lambda h, w: view
  )
  assert chosen is view
  return found


def test_a_view_shows_the_four_corners_that_it_is_made_of():
  corners = np.array([[3.0, 5], [7, 80], [60, 90], [50, 1]])
  view = views.from_corners(corners, SIDE)
  np.testing.assert_allclose(views.corners_of(view, SIDE), corners)
  assert views.area(corners) > 0 > views.area(corners[::-1])
  assert views.area(np.array([[0, 0], [0, 3], [2, 3], [2, 0]])) == 6


def test_every_pixel_shows_the_point_that_the_view_says():
  for seed in range(10):
    view = views.random_view(np.array([60, 80]), 55, SIDE, rng(seed), Views())
    found = look(ramp(), view).reshape(-1, 3)
    seen = views.project(view, views.lattice(SIDE, 1))
    inside = ((seen > 1) & (seen < [118, 158])).all(1)
    assert inside.sum() > 1000
    np.testing.assert_allclose(found[inside, :2], seen[inside], atol=1.1)


def test_a_view_of_much_is_reduced_without_aliasing():
  noise = rng().integers(0, 256, (600, 600, 3), np.uint8)
  view = views.from_corners(
    np.array([[0, 0], [0, 480], [480, 480], [480, 0]]) + 19.5, SIDE
  )
  found = look(noise, view).astype(float)
  # The mean of ten by ten pixels of noise.
  assert found.std() < 15
  block = noise[20:500, 20:500].reshape(SIDE, 10, SIDE, 10, 3).mean((1, 3))
  assert np.abs(found - block).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_beyond_the_photograph_it_is_mirrored(kind):
  # A third of the view lies above the photograph and a third left of it.
  view = views.from_corners(
    np.array([[-16, -16], [-16, 32], [32, 32], [32, -16]]) - 0.5, SIDE
  )
  found = look(ramp(), view, kind).astype(int)
  y = np.abs(np.arange(-16, 32))
  assert np.abs(found[..., 0] - y[:, None]).max() <= (1 if kind == "PNG" else 9)
  assert np.abs(found[..., 1] - y[None]).max() <= (1 if kind == "PNG" else 9)


def test_pairs_differ_by_no_more_than_they_say():
  options = Views(scale=1.5, rotation=10, shift=0, perspective=0)
  ratios, angles = [], []
  for seed in range(200):
    pair = views.random_pair(120, 160, SIDE, rng(seed), options)
    corners = [views.corners_of(view, SIDE) for view in pair]
    ratios.append(np.sqrt(views.area(corners[0]) / views.area(corners[1])))
    down, right = (corners[0][1] - corners[0][0]).tolist()
    angles.append(np.degrees(np.arctan2(down, right)))
    np.testing.assert_allclose(corners[0].mean(0), corners[1].mean(0))
  assert 0.66 < min(ratios) < 0.75 and 1.35 < max(ratios) < 1.51
  assert -10 <= min(angles) < -8 and 8 < max(angles) <= 10


def test_little_is_seen_enlarged():
  options = Views(length=(0.1, 1.0), zoom=1.5)
  lengths = [views.random_length(90, SIDE, rng(s), options) for s in range(99)]
  assert SIDE / 1.5 <= min(lengths) < 40 and 80 < max(lengths) <= 90
  # Of a small photograph all is seen.
  found = views.random_length(20, SIDE, rng(), options)
  assert found <= 20 and found == pytest.approx(20)


def test_what_one_view_shows_is_followed_into_another_photograph():
  homography = np.array([[2.0, 0, 30], [0, 2.0, -10], [0, 0, 1]])
  view = views.random_view(np.array([50, 50]), 40, SIDE, rng(), Views())
  still = Views(scale=1.0, rotation=0, shift=0, perspective=0)
  other = views.follow(view, homography, SIDE, rng(), still)
  expected = views.project(homography, views.corners_of(view, SIDE))
  found = views.corners_of(other, SIDE)
  np.testing.assert_allclose(found.mean(0), expected.mean(0))
  np.testing.assert_allclose(views.area(found), views.area(expected))
  for unfit in (np.diag([1.0, -1, 1]), np.diag([9.0, 9, 1])):
    assert views.follow(view, unfit, SIDE, rng(), still) is None


def test_what_lies_behind_the_camera_is_nowhere():
  transform = np.array([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]])
  found = views.project(transform, np.array([[0.0, 3], [20, 3]]))
  np.testing.assert_array_equal(found[0], [0, 3])
  assert np.isnan(found[1]).all()


@pytest.mark.parametrize(
  "options",
  [
    {"length": (0.0, 1.0)},
    {"length": (0.9, 0.5)},
    {"zoom": 0},
    {"scale": 0.5},
    {"rotation": 200},
    {"shift": 0.5},
    {"perspective": 0.25},
  ],
)
def test_silly_options_are_refused(options):
  with pytest.raises(InputError, match=f"views {next(iter(options))} is"):
    Views.from_config(options)


def test_unknown_options_are_named():
  with pytest.raises(InputError, match="'tilt'.*perspective"):
    Views.from_config({"tilt": 3})
