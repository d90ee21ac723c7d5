import pickle

import cv2
import numpy as np
import pytest

from delf_jax.data import synthetic, synthetic_landmarks
from delf_jax.errors import InputError

TINY = {
  "seed": 5,
  "num_landmarks": 3,
  "train_views": 3,
  "validation_views": 1,
  "size": (72, 96),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def splits(data_dir):
  return synthetic_landmarks.open_synthetic(data_dir, **TINY)


def keys(source):
  return [(example["label"], example["view"]) for example in source]


def test_splits_hold_every_view_once(splits):
  assert sorted(splits) == ["train", "validation"]
  train = keys(splits["train"])
  assert sorted(train) == [(i, v) for i in range(3) for v in range(3)]
  assert train != sorted(train)
  assert sorted(keys(splits["validation"])) == [(i, 3) for i in range(3)]


def test_examples_are_the_rendered_views(splits):
  for split, i in (("train", 4), ("validation", 1)):
    example = splits[split][i]
    assert example["landmark"] == example["label"] == splits[split].labels[i]
    assert example["name"] == f"landmark_01/view_{example['view']:03d}"
    view = synthetic.render_view(
      5, example["landmark"], example["view"], size=(96, 72)
    )
    assert example["image"] == synthetic.encode_jpeg(view.pixels)
    mask = np.frombuffer(example["mask"], np.uint8)
    mask = cv2.imdecode(mask, cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(mask == 255, view.mask)
    np.testing.assert_array_equal(
      example["homography"], view.homography.astype(np.float32)
    )


def test_the_first_examples_show_every_landmark(splits):
  assert splits["train"].labels.tolist() == [0, 1, 2] * 3
  assert splits["train"].labels.dtype == np.int32


def test_rendered_on_demand_they_are_the_same(splits):
  rendered = synthetic_landmarks.open_synthetic(**TINY)
  for split in ("train", "validation"):
    assert len(rendered[split]) == len(splits[split])
    for i in (0, 2, -1):
      one, other = rendered[split][i], splits[split][i]
      np.testing.assert_array_equal(
        one.pop("homography"), other.pop("homography")
      )
      assert one == other
    with pytest.raises(IndexError):
      rendered[split][len(rendered[split])]
  pickle.loads(pickle.dumps(rendered["train"]))


def test_names_sort_like_labels():
  names = synthetic_landmarks.class_names(101)
  assert names == tuple(sorted(names)) and names[7] == "landmark_007"
  assert synthetic_landmarks.class_names(3)[2] == "landmark_02"


def test_no_validation_views(tmp_path):
  splits = synthetic_landmarks.open_synthetic(
    tmp_path, num_landmarks=2, train_views=1, validation_views=0, size=(48, 48)
  )
  assert [len(splits[name]) for name in ("train", "validation")] == [2, 0]


def test_prepared_data_is_reused_in_the_same_order(splits, data_dir):
  files = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*-of-*")}
  again = synthetic_landmarks.open_synthetic(data_dir, **TINY)
  assert keys(again["train"]) == keys(splits["train"])
  assert files == {
    path: path.stat().st_mtime_ns for path in data_dir.rglob("*-of-*")
  }
  assert len(files) == 2


def test_other_options_do_not_find_these_files(splits, data_dir):
  other = synthetic_landmarks.open_synthetic(
    data_dir, **{**TINY, "num_landmarks": 2, "seed": 6}
  )
  assert len(other["train"]) == 6
  images = {example["image"] for example in other["train"]}
  assert not images & {example["image"] for example in splits["train"]}


def test_standard_output_stays_the_programs_own(tmp_path, capsys):
  synthetic_landmarks.open_synthetic(
    tmp_path, num_landmarks=1, train_views=1, validation_views=1, size=(48, 48)
  )
  assert capsys.readouterr().out == ""


def test_a_source_can_be_sent_to_another_process(splits):
  source = pickle.loads(pickle.dumps(splits["train"]))
  assert source[2]["image"] == splits["train"][2]["image"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(InputError, match="cannot keep .*file") as caught:
    synthetic_landmarks.open_synthetic(tmp_path / "file", **TINY)
  assert "\n" not in str(caught.value)


def test_the_default_configuration_is_the_builders_own():
  config = synthetic_landmarks.SyntheticConfig()
  name = "seed0-landmarks20-train60-validation5-320x240"
  assert config.name == name
  assert name in synthetic_landmarks.SyntheticLandmarks.builder_configs
