"""FAISS and ScaNN behind our interface, where they are installed."""

import concurrent.futures
import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.index import (
  directory,
  exact,
  faiss_index,
  open_index,
  scann_index,
)
from tests.index_sets import (
  assert_same,
  hashes,
  make_clustered,
  make_odd,
  recall,
)

HERE = pathlib.Path(__file__)
MODULES = {"faiss": faiss_index, "scann": scann_index}
LISTS = "IVF64,Flat"
CODES = "IVF64,PQ20x4fs,Refine(SQ8)"
# {name: (kind, options)}; all are searched approximately but the first two.
BUILDS = {
  "faiss flat": ("faiss", {}),
  "scann whole": ("scann", {}),
  "faiss lists": ("faiss", {"factory": LISTS, "settings": "nprobe=16"}),
  "faiss codes": (
    "faiss",
    {"factory": CODES, "settings": "nprobe=16,k_factor_rf=16"},
  ),
  "faiss graph": ("faiss", {"factory": "HNSW16", "settings": "efSearch=64"}),
  "scann lists": ("scann", {"exact_up_to": 0, "lists": 64, "search": 16}),
}
ODD = ["duplicated", "constant", "ties", "random"]


def installed(kind):
  return importlib.util.find_spec(kind) is not None


def builds(*names):
  return pytest.mark.parametrize(
    "name",
    [
      pytest.param(
        name,
        marks=pytest.mark.skipif(
          not installed(BUILDS[name][0]), reason="not installed"
        ),
      )
      for name in names or BUILDS
    ],
  )


def build(name, descriptors, **changed):
  kind, options = BUILDS[name]
  # More threads wait for each other where other tests keep the cores busy.
  return MODULES[kind].build(
    descriptors, **{"threads": 1, **options, **changed}
  )


def assert_well_formed(
  found, descriptors, queries, k, exclude=(0, 0), tolerance=1e-4
):
  distances, rows = found
  n = len(descriptors)
  left = n - len(range(*slice(*exclude).indices(n)))
  there = min(k, left)
  assert distances.shape == rows.shape == (len(queries), k)
  assert distances.dtype == np.float32 and rows.dtype == np.int32
  assert (rows[:, there:] == -1).all()
  assert (distances[:, there:] == np.inf).all()
  rows, distances = rows[:, :there], distances[:, :there]
  assert (rows >= 0).all() and (rows < n).all()
  assert not ((rows >= exclude[0]) & (rows < exclude[1])).any()
  assert all(len(set(row)) == there for row in rows)
  true = np.linalg.norm(queries[:, None] - descriptors[rows], axis=-1)
  np.testing.assert_allclose(distances, true, atol=tolerance)
  steps = np.diff(distances)
  assert (steps >= 0).all()
  assert (np.diff(rows)[steps == 0] > 0).all()


@pytest.fixture(scope="module")
def descriptors():
  return make_clustered(m=100)[0]


@pytest.fixture(scope="module")
def queries():
  return make_clustered(m=100)[1]


@builds()
def test_most_of_the_nearest_are_found(name, descriptors, queries):
  built = build(name, descriptors)
  tolerance = 0.02 if name == "faiss codes" else 1e-4
  whole = exact.build(descriptors)
  for exclude in [(0, 0), (0, 100), (10, 4500), (1, 4999), (0, 9000)]:
    found = built.search(queries, 10, exclude=exclude)
    assert_well_formed(
      found, descriptors, queries, 10, exclude, tolerance=tolerance
    )
    wanted = whole.search(queries, 10, exclude=exclude)[1]
    least = 1 if name in ["faiss flat", "scann whole"] else 0.9
    assert recall(found[1], wanted) >= least
  assert len(descriptors) * 40 < built.nbytes < len(descriptors) * 400


