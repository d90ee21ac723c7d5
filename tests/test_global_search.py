"""Rankings by global descriptors, alone and through `measurement`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax import checkpoint, extraction, extractors, measurement, retrieval
from delf_jax.data import retrieval_sets
from delf_jax.data.photographs import Photograph, read_photograph
from delf_jax.errors import InputError
from delf_jax.features import local_features
from delf_jax.global_descriptors import global_search
from delf_jax.global_descriptors.global_extraction import as_features, describer
from delf_jax.items import Item
from delf_jax.models.normalisation import NORMALISATIONS


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def database(n=30, dim=6, empty=()):
  descriptors = unit(np.random.default_rng(0).normal(size=(n, dim)))
  counts = np.ones(n, int)
  counts[list(empty)] = 0
  descriptors = descriptors.astype(np.float32)[counts > 0]
  return retrieval.Database(
    index=None,
    paths=[f"{i}.jpg" for i in range(n)],
    sizes=np.ones((n, 2)),
    offsets=np.concatenate([[0], np.cumsum(counts)]),
    locations=np.zeros((len(descriptors), 2)),
    descriptors=descriptors,
  )


QUERY = unit(np.ones(6)).astype(np.float32)


def search(searched, query=QUERY, **options):
  return global_search.search(
    as_features(query, (10, 10)), (10, 10), searched, **options
  )


def test_the_dot_product_is_the_score():
  searched = database()
  scores = searched.descriptors @ QUERY
  order = np.argsort(-scores)
  found = search(searched)
  assert [one.path for one in found] == [f"{i}.jpg" for i in order]
  np.testing.assert_allclose([s for _, s in found], scores[order], atol=1e-6)
  assert search(searched, ranked=3) == found[:3]


@pytest.mark.parametrize(("expansion", "alpha"), [(1, 0.0), (5, 3.0)])
def test_an_expanded_query_asks_again(expansion, alpha):
  searched = database()
  left_out = int(np.argmax(searched.descriptors @ QUERY))
  scores = searched.descriptors @ QUERY
  scores[left_out] = -np.inf
  total = QUERY.astype(np.float64)
  for i in np.argsort(-scores)[:expansion]:
    weight = max(scores[i], 0) ** alpha if alpha else 1.0
    total = total + weight * searched.descriptors[i]
  expected = searched.descriptors @ unit(total)
  found = search(searched, expansion=expansion, alpha=alpha, leave_out=left_out)
  assert len(found) == 29
  assert f"{left_out}.jpg" not in {one.path for one in found}
  for path, score in found:
    np.testing.assert_allclose(
      score, expected[int(path.split(".")[0])], atol=1e-5
    )


def test_photographs_without_a_descriptor():
  searched = database(empty=(2, 7))
  found = search(searched, leave_out=4)
  assert len(found) == 27
  assert not {"2.jpg", "7.jpg", "4.jpg"} & {one.path for one in found}
  alike = search(searched, query=searched.descriptors[6])  # of photograph 8
  assert alike[0].path == "8.jpg"
  nothing = local_features.empty(6)
  assert global_search.search(nothing, (1, 1), searched) == []


def test_local_features_are_refused():
  searched = dataclasses.replace(
    database(4), offsets=np.array([0, 2, 3, 4]), paths=["a", "b", "c"]
  )
  with pytest.raises(InputError, match="one descriptor a photograph"):
    search(searched)


def test_databases_are_augmented_before():
  searched = database()
  found = global_search.prepare(searched, neighbours=2)
  similar = searched.descriptors @ searched.descriptors.T
  nearest = np.argsort(-similar[3])[:3]
  np.testing.assert_allclose(
    found.descriptors[3],
    unit(searched.descriptors[nearest].sum(0)),
    atol=1e-5,
  )
  same = global_search.prepare(searched)
  np.testing.assert_array_equal(same.descriptors, searched.descriptors)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A checkpoint of a small global descriptor with random weights."""
  directory = tmp_path_factory.mktemp("run") / "model"
  network = checkpoint.build_network(
    units=(1, 1, 1, 1, 1),
    width=8,
    num_classes=0,
    backbone="vgg",
    feature_stage="conv5",
    descriptor={"pooling": "gem", "regions": "image", "levels": 2},
  )
  checkpoint.save_model(
    directory,
    network=network,
    variables=network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))),
    normalisation=NORMALISATIONS["imagenet"],
    reduction=None,
    extraction={"sides": (160, 224)},
    provenance={},
  )
  return directory


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
  return retrieval_sets.open_set(
    "synthetic",
    tmp_path_factory.mktemp("world"),
    num_landmarks=3,
    views=3,
    queries=1,
    clutter=2,
    distractors=2,
  )


