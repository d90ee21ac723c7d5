"""One process pays once for what numba compiles, so all of it is here."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.index import directory, exact, open_index
from delf_jax.index import inverted_file_kernels as kernels
from delf_jax.index.inverted_file import Writer, build, restore, train
from tests.index_sets import (
  assert_same,
  make_clustered,
  make_odd,
  recall,
)

HERE = pathlib.Path(__file__)
WORDS = 32


ODD = ["duplicated", "one apart", "constant", "zero", "ties", "huge", "random"]


def assert_well_formed(found, left, k):
  """Everything but which of the near ones were found, of `left` rows."""
  distances, rows = found
  there = min(k, len(left))
  assert distances.shape == rows.shape and rows.shape[1] == k
  assert distances.dtype == np.float32 and rows.dtype == np.int32
  assert (rows[:, there:] == -1).all()
  assert (distances[:, there:] == np.inf).all()
  assert np.isin(rows[:, :there], left).all()
  assert all(len(set(row)) == there for row in rows[:, :there])
  for distance, row in zip(distances[:, :there], rows, strict=True):
    np.testing.assert_array_equal(
      np.lexsort((row[:there], distance)), np.arange(there)
    )


def estimates(trained, descriptors, queries):
  """[m, n] what the tables say, in double precision, and the words [n]."""
  words, codes = trained.encode(descriptors, 1)
  quantiser = trained.quantiser
  distances = np.empty((len(queries), len(descriptors)))
  for i, (word, code) in enumerate(zip(words, codes, strict=True)):
    rotation = quantiser.rotations[quantiser.rotation_of[word]]
    book = quantiser.codebooks[quantiser.codebook_of[word]]
    nearest = np.concatenate([book[j, :, c] for j, c in enumerate(code)])
    residuals = (queries - trained.centres[word]).astype(float) @ rotation
    distances[:, i] = np.linalg.norm(residuals - nearest, axis=1)
  return distances, words


def fresh(index, descriptors):
  """An index over descriptors with the trained part of another."""
  writer = Writer(
    index.trained,
    probes=index.probes,
    visit=index.visit,
    rerank=index.rerank,
  )
  writer.add(descriptors)
  return writer.finish()


def reopened(index, path):
  index.save(path)
  return open_index(path)


@pytest.fixture(scope="module")
def descriptors():
  return make_clustered(4000, 150, 24)[0]


@pytest.fixture(scope="module")
def queries():
  return make_clustered(4000, 150, 24)[1]


@pytest.fixture(scope="module")
def built(descriptors):
  return build(descriptors, words=WORDS, threads=3)


@pytest.fixture(scope="module")
def reranked(descriptors):
  return build(descriptors, words=WORDS, rerank=10, threads=3)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"rotation": "global", "codebooks": "global"},
    {"rotation": "none", "codebooks": "global", "bits": 4},
    {"bits": 8, "subvectors": 5},
  ],
)
@pytest.mark.parametrize("wide", [True, False])
def test_answers_are_those_of_the_tables(
  monkeypatch, descriptors, queries, options, wide
):
  monkeypatch.setattr(kernels, "WIDE", kernels.WIDE and wide)
  descriptors = descriptors[:1500]
  built = build(descriptors, words=16, probes=3, **options)
  all_distances, words = estimates(built.trained, descriptors, queries)
  centres = built.trained.centres
  near = exact.build(centres).search(queries, 3)[1]
  distances, rows = built.search(queries, 20)
  for i in range(len(queries)):
    seen = np.isin(words, near[i])
    wanted = np.sort(all_distances[i, seen])[:20]
    np.testing.assert_allclose(distances[i], wanted, rtol=1e-5)
    np.testing.assert_allclose(
      all_distances[i, rows[i]], distances[i], rtol=1e-5
    )
    assert seen[rows[i]].all()


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_fewer_neighbours_are_the_first_of_more(descriptors, queries, bits):
  built = build(descriptors, words=WORDS, probes=WORDS, bits=bits)
  whole = built.search(queries, len(descriptors))
  assert_well_formed(whole, np.arange(len(descriptors)), len(descriptors))
  for k in [1, 2, 17, 300]:
    assert_same(built.search(queries, k), [a[:, :k] for a in whole])


@pytest.mark.parametrize("name", ODD)
def test_odd_sets_are_searched(tmp_path, name):
  descriptors, queries = make_odd(name)
  n = len(descriptors)
  built = build(descriptors, words=7, probes=7, rerank=0)
  whole = built.search(queries, n)
  assert_well_formed(whole, np.arange(n), n)
  for k, exclude in [(1, (0, 0)), (12, (30, 320)), (700, (0, 0))]:
    found = built.search(queries, k, exclude=exclude)
    left = np.delete(np.arange(n), range(*exclude))
    assert_well_formed(found, left, k)
    for i in range(len(queries)):
      there = np.isin(whole[1][i], left)
      count = min(k, len(left))
      np.testing.assert_array_equal(found[1][i, :count], whole[1][i, there][:k])
  opened = reopened(built, tmp_path / "index")
  assert_same(opened.search(queries, k), found)


@pytest.mark.parametrize("rerank", [0, 4])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 70])
def test_few_descriptors_are_all_found(tmp_path, n, rerank):
  descriptors, queries = make_odd("random")
  built = build(descriptors[:n], rerank=rerank)
  assert len(built) == n
  for index in [built, reopened(built, tmp_path / "index")]:
    for k, exclude in [(1, None), (9, None), (9, (0, 1)), (9, (0, 70))]:
      found = index.search(queries, k, exclude=exclude)
      left = np.arange(n)[(exclude or (0, 0))[1] if exclude else 0 :]
      assert_well_formed(found, left, k)
    assert index.search(queries[:0], 5)[1].shape == (0, 5)


def test_most_of_the_nearest_are_found_again(reranked, descriptors, queries):
  wanted = exact.build(descriptors).search(queries, 10)
  reranked.probes, probes = 12, reranked.probes
  distances, rows = reranked.search(queries, 10)
  reranked.probes = probes
  assert recall(rows, wanted[1]) >= 0.95
  trained = reranked.trained
  short = trained.lowest + trained.step * trained.shorten(descriptors)
  np.testing.assert_allclose(
    distances,
    np.linalg.norm(queries[:, None] - short[rows], axis=2),
    rtol=1e-5,
  )
  np.testing.assert_allclose(distances, wanted[0], atol=0.03)


def test_own_rotations_and_centroids_find_more():
  # Around every centre the descriptors vary in other directions.
  generator = np.random.default_rng(0)
  which = generator.integers(8, size=6000)
  shapes = np.linalg.qr(generator.normal(size=(8, 24, 24)))[0]
  shapes *= 0.85 ** np.arange(24)[:, None]
  points = np.einsum(
    "nd,nde->ne", generator.normal(size=(6000, 24)), shapes[which]
  )
  points += 9 * generator.normal(size=(8, 24))[which]
  points, queries = np.split(points.astype(np.float32), [5800])
  wanted = exact.build(points).search(queries, 10)[1]
  found = [
    recall(
      build(points, words=8, rotation=rotation, codebooks=codebooks).search(
        queries, 10
      )[1],
      wanted,
    )
    for rotation, codebooks in [
      ("none", "global"),
      ("global", "global"),
      ("local", "global"),
      ("local", "local"),
    ]
  ]
  assert (np.diff(found) > [0.05, 0.05, 0]).all()


@pytest.mark.parametrize("name", ["built", "reranked"])
def test_neither_threads_nor_company_change_a_bit(request, name, queries):
  built = request.getfixturevalue(name)
  wanted = built.search(queries, 10)
  for part in [slice(0, 1), slice(3, 100), slice(None, None, -1)]:
    assert_same(built.search(queries[part], 10), [a[part] for a in wanted])
  threads, built.threads = built.threads, 1
  assert_same(built.search(queries, 10), wanted)
  built.threads = threads
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for found in pool.map(lambda _: built.search(queries, 10), range(6)):
      assert_same(found, wanted)


def test_same_seed_same_bits_in_any_process(tmp_path, built, descriptors):
  code = (
    f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n"
    "from test_inverted_file import *\n"
    "built = build(make_clustered(4000, 150, 24)[0], words=WORDS, threads=1)\n"
    f"built.save({str(tmp_path)!r} + '/there')\n"
  )
  subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[1], check=True)
  built.save(tmp_path / "here")
  build(descriptors, words=WORDS, seed=1).save(tmp_path / "another")
  here, there, another = (
    {
      name: file["sha256"]
      for name, file in directory.read_meta(tmp_path / name)["files"].items()
    }
    for name in ["here", "there", "another"]
  )
  assert here == there
  assert here["codes"] != another["codes"]


def test_saved_and_opened_it_answers_the_same(tmp_path, reranked, queries):
  reranked.save(tmp_path / "index", provenance={"store": "photos"})
  wanted = reranked.search(queries, 10, exclude=(5, 50))
  meta = directory.read_meta(tmp_path / "index")
  assert meta["provenance"] == {"store": "photos"}
  for verify in [True, False]:
    opened = open_index(tmp_path / "index", verify=verify)
    assert_same(opened.search(queries, 10, exclude=(5, 50)), wanted)
  # What was opened can be saved again, over the files that it has mapped.
  opened.save(tmp_path / "index")
  assert_same(opened.search(queries, 10, exclude=(5, 50)), wanted)


@pytest.mark.parametrize("rerank", [0, 4])
def test_a_stream_gives_what_one_batch_gives(
  tmp_path, descriptors, queries, rerank
):
  whole = build(descriptors, words=WORDS, rerank=rerank)
  for folder in [None, tmp_path]:
    writer = Writer(whole.trained, rerank=rerank, folder=folder)
    for batch in np.split(descriptors, [0, 1, 700, 701, 3000]):
      writer.add(batch)
    streamed = writer.finish()
    for a, b in zip(
      vars(streamed._parts[0]).values(),
      vars(whole._parts[0]).values(),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)
    assert_same(streamed.search(queries, 10), whole.search(queries, 10))
  assert not list(tmp_path.iterdir())
  streamed.save(tmp_path / "index")


@pytest.mark.parametrize("rerank", [0, 4])
def test_life_in_place_equals_a_fresh_index(
  tmp_path, descriptors, queries, rerank
):
  generator = np.random.default_rng(0)
  kept = descriptors[:2000]
  index = build(kept, words=WORDS, rerank=rerank)
  for step in range(12):
    if step % 3 == 1:
      more = descriptors[2000 + 100 * step :][: generator.integers(0, 150)]
      kept = np.concatenate([kept, more])
      index.add(more)
    else:
      start, stop = np.sort(generator.integers(0, len(kept) + 1, 2))
      stop = min(stop, start + 250)
      kept = np.delete(kept, range(start, stop), axis=0)
      index.remove(start, stop)
    assert len(index) == len(kept)
    wanted = fresh(index, kept)
    for exclude in [None, (0, 10), (40, 90), (len(kept) - 5, 9999)]:
      assert_same(
        index.search(queries, 12, exclude=exclude),
        wanted.search(queries, 12, exclude=exclude),
      )
  again = reopened(index, tmp_path / "index")
  for a, b in zip(
    vars(again._parts[0]).values(),
    vars(wanted._parts[0]).values(),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  index.remove(0, len(index))
  assert_well_formed(index.search(queries, 3), np.arange(0), 3)
  index.add(kept[:20])
  assert_same(
    index.search(queries, 30), fresh(index, kept[:20]).search(queries, 30)
  )


def test_ranges_that_are_not_there_are_not_removed(built, queries):
  wanted = built.search(queries, 3)
  for start, stop in [(-1, 3), (5, 4), (0, 4001)]:
    with pytest.raises(ValueError, match="cannot be removed"):
      built.remove(start, stop)
  built.remove(7, 7)
  assert_same(built.search(queries, 3), wanted)


def test_excluded_rows_are_not_found(built, queries):
  for exclude in [(0, 100), (3000, 4000), (10, 3500), (1, 3999), (0, 9000)]:
    found = built.search(queries, 10, exclude=exclude)
    left = np.delete(np.arange(4000), slice(*exclude))
    assert_well_formed(found, left, 10)


def test_a_limit_of_visited_entries_is_kept(built, descriptors, queries):
  sizes = np.bincount(built.trained.encode(descriptors, 1)[0])
  near = exact.build(built.trained.centres).search(queries, 5)[1]
  limited = fresh(built, descriptors)
  limited.visit = visit = int(np.median(sizes)) + 1
  words = built.trained.encode(descriptors, 1)[0]
  _, rows = limited.search(queries, 5)
  for i in range(len(queries)):
    seen = np.cumsum(sizes[near[i]])
    allowed = near[i, : 1 + np.searchsorted(seen, visit)]
    assert np.isin(words[rows[i]], allowed).all()


def test_more_words_are_looked_at_where_they_hold_too_few(descriptors, queries):
  built = build(descriptors, words=400, probes=1)
  found = built.search(queries, 300)
  assert_well_formed(found, np.arange(len(descriptors)), 300)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_numbers_that_cannot_be_compared_are_refused(built, bad):
  descriptors = np.zeros((3, 24), np.float32)
  descriptors[1, 2] = bad
  for work in [build, train, built.add, lambda x: built.search(x, 1)]:
    with pytest.raises(InputError, match="(descriptor|query) 1 holds a number"):
      work(descriptors)
  with pytest.raises(InputError, match="8 dimensions and the index 24"):
    built.search(np.zeros((1, 8)), 1)
  with pytest.raises(InputError, match="8 dimensions and the index 24"):
    built.add(np.zeros((1, 8)))


@pytest.mark.parametrize(
  "options",
  [
    {"bits": 6},
    {"rotation": "some"},
    {"codebooks": "some"},
    {"subvectors": 25},
    {"words": -1},
    {"probes": 0},
    {"visit": -1},
    {"rerank": -1},
  ],
)
def test_options_without_meaning_are_refused(descriptors, options):
  with pytest.raises(ValueError, match=next(iter(options))):
    build(descriptors, **options)


def test_too_many_descriptors_are_refused(built):
  writer = Writer(built.trained)
  writer._sizes[0] = 2**31 - 2
  with pytest.raises(InputError, match="more than the 2147483647"):
    writer.add(np.zeros((2, 24), np.float32))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_inverted_file import *
descriptors = make_clustered(4000, 150, 24)[0]
writer = Writer(train(descriptors), rerank=2, folder=sys.argv[2])
writer.add(descriptors)
if sys.argv[3] == "finished":
  index = writer.finish()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["adding", "finished"])
def test_a_killed_build_leaves_nothing(tmp_path, when):
  done = subprocess.run(
    [sys.executable, "-c", KILLED, HERE.parent, tmp_path, when],
    cwd=HERE.parents[1],
    capture_output=True,
    text=True,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not list(tmp_path.iterdir())


def saved(index, tmp_path):
  index.save(tmp_path / "index")
  meta, arrays = directory.read(tmp_path / "index", kinds=["inverted_file"])
  return json.loads(json.dumps(meta["parameters"])), {
    name: array.copy() for name, array in arrays.items()
  }


def swap_sizes(parameters, arrays):
  arrays["sizes"][:2] = arrays["sizes"][1::-1] + [64, -64]


def set_item(name, place, value):
  def change(parameters, arrays):
    arrays[name][place] = value

  return change


def replace(name, make):
  def change(parameters, arrays):
    arrays[name] = make(arrays[name])

  return change


@pytest.mark.parametrize(
  "change",
  [
    swap_sizes,
    set_item("sizes", 0, -1),
    set_item("sizes", 0, 2**62),
    set_item("rotation_of", 0, 99),
    set_item("rotation_of", 0, -1),
    set_item("codebook_of", 0, 99),
    set_item("rows", 3, 0),
    set_item("rows", slice(None), 2**64 - 1),
    set_item("centres", (0, 0), np.nan),
    set_item("rotations", (0, 0, 0), np.inf),
    set_item("codebooks", (0, 0, 0, 0), np.nan),
    set_item("step", 0, np.inf),
    replace("codes", lambda a: a[1:]),
    replace("codes", lambda a: a[:, 1:]),
    replace("codes", lambda a: a.astype(np.int8)),
    replace("rows", lambda a: a[1:]),
    replace("sizes", lambda a: a[1:]),
    replace("centres", lambda a: a[:, 1:]),
    replace("centres", lambda a: a[:0]),
    replace("codebooks", lambda a: a[..., :16]),
    replace("codebooks", lambda a: a[0]),
    replace("rotations", lambda a: a[:0]),
    replace("vectors", lambda a: a[1:]),
    replace("lowest", lambda a: a.astype(float)),
    lambda parameters, arrays: arrays.pop("codes"),
    lambda parameters, arrays: parameters.update(bits=4),
    lambda parameters, arrays: parameters.update(bits=6),
    lambda parameters, arrays: parameters.update(probes=0),
    lambda parameters, arrays: parameters.update(rerank=0),
    lambda parameters, arrays: parameters.update(visit=None),
    lambda parameters, arrays: parameters.pop("built_with"),
  ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, reranked, change):
  parameters, arrays = saved(reranked, tmp_path)
  restore(parameters, arrays)
  change(parameters, arrays)
  with pytest.raises((KeyError, TypeError, ValueError)):
    restore(parameters, arrays)


def test_unverified_nonsense_harms_nobody(tmp_path, reranked, queries):
  parameters, arrays = saved(reranked, tmp_path)
  generator = np.random.default_rng(0)
  for value in [0, 2**64 - 1, None]:
    arrays["rows"] = (
      generator.integers(0, 2**64, arrays["rows"].shape, np.uint64)
      if value is None
      else np.full_like(arrays["rows"], value)
    )
    index = restore(parameters, arrays, verify=False)
    index.search(queries, 10, exclude=(10, 100))
    index.remove(10, 20)
    index.add(queries)
    index.search(queries, 10)
    index.save(tmp_path / "again")


def flip_bit(path):
  content = bytearray(path.read_bytes())
  content[-10] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("name", ["codes", "rows", "centres", "vectors"])
def test_damage_is_refused_in_one_line(tmp_path, reranked, name):
  path = tmp_path / "index"
  for damage in [flip_bit, lambda file: os.truncate(file, 200)]:
    reranked.save(path)
    open_index(path)
    (file,) = path.glob(f"{name}-*.npy")
    damage(file)
    with pytest.raises(InputError, match=f"{name}-.*is damaged") as error:
      open_index(path)
    assert "\n" not in str(error.value)


def test_an_index_made_to_deceive_is_refused(tmp_path, reranked):
  parameters, arrays = saved(reranked, tmp_path)
  arrays["rows"][3] = 0
  directory.write(
    tmp_path / "index",
    kind="inverted_file",
    parameters=parameters,
    arrays=arrays,
    provenance={},
  )
  with pytest.raises(InputError, match="is damaged .its lists do not hold"):
    open_index(tmp_path / "index")


def test_opening_does_not_read_the_lists(tmp_path, built):
  built.save(tmp_path / "index")
  meta, arrays = directory.read(
    tmp_path / "index", kinds=["inverted_file"], verify=False
  )
  opened = restore(meta["parameters"], arrays, verify=False)
  for name in ["codes", "rows"]:
    assert np.shares_memory(getattr(opened._parts[0], name), arrays[name])


def test_the_size_is_what_the_paper_says(descriptors):
  built = build(np.tile(descriptors[:1000], (100, 1)), words=20)
  part = built._parts[0]
  assert part.codes.nbytes / 1e5 < 6 * 5 / 8 + 0.05  # 24-d: 6 sub-vectors
  # Each row takes log2(words) bits and at most 2.2 more.
  assert part.rows.nbytes / 1e5 * 8 < np.log2(20) + 2.2
  assert built.nbytes < 1e5 * 4.8 + built.trained.quantiser.rotations.nbytes + (
    built.trained.quantiser.codebooks.nbytes + 10_000
  )


def test_importing_compiles_nothing():
  code = (
    "from delf_jax.index import inverted_file_kernels as kernels\n"
    "assert not any(\n"
    "  getattr(value, 'signatures', None) for value in vars(kernels).values()\n"
    ")\n"
  )
  subprocess.run(
    [sys.executable, "-W", "error", "-c", code], cwd=HERE.parents[1], check=True
  )
