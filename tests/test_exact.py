import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.index import exact, open_index


def nearest(descriptors, queries, k, exclude=(0, 0)):
  """The same by brute force, in long double."""
  distances = np.full((len(queries), k), np.inf, np.float32)
  rows = np.full((len(queries), k), -1, np.int32)
  left = np.arange(len(descriptors))
  left = left[(left < exclude[0]) | (left >= exclude[1])]
  for i, query in enumerate(queries):
    difference = descriptors[left].astype(np.longdouble) - query
    near = np.sqrt((difference**2).sum(axis=1)).astype(np.float32)
    order = np.argsort(near, kind="stable")[:k]
    distances[i, : len(order)] = near[order]
    rows[i, : len(order)] = left[order]
  return distances, rows


def assert_same(found, wanted):
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(a, b, strict=True)


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_set(name):
  """[n, d] descriptors and [m, d] queries."""
  generator = np.random.default_rng(0)
  noise = generator.normal(size=(3000, 16))
  if name == "random":
    x = noise
  elif name == "clustered":
    x = unit(generator.normal(size=(30, 16))[np.arange(3000) % 30] + noise / 9)
  elif name == "duplicated":
    x = noise[np.arange(3000) % 100]
  elif name == "nearly duplicated":
    x = noise[np.arange(3000) % 100] + noise * 1e-7
  elif name == "constant":
    x = np.ones((3000, 16))
  elif name == "ties":
    x = generator.integers(0, 2, (3000, 16))
  elif name == "far away":
    x = noise + 1000
  elif name == "zeros":
    x = np.where(np.arange(3000)[:, None] % 2, noise, 0)
  elif name == "large":
    x = noise * 1e16
  elif name == "small":
    x = noise * 1e-25
  x = x.astype(np.float32)
  return x, np.concatenate([x[::211], x[:30] + noise[-30:] * x.std()]).astype(
    np.float32
  )


SETS = [
  "random",
  "clustered",
  "duplicated",
  "nearly duplicated",
  "constant",
  "ties",
  "far away",
  "zeros",
  "large",
  "small",
]


@pytest.mark.parametrize("name", SETS)
def test_equals_brute_force(name):
  descriptors, queries = make_set(name)
  built = exact.build(descriptors)
  for k, exclude in [(5, None), (40, (100, 2000))]:
    assert_same(
      built.search(queries, k, exclude=exclude),
      nearest(descriptors, queries, k, exclude or (0, 0)),
    )


@pytest.mark.parametrize("recall", ["as it is", "poor"])
@pytest.mark.parametrize("name", ["clustered", "ties", "zeros"])
def test_an_approximate_choice_of_candidates_changes_nothing(
  name, recall, monkeypatch
):
  x, queries = make_set(name)
  if recall == "poor":  # a device that misses half of the best

    def choose(scores, count):
      order = jax.lax.top_k(scores, min(2 * count, scores.shape[1]))[1]
      chosen = jnp.concatenate([order[:, ::2], order[:, 1::2]], axis=1)
      chosen = chosen[:, :count]
      return jnp.take_along_axis(scores, chosen, axis=1), chosen

    monkeypatch.setattr(jax.lax, "approx_max_k", choose)
    exact._candidates.clear_cache()
  index = exact.build(x, approximate=True)
  assert_same(index.search(queries, 10), exact.build(x).search(queries, 10))
  exact._candidates.clear_cache()


@pytest.mark.parametrize("n", [1, 2, 9, 33])
def test_few_descriptors_leave_a_tail(n):
  descriptors, queries = make_set("random")
  descriptors = descriptors[:n]
  built = exact.build(descriptors)
  for exclude in [None, (0, 1), (1, 2), (0, n), (n, n + 5), (0, 10**9)]:
    assert_same(
      built.search(queries, 9, exclude=exclude),
      nearest(descriptors, queries, 9, exclude or (0, 0)),
    )


def test_nothing_to_find_and_nothing_asked():
  queries = np.ones((3, 16), np.float32)
  distances, rows = exact.build(queries[:0]).search(queries, 4)
  assert distances.shape == rows.shape == (3, 4)
  assert (distances == np.inf).all() and (rows == -1).all()
  distances, rows = exact.build(queries).search(queries[:0], 4)
  assert distances.shape == rows.shape == (0, 4)
  assert distances.dtype == np.float32 and rows.dtype == np.int32


