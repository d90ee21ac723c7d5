"""Bags of words beside scikit-learn's tf-idf, and what is on the disk."""

import json
import pathlib

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize

from delf_jax import index
from delf_jax.errors import InputError
from delf_jax.index import bag_of_words, directory, vocabulary
from tests.index_sets import hashes, make_clustered

COUNTS = [40, 0, 25, 60, 1, 33, 90]
SOFT = [{}, {"soft": 3, "sigma": 0.6}]


@pytest.fixture(scope="module")
def descriptors():
  return make_clustered(sum(COUNTS), 30, 16, clusters=20)[0]


@pytest.fixture(scope="module")
def query():
  return make_clustered(sum(COUNTS), 30, 16, clusters=20)[1]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
  """A vocabulary of other descriptors, on the disk."""
  others = make_clustered(700, 1, 16, clusters=35)[0]
  path = tmp_path_factory.mktemp("words") / "index"
  build(others, [len(others)], words=30).save(path)
  return path


def build(descriptors, counts, **options):
  return index.call(
    bag_of_words.build,
    index.BAG_OF_WORDS,
    lambda: [descriptors[i : i + 50] for i in range(0, len(descriptors), 50)],
    counts,
    "some",
    **options,
  )


def histograms(built, descriptors, counts):
  """[p, words] how often each photograph has each word, by brute force."""
  centres = built.vocabulary.words.descriptors.astype(np.float64)
  apart = np.square(descriptors[:, None] - centres[None]).sum(axis=2)
  nearest = np.argsort(apart, axis=1)[:, : built.soft]
  squares = np.take_along_axis(apart, nearest, axis=1)
  reach = built.sigma * built.vocabulary.radius
  weights = np.exp(-squares / (2 * reach**2))
  weights /= weights.sum(axis=1, keepdims=True)
  if built.soft == 1:
    weights = np.ones_like(weights)
  found = np.zeros((len(counts), len(centres)))
  images = np.repeat(np.arange(len(counts)), counts)
  for column in range(built.soft):
    np.add.at(found, (images, nearest[:, column]), weights[:, column])
  return found


def ranked(built, query, **options):
  return built.rank(*built.describe(query), **options)


def as_dense(found, count):
  images, cosines = found
  dense = np.full(count, -1.0)
  dense[images] = cosines
  return dense


@pytest.mark.parametrize("options", SOFT)
def test_cosines_are_those_of_scikit_learn(descriptors, query, words, options):
  built = build(descriptors, COUNTS, vocabulary=words, **options)
  found = as_dense(ranked(built, query), len(COUNTS))
  counts = histograms(built, descriptors, COUNTS)
  asked = histograms(built, query, [len(query)])
  # Of words that some photograph has; scikit-learn's idf is ln(n / df) + 1.
  known = counts.any(axis=0)
  assert asked[:, known].sum() == pytest.approx(asked.sum(), rel=1e-6)
  fitted = TfidfTransformer(norm=None, smooth_idf=False).fit(counts[:, known])
  vectors, of_query = (
    normalize(fitted.transform(some[:, known]).toarray() - some[:, known])
    for some in (counts, asked)
  )
  expected = (vectors @ of_query.T)[:, 0]
  shared = (counts[:, None] * asked[None]).any(axis=(1, 2))
  np.testing.assert_allclose(found[shared], expected[shared], atol=2e-6)
  assert (found[~shared] == -1).all() and not shared[1]
  images, cosines = ranked(built, query)
  np.testing.assert_array_equal(images, images[np.argsort(-cosines)])


def test_a_photograph_finds_itself_first(descriptors, words):
  built = build(descriptors, COUNTS, vocabulary=words)
  start, stop = built.offsets[3:5]
  images, cosines = ranked(built, descriptors[start:stop])
  assert images[0] == 3 and cosines[0] == pytest.approx(1) and cosines[0] <= 1
  assert 3 not in ranked(built, descriptors[start:stop], leave_out=3)[0]


