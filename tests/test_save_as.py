"""A checkpoint written again, to be handed on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax import checkpoint, extraction, extractors, match_score
from delf_jax.checkpoint.__main__ import save_as
from delf_jax.errors import InputError
from delf_jax.models.normalisation import NORMALISATIONS

DIRECTORY = "/home/somebody/photographs"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=4,
    layout="basic",
    attention_hidden=0,
    code_dim=6,
    num_classes=3,
  )
  variables = jax.jit(network.init)(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  directory = tmp_path_factory.mktemp("run") / "model"
  checkpoint.save_model(
    directory,
    network=network,
    variables=variables,
    normalisation=NORMALISATIONS["unit"],
    reduction=None,
    extraction={"score": "l2_norm", "scales": [0.5, 1.0]},
    provenance={
      "config": {
        "seed": 3,
        "dataset": {"path": DIRECTORY, "exclude": "relative/names.txt"},
        "paths": [f"{DIRECTORY}/more", 7],
      }
    },
  )
  return directory


def test_settings_weights_and_calibration_change(source, tmp_path):
  fitted = tmp_path / "fitted.json"
  match_score.write_calibration(match_score.shipped("delf"), fitted)
  save_as(
    source,
    tmp_path / "small",
    weights="int8",
    settings={"scales": [1.0], "max_features": 7},
    calibration=str(fitted),
  )
  model = checkpoint.load_model(tmp_path / "small")
  assert model.extraction == {
    "score": "l2_norm",
    "scales": [1.0],
    "max_features": 7,
  }
  kept = tmp_path / "small" / extractors.CALIBRATION
  assert kept.read_bytes() == fitted.read_bytes()
  pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3))
  features = extractors.delf_extractor(model, max_side=96)(
    extraction.Photograph(pixels.astype(np.uint8), 64, 96)
  )
  assert features.descriptors.shape == (7, 6)
  # Written again without saying more, it keeps what it has.
  save_as(tmp_path / "small", tmp_path / "again", weights="int8")
  again = tmp_path / "again"
  assert (again / extractors.CALIBRATION).read_bytes() == fitted.read_bytes()
  assert checkpoint.load_model(again).extraction == model.extraction


def test_nobody_learns_where_it_was_trained(source, tmp_path):
  save_as(source, tmp_path / "small")
  provenance = checkpoint.load_model(tmp_path / "small").provenance
  assert provenance == {
    "config": {
      "seed": 3,
      "dataset": {"path": "photographs", "exclude": "relative/names.txt"},
      "paths": ["more", 7],
    }
  }
  for path in (tmp_path / "small").rglob("*"):
    if path.is_file():
      content = path.read_bytes()
      assert b"somebody" not in content
      assert str(tmp_path).encode() not in content


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"settings": {"colour": 1}}, "--option colour: extraction has no such"),
    ({"settings": {"score": "attention"}}, "no attention head"),
    ({"weights": "int2"}, "cannot be kept as 'int2'"),
    ({"calibration": "/nowhere.json"}, "'/nowhere.json' cannot be read"),
  ],
)
def test_what_does_not_fit_is_refused(source, tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    save_as(source, tmp_path / "small", **changes)
  assert not (tmp_path / "small").exists()


def test_a_directory_of_that_name_can_be_meant(source, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = checkpoint.DEFAULT
  save_as(source, tmp_path / name)
  assert checkpoint.find_model(name) != checkpoint.find_model(f"./{name}")
  assert checkpoint.find_model(f"./{name}").absolute() == tmp_path / name
