"""The published formats, in miniature."""

import hashlib
import os
import pickle

import pytest
from published_lists import (
  CIDS,
  MAT_FILE,
  URLS,
  make,
  sfm_path,
  write_lists,
  write_sfm,
)

from delf_jax.data import landmark_lists
from delf_jax.errors import InputError


def entries(photographs):
  """(path, class[, is for validation]) of each photograph."""
  columns = [
    photographs.paths,
    [photographs.names[label] for label in photographs.labels],
  ]
  if photographs.validation is not None:
    columns.append(photographs.validation.tolist())
  return list(zip(*columns, strict=True))


def reasons(photographs):
  return [reason for _, reason in photographs.problems]


def test_a_folder(tmp_path):
  make(tmp_path, "tower/1.jpg", "dome/deep/2.png", "loose.jpg")
  photographs = landmark_lists.read_folder(str(tmp_path))
  assert entries(photographs) == [
    ("dome/deep/2.png", "dome"),
    ("tower/1.jpg", "tower"),
  ]
  assert reasons(photographs) == ["not in a landmark's folder"]


MANIFEST = """path,split,landmark,view_cluster,note
train/a.jpg,train,opera,0,
"train/b, c.jpg",train,opera,1,"says ""hi"", twice"
train/Ü d.jpg,train,Kölner Dom,0,
train/e.jpg,train,opera,,no cluster
train/f.jpg,train,,0,no landmark
train/gone.jpg,train,opera,0,
eval/g.jpg,eval,opera,0,
train/short.jpg,train,opera
train/h.jpg,validation,opera,0,
"""
HERE = ["train/a.jpg", "train/b, c.jpg", "train/Ü d.jpg", "eval/g.jpg"]


@pytest.fixture
def manifest(tmp_path):
  (tmp_path / "manifest.csv").write_text(MANIFEST)
  make(tmp_path, *HERE, "train/e.jpg", "train/f.jpg", "train/h.jpg")
  return str(tmp_path)


def test_a_table_with_classes_of_two_columns(manifest):
  photographs = landmark_lists.read_table(
    manifest,
    table="manifest.csv",
    label_columns=("landmark", "view_cluster"),
    rows={"split": "train"},
  )
  assert entries(photographs) == [
    ("train/a.jpg", "opera/0"),
    ("train/b, c.jpg", "opera/1"),
    ("train/Ü d.jpg", "Kölner Dom/0"),
  ]
  assert reasons(photographs) == [
    "1 rows have not 5 fields as the header has, first row 9",
    "2 rows leave path or landmark or view_cluster empty",
    "1 of 4 photographs are missing, first 'train/gone.jpg'",
  ]


def test_a_table_with_splits_and_filters(manifest):
  photographs = landmark_lists.read_table(
    manifest,
    table=os.path.join(manifest, "manifest.csv"),
    label_columns="landmark",
    split_column="split",
    rows={"view_cluster": [0, "7"], "landmark": ("opera",)},
  )
  assert entries(photographs) == [
    ("train/a.jpg", "opera", False),
    ("train/h.jpg", "opera", True),
  ]
  assert "1 rows say 'eval' in split, neither split" in reasons(photographs)


@pytest.mark.parametrize(
  "options, words",
  [
    ({}, "needs the option table"),
    ({"table": "none.csv"}, "no file .*none.csv.*columns path, label"),
    ({"table": "manifest.csv"}, "no column 'label'; its columns are path"),
    (
      {
        "table": "manifest.csv",
        "label_columns": ["landmark"],
        "rows": {"split": "test"},
      },
      "lists no photographs with a class",
    ),
    (
      {
        "table": "manifest.csv",
        "path_column": "note",
        "label_columns": "split",
      },
      "none of the .* photographs is under",
    ),
  ],
)
def test_an_unfit_table_is_one_line(manifest, options, words):
  with pytest.raises(InputError, match=words) as caught:
    landmark_lists.read_table(manifest, **options)
  assert "\n" not in str(caught.value)


