"""Tests of delf_jax.geometry.ransac."""

import hashlib
import inspect
import os
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from delf_jax.geometry.ransac import (
  Pair,
  RansacResult,
  ransac,
  verify,
  verify_pairs,
)
from delf_jax.geometry.transforms import squared_residuals

HEIGHT, WIDTH = 480, 640
CORNERS = np.array([[0, 0], [0, WIDTH], [HEIGHT, 0], [HEIGHT, WIDTH]])
DEFAULTS = {
  name: parameter.default
  for name, parameter in inspect.signature(ransac).parameters.items()
  if parameter.default is not parameter.empty and parameter.default is not None
}
run_one = jax.jit(ransac)


def find(source, target, **options):
  """One pair; always with all options, so that one program serves them all."""
  [result] = verify([(source, target)], **{**DEFAULTS, **options})
  return result


def make_pair(seed, *, inliers, outliers, noise=0.5):
  """Correspondences of a known affine transform among random ones.

  Returns:
    source [n, 2] and target [n, 2] float32, the transform [2, 3] and [n] bool,
    which of them follow it.
  """
  rng = np.random.default_rng(seed)
  angle = rng.uniform(-0.6, 0.6)
  turn = np.array(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )
  linear = turn @ np.diag(np.exp2(rng.uniform(-0.7, 0.7, 2)))
  centre = np.array([HEIGHT, WIDTH]) / 2
  shift = centre + rng.uniform(-50, 50, 2) - linear @ centre
  n = inliers + outliers
  source = rng.uniform(0, 1, (n, 2)) * [HEIGHT, WIDTH]
  target = rng.uniform(0, 1, (n, 2)) * [HEIGHT, WIDTH]
  follows = rng.permutation(n) < inliers
  target[follows] = source[follows] @ linear.T + shift
  target[follows] += rng.normal(0, noise, (inliers, 2))
  return (
    source.astype(np.float32),
    target.astype(np.float32),
    np.column_stack([linear, shift]),
    follows,
  )


def corner_error(found, true):
  """How far the farthest corner of the photograph lands from its place."""
  difference = np.asarray(found)[:2] - true
  missed = CORNERS @ difference[:2, :2].T + difference[:2, 2]
  return np.max(np.linalg.norm(missed, axis=1))


def pad(pairs, n, *, batch=None, slots=None, fill=0.0, rows=None):
  """Lays pairs into arrays of one shape: source, target, mask."""
  slots = range(len(pairs)) if slots is None else slots
  batch = batch or len(pairs)
  points = np.full((2, batch, n, 2), fill, np.float32)
  mask = np.zeros((batch, n), bool)
  for slot, (source, target) in zip(slots, pairs, strict=True):
    where = np.arange(len(source)) if rows is None else rows
    points[0, slot, where] = source
    points[1, slot, where] = target
    mask[slot, where] = True
  return points[0], points[1], mask


def assert_nothing_found(result):
  assert result.num_inliers == 0
  assert not np.any(result.inliers)
  np.testing.assert_array_equal(result.transform, np.eye(3))
  assert np.all(np.isinf(result.residuals))


def assert_same_bits(result, expected):
  jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.parametrize("inliers,outliers", [(100, 0), (60, 60), (40, 160)])
def test_known_transforms_are_found_among_outliers(inliers, outliers):
  pairs = [
    make_pair(seed, inliers=inliers, outliers=outliers) for seed in range(12)
  ]
  results = verify([pair[:2] for pair in pairs], threshold=2.5)
  for result, (source, target, true, follows) in zip(
    results, pairs, strict=True
  ):
    assert result.transform.shape == (3, 3)
    assert corner_error(result.transform, true) < 1.5
    assert np.mean(result.inliers[follows]) > 0.97
    assert np.mean(result.inliers[~follows]) < 0.02 if outliers else True
    assert result.num_inliers == np.sum(result.inliers)
    # The inliers are those of the transform that is returned.
    residuals = np.sqrt(squared_residuals(result.transform, source, target))
    np.testing.assert_allclose(result.residuals, residuals, atol=1e-3)
    np.testing.assert_array_equal(result.inliers, result.residuals <= 2.5)


