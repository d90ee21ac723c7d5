"""Sources of pairs: which photographs, how often, in which groups."""

import pickle

import numpy as np
import pytest

from delf_jax.data import pair_sources
from delf_jax.errors import InputError


@pytest.fixture
def root(tmp_path):
  """Folders a (3 files), b (2) and deeper c/d (1), and a loose file."""
  folder = tmp_path / "photographs"
  for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "c/d/0", "loose"):
    path = folder / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
  return folder


@pytest.fixture
def names(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("a\nnot there\n")
  return str(path)


def listed(source):
  return [source[i] for i in range(len(source))]


def test_a_photograph_is_its_own_pair(root):
  source = pair_sources.open_pairs({"all": {"path": str(root)}})
  pairs = listed(pickle.loads(pickle.dumps(source)))
  assert [pair.first for pair in pairs] == [
    name.encode() for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "c/d/0")
  ] + [b"loose"]
  assert {pair.second for pair in pairs} == {None}
  assert {pair.group for pair in pairs} == {pair_sources.ALONE}
  assert pairs[0].homography is None and pairs[0].name == "a/0.jpg"


def test_groups_are_folders(root):
  source = pair_sources.open_pairs({"x": {"path": str(root), "grouped": True}})
  groups = [pair.group for pair in listed(source)]
  assert groups[:3] == groups[:1] * 3 and groups[3:5] == groups[3:4] * 2
  assert len(set(groups)) == 4 and min(groups) >= 0


def test_folders_of_one_name_are_one_group_in_every_source(root, tmp_path):
  # The pairs know the photographs from one folder further up.
  pair_sources.write_verified(
    tmp_path / "pairs.npz",
    paths=[f"photographs/{name}.jpg" for name in ("b/0", "b/1", "a/0", "a/1")],
    pairs=np.array([[0, 1], [2, 3]]),
    homographies=np.tile(np.eye(3), (2, 1, 1)),
    inliers=[np.zeros((1, 2))] * 2,
  )
  of_pairs = {
    "path": str(tmp_path),
    "verified": str(tmp_path / "pairs.npz"),
  }
  found = listed(
    pair_sources.open_pairs(
      {"x": {"path": str(root), "grouped": True}, "y": of_pairs}
    )
  )
  groups = {pair.name: pair.group for pair in found}
  assert groups["photographs/b/0.jpg"] == groups["b/0.jpg"]
  assert groups["photographs/a/0.jpg"] == groups["a/0.jpg"]
  assert len(set(groups.values())) == 4


def test_folders_below_a_place_are_of_its_group(root, tmp_path):
  deep = root / "a" / "night" / "0.jpg"
  deep.parent.mkdir()
  deep.write_bytes(b"deep")
  pair_sources.write_verified(
    tmp_path / "pairs.npz",
    paths=["a/night/0.jpg", "a/0.jpg"],
    pairs=np.array([[0, 1]]),
    homographies=np.eye(3)[None],
    inliers=[np.zeros((1, 2))],
  )
  of_pairs = {"path": str(root), "verified": str(tmp_path / "pairs.npz")}
  found = listed(
    pair_sources.open_pairs(
      {"x": {"path": str(root), "grouped": True}, "y": of_pairs}
    )
  )
  places = {p.group for p in found if p.name.startswith("a/")}
  assert len(places) == 1 and found[-1].name == "a/night/0.jpg"


def test_folders_are_left_out_at_any_depth(root, tmp_path):
  names = tmp_path / "deep.txt"
  names.write_text("d\nloose.jpg\n")
  options = {"path": str(root), "exclude": str(names)}
  found = listed(pair_sources.open_pairs({"x": options}))
  assert {pair.name for pair in found} == {
    *("a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "loose.jpg")
  }
  only = pair_sources.open_pairs({"x": {"path": str(root), "only": str(names)}})
  assert [pair.name for pair in listed(only)] == ["c/d/0.jpg"]


def test_sources_count_as_often_as_they_say(root, names):
  source = pair_sources.open_pairs(
    {
      "much": {"path": str(root), "repeat": 3, "only": names},
      "none": {"path": ""},
      "rest": {"path": str(root), "exclude": names},
    }
  )
  found = [pair.name for pair in listed(source)]
  assert found[:9] == ["a/0.jpg", "a/1.jpg", "a/2.jpg"] * 3
  assert found[9:] == ["b/0.jpg", "b/1.jpg", "c/d/0.jpg", "loose.jpg"]


def write(path):
  pair_sources.write_verified(
    path,
    paths=["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"],
    pairs=np.array([[0, 1], [2, 3], [1, 0]]),
    homographies=np.arange(27).reshape(3, 3, 3),
    inliers=[np.full((n, 2), n) for n in (2, 5, 1)],
  )


def test_verified_pairs_are_read_back(root, names, tmp_path):
  write(tmp_path / "pairs.npz")
  options = {"path": str(root), "verified": str(tmp_path / "pairs.npz")}
  found = listed(pair_sources.open_pairs({"x": options}))
  assert [(p.first, p.second) for p in found] == [
    (b"a/0", b"a/1"),
    (b"b/0", b"b/1"),
    (b"a/1", b"a/0"),
  ]
  assert found[0].group == found[2].group != found[1].group
  np.testing.assert_array_equal(found[1].inliers, np.full((5, 2), 5))
  np.testing.assert_array_equal(
    found[2].homography, np.arange(18, 27).reshape(3, 3)
  )
  left = pair_sources.open_pairs({"x": {**options, "exclude": names}})
  assert [pair.first for pair in listed(left)] == [b"b/0"]
  assert len(left[0].inliers) == 5


def test_what_is_unfit_is_refused(root, names, tmp_path):
  path = str(root)
  for sources, message in [
    ({"x": {"path": path, "weight": 2}}, "'x' .*has no option 'weight'"),
    ({"x": {}}, "'x' .*needs a path"),
    ({"x": {"path": path, "repeat": 0}}, "counts 0 times"),
    ({"x": {"path": ""}}, r"none of the sources .*\(x\) has a path"),
    ({}, "none of the sources"),
    ({"x": {"path": f"{path}/b", "only": names}}, "leaves no photograph"),
    ({"x": {"path": path, "verified": "nowhere.npz"}}, "cannot be read as"),
    ({"x": {"path": path, "verified": names}}, "cannot be read as"),
  ]:
    with pytest.raises(InputError, match=message):
      pair_sources.open_pairs(sources)
  write(tmp_path / "pairs.npz")
  (tmp_path / "c.txt").write_text("c\n")
  with pytest.raises(InputError, match="no verified pair is left"):
    pair_sources.read_verified(
      path, str(tmp_path / "pairs.npz"), only=str(tmp_path / "c.txt")
    )