def test_google_landmarks_v1(tmp_path):
  # As Kaggle published it: quoted, with None where there is nothing.
  (tmp_path / "train.csv").write_text(
    '"id","url","landmark_id"\n'
    '"00cba0067c078490","https://a.b/c,d.jpg","6651"\n'
    '"1a","http://x","6651"\n'
    '"2b","None","17"\n'
    '"3c","http://x","None"\n'
    '"4d","http://x","17"\n'
    '"4d","http://x","18"\n'
  )
  make(
    tmp_path,
    "images_0/00cba0067c078490.jpg",
    "images_0/3c.jpg",
    "images_1/deep/1a.JPEG",
    "images_1/4d.png",
    "images_1/2b.jpg",
  )
  photographs = landmark_lists.read_google_v1(str(tmp_path))
  assert entries(photographs) == [
    ("images_0/00cba0067c078490.jpg", "6651"),
    ("images_1/deep/1a.JPEG", "6651"),
    ("images_1/2b.jpg", "17"),
  ]
  assert reasons(photographs) == [
    "1 rows name no landmark",
    "1 photographs are listed in several classes and left out, first "
    "'images_1/4d.png'",
  ]
  part = landmark_lists.read_google_v1(str(tmp_path), photos=["images_0"])
  assert entries(part) == [("images_0/00cba0067c078490.jpg", "6651")]
  assert "4 of 5 photographs are missing, first '1a'" in reasons(part)
  os.rename(tmp_path / "train.csv", tmp_path / "index.csv")
  with pytest.raises(InputError, match="train.csv.*google-landmarks-dataset"):
    landmark_lists.read_google_v1(str(tmp_path))


def test_google_landmarks_v2(tmp_path):
  (tmp_path / "train.csv").write_text(
    "id,url,landmark_id\n"
    'ab9f,"http://upload/x, y.jpg",5\n'
    "abcd,http://upload/z.jpg,5\n"
    "0000,http://upload/z.jpg,7\n"
    "x,http://upload/z.jpg,7\n"
  )
  make(tmp_path, "train/a/b/9/ab9f.jpg", "train/0/0/0/0000.jpg")
  expected = [("train/a/b/9/ab9f.jpg", "5"), ("train/0/0/0/0000.jpg", "7")]
  photographs = landmark_lists.read_google_v2(str(tmp_path))
  assert entries(photographs) == expected
  assert reasons(photographs) == [
    "1 rows lack id or landmark",
    "1 of 3 photographs are missing, first 'train/a/b/c/abcd.jpg'",
  ]
  # The same archives unpacked elsewhere.
  os.rename(tmp_path / "train", tmp_path / "unpacked")
  moved = landmark_lists.read_google_v2(str(tmp_path), photos="unpacked/")
  assert [path for path, _ in entries(moved)] == [
    path.replace("train", "unpacked") for path, _ in expected
  ]
  for name in "ab0":
    if (tmp_path / "unpacked" / name).exists():
      os.rename(tmp_path / "unpacked" / name, tmp_path / name)
  bare = landmark_lists.read_google_v2(str(tmp_path))
  assert [path for path, _ in entries(bare)] == [
    path.removeprefix("train/") for path, _ in expected
  ]


def test_google_landmarks_v2_clean(tmp_path):
  many = [f"{i:05x}" for i in range(40_000)]  # more than csv takes for a field
  (tmp_path / "train_clean.csv").write_text(
    f"landmark_id,images\n1,{' '.join(many)}\n7,abc0 abc1\n9,\n"
  )
  make(tmp_path, "train/0/9/c/09c3f.jpg", "train/a/b/c/abc1.jpg")
  photographs = landmark_lists.read_google_v2_clean(str(tmp_path))
  assert entries(photographs) == [
    ("train/0/9/c/09c3f.jpg", "1"),
    ("train/a/b/c/abc1.jpg", "7"),
  ]
  assert reasons(photographs)[0].startswith("40,000 of 40,002 photographs are")
  (tmp_path / "train_clean.csv").write_text("id,url,landmark_id\n")
  with pytest.raises(
    InputError, match="columns id, url, landmark_id; expected"
  ):
    landmark_lists.read_google_v2_clean(str(tmp_path))


