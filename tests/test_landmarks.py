"""Any data set, from its files or prepared, gives the same photographs."""

import base64
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from published_lists import CIDS, URLS, make, sfm_path, write_lists, write_sfm

from delf_jax.data import landmarks, records
from delf_jax.errors import InputError


@pytest.fixture
def photos(tmp_path):
  """Classes of 20, 7, 3 and 1 photographs."""
  root = tmp_path / "photos"
  for name, count in {"tower": 20, "Köln, Dom": 7, "arch": 3, "one": 1}.items():
    make(root, *(f"{name}/{i} x.jpg" for i in range(count)))
  make(root, os.fsdecode(b"arch/\xff.jpg"))
  return str(root)


def examples(source):
  return [source[i] for i in range(len(source))]


def check(dataset):
  """What holds of every data set."""
  names = np.array(dataset.names)
  assert (np.sort(names) == names).all()
  assert set(dataset.train.labels.tolist()) == set(range(len(names)))
  for source in (dataset.train, dataset.validation):
    assert source.labels.dtype == np.int32
    found = examples(source)
    assert [e["label"] for e in found] == source.labels.tolist()
    copy = pickle.loads(pickle.dumps(source))
    assert examples(copy) == found
    np.testing.assert_array_equal(copy.labels, source.labels)
  train, validation = (
    {example["name"] for example in examples(source)}
    for source in (dataset.train, dataset.validation)
  )
  assert not train & validation


def test_a_folder_read_directly(photos):
  dataset = landmarks.open_dataset("folder", photos)
  check(dataset)
  assert dataset.names == ("Köln, Dom", "arch", "tower")
  assert np.bincount(dataset.train.labels).tolist() == [6, 4, 18]
  assert np.bincount(dataset.validation.labels).tolist() == [1, 0, 2]
  for example in examples(dataset.train):
    # `make` wrote into each file what it is called.
    assert example["image"] == os.fsencode(example["name"])
    assert example["name"].startswith(dataset.names[example["label"]])
  assert dataset.summary().splitlines() == [
    f"folder in {photos}",
    "  training    28 photographs of 3 classes, 4 to 18 each",
    "  validation  3 photographs of 2 classes (10% of each class held out, "
    "seed 0)",
    "  1 classes have fewer than 2 photographs and are left out, first 'one': "
    f"{photos}",
  ]


def test_prepared_data_is_the_same_and_needs_no_files(
  photos, tmp_path, monkeypatch
):
  monkeypatch.setattr(records, "PER_SHARD", 5)  # so that there are several
  options = {"seed": 3, "data_dir": str(tmp_path / "prepared")}
  direct = landmarks.open_dataset("folder", photos, seed=3)
  first = landmarks.open_dataset("folder", photos, **options)
  shutil.rmtree(photos)
  second = landmarks.open_dataset("folder", photos, **options)
  assert len(list((tmp_path / "prepared").rglob("*train.array_record*"))) == 6
  for dataset in (first, second):
    check(dataset)
    for split in ("train", "validation"):
      expected = getattr(direct, split)
      source = getattr(dataset, split)
      np.testing.assert_array_equal(source.labels, expected.labels)
      names = [expected.names[i] for i in range(len(expected))]
      found = examples(source)
      assert [example["name"] for example in found] == names
      assert [e["image"] for e in found] == list(map(os.fsencode, names))
    assert dataset.names == direct.names
    assert dataset.problems == direct.problems
    assert dataset.summary() == direct.summary()
    with pytest.raises(IndexError):
      dataset.train[len(dataset.train)]
    assert dataset.train[-1] == examples(dataset.train)[-1]


