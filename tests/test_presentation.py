"""Matches in words and as sections of a report."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from delf_jax import html_report, presentation, retrieval
from delf_jax.data.photographs import Photograph
from delf_jax.features.local_features import LocalFeatures

SIZE = (120, 160)


def photograph(seed=0):
  generator = np.random.default_rng(seed)
  coarse = generator.integers(0, 255, (12, 16, 3), np.uint8)
  return Photograph(coarse.repeat(10, axis=0).repeat(10, axis=1), *SIZE)


@pytest.fixture(scope="module")
def match():
  generator = np.random.default_rng(0)
  descriptors = generator.normal(size=(60, 8))
  descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
  features = LocalFeatures(
    locations=generator.uniform((0, 0), SIZE, (60, 2)).astype(np.float32),
    scales=np.ones(60, np.float32),
    scores=np.ones(60, np.float32),
    descriptors=descriptors.astype(np.float32),
    mask=np.ones(60, bool),
  )
  found = retrieval.compare(features, SIZE, features, SIZE)
  return dataclasses.replace(found, path="other.jpg")


def titles(sections):
  return [(section.title, section.aside) for section in sections]


def test_a_match_is_drawn_with_its_probability(match):
  sections = presentation.query_sections(
    "a.jpg", photograph(), [match], "/nowhere", min_probability=0.1
  )
  assert titles(sections) == [
    ("Query a.jpg", "1 match"),
    ("1. other.jpg", "60 inliers"),
  ]
  picture, animation, facts = sections[1].blocks
  assert isinstance(picture, html_report.Picture) and picture.name == "match"
  assert isinstance(animation, html_report.Animation)
  said = dict(facts.items)
  assert said["Probability"] == f"{match.probability:.3f}"
  assert said["Transform"].startswith("scale 1.00, stretch 1.00")


def test_a_match_by_way_of_another_is_drawn_beside_that(match, tmp_path):
  way = np.full((60, 80, 3), 255, np.uint8)
  Image.fromarray(way).save(tmp_path / "way.png")
  reached = dataclasses.replace(
    match, path="far.jpg", probability=0.9, via=("first.jpg", "way.png")
  )
  words = presentation.describe_match(reached)
  assert "via way.png and 1 before it" in words
  near = dataclasses.replace(reached, via=("way.png",))
  assert "via way.png  " in presentation.describe_match(near)
  sections = presentation.query_sections(
    "a.jpg", photograph(), [reached], tmp_path
  )
  picture, _, facts = sections[1].blocks
  assert picture.alt.startswith("way.png beside far.jpg")
  assert dict(facts.items)["By way of"] == "first.jpg, way.png"
  # The white photograph is what is drawn on the left, not the query.
  left = picture.pixels[picture.pixels.shape[0] // 2, 40:60]
  direct = presentation.query_sections("a.jpg", photograph(), [match], tmp_path)
  other = direct[1].blocks[0].pixels
  assert not np.array_equal(left, other[other.shape[0] // 2, 40:60])


def test_the_best_candidate_is_shown_where_none_is_accepted(match):
  sections = presentation.query_sections(
    "a.jpg", photograph(), [match] * 3, "/nowhere", min_probability=1.1
  )
  assert titles(sections) == [
    ("Query a.jpg", "no match"),
    ("Best rejected candidate: other.jpg", "60 inliers"),
  ]
  assert isinstance(sections[0].blocks[1], html_report.Notice)
  nothing = presentation.query_sections("a.jpg", photograph(), [], "/nowhere")
  assert titles(nothing) == [("Query a.jpg", "no match")]


def test_no_more_are_drawn_than_asked_for(match):
  sections = presentation.query_sections(
    "a.jpg",
    photograph(),
    [match] * 3,
    "/nowhere",
    min_probability=0.1,
    most=2,
  )
  assert sections[0].aside == "3 matches, the best 2 shown"
  assert len(sections) == 3


def test_a_match_without_inliers_has_no_transform(match):
  none = dataclasses.replace(
    match, inlier_count=0, inliers=np.zeros(60, bool), probability=0.0
  )
  sections = presentation.query_sections(
    "a.jpg", photograph(), [none], "/nowhere"
  )
  assert sections[1].aside == "0 inliers" and len(sections[1].blocks) == 1
  assert presentation.describe_match(none) == "probability 0.000  inliers 0"


def test_a_homography_is_described_by_what_it_does_in_the_middle(match):
  truth = np.array([[1.1, 0.1, 5], [-0.2, 0.9, 8], [1e-3, 5e-4, 1]])
  found = presentation.affine_at_centre(
    dataclasses.replace(match, transform=truth)
  )

  def apply(point):
    mapped = truth @ np.append(point, 1.0)
    return mapped[:2] / mapped[2]

  centre = np.array(SIZE) / 2
  landed = found @ np.append(centre, 1.0)
  np.testing.assert_allclose(landed, apply(centre), rtol=1e-5)
  for axis in np.eye(2):
    slope = (apply(centre + 1e-4 * axis) - apply(centre - 1e-4 * axis)) / 2e-4
    np.testing.assert_allclose(found[:, :2] @ axis, slope, rtol=1e-4)
  affine = np.vstack([truth[:2], [0, 0, 1]])
  again = presentation.affine_at_centre(
    dataclasses.replace(match, transform=affine)
  )
  np.testing.assert_allclose(again, affine[:2], rtol=1e-4)