@builds()
def test_neither_threads_nor_company_change_a_bit(name, descriptors, queries):
  built = build(name, descriptors, threads=2)
  wanted = built.search(queries, 10)
  for part in [slice(0, 1), slice(3, 50), slice(None, None, -1)]:
    assert_same(built.search(queries[part], 10), [a[part] for a in wanted])
  built.threads = 1
  assert_same(built.search(queries, 10), wanted)
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for found in pool.map(lambda _: built.search(queries, 10), range(6)):
      assert_same(found, wanted)


@builds()
def test_same_seed_same_bits_in_any_process(
  tmp_path, name, descriptors, queries
):
  built = build(name, descriptors, threads=2)
  built.save(tmp_path / "here", provenance={"store": "photos"})
  wanted = built.search(queries, 10, exclude=(5, 50))
  code = (
    "import sys, json; sys.path.insert(0, sys.argv[1])\n"
    "from test_peer_indexes import *\n"
    "descriptors, queries = make_clustered(m=100)\n"
    "built = build(sys.argv[2], descriptors)\n"
    "built.save(sys.argv[3] + '/elsewhere')\n"
    "opened = open_index(sys.argv[3] + '/here')\n"
    "found = opened.search(queries, 10, exclude=(5, 50))\n"
    "print(json.dumps([a.tolist() for a in found]))\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(HERE.parent), name, str(tmp_path)],
    cwd=HERE.parents[1],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  distances, rows = json.loads(done.stdout)
  assert_same(
    (np.array(distances, np.float32), np.array(rows, np.int32)), wanted
  )
  assert hashes(tmp_path / "elsewhere") == hashes(tmp_path / "here")
  if name not in ["faiss flat", "scann whole"]:
    build(name, descriptors, seed=1).save(tmp_path / "other")
    assert hashes(tmp_path / "other") != hashes(tmp_path / "here")
  # What was opened can be saved again.
  opened = open_index(tmp_path / "here")
  opened.save(tmp_path / "here")
  assert hashes(tmp_path / "elsewhere") == hashes(tmp_path / "here")
  assert_same(opened.search(queries, 10, exclude=(5, 50)), wanted)


@builds()
@pytest.mark.parametrize("odd", ODD)
def test_odd_sets_are_searched(name, odd):
  descriptors, queries = make_odd(odd, 40, 20)
  built = build(name, descriptors)
  # What codes cannot tell apart they do not put in order either.
  tolerance = 0.1 if name == "faiss codes" else 1e-3
  for k, exclude in [(1, (0, 0)), (12, (30, 320)), (700, (0, 0))]:
    found = built.search(queries, k, exclude=exclude)
    assert_well_formed(
      found, descriptors, queries, k, exclude, tolerance=tolerance
    )


@builds("faiss flat", "scann whole")
@pytest.mark.parametrize("n", [1, 2, 3, 17, 70])
def test_few_descriptors_are_all_compared(name, n):
  descriptors, queries = make_odd("random", 40, 20)
  built = build(name, descriptors[-n:])
  wanted = exact.build(descriptors[-n:])
  for k, exclude in [(1, None), (9, None), (9, (0, 1)), (9, (0, 70))]:
    found = built.search(queries, k, exclude=exclude)
    assert_well_formed(found, descriptors[-n:], queries, k, exclude or (0, 0))
    assert recall(found[1], wanted.search(queries, k, exclude=exclude)[1]) == 1


@builds("faiss flat", "scann whole", "faiss lists", "scann lists")
def test_nothing_to_find_and_nothing_asked(tmp_path, name):
  queries = np.ones((3, 8), np.float32)
  built = build(name, queries[:0])
  built.save(tmp_path / "index")
  for empty in [built, open_index(tmp_path / "index")]:
    distances, rows = empty.search(queries, 4)
    assert (distances == np.inf).all() and (rows == -1).all()
    assert rows.shape == (3, 4)
  descriptors = np.eye(8, dtype=np.float32)
  distances, rows = build(
    name.split()[0] + " " + ("flat" if "faiss" in name else "whole"),
    descriptors,
  ).search(queries[:0], 4)
  assert distances.shape == rows.shape == (0, 4)


@builds("faiss lists", "scann lists")
def test_more_than_the_lists_hold_is_found_all_the_same(
  name, descriptors, queries
):
  few = "settings" if "faiss" in name else "search"
  built = build(
    name, descriptors, **{few: "nprobe=1" if "faiss" in name else 1}
  )
  found = built.search(queries[:5], 3000)
  assert_well_formed(found, descriptors, queries[:5], 3000)
  wanted = exact.build(descriptors).search(queries[:5], 3000)[1]
  assert recall(found[1], wanted) > 0.999


@builds("faiss lists", "scann lists")
def test_damaged_files_are_refused(tmp_path, name, descriptors):
  build(name, descriptors).save(tmp_path / "index")
  for file in sorted((tmp_path / "index").glob("*.npy")):
    whole = file.read_bytes()
    for content in [
      whole[:-8],
      whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:],
    ]:
      file.write_bytes(content)
      with pytest.raises(InputError, match="is damaged .*build it again"):
        open_index(tmp_path / "index")
    file.write_bytes(whole)
  open_index(tmp_path / "index")


