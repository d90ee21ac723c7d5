"""One extraction for many measurements: parts of it are what would be alone."""

import dataclasses
import shutil

import numpy as np
import pytest

from delf_jax import extraction, extractors, feature_cache
from delf_jax.data import synthetic_folder
from delf_jax.errors import InputError
from delf_jax.feature_cache import Selection
from delf_jax.features import reduction
from delf_jax.features.local_features import LocalFeatures
from delf_jax.items import Item


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  root = tmp_path_factory.mktemp("world")
  synthetic_folder.write_folder(
    root, num_landmarks=2, views=2, queries=1, clutter=1, distractors=1
  )
  return root / "photos"


def items_of(photos):
  return [
    Item(str(path.relative_to(photos)))
    for path in sorted(photos.rglob("*.jpg"))
  ]


def test_the_first_of_many_are_what_fewer_would_be(photos):
  path = photos / items_of(photos)[0].path
  _, many = extraction.extract_file(
    extractors.open_extractor("rootsift", max_features=300), path
  )
  _, few = extraction.extract_file(
    extractors.open_extractor("rootsift", max_features=50), path
  )
  part = Selection(max_features=50)(many)
  np.testing.assert_array_equal(part.locations, few.locations)
  np.testing.assert_array_equal(part.descriptors, few.descriptors)
  beta = float(np.median(many.scores))
  part = Selection(min_score=beta)(many)
  assert len(part.mask) == np.sum(many.scores >= beta) < len(many.mask)


def test_leading_dimensions_are_a_smaller_pca():
  generator = np.random.default_rng(0)
  features = generator.normal(size=(200, 24)).astype(np.float32)
  wide, narrow = (reduction.fit(features, dim) for dim in (16, 5))
  whole = LocalFeatures(
    locations=np.zeros((200, 2), np.float32),
    scales=np.ones(200, np.float32),
    scores=np.ones(200, np.float32),
    descriptors=np.asarray(reduction.reduce(wide, features)),
    mask=np.ones(200, bool),
  )
  part = Selection(dims=5)(whole).descriptors
  expected = np.asarray(reduction.reduce(narrow, features))
  signs = np.sign((part * expected).sum(axis=0))
  np.testing.assert_allclose(part * signs[None], expected, atol=2e-6)


def test_what_is_there_is_not_extracted_again(photos, tmp_path, monkeypatch):
  items = items_of(photos)
  calls = []
  plain = extractors.open_extractor("rootsift", max_features=50)

  def extract(photograph):
    calls.append(photograph)
    return plain.extract(photograph)

  extractor = dataclasses.replace(plain, extract=extract)
  feature_cache.extract(extractor, photos, items[:3], tmp_path)
  assert len(calls) == 3
  box = Item(items[0].path, (10.0, 20.0, 200.0, 220.0))
  found = feature_cache.extract(extractor, photos, [*items, box], tmp_path)
  assert len(calls) == len(items) + 1
  again = feature_cache.extract(extractor, photos, [box, *items[:1]], tmp_path)
  assert len(calls) == len(items) + 1
  cropped = again.features(box.name, feature_cache.EVERYTHING)
  assert (cropped.locations >= [9, 19]).all()
  assert (cropped.locations <= [200, 220]).all()
  assert again.size(box.name) == found.size(items[0].name)


def test_an_exchanged_photograph_voids_the_store(photos, tmp_path, capsys):
  mine = tmp_path / "photos"
  shutil.copytree(photos, mine)
  items = items_of(mine)
  extractor = extractors.open_extractor("rootsift", max_features=50)
  before = feature_cache.extract(extractor, mine, items, tmp_path / "cache")
  old = before.features(items[0].name, feature_cache.EVERYTHING)
  shutil.copy(mine / items[1].path, mine / items[0].path)
  after = feature_cache.extract(extractor, mine, items, tmp_path / "cache")
  assert "1 photographs" in capsys.readouterr().out
  new = after.features(items[0].name, feature_cache.EVERYTHING)
  other = after.features(items[1].name, feature_cache.EVERYTHING)
  np.testing.assert_array_equal(new.descriptors, other.descriptors)
  assert old.locations.shape != new.locations.shape or np.any(
    old.locations != new.locations
  )


def test_unusable_photographs(tmp_path):
  (tmp_path / "broken.jpg").write_bytes(b"nothing")
  extractor = extractors.open_extractor("rootsift")
  with pytest.raises(InputError, match=r"none of the 1.*broken\.jpg"):
    feature_cache.extract(
      extractor, tmp_path, [Item("broken.jpg")], tmp_path / "cache"
    )


def test_a_repaired_photograph_is_tried_again(photos, tmp_path, capsys):
  mine = tmp_path / "photos"
  shutil.copytree(photos, mine)
  items = items_of(mine)
  first = mine / items[0].path
  good = first.read_bytes()
  first.unlink()
  extractor = extractors.open_extractor("rootsift", max_features=50)
  for content in (None, b"nothing", good):
    if content is not None:
      first.write_bytes(content)
    found = feature_cache.extract(extractor, mine, items, tmp_path / "cache")
    assert (items[0].name in found.numbers) == (content == good)
    assert len(found.skipped) == (content != good)


def test_digests_tell_settings_apart():
  one = feature_cache.digest({"a": (1, 2), "b": Selection()})
  assert one == feature_cache.digest({"b": Selection(), "a": [1, 2]})
  assert one != feature_cache.digest({"a": (1, 2), "b": Selection(dims=3)})
  assert feature_cache.digest(np.arange(3)) == feature_cache.digest([0, 1, 2])
  with pytest.raises(TypeError, match="object cannot be written as JSON"):
    feature_cache.digest(object())