def test_they_are_measured_like_local_features(run, benchmark, tmp_path):
  extractor = extractors.open_extractor(str(run))
  assert extractor.max_side == 224
  assert extractor.settings["kind"] == "global"
  results = {}
  for name, options in (
    ("plain", {}),
    ("expanded", {"expansion": 1}),
    ("augmented", {"database_neighbours": 1}),
  ):
    results[name] = measurement.evaluate(
      extractor,
      benchmark,
      output=tmp_path / name,
      cache=tmp_path / "cache",
      **options,
    )
    json.dumps(results[name])
    assert results[name]["num_distractors"] == 2
  assert results["plain"]["settings"]["descriptors"] == 11
  rankings = {
    name: json.loads((tmp_path / name / "rankings.json").read_text())
    for name in results
  }
  assert rankings["plain"] != rankings["expanded"] != rankings["augmented"]
  for query, ranking in rankings["plain"]["queries"].items():
    assert len(ranking) == 10  # all but the query
    assert query not in {path for path, _ in ranking}
  # The score is the dot product of what is extracted.
  query, ranking = next(iter(rankings["plain"]["queries"].items()))
  one, other = (
    extraction.extract_item(extractor, benchmark.root, Item(path))[1]
    for path in (query, ranking[0][0])
  )
  np.testing.assert_allclose(
    ranking[0][1], (one.descriptors @ other.descriptors.T)[0, 0], atol=2e-3
  )


def test_a_part_is_seen_at_the_resolution_of_the_whole(run, benchmark):
  extractor = extractors.open_extractor(str(run), sides=(64,))
  path = benchmark.database[0]
  photograph = read_photograph(f"{benchmark.root}/{path}")
  height, width = photograph.height, photograph.width
  everything = (0.0, 0.0, float(height), float(width))
  _, whole = extraction.extract_item(extractor, benchmark.root, Item(path))
  size, same = extraction.extract_item(
    extractor, benchmark.root, Item(path, everything)
  )
  assert size == (height, width)
  np.testing.assert_allclose(same.descriptors, whole.descriptors, atol=1e-5)
  # Half of it at 64 is what a file of that half shows at 32.
  box = (0.0, 0.0, height / 2, width / 2)
  _, half = extraction.extract_item(extractor, benchmark.root, Item(path, box))
  pixels = photograph.pixels[: height // 2, : width // 2]
  small = extractors.open_extractor(str(run), sides=(32,))
  step = -(-max(pixels.shape[:2]) // small.max_side)
  part = small.extract(
    Photograph(
      pixels=np.ascontiguousarray(pixels[::step, ::step]),
      height=pixels.shape[0],
      width=pixels.shape[1],
    )
  )
  assert float((half.descriptors @ part.descriptors.T)[0, 0]) > 0.99


def test_a_describer_is_its_network():
  network = checkpoint.build_network(
    units=(1, 1, 1, 1),
    width=4,
    num_classes=0,
    feature_stage="conv5",
    descriptor={"regions": "image", "levels": 2, "regional_dim": 5},
  )
  variables = network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  # Statistics that are not what they start as.
  variables["batch_stats"] = jax.tree.map(
    lambda leaf: leaf + 0.3, variables["batch_stats"]
  )
  model = checkpoint.Model(
    network=network,
    variables=variables,
    normalisation=NORMALISATIONS["caffe"],
    reduction=None,
    extraction={},
    provenance={},
    fingerprint="",
  )
  pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
  describe = describer(model, max_side=160, scales=(1.0,))
  found = describe(Photograph(pixels, 180, 260), (180, 260))
  expected = network.apply(variables, model.normalisation(pixels[None]))
  np.testing.assert_allclose(found.descriptors, expected, atol=2e-5)
  np.testing.assert_array_equal(found.locations, [[90, 130]])


def test_options_of_local_features_are_refused(run):
  with pytest.raises(InputError, match="score: not an option of a global"):
    extractors.open_extractor(str(run), score="attention")
  opened = extractors.open_extractor(str(run), scales=(1.0,), max_side=300)
  assert "sides" not in opened.settings and opened.max_side == 300
  reopened = extractors.reopen({**opened.settings, "features": opened.source})
  assert reopened.settings == opened.settings
