"""Indexes of stores: every kind, options, changes, killed builds."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from delf_jax import build_index, database, index
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.features.local_features import LocalFeatures
from tests.test_programs import run

DIM = 16
OURS = ("exact", "kd_tree", "graph", "inverted_file")


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def descriptors_of(number, rows=30):
  generator = np.random.default_rng(number)
  return unit(generator.normal(size=(rows, DIM))).astype(np.float32)


def write_store(path, photographs, *, change=None, rows=30):
  """Makes a store, or adds what is new to one."""
  settings = {"kind": "imported", "features": "a test", "photos": None}
  with store.open_writer(path, settings=settings, dtype="float32") as writer:
    for number in range(photographs):
      name = f"{number:03d}.jpg"
      if name in writer.done:
        continue
      descriptors = descriptors_of(number, rows)
      if change:
        descriptors = change(number, descriptors)
      writer.add(
        name,
        height=60,
        width=80,
        features=LocalFeatures(
          locations=np.full((rows, 2), number, np.float32),
          scales=np.ones(rows, np.float32),
          scores=np.ones(rows, np.float32),
          descriptors=descriptors,
          mask=np.ones(rows, bool),
        ),
      )
    writer.finish()
  return str(path)


def found_for(path, opened, number):
  """The names of the photographs that a photograph's descriptors find."""
  meta = index.read_meta(path)["provenance"]
  searchable = database.connect(
    opened,
    index.open_index(path),
    photographs=meta["photographs"],
    removed=meta["removed"],
  )
  _, rows = searchable.index.search(descriptors_of(number), 1)
  images = np.searchsorted(searchable.offsets, rows[:, 0], side="right") - 1
  names = [searchable.paths[image] for image in images]
  # Every feature of photograph 007 lies at (7, 7).
  places = searchable.locations[rows[:, 0]]
  expected = np.array([int(name[:3]) for name in names], np.float32)
  np.testing.assert_array_equal(places, np.stack([expected, expected], 1))
  return names


@pytest.mark.parametrize("kind", OURS)
def test_every_kind_answers_for_a_store(tmp_path, kind):
  folder = write_store(tmp_path / "store", 12)
  count = build_index.build(folder, kind, str(tmp_path / "index"))
  assert count == 360
  opened = store.open_store(folder)
  names = found_for(tmp_path / "index", opened, 7)
  assert names.count("007.jpg") >= 29
  meta = index.read_meta(tmp_path / "index")
  database.check_origin("index", meta["provenance"], opened)


def test_a_stream_makes_what_build_makes(tmp_path):
  folder = write_store(tmp_path / "store", 20)
  opened = store.open_store(folder)
  whole = index.build_index(
    "inverted_file", opened.descriptors(), seed=3, words=6
  )
  build_index.build(
    folder, "inverted_file", str(tmp_path / "index"), seed=3, words=6
  )
  queries = descriptors_of(100)
  for found, expected in zip(
    index.open_index(tmp_path / "index").search(queries, 7),
    whole.search(queries, 7),
    strict=True,
  ):
    np.testing.assert_array_equal(found, expected)


def test_a_store_grows_and_its_index_follows(tmp_path):
  folder = write_store(tmp_path / "store", 10)
  path = str(tmp_path / "index")
  build_index.build(folder, "inverted_file", path, words=4)
  write_store(tmp_path / "store", 14)
  opened = store.open_store(folder)
  # The older index still answers for what it has.
  assert found_for(path, opened, 3).count("003.jpg") >= 28
  assert "012.jpg" not in found_for(path, opened, 12)
  assert build_index.update(folder, path, add=True) == (4, 0)
  assert found_for(path, opened, 12).count("012.jpg") >= 28
  assert build_index.update(folder, path, add=True) == (0, 0)


def test_photographs_are_removed(tmp_path):
  folder = write_store(tmp_path / "store", 10)
  path = str(tmp_path / "index")
  build_index.build(folder, "inverted_file", path, words=4)
  opened = store.open_store(folder)
  assert build_index.update(folder, path, remove=["003.jpg", "000.jpg"]) == (
    0,
    2,
  )
  assert build_index.update(folder, path, remove=["007.jpg"]) == (0, 1)
  for number in range(10):
    names = found_for(path, opened, number)
    assert not {"000.jpg", "003.jpg", "007.jpg"}.intersection(names)
    if number not in (0, 3, 7):
      assert names.count(f"{number:03d}.jpg") >= 28
  for gone in ("007.jpg", "none.jpg"):
    with pytest.raises(InputError, match="not among the photographs"):
      build_index.update(folder, path, remove=[gone])
  # What is removed stays so when others come.
  write_store(tmp_path / "store", 12)
  assert build_index.update(folder, path, add=True, remove=["010.jpg"]) == (
    2,
    1,
  )
  names = found_for(path, store.open_store(folder), 11)
  assert names.count("011.jpg") >= 28