def test_other_options_do_not_find_prepared_data(photos, tmp_path):
  exclude = tmp_path / "classes.txt"
  exclude.write_text("arch\n")
  prepared = {"data_dir": str(tmp_path / "prepared")}
  seen = set()
  for options in (
    {},
    {"seed": 1},
    {"validation_share": 0},
    {"min_photographs": 1},
    {"exclude": str(exclude)},
  ):
    dataset = landmarks.open_dataset("folder", photos, **prepared, **options)
    check(dataset)
    seen.add(tuple(example["name"] for example in examples(dataset.train)))
  assert len(seen) == 5
  assert (
    len(
      landmarks.open_dataset(
        "folder", photos, **prepared, validation_share=0
      ).validation
    )
    == 0
  )
  # Of the file of classes, its names count and not its place.
  os.rename(exclude, tmp_path / "moved.txt")
  shutil.rmtree(photos)
  again = landmarks.open_dataset(
    "folder", photos, **prepared, exclude=str(tmp_path / "moved.txt")
  )
  assert again.names == ("Köln, Dom", "tower")


def test_what_cannot_be_read_is_prepared_as_nothing(photos, tmp_path):
  os.unlink(os.path.join(photos, "tower", "3 x.jpg"))
  os.symlink("/proc/self/mem", os.path.join(photos, "tower", "3 x.jpg"))
  dataset = landmarks.open_dataset(
    "folder", photos, data_dir=str(tmp_path / "p")
  )
  check(dataset)
  found = {
    e["name"]: e["image"]
    for e in (*examples(dataset.train), *examples(dataset.validation))
  }
  assert found["tower/3 x.jpg"] == b"" and found["tower/4 x.jpg"]


def test_interrupted_preparation_begins_again(photos, tmp_path):
  code = (
    "import sys\n"
    "from delf_jax.data import landmarks, sources\n"
    "read = sources.FileSource.__getitem__\n"
    "def stop(self, i):\n"
    "  if i == 15: raise KeyboardInterrupt\n"
    "  return read(self, i)\n"
    "sources.FileSource.__getitem__ = stop\n"
    "landmarks.open_dataset('folder', sys.argv[1], data_dir=sys.argv[2])\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, photos, str(tmp_path / "p")],
    capture_output=True,
    check=False,
  )
  assert b"KeyboardInterrupt" in done.stderr
  dataset = landmarks.open_dataset(
    "folder", photos, data_dir=str(tmp_path / "p")
  )
  check(dataset)
  assert all(example["image"] for example in examples(dataset.train))