@pytest.mark.parametrize("name", ["clustered", "ties"])
def test_neither_chunks_nor_company_change_a_bit(name):
  descriptors, queries = make_set(name)
  queries = np.tile(queries, (7, 1))
  wanted = exact.build(descriptors).search(queries, 10)
  for options in [{"chunk": 100}, {"chunk": 10**6}, {"memory": 1}]:
    built = exact.build(descriptors, **options)
    part = slice(0, 20 if options == {"memory": 1} else None)
    assert_same(built.search(queries[part], 10), [a[part] for a in wanted])
  built = exact.build(descriptors)
  for part in [slice(0, 1), slice(3, 19), slice(5, 22), slice(None, None, -1)]:
    assert_same(built.search(queries[part], 10), [a[part] for a in wanted])
  # Fewer neighbours are the first of more.
  assert_same(built.search(queries, 3), [a[:, :3] for a in wanted])


def test_another_device_gives_the_same_bits():
  descriptors, queries = make_set("clustered")
  wanted = exact.build(descriptors).search(queries, 10)
  second = exact.build(descriptors, device=jax.devices()[1])
  assert_same(second.search(queries, 10), wanted)


def test_a_duplicate_is_at_distance_zero():
  descriptors, _ = make_set("far away")
  distances, rows = exact.build(descriptors).search(descriptors, 1)
  assert (distances == 0).all()
  np.testing.assert_array_equal(rows[:, 0], np.arange(len(descriptors)))


def test_the_descriptors_given_are_neither_kept_nor_changed():
  descriptors, queries = make_set("random")
  built = exact.build(descriptors)
  wanted = built.search(queries, 5)
  descriptors[:] = 0
  assert_same(built.search(queries, 5), wanted)
  assert not built.descriptors.flags.writeable


@pytest.mark.parametrize("n", [0, 1, 3000])
def test_saved_and_opened_it_answers_the_same(tmp_path, n):
  descriptors, queries = make_set("clustered")
  built = exact.build(descriptors[:n])
  built.save(tmp_path / "index", provenance={"store": "photos"})
  for verify in [True, False]:
    opened = open_index(tmp_path / "index", verify=verify)
    assert_same(opened.search(queries, 7), built.search(queries, 7))
    assert_same([opened.descriptors], [built.descriptors])


def test_a_size_that_the_proof_must_widen():
  # Hundreds at nearly one distance: more than the candidates that are drawn.
  generator = np.random.default_rng(1)
  ring = unit(generator.normal(size=(2000, 8))).astype(np.float32)
  queries = np.zeros((3, 8), np.float32)
  assert_same(exact.build(ring).search(queries, 5), nearest(ring, queries, 5))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite_is_refused_by_its_row(value):
  descriptors, queries = make_set("random")
  built = exact.build(descriptors)
  queries[17, 3] = value
  with pytest.raises(InputError, match="query 17 holds"):
    built.search(queries, 5)
  with pytest.raises(InputError, match="descriptor 17 holds"):
    exact.build(queries)


def test_another_dimension_is_refused():
  descriptors, queries = make_set("random")
  with pytest.raises(InputError, match="15 dimensions and the index 16"):
    exact.build(descriptors).search(queries[:, :15], 5)


@pytest.mark.parametrize(
  "k, exclude", [(0, None), (-1, None), (5, (3, 2)), (5, (-1, 2))]
)
def test_mistakes_of_the_caller_raise(k, exclude):
  descriptors, queries = make_set("random")
  with pytest.raises(ValueError):
    exact.build(descriptors).search(queries, k, exclude=exclude)


def test_other_types_are_converted():
  descriptors, queries = make_set("ties")
  wanted = exact.build(descriptors).search(queries, 5)
  for dtype in [np.float16, np.float64, np.uint8]:
    built = exact.build(np.asfortranarray(descriptors.astype(dtype)))
    assert_same(built.search(queries, 5), wanted)
