import numpy as np
import pytest

from delf_jax.pictures import drawing, feature_pictures

HOSTILE = 'a b\n"<é>\t' + "北京\u202e\udcff" + "x" * 300 + ".jpg"


def grey(height=90, width=120, value=128):
  return np.full((height, width, 3), value, np.uint8)


def draw(locations, scales=None, scores=None, **options):
  n = len(locations)
  return feature_pictures.draw_features(
    grey(),
    np.asarray(locations, float).reshape(n, 2),
    np.ones(n) if scales is None else np.asarray(scales, float),
    np.arange(n) if scores is None else np.asarray(scores, float),
    height=360,
    **options,
  )


def changed(picture):
  """Where a picture of 480 x 360 pixels with a margin of 11 is not grey."""
  return (picture[11:371, 11:491] != 128).any(axis=-1)


def test_a_circle_is_around_its_place():
  rows, columns = np.nonzero(changed(draw([(30.0, 40.0)])))
  assert abs(rows.mean() - 30.5 * 4) < 0.6
  assert abs(columns.mean() - 40.5 * 4) < 0.6
  # A circle, of which the middle stays to be seen.
  assert not changed(draw([(30.0, 40.0)]))[122, 162]


def test_places_are_those_of_the_original():
  whole = draw([(30.0, 40.0)])
  reduced = feature_pictures.draw_features(
    grey(),
    np.asarray([(60.5, 80.5)]),
    np.ones(1),
    np.zeros(1),
    size=(180, 240),
    height=360,
  )
  np.testing.assert_array_equal(changed(whole), changed(reduced))


def test_a_larger_scale_is_a_larger_circle():
  places = [(20.0, 20.0), (45.0, 60.0), (70.0, 100.0)]
  marks = changed(
    feature_pictures.draw_features(
      grey(),
      np.asarray(places),
      np.asarray([1.0, 2.0, 4.0]),
      np.zeros(3),
      height=360,
    )
  )
  radii = [
    np.ptp(np.nonzero(marks[:, left : left + 160])[0]) / 2
    for left in (0, 160, 320)
  ]
  assert radii[0] < radii[1] < radii[2]


def test_the_best_are_drawn():
  rng = np.random.default_rng(0)
  places = rng.uniform((5, 5), (85, 115), (40, 2))
  scores = rng.permutation(40).astype(float)
  best = scores >= 35
  few = draw(places, scores=scores, most=5)
  np.testing.assert_array_equal(
    changed(few), changed(draw(places[best], scores=scores[best]))
  )
  order = rng.permutation(40)
  np.testing.assert_array_equal(
    draw(places, scores=scores),
    draw(places[order], scores=scores[order]),
  )


def test_the_best_colour_is_that_of_the_best_score():
  picture = draw([(20.0, 20.0), (70.0, 100.0)], scores=[1.0, 2.0])
  best, worst = drawing.ramp_colours(np.asarray([0.0, 1.0])).astype(int)
  inside = picture[11:371, 11:491].astype(int)

  def nearest(part, colour):
    return abs(part - colour).sum(axis=-1).min()

  first, second = inside[:180, :240], inside[180:, 240:]
  assert nearest(second, best) < 60 < nearest(first, best)
  assert nearest(first, worst) < 60 < nearest(second, worst)


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0], [0.0, 1e30, 1.0]])
def test_any_scores(scores):
  places = np.full((len(scores), 2), 40.0)
  assert draw(places, scores=scores).shape == (425, 502, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 2000)])
def test_photographs_of_any_shape_and_name(size):
  picture = feature_pictures.draw_features(
    grey(*size),
    np.zeros((2, 2)),
    np.asarray([1.0, 1e6]),
    np.zeros(2),
    name=HOSTILE,
    height=96,
  )
  assert picture.shape[0] < 130 and picture.shape[1] < 250


@pytest.mark.parametrize(
  "shapes",
  [((3, 3), 3, 3), ((3, 2), 2, 3), ((3, 2), 3, 2), ((3, 2), (3, 1), 3)],
)
def test_mistakes_raise(shapes):
  with pytest.raises(ValueError, match="must be"):
    feature_pictures.draw_features(grey(), *map(np.ones, shapes))