def test_a_place_for_prepared_data_that_cannot_be_written(photos, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(InputError, match="cannot keep .*file") as caught:
    landmarks.open_dataset("folder", photos, data_dir=str(tmp_path / "file"))
  assert "\n" not in str(caught.value)


def test_published_splits(tmp_path):
  urls = {
    f"http://a.org/{label}/{i}.jpg": (label, f"a.org/{label}/{i}.jpg")
    for i in range(4)
    for label in (1, 10, 2)
  }
  write_lists(tmp_path, "full", urls=urls)
  make(tmp_path, *(name for _, name in urls.values()))
  dataset = landmarks.open_dataset("landmarks_full", tmp_path)
  check(dataset)
  assert dataset.names == ("1", "10", "2")
  assert dataset.train.labels.tolist() == [0, 1, 2] * 2
  assert sorted(dataset.validation.labels) == [0, 0, 1, 1, 2, 2]
  assert "(split as published)" in dataset.summary()


def test_clusters_without_a_published_validation(tmp_path):
  write_sfm(tmp_path)
  make(tmp_path, *map(sfm_path, CIDS))
  dataset = landmarks.open_dataset(
    "retrieval_sfm_120k", tmp_path, min_photographs=1
  )
  check(dataset)
  assert dataset.names == ("30", "4")
  assert len(dataset.validation) == 0
  assert "1 validation photographs of 1 classes" in dataset.summary()


def test_every_kind_says_what_it_needs(tmp_path):
  make(tmp_path, "x/photo.jpg")
  for kind in landmarks.KINDS:
    if kind in ("synthetic", "unlabelled"):
      continue
    with pytest.raises(InputError) as caught:
      landmarks.open_dataset(kind, str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no option 'variant'; its options"):
      landmarks.open_dataset(kind, str(tmp_path), variant="x")
    with pytest.raises(InputError, match="path"):
      landmarks.open_dataset(kind, "")
  with pytest.raises(InputError, match="'nonsense'; expected one of folder,"):
    landmarks.open_dataset("nonsense", str(tmp_path))
  with pytest.raises(InputError, match="'synthetic' has no option 'exclude'"):
    landmarks.open_dataset("synthetic", "", exclude="x")


def test_photographs_without_labels(tmp_path):
  make(tmp_path, "photos/a/1.jpg", "photos/b/2.jpg", "photos/3.jpg")
  (tmp_path / "names.txt").write_text("a\n")
  root = tmp_path / "photos"
  dataset = landmarks.open_dataset("unlabelled", root)
  assert [example["name"] for example in dataset.train] == [
    "3.jpg",
    "a/1.jpg",
    "b/2.jpg",
  ]
  assert dataset.names == () and len(dataset.validation) == 0
  assert "3 photographs" in dataset.summary()
  for option, count in [("only", 1), ("exclude", 2)]:
    options = {option: str(tmp_path / "names.txt")}
    part = landmarks.open_dataset("unlabelled", root, **options)
    assert len(part.train) == count
  # Configs say this of classes; here there are none.
  same = landmarks.open_dataset(
    "unlabelled", root, min_photographs=2, validation_share=0.5, seed=1
  )
  assert len(same.train) == 3
  with pytest.raises(InputError, match="has no option 'split'"):
    landmarks.open_dataset("unlabelled", root, split="a")
  with pytest.raises(InputError, match="path"):
    landmarks.open_dataset("unlabelled", "")


def test_synthetic_landmarks(tmp_path):
  options = {
    "num_landmarks": 2,
    "train_views": 3,
    "validation_views": 1,
    "size": (48, 64),
  }
  rendered = landmarks.open_dataset("synthetic", "", **options)
  kept = landmarks.open_dataset("synthetic", tmp_path, **options)
  for dataset in (rendered, kept):
    assert dataset.names == ("landmark_00", "landmark_01")
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert len(dataset.validation) == 2
  for i in range(6):
    assert kept.train[i]["image"] == rendered.train[i]["image"]
    assert kept.train[i]["mask"] == rendered.train[i]["mask"]
    assert kept.train[i]["name"] == rendered.train[i]["name"]
  assert "6 photographs of 2 classes" in kept.summary()
  with pytest.raises(InputError, match="at least 2"):
    landmarks.open_dataset("synthetic", "", num_landmarks=1)


def test_a_summary_of_many_problems(tmp_path):
  make(tmp_path, *(f"{i % 2}/{i}.jpg" for i in range(9)))
  make(tmp_path, *(f"loose {i}.jpg" for i in range(8)))
  lines = landmarks.open_dataset("folder", tmp_path).summary().splitlines()
  assert len(lines) == 9 and lines[-1] == "  and 3 more problems"


def test_nothing_is_said_on_standard_output(photos, tmp_path, capfd):
  dataset = landmarks.open_dataset(
    "folder", photos, data_dir=str(tmp_path / "p")
  )
  pickle.loads(pickle.dumps(dataset.train))
  assert capfd.readouterr() == ("", "")


def test_labels_are_kept_as_text(photos, tmp_path):
  dataset = landmarks.open_dataset(
    "folder", photos, data_dir=str(tmp_path / "p")
  )
  (path,) = (tmp_path / "p").rglob("metadata.json")
  text = base64.b64encode(dataset.train.labels.tobytes()).decode()
  assert text in path.read_text()


def test_more_than_a_url_list(tmp_path):
  write_lists(tmp_path, "clean", box=" 0 1 2 3")
  make(tmp_path, *(name for _, name in URLS.values() if name))
  with pytest.raises(InputError, match="at least 2 are needed"):
    # One photograph a class: none is left, and the reasons are given.
    landmarks.open_dataset("landmarks_clean", tmp_path)
