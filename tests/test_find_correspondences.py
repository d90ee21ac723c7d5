"""Planes that pairs of photographs share, from made-up features."""

import dataclasses

import numpy as np
import pytest

from delf_jax import find_correspondences
from delf_jax.data import pair_sources, views
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.features.local_features import LocalFeatures

FIRST = np.array([[1.1, 0.1, -20], [-0.05, 0.9, 30], [1e-4, -1e-4, 1]])
SECOND = np.array([[0.8, 0, 90], [0, 0.8, 40], [0, 0, 1]])


def features_of(locations, descriptors):
  n = len(locations)
  return LocalFeatures(
    locations=locations.astype(np.float32),
    scales=np.ones(n, np.float32),
    scores=np.ones(n, np.float32),
    descriptors=descriptors.astype(np.float32),
    mask=np.ones(n, bool),
  )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Photograph 1 shows two planes of photograph 0; 2 shows nothing of them."""
  generator = np.random.default_rng(0)
  points = generator.uniform(50, 400, (90, 2))
  points[:60, 1] *= 0.5
  there = np.concatenate(
    [views.project(FIRST, points[:60]), views.project(SECOND, points[60:])]
  )
  codes = generator.normal(size=(2, 90, 32))
  codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
  path = tmp_path_factory.mktemp("planes") / "store"
  with store.open_writer(path, settings={}, dtype="float32") as writer:
    for name, locations, descriptors in [
      ("x/0.jpg", points, codes[0]),
      ("x/1.jpg", there + generator.normal(0, 0.2, (90, 2)), codes[0]),
      ("y/2.jpg", points, codes[1]),
    ]:
      features = features_of(locations, descriptors)
      writer.add(name, height=480, width=640, features=features)
    writer.finish()
  return points, store.open_store(path)


def test_planes_are_found_one_after_the_other(made):
  points, features = made
  pairs, homographies, inliers = find_correspondences.planes(
    features, [(0, 2), (0, 1)]
  )
  assert pairs == [(0, 1), (0, 1)]
  for found, transform, near, part in zip(
    homographies,
    (FIRST, SECOND),
    inliers,
    (points[:60], points[60:]),
    strict=True,
  ):
    assert len(near) >= 0.9 * len(part)
    apart = views.project(found, part) - views.project(transform, part)
    assert np.abs(apart).max() < 2


def test_pairs_are_those_of_the_store(made, tmp_path):
  _, features = made
  numbers = {name: i for i, name in enumerate(features.paths)}
  path = tmp_path / "pairs.csv"
  path.write_text(
    "path_a,path_b,inliers\n"
    "train/x/0.jpg,train/x/1.jpg,30\n"
    "train/x/0.jpg,eval/x/1.jpg,30\n"
    "train/x/0.jpg,train/z.jpg,30\n"
  )
  found = find_correspondences.read_pairs(str(path), numbers, prefix="train/")
  assert found == [(0, 1)]
  with pytest.raises(InputError, match="no pair of it is in the store"):
    find_correspondences.read_pairs(str(path), numbers)


def test_learned_features_must_agree_on_a_stiff_transform_first(made):
  points, features = made
  demands = find_correspondences.demands_of({"kind": "delf"})
  assert find_correspondences.demands_of({"kind": "rootsift"}) != demands
  pairs, homographies, _ = find_correspondences.planes(
    features, [(0, 1), (0, 2)], demands
  )
  assert set(pairs) == {(0, 1)}
  apart = views.project(homographies[0], points[:60]) - views.project(
    FIRST, points[:60]
  )
  assert np.median(np.abs(apart)) < 2
  never = dataclasses.replace(demands, least_affine=91)
  assert find_correspondences.planes(features, [(0, 1)], never) == ([], [], [])


def test_pairs_of_folders():
  paths = ["x/0.jpg", "y/1.jpg", "x/2.jpg", "z/3.jpg", "x/4.jpg", "y/x/5.jpg"]
  every = [(0, 2), (0, 4), (2, 4)]
  assert find_correspondences.pairs_of_folders(paths, most=9) == every
  drawn = [
    find_correspondences.pairs_of_folders(paths, most=2, seed=seed)
    for seed in range(9)
  ]
  assert all(len(pairs) == 2 and set(pairs) < set(every) for pairs in drawn)
  assert len({tuple(pairs) for pairs in drawn}) > 1
  with pytest.raises(InputError, match="no two photographs"):
    find_correspondences.pairs_of_folders(["x/0.jpg", "y/1.jpg"], most=9)


def test_what_is_found_can_be_trained_on(made, tmp_path):
  _, features = made
  pairs, homographies, inliers = find_correspondences.planes(features, [(0, 1)])
  pair_sources.write_verified(
    tmp_path / "pairs.npz",
    paths=features.paths,
    pairs=np.array(pairs),
    homographies=np.array(homographies),
    inliers=inliers,
  )
  source = pair_sources.read_verified(".", str(tmp_path / "pairs.npz"))
  assert len(source) == 2
  np.testing.assert_array_equal(source[1].homography, homographies[1])
