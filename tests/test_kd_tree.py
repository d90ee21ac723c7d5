"""The KD-tree beside `exact` over what its codes stand for."""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.index import directory, exact, kd_tree, open_index
from tests.index_sets import (
  assert_same,
  assert_well_formed,
  hashes,
  make_clustered,
  make_odd,
  recall,
)

HERE = pathlib.Path(__file__)
ODD = ["duplicated", "one apart", "constant", "ties", "random", "scaled"]


@pytest.fixture(scope="module")
def descriptors():
  return make_clustered()[0]


@pytest.fixture(scope="module")
def queries():
  return make_clustered()[1]


@pytest.fixture(
  scope="module", params=[False, True], ids=["codes", "originals"]
)
def built(request, descriptors):
  return kd_tree.build(
    descriptors, leaves=120, originals=request.param, threads=3
  )


def measured_against(built, descriptors):
  """What the distances of an index are measured to."""
  kept = len(built._arrays["originals"])
  return descriptors if kept else built.decoded()


def test_codes_are_within_half_a_step(descriptors):
  built = kd_tree.build(descriptors)
  low, step = built._arrays["low"], built._arrays["step"]
  error = np.abs(built.decoded() - descriptors)
  inside = (descriptors >= low) & (descriptors <= low + 255 * step)
  assert (error <= 0.501 * step)[inside].all()
  assert inside.mean() > 0.995
  # The range is a dimension's own, and no coarser than the whole of it.
  spread = np.ptp(descriptors, axis=0) / 255
  assert (step <= spread * 1.0001).all() and (step > 0.5 * spread).all()


def test_all_leaves_find_what_exact_finds(descriptors, queries):
  built = kd_tree.build(descriptors)
  wanted = exact.build(built.decoded())
  built.leaves = len(descriptors)
  for k, exclude in [(1, None), (10, None), (64, (100, 4000))]:
    assert_same(
      built.search(queries, k, exclude=exclude),
      wanted.search(queries, k, exclude=exclude),
    )


def test_with_originals_all_leaves_are_exact(descriptors, queries):
  built = kd_tree.build(descriptors, leaves=5000, originals=True)
  assert_same(
    built.search(queries, 10), exact.build(descriptors).search(queries, 10)
  )


def test_more_leaves_find_more(built, descriptors, queries):
  wanted = exact.build(descriptors).search(queries, 10)[1]
  given = built.leaves
  found = []
  for leaves in [1, 10, 40, 120, 625]:
    built.leaves = leaves
    found.append(recall(built.search(queries, 10)[1], wanted))
  built.leaves = given
  assert found == sorted(found)
  assert found[0] < 0.5 and found[3] > 0.85 and found[4] > 0.95


@pytest.mark.parametrize("leaf_size", [1, 3, 8, 50])
def test_no_more_leaves_are_visited_than_asked(leaf_size, descriptors, queries):
  built = kd_tree.build(descriptors, leaves=7, leaf_size=leaf_size)
  # All that was compared would be found, were it asked for; but then leaves
  # beyond the seventh are visited until there are enough.
  few = built.search(queries[:20], 7 * leaf_size)[1]
  leaf_of = np.empty(len(descriptors), int)
  leaf_of[built._arrays["rows"]] = np.arange(len(descriptors)) // leaf_size
  assert {len(set(leaf_of[rows])) for rows in few} == {7}


def test_leaves_are_full_and_hold_each_row_once(descriptors):
  built = kd_tree.build(descriptors[:4999])
  rows = built._arrays["rows"]
  np.testing.assert_array_equal(np.sort(rows), np.arange(4999))
  leaves = np.split(rows, range(6, 4999, 6))
  assert all((np.diff(leaf) > 0).all() for leaf in leaves)
  boxes = built._arrays["boxes"][: len(leaves)]
  codes = np.split(built._arrays["codes"], range(6, 4999, 6))
  for box, held in zip(boxes, codes, strict=True):
    np.testing.assert_array_equal(box, [held.min(axis=0), held.max(axis=0)])
  # Near descriptors share a leaf: its box is much smaller than the whole.
  size = np.ptp(boxes.astype(float), axis=1).mean()
  shuffled = np.stack([held[0] for held in codes[:600]])
  assert size < 0.8 * np.ptp(shuffled.reshape(-1, 6, 40), axis=1).mean()


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
    assert_well_formed(
      found, measured_against(built, descriptors), queries, 10, exclude
    )
    wanted = whole.search(queries, 10, exclude=exclude)
    assert recall(found[1], wanted[1]) >= 0.85


