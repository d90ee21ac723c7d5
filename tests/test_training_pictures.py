import numpy as np
import pytest

from delf_jax.pictures import training_pictures
from delf_jax.pictures.training_pictures import Curve, Panel

BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def grey(height=40, width=60):
  return np.full((height, width, 3), 128, np.uint8)


def count(picture, colour):
  return int((picture == np.asarray(colour, np.uint8)).all(axis=-1).sum())


def test_a_map_is_interpolated_between_what_its_features_look_at():
  # A plane stays a plane, whatever the size it is drawn at.
  stride, size, drawn = 16, (97, 129), (194, 43)
  rows, columns = np.mgrid[:7, :9] * stride
  upsampled = training_pictures.upsample(
    3.0 * rows - 2.0 * columns, stride, size, drawn
  )
  y, x = np.mgrid[: drawn[0], : drawn[1]]
  y = (y + 0.5) * size[0] / drawn[0] - 0.5
  x = (x + 0.5) * size[1] / drawn[1] - 0.5
  expected = 3.0 * np.clip(y, 0, 96) - 2.0 * np.clip(x, 0, 128)
  np.testing.assert_allclose(upsampled, expected, atol=1e-9)


def test_a_map_of_one_feature_is_even():
  upsampled = training_pictures.upsample(
    np.full((1, 1), 5.0), 16, (9, 9), (4, 5)
  )
  np.testing.assert_array_equal(upsampled, np.full((4, 5), 5.0))


def test_beyond_the_last_features_their_values_go_on():
  scores = np.asarray([[1.0, 2.0]])
  upsampled = training_pictures.upsample(scores, 4, (3, 12), (3, 12))
  np.testing.assert_allclose(
    upsampled[0], [1, 1.25, 1.5, 1.75, 2, 2, 2, 2, 2, 2, 2, 2]
  )


def test_the_highest_score_lights_up_where_its_feature_looks():
  l2_norm, attention = np.zeros((10, 15)), np.zeros((10, 15))
  l2_norm[2, 3] = attention[7, 12] = 1.0
  picture = training_pictures.draw_scores(
    grey(160, 240), l2_norm, attention, stride=16, width=3 * 240 + 4 * 6
  )
  lightness = picture[: 6 + 160].mean(axis=-1)
  for number, (row, column) in ((1, (2, 3)), (2, (7, 12))):
    left = 6 + number * 246
    map_lightness = lightness[6:, left : left + 240]
    brightest = np.argwhere(map_lightness == map_lightness.max())
    np.testing.assert_allclose(
      brightest.mean(axis=0), (16 * row, 16 * column), atol=1.0
    )


def test_lightness_follows_the_score_and_the_photograph_is_seen():
  ramp = np.tile(np.linspace(0, 1, 16), (11, 1))
  pixels = grey(161, 241)
  pixels[80:] = 60
  picture = training_pictures.draw_scores(
    pixels, ramp, ramp, stride=16, width=3 * 241 + 4 * 6
  )
  lightness = picture.mean(axis=-1)
  across = lightness[40, 6 + 247 : 6 + 247 + 230]
  assert (np.diff(across[::8]) > 0).all()
  below = lightness[120, 6 + 247 : 6 + 247 + 230]
  assert (below < across - 15).all()


def test_a_few_high_scores_leave_the_others_to_be_seen():
  scores = np.tile(np.linspace(0, 1, 16), (11, 1))
  with_outlier = scores.copy()
  with_outlier[0, 0] = 1000.0
  picture, other = (
    training_pictures.draw_scores(
      grey(161, 241), one, one, stride=16, width=747
    )
    for one in (scores, with_outlier)
  )
  far_from_it = np.s_[80:160]
  assert np.abs(picture[far_from_it].astype(int) - other[far_from_it]).max() < 8


def test_a_landmark_is_shown_if_it_is_known():
  pixels = grey(30, 30)
  pixels[...] = (200, 100, 50)
  mask = np.zeros((30, 30), bool)
  mask[:, :15] = True
  scores = np.ones((2, 2))
  draw = training_pictures.draw_scores
  without = draw(pixels, scores, scores, stride=16, width=600)
  picture = draw(pixels, scores, scores, stride=16, mask=mask, width=600)
  assert without.dtype == picture.dtype == np.uint8
  assert picture.shape[1] <= 600 and without.shape[1] <= 600
  shown = (picture == (200, 100, 50)).all(axis=-1)
  photograph, landmark = shown[:, :300].sum(), shown[:, 300:].sum()
  assert landmark == pytest.approx(photograph / 2, rel=0.05)


@pytest.mark.parametrize("size", [(8, 400), (400, 8), (1, 1), (700, 900)])
@pytest.mark.parametrize("value", [0.0, np.nan, -3.0])
def test_any_photograph_and_map_can_be_drawn(size, value):
  scores = np.full((2, 3), value)
  picture = training_pictures.draw_scores(
    grey(*size),
    scores,
    np.asarray([[1e-9, np.inf, 1e6], [0, -1, 2]]),
    stride=16,
    mask=np.ones(size, bool),
    name="\n\x1b北 é" * 40,
  )
  assert picture.dtype == np.uint8
  assert picture.shape[0] <= 0.4 * 1400