def test_ten_percent_of_inliers_are_enough():
  pairs = [make_pair(s, inliers=20, outliers=180) for s in range(50)]
  results = verify([pair[:2] for pair in pairs], threshold=2.5)
  errors = [
    corner_error(result.transform, pair[2])
    for result, pair in zip(results, pairs, strict=True)
  ]
  # As many samples of any three would find 95 percent of the transforms.
  assert np.mean(np.array(errors) < 5) > 0.97


def test_it_finds_the_inliers_that_opencv_finds():
  for seed in range(5):
    source, target, _, _ = make_pair(seed, inliers=80, outliers=70)
    _, kept = cv2.estimateAffine2D(source, target, ransacReprojThreshold=3)
    result = find(source, target, threshold=3)
    assert abs(int(result.num_inliers) - int(kept.sum())) <= 3
    assert np.sum(result.inliers != kept[:, 0].astype(bool)) <= 3


def test_the_transform_takes_the_source_to_the_target():
  source = make_pair(0, inliers=30, outliers=0)[0]
  # Down is halved and moved by 100, right is moved by -20.
  target = source * np.array([0.5, 1], np.float32) + np.float32([100, -20])
  result = find(source, target, threshold=1)
  expected = [[0.5, 0, 100], [0, 1, -20]]
  np.testing.assert_allclose(result.transform[:2], expected, atol=1e-3)


def test_masked_and_infinite_rows_spread_nowhere():
  source, target, _, follows = make_pair(1, inliers=40, outliers=10)
  source, target, mask = pad([(source, target)], 100, fill=np.nan)
  result = run_one(
    jax.random.key(0), source[0], target[0], mask[0], threshold=2.5
  )
  assert result.num_inliers >= 39
  assert np.all(np.isfinite(result.transform))
  assert np.all(np.isinf(result.residuals[50:]))
  assert not np.any(result.inliers[50:])

  # A row that is not finite is as good as masked.
  row = int(np.argmax(follows))
  for bad in (np.nan, np.inf, -np.inf):
    spoiled, mask_too = source[0].copy(), mask[0].copy()
    spoiled[row, 1] = bad
    mask_too[row] = False
    expected = run_one(
      jax.random.key(0), source[0], target[0], mask_too, threshold=2.5
    )
    assert_same_bits(
      run_one(jax.random.key(0), spoiled, target[0], mask[0], threshold=2.5),
      expected,
    )


def test_wild_coordinates_harm_nobody_else():
  source, target, true, follows = make_pair(2, inliers=60, outliers=40)
  outliers = np.flatnonzero(~follows)
  source[outliers[0]] = 3e38
  target[outliers[1]] = -3e38
  source[outliers[2]] = 1e20
  source[outliers[3]], target[outliers[3]] = 1e6, -1e6
  result = find(source, target, threshold=2.5)
  assert corner_error(result.transform, true) < 1.5
  assert np.mean(result.inliers[follows]) > 0.97


