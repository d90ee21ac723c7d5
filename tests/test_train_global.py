"""Global descriptors in the train program: what a run leaves, and resumes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import dir as dir_config
from configs import siamac
from delf_jax import checkpoint, extraction, extractors, journal, stages, train


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """Three landmarks that a colour tells apart, eight noisy views each."""
  root = tmp_path_factory.mktemp("landmarks")
  generator = np.random.default_rng(0)
  for name, colour in [("a", 40), ("b", 120), ("c", 200)]:
    (root / name).mkdir()
    for view in range(8):
      pixels = generator.normal(colour, 30, (80, 96, 3)).clip(0, 255)
      Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{view}.png")
  return root


def tiny_config(module, photographs):
  config = module.get_config("tiny")
  # Two of each class are held out: tuples need a positive.
  config.dataset = {
    "kind": "folder",
    "path": str(photographs),
    "validation_share": 0.25,
  }
  config.descriptors.steps = 1
  # The checkpoint of step 2 lies among the tuples mined before step 1.
  config.ranking.mine_every = 3
  return config


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  config = tiny_config(siamac, photographs)
  config.validation.retrieval = {"kind": "synthetic", "landmarks": 2}
  train.train(config, str(workdir))
  return workdir


def test_a_run_leaves_a_whitened_descriptor(run, photographs):
  records = journal.read(run)
  ours = [r for r in records if r["stage"] == "ranking"]
  assert [r["step"] for r in ours if r["kind"] == "train"] == [1, 2, 3, 4]
  judged = [r for r in ours if r["kind"] == "validation"]
  assert [r["step"] for r in judged] == [2, 4]
  assert all(0 <= record["accuracy"] <= 1 for record in judged)
  assert "mAP" in judged[-1]
  assert (run / "report" / "index.html").exists()
  assert len(list((run / "mined" / "ranking").glob("*.npz"))) == 2
  model = checkpoint.load_model(run)
  assert model.reduction.components.shape == (4, 128)
  extractor = extractors.open_extractor(str(run))
  _, found = extraction.extract_file(extractor, photographs / "a" / "0.png")
  assert found.descriptors.shape == (1, 4)
  np.testing.assert_allclose(np.linalg.norm(found.descriptors), 1, rtol=1e-5)


def test_a_resumed_run_ends_in_the_same_bits(run, tmp_path):
  for name in ("checkpoints", "mined"):
    shutil.copytree(run / name, tmp_path / name)
  shutil.copy(run / "config.json", tmp_path)
  shutil.rmtree(tmp_path / "checkpoints" / "ranking" / "4")
  (tmp_path / "mined" / "ranking" / "000001.npz").unlink()
  settings = train.ConfigDict(json.loads((run / "config.json").read_text()))
  train.train(settings, str(tmp_path))
  expected = checkpoint.load_model(run)
  assert checkpoint.load_model(tmp_path).fingerprint == expected.fingerprint


@pytest.mark.slow
def test_regions_start_as_their_pca_and_learn(photographs, tmp_path):
  config = tiny_config(dir_config, photographs)
  train.train(config, str(tmp_path))
  model = checkpoint.load_model(tmp_path)
  assert model.reduction is None
  assert model.network.descriptor_channels == 6
  kernel = model.variables["params"]["regional"]["kernel"]
  # A new layer's kernel would be far smaller than one that whitens.
  assert np.linalg.norm(kernel, axis=0).min() > 2
  config.model.descriptor.pooling = "gem"
  config.ranking.loss = {"kind": "average_precision"}
  config.init_from = str(tmp_path)
  config.stages = ("ranking",)
  config.ranking.steps = 1
  train.train(config, str(tmp_path / "next"))
  found = checkpoint.load_model(tmp_path / "next").variables["params"]
  assert abs(float(found["power"][0]) - 3) < 0.1


@pytest.mark.parametrize(
  ("module", "variant"),
  [
    (module, variant)
    for module in (siamac, dir_config)
    for variant in module.VARIANTS
  ],
)
def test_every_variant_is_a_fit_config(module, variant):
  for _, config, _ in train.expand(module.get_config(variant), "run"):
    settings = json.loads(config.to_json_best_effort())
    for stage in settings["stages"]:
      stages.read_stage(stage, settings)
    stages.read_options(
      train.validation.Options, settings["validation"], "validation"
    )
  with pytest.raises(ValueError, match="unknown variant 'huge'"):
    module.get_config("huge")