@pytest.mark.parametrize(
  "change",
  [
    {"l2_norm": np.ones((2, 2))},
    {"l2_norm": np.ones((0, 3)), "attention": np.ones((0, 3))},
    {"l2_norm": np.ones(3), "attention": np.ones(3)},
    {"mask": np.ones((3, 3), bool)},
  ],
)
def test_mistakes_raise(change):
  maps = {"l2_norm": np.ones((2, 3)), "attention": np.ones((2, 3)), **change}
  with pytest.raises(ValueError, match="must"):
    training_pictures.draw_scores(grey(), stride=16, **maps)


def test_a_running_mean_keeps_what_is_even_and_its_gaps():
  values = np.full(200, 3.0)
  np.testing.assert_allclose(training_pictures.running_mean(values), values)
  values[50:60] = np.nan
  np.testing.assert_allclose(training_pictures.running_mean(values), values)


def test_a_running_mean_is_the_weighted_mean():
  values = np.random.default_rng(0).normal(size=150)
  values[[3, 70, 149]] = np.nan
  found = training_pictures.running_mean(values)
  sigma = 150 / 60
  for place in (0, 5, 71, 148):
    away = np.arange(150) - place
    weights = np.exp(-0.5 * (away / sigma) ** 2)
    weights[np.isnan(values) | (np.abs(away) > round(3 * sigma))] = 0
    expected = np.nansum(weights * values) / weights.sum()
    assert found[place] == pytest.approx(expected)
  assert np.isnan(found[[3, 70, 149]]).all()


def test_few_values_are_their_own_running_mean():
  values = [3.0, 1.0, np.nan, 2.0]
  np.testing.assert_array_equal(training_pictures.running_mean(values), values)
  assert training_pictures.running_mean([]).shape == (0,)


def test_curves_are_drawn_in_their_colours():
  panels = [
    Panel(
      "Loss",
      [
        Curve("training", [1, 2, 3], [3.0, 2.0, 1.0], noisy=True),
        Curve("_$x$\n", [2], [2.5], colour=1, marked=True),
      ],
    ),
    Panel("Rate $x_", [Curve("", [1, 2], [50.0, 60.0])], percent=True),
  ]
  picture = training_pictures.plot_curves(panels)
  assert picture.shape[1:] == (1400, 3)
  assert count(picture[:, :700], BLUE) > 300
  assert count(picture[:, :700], VERMILION) > 50
  assert count(picture[:, 700:], BLUE) > 300
  assert count(picture[:, 700:], VERMILION) == 0
  assert (picture == training_pictures.plot_curves(panels)).all()
  assert training_pictures.plot_curves(panels[1:]).shape[1] == 700


@pytest.mark.parametrize(
  "values",
  [[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [np.nan, np.nan], [np.nan, 2.0], [1e9]],
)
@pytest.mark.parametrize("noisy", [False, True])
def test_any_curve_can_be_drawn(values, noisy):
  steps = range(len(values))
  panel = Panel("Loss", [Curve("a", steps, values, noisy=noisy)])
  for shared_legend in (False, True):
    picture = training_pictures.plot_curves(
      [panel] * 3, shared_legend=shared_legend
    )
    assert picture.shape[1:] == (1400, 3)


def test_a_single_point_is_seen():
  def blue(curve):
    return count(training_pictures.plot_curves([Panel("", [curve])]), BLUE)

  one = Curve("", [5], [1.0])
  assert blue(one) > 20
  assert blue(Curve("", [5, 6, 7], [np.nan, 1.0, np.nan])) > 20
  assert blue(Curve("", [5, 6, 7], [np.nan] * 3)) == 0


def test_a_lower_value_is_further_down():
  def row(value):
    curves = [Curve("", [0, 10], [0.0, 10.0], 1), Curve("", [5], [value])]
    picture = training_pictures.plot_curves([Panel("", curves)])
    rows, _ = np.nonzero((picture == BLUE).all(axis=-1))
    return rows.mean()

  assert row(2.0) > row(8.0) + 50


def test_runs_are_dots_in_the_colours_of_their_curves():
  runs = {"SD": 0, "a" * 300: 1, "_c": 5}
  picture = training_pictures.plot_final(
    runs,
    {
      "Loss": ([1.0, 2.0, np.nan], False),
      "Accuracy": ([50.0, 60.0, 70.0], True),
    },
  )
  assert picture.shape[1:] == (1400, 3)
  # Of the third run, whose colour comes round again, there is one dot.
  rows, _ = np.nonzero((picture == BLUE).all(axis=-1))
  above = rows < rows.mean()
  assert count(picture, VERMILION) > 100
  assert above.sum() == pytest.approx(2 * (~above).sum(), rel=0.1)
  many = {f"Figure {number}": ([1.0, 1.0, 2.0], False) for number in range(6)}
  assert len(training_pictures.plot_final(runs, many)) > 1.5 * len(picture)
