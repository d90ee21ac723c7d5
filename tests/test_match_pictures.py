import numpy as np
import pytest

from delf_jax.pictures import drawing, match_pictures

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
  picture = match_pictures.draw_matches(
    query, image, points(0), points(0), height=180
  )
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
  picture = match_pictures.draw_matches(
    query,
    image,
    start,
    end,
    query_size=(90, 120),
    image_size=(180, 180),
    height=360,
  )
  blank = match_pictures.draw_matches(
    query, image, start[:0], end[:0], height=360
  )
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
    picture = match_pictures.draw_matches(
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
    match_pictures.draw_matches(
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
  picture = match_pictures.draw_matches(*arguments, starts, ends)
  blank = match_pictures.draw_matches(*arguments, starts[:0], ends[:0])
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
  transform = np.asarray([[0.5, 0.0, 20.0], [0.0, 0.5, 30.0], [0, 0, 1]])
  picture = match_pictures.draw_matches(
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
    np.zeros((3, 3)),
    np.diag([0.0, 0, 1]),
    np.full((3, 3), np.nan),
    np.full((3, 3), 1e308),
    np.full((3, 3), 5e-324),
    np.asarray([[1e20, -1e15, 0], [1e18, 1e20, -1e21], [0, 0, 1]]),
    np.asarray([[1.0, 0, 1e6], [0, 1, 0], [0, 0, 1]]),
    np.asarray([[1e-9, 0, 30], [0, 50, -1000], [0, 0, 1]]),
    np.asarray([[-1.0, 0, 60], [0, 1, 0], [0, 0, 1]]),
    np.asarray([[1.0, 0, 0], [0, 1, 0], [0, 0.02, -1]]),
    np.asarray([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]]),
  ],
)
def test_no_transform_is_too_wild(transform):
  picture = match_pictures.draw_matches(
    grey(), grey(), points(5), points(5), transform=transform, height=120
  )
  assert (
    picture.shape
    == match_pictures.draw_matches(
      grey(), grey(), points(5), points(5), height=120
    ).shape
  )


def test_a_frame_far_larger_than_the_photograph_dims_nothing():
  transform = np.asarray([[1e20, 0.0, -1e21], [0.0, 1e20, -1e21], [0, 0, 1]])
  picture = match_pictures.draw_matches(
    grey(), grey(), points(0), points(0), transform=transform, height=120
  )
  assert (panels(picture, [(90, 120)] * 2, 120)[1] == 128).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 2000)])
def test_photographs_of_any_shape_fit(size):
  picture = match_pictures.draw_matches(
    grey(*size),
    grey(),
    np.zeros((1, 2)),
    np.zeros((1, 2)),
    residuals=np.zeros(1),
    transform=np.eye(3),
    height=96,
  )
  assert picture.shape[0] < 130 and picture.shape[1] < 96 * 4


def test_any_name_can_be_drawn():
  named = match_pictures.draw_matches(
    grey(),
    grey(),
    points(3),
    points(3),
    residuals=np.arange(3.0),
    query_name=HOSTILE,
    image_name=HOSTILE,
    height=200,
  )
  unnamed = match_pictures.draw_matches(
    grey(), grey(), points(3), points(3), residuals=np.arange(3.0), height=200
  )
  assert named.shape == unnamed.shape
  assert (named[:206] == unnamed[:206]).all()
  assert (named[206:] != unnamed[206:]).any()


@pytest.mark.parametrize(
  "options",
  [
    {"query_locations": np.zeros((3, 3))},
    {"image_locations": np.zeros((2, 2))},
    {"residuals": np.zeros(2)},
    {"transform": np.eye(2, 3)},
    {"inliers": np.ones(2, bool)},
    {"residuals": np.zeros(3), "max_residual": 0.0},
  ],
)
def test_mistakes_raise(options):
  arguments = {
    "query_locations": np.zeros((3, 2)),
    "image_locations": np.zeros((3, 2)),
  }
  with pytest.raises(ValueError):
    match_pictures.draw_matches(grey(), grey(), **{**arguments, **options})


