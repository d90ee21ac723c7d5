import io

import numpy as np
import pytest
from PIL import Image

from delf_jax.data import synthetic
from delf_jax.pictures import blend_pictures

HOSTILE = 'a b\n"<é>\t' + "北京\u202e\udcff" + "x" * 300 + ".jpg"


def pair(seed=0):
  """Two views of a landmark, with the homography between them."""
  query, image = (
    synthetic.render_view(seed, 3, view, clutter=False, light=False)
    for view in (0, 1)
  )
  return query, image, synthetic.homography_between(query, image)


def smooth(height=90, width=120, phase=0.0):
  rows, columns = np.indices((height, width))
  waves = np.stack(
    [np.sin(rows / 9 + phase), np.cos(columns / 11), np.sin(columns / 7 + 1)],
    axis=-1,
  )
  return (128 + 90 * waves).astype(np.uint8)


def frames(content):
  with Image.open(io.BytesIO(content)) as image:
    found = []
    for number in range(image.n_frames):
      image.seek(number)
      found.append(np.asarray(image.convert("RGB")))
    return found, image.info


def test_a_photograph_blends_into_itself():
  """Left of the seam, right of it: the same, but for seam and outline."""
  pixels = smooth()
  drawn = blend_pictures.draw_blend(pixels, pixels, np.eye(3), side=240)[:180]
  plain = np.asarray(
    Image.fromarray(pixels).resize((240, 180), Image.Resampling.BICUBIC)
  )
  error = abs(drawn.astype(int) - plain).max(axis=-1)
  inside = error[4:-4, 4:-4]
  assert np.delete(inside, np.s_[112:120], axis=1).max() <= 3
  # The seam, in the middle.
  assert drawn[:, 119:121].min() > 200


@pytest.mark.parametrize("reduced", [1, 3])
def test_a_homography_puts_the_query_where_it_belongs(reduced):
  query, image, transform = pair()
  size = image.pixels.shape[:2]

  def less(pixels):
    return np.asarray(Image.fromarray(pixels).reduce(reduced))

  both = [
    blend_pictures.draw_blend(
      less(query.pixels),
      less(image.pixels),
      transform,
      query_size=query.pixels.shape[:2],
      image_size=size,
      seam=seam,
    ).astype(float)
    for seam in (0.0, 1.0)
  ]
  query_shown, image_shown = (part[40:-140].mean(axis=-1) for part in both)

  def error(down, across):
    moved = np.roll(query_shown, (down, across), axis=(0, 1))
    return abs(moved - image_shown)[:, 40:-40].mean()

  # The facade is where it is in the other view, to less than one of 640 pixels.
  right = error(0, 0)
  for step in ((1, 0), (-1, 0), (0, 1), (0, -1)):
    assert error(*step) > 1.2 * right
  assert error(12, 12) > 4 * right


def test_what_was_reduced_is_averaged_and_not_sampled():
  query = np.zeros((800, 800, 3), np.uint8)
  query[::2] = 255  # grey from afar
  drawn = blend_pictures.draw_blend(
    query,
    np.full((100, 100, 3), 10, np.uint8),
    np.diag([0.1, 0.1, 1.0]),
    seam=1.0,
    side=100,
  )
  inside = drawn[12:60, 12:60]
  assert abs(inside.astype(int) - 128).max() < 12


def test_the_seam_wanders_without_end():
  pixels, other = smooth(), smooth(phase=2.0)
  content = blend_pictures.animate_blend(
    pixels, other, np.eye(3), side=160, frames=24, seconds=3.0
  )
  found, info = frames(content)
  assert info["loop"] == 0 and len(found) == 24
  assert info["duration"] == 125
  assert len(content) < 60_000
  ends = [
    blend_pictures.draw_blend(pixels, other, np.eye(3), side=160, seam=seam)
    for seam in (1.0, 0.0)
  ]
  for number, end in zip((6, 18), ends, strict=True):
    apart = abs(found[number][:120, 6:-6].astype(int) - end[:120, 6:-6])
    assert apart.mean() < 6
  steps = [
    abs(after.astype(int) - before).mean()
    for before, after in zip(found, found[1:] + found[:1], strict=True)
  ]
  assert max(steps) < 0.4 * abs(ends[0].astype(int) - ends[1]).mean()


def test_the_same_picture_every_time():
  arguments = smooth(), smooth(phase=1.0), np.eye(3)
  first, again = (
    blend_pictures.animate_blend(*arguments, side=96, frames=6)
    for _ in range(2)
  )
  assert first == again


def test_the_part_around_the_query_is_shown():
  """A small query in a large photograph fills the picture."""
  transform = np.asarray([[0.1, 0, 400.0], [0, 0.1, 500.0], [0, 0, 1]])
  drawn = blend_pictures.draw_blend(
    np.full((300, 400, 3), 200, np.uint8),
    np.zeros((1000, 1000, 3), np.uint8),
    transform,
    seam=1.0,
    side=400,
  )
  covered = (drawn[:300] == 200).all(axis=-1).mean()
  assert 0.4 < covered < 0.8


@pytest.mark.parametrize(
  "transform",
  [
    np.zeros((3, 3)),
    np.diag([0.0, 0, 1]),
    np.diag([1e-5, 1e-5, 1]),
    np.diag([1.0, 1e-9, 1]),
    np.full((3, 3), np.nan),
    np.full((3, 3), 1e308),
    np.asarray([[1.0, 0, 1e6], [0, 1, 0], [0, 0, 1]]),
    np.asarray([[1e-9, 0, 30], [0, 50, -1000], [0, 0, 1]]),
    np.diag([1e9, 1e9, 1]),
  ],
)
def test_nothing_to_blend(transform):
  assert blend_pictures.animate_blend(smooth(), smooth(), transform) is None


@pytest.mark.parametrize(
  "transform",
  [
    np.asarray([[-1.0, 0, 60], [0, 1, 0], [0, 0, 1]]),
    np.asarray([[1.0, 0, 0], [0, 1, 0], [0, 0.02, -1]]),
    np.asarray([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]]),
    np.asarray([[1.0, 0, 0], [0, 1, 0], [0, -0.01, 1]]),
    np.asarray([[1.0, 0, 0], [40, 1, 0], [0, 0, 1]]),
    -7 * np.eye(3),
  ],
)
@pytest.mark.parametrize("size", [(90, 120), (1, 1), (1, 700), (700, 2)])
def test_no_transform_is_too_wild(transform, size):
  drawn = blend_pictures.draw_blend(
    smooth(*size), smooth(), transform, query_size=(90, 120), side=80
  )
  assert drawn is None or drawn.shape[2] == 3


def test_any_name_can_be_drawn():
  named, unnamed = (
    blend_pictures.draw_blend(
      smooth(), smooth(), np.eye(3), query_name=name, image_name=name
    )
    for name in (HOSTILE, "")
  )
  assert named.shape == unnamed.shape
  assert (named[:480] == unnamed[:480]).all()
  assert (named[480:] != unnamed[480:]).any()


def test_the_strip_says_what_the_left_one_is():
  def draw(**note):
    return blend_pictures.draw_blend(smooth(), smooth(), np.eye(3), **note)

  assert np.array_equal(draw(), draw(query_note="query"))
  assert not np.array_equal(draw(), draw(query_note="found before"))


def test_a_mistake_raises():
  with pytest.raises(ValueError, match=r"\[3, 3\]"):
    blend_pictures.draw_blend(smooth(), smooth(), np.eye(2, 3))
