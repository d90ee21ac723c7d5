import json

import cv2
import numpy as np
import pytest

from delf_jax.data import synthetic, synthetic_folder
from delf_jax.errors import InputError

SMALL = {
  "seed": 4,
  "num_landmarks": 2,
  "views": 4,
  "queries": 2,
  "clutter": 3,
  "distractors": 4,
  "first_landmark": 30,
  "first_view": 100,
  "first_clutter": 7,
  "size": (96, 72),
}


def contents(root):
  return {
    path.relative_to(root).as_posix(): path.read_bytes()
    for path in root.rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("synthetic") / "new" / "folder"
  assert synthetic_folder.write_folder(root, **SMALL) == (
    root / "ground_truth.json"
  )
  return root


def test_the_files_are_the_promised_ones(root):
  photographs = [
    f"photos/landmark_{landmark}/view_{view}.jpg"
    for landmark in (30, 31)
    for view in range(100, 104)
  ]
  photographs += [f"photos/clutter/clutter_{i:03d}.jpg" for i in (7, 8, 9)]
  photographs += [f"distractors/clutter_{i:03d}.jpg" for i in (10, 11)]
  photographs += [f"distractors/landmark_{i}.jpg" for i in (32, 33)]
  assert sorted(contents(root)) == sorted([*photographs, "ground_truth.json"])
  for path in photographs:
    assert sorted(cv2.imread(str(root / path)).shape) == [3, 72, 96]


def test_the_photographs_are_the_numbered_views(root):
  view = synthetic.render_view(4, 31, 102, size=(96, 72))
  expected = synthetic.encode_jpeg(view.pixels, quality=92)
  path = root / "photos/landmark_31/view_102.jpg"
  assert path.read_bytes() == expected


def test_ground_truth_is_consistent(root):
  truth = json.loads((root / "ground_truth.json").read_text())
  assert set(truth) == {"note", "queries"}
  assert [entry["query"] for entry in truth["queries"]] == [
    f"landmark_{landmark}/view_{view}.jpg"
    for landmark in (30, 31)
    for view in (100, 101)
  ]
  for entry in truth["queries"]:
    assert set(entry) == {"query", "landmark", "easy", "hard", "junk"}
    others = entry["easy"] + entry["hard"] + entry["junk"]
    assert entry["query"] not in others
    # Every other view of the landmark is there once, and nothing else.
    assert sorted([*others, entry["query"]]) == [
      f"{entry['landmark']}/view_{view}.jpg" for view in range(100, 104)
    ]
    for path in (entry["query"], *others):
      assert (root / "photos" / path).is_file()


def test_a_rerun_makes_the_same_bytes_and_mends_damage(root):
  before = contents(root)
  (root / "photos/clutter/clutter_008.jpg").unlink()
  (root / "photos/landmark_30/view_100.jpg").write_bytes(b"cut")
  (root / "photos/landmark_30/view_101.jpg.partial").write_bytes(b"killed")
  synthetic_folder.write_folder(root, **SMALL)
  assert contents(root) == before


def test_photographs_of_something_else_are_refused(root):
  before = contents(root)
  with pytest.raises(InputError, match="view_103.jpg is not one of") as caught:
    synthetic_folder.write_folder(root, **{**SMALL, "views": 3})
  assert "\n" not in str(caught.value)
  assert contents(root) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(InputError, match="cannot write .*file/.*Not a directory"):
    synthetic_folder.write_folder(tmp_path / "file", **SMALL)


def test_more_queries_than_views_is_a_mistake(tmp_path):
  with pytest.raises(ValueError, match="5 queries of 4 views"):
    synthetic_folder.write_folder(tmp_path, **{**SMALL, "queries": 5})


PICTURE = np.full((100, 120, 4), 255, np.uint8)


def view_of(matrix, mask=None):
  if mask is None:
    mask = np.ones((400, 400), bool)
  return synthetic.View(np.empty(0), mask, np.array(matrix, np.float64))


def test_comparing_known_transforms():
  plain = view_of(np.eye(3))
  relation = synthetic_folder.compare(plain, plain, PICTURE)
  np.testing.assert_allclose(relation, (1, 1, 1))
  angle = 0.4
  turn = [
    [3 * np.cos(angle), -3 * np.sin(angle), 200],
    [3 * np.sin(angle), 3 * np.cos(angle), 5],
    [0, 0, 1],
  ]
  mask = np.ones((800, 800), bool)
  relation = synthetic_folder.compare(plain, view_of(turn, mask), PICTURE)
  np.testing.assert_allclose(relation, (1, 1, 3), rtol=1e-9)
  squeezed = view_of(np.diag([1, 0.25, 1]))
  for pair in ((plain, squeezed), (squeezed, plain)):
    relation = synthetic_folder.compare(*pair, PICTURE)
    np.testing.assert_allclose(relation, (1, 4, 2), rtol=1e-9)


def test_what_both_see_is_a_share_of_the_landmark():
  upper, left = np.zeros((2, 400, 400), bool)
  upper[:48] = True
  left[:, :60] = True
  relation = synthetic_folder.compare(
    view_of(np.eye(3), upper), view_of(np.eye(3), left), PICTURE
  )
  np.testing.assert_allclose(relation.share, 0.24, atol=0.01)
  lower = view_of(np.eye(3), ~upper)
  relation = synthetic_folder.compare(view_of(np.eye(3), upper), lower, PICTURE)
  assert relation == (0, np.inf, np.inf)
