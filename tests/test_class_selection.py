import hashlib
import json
import random

import numpy as np
import pytest

from delf_jax.data import class_selection
from delf_jax.data.photograph_list import PhotographList
from delf_jax.errors import InputError

DEFAULTS = {
  "validation_share": 0.1,
  "min_photographs": 2,
  "exclude": "",
  "seed": 0,
}


def listed(entries, *, published=False):
  """A list of (path, class) or (path, class, is for validation)."""
  names = list(dict.fromkeys(entry[1] for entry in entries))
  random.Random(0).shuffle(names)
  return PhotographList(
    root="root",
    paths=[entry[0] for entry in entries],
    labels=np.array([names.index(entry[1]) for entry in entries], np.int32),
    names=names,
    validation=np.array([e[2] for e in entries]) if published else None,
    problems=(),
  )


def counted(**counts):
  return [
    (f"{n}/{i}.jpg", n) for n, count in counts.items() for i in range(count)
  ]


def selected(entries, *, published=False, **options):
  photographs = listed(entries, published=published)
  return class_selection.select(photographs, **{**DEFAULTS, **options})


def held_out(selection):
  photographs = selection.photographs
  rows = np.flatnonzero(photographs.validation)
  return {photographs.paths[i] for i in rows}


def test_labels_are_the_sorted_names():
  selection = selected(counted(b=3, Ä=2, a=2, Z=2))
  assert selection.photographs.names == ("Z", "a", "b", "Ä")
  assert selection.photographs.labels.dtype == np.int32
  for path, label in zip(
    selection.photographs.paths, selection.photographs.labels, strict=True
  ):
    assert path.startswith(selection.photographs.names[label])


def test_every_class_holds_out_its_share():
  counts = {"a": 4, "b": 5, "c": 14, "d": 15, "e": 100, "f": 2}
  for share, expected in (
    (0.1, [0, 1, 1, 2, 10, 0]),
    (0.9, [0, 4, 13, 14, 90, 0]),
  ):
    selection = selected(counted(**counts), validation_share=share)
    labels = selection.photographs.labels[selection.photographs.validation]
    assert np.bincount(labels, minlength=6).tolist() == expected
  assert selection.split == "90% of each class held out, seed 0"
  assert held_out(selected(counted(a=50, b=50), validation_share=0)) == set()


def test_neither_order_nor_other_classes_change_the_hold_out():
  entries = counted(a=30, b=40)
  first = held_out(selected(entries))
  shuffled = random.Random(1).sample(entries, len(entries))
  assert held_out(selected(shuffled)) == first
  more = held_out(selected([*counted(c=50, A=20), *entries]))
  assert {path for path in more if path[0] in "ab"} == first
  assert held_out(selected(entries, seed=1)) != first


def test_the_smallest_hashes_are_held_out():
  paths = [f"a/{i}.jpg" for i in range(30)]

  def number(path):
    digest = hashlib.blake2b(f"7\0a\0{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")

  found = held_out(selected(counted(a=30, b=2), seed=7))
  assert found == set(sorted(paths, key=number)[:3])


def test_small_classes_are_left_out():
  selection = selected(counted(a=1, b=2, c=3, d=1))
  assert selection.photographs.names == ("b", "c")
  ((_, reason),) = selection.photographs.problems
  assert reason.startswith("2 classes have fewer than 2 photographs")
  assert (
    len(selected(counted(a=1, b=1), min_photographs=1).photographs.names) == 2
  )
  with pytest.raises(InputError, match="1 classes with 3 photographs or more"):
    selected(counted(a=1, b=2, c=3), min_photographs=3)


def test_a_published_split_counts():
  entries = [
    ("a/1", "a", False),
    ("a/2", "a", False),
    ("a/3", "a", True),
    ("b/1", "b", False),
    ("b/2", "b", False),
    ("b/3", "b", True),
    ("c/1", "c", True),
    ("d/1", "d", False),
    ("d/2", "d", True),
  ]
  selection = selected(entries, published=True)
  assert selection.split == "split as published"
  assert selection.photographs.names == ("a", "b")
  assert held_out(selection) == {"a/3", "b/3"}
  assert [reason for _, reason in selection.photographs.problems] == [
    "1 classes have fewer than 2 photographs and are left out, first 'd'",
    "1 validation photographs of 1 classes that have none for training are "
    "left out",
  ]


def test_disjoint_published_clusters_mean_a_hold_out():
  entries = [(*entry, False) for entry in counted(a=20, b=20)]
  entries += [(*entry, True) for entry in counted(c=20)]
  selection = selected(entries, published=True)
  assert selection.photographs.names == ("a", "b")
  assert held_out(selection) == held_out(selected(counted(a=20, b=20)))
  assert "held out" in selection.split


def test_excluded_classes(tmp_path):
  odd = ["a # b", "#c", '"d"', " e", "f\tg", "h\ni", "\udcff", "Ü, x", ""]
  lines = [class_selection.class_line(name, "seen in x.jpg") for name in odd]
  path = tmp_path / "classes.txt"
  path.write_text("\n".join(["# title", "", *lines, "plain", ""]))
  assert class_selection.read_class_names(path) == [*odd, "plain"]
  path.write_bytes("\ufeff".encode() + b"plain\r\nunknown\t# x\r\n")
  entries = counted(a=3, b=3, plain=3)
  selection = selected(entries, exclude=str(path))
  assert selection.photographs.names == ("a", "b")
  assert [reason for _, reason in selection.photographs.problems] == [
    "1 classes are left out as listed here",
    "1 names are no class of the data set, first 'unknown'",
  ]
  path.write_text("of\nanother\ndata set")
  with pytest.raises(InputError, match="none of the 3 classes"):
    selected(entries, exclude=str(path))
  path.write_text("# nothing\n")
  assert len(selected(entries, exclude=str(path)).photographs.names) == 3
  path.write_text(json.dumps("half")[:-1])
  with pytest.raises(InputError, match="line 1.*JSON"):
    selected(entries, exclude=str(path))
  with pytest.raises(InputError, match="none.txt"):
    selected(entries, exclude=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
  "options",
  [{"validation_share": 1}, {"validation_share": -1}, {"min_photographs": 0}],
)
def test_options_out_of_range(options):
  with pytest.raises(InputError, match=next(iter(options))):
    selected(counted(a=3, b=3), **options)