def test_neither_batches_nor_the_order_of_features_matter(
  descriptors, words, tmp_path
):
  built = build(descriptors, COUNTS, vocabulary=words, soft=2)
  whole = bag_of_words.build(
    lambda: [descriptors], COUNTS, "some", vocabulary=words, soft=2
  )
  for name, one in (("a", built), ("b", whole)):
    one.save(tmp_path / name)
  assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
  hard = build(descriptors, COUNTS, vocabulary=words)
  some = descriptors[100:150]
  for a, b in zip(ranked(hard, some), ranked(hard, some[::-1]), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", SOFT)
def test_adding_and_removing_is_as_if_built_so(
  descriptors, words, options, tmp_path
):
  whole = build(descriptors, COUNTS, vocabulary=words, **options)
  first = sum(COUNTS[:3])
  grown = build(descriptors[:first], COUNTS[:3], vocabulary=words, **options)
  grown.add([descriptors[first:]], COUNTS[3:])
  grown.add([], [])
  for name, one in (("whole", whole), ("grown", grown)):
    one.save(tmp_path / name)
  assert hashes(tmp_path / "whole") == hashes(tmp_path / "grown")
  grown.remove(0)
  grown.remove(2)  # what was photograph 3
  kept = [1, 2, 4, 5, 6]
  images = np.repeat(np.arange(len(COUNTS)), COUNTS)
  build(
    descriptors[np.isin(images, kept)],
    [COUNTS[i] for i in kept],
    vocabulary=words,
    **options,
  ).save(tmp_path / "fewer")
  grown.save(tmp_path / "grown")
  assert hashes(tmp_path / "fewer") == hashes(tmp_path / "grown")


def test_same_words_are_all_of_them(descriptors, query, words):
  built = build(descriptors, COUNTS, vocabulary=words, soft=2)
  asked, _ = built.describe(query)
  for photograph in (1, 3):
    start, stop = built.offsets[photograph : photograph + 2]
    theirs, _ = built.describe(descriptors[start:stop])
    expected = [
      (feature, start + row)
      for feature in range(len(query))
      for row in range(len(theirs))
      if set(asked[feature]) & set(theirs[row])
    ]
    found = built.same_words(asked, photograph)
    np.testing.assert_array_equal(
      np.column_stack(found), np.reshape(expected, (-1, 2))
    )


def test_stopped_words_are_as_if_nobody_had_them(descriptors, query, words):
  built = build(descriptors, COUNTS, vocabulary=words, stop=0.2)
  plain = build(descriptors, COUNTS, vocabulary=words)
  holders = (histograms(plain, descriptors, COUNTS) > 0).sum(axis=0)
  stopped = np.argsort(-holders, kind="stable")[:6]
  asked, weights = built.describe(query)
  kept = ~np.isin(asked[:, 0], stopped)
  assert 0 < kept.sum() < len(query)
  for a, b in zip(
    built.rank(asked, weights),
    built.rank(asked[kept], weights[kept]),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  features, _ = built.same_words(asked, 3)
  assert not np.isin(asked[features, 0], stopped).any()
  assert np.isin(asked[plain.same_words(asked, 3)[0], 0], stopped).any()
  # What is left is as much alike as by its own words alone.
  own = histograms(plain, descriptors, COUNTS)
  mine = histograms(plain, query, [len(query)])[0]
  rarity = np.log(len(COUNTS) / np.maximum(holders, 1))
  rarity[stopped] = 0
  vectors, vector = normalize(own * rarity), mine * rarity
  expected = vectors @ vector / np.linalg.norm(vector)
  images, cosines = ranked(built, query)
  np.testing.assert_allclose(cosines, expected[images], atol=1e-6)
  built.stop = 0.0
  for a, b in zip(ranked(built, query), ranked(plain, query), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_word_nobody_has_makes_a_query_less_like_all(descriptors, words):
  built = build(descriptors, COUNTS, vocabulary=words)
  centres = built.vocabulary.words.descriptors
  used = np.unique(built.describe(descriptors)[0])
  unused = np.setdiff1d(np.arange(len(centres)), used)
  assert len(unused)
  query = centres[used]
  stranger = np.concatenate([query, centres[unused[:1]]])
  (images, before), (others, after) = (
    ranked(built, asked) for asked in (query, stranger)
  )
  np.testing.assert_array_equal(images, others)
  assert (after[before > 0] < before[before > 0]).all()
  assert len(ranked(built, centres[unused])[0]) == 0


def test_one_photograph_none_and_a_query_without_features(
  descriptors, query, words
):
  one = build(descriptors[:40], [40], vocabulary=words)
  images, cosines = ranked(one, descriptors[:5])
  # No word is rare where there is one photograph; it is a candidate still.
  assert images.tolist() == [0] and cosines.tolist() == [0]
  none = build(descriptors[:0], [], vocabulary=words)
  empty = build(descriptors[:0], [0, 0], vocabulary=words)
  for built in (none, empty):
    assert len(ranked(built, query)[0]) == 0
  images, cosines = ranked(one, query[:0])
  assert len(images) == len(cosines) == 0
  features, rows = one.same_words(one.describe(query[:0])[0], 0)
  assert len(features) == len(rows) == 0
  with pytest.raises(InputError, match="no features to learn words from"):
    build(descriptors[:0], [0])


def test_fewer_words_than_are_asked_for(descriptors):
  built = build(descriptors[:20], [8, 12], words=2, soft=4)
  found, weights = built.describe(descriptors[:5])
  assert (found >= 0).all() and (found < 2).all()
  np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
  assert (weights[:, 2:] == 0).all()
  single = build(descriptors[:20], [8, 12], words=2)
  hard = single.describe(descriptors[:5])[0]
  np.testing.assert_array_equal(found[:, 0], hard[:, 0])


@pytest.mark.parametrize("options", SOFT)
def test_it_opens_to_the_same_bits(
  descriptors, query, words, options, tmp_path
):
  built = build(descriptors, COUNTS, vocabulary=words, stop=0.1, **options)
  built.save(tmp_path / "index", provenance={"store": "there"})
  assert index.read_meta(tmp_path / "index")["provenance"] == {"store": "there"}
  for verify in (True, False):
    opened = index.open_index(tmp_path / "index", verify=verify)
    assert isinstance(opened, index.PhotographIndex)
    assert (len(opened), opened.stop) == (len(COUNTS), 0.1)
    for a, b in zip(ranked(built, query), ranked(opened, query), strict=True):
      np.testing.assert_array_equal(a, b, strict=True)
  assert opened.nbytes == built.nbytes
  opened.add([descriptors[:9]], [9])
  assert len(opened) == len(COUNTS) + 1


def test_words_are_taken_and_checked(descriptors, words, tmp_path):
  built = build(descriptors, COUNTS, vocabulary=words)
  taken = bag_of_words.open_vocabulary(words)
  np.testing.assert_array_equal(
    built.vocabulary.words.descriptors, taken.words.descriptors
  )
  assert isinstance(taken, vocabulary.Vocabulary) and len(taken) == 30
  with pytest.raises(InputError, match="of some features, and these are other"):
    bag_of_words.build(lambda: [], [], "other", vocabulary=words)
  with pytest.raises(InputError, match="words is not for a given vocabulary"):
    build(descriptors, COUNTS, vocabulary=words, words=5)
  with pytest.raises(InputError, match="is no index"):
    build(descriptors, COUNTS, vocabulary=tmp_path / "none")
  index.build_index("exact", descriptors).save(tmp_path / "exact")
  with pytest.raises(InputError, match="unknown kind 'exact'"):
    build(descriptors, COUNTS, vocabulary=tmp_path / "exact")
  with pytest.raises(InputError, match="8 dimensions and the index 16"):
    build(descriptors[:, :8], COUNTS, vocabulary=words)
  for option in ({"soft": 0}, {"sigma": 0.0}, {"stop": 1.0}, {"sample": 0}):
    with pytest.raises(InputError, match="an option does not fit"):
      build(descriptors, COUNTS, vocabulary=words, **option)
  with pytest.raises(InputError, match="wings: no option of bag_of_words"):
    build(descriptors, COUNTS, wings=2)
  with pytest.raises(InputError, match="photographs and not descriptors"):
    index.build_index(index.BAG_OF_WORDS, descriptors)


def test_a_damaged_file_is_refused(descriptors, words, tmp_path):
  built = build(descriptors, COUNTS, vocabulary=words)
  for name in ("words", "images", "words_vertices"):
    path = tmp_path / name
    built.save(path)
    file = path / f"{name}-1.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}-1.npy' is damaged"):
      index.open_index(path)
    file.unlink()
    with pytest.raises(InputError, match="is missing"):
      index.open_index(path)
  meta = pathlib.Path(tmp_path / "words" / "meta.json")
  text = json.loads(meta.read_text())
  text["parameters"]["soft"] = 2
  meta.write_text(json.dumps(text))
  with pytest.raises(InputError, match="is damaged"):
    index.open_index(tmp_path / "words")


@pytest.mark.parametrize(
  ("name", "change"),
  [
    ("images", lambda a: a + 100),
    ("images", lambda a: a - 1),
    ("images", lambda a: a.astype(np.int64)),
    ("words", lambda a: a + 100),
    ("words", lambda a: np.repeat(a, 2, axis=1)),
    ("starts", lambda a: a[::-1].copy()),
    ("starts", lambda a: a[:-1]),
    ("offsets", lambda a: a + 1),
    ("offsets", lambda a: a[:0]),
    ("counts", lambda a: -a),
    ("counts", lambda a: a * np.float32(np.nan)),
    ("weights", lambda a: np.zeros((3, 0), np.float32)),
    ("wings", lambda a: np.zeros(3)),
    ("words_edges", lambda a: a + 10_000),
  ],
)
def test_what_was_made_to_deceive_is_refused(
  descriptors, words, tmp_path, name, change
):
  build(descriptors, COUNTS, vocabulary=words).save(tmp_path / "index")
  meta, arrays = directory.read(tmp_path / "index", kinds=index.KINDS)
  arrays[name] = change(arrays.get(name))
  directory.write(
    tmp_path / "index",
    kind=meta["kind"],
    parameters=meta["parameters"],
    arrays=arrays,
    provenance={},
  )
  with pytest.raises(InputError, match="is damaged"):
    index.open_index(tmp_path / "index")