def test_saved_and_opened_it_answers_the_same(tmp_path, built, queries):
  built.save(tmp_path / "index", provenance={"store": "photos"})
  wanted = built.search(queries, 10, exclude=(5, 50))
  for verify in [True, False]:
    opened = open_index(tmp_path / "index", verify=verify)
    assert opened.nbytes == built.nbytes
    assert_same(opened.search(queries, 10, exclude=(5, 50)), wanted)
  # What was opened can be saved again, over the files that it has mapped.
  opened.save(tmp_path / "index")
  assert_same(opened.search(queries, 10, exclude=(5, 50)), wanted)
  again = open_index(tmp_path / "index")
  assert_same(again.search(queries, 10, exclude=(5, 50)), wanted)


def test_same_seed_same_bits_in_any_process(tmp_path, descriptors, queries):
  built = kd_tree.build(descriptors)
  built.save(tmp_path / "here")
  np.save(tmp_path / "descriptors.npy", descriptors)
  np.save(tmp_path / "queries.npy", queries)
  code = (
    "import json, sys, numpy as np\n"
    "from delf_jax.index import kd_tree\n"
    "path = sys.argv[1]\n"
    "built = kd_tree.build(np.load(path + '/descriptors.npy'), threads=1)\n"
    "built.save(path + '/elsewhere')\n"
    "found = built.search(np.load(path + '/queries.npy'), 10)\n"
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
  assert hashes(tmp_path / "elsewhere") == hashes(tmp_path / "here")
  assert_same(
    (np.array(distances, np.float32), np.array(rows, np.int32)),
    built.search(queries, 10),
  )


def test_the_seed_picks_the_sample(monkeypatch, descriptors):
  monkeypatch.setattr(kd_tree, "_SAMPLE", 500)
  one, same, other = (
    kd_tree.build(descriptors, seed=seed)._arrays for seed in (0, 0, 1)
  )
  for name in one:
    np.testing.assert_array_equal(one[name], same[name], strict=True)
  assert (one["step"] != other["step"]).any()


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("originals", [False, True])
def test_odd_sets_are_searched(tmp_path, name, originals):
  descriptors, queries = make_odd(name)
  built = kd_tree.build(descriptors, leaf_size=4, originals=originals)
  kept = measured_against(built, descriptors)
  for k, exclude in [(1, (0, 0)), (12, (30, 320)), (700, (0, 0))]:
    found = built.search(queries, k, exclude=exclude)
    assert_well_formed(found, kept, queries, k, exclude)
    wanted = exact.build(kept).search(queries, k, exclude=exclude)
    assert recall(found[0], wanted[0]) >= 0.99  # distances: rows may tie
  built.save(tmp_path / "index")
  assert_same(open_index(tmp_path / "index").search(queries, k), found)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 70, 129])
def test_few_descriptors_are_all_compared(n):
  descriptors, queries = make_odd("random")
  built = kd_tree.build(descriptors[-n:], originals=True)
  wanted = exact.build(descriptors[-n:])
  for k, exclude in [(1, None), (9, None), (9, (0, 1)), (9, (0, 129))]:
    assert_same(
      built.search(queries, k, exclude=exclude),
      wanted.search(queries, k, exclude=exclude),
    )


def test_nothing_to_find_and_nothing_asked(tmp_path):
  queries = np.ones((3, 8), np.float32)
  built = kd_tree.build(queries[:0])
  built.save(tmp_path / "index")
  for empty in [built, open_index(tmp_path / "index")]:
    distances, rows = empty.search(queries, 4)
    assert (distances == np.inf).all() and (rows == -1).all()
    assert rows.shape == (3, 4)
  distances, rows = kd_tree.build(queries).search(queries[:0], 4)
  assert distances.shape == rows.shape == (0, 4)


def test_copies_are_found_in_the_order_of_rows():
  generator = np.random.default_rng(0)
  distinct = generator.normal(size=(500, 8)).astype(np.float32)
  built = kd_tree.build(np.tile(distinct, (40, 1)), originals=True)
  distances, rows = built.search(distinct, 40, exclude=(0, 500))
  assert (distances[:, :39] == 0).all() and (distances[:, 39] > 0).all()
  np.testing.assert_array_equal(
    rows[:, :39], np.arange(500)[:, None] + 500 * np.arange(1, 40)[None, :]
  )