def test_rejected_matches_are_grey_and_below():
  starts, ends = points(12, seed=2), points(12, seed=3)
  inliers = np.arange(12) < 4
  residuals = np.where(inliers, 3.0, np.nan)
  options = {"max_residual": 20.0, "height": 180}
  blank = match_pictures.draw_matches(
    grey(value=90), grey(value=90), starts[:0], ends[:0], height=180
  )[:185]
  kept, both, none = (
    match_pictures.draw_matches(
      grey(value=90),
      grey(value=90),
      starts[rows],
      ends[rows],
      inliers=inliers[rows],
      residuals=residuals[rows],
      **options,
    )[:185]
    for rows in (inliers, slice(None), ~inliers)
  )
  # What is not an inlier is drawn, in no colour, and never over an inlier.
  drawn = none[(none != blank).any(axis=-1)].astype(int)
  assert len(drawn) > 300
  assert np.ptp(drawn, axis=-1).max() < 16
  sure = abs(kept.astype(int) - blank).max(axis=-1) > 100
  assert sure.sum() > 20
  np.testing.assert_allclose(
    kept[sure].astype(int), both[sure].astype(int), atol=12
  )


def homography(horizon=0.0):
  """Maps a 90 x 120 photograph; x = `horizon` is thrown to infinity."""
  matrix = np.asarray([[0.8, 0.1, 4.0], [-0.1, 0.7, 9.0], [0, 0, 1]])
  if horizon:
    matrix[2, 1] = -1 / horizon
  return matrix


@pytest.mark.parametrize("factor", [1.0, -1.0, 1e-300, 1e300])
@pytest.mark.parametrize("horizon", [0.0, 400.0, 130.0, -50.0, 100.0, 30.0])
def test_the_frame_of_a_homography_is_where_its_points_are(horizon, factor):
  """Beside the definition: a pixel is inside if it comes from the query."""
  matrix = homography(horizon)
  near = np.asarray([[10.0, 10.0]])
  outline = match_pictures.outline_frame(
    (90, 120),
    factor * matrix,
    drawing.placement((90, 120), (120, 90)),
    (120, 90),
    near=near,
  )
  rows, columns = np.indices((90, 120)).reshape(2, -1)
  back = np.linalg.solve(matrix, np.stack([rows, columns, np.ones(90 * 120)]))
  y, x = back[:2] / back[2]
  # Those of the same side of the horizon as the matches.
  this_side = matrix[2] @ np.stack([y, x, np.ones_like(y)]) > 0
  inside = this_side & (abs(y - 44.5) < 45) & (abs(x - 59.5) < 60)
  edges = np.roll(outline, -1, axis=0) - outline
  ahead = np.stack([columns + 0.5, rows + 0.5], axis=-1)[:, None] - outline
  turns = edges[:, 0] * ahead[..., 1] - edges[:, 1] * ahead[..., 0]
  distance = turns / np.hypot(*edges.T).clip(1e-9)
  by_outline = (distance * np.sign(_area(outline))).min(axis=1) > 0
  sure = abs(distance).min(axis=1) > 1e-3
  np.testing.assert_array_equal(by_outline[sure], inside[sure])
  assert 200 < inside.sum()


def _area(polygon):
  x, y = polygon.T
  return x @ np.roll(y, -1) - y @ np.roll(x, -1)


def test_matches_say_which_side_of_the_horizon_is_shown():
  matrix = homography(60.0)
  place = drawing.placement((90, 120), (120, 90))
  left, right = (
    match_pictures.outline_frame(
      (90, 120), matrix, place, (120, 90), near=np.asarray([[45.0, x]])
    )
    for x in (10.0, 110.0)
  )
  assert len(left) >= 3
  assert len(right) == 0 or right[:, 0].max() < left[:, 0].min() + 1e-6


def test_the_legend_finds_room():
  def strip(width):
    arguments = grey(90, 240), grey(90, width), points(3), points(3)
    with_residuals = match_pictures.draw_matches(
      *arguments, residuals=np.arange(3.0), height=360
    )
    without = match_pictures.draw_matches(*arguments, height=360)
    return (with_residuals != without)[376:].any(axis=(0, 2))

  wide, narrow = strip(240), strip(40)
  assert np.flatnonzero(wide).min() > len(wide) / 2
  assert narrow.any() and np.flatnonzero(narrow).max() < 0.9 * len(narrow)
