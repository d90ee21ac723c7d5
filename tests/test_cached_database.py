"""Databases over cached features: what is kept, and what stays on the disk."""

import dataclasses

import numpy as np
import pytest

from delf_jax import cached_database, extractors, feature_cache, retrieval
from delf_jax.data import synthetic_folder
from delf_jax.feature_cache import Selection
from delf_jax.items import Item

# Some of the features of each, by number, by score and by dimension.
SELECTION = Selection(max_features=70, min_score=0.01, dims=24)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
  root = tmp_path_factory.mktemp("world")
  synthetic_folder.write_folder(
    root, num_landmarks=2, views=3, queries=1, clutter=0, distractors=0
  )
  photos = root / "photos"
  paths = sorted(
    str(path.relative_to(photos)) for path in photos.rglob("*.jpg")
  )
  found = feature_cache.extract(
    extractors.open_extractor("rootsift", max_features=100),
    photos,
    [Item(path) for path in paths],
    root / "cache",
  )
  return paths, found


def opened(cached, cache, kind, **options):
  paths, found = cached
  return cached_database.open_database(
    found, [*paths, "nowhere.jpg"], cache, kind, options, SELECTION
  )


def test_rows_on_the_disk_are_those_in_memory(cached, tmp_path):
  whole = opened(cached, tmp_path, "exact")
  stored = opened(cached, tmp_path, "inverted_file", words=2)
  assert isinstance(whole.descriptors, np.ndarray)
  assert not isinstance(stored.descriptors, np.ndarray)
  assert stored.paths == whole.paths == tuple(cached[0])
  np.testing.assert_array_equal(stored.offsets, whole.offsets)
  total = int(whole.offsets[-1])
  assert whole.descriptors.shape == (total, 24) and total <= 6 * 70
  rows = np.random.default_rng(0).integers(0, total, 50)
  for name in ("descriptors", "locations", "scales"):
    np.testing.assert_array_equal(
      getattr(stored, name)[rows], getattr(whole, name)[rows]
    )
  assert stored.descriptors[np.arange(0)].shape == (0, 24)


def test_a_stream_indexes_all_in_order(cached, tmp_path, monkeypatch):
  """Looking into every list, its first neighbours are the exact ones."""
  monkeypatch.setattr(cached_database, "_BATCH", 4)
  options = {"words": 2, "probes": 2, "rerank": 8}
  whole = opened(cached, tmp_path, "exact")
  built = opened(cached, tmp_path, "inverted_file", **options)
  kept = opened(cached, tmp_path, "inverted_file", **options)
  assert len(list((tmp_path / "indexes").iterdir())) == 1
  queries = whole.descriptors[::7]
  _, rows = built.index.search(queries, 1)
  np.testing.assert_array_equal(rows, kept.index.search(queries, 1)[1])
  np.testing.assert_array_equal(rows, whole.index.search(queries, 1)[1])


@pytest.mark.parametrize("matching", ["mutual", "votes"])
def test_searches_do_not_care_where_descriptors_are(cached, tmp_path, matching):
  paths, found = cached
  query = found.features(paths[0], SELECTION)
  options = {"neighbours": 3, "candidates": 4, "matching": matching}
  whole = opened(cached, tmp_path, "exact")
  stored = opened(cached, tmp_path, "inverted_file", words=1)
  rankings = []
  for database in (whole, dataclasses.replace(stored, index=whole.index)):
    matches = retrieval.search(
      query, found.size(paths[0]), database, leave_out=0, **options
    )
    rankings.append([(one.path, one.inlier_count) for one in matches])
  assert rankings[0] and rankings[0] == rankings[1]