@builds("faiss flat")
def test_another_index_of_faiss_is_refused(tmp_path, name, descriptors):
  build(name, descriptors).save(tmp_path / "index")
  meta, arrays = directory.read(tmp_path / "index", kinds=MODULES)
  parameters = meta["parameters"]
  other = build(name, descriptors[:7])._written()
  for written in [
    other,
    arrays["written"][:40],
    arrays["written"].astype(np.int16),
    np.zeros(90, np.uint8),
  ]:
    with pytest.raises(ValueError):
      faiss_index.restore(parameters, {"written": written})


@builds("scann lists")
def test_arrays_that_do_not_fit_scann_are_refused(tmp_path, name, descriptors):
  build(name, descriptors).save(tmp_path / "index")
  meta, arrays = directory.read(tmp_path / "index", kinds=MODULES)
  for harm in [
    {"descriptors": arrays["descriptors"][:7]},
    {"descriptors": arrays["descriptors"].astype(np.float64)},
    {"codes": arrays["codes"][:7]},
    {"lists": arrays["lists"][:7]},
    {"config": arrays["config"].astype(np.int16)},
    {"assets": arrays["config"]},
    {"partitioner": arrays["partitioner"][:5]},
  ]:
    with pytest.raises(ValueError):
      scann_index.restore(meta["parameters"], {**arrays, **harm})


@builds("faiss flat", "scann whole")
def test_what_cannot_be_used_is_refused(name):
  descriptors, queries = make_odd("random", 40, 20)
  built = build(name, descriptors)
  with pytest.raises(InputError, match="39 dimensions and the index 40"):
    built.search(queries[:, :39], 3)
  queries[17, 3] = np.nan
  with pytest.raises(InputError, match="query 17"):
    built.search(queries, 3)
  with pytest.raises(InputError, match="descriptor 17"):
    build(name, queries)


@builds("faiss flat")
@pytest.mark.parametrize(
  "options",
  [
    {"factory": "Nonsense"},
    {"factory": "IVF700,Flat"},
    {"factory": "Flat", "settings": "nprobe=3"},
  ],
)
def test_what_faiss_refuses_is_said(name, options):
  with pytest.raises(InputError, match="FAISS cannot index 600 .*give another"):
    build(name, make_odd("random", 40, 20)[0], **options)


@pytest.mark.parametrize("kind", MODULES)
def test_what_is_not_installed_is_named(monkeypatch, kind):
  module = MODULES[kind]
  load = getattr(module, f"_{kind}")
  load.cache_clear()
  for name in [kind, "scann.scann_ops.py"]:
    monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(InputError, match=rf"pip install 'delf_jax\[{kind}\]'"):
    module.build(np.ones((3, 4), np.float32))
