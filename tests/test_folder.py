"""Folders as people keep them: links, loops, locks and odd names."""

import os
import random
import tempfile

import numpy as np
import pytest

from delf_jax.data.folder import labelled_photographs, list_photographs
from delf_jax.errors import InputError


def make(root, *paths):
  """Makes files (their content plays no part) and the folders they are in."""
  for path in paths:
    place = os.path.join(root, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "wb"):
      pass


def test_photographs_of_any_depth_and_extension(tmp_path):
  wanted = [
    "B.JPG",
    "a.jpg",
    "a/z.jpeg",
    "a/b/c/d.png",
    "a/b.webp",
    "c.d/e.bmp",
    "c.d/e.tif",
    "c.d/e.tiff",
    "c.d/e.gif",
    "folder.jpg/inside.PpM",
  ]
  unwanted = [
    "notes.txt",
    "jpg",
    "a.jpg.part",
    ".hidden.jpg",
    ".hidden/a.jpg",
    "a/.git/b.jpg",
    "._a.jpg",
  ]
  make(tmp_path, *wanted, *unwanted)
  listing = list_photographs(tmp_path)
  assert listing.paths == tuple(sorted(wanted))
  assert listing.problems == ()
  assert listing.root == str(tmp_path)
  for root in (str(tmp_path), os.fsencode(tmp_path), f"{tmp_path}/"):
    assert list_photographs(root).paths == listing.paths


def test_any_name(tmp_path):
  names = ["a.jpg", "show.php?id=3", "deep/0123abcd", "notes.txt"]
  make(tmp_path, *names, ".hidden", "deep/.part")
  listing = list_photographs(tmp_path, any_name=True)
  assert listing.paths == tuple(sorted(names))


def test_the_order_of_the_file_system_does_not_matter(tmp_path):
  names = [f"{a}{b}/{c}.jpg" for a in "xY0" for b in " -é" for c in range(9)]
  expected = tuple(sorted(names))
  for turn in range(3):
    random.Random(turn).shuffle(names)
    make(tmp_path / str(turn), *names)
    assert list_photographs(tmp_path / str(turn)).paths == expected


def test_odd_names_come_through(tmp_path):
  names = [
    "with space.jpg",
    "new\nline.jpg",
    "quote'\".jpg",
    "Αθήνα/東京.jpg",
    os.fsdecode(b"caf\xe9/\xff.jpg"),
    "\\back.jpg",
  ]
  make(tmp_path, *names)
  listing = list_photographs(tmp_path)
  assert listing.paths == tuple(sorted(names))
  for path in listing.paths:
    assert os.path.isfile(os.path.join(listing.root, path))


def test_links_are_followed_and_loops_survived(tmp_path):
  root = tmp_path / "root"
  make(tmp_path, "outside/far.jpg", "root/real/a.jpg", "root/real/deep/b.jpg")
  (root / "real" / "up").symlink_to(root)  # a loop
  (root / "real" / "self").symlink_to(root / "real" / "self")
  (root / "aside").symlink_to(tmp_path / "outside")
  (root / "again").symlink_to(tmp_path / "outside")  # a second route
  (root / "an early name").symlink_to(root / "real")  # sorts before "real"
  (tmp_path / "outside" / "back").symlink_to(root)
  listing = list_photographs(root)
  assert listing.paths == ("again/far.jpg", "real/a.jpg", "real/deep/b.jpg")
  ((path, reason),) = listing.problems
  assert path == "real/self" and "symbolic links" in reason
  # Two folders that lead to each other.
  (tmp_path / "x").mkdir()
  (tmp_path / "x" / "y").symlink_to(tmp_path / "x")
  make(tmp_path, "x/z.jpg")
  assert list_photographs(tmp_path / "x").paths == ("z.jpg",)


