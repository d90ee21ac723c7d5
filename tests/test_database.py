"""From training to a verified match, in one process, with a tiny network."""

import json
import shutil

import numpy as np
import pytest

from configs import synthetic
from delf_jax import (
  build_index,
  database,
  extraction,
  html_report,
  index,
  measurement,
  presentation,
  retrieval,
  train,
)
from delf_jax.data import synthetic_folder
from delf_jax.errors import InputError
from delf_jax.features import store


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
  extractor = extraction.open_extractor(str(root / "run"), max_side=320)
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
  np.testing.assert_allclose(found[0].transform, np.eye(2, 3), atol=0.2)
  assert retrieval.accept(found)[0] == found[0]


def test_a_broken_query_is_one_clear_line(world):
  opened = database.open_database(world / "index")
  broken = world / "broken.jpg"
  broken.write_bytes(b"\xff\xd8\xff")
  for photo in (broken, world / "none.jpg"):
    with pytest.raises(InputError, match=photo.name) as caught:
      opened.search(photo)
    assert "\n" not in str(caught.value)


def test_evaluation_of_a_trained_network(world):
  result = measurement.evaluate(
    extraction.open_extractor(str(world / "run"), max_side=320),
    photos=str(world / "data" / "photos"),
    ground_truth=str(world / "data" / "ground_truth.json"),
    distractors=str(world / "data" / "distractors"),
    output=str(world / "results"),
  )
  assert result["num_distractors"] == 2
  assert result["settings"]["descriptors"] > 0
  written = json.loads((world / "results" / "metrics.json").read_text())
  assert written == json.loads(json.dumps(result))


def test_distractors_inside_the_database_are_refused(world):
  with pytest.raises(InputError, match="must not be in the database"):
    measurement.evaluate(
      extraction.open_extractor("rootsift"),
      photos=str(world / "data" / "photos"),
      ground_truth=str(world / "data" / "ground_truth.json"),
      distractors=str(world / "data" / "photos" / "clutter"),
      output=str(world / "refused"),
    )


def test_a_store_that_changed_after_the_index_was_built(world, tmp_path):
  shutil.copytree(world / "store", tmp_path / "store")
  shutil.copytree(world / "index", tmp_path / "index")
  extraction.extract_folder(
    extraction.open_extractor(str(world / "run"), max_side=320),
    world / "data" / "photos",
    tmp_path / "store",
  )
  database.open_database(tmp_path / "index", store_directory=tmp_path / "store")
  other = extraction.open_extractor("rootsift")
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
      copy, photograph, found, photos, min_inliers=3
    )
    page = html_report.write_report(
      tmp_path / "r", title="t", sections=sections
    )
    with open(page) as file:
      assert "landmark_01/view_000.jpg" in file.read()