def test_landmarks_full_by_url(tmp_path):
  write_lists(tmp_path / "annotations", "full")
  make(tmp_path, "1.jpg", *(name for _, name in URLS.values() if name))
  photographs = landmark_lists.read_landmarks(str(tmp_path), variant="full")
  assert entries(photographs) == [
    (name, str(label), i >= len(URLS) // 2)
    for i, (label, name) in enumerate(URLS.values())
    if name
  ]
  assert reasons(photographs) == [
    "3 of 10 photographs are missing, first 'http://f.de/other/1.jpg'"
  ]


def test_landmarks_clean_has_boxes(tmp_path):
  write_lists(tmp_path, "clean", box=" 693 877 598 669")
  with open(tmp_path / "annotation_clean_train.txt", "a") as file:
    file.write("http://k.de/a b.jpg 5 0 1 2 3\nno label\n\n")
  make(tmp_path, "photos/k.de/a b.jpg", "photos/26/1.jpg")
  photographs = landmark_lists.read_landmarks(
    str(tmp_path), variant="clean", photos="photos"
  )
  assert entries(photographs) == [
    ("26/1.jpg", "26", False),
    ("k.de/a b.jpg", "5", False),
  ]
  assert photographs.root == str(tmp_path / "photos")
  assert "1 lines are not 'url label ...'" in reasons(photographs)


def test_landmarks_clean_by_content(tmp_path):
  write_lists(tmp_path, "clean", box=" 0 1 2 3")
  names = [f"any/{i:03d}" for i in range(len(URLS))]
  make(tmp_path, *names[:8], "any/stranger")
  sums = [hashlib.md5(name.encode()).hexdigest() for name in names]
  for split, part in (("train", sums[:5]), ("val", sums[5:])):
    (tmp_path / f"annotation_clean_{split}.md5sum").write_text("\n".join(part))
  photographs = landmark_lists.read_landmarks(
    str(tmp_path), variant="clean", match="md5"
  )
  assert entries(photographs) == [
    (name, str(label), i >= 5)
    for i, (name, (label, _)) in enumerate(
      zip(names[:8], URLS.values(), strict=False)
    )
  ]
  assert reasons(photographs)[0].startswith("2 of 10 photographs are missing")
  (tmp_path / "annotation_clean_val.md5sum").write_text(sums[0])
  with pytest.raises(InputError, match="has 1 lines, its list 5"):
    landmark_lists.read_landmarks(str(tmp_path), variant="clean", match="md5")


def test_landmarks_that_cannot_be_read(tmp_path):
  read = landmark_lists.read_landmarks
  with pytest.raises(InputError, match="no annotation_full_train.txt.*europe"):
    read(str(tmp_path), variant="full")
  write_lists(tmp_path, "full")
  with pytest.raises(InputError, match="none of the 10 photographs"):
    read(str(tmp_path), variant="full")
  with pytest.raises(InputError, match="landmarks_clean alone"):
    read(str(tmp_path), variant="full", match="md5")
  with pytest.raises(InputError, match="match is 'name'"):
    read(str(tmp_path), variant="full", match="name")
  (tmp_path / "annotation_full_val.txt").unlink()
  with pytest.raises(InputError, match="annotation_full_val.txt"):
    read(str(tmp_path), variant="full")


def test_retrieval_sfm_120k(tmp_path):
  write_sfm(tmp_path)
  make(tmp_path, *(sfm_path(cid) for cid in CIDS if cid[0] != "x"))
  assert sfm_path(CIDS[0]) == f"ims/ef/cd/ab/{CIDS[0]}"
  photographs = landmark_lists.read_retrieval_sfm(str(tmp_path), variant="120k")
  assert entries(photographs) == [
    (sfm_path(CIDS[0]), "4", False),
    (sfm_path(CIDS[1]), "30", False),
    (sfm_path(CIDS[3]), "9", True),
  ]
  assert reasons(photographs)[0] == "1 names are too short"
  assert reasons(photographs)[1].startswith("1 of 4 photographs are missing")


def test_retrieval_sfm_30k(tmp_path):
  # Of the pickle's photographs, the MAT file lists the first and the third.
  large, small = tmp_path / "retrieval-SfM-120k", tmp_path / "retrieval-SfM-30k"
  write_sfm(large)
  small.mkdir()
  make(large, *map(sfm_path, CIDS))
  (small / "ims").symlink_to(large / "ims")
  with pytest.raises(
    InputError, match="30k-imagenames-clusterids.mat.*cmp.felk"
  ):
    landmark_lists.read_retrieval_sfm(str(small), variant="30k")
  listed = small / "retrieval-SfM-30k-imagenames-clusterids.mat"
  listed.write_bytes(MAT_FILE)
  expected = [(sfm_path(CIDS[0]), "4", False), (sfm_path(CIDS[2]), "4", False)]
  photographs = landmark_lists.read_retrieval_sfm(str(small), variant="30k")
  assert entries(photographs) == expected
  listed.write_bytes(MAT_FILE[:128])
  with pytest.raises(InputError, match="no cell array cids"):
    landmark_lists.read_retrieval_sfm(str(small), variant="30k")
  # Somebody's own pickle of the set is taken as it is.
  write_sfm(small, "retrieval-SfM-30k.pkl")
  photographs = landmark_lists.read_retrieval_sfm(str(small), variant="30k")
  assert len(entries(photographs)) == 4


def test_retrieval_sfm_that_cannot_be_read(tmp_path):
  def read():
    landmark_lists.read_retrieval_sfm(str(tmp_path), variant="120k")

  with pytest.raises(InputError, match="no retrieval-SfM-120k.pkl"):
    read()
  path = tmp_path / "retrieval-SfM-120k.pkl"
  for content, words in (
    ([1], "no lists cids and cluster under 'train'"),
    ({"train": {"cids": ["a" * 8]}}, "no lists cids and cluster"),
    ({"train": {"cids": ["a"], "cluster": []}}, "1 cids and 0 clusters"),
  ):
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=words):
      read()
  path.write_bytes(pickle.dumps({"train": make}))
  with pytest.raises(InputError, match="was not run"):
    read()
