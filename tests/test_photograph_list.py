import os

import numpy as np
import pytest

from delf_jax.data import photograph_list
from delf_jax.data.photograph_list import PhotographList
from delf_jax.errors import InputError


def make(root, *paths):
  for path in paths:
    place = os.path.join(root, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    open(place, "wb").close()


def listed(root, *entries):
  """A list of (path, class, is for validation)."""
  paths, names, validation = zip(*entries, strict=True)
  classes = sorted(set(names))
  return PhotographList(
    root=str(root),
    paths=list(paths),
    labels=np.array([classes.index(name) for name in names], np.int32),
    names=classes,
    validation=np.array(validation),
    problems=(),
  )


def entries(photographs):
  return [
    (path, photographs.names[label], bool(validation))
    for path, label, validation in zip(
      photographs.paths,
      photographs.labels,
      photographs.validation,
      strict=True,
    )
  ]


def test_what_is_there(tmp_path):
  there = ["a.jpg", "x/b, c.jpg", "x/y/Ü.jpg", os.fsdecode(b"x/\xff.jpg")]
  absent = ["b.jpg", "x/c.jpg", "none/d.jpg", "a.jpg/e.jpg", "nul\0l/f"]
  make(tmp_path, *there)
  paths = [*there, *absent, *there]
  found = photograph_list.are_files(str(tmp_path), paths)
  assert found.tolist() == [True] * 4 + [False] * 5 + [True] * 4
  assert photograph_list.are_files(str(tmp_path), []).tolist() == []
  inside = photograph_list.are_files("/", [str(tmp_path)[1:] + "/a.jpg"])
  assert inside.tolist() == [True]


def test_missing_photographs_are_one_problem(tmp_path):
  make(tmp_path, *(f"{i}.jpg" for i in range(0, 3000, 2)))
  everything = listed(
    tmp_path, *((f"{i}.jpg", f"{i % 3}", i % 5 == 0) for i in range(3000))
  )
  found = photograph_list.without_missing(everything)
  assert entries(found) == entries(everything)[::2]
  assert found.problems == (
    (str(tmp_path), "1,500 of 3,000 photographs are missing, first '1.jpg'"),
  )
  again = photograph_list.without_missing(found)
  assert again == found
  with pytest.raises(InputError, match="none of the 1 .*'z.jpg'"):
    photograph_list.without_missing(listed(tmp_path, ("z.jpg", "a", False)))


def test_repeats(tmp_path):
  everything = listed(
    tmp_path,
    ("once.jpg", "a", True),
    ("twice.jpg", "a", True),
    ("torn.jpg", "b", False),
    ("twice.jpg", "a", False),  # training comes first
    ("twice.jpg", "a", False),
    ("torn.jpg", "a", False),
    ("same.jpg", "b", True),
    ("same.jpg", "b", True),
  )
  found = photograph_list.without_repeats(everything)
  assert entries(found) == [
    ("once.jpg", "a", True),
    ("twice.jpg", "a", False),
    ("same.jpg", "b", True),
  ]
  assert [reason for _, reason in found.problems] == [
    "2 photographs are listed more than once and used once, first 'twice.jpg'",
    "1 photographs are listed in several classes and left out, first "
    "'torn.jpg'",
  ]
  assert photograph_list.without_repeats(found) == found


def test_equal_hashes_are_not_equal_paths(tmp_path):
  class Path(str):
    def __hash__(self):
      return 7

  everything = listed(tmp_path, ("a", "x", False), ("b", "y", False))
  everything = everything._replace(paths=[Path("a"), Path("b")])
  assert photograph_list.without_repeats(everything).paths == ["a", "b"]