def test_only_an_index_of_this_store_is_changed(tmp_path):
  folder = write_store(tmp_path / "store", 6)
  other = write_store(
    tmp_path / "other", 6, change=lambda _, found: found[::-1].copy()
  )
  path = str(tmp_path / "index")
  build_index.build(folder, "inverted_file", path, words=2)
  with pytest.raises(InputError, match="not built from the store"):
    build_index.update(other, path, add=True)
  build_index.build(folder, "exact", path)
  with pytest.raises(InputError, match="exact index, which cannot change"):
    build_index.update(folder, path, add=True)


@pytest.mark.parametrize(
  ("change", "length"),
  [(lambda x: 3 * x, "length 3"), (lambda x: x / 1.1, "length 0.909")],
)
@pytest.mark.parametrize("kind", ["exact", "inverted_file"])
def test_what_is_not_normalised_is_refused_by_its_photograph(
  tmp_path, kind, change, length
):
  folder = write_store(
    tmp_path / "store",
    5,
    change=lambda number, x: change(x) if number == 3 else x,
  )
  with pytest.raises(InputError, match=f"'003.jpg' has the {length}"):
    build_index.build(folder, kind, str(tmp_path / "index"))
  assert not (tmp_path / "index" / "meta.json").exists()


def test_what_is_not_finite_is_refused_by_its_photograph(tmp_path, monkeypatch):
  folder = write_store(tmp_path / "store", 5)
  read = store.Store.descriptors

  def damaged(self, start=None, stop=None):
    found = read(self, start, stop)
    found[70, 2] = np.nan
    return found

  monkeypatch.setattr(store.Store, "descriptors", damaged)
  with pytest.raises(InputError, match="'002.jpg' has the length nan"):
    build_index.build(folder, "exact", str(tmp_path / "index"))


def test_a_photograph_of_one_colour_has_zeros_and_is_let_through(tmp_path):
  folder = write_store(
    tmp_path / "store", 3, change=lambda n, x: 0 * x if n == 1 else x
  )
  for kind in OURS:
    build_index.build(folder, kind, str(tmp_path / kind))


def test_options_reach_their_kind(tmp_path):
  folder = write_store(tmp_path / "store", 8)
  printed = run(
    "build_index",
    f"--store={folder}",
    "--kind=inverted_file",
    "--option=words=3",
    "--option=rotation=none",
    f"--output={tmp_path}/index",
  )
  assert "inverted_file index of 240 descriptors" in printed
  meta = index.read_meta(tmp_path / "index")
  assert meta["files"]["centres"]["shape"] == [3, DIM]
  assert meta["parameters"]["built_with"]["rotation"] == "none"
  for option, message in (
    ("wings=2", "wings: no option of inverted_file; it has"),
    ("bits=7", "inverted_file: an option does not fit"),
    ("probes=0", "inverted_file: an option does not fit"),
  ):
    name, _, value = option.partition("=")
    with pytest.raises(InputError, match=message):
      build_index.build(
        folder, "inverted_file", str(tmp_path / "x"), **{name: int(value)}
      )
  with pytest.raises(InputError, match="no option of graph"):
    index.build_index("graph", descriptors_of(0), words=3)


def test_a_killed_build_leaves_the_old_index_or_the_new(tmp_path):
  folder = write_store(tmp_path / "store", 40, rows=400)
  path = tmp_path / "index"
  build_index.build(folder, "inverted_file", str(path), words=20)
  before = index.read_meta(path)
  command = [
    *(sys.executable, "-m", "delf_jax.build_index", f"--store={folder}"),
    *("--kind=inverted_file", "--option=words=60", f"--output={path}"),
  ]
  start = time.perf_counter()
  subprocess.run(command, check=True, capture_output=True)
  whole = time.perf_counter() - start
  build_index.build(folder, "inverted_file", str(path), words=20)
  for share in (0.5, 0.8, 0.95):
    process = subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(share * whole)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = index.read_meta(path)["files"]["centres"]["shape"][0]
    assert found in (20, 60)
    index.open_index(path).search(descriptors_of(0), 3)
  build_index.build(folder, "inverted_file", str(path), words=20)
  assert index.read_meta(path)["files"] == before["files"]
  arrays = {name for name in os.listdir(path) if name.endswith(".npy")}
  assert len(arrays) == len(before["files"])
  assert os.listdir(tmp_path).count("index") == 1
