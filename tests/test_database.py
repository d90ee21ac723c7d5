"""From training to a verified match, in one process, with a tiny network."""

import dataclasses
import shutil

import numpy as np
import pytest

from configs import synthetic
from delf_jax import (
  build_index,
  database,
  extraction,
  extractors,
  html_report,
  index,
  presentation,
  retrieval,
  train,
)
from delf_jax.data import synthetic_folder
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.features.local_features import LocalFeatures


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Photographs, a trained tiny network, its features and their index."""
  root = tmp_path_factory.mktemp("world")
  synthetic_folder.write_folder(
    root / "data", num_landmarks=3, views=3, clutter=2, distractors=2
  )
  config = synthetic.get_config("tiny")
  config.dataset.path = str(root / "training_data")
  train.train(config, str(root / "run"))
  extractor = extractors.open_extractor(str(root / "run"), max_side=320)
  extraction.extract_folder(extractor, root / "data/photos", root / "store")
  build_index.build(str(root / "store"), "exact", str(root / "index"))
  return root


def test_a_photograph_finds_itself_in_every_pixel_but_not_by_default(world):
  opened = database.open_database(world / "index")
  photo = world / "data" / "photos" / "landmark_00" / "view_000.jpg"
  assert opened.number_of(photo) == 2  # after two clutter photographs
  _, found = opened.search(photo)
  assert "landmark_00/view_000.jpg" not in [match.path for match in found]
  copy = world / "copy.jpg"
  shutil.copy(photo, copy)
  _, found = opened.search(copy)
  assert found[0].path == "landmark_00/view_000.jpg"
  np.testing.assert_allclose(found[0].transform[:2], np.eye(2, 3), atol=0.2)
  assert retrieval.accept(found)[0] == found[0]


def test_what_a_photograph_finds_is_found_by_way_of_it(world, monkeypatch):
  opened = database.open_database(world / "index")
  paths = opened.searchable.paths
  view = [paths.index(f"landmark_00/view_00{i}.jpg") for i in range(3)]
  photo = f"{opened.photos}/{paths[view[0]]}"
  _, (match, *_) = opened.search(photo)
  probabilities = {
    view[0]: {view[1]: 0.9},
    view[1]: {view[0]: 1.0, view[2]: 0.8},
    view[2]: {},
  }
  asked = []

  def search(features, size, searchable, *, leave_out, **options):
    assert options == {"neighbours": 4}
    asked.append(leave_out)
    start, stop = searchable.offsets[leave_out : leave_out + 2]
    assert len(features.mask) == stop - start
    assert size == tuple(searchable.sizes[leave_out])
    return [
      dataclasses.replace(match, path=paths[i], score=p, probability=p)
      for i, p in probabilities[leave_out].items()
    ]

  monkeypatch.setattr(retrieval, "search", search)
  _, found = opened.search(photo, expansion=5, least=0.7, neighbours=4)
  assert asked == view  # and it does not find itself
  assert [m.path for m in found] == [paths[view[1]], paths[view[2]]]
  assert [m.via for m in found] == [(), (paths[view[1]],)]
  assert [m.probability for m in found] == pytest.approx([0.9, 0.72])
  support = 0.9 / 1.8, 0.8 * 0.9 / 1.8
  assert [m.support for m in found] == pytest.approx(support)
  assert [m.score for m in found] == pytest.approx(
    [0.9**0.75 * support[0] ** 0.25, 0.72**0.75 * support[1] ** 0.25]
  )
  # What it finds itself is its own, if there is a surer way to it or not.
  probabilities[view[0]] = {view[1]: 1.0, view[2]: 0.75}
  for least, via, p in ((0.7, (), 0.75), (0.76, (paths[view[1]],), 0.8)):
    _, found = opened.search(photo, expansion=5, least=least, neighbours=4)
    assert found[1].path == paths[view[2]]
    assert (found[1].via, found[1].probability) == (via, pytest.approx(p))
  for options in ({}, {"expansion": 5, "least": 1.05}):
    asked.clear()
    opened.search(photo, neighbours=4, **options)
    assert asked == view[:1]


def test_matches_are_chained_by_their_probability_alone(world):
  opened = database.open_database(world / "index")
  photo = f"{opened.photos}/{opened.searchable.paths[0]}"
  with pytest.raises(InputError, match="which is 'weighted' here"):
    opened.search(photo, expansion=1, score="weighted")


def test_features_of_a_database_find_themselves(world):
  opened = database.open_database(world / "index")
  features = retrieval.features_of(opened.searchable, 3)
  size = tuple(opened.searchable.sizes[3])
  (best, *_) = retrieval.search(features, size, opened.searchable)
  assert best.path == opened.searchable.paths[3]
  np.testing.assert_allclose(best.transform[:2], np.eye(2, 3), atol=0.2)


def test_a_broken_query_is_one_clear_line(world):
  opened = database.open_database(world / "index")
  broken = world / "broken.jpg"
  broken.write_bytes(b"\xff\xd8\xff")
  for photo in (broken, world / "none.jpg"):
    with pytest.raises(InputError, match=photo.name) as caught:
      opened.search(photo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_of_a_database_are_those_of_its_store(dtype, tmp_path):
  generator = np.random.default_rng(0)
  with store.open_writer(
    tmp_path / "store", settings={}, dtype=dtype, shard_photographs=2
  ) as writer:
    for name, n in zip("abcde", (7, 0, 5, 9, 4), strict=True):
      features = LocalFeatures(
        locations=generator.uniform(0, 90, (n, 2)).astype(np.float32),
        scales=generator.uniform(1, 4, n).astype(np.float32),
        scores=np.ones(n, np.float32),
        descriptors=generator.normal(size=(n, 6)).astype(np.float32) / 4,
        mask=np.ones(n, bool),
      )
      writer.add(f"{name}.jpg", height=90, width=120, features=features)
    writer.finish()
  opened = store.open_store(tmp_path / "store")
  connected = database.connect(opened, None, photographs=4, removed=[2])
  assert connected.paths == ("a.jpg", "b.jpg", "d.jpg")
  rows = np.array([15, 0, 6, 7, 7])
  stored = np.array([20, 0, 6, 12, 12])
  for name in ("locations", "scales", "descriptors"):
    np.testing.assert_array_equal(
      getattr(connected, name)[rows], getattr(opened, name)()[stored]
    )
  none = np.zeros(0, int)
  assert connected.descriptors[none].shape == (0, 6)
  assert connected.scales[none].shape == (0,)


def test_a_store_that_changed_after_the_index_was_built(world, tmp_path):
  shutil.copytree(world / "store", tmp_path / "store")
  shutil.copytree(world / "index", tmp_path / "index")
  extraction.extract_folder(
    extractors.open_extractor(str(world / "run"), max_side=320),
    world / "data" / "photos",
    tmp_path / "store",
  )
  database.open_database(tmp_path / "index", store_directory=tmp_path / "store")
  other = extractors.open_extractor("rootsift")
  extraction.extract_folder(
    other, world / "data" / "photos", tmp_path / "other"
  )
  with pytest.raises(InputError, match="build it again"):
    database.open_database(
      tmp_path / "index", store_directory=tmp_path / "other"
    )
  shutil.rmtree(tmp_path / "store")
  meta = tmp_path / "index" / "meta.json"
  assert index.read_meta(tmp_path / "index")["kind"] == "exact"
  meta.write_text(meta.read_text()[:-40])
  with pytest.raises(InputError, match=r"index"):
    database.open_database(tmp_path / "index")


def test_an_empty_store_has_no_index(tmp_path):
  with store.open_writer(tmp_path / "store", settings={}) as writer:
    writer.finish()
  with pytest.raises(InputError, match="holds no features"):
    build_index.build(str(tmp_path / "store"), "exact", str(tmp_path / "i"))


def test_matches_are_shown_even_when_the_photograph_is_gone(world, tmp_path):
  opened = database.open_database(world / "index")
  copy = world / "another copy.jpg"
  shutil.copy(world / "data/photos/landmark_01/view_000.jpg", copy)
  photograph, found = opened.search(copy)
  for photos in (opened.photos, tmp_path / "gone"):
    sections = presentation.query_sections(
      copy, photograph, found, photos, min_probability=0.1
    )
    page = html_report.write_report(
      tmp_path / "r", title="t", sections=sections
    )
    with open(page) as file:
      assert "landmark_01/view_000.jpg" in file.read()