def test_a_linked_photograph_is_listed_once(tmp_path):
  make(tmp_path, "b/real.jpg", "outside.JPG", "root/keep.jpg")
  root = tmp_path / "root"
  (root / "a").mkdir()
  (root / "a" / "link.jpg").symlink_to(root / "keep.jpg")
  (root / "y.jpg").symlink_to(tmp_path / "outside.JPG")
  (root / "x.jpg").symlink_to(tmp_path / "outside.JPG")
  (root / "w.txt").symlink_to(tmp_path / "outside.JPG")
  listing = list_photographs(root)
  assert listing.paths == ("keep.jpg", "x.jpg")
  # A hard link is a photograph of its own.
  os.link(root / "keep.jpg", root / "twin.jpg")
  assert list_photographs(root).paths == ("keep.jpg", "twin.jpg", "x.jpg")


def test_broken_links_and_no_files_are_problems(tmp_path):
  make(tmp_path, "good.jpg")
  (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
  (tmp_path / "folder").symlink_to("nowhere")
  os.mkfifo(tmp_path / "pipe.jpg")
  os.mkfifo(tmp_path / "pipe")
  listing = list_photographs(tmp_path)
  assert listing.paths == ("good.jpg",)
  assert [path for path, _ in listing.problems] == [
    *("broken.jpg", "folder", "pipe.jpg")
  ]
  assert "broken link" in listing.problems[0][1]
  assert "regular" in listing.problems[2][1]


def test_an_unreadable_folder_does_not_stop_the_rest():
  with tempfile.TemporaryDirectory() as root:
    make(root, "a/1.jpg", "locked/2.jpg", "z/3.jpg")
    os.chmod(root, 0o755)
    os.chmod(os.path.join(root, "locked"), 0)
    user = os.geteuid()
    if user == 0:
      os.seteuid(65534)
    try:
      listing = list_photographs(root)
      with pytest.raises(InputError, match="no permission"):
        list_photographs(os.path.join(root, "locked"))
    finally:
      os.seteuid(user)
      os.chmod(os.path.join(root, "locked"), 0o755)
  assert listing.paths == ("a/1.jpg", "z/3.jpg")
  assert listing.problems == (("locked", "Permission denied"),)


def test_nothing_to_list(tmp_path):
  make(tmp_path, "notes.txt")
  (tmp_path / "new\nline").mkdir()
  for root, words in (
    (tmp_path / "new\nline", "no photographs under .*expected .jpg"),
    (tmp_path, "no photographs"),
    (tmp_path / "none", "no folder"),
    (tmp_path / "notes.txt", "not a folder"),
    (tmp_path / "notes.txt" / "x", "cannot read"),
    (tmp_path / ("x" * 300), "too long"),
    ("nul\0l", "null"),
  ):
    with pytest.raises(InputError, match=words) as caught:
      list_photographs(root)
    assert str(caught.value).isprintable()
  (tmp_path / "broken.jpg").symlink_to("nowhere")
  with pytest.raises(InputError, match="1 entries unreadable"):
    list_photographs(tmp_path)


def test_labels_are_the_sorted_landmarks(tmp_path):
  make(
    tmp_path,
    "tower/1.jpg",
    "tower/night/2.jpg",
    "dome/3.jpg",
    "Élysée/4.jpg",
    "loose.jpg",
    "empty/notes.txt",
  )
  listing = labelled_photographs(tmp_path)
  assert listing.names == ("dome", "tower", "Élysée")
  assert listing.paths == (
    *("dome/3.jpg", "tower/1.jpg", "tower/night/2.jpg", "Élysée/4.jpg"),
  )
  assert listing.labels.dtype == np.int32
  assert listing.labels.tolist() == [0, 1, 1, 2]
  assert listing.problems == (("loose.jpg", "not in a landmark's folder"),)


def test_fewer_than_two_landmarks(tmp_path):
  make(tmp_path, "loose.jpg")
  with pytest.raises(InputError, match="0 landmarks"):
    labelled_photographs(tmp_path)
  make(tmp_path, "tower/1.jpg", "tower/2.jpg")
  with pytest.raises(InputError, match="root/landmark/photograph.jpg"):
    labelled_photographs(tmp_path)
