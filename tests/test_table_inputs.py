"""What a row needs: photographs, features and options, or a clear no."""

import dataclasses
import inspect
import json

import numpy as np
import pytest

from configs import synthetic
from delf_jax import checkpoint, extraction, extractors, retrieval, train
from delf_jax.data import synthetic_folder
from delf_jax.errors import InputError
from delf_jax.tables import table_inputs
from delf_jax.tables.table_config import DEFAULTS

OPTIONS = ("num_landmarks=2", "views=2", "queries=1", "clutter=1")


def settings_of(**changes):
  return {**DEFAULTS, "checkpoints.lc": "", **changes}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A tiny trained network with a PCA of 8 dimensions."""
  root = tmp_path_factory.mktemp("run")
  config = synthetic.get_config("tiny")
  config.dataset.path = str(root / "training_data")
  train.train(config, str(root / "run"))
  return root / "run"


def test_every_option_of_verification_is_one_of_the_search():
  options = table_inputs.search_options(settings_of())
  assert options.pop("expansion") == 0  # of `measurement.evaluate`
  known = inspect.signature(retrieval.search).parameters
  assert options.keys() <= known.keys()
  # All but what a caller decides by itself.
  left = known.keys() - options.keys()
  assert left == {"query", "size", "database", "leave_out", "calibration"}


def test_options_of_an_index():
  tree = settings_of(**{"index.leaves": 7, "index.options": ("leaf_size=3",)})
  assert table_inputs.index_options(tree) == {"leaves": 7, "leaf_size": 3}
  paper = table_inputs.index_options(
    settings_of(**{"index.kind": "inverted_file"})
  )
  assert (paper["words"], paper["subvectors"], paper["probes"]) == (8000, 10, 5)
  exact = settings_of(**{"index.kind": "exact"})
  assert table_inputs.index_options(exact) == {}


def test_features_of_rows_share_one_extraction(run, tmp_path):
  def features(**changes):
    named = {f"features.{name}": value for name, value in changes.items()}
    return table_inputs.open_features(
      settings_of(
        **{
          "features.checkpoint": "@lc",
          "checkpoints.lc": str(run),
          "features.scales": (0.5, 1.0),
          **named,
        }
      ),
      tmp_path,
    )

  stored, whole = features()
  fewer, part = features(max_features=10, score_threshold=0.5, pca=4)
  assert stored.settings == fewer.settings
  assert (whole.max_features, whole.dims) == (1000, None)
  assert (part.max_features, part.min_score, part.dims) == (10, 0.5, 4)
  more, _ = features(max_features=2000)
  assert more.settings["max_features"] == 2000
  plain, _ = features(pca=0)
  assert plain.settings["reduction"] == "none"
  json.dumps([plain.settings, stored.settings])
  # More than the checkpoint has: learned once, on what it was trained on.
  wide, _ = features(pca=12)
  wider, _ = features(pca=16)
  assert wide.settings == wider.settings != stored.settings
  assert len(list((tmp_path / "reductions").iterdir())) == 1
  with pytest.raises(InputError, match=r"pca is 4096.*dimensions"):
    features(pca=4096)
  # That of the package was trained on photographs that nobody else has.
  with pytest.raises(
    InputError, match=r"not here \(no folder.*pca_photographs"
  ):
    features(pca=40, checkpoint="delf_small")


def test_a_row_extracts_what_the_checkpoint_does(run, tmp_path):
  settings = settings_of(
    **{
      "features.checkpoint": str(run),
      "features.max_features": 40,
      "features.scales": (0.5, 1.0),
      "features.score": "product",
      "features.pca": 4,
      "features.max_side": 320,
    }
  )
  extractor, selection = table_inputs.open_features(settings, tmp_path)
  synthetic_folder.write_folder(
    tmp_path / "world", num_landmarks=1, views=2, clutter=0, distractors=0
  )
  path = next((tmp_path / "world" / "photos").rglob("*.jpg"))
  _, found = extraction.extract_file(extractor, path)
  found = selection(found)
  model = checkpoint.load_model(run)
  small = dataclasses.replace(
    model,
    reduction=model.reduction.replace(
      components=model.reduction.components[:4],
      deviations=model.reduction.deviations[:4],
    ),
  )
  alone = extractors.Extractor(
    extract=extractors.delf_extractor(
      small,
      max_side=320,
      max_features=40,
      scales=(0.5, 1.0),
      score="product",
    ),
    settings={},
    source="",
    max_side=320,
  )
  _, expected = extraction.extract_file(alone, path)
  np.testing.assert_allclose(found.locations, expected.locations)
  np.testing.assert_allclose(found.descriptors, expected.descriptors, atol=1e-5)


def test_fewer_distractors_are_the_first_of_more(tmp_path):
  def opened(count):
    return table_inputs.open_dataset(
      settings_of(
        **{
          "dataset.name": "synthetic",
          "dataset.options": (*OPTIONS, "distractors=6"),
          "dataset.distractors": count,
        }
      ),
      "",
      tmp_path,
    ).distractors

  everything = opened(-1)
  assert len(everything) == 6 and opened(0) == ()
  assert opened(4)[:2] == opened(2)
  assert set(opened(6)) == set(everything)
  with pytest.raises(InputError, match="distractors is 7, and there are 6"):
    opened(7)


def test_ones_own_photographs(tmp_path):
  synthetic_folder.write_folder(
    tmp_path, num_landmarks=2, views=2, queries=1, clutter=1, distractors=3
  )

  def opened(*options, name="json"):
    settings = settings_of(**{"dataset.name": name, "dataset.options": options})
    return table_inputs.open_dataset(settings, str(tmp_path), tmp_path)

  found = opened()
  assert len(found.database) == 5 and len(found.distractors) == 3
  (tmp_path / "distractors").rename(tmp_path / "others")
  assert len(opened().distractors) == 0
  assert len(opened("distractors=others").distractors) == 3
  (tmp_path / "others").rename(tmp_path / "more")
  assert len(opened("clutter=more").database) == 8
  with pytest.raises(InputError, match=r"config\.dataset: .*colour"):
    opened("colour=red")
  with pytest.raises(InputError, match="no retrieval set 'oxford'"):
    opened(name="oxford")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"features.kind": "hog"},
      r"'hog': expected one of delf, lift, global, selected, rootsift",
    ),
    ({"features.score": "norm"}, "expected one of l2_norm, attention, product"),
    ({"features.checkpoint": "@lc"}, r"--config\.checkpoints\.lc=RUN"),
    ({}, r"--config\.features\.checkpoint=RUN"),
    ({"features.checkpoint": "/nowhere"}, "/nowhere: no such checkpoint"),
    ({"index.kind": "kdtree"}, "'kdtree': expected one of exact, kd_tree"),
    ({"verification.model": "afine"}, "expected one of translation_scale"),
    ({"verification.votes": "some"}, "expected one of count, distance"),
    ({"verification.matching": "all"}, "expected one of votes, mutual, ratio"),
  ],
)
def test_mistakes_are_found_before_anything_is_made(changes, message):
  with pytest.raises(InputError, match=message):
    table_inputs.check(settings_of(**changes))


def test_a_checkpoint_that_is_none(tmp_path):
  with pytest.raises(InputError, match="no finished model"):
    table_inputs.open_features(
      settings_of(**{"features.checkpoint": str(tmp_path)}), tmp_path
    )


def test_a_checkpoint_of_another_kind_is_refused(run, tmp_path):
  with pytest.raises(InputError, match="'lift': .* is a checkpoint of Delf"):
    table_inputs.open_features(
      settings_of(**{"features.kind": "lift", "features.checkpoint": str(run)}),
      tmp_path,
    )


def test_a_dataset_needs_a_place(tmp_path):
  for name in ("json", "oxford5k"):
    with pytest.raises(InputError, match="--data is missing"):
      table_inputs.open_dataset(
        settings_of(**{"dataset.name": name}), "", tmp_path
      )
