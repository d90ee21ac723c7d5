"""Training: what a run leaves, continues, refuses; every config."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import delf_small, finetune, from_scratch, released, synthetic
from delf_jax import checkpoint, extraction, extractors, journal, stages, train
from delf_jax.errors import InputError


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


def tiny_config(photographs) -> ConfigDict:
  config = synthetic.get_config("tiny")
  config.dataset = {"kind": "folder", "path": str(photographs)}
  return config


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  train.train(tiny_config(photographs), str(workdir))
  return workdir


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_leaves_a_model_and_its_figures(run):
  model = checkpoint.load_model(run)
  assert model.reduction.components.shape == (8, 128)
  assert model.extraction["score"] == "product"
  assert model.provenance["config"]["descriptors"]["crop"] == 64
  records = journal.read(run)
  for stage in ("descriptors", "attention"):
    ours = [record for record in records if record["stage"] == stage]
    steps = [r["step"] for r in ours if r["kind"] == "train"]
    assert steps == [1, 2, 3, 4]
    judged = [r for r in ours if r["kind"] == "validation"]
    assert [r["step"] for r in judged] == [2, 4]
    assert all(np.isfinite(record["loss"]) for record in ours)
    assert all(0 <= record["accuracy"] <= 1 for record in judged)
  page = (run / "report" / "index.html").read_text()
  assert "Loss" in page and "attention" in page.lower()


def test_a_resumed_run_equals_an_uninterrupted_one(run, photographs, tmp_path):
  # As if killed in the second stage, after its first checkpoint.
  shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
  shutil.rmtree(tmp_path / "checkpoints" / "attention" / "4")
  shutil.copy(run / "metrics.jsonl", tmp_path)
  train.train(tiny_config(photographs), str(tmp_path))
  expected, resumed = (checkpoint.load_model(path) for path in (run, tmp_path))
  assert_equal(resumed.variables, expected.variables)
  assert resumed.fingerprint == expected.fingerprint
  # What was done again is not recorded twice.
  for one, other in zip(journal.read(tmp_path), journal.read(run), strict=True):
    assert (one["stage"], one["step"]) == (other["stage"], other["step"])
    assert one["loss"] == other["loss"]


def test_another_config_does_not_continue_a_run(run, photographs):
  config = tiny_config(photographs)
  config.seed = 5
  with pytest.raises(InputError, match=r"different: seed.*--workdir"):
    train.train(config, str(run))


def test_weights_of_another_run_are_taken(run, photographs, tmp_path):
  config = tiny_config(photographs)
  config.init_from = str(run)
  config.stages = ("attention",)
  train.train(config, str(tmp_path / "second"))
  first, second = (
    checkpoint.load_model(path).variables for path in (run, tmp_path / "second")
  )
  for name in ("backbone", "descriptor_classifier"):
    assert_equal(second["params"][name], first["params"][name])
  assert_equal(
    second["batch_stats"]["backbone"], first["batch_stats"]["backbone"]
  )
  config.model.layout = "slim"
  with pytest.raises(InputError, match="layout torchvision instead of slim"):
    train.train(config, str(tmp_path / "third"))


def test_a_new_head_must_be_asked_for(run, photographs, tmp_path):
  four = shutil.copytree(photographs, tmp_path / "four")
  shutil.copytree(four / "a", four / "d")
  config = tiny_config(four)
  config.init_from = str(run)
  with pytest.raises(InputError, match="3 landmarks apart and the data have 4"):
    train.train(config, str(tmp_path / "run"))
  shutil.rmtree(tmp_path / "run")
  config.reset_head = True
  config.descriptors.steps = 0
  train.train(config, str(tmp_path / "run"))
  found, given = (
    checkpoint.load_model(path).variables for path in (tmp_path / "run", run)
  )
  assert_equal(found["params"]["backbone"], given["params"]["backbone"])
  shape = found["params"]["descriptor_classifier"]["kernel"].shape
  assert shape == (128, 4)


def small_config(photographs) -> ConfigDict:
  """Correspondences, then attention."""
  config = delf_small.get_config("tiny")
  config.dataset.path = str(photographs)
  config.correspondence.sources.landmarks.path = str(photographs)
  config.correspondence.held_out.landmarks.path = str(photographs)
  return config


@pytest.fixture(scope="module")
def small_run(photographs, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("small")
  train.train(small_config(photographs), str(workdir))
  return workdir


def test_correspondences_are_a_stage_like_others(
  small_run, photographs, tmp_path
):
  records = journal.read(small_run)
  ours = [r for r in records if r["stage"] == "correspondence"]
  assert [r["step"] for r in ours if r["kind"] == "validation"] == [2, 4]
  assert all(np.isfinite(record["loss"]) for record in ours)
  assert all(0 <= record["accuracy"] <= 1 for record in ours)
  page = (small_run / "report" / "index.html").read_text()
  assert "Correspondence" in page and "Attention" in page
  model = checkpoint.load_model(small_run)
  assert model.network.descriptor_channels == 8 and model.reduction is None
  extractor = extractors.open_extractor(str(small_run), max_side=96)
  _, found = extraction.extract_file(extractor, photographs / "a" / "0.png")
  assert found.descriptors.shape[1] == 8
  lengths = np.linalg.norm(found.descriptors[np.asarray(found.mask)], axis=1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_a_resumed_correspondence_stage_ends_in_the_same_bits(
  small_run, photographs, tmp_path
):
  shutil.copytree(small_run / "checkpoints", tmp_path / "checkpoints")
  shutil.rmtree(tmp_path / "checkpoints" / "attention")
  shutil.rmtree(tmp_path / "checkpoints" / "correspondence" / "4")
  config = small_config(photographs)
  train.train(config, str(tmp_path))
  expected = checkpoint.load_model(small_run)
  assert checkpoint.load_model(tmp_path).fingerprint == expected.fingerprint


def test_photographs_without_labels_are_enough(photographs, tmp_path):
  config = small_config(photographs)
  config.dataset = {"kind": "unlabelled", "path": str(photographs)}
  config.stages = ("correspondence",)
  config.correspondence.steps = 1
  config.extraction.score = "l2_norm"
  config.reduction = {"dim": 4, "whiten": False, "photographs": 4}
  train.train(config, str(tmp_path / "run"))
  model = checkpoint.load_model(tmp_path / "run")
  assert model.network.num_classes == 0
  assert model.reduction.components.shape == (4, 8)
  config.stages = ("correspondence", "attention")
  with pytest.raises(InputError, match="'attention' needs landmarks"):
    train.train(config, str(tmp_path / "other"))
  config.attention.steps = 0
  settings = json.loads(config.to_json_best_effort())
  assert stages.to_train(settings) == ["correspondence"]


@pytest.mark.slow
def test_every_option_at_once(photographs, tmp_path):
  """Joint training, codes, ArcFace, augmentation, classes, means, best."""
  (photographs / "a" / "broken.png").write_bytes(b"\x89PNG nothing")
  config = tiny_config(photographs)
  config.stages = ("joint",)
  config.joint = config.descriptors.copy_and_resolve_references()
  config.joint.update(
    {
      "sampling": "class",
      "accumulate": 2,
      "ema_decay": 0.9,
      "scales": (0.75, 1.0),
      "augmentation": {"crop_area": (0.3, 1.0), "brightness": 0.3},
      "steps": 6,
    }
  )
  config.model.code_dim = 6
  config.model.dtype = "bfloat16"
  config.model.batch_norm = "local"
  config.loss = {"kind": "arcface", "margin": 0.1}
  config.reduction.dim = 0
  config.validation.select = "R@90"
  config.validation.retrieval = {"kind": "synthetic", "landmarks": 2}
  try:
    train.train(config, str(tmp_path))
  finally:
    (photographs / "a" / "broken.png").unlink()
  model = checkpoint.load_model(tmp_path)
  assert model.reduction is None and model.network.code_dim == 6
  judged = [r for r in journal.read(tmp_path) if r["kind"] == "validation"]
  assert len(judged) == 3 and all(0 <= r["R@90"] <= 1 for r in judged)
  # What a stage ends with is the best checkpoint, not the last.
  best = max(judged, key=lambda r: (r["R@90"], r["step"]))["step"]
  kept = {int(p.name) for p in (tmp_path / "checkpoints" / "joint").iterdir()}
  assert best in kept and 6 in kept


def test_a_loss_that_is_no_number_stops_with_its_photographs(
  photographs, tmp_path
):
  config = tiny_config(photographs)
  config.descriptors.schedule.learning_rate = 1e30
  config.descriptors.schedule.warmup = 0
  config.descriptors.steps = 30
  with pytest.raises(
    InputError, match=r"loss of descriptors is nan at step \d+"
  ) as told:
    train.train(config, str(tmp_path))
  assert "a/" in str(told.value) or "b/" in str(told.value)
  assert "learning_rate" in str(told.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"dataset.kind": "webcam"}, "webcam"),
    ({"dataset.path": "/nowhere"}, "/nowhere"),
    ({"descriptors.batch_size": 3}, "does not divide among"),
    ({"descriptors.accumulate": 3}, "does not divide among"),
    (
      {"descriptors.mixup": 0.2, "descriptors.accumulate": 2},
      "mixup pairs photographs",
    ),
    ({"descriptors.optimiser.kind": "lion"}, "unknown optimiser"),
    ({"descriptors.schedule.decay": "steps"}, "unknown decay"),
    ({"model.layout": "resnext"}, "unknown weight layout"),
    ({"model.batch_norm": "group"}, "unknown config.model.batch_norm"),
    ({"loss.kind": "triplet"}, "unknown loss"),
    ({"validation.retrieval.kind": "web"}, "unknown kind 'web'"),
  ],
)
def test_an_unfit_config_is_refused(photographs, tmp_path, change, message):
  config = tiny_config(photographs)
  config.update_from_flattened_dict(change)
  with pytest.raises(InputError, match=message):
    train.train(config, str(tmp_path))


def test_an_unknown_option_is_named(photographs, tmp_path):
  config = tiny_config(photographs)
  config.descriptors.momentum = 0.9
  with pytest.raises(InputError, match="descriptors has no option 'momentum'"):
    train.train(config, str(tmp_path))


CONFIGS = [
  (finetune, list(finetune.VARIANTS)),
  (released, list(released.CODES)),
  (delf_small, list(delf_small.STEPS)),
  (from_scratch, ["small", "resnet50"]),
  (synthetic, ["small", "ablation", "tiny"]),
]


@pytest.mark.parametrize(
  ("module", "variant"),
  [(module, variant) for module, names in CONFIGS for variant in names],
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


def test_a_sweep_is_several_runs():
  runs = train.expand(synthetic.get_config("ablation"), "runs")
  names = [name for name, *_ in runs]
  assert names[:3] == ["descriptors", "attention", "attention_rs"]
  configs = {name: config for name, config, _ in runs}
  assert configs["attention_rs"].init_from == "runs/descriptors"
  assert configs["attention_rs"].attention.scales == (0.3536, 0.5, 0.7071, 1.0)
  assert configs["attention"].attention.scales == (1.0,)
  assert "sweep" not in configs["joint"]
  assert [workdir for *_, workdir in runs][-1] == "runs/autoencoder"


def test_a_sweep_must_fit_its_config():
  config = synthetic.get_config("tiny")
  config.sweep = (("one", {"nothing": 3}),)
  with pytest.raises(InputError, match="sweep.one does not fit"):
    train.expand(config, "runs")
  config.sweep = (("one", {"init_from": "@two"}),)
  with pytest.raises(InputError, match="names no earlier run"):
    train.expand(config, "runs")
