"""One process pays once for what numba compiles, so all of it is here."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.index import directory, exact, graph, open_index
from tests.index_sets import (
  assert_same,
  assert_well_formed,
  hashes,
  make_clustered,
  make_odd,
  recall,
)

HERE = pathlib.Path(__file__)

PRECISIONS = ["float32", "float16", "int8"]


ODD = ["duplicated", "one apart", "constant", "ties", "random"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
  """Builds the same in another process with one thread, meanwhile."""
  path = tmp_path_factory.mktemp("elsewhere")
  code = (
    f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n"
    "from test_graph import *\n"
    "for name in PRECISIONS:\n"
    "  built = graph.build(make_clustered()[0], precision=name, threads=1)\n"
    f"  built.save({str(path)!r} + '/' + name)\n"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=HERE.parents[1],
    env={**os.environ, "NUMBA_NUM_THREADS": "1"},
  ) as process:
    yield path, process


@pytest.fixture(scope="module")
def descriptors(elsewhere):
  return make_clustered()[0]


@pytest.fixture(scope="module")
def queries():
  return make_clustered()[1]


@pytest.fixture(scope="module", params=PRECISIONS)
def built(request, descriptors):
  return graph.build(descriptors, precision=request.param, threads=3)


@pytest.fixture(scope="module")
def wanted(descriptors, queries):
  return exact.build(descriptors).search(queries, 10)


def test_most_of_the_nearest_are_found(built, descriptors, queries, wanted):
  found = built.search(queries, 10)
  assert_well_formed(found, built.descriptors, queries, 10)
  assert recall(found[1], wanted[1]) >= 0.9
  _, rows = built.search(descriptors, 1)
  assert (rows[:, 0] == np.arange(len(descriptors))).mean() > 0.999


@pytest.mark.slow
def test_pynndescent_finds_the_neighbours_of_large_sets(
  tmp_path, descriptors, queries, wanted, monkeypatch
):
  monkeypatch.setattr(graph, "_MOST_WALKED", 100)
  index = graph.build(descriptors, threads=2)
  found = index.search(queries, 10)
  assert_well_formed(found, descriptors, queries, 10)
  assert recall(found[1], wanted[1]) > 0.9
  index.save(tmp_path / "one")
  graph.build(descriptors, threads=1).save(tmp_path / "two")
  assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
  built_with = directory.read_meta(tmp_path / "one")["parameters"]["built_with"]
  assert built_with["builder"] == "pynndescent"
  # Too few for NN-descent.
  graph.build(descriptors[:40], builder="pynndescent").search(queries, 10)
  with pytest.raises(InputError, match="no builder; expected pynndescent"):
    graph.build(descriptors, builder="magic")


def test_descriptors_are_rounded_no_more_than_said(built, descriptors):
  stored = built.descriptors
  if built.precision == "int8":
    steps = (descriptors.max(axis=0) - descriptors.min(axis=0)) / 254
    assert (np.abs(stored - descriptors) <= 0.501 * steps).all()
  else:
    halves = descriptors.astype(built.precision)
    np.testing.assert_array_equal(stored, halves.astype(np.float32))


def test_smaller_numbers_make_a_smaller_index(descriptors):
  sizes = {
    name: graph.build(descriptors, precision=name).nbytes for name in PRECISIONS
  }
  saved = sizes["float32"] - sizes["float16"]
  assert saved == descriptors.nbytes // 2
  assert sizes["float16"] - sizes["int8"] == saved // 2


def test_what_float16_holds_is_kept_as_float16(descriptors, queries):
  halves = descriptors.astype(np.float16).astype(np.float32)
  small = graph.build(halves)
  assert small.precision == "float16"
  assert graph.build(descriptors).precision == "float32"
  np.testing.assert_array_equal(small.descriptors, halves)
  large = graph.build(halves, precision="float32")
  assert_same(small.search(queries, 10), large.search(queries, 10))


def test_every_number_of_float16_is_read():
  halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
  numbers = halves[np.isfinite(halves)].astype(np.float32)
  descriptors = np.random.default_rng(0).permutation(numbers).reshape(-1, 8)
  descriptors[::2] *= 2.0**-20  # some become the smallest there are
  descriptors = descriptors.astype(np.float16).astype(np.float32)
  built = graph.build(descriptors)
  assert built.precision == "float16"
  queries = descriptors[::50]
  found = built.search(queries, 10)
  assert_well_formed(found, descriptors, queries, 10)
  assert (found[0][:, 0] == 0).all()


def test_too_large_for_float16():
  descriptors = np.full((3, 8), 70_000, np.float32)
  with pytest.raises(InputError, match="70000, too large for float16"):
    graph.build(descriptors, precision="float16")
  assert graph.build(descriptors).precision == "float32"


def test_neither_threads_nor_company_change_a_bit(built, queries):
  wanted = built.search(queries, 10)
  for part in [slice(0, 1), slice(3, 100), slice(None, None, -1)]:
    assert_same(built.search(queries[part], 10), [a[part] for a in wanted])
  threads, built.threads = built.threads, 1
  assert_same(built.search(queries, 10), wanted)
  built.threads = threads
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for found in pool.map(lambda _: built.search(queries, 10), range(6)):
      assert_same(found, wanted)


def test_excluded_rows_are_not_found(built, descriptors, queries):
  whole = exact.build(descriptors)
  for exclude in [(0, 100), (4000, 5000), (10, 4500), (1, 4999), (0, 9000)]:
    found = built.search(queries, 10, exclude=exclude)
    assert_well_formed(found, built.descriptors, queries, 10, exclude)
    wanted = whole.search(queries, 10, exclude=exclude)
    assert recall(found[1], wanted[1]) >= 0.9


def test_saved_and_opened_it_answers_the_same(tmp_path, built, queries):
  built.save(tmp_path / "index", provenance={"store": "photos"})
  wanted = built.search(queries, 10, exclude=(5, 50))
  for verify in [True, False]:
    opened = open_index(tmp_path / "index", verify=verify)
    assert_same(opened.search(queries, 10, exclude=(5, 50)), wanted)
  # What was opened can be saved again, over the files that it has mapped.
  opened.save(tmp_path / "index")
  assert_same(opened.search(queries, 10, exclude=(5, 50)), wanted)
  again = open_index(tmp_path / "index")
  assert_same(again.search(queries, 10, exclude=(5, 50)), wanted)


def test_same_seed_same_bits_in_any_process(
  tmp_path, elsewhere, built, descriptors
):
  path, process = elsewhere
  built.save(tmp_path / "here")
  name = built.precision
  # An index appears when it is whole.
  while process.poll() is None and not (path / name / "meta.json").exists():
    time.sleep(0.1)
  assert hashes(path / name) == hashes(tmp_path / "here")
  graph.build(descriptors, precision=name).save(tmp_path / "again")
  assert hashes(tmp_path / "again") == hashes(tmp_path / "here")
  graph.build(descriptors, precision=name, seed=1).save(tmp_path / "another")
  assert hashes(tmp_path / "another") != hashes(tmp_path / "here")


def test_a_fresh_process_answers_the_same(tmp_path, built, queries):
  built.save(tmp_path / "index")
  np.save(tmp_path / "queries.npy", queries)
  code = (
    "import json, sys, numpy as np\n"
    "from delf_jax.index import open_index\n"
    "opened = open_index(sys.argv[1] + '/index')\n"
    "found = opened.search(np.load(sys.argv[1] + '/queries.npy'), 10)\n"
    "print(json.dumps([a.tolist() for a in found]))\n"
  )
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
    cwd=HERE.parents[1],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  distances, rows = json.loads(done.stdout)
  wanted = built.search(queries, 10)
  assert_same(
    (np.array(distances, np.float32), np.array(rows, np.int32)), wanted
  )


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_odd_sets_are_searched(tmp_path, name, precision):
  descriptors, queries = make_odd(name)
  built = graph.build(descriptors, precision=precision)
  descriptors = built.descriptors
  for k, exclude in [(1, (0, 0)), (12, (30, 320)), (700, (0, 0))]:
    found = built.search(queries, k, exclude=exclude)
    assert_well_formed(found, descriptors, queries, k, exclude)
    wanted = exact.build(descriptors).search(queries, k, exclude=exclude)
    assert recall(found[0], wanted[0]) >= 0.9  # distances: rows may tie
  built.save(tmp_path / "index")
  assert_same(open_index(tmp_path / "index").search(queries, k), found)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 70])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_few_descriptors_are_all_compared(n, precision):
  descriptors, queries = make_odd("random")
  built = graph.build(descriptors[-n:], precision=precision)
  descriptors = built.descriptors
  wanted = exact.build(descriptors)
  for k, exclude in [(1, None), (9, None), (9, (0, 1)), (9, (0, 70))]:
    found = built.search(queries, k, exclude=exclude)
    if n < 20:
      assert_same(found, wanted.search(queries, k, exclude=exclude))
    assert_well_formed(found, descriptors, queries, k, exclude or (0, 0))


def test_nothing_to_find_and_nothing_asked(tmp_path):
  queries = np.ones((3, 8), np.float32)
  built = graph.build(queries[:0])
  built.save(tmp_path / "index")
  for empty in [built, open_index(tmp_path / "index")]:
    distances, rows = empty.search(queries, 4)
    assert (distances == np.inf).all() and (rows == -1).all()
    assert rows.shape == (3, 4)
  distances, rows = graph.build(queries).search(queries[:0], 4)
  assert distances.shape == rows.shape == (0, 4)


def test_a_walk_that_falls_short_is_answered_by_exact():
  # Islands of 20, no bridge between them, and 200 wanted.
  generator = np.random.default_rng(0)
  centres = 100 * generator.normal(size=(100, 8))
  descriptors = np.repeat(centres, 20, axis=0)
  descriptors += generator.normal(size=descriptors.shape)
  descriptors = descriptors.astype(np.float32)
  queries = descriptors[::37]
  built = graph.build(descriptors, n_neighbors=5, leaves=1)
  assert_same(
    built.search(queries, 200), exact.build(descriptors).search(queries, 200)
  )


def test_copies_are_found_in_the_order_of_rows():
  generator = np.random.default_rng(0)
  distinct = generator.normal(size=(500, 8)).astype(np.float32)
  descriptors = np.tile(distinct, (40, 1))
  built = graph.build(descriptors)
  distances, rows = built.search(distinct, 40, exclude=(0, 500))
  assert (distances[:, :39] == 0).all() and (distances[:, 39] > 0).all()
  np.testing.assert_array_equal(
    rows[:, :39], np.arange(500)[:, None] + 500 * np.arange(1, 40)[None, :]
  )


def break_edges(arrays):
  arrays["edges"][7] = len(arrays["vertices"])


def break_starts(arrays):
  arrays["edge_start"][5] = arrays["edge_start"][6] + 1


def break_members(arrays):
  arrays["members"][5] = arrays["members"][6]


def break_member_start(arrays):
  arrays["member_start"] = np.arange(600, dtype=np.int32)


def break_steps(arrays):
  arrays["steps"][3] = np.inf


def break_tree(arrays):
  arrays["offsets"] = arrays["offsets"][:-1]


def break_dtype(arrays):
  arrays["edges"] = arrays["edges"].astype(np.int64)


def break_numbers(arrays):
  arrays["vertices"][3, 3] = np.nan


def lose_one(arrays):
  del arrays["members"]


@pytest.mark.parametrize(
  "harm",
  [
    break_edges,
    break_starts,
    break_members,
    break_member_start,
    break_steps,
    break_tree,
    break_dtype,
    break_numbers,
    lose_one,
  ],
)
def test_a_graph_made_to_lead_astray_is_refused(tmp_path, harm):
  graph.build(make_odd("random")[0]).save(tmp_path / "index")
  meta, arrays = directory.read(tmp_path / "index", kinds=["graph"])
  arrays = {name: array.copy() for name, array in arrays.items()}
  harm(arrays)
  directory.write(
    tmp_path / "index",
    kind="graph",
    parameters=meta["parameters"],
    arrays=arrays,
    provenance={},
  )
  with pytest.raises(InputError, match="index' is damaged .*build it again"):
    open_index(tmp_path / "index")


def test_more_edges_than_any_index_has_do_no_harm(tmp_path):
  descriptors, queries = make_odd("random")
  graph.build(descriptors).save(tmp_path / "index")
  meta, arrays = directory.read(tmp_path / "index", kinds=["graph"])
  n = len(descriptors)
  directory.write(
    tmp_path / "index",
    kind="graph",
    parameters=meta["parameters"],
    arrays={
      **arrays,
      "edge_start": np.arange(0, n * n + 1, n).astype(np.uint32),
      "edges": np.tile(np.arange(n, dtype=np.int32), n),
    },
    provenance={},
  )
  found = open_index(tmp_path / "index").search(queries, 10)
  assert_well_formed(found, descriptors, queries, 10)


@pytest.mark.parametrize("parameters", [{}, {"epsilon": "much"}])
def test_parameters_made_to_lead_astray_are_refused(tmp_path, parameters):
  graph.build(make_odd("random")[0]).save(tmp_path / "index")
  _, arrays = directory.read(tmp_path / "index", kinds=["graph"])
  directory.write(
    tmp_path / "index",
    kind="graph",
    parameters=parameters,
    arrays=arrays,
    provenance={},
  )
  with pytest.raises(InputError, match="index' is damaged"):
    open_index(tmp_path / "index")


def test_what_cannot_be_used_is_refused():
  descriptors, queries = make_odd("random")
  built = graph.build(descriptors)
  with pytest.raises(InputError, match="7 dimensions and the index 8"):
    built.search(queries[:, :7], 3)
  queries[17, 3] = np.nan
  with pytest.raises(InputError, match="query 17"):
    built.search(queries, 3)
  with pytest.raises(InputError, match="descriptor 17"):
    graph.build(queries)
  for options in [{"n_neighbors": 0}, {"epsilon": -1.0}, {"leaves": 0}]:
    with pytest.raises(ValueError):
      graph.build(descriptors, **options)
  with pytest.raises(InputError, match="'float64' is no precision"):
    graph.build(descriptors, precision="float64")