def test_a_few_far_numbers_do_not_coarsen_the_rest(queries):
  descriptors = make_clustered()[0].copy()
  descriptors[:2] *= 20
  built = kd_tree.build(descriptors)
  error = built.decoded()[2:] - descriptors[2:]
  assert np.sqrt(np.square(error).sum(axis=1).mean()) < 0.05


def damage(path, name):
  (found,) = path.glob(f"{name}-*.npy")
  content = bytearray(found.read_bytes())
  content[-3] ^= 4
  found.write_bytes(content)


def truncate(path, name):
  (found,) = path.glob(f"{name}-*.npy")
  found.write_bytes(found.read_bytes()[:-8])


@pytest.mark.parametrize("harm", [damage, truncate])
@pytest.mark.parametrize("name", ["codes", "rows", "boxes", "step"])
def test_damaged_files_are_refused(tmp_path, harm, name):
  kd_tree.build(make_odd("random")[0]).save(tmp_path / "index")
  harm(tmp_path / "index", name)
  with pytest.raises(InputError, match="is damaged .*build it again"):
    open_index(tmp_path / "index")


def break_rows(arrays):
  arrays["rows"][5] = arrays["rows"][6]


def break_far_rows(arrays):
  arrays["rows"][5] = 1 << 30


def break_boxes(arrays):
  arrays["boxes"][3, 1, 2] -= 1


def lose_boxes(arrays):
  arrays["boxes"] = arrays["boxes"][:-1]


def break_dtype(arrays):
  arrays["rows"] = arrays["rows"].astype(np.int64)


def break_step(arrays):
  arrays["step"][3] = 0


def break_low(arrays):
  arrays["low"][3] = np.nan


def break_originals(arrays):
  arrays["originals"][3, 3] = np.inf


def lose_originals(arrays):
  arrays["originals"] = arrays["originals"][:-1]


def lose_codes(arrays):
  del arrays["codes"]


def flatten_codes(arrays):
  arrays["codes"] = arrays["codes"].reshape(-1)


@pytest.mark.parametrize(
  "harm",
  [
    break_rows,
    break_far_rows,
    break_boxes,
    lose_boxes,
    break_dtype,
    break_step,
    break_low,
    break_originals,
    lose_originals,
    lose_codes,
    flatten_codes,
  ],
)
def test_a_tree_made_to_lead_astray_is_refused(tmp_path, harm):
  built = kd_tree.build(make_odd("random")[0], originals=True)
  built.save(tmp_path / "index")
  meta, arrays = directory.read(tmp_path / "index", kinds=["kd_tree"])
  arrays = {name: array.copy() for name, array in arrays.items()}
  harm(arrays)
  with pytest.raises((KeyError, ValueError)):
    kd_tree.restore(meta["parameters"], arrays)


@pytest.mark.parametrize(
  "changed",
  [
    {"leaf_size": 0},
    {"leaf_size": 7},
    {"leaf_size": 1 << 62},
    {"leaves": 0},
    {"leaves": "many"},
    {"leaves": 1 << 70},
    {"leaves": None},
  ],
)
def test_parameters_made_to_lead_astray_are_refused(tmp_path, changed):
  kd_tree.build(make_odd("random")[0]).save(tmp_path / "index")
  meta, arrays = directory.read(tmp_path / "index", kinds=["kd_tree"])
  with pytest.raises((TypeError, ValueError)):
    kd_tree.restore({**meta["parameters"], **changed}, arrays)


def test_what_cannot_be_used_is_refused():
  descriptors, queries = make_odd("random")
  built = kd_tree.build(descriptors)
  with pytest.raises(InputError, match="7 dimensions and the index 8"):
    built.search(queries[:, :7], 3)
  queries[17, 3] = np.nan
  with pytest.raises(InputError, match="query 17"):
    built.search(queries, 3)
  with pytest.raises(InputError, match="descriptor 17"):
    kd_tree.build(queries)
  for options in [{"leaves": 0}, {"leaf_size": 0}, {"leaf_size": 1 << 40}]:
    with pytest.raises(ValueError):
      kd_tree.build(descriptors, **options)
