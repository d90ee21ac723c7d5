"""Stores to other systems' files and back, and how the program reports."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from delf_jax import exchange as module
from delf_jax import retrieval
from delf_jax.build_index import build
from delf_jax.data import synthetic
from delf_jax.database import connect
from delf_jax.errors import InputError
from delf_jax.exchange import exchange, kind_of
from delf_jax.features import handcrafted, interchange
from delf_jax.features.interchange import PhotographFeatures
from delf_jax.features.local_features import LocalFeatures, empty
from delf_jax.features.store import open_store, open_writer
from delf_jax.index import open_index

NAMES = ("a.jpg", "place/b.png", "place/c é.jpg", "place/none.jpg")


def make(i, dim=8):
  rng = np.random.default_rng(i)
  n = 3 + i
  return LocalFeatures(
    locations=rng.uniform(0, 90, (n, 2)).astype(np.float32),
    scales=rng.uniform(0.5, 4, n).astype(np.float32),
    scores=rng.uniform(0, 100, n).astype(np.float32),
    descriptors=rng.normal(size=(n, dim)).astype(np.float32),
    mask=np.ones(n, bool),
  )


def fill(directory, names=NAMES, dtype="float32", **settings):
  """Writes a store; the last photograph has no features."""
  settings = {"kind": "sift", "features": "sift", **settings}
  with open_writer(directory, settings=settings, dtype=dtype) as writer:
    for i, name in enumerate(names):
      features = empty(8) if "none" in name else make(i)
      writer.add(name, height=100 + i, width=200 + i, features=features)
    writer.finish()
  return directory


@pytest.fixture
def h5py():
  return pytest.importorskip("h5py", reason="the extra [convert]")


def check(store, names=NAMES, sizes=True):
  assert sorted(store.paths) == sorted(names)
  for i, name in enumerate(names):
    row = store.paths.index(name)
    expected = empty(8) if "none" in name else make(i)
    found = store.features(row)
    for leaf in ("locations", "scales", "scores", "descriptors"):
      np.testing.assert_array_equal(
        getattr(found, leaf), getattr(expected, leaf)
      )
    if sizes:
      assert store.sizes[row].tolist() == [100 + i, 200 + i]


def test_through_hloc_and_back(h5py, tmp_path):
  fill(tmp_path / "store")
  counts = exchange(tmp_path / "store", "hloc", tmp_path / "f.h5")
  assert counts == (4, 0, 12, ())
  counts = exchange(tmp_path / "f.h5", "store", tmp_path / "back")
  assert counts == (4, 0, 12, ())
  back = open_store(tmp_path / "back")
  check(back)
  assert back.settings == {
    "kind": "imported",
    "format": "hloc",
    "features": str(tmp_path / "f.h5"),
    "photos": None,
    "dim": 8,
  }
  # Again: everything is there.
  counts = exchange(tmp_path / "f.h5", "store", tmp_path / "back")
  assert counts == (0, 4, 0, ())


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rounded_descriptors_stay_as_they_are(h5py, tmp_path, dtype):
  store = open_store(fill(tmp_path / "store", dtype=dtype))
  exchange(tmp_path / "store", "hloc", tmp_path / "f.h5")
  with interchange.read_hloc(tmp_path / "f.h5") as images:
    for i, name in enumerate(store.paths):
      np.testing.assert_array_equal(
        images[name].features.descriptors, store.features(i).descriptors
      )
  with h5py.File(tmp_path / "f.h5") as file:
    expected = {"float16": np.float16, "int8": np.float32}[dtype]
    assert file["a.jpg/descriptors"].dtype == expected


def photographs(root):
  for i, name in enumerate(NAMES):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200 + i, 100 + i)).save(root / name)
  return root


def test_through_delf_files_and_back(tmp_path):
  fill(tmp_path / "store")
  files = tmp_path / "files"
  assert exchange(tmp_path / "store", "delf", files) == (4, 0, 12, ())
  assert sorted(str(p.relative_to(files)) for p in files.rglob("*.*")) == [
    *("a.delf", "place/b.delf", "place/c é.delf", "place/none.delf")
  ]
  # The names and sizes are in the photographs.
  photos = photographs(tmp_path / "photos")
  counts = exchange(files, "store", tmp_path / "back", photos=photos)
  assert counts == (4, 0, 12, ())
  back = open_store(tmp_path / "back")
  check(back)
  assert back.settings["photos"] == str(photos)
  # Without them the names are bare, and the features say how large.
  exchange(files, "store", tmp_path / "bare")
  bare = open_store(tmp_path / "bare")
  stems = tuple(os.path.splitext(name)[0] for name in NAMES)
  check(bare, stems, sizes=False)
  for row, name in enumerate(bare.paths):
    last = np.ceil(make(stems.index(name)).locations.max(axis=0)) + 1
    none = name == "place/none"
    assert bare.sizes[row].tolist() == ([1, 1] if none else last.tolist())


def test_delf_files_become_a_file_of_hloc(h5py, tmp_path):
  fill(tmp_path / "store")
  exchange(tmp_path / "store", "delf", tmp_path / "files")
  photos = photographs(tmp_path / "photos")
  exchange(tmp_path / "files", "hloc", tmp_path / "f.h5", photos=photos)
  exchange(tmp_path / "f.h5", "store", tmp_path / "back")
  check(open_store(tmp_path / "back"))


def test_what_cannot_be_used_is_skipped(tmp_path):
  fill(tmp_path / "store")
  files = tmp_path / "files"
  exchange(tmp_path / "store", "delf", files)
  (files / "a.delf").write_bytes(b"broken")
  interchange.write_delf(files / "wrong.delf", make(0, dim=9))
  large = make(1)
  large = large.replace(descriptors=large.descriptors * 1e5)
  interchange.write_delf(files / "z.delf", large)
  photos = photographs(tmp_path / "photos")
  for name in ("wrong.jpg", "z.jpg"):
    Image.new("RGB", (9, 9)).save(photos / name)
  Image.new("RGB", (9, 9)).save(photos / "place" / "none.png")
  (photos / "place" / "b.png").write_bytes(b"broken")
  done, kept, features, skipped = exchange(
    files, "store", tmp_path / "back", photos=photos, dtype="float16"
  )
  assert (done, kept, features) == (1, 0, 5)
  reasons = dict(skipped)
  assert reasons.keys() == {
    *("a.jpg", "place/b.png", "place/none.delf", "wrong.jpg", "z.jpg")
  }
  assert "a.delf" in reasons["a.jpg"]
  assert "2 photographs" in reasons["place/none.delf"]
  assert "9 dimensions" in reasons["wrong.jpg"]
  assert "float16" in reasons["z.jpg"]
  back = open_store(tmp_path / "back")
  assert back.paths == ("place/c é.jpg",)
  assert dict(back.skipped) == reasons
  # Mended, the same command adds what was missing.
  interchange.write_delf(files / "a.delf", make(0))
  counts = exchange(
    files, "store", tmp_path / "back", photos=photos, dtype="float16"
  )
  assert counts[:2] == (1, 1) and len(counts.skipped) == 4


def test_a_damaged_photograph_of_hloc_is_skipped(h5py, tmp_path):
  fill(tmp_path / "store")
  exchange(tmp_path / "store", "hloc", tmp_path / "f.h5")
  with h5py.File(tmp_path / "f.h5", "a") as file:
    del file["a.jpg/image_size"]
    file["../x/keypoints"] = np.zeros((1, 2))
    file["../x/descriptors"] = np.zeros((8, 1))
    file["../x/image_size"] = [3, 3]
  counts = exchange(tmp_path / "f.h5", "store", tmp_path / "back")
  assert counts[:3] == (3, 0, 9)
  assert [name for name, _ in counts.skipped] == ["../x", "a.jpg"]
  assert exchange(tmp_path / "f.h5", "delf", tmp_path / "files")[0] == 3
  assert sorted(os.listdir(tmp_path)) == ["back", "f.h5", "files", "store"]


def test_names_that_do_not_go_into_the_other_format(h5py, tmp_path):
  names = ("a.jpg", "a.png", "b\udcff.jpg", "../c.jpg")
  fill(tmp_path / "store", names)
  files = exchange(tmp_path / "store", "delf", tmp_path / "out" / "files")
  assert [name for name, _ in files.skipped] == ["a.png", "../c.jpg"]
  assert "'a.jpg'" in files.skipped[0][1]
  assert os.listdir(tmp_path / "out") == ["files"]
  hloc = exchange(tmp_path / "store", "hloc", tmp_path / "f.h5")
  assert [name for name, _ in hloc.skipped] == ["b\udcff.jpg", "../c.jpg"]
  with interchange.read_hloc(tmp_path / "f.h5") as images:
    assert list(images) == ["a.jpg", "a.png"]


def test_what_makes_no_sense(h5py, tmp_path):
  store = fill(tmp_path / "store")
  (tmp_path / "empty").mkdir()
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken" / "a.delf").write_bytes(b"broken")
  interchange.write_hloc(
    tmp_path / "f.h5", [("a", PhotographFeatures(make(0), 9, 9))]
  )
  wrong = [
    (store, "store", {}, "already"),
    (tmp_path / "f.h5", "hloc", {}, "already"),
    (tmp_path / "none", "store", {}, "not there"),
    (tmp_path / "empty", "store", {}, "no .delf files"),
    (tmp_path / "broken", "store", {}, "no features that can be read"),
    (tmp_path / "broken", "hloc", {}, "none of the 1 photographs"),
    (tmp_path / "f.h5", "store", {"photos": tmp_path}, "--photos"),
  ]
  for origin, to, options, complaint in wrong:
    with pytest.raises(InputError, match=complaint):
      exchange(origin, to, tmp_path / "out", **options)
  with pytest.raises(InputError, match="is not a store"):
    exchange(tmp_path / "f.h5", "store", tmp_path / "broken")
  with pytest.raises(InputError, match="--output"):
    exchange(store, "delf", tmp_path / "f.h5")
  exchange(tmp_path / "f.h5", "store", tmp_path / "back")
  interchange.write_hloc(
    tmp_path / "f.h5", [("a", PhotographFeatures(make(0, dim=4), 9, 9))]
  )
  with pytest.raises(InputError, match="other settings.*dim"):
    exchange(tmp_path / "f.h5", "store", tmp_path / "back")


def test_foreign_features_are_searched(h5py, tmp_path):
  """From hloc's file to an index that finds the photograph of the place."""
  items = []
  for landmark in range(4):
    for view in range(2):
      picture = synthetic.render_view(0, landmark, view, clutter=False)
      features = handcrafted.extract(picture.pixels, max_features=300)
      size = picture.pixels.shape[:2]
      items.append(
        (f"{landmark}/{view}.jpg", PhotographFeatures(features, *size))
      )
  interchange.write_hloc(tmp_path / "f.h5", items)
  exchange(tmp_path / "f.h5", "store", tmp_path / "store")
  build(str(tmp_path / "store"), "exact", str(tmp_path / "index"))
  store = open_store(tmp_path / "store")
  database = connect(store, open_index(tmp_path / "index"))
  for row, name in enumerate(store.paths):
    matches = retrieval.search(
      store.features(row), store.sizes[row], database, leave_out=row
    )
    assert os.path.dirname(matches[0].path) == os.path.dirname(name)


def run(*arguments, status=0):
  done = subprocess.run(
    [sys.executable, "-m", "delf_jax.exchange", *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == status, done.stderr
  return done.stderr if done.stderr else done.stdout


def test_the_program(tmp_path):
  fill(tmp_path / "store")
  files = tmp_path / "files"
  arguments = (f"--from={tmp_path}/store", "--to=delf", f"--output={files}")
  assert "4 photographs done, 0 skipped, 12 features" in run(*arguments)
  (files / "a.delf").write_bytes(b"broken")
  arguments = (f"--from={files}", "--to=store", f"--output={tmp_path}/back")
  printed = run(*arguments, "--strict", status=1)
  assert printed.startswith("skipped") and "a.delf" in printed
  assert "3 photographs done, 1 skipped, 9 features" in printed
  assert "0 photographs done, 3 were there, 1 skipped" in run(*arguments)
  assert "not there" in run("--from=none", *arguments[1:], status=1)


def test_kinds_are_seen_from_the_files(tmp_path):
  assert kind_of(str(fill(tmp_path / "store"))) == "store"
  assert kind_of(str(tmp_path)) == "delf"
  assert set(module.KINDS) == {"hloc", "delf", "store"}