def test_padding_and_company_and_place_change_no_bit():
  sizes = (9, 20, 40, 64, 65, 130, 200)
  pairs = [make_pair(n, inliers=n // 2, outliers=n - n // 2) for n in sizes]
  pairs = [pair[:2] for pair in pairs]
  seeds = np.arange(1, 8, dtype=np.uint32) * 1_000_003
  expected = jax.device_get(
    verify_pairs(seeds, *pad(pairs, 200), threshold=3.0)
  )
  assert np.all(expected.num_inliers > 3)

  def check(result, i, slot, rows):
    assert_same_bits(
      RansacResult(
        transform=result.transform[slot],
        inliers=result.inliers[slot][rows],
        num_inliers=result.num_inliers[slot],
        residuals=result.residuals[slot][rows],
      ),
      RansacResult(
        transform=expected.transform[i],
        inliers=expected.inliers[i, : sizes[i]],
        num_inliers=expected.num_inliers[i],
        residuals=expected.residuals[i, : sizes[i]],
      ),
    )

  # More padding, and another order.
  backwards = pad(pairs[::-1], 333)
  result = jax.device_get(verify_pairs(seeds[::-1], *backwards, threshold=3.0))
  for i, n in enumerate(sizes):
    check(result, i, 6 - i, np.arange(n))

  # One in a batch of empty places, scattered among poison.
  rows = np.sort(np.random.default_rng(0).permutation(512)[: sizes[5]])
  lonely = pad([pairs[5]], 512, batch=3, slots=[1], fill=np.nan, rows=rows)
  result = jax.device_get(
    verify_pairs(np.full(3, seeds[5]), *lonely, threshold=3.0)
  )
  check(result, 5, 1, rows)
  assert result.num_inliers[0] == result.num_inliers[2] == 0


def test_verify_does_not_depend_on_the_company():
  sizes = (0, 1, 3, 4, 30, 64, 65, 200)
  pairs = [
    make_pair(seed, inliers=n - n // 3, outliers=n // 3)[:2]
    for seed, n in enumerate(sizes * 5)
  ]
  results = verify(pairs, threshold=3.0)
  for (source, _), result in zip(pairs, results, strict=True):
    assert result.inliers.shape == result.residuals.shape == (len(source),)
  for i in (3, 5, 7, 15):
    [alone] = verify([pairs[i]], threshold=3.0)
    assert_same_bits(alone, results[i])
  for result, backwards in zip(
    results, reversed(verify(pairs[::-1], threshold=3.0)), strict=True
  ):
    assert_same_bits(backwards, result)
  assert verify([], threshold=3.0) == []


def test_the_order_of_correspondences_does_not_matter_in_clear_cases():
  source, target, _, _ = make_pair(3, inliers=60, outliers=60)
  expected = find(source, target, threshold=3.0)
  for seed in range(4):
    order = np.random.default_rng(seed).permutation(120)
    result = find(source[order], target[order], threshold=3.0)
    np.testing.assert_array_equal(result.inliers, expected.inliers[order])


def test_other_seeds_draw_other_samples():
  # Noise alone: what is found depends on what was drawn.
  source, target, _, _ = make_pair(4, inliers=0, outliers=150)
  found = {
    find(source, target, threshold=5.0, seed=seed).transform.tobytes()
    for seed in range(4)
  }
  assert len(found) == 4


@pytest.mark.parametrize("n", range(4))
def test_three_or_fewer_correspondences_have_no_inliers(n):
  source = np.float32([[0, 0], [100, 0], [0, 100]])[:n]
  result = find(source, source, threshold=5.0)
  assert_nothing_found(result)


def test_four_correspondences_can_all_be_inliers():
  source = np.float32([[0, 0], [100, 0], [0, 100], [90, 110]])
  result = find(source, source + np.float32(7), threshold=1.0)
  assert result.num_inliers == 4
  np.testing.assert_allclose(
    result.transform[:2], [[1, 0, 7], [0, 1, 7]], atol=1e-4
  )


def test_degenerate_correspondences_are_harmless():
  same = np.full((50, 2), 77, np.float32)
  line = np.linspace(0, 400, 50, dtype=np.float32)[:, None] * np.float32([1, 2])
  anywhere = make_pair(5, inliers=0, outliers=50)[0]
  for source, target in [
    (same, same),
    (same, anywhere),
    (line, line),
    (line, anywhere),
  ]:
    result = find(source, target, threshold=5.0)
    assert_nothing_found(result)


def test_a_collapse_does_not_win():
  source, target, true, follows = make_pair(6, inliers=30, outliers=120)
  # Most outliers share one target, or nearly.
  rng = np.random.default_rng(6)
  outliers = np.flatnonzero(~follows)[:100]
  target[outliers] = np.float32([200, 300]) + rng.normal(0, 2, (100, 2))
  result = find(source, target, threshold=5.0)
  assert corner_error(result.transform, true) < 3
  assert result.num_inliers < 60
  # Unbounded it does win: that is what the bound is for.
  result = find(source, target, threshold=5.0, min_span=0.0, max_stretch=np.inf)
  assert result.num_inliers > 60


def test_mirror_images_and_extreme_stretches_are_refused_unless_allowed():
  source = make_pair(7, inliers=0, outliers=80)[0]
  mirrored = source * np.float32([1, -1])
  refused = find(source, mirrored, threshold=2.0)
  assert refused.num_inliers < 20
  allowed = find(source, mirrored, threshold=2.0, mirrored=True)
  assert allowed.num_inliers == 80

  stretched = source * np.float32([1, 6])
  refused = find(source, stretched, threshold=2.0)
  assert refused.num_inliers < 20
  allowed = find(source, stretched, threshold=2.0, max_stretch=7.0)
  assert allowed.num_inliers == 80


def test_a_mapped_search_agrees_with_one_at_a_time():
  pairs = [make_pair(s, inliers=40, outliers=40)[:2] for s in range(3)]
  keys = jax.random.split(jax.random.key(0), 3)
  source, target, mask = pad(pairs, 100)
  # Nothing here leans on promotion, of ranks (conftest.py) or of types.
  with jax.numpy_dtype_promotion("strict"):
    mapped = jax.jit(jax.vmap(lambda *pair: ransac(*pair, threshold=3.0)))(
      keys, source, target, mask
    )
  for i in range(3):
    alone = run_one(keys[i], source[i], target[i], mask[i], threshold=3.0)
    np.testing.assert_array_equal(mapped.inliers[i], alone.inliers)
    np.testing.assert_allclose(mapped.transform[i], alone.transform, atol=1e-3)


def test_more_hypotheses_find_more():
  pairs = [make_pair(s, inliers=12, outliers=188)[:2] for s in range(20)]
  few, many = (
    [
      int(result.num_inliers)
      for result in verify(
        pairs, **{**DEFAULTS, "threshold": 2.5, "num_hypotheses": number}
      )
    ]
    for number in (512, 4096)
  )
  assert np.mean(many) > np.mean(few) + 1


def test_wrong_arguments_are_refused():
  with pytest.raises(ValueError, match=r"\[n, 2\]"):
    verify([(np.zeros((5, 2)), np.zeros((4, 2)))], threshold=1.0)
  with pytest.raises(ValueError, match=r"\[n, 2\]"):
    verify([(np.zeros((5, 3)), np.zeros((5, 3)))], threshold=1.0)
  for threshold in (0.0, -1.0, np.nan):
    with pytest.raises(ValueError, match="threshold"):
      verify([], threshold=threshold)


def test_another_process_gets_the_same_bits():
  rng = np.random.default_rng(0)
  source, target = rng.uniform(0, 500, (2, 60, 2)).astype(np.float32)
  result = verify([(source, target)], threshold=9.0)[0]
  here = hashlib.sha256(
    result.transform.tobytes() + result.residuals.tobytes()
  ).hexdigest()
  program = """
import hashlib
import numpy as np
from delf_jax.geometry.ransac import verify
rng = np.random.default_rng(0)
source, target = rng.uniform(0, 500, (2, 60, 2)).astype(np.float32)
result = verify([(source, target)], threshold=9.0)[0]
data = result.transform.tobytes() + result.residuals.tobytes()
print(hashlib.sha256(data).hexdigest())
"""
  # This process has two virtual devices, the other has one.
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  there = subprocess.run(
    [sys.executable, "-c", program],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert there.stdout.strip() == here


def make_model_pair(model, seed, *, inliers, outliers, noise=0.5):
  """As `make_pair`, of any model, with the sizes of features.

  Returns:
    a `Pair` with scales, the transform [3, 3] and who follows it.
  """
  rng = np.random.default_rng(seed)
  growth = np.exp2(rng.uniform(-0.5, 0.5))
  angle = 0.0 if model == "translation_scale" else rng.uniform(-0.5, 0.5)
  true = np.eye(3)
  true[:2, :2] = growth * np.array(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )
  if model in ("affine", "homography"):
    true[:2, :2] @= np.diag([1.2, 0.9])
  if model == "homography":
    true[2, :2] = rng.uniform(-4e-4, 4e-4, 2)
  centre = np.array([HEIGHT, WIDTH, 2]) / 2
  landed = true @ centre
  true[:2] -= np.outer(landed[:2] / landed[2] - centre[:2], true[2])
  n = inliers + outliers
  source = rng.uniform(0, 1, (n, 2)) * [HEIGHT, WIDTH]
  target = rng.uniform(0, 1, (n, 2)) * [HEIGHT, WIDTH]
  source_scales = np.exp2(rng.integers(-3, 4, n) / 2)
  target_scales = np.exp2(rng.integers(-3, 4, n) / 2)
  follows = rng.permutation(n) < inliers
  target[follows] = apply(true, source[follows])
  target[follows] += rng.normal(0, noise, (inliers, 2))
  target_scales[follows] = growth * source_scales[follows]
  pair = Pair(source, target, source_scales, target_scales)
  pair = Pair(*(np.float32(values) for values in pair[:4]))
  return pair, true, follows


def apply(transform, points):
  mapped = np.column_stack([points, np.ones(len(points))]) @ transform.T
  return mapped[:, :2] / mapped[:, 2:]


def projective_error(found, true):
  """`corner_error` of [3, 3]."""
  missed = apply(np.asarray(found, np.float64), CORNERS) - apply(true, CORNERS)
  return np.max(np.linalg.norm(missed, axis=1))


@pytest.mark.parametrize(
  "model", ["translation_scale", "similarity", "affine", "homography"]
)
def test_every_model_is_found_and_found_backwards(model):
  options = {"threshold": 3.0, "model": model, "error": "symmetric"}
  made = [
    make_model_pair(model, seed, inliers=60, outliers=60) for seed in range(24)
  ]
  pairs = [pair for pair, _, _ in made]
  swapped = [Pair(*(pair[i] for i in (1, 0, 3, 2))) for pair in pairs]
  shift = np.float32([64, -128])
  moved = [pair._replace(source=pair.source + shift) for pair in pairs]
  results = verify(pairs, **options)
  for result, back, there, (_, true, follows) in zip(
    results,
    verify(swapped, **options),
    verify(moved, **options),
    made,
    strict=True,
  ):
    assert projective_error(result.transform, true) < 3
    assert np.mean(result.inliers[follows]) > 0.97
    assert np.mean(result.inliers[~follows]) < 0.04
    assert result.num_inliers == np.sum(result.inliers)
    if model != "homography":
      np.testing.assert_array_equal(result.transform[2], [0, 0, 1])
    # Query against index image: the inverse, and the same inliers, give or
    # take those at the threshold.
    assert projective_error(back.transform, np.linalg.inv(true)) < 5
    assert np.sum(back.inliers != result.inliers) <= 2
    # A query cut out elsewhere.
    unmoved = np.array(there.transform, np.float64) @ [
      [1, 0, shift[0]],
      [0, 1, shift[1]],
      [0, 0, 1],
    ]
    assert projective_error(unmoved, true) < 3
    assert np.sum(there.inliers != result.inliers) <= 2


@pytest.mark.parametrize(
  "model", ["translation_scale", "similarity", "affine", "homography"]
)
def test_pixels_of_any_size_give_the_same_bits(model):
  pairs = [
    make_model_pair(model, seed, inliers=50, outliers=50)[0]
    for seed in range(24)
  ]
  source, target, mask = pad([pair[:2] for pair in pairs], 128, batch=32)
  sizes = {}
  if model == "translation_scale":
    sizes = {
      name: np.pad([pair[i] for pair in pairs], ((0, 8), (0, 28)))
      for i, name in [(2, "source_scales"), (3, "target_scales")]
    }
  seeds = np.arange(32, dtype=np.uint32)
  expected = verify_pairs(
    seeds, source, target, mask, threshold=3.0, model=model, **sizes
  )
  found = verify_pairs(
    seeds,
    source * 8,
    target * 4,
    mask,
    threshold=12.0,
    model=model,
    **{name: by * sizes[name] for name, by in zip(sizes, (8, 4), strict=False)},
  )
  assert np.all(expected.num_inliers[:24] > 40)
  scales = np.float32([[0.5, 0.5, 4], [0.5, 0.5, 4], [1, 1, 1]])
  if model == "homography":
    scales[2, :2] = 1 / 8
  np.testing.assert_array_equal(found.inliers, expected.inliers)
  np.testing.assert_array_equal(found.residuals, 4 * expected.residuals)
  np.testing.assert_array_equal(
    found.transform[:24], expected.transform[:24] * scales[None]
  )


def test_one_of_seven_is_enough_for_a_homography():
  made = [
    make_model_pair("homography", seed, inliers=18, outliers=108)
    for seed in range(32)
  ]
  results = verify(
    [pair for pair, _, _ in made], threshold=3.0, model="homography"
  )
  errors = [
    projective_error(result.transform, true)
    for result, (_, true, _) in zip(results, made, strict=True)
  ]
  assert np.mean(np.array(errors) < 8) > 0.9


@pytest.mark.parametrize("sampling", ["prosac", "scale", "exhaustive"])
def test_other_samples_find_the_same(sampling):
  made = [
    make_model_pair("similarity", seed, inliers=24, outliers=96)
    for seed in range(20)
  ]
  pairs = [pair for pair, _, _ in made]
  results = verify(pairs, threshold=3.0, model="similarity", sampling=sampling)
  good = [
    projective_error(result.transform, true) < 5
    and np.mean(result.inliers[follows]) > 0.9
    for result, (_, true, follows) in zip(results, made, strict=True)
  ]
  # A rotation by 20 degrees is beyond most hypotheses of translation and scale.
  assert np.mean(good) >= (0.7 if sampling == "exhaustive" else 1.0)


def test_exhaustive_samples_need_no_key():
  pair, _, _ = make_model_pair("similarity", 0, inliers=24, outliers=96)
  options = {"threshold": 3.0, "model": "similarity", "sampling": "exhaustive"}
  expected, other = (verify([pair], seed=s, **options)[0] for s in range(2))
  assert_same_bits(other, expected)


def test_the_best_rows_come_first_in_prosac():
  # Unlikely among 128 samples of any two rows.
  options = {"threshold": 3.0, "model": "similarity", "num_hypotheses": 128}
  found = {"uniform": 0, "prosac": 0}
  for seed in range(10):
    pair, true, follows = make_model_pair(
      "similarity", seed, inliers=9, outliers=240
    )
    order = np.argsort(~follows, stable=True)
    pair = Pair(*(values[order] for values in pair[:4]))
    for sampling in found:
      [result] = verify([pair], sampling=sampling, **options)
      found[sampling] += projective_error(result.transform, true) < 8
  assert found["prosac"] >= 8 > 5 > found["uniform"]


def test_weights_decide_between_two_transforms():
  source = make_pair(0, inliers=0, outliers=100)[0]
  target = source.copy()
  target[60:] += np.float32([30, 90])
  heavy = np.where(np.arange(100) < 60, 0.25, 1.0)
  options = {"threshold": 2.0, "model": "similarity"}
  for weights, count in [(np.ones(100), 60), (heavy, 40), (0.1 * heavy, 40)]:
    [result] = verify([Pair(source, target, weights=weights)], **options)
    assert result.num_inliers == count
  # Rows of no weight are no rows.
  none = np.where(np.arange(100) < 60, 0.0, np.nan)
  [result] = verify([Pair(source, target, weights=none)], **options)
  assert_nothing_found(result)


def test_without_local_optimisation_the_result_is_a_sample_s():
  pair, true, _ = make_model_pair("similarity", 3, inliers=60, outliers=60)
  options = {"threshold": 3.0, "model": "similarity"}
  [raw] = verify([pair], local_optimisation=False, **options)
  # A similarity meets its two correspondences, and no least squares do.
  assert np.sum(raw.residuals < 1e-3) >= 2
  [fitted] = verify([pair], **options)
  assert np.sum(fitted.residuals < 1e-3) < 2
  assert projective_error(fitted.transform, true) <= projective_error(
    raw.transform, true
  )


def test_msac_prefers_those_that_fit_best():
  # Some fit exactly, and more by less than the threshold.
  rng = np.random.default_rng(0)
  source = make_pair(0, inliers=0, outliers=115)[0]
  target = source + np.float32([200, 0])
  target[:70] = source[:70] + rng.normal(0, 1.8, (70, 2))
  options = {"threshold": 4.0, "model": "similarity"}
  [count] = verify([(source, target)], scoring="count", **options)
  [msac] = verify([(source, target)], scoring="msac", **options)
  assert np.mean(count.inliers[:70]) > 0.8
  np.testing.assert_array_equal(msac.inliers, np.arange(115) >= 70)


@pytest.mark.parametrize("model", ["similarity", "homography"])
def test_degenerate_correspondences_are_harmless_to_other_models(model):
  same = np.full((50, 2), 77, np.float32)
  anywhere = make_pair(5, inliers=0, outliers=50)[0]
  huge = anywhere * np.float32(1e15)
  few = [anywhere[:n] for n in range(3)]
  pairs = [(same, same), (same, anywhere), *((rows, rows) for rows in few)]
  for result in verify(pairs, threshold=5.0, model=model):
    assert_nothing_found(result)
  for result in verify(
    [(anywhere, same), (huge, huge[::-1]), (huge, anywhere[::-1])],
    threshold=5.0,
    model=model,
  ):
    assert np.all(np.isfinite(result.transform))
    assert result.num_inliers == np.sum(result.inliers) <= 4


def test_no_horizon_crosses_the_inliers_of_a_homography():
  rng = np.random.default_rng(0)
  source = rng.uniform(0, 1, (120, 2)) * [HEIGHT, WIDTH]
  # The horizon is at x = 400; what is behind it lands mirrored.
  true = np.array([[1, 0, 0], [0, 1, 0], [0, -1 / 400, 1]])
  source = source[np.abs(source[:, 1] - 400) > 40]
  target = apply(true, source)
  [result] = verify(
    [(source, target)],
    threshold=3.0,
    model="homography",
    max_stretch=1e3,
  )
  side = source[:, 1] < 400
  kept = result.inliers
  assert kept.sum() > 30
  assert not (kept[side].any() and kept[~side].any())


def test_numbers_do_not_compile_anew():
  source, target, mask = pad([make_pair(0, inliers=30, outliers=30)[:2]], 128)
  seeds = np.zeros(1, np.uint32)
  for i in range(3):
    verify_pairs(
      seeds,
      source,
      target,
      mask,
      threshold=2.0 + i,
      num_hypotheses=100 * i,
      confidence=0.9 + 0.01 * i,
      min_span=float(i),
      max_stretch=3.0 + i,
      mirrored=bool(i),
    )
    if i == 0:
      size = verify_pairs._cache_size()
  assert verify_pairs._cache_size() == size


def test_pairs_come_in_three_forms():
  pair, _, _ = make_model_pair("similarity", 3, inliers=30, outliers=30)
  named = dict(zip(Pair._fields[:4], pair[:4], strict=True))
  options = {"threshold": 3.0, "model": "similarity", "sampling": "scale"}
  results = verify([pair, tuple(pair[:4]), named], **options)
  for result in results[1:]:
    assert_same_bits(result, results[0])


def test_wrong_names_and_missing_scales_are_refused():
  pair = make_pair(0, inliers=30, outliers=30)[:2]
  for option in ("model", "error", "scoring", "sampling"):
    with pytest.raises(ValueError, match=f"{option} must be one of"):
      verify([pair], threshold=1.0, **{option: "best"})
  with pytest.raises(ValueError, match="source_scales"):
    verify([pair], threshold=1.0, sampling="scale")
  with pytest.raises(ValueError, match="source_scales"):
    verify([pair], threshold=1.0, model="translation_scale")
  scaled = Pair(*pair, source_scales=np.ones(60), target_scales=np.ones(60))
  with pytest.raises(ValueError, match="for all pairs or for none"):
    verify([pair, scaled], threshold=1.0)
  with pytest.raises(ValueError, match=r"weights \[60\]"):
    verify([Pair(*pair, weights=np.ones(59))], threshold=1.0)
