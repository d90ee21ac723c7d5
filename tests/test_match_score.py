"""The evidence of made-up matches, and the probability it adds up to."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from delf_jax import match_score, retrieval
from delf_jax.errors import InputError
from delf_jax.features import handcrafted

TURN = np.array([[0.9, -0.3, 60.0], [0.3, 0.9, -20.0], [0.0, 0.0, 1.0]])


@dataclasses.dataclass(frozen=True)
class Verified:
  """What the evidence reads."""

  transform: np.ndarray
  query_locations: np.ndarray
  image_locations: np.ndarray
  distances: np.ndarray
  farthest: np.ndarray
  scale_ratios: np.ndarray
  inliers: np.ndarray
  residuals: np.ndarray
  reach: float = 20.0
  query_size: tuple[int, int] = (600, 800)
  image_size: tuple[int, int] = (600, 800)
  query_features: int = 500


def make_match(inliers=30, outliers=40, noise=4.0, seed=0, within=(600, 800)):
  """Matches under TURN, and others that miss it."""
  generator = np.random.default_rng(seed)
  query = generator.uniform((0, 0), within, (inliers + outliers, 2))
  mapped = query @ TURN[:2, :2].T + TURN[:2, 2]
  moved = generator.normal(scale=noise, size=mapped.shape)
  far = generator.uniform(40, 300, size=mapped.shape)
  moved[inliers:] = far[inliers:] * generator.choice([-1, 1], (outliers, 2))
  residuals = np.linalg.norm(moved, axis=1)
  distances = generator.uniform(0.75, 0.99, inliers + outliers)
  distances[:inliers] -= 0.1
  ratios = generator.normal(scale=0.8, size=inliers + outliers)
  ratios[:inliers] = 0.5 * np.log(0.9) + 0.2 * ratios[:inliers]
  return Verified(
    transform=TURN,
    query_locations=query,
    image_locations=mapped + moved,
    distances=distances,
    farthest=np.ones(inliers + outliers),
    scale_ratios=np.exp(ratios),
    inliers=residuals <= 20.0,
    residuals=residuals,
  )


def named(match):
  values = match_score.evidence(match)
  assert values.shape == (len(match_score.NAMES),)
  assert np.isfinite(values).all()
  return dict(zip(match_score.NAMES, values, strict=True))


def probability(match):
  return float(match_score.probability(match_score.evidence(match)))


def rows_of(match, rows):
  fields = (
    "query_locations",
    "image_locations",
    "distances",
    "farthest",
    "scale_ratios",
    "inliers",
    "residuals",
  )
  return dataclasses.replace(
    match, **{name: getattr(match, name)[rows] for name in fields}
  )


def test_evidence_against_plain_loops():
  match = make_match(inliers=12, outliers=9)
  found = named(match)
  n, m = int(match.inliers.sum()), len(match.inliers)
  assert (n, m) == (12, 21)
  assert found["inliers"] == pytest.approx(np.log(1 + n))
  assert found["inlier_share"] == pytest.approx(np.log(1 + 1000 * n / 500))
  nearness = sum(1 - d**2 for d in match.distances[match.inliers])
  assert found["nearness"] == pytest.approx(np.log(1 + nearness))
  assert found["matches"] == pytest.approx(np.log(1 + m))
  outliers = 1 - match.distances[~match.inliers] ** 2
  mean = (outliers.sum() + 5 * 0.1) / (len(outliers) + 5)
  contrast = max(-np.log(mean) - 1, 0)
  assert found["likeness"] == pytest.approx(-contrast)
  assert found["contrast"] == pytest.approx(contrast * np.log(1 + nearness))
  hits = 0
  for y, x in match.query_locations:
    mapped = TURN @ [y, x, 1]
    for v, u in match.image_locations:
      hits += np.hypot(mapped[0] - v, mapped[1] - u) <= 20.0
  assert found["chance"] == pytest.approx(np.log(1 + hits / m))
  squared = np.mean((match.residuals[match.inliers] / 20.0) ** 2)
  assert found["tightness"] == pytest.approx(
    np.sqrt((0.5 - squared) * np.sqrt(12 * n))
  )
  missed = np.abs(np.log(match.scale_ratios[:n] / np.sqrt(0.9))).mean()
  assert 0 < missed < 0.4
  assert found["scale_agreement"] == pytest.approx(
    np.sqrt((0.4 - missed) * np.sqrt(n))
  )
  assert found["turn"] == pytest.approx(np.arctan2(0.3, 0.9))
  assert found["stretch"] == pytest.approx(0.0, abs=1e-9)
  cells = [
    {(y // 50, x // 50) for y, x in places[match.inliers]}
    for places in (match.query_locations, match.image_locations)
  ]
  assert found["cells"] == pytest.approx(np.log(1 + min(map(len, cells))))
  cosines = [1 - d**2 / 2 for d in match.distances[match.inliers]]
  assert found["similarity"] == pytest.approx(
    np.log(1 + sum(max(cosine, 0) ** 4 for cosine in cosines))
  )


def test_opposite_descriptors_are_not_similar():
  np.testing.assert_allclose(
    match_score.similarity(np.array([0.0, 1.0, np.sqrt(2), 1.9, 2.0])),
    [1.0, 1 / 16, 0.0, 0.0, 0.0],
    atol=1e-12,
  )


def test_the_order_of_the_matches_changes_nothing():
  match = make_match()
  turned = rows_of(match, np.random.default_rng(1).permutation(70))
  np.testing.assert_allclose(
    match_score.evidence(turned), match_score.evidence(match), rtol=1e-12
  )


@pytest.mark.parametrize("factor", [0.25, 5.0])
def test_the_size_of_the_photographs_changes_nothing(factor):
  match = make_match()
  transform = match.transform.copy()
  transform[:2, 2] *= factor
  larger = dataclasses.replace(
    match,
    transform=transform,
    query_locations=match.query_locations * factor,
    image_locations=match.image_locations * factor,
    residuals=match.residuals * factor,
    reach=match.reach * factor,
    query_size=tuple(side * factor for side in match.query_size),
    image_size=tuple(side * factor for side in match.image_size),
  )
  np.testing.assert_allclose(
    match_score.evidence(larger), match_score.evidence(match), rtol=1e-6
  )


def test_the_unit_of_distances_changes_similarity_alone():
  match = make_match()
  other = dataclasses.replace(
    match, distances=match.distances * 3, farthest=match.farthest * 3
  )
  alike, expected = named(other), named(match)
  assert alike.pop("similarity") < expected.pop("similarity")
  assert alike == pytest.approx(expected, rel=1e-12)


def test_equal_scales_say_nothing():
  match = make_match()
  ones = dataclasses.replace(match, scale_ratios=np.ones(70))
  assert named(ones)["scale_agreement"] == 0
  other = dataclasses.replace(match, scale_ratios=match.scale_ratios * 3)
  assert named(other)["scale_agreement"] < 0
  for odd in (0.0, np.inf, np.nan):
    none = dataclasses.replace(
      match, scale_ratios=np.r_[odd, match.scale_ratios[1:]]
    )
    assert named(none)["scale_agreement"] == 0


def test_a_homography_grows_as_its_derivative_says():
  bent = np.array([[1.0, 0.1, 5], [-0.1, 1.2, 3], [5e-4, 3e-4, 1]])
  match = make_match()

  def warp(points):
    mapped = np.column_stack([points, np.ones(len(points))]) @ bent.T
    return mapped[:, :2] / mapped[:, 2:]

  at, step = match.query_locations, 1e-3
  down, across = (
    (warp(at + move) - warp(at - move)) / (2 * step)
    for move in (np.array([step, 0]), np.array([0, step]))
  )
  grown = np.sqrt(np.abs(down[:, 0] * across[:, 1] - down[:, 1] * across[:, 0]))
  exact = dataclasses.replace(match, transform=bent, scale_ratios=grown)
  assert named(exact)["scale_agreement"] == pytest.approx(
    np.sqrt(0.4 * np.sqrt(30)), rel=1e-4
  )
  scaled = dataclasses.replace(exact, transform=bent * 2)
  np.testing.assert_allclose(
    match_score.evidence(scaled), match_score.evidence(exact), rtol=1e-9
  )


def test_matches_that_share_a_place_count_once():
  match = make_match()
  again = rows_of(match, np.concatenate([np.arange(70), np.arange(30)]))
  worse = np.concatenate([match.distances, match.distances[:30] + 0.05])
  again = dataclasses.replace(again, distances=worse)
  np.testing.assert_allclose(
    match_score.evidence(again), match_score.evidence(match), rtol=1e-12
  )


def test_without_inliers_the_probability_is_zero():
  match = rows_of(make_match(), np.arange(30, 70))
  assert not match.inliers.any()
  assert probability(match) == 0.0
  assert probability(rows_of(match, np.zeros(0, np.int64))) == 0.0


def test_more_inliers_make_a_match_more_probable():
  match = make_match(inliers=60)
  kept = [probability(rows_of(match, np.r_[0:n, 60:100])) for n in range(4, 61)]
  assert kept[0] < 0.5 < kept[-1]
  # An inlier that misses by more than the others takes a little back.
  assert np.diff(kept).min() > -0.1 and (np.diff(kept[::8]) > 0).all()


def test_what_makes_a_match_more_probable():
  match = make_match(inliers=10)
  halved = np.where(match.inliers, 0.5, 1.0) * match.distances
  nearer = dataclasses.replace(match, distances=halved)
  assert probability(nearer) >= probability(match)
  fewer_features = dataclasses.replace(match, query_features=100)
  assert probability(fewer_features) >= probability(match)
  crowded = make_match(inliers=10, within=(40, 40))
  assert probability(crowded) < probability(match)


def test_a_homography_that_folds_the_plane_is_no_error():
  transform = np.array([[1.0, 0, 0], [0, 1.0, 0], [-0.002, 0, 1.0]])
  match = dataclasses.replace(make_match(), transform=transform)
  assert np.isfinite(match_score.evidence(match)).all()


def test_probability_is_logistic_and_independent_of_the_batch():
  calibration = match_score.Calibration(
    mean=(1.0,) * len(match_score.NAMES),
    scale=(2.0,) * len(match_score.NAMES),
    weights=(0.5, *(0.0,) * (len(match_score.NAMES) - 1)),
    bias=-1.0,
  )
  evidence = np.zeros((2, 3, len(match_score.NAMES)))
  evidence[..., 0] = [[1, 5, 9], [1e6, 0, 2]]
  found = match_score.probability(evidence, calibration)
  expected = 1 / (1 + np.exp(1 - 0.25 * (evidence[..., 0] - 1)))
  expected[1, 1] = 0
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  for place in np.ndindex(2, 3):
    assert match_score.probability(evidence[place], calibration) == found[place]
  with pytest.raises(ValueError, match="pieces of evidence"):
    match_score.probability(np.zeros(3))


@pytest.mark.parametrize("kind", ["rootsift", "sift", "delf", "imported", ""])
def test_what_is_shipped(kind):
  calibration = match_score.shipped(kind)
  assert calibration.provenance["stores"]
  high, low = (
    float(match_score.probability(match_score.evidence(match), calibration))
    for match in (
      make_match(inliers=100),
      make_match(inliers=4, outliers=100, noise=10.0),
    )
  )
  assert low < 0.5 and high > 0.95
  others = {match_score.SHIPPED.get(other) for other in ("sift", "delf", "")}
  assert len(others) == 3


def test_fewer_inliers_of_real_features_are_no_more_probable():
  generator = np.random.default_rng(0)
  scene = cv2.resize(
    generator.integers(0, 256, (60, 80, 3), np.uint8), (640, 480)
  )
  matrix = np.array([[0.9, 0.2, 10], [-0.2, 0.95, 120]])  # of (x, y)
  moved = cv2.warpAffine(scene, matrix, (640, 480))
  features = [
    handcrafted.extract(
      pixels, kind="rootsift", max_features=300, size=(480, 640)
    )
    for pixels in (scene, moved)
  ]
  match = retrieval.compare(features[0], (480, 640), features[1], (480, 640))
  inside = np.flatnonzero(match.inliers)
  assert len(inside) > 30
  dropped = generator.permutation(inside)
  found = [
    probability(rows_of(match, np.setdiff1d(np.arange(match.votes), gone)))
    for gone in (dropped[:n] for n in range(0, len(inside) + 1, 4))
  ]
  assert found[0] > 0.9 and probability(rows_of(match, ~match.inliers)) == 0
  assert np.diff(found).max() < 0.02


def test_a_calibration_is_named_by_its_numbers():
  calibration = match_score.shipped("rootsift")
  other = dataclasses.replace(calibration, bias=0.5)
  same = dataclasses.replace(calibration, provenance={})
  assert str(same) == str(calibration) != str(other)
  assert len(str(calibration)) < 40


def test_calibrations_are_written_and_read(tmp_path):
  path = tmp_path / "calibration.json"
  calibration = match_score.shipped()
  match_score.write_calibration(calibration, path)
  assert match_score.read_calibration(path) == calibration


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"format": "other"}, "no calibration"),
    ({"names": ["votes"]}, "fit it again"),
    ({"names": list(match_score.NAMES[::-1])}, "fit it again"),
    ({"names": None}, "fit it again"),
    ({"version": 99}, "fit it again"),
    ({"weights": [1.0]}, "damaged"),
    ({"bias": "much"}, "damaged"),
    ({"bias": float("nan")}, "damaged"),
    ({"scale": [0.0] * len(match_score.NAMES)}, "damaged"),
    ({"mean": None}, "damaged"),
  ],
)
def test_other_files_are_refused(tmp_path, change, message):
  path = tmp_path / "calibration.json"
  match_score.write_calibration(match_score.shipped(), path)
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(InputError, match=message):
    match_score.read_calibration(path)


def test_evidence_that_a_file_does_not_name_weighs_nothing(tmp_path):
  path = tmp_path / "calibration.json"
  match_score.write_calibration(match_score.shipped(), path)
  content = json.loads(path.read_text())
  content["names"] = ["inliers", "cells"]
  content.update(mean=[1.0, 2.0], scale=[3.0, 4.0], weights=[5.0, 6.0], bias=-7)
  path.write_text(json.dumps(content))
  evidence = match_score.evidence(make_match())
  by_name = dict(zip(match_score.NAMES, evidence, strict=True))
  log_odds = (by_name["inliers"] - 1) / 3 * 5 - 7
  log_odds += (by_name["cells"] - 2) / 4 * 6
  found = match_score.probability(evidence, match_score.read_calibration(path))
  assert found == pytest.approx(1 / (1 + np.exp(-log_odds)))


def test_files_that_are_none_are_refused(tmp_path):
  with pytest.raises(InputError, match="cannot be read"):
    match_score.read_calibration(tmp_path / "missing.json")
  (tmp_path / "text.json").write_text("no json")
  with pytest.raises(InputError, match="not JSON"):
    match_score.read_calibration(tmp_path / "text.json")
