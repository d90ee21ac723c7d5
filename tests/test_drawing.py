import subprocess
import sys

import numpy as np
import pytest

from delf_jax import drawing
from delf_jax.evaluation.metrics import PrecisionRecall, precision_recall

HOSTILE = 'a b\n"<é>\t' + "北京\u202e\udcff" + "x" * 300 + ".jpg"


def photograph(height=90, width=120, seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(40, 216, (height // 15, width // 15, 3), np.uint8)
  return coarse.repeat(15, axis=0).repeat(15, axis=1)


def grey(height=90, width=120, value=128):
  return np.full((height, width, 3), value, np.uint8)


def points(n, height=90, width=120, seed=1):
  rng = np.random.default_rng(seed)
  return rng.uniform((0, 0), (height, width), (n, 2)).astype(np.float32)


def panels(picture, sizes, height):
  """Cuts the two photographs, of the same height, out of a picture."""
  margin = max(4, height // 32)
  widths = [round(height * w / h) for h, w in sizes]
  left, right = margin, 2 * margin + widths[0]
  rows = slice(margin, margin + height)
  return picture[rows, left : left + widths[0]], picture[
    rows, right : right + widths[1]
  ]


def test_photographs_are_shown_at_one_height_and_not_changed():
  query, image = photograph(90, 120, 0), photograph(240, 150, 1)
  before = query.copy(), image.copy()
  picture = drawing.draw_matches(query, image, points(0), points(0), height=180)
  assert picture.dtype == np.uint8 and picture.shape[2] == 3
  shown = panels(picture, [(90, 120), (240, 150)], 180)
  for panel, pixels in zip(shown, (query, image), strict=True):
    np.testing.assert_array_equal(
      panel, drawing.draw_photograph(pixels, height=180)
    )
  np.testing.assert_array_equal(query, before[0])
  np.testing.assert_array_equal(image, before[1])


@pytest.mark.parametrize("reduced", [1, 2])
def test_a_match_joins_its_two_locations(reduced):
  """The ends are found where they must be, from the original's pixels."""
  query = grey(90 // reduced, 120 // reduced)
  image = grey(180 // reduced, 180 // reduced)
  start, end = np.asarray([[30.0, 40.0]]), np.asarray([[100.0, 150.0]])
  picture = drawing.draw_matches(
    query,
    image,
    start,
    end,
    query_size=(90, 120),
    image_size=(180, 180),
    height=360,
  )
  blank = drawing.draw_matches(query, image, start[:0], end[:0], height=360)
  changed = (picture[:371] != blank[:371]).any(axis=-1)
  rows, columns = np.nonzero(changed)
  margin = 360 // 32
  first, last = columns.argmin(), columns.argmax()
  # The ends are discs, so their outermost pixels are a radius further.
  assert abs(rows[first] - (margin + 30.5 * 4)) < 3
  assert 0 < margin + 40.5 * 4 - columns[first] < 6
  assert abs(rows[last] - (margin + 100.5 * 2)) < 3
  assert 0 < columns[last] - (2 * margin + 480 + 150.5 * 2) < 6
  # Between them the line is straight.
  middle = np.mean(columns).round()
  at_middle = rows[columns == middle].mean()
  along = (middle - columns[first]) / (columns[last] - columns[first])
  expected = rows[first] + along * (rows[last] - rows[first])
  assert abs(at_middle - expected) < 2


def test_the_colour_tells_the_residual():
  def colour(residual):
    picture = drawing.draw_matches(
      grey(),
      grey(),
      np.asarray([[45.0, 60.0]]),
      np.asarray([[45.0, 60.0]]),
      residuals=np.asarray([residual]),
      max_residual=20.0,
      height=360,
    )
    return picture[11 + 182, 11 + 242].astype(float)

  weights = np.asarray([0.2126, 0.7152, 0.0722])
  lightness = [
    weights @ (colour(residual) / 255) ** 2.2 for residual in range(0, 21, 4)
  ]
  assert np.all(np.diff(lightness) < 0)
  np.testing.assert_array_equal(colour(20.0), colour(35.0))


def test_order_of_the_matches_does_not_matter():
  starts, ends = points(40, seed=2), points(40, seed=3)
  residuals = np.linspace(0, 20, 40)
  pictures = [
    drawing.draw_matches(
      photograph(),
      photograph(seed=1),
      starts[order],
      ends[order],
      residuals=residuals[order],
      height=180,
    )
    for order in (np.arange(40), np.random.default_rng(4).permutation(40))
  ]
  np.testing.assert_array_equal(*pictures)


def test_many_matches_leave_the_photographs_to_be_seen():
  rng = np.random.default_rng(5)
  query = image = photograph(450, 600)
  starts = points(300, 450, 600)
  ends = starts + rng.normal(0, 5, starts.shape)
  arguments = query, image
  picture = drawing.draw_matches(*arguments, starts, ends)
  blank = drawing.draw_matches(*arguments, starts[:0], ends[:0])
  for ours, theirs in zip(
    panels(picture, [(450, 600)] * 2, 540),
    panels(blank, [(450, 600)] * 2, 540),
    strict=True,
  ):
    error = np.abs(ours.astype(float) - theirs).mean(axis=-1)
    assert (error > 0).mean() > 0.02
    assert (error > 64).mean() < 0.1
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.8


def test_the_frame_of_the_query_is_outlined_where_the_transform_puts_it():
  transform = np.asarray([[0.5, 0.0, 20.0], [0.0, 0.5, 30.0]])
  picture = drawing.draw_matches(
    grey(), grey(), points(0), points(0), transform=transform, height=360
  )
  query, image = panels(picture, [(90, 120)] * 2, 360)
  assert (query == 128).all()
  # In rows and columns of the original, counted from its corner: the query
  # covers 20.25 to 65.25 and 30.25 to 90.25, for its corner is at (-.5, -.5).
  rows, columns = (np.indices((360, 480)) + 0.5) / 4
  distance = np.maximum(abs(rows - 42.75) - 22.5, abs(columns - 60.25) - 30)
  assert (image[distance < -1.5] == 128).all()
  assert (image[distance > 1.5] < 100).all()
  assert image[abs(distance) < 0.15].mean() > 150


@pytest.mark.parametrize(
  "transform",
  [
    np.zeros((2, 3)),
    np.full((2, 3), np.nan),
    np.full((2, 3), 1e308),
    np.asarray([[1e20, -1e15, 0], [1e18, 1e20, -1e21]]),
    np.asarray([[1.0, 0, 1e6], [0, 1, 0]]),
    np.asarray([[1e-9, 0, 30], [0, 50, -1000]]),
    np.asarray([[-1.0, 0, 60], [0, 1, 0]]),
  ],
)
def test_no_transform_is_too_wild(transform):
  picture = drawing.draw_matches(
    grey(), grey(), points(5), points(5), transform=transform, height=120
  )
  assert (
    picture.shape
    == drawing.draw_matches(
      grey(), grey(), points(5), points(5), height=120
    ).shape
  )


def test_a_frame_far_larger_than_the_photograph_dims_nothing():
  transform = np.asarray([[1e20, 0.0, -1e21], [0.0, 1e20, -1e21]])
  picture = drawing.draw_matches(
    grey(), grey(), points(0), points(0), transform=transform, height=120
  )
  assert (panels(picture, [(90, 120)] * 2, 120)[1] == 128).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 2000)])
def test_photographs_of_any_shape_fit(size):
  picture = drawing.draw_matches(
    grey(*size),
    grey(),
    np.zeros((1, 2)),
    np.zeros((1, 2)),
    residuals=np.zeros(1),
    transform=np.eye(2, 3),
    height=96,
  )
  assert picture.shape[0] < 130 and picture.shape[1] < 96 * 4


def test_any_name_can_be_drawn():
  named = drawing.draw_matches(
    grey(),
    grey(),
    points(3),
    points(3),
    residuals=np.arange(3.0),
    query_name=HOSTILE,
    image_name=HOSTILE,
    height=200,
  )
  unnamed = drawing.draw_matches(
    grey(), grey(), points(3), points(3), residuals=np.arange(3.0), height=200
  )
  assert named.shape == unnamed.shape
  assert (named[:206] == unnamed[:206]).all()
  assert (named[206:] != unnamed[206:]).any()


def test_nothing_hides_in_a_name():
  assert drawing.visible("a b.jpg, é, 北京, \\") == "a b.jpg, é, 北京, \\"
  assert drawing.visible("\n\t\x1b\u202e\udcff") == r"\n\t\x1b\u202e\udcff"
  assert drawing.printable("a北") == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
  "options",
  [
    {"query_locations": np.zeros((3, 3))},
    {"image_locations": np.zeros((2, 2))},
    {"residuals": np.zeros(2)},
    {"transform": np.eye(3)},
    {"residuals": np.zeros(3), "max_residual": 0.0},
  ],
)
def test_mistakes_raise(options):
  arguments = {
    "query_locations": np.zeros((3, 2)),
    "image_locations": np.zeros((3, 2)),
  }
  with pytest.raises(ValueError):
    drawing.draw_matches(grey(), grey(), **{**arguments, **options})


def test_plots_curves():
  curves = {
    "RootSIFT": precision_recall(
      [9, 8, 7, 6, 5], [True, True, True, False, True], 8
    ),
    "_$x^2$ " + HOSTILE[:20]: precision_recall([3, 2], [True, False], 4),
    "silent": precision_recall([], [], 2),
  }
  picture = drawing.plot_precision_recall(curves, title="a $b_c$", width=700)
  assert picture.dtype == np.uint8
  assert picture.shape[1:] == (700, 3) and picture.shape[0] > 300
  assert (picture[0] == 255).all() and (picture[-1] == 255).all()
  for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
    assert (picture == np.asarray(colour, np.uint8)).all(axis=-1).sum() > 50
  assert drawing.plot_precision_recall({}).shape[1] == 1400


def test_a_better_curve_is_further_up_and_right():
  def centre(recall):
    curve = PrecisionRecall(
      np.arange(3.0), np.asarray([1.0, 0.9, 0.5]), np.asarray(recall)
    )
    picture = drawing.plot_precision_recall({"a": curve}, width=700)
    blue = np.asarray((0x00, 0x72, 0xB2), np.uint8)
    rows, columns = np.nonzero((picture == blue).all(axis=-1))
    return columns[rows < 0.8 * len(picture)].mean()

  assert centre([0.2, 0.8, 0.9]) > centre([0.1, 0.2, 0.3]) + 100


def test_matplotlib_is_imported_late_and_pyplot_never():
  program = """
import sys
from delf_jax import drawing
from delf_jax.evaluation import metrics
assert "matplotlib" not in sys.modules
drawing.plot_precision_recall({"a": metrics.precision_recall([1], [True], 1)})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", program], check=True)
