"""The program that trains LIFT: a run, resumed, extracting, and refused."""

import dataclasses
import shutil
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from configs import lift as configs
from delf_jax import (
  checkpoint,
  extraction,
  extractors,
  journal,
  lift_extraction,
  match_score,
  train_patches,
)
from delf_jax.checkpoint.__main__ import describe
from delf_jax.data.photographs import read_photograph
from delf_jax.errors import InputError
from delf_jax.tables import table_inputs
from delf_jax.tables.table_config import DEFAULTS


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  root = tmp_path_factory.mktemp("photographs")
  generator = np.random.default_rng(0)
  for k in range(5):
    pixels = generator.normal(size=(140, 160, 3)).astype(np.float32)
    pixels = 128 + 300 * cv2.GaussianBlur(pixels, (0, 0), 3)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
      root / f"{k}.png"
    )
  return root


def tiny_config(photographs):
  config = configs.get_config("tiny")
  config.data.sources.pool.path = str(photographs)
  config.data.held_out.pool.path = str(photographs)
  return config


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  train_patches.train(tiny_config(photographs), str(workdir))
  return workdir


def test_a_run_leaves_figures_of_every_stage(run):
  records = journal.read(run)
  for stage, steps in (("descriptor", 4), ("orientation", 2), ("detector", 4)):
    ours = [r for r in records if r["stage"] == stage]
    trained = [r for r in ours if r["kind"] == "train"]
    assert [r["step"] for r in trained] == list(range(1, steps + 1))
    assert all(np.isfinite(r["loss"]) for r in trained)
    held_out = [r for r in ours if r["kind"] == "validation"]
    assert held_out[-1]["step"] == steps
    assert 0 <= held_out[-1]["accuracy"] <= 1
  page = (run / "report" / "index.html").read_text()
  assert "descriptor" in page.lower() and "detector" in page.lower()


def test_a_resumed_run_equals_an_uninterrupted_one(run, photographs, tmp_path):
  # As if killed in the last stage, after its first checkpoint.
  shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
  shutil.rmtree(tmp_path / "checkpoints" / "detector" / "4")
  train_patches.train(tiny_config(photographs), str(tmp_path))
  expected, resumed = (checkpoint.load_model(path) for path in (run, tmp_path))
  jax.tree.map(
    np.testing.assert_array_equal, resumed.variables, expected.variables
  )
  assert resumed.fingerprint == expected.fingerprint


def test_its_model_extracts_and_is_opened_again(run, photographs):
  extractor = extractors.open_extractor(str(run), max_side=160)
  assert extractor.settings["kind"] == extractors.kind_of(str(run)) == "lift"
  # Neither hand-crafted nor dense: the calibration for any kind.
  assert extractors.calibration_of(extractor.settings) == match_score.shipped()
  _, found = extraction.extract_file(extractor, photographs / "0.png")
  assert found.descriptors.shape[1] == 8 and 0 < len(found.mask) <= 50
  lengths = np.linalg.norm(found.descriptors, axis=1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-4)
  again = extractors.reopen(
    {**extractor.settings, "features": extractor.source}
  )
  _, same = extraction.extract_file(again, photographs / "0.png")
  jax.tree.map(np.testing.assert_array_equal, same, found)
  fewer = extractors.open_extractor(str(run), max_features=3)
  _, few = extraction.extract_file(fewer, photographs / "0.png")
  assert len(few.mask) == 3
  with pytest.raises(InputError, match="score: not an option of LIFT"):
    extractors.open_extractor(str(run), score="l2_norm")


def test_descriptors_are_centred_by_what_it_learned(run, photographs):
  model = checkpoint.load_model(run)
  learned = model.reduction
  assert learned.components.shape == (8, 8)
  bare = dataclasses.replace(model, reduction=None)
  plain, found = (
    lift_extraction.lift_extractor(one, max_side=160)(
      read_photograph(photographs / "1.png")
    )
    for one in (bare, model)
  )
  expected = (plain.descriptors - learned.mean) @ np.asarray(
    learned.components
  ).T
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(found.descriptors, expected, atol=1e-3)
  # They had much in common.
  alike = [np.mean(d @ d.T) for d in (plain.descriptors, found.descriptors)]
  assert alike[1] < alike[0] - 0.1


def test_it_describes_itself(run):
  lines = list(describe(checkpoint.load_model(run)))
  assert any("lift" in line for line in lines)
  assert any("detector.conv" in line for line in lines)


def test_a_row_of_a_table_takes_it(run, photographs, tmp_path):
  settings = {
    **DEFAULTS,
    "features.kind": "lift",
    "features.checkpoint": "@lift",
    "checkpoints.lift": str(run),
    "features.max_side": 160,
    "features.max_features": 20,
    "features.pca": 40,  # of DELF
  }
  table_inputs.check(settings)
  extractor, selection = table_inputs.open_features(settings, tmp_path)
  _, found = extraction.extract_file(extractor, photographs / "0.png")
  # More than the row has are extracted, for other rows.
  assert selection.max_features == 20 and selection.dims is None
  assert extractor.settings["max_features"] == 1000
  assert found.descriptors.shape[1] == 8
  settings["features.kind"] = "delf"
  with pytest.raises(InputError, match="'delf': .* is a checkpoint of Lift"):
    table_inputs.open_features(settings, tmp_path)


def test_programs_for_other_networks_refuse_it(run, tmp_path):
  for arguments, message in (
    (["export", "--features", str(run)], "no network that can be exported"),
    (
      ["convert", "--to=torch_state_dict", "--checkpoint", str(run)],
      "a checkpoint of Lift, which no other format has",
    ),
  ):
    program, *rest = arguments
    done = subprocess.run(
      [sys.executable, "-m", f"delf_jax.{program}", *rest]
      + ["--output", str(tmp_path / "out")],
      capture_output=True,
      text=True,
    )
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_is_refused(run, photographs, tmp_path):
  config = tiny_config(photographs)
  config.seed = 7
  with pytest.raises(InputError, match="another config .different: seed"):
    train_patches.train(config, str(run))
  config = tiny_config(photographs)
  config.descriptor.batch_size = 2  # of two devices
  with pytest.raises(InputError, match="a device with one pair"):
    train_patches.train(config, str(tmp_path / "a"))
  config = tiny_config(photographs)
  config.detector.cutting.side = 60
  config.stages = ("detector",)
  with pytest.raises(InputError, match="side 60 is less than the 64"):
    train_patches.train(config, str(tmp_path / "b"))
  config = tiny_config("")
  with pytest.raises(InputError, match="has a path"):
    train_patches.train(config, str(tmp_path / "c"))
  config = tiny_config(photographs)
  config.model.kernel = 8
  with pytest.raises(InputError, match="odd kernel"):
    train_patches.train(config, str(tmp_path / "d"))


@pytest.mark.parametrize("variant", configs.STEPS)
def test_every_variant_can_be_read(variant):
  config = configs.get_config(variant)
  settings = train_patches.json.loads(config.to_json_best_effort())
  for stage in settings["stages"]:
    options, cutting, loss = train_patches.read_stage(stage, settings)
    assert options.crop >= cutting.side and loss.margin == 4.0
  with pytest.raises(
    ValueError, match="expected one of paper, small, detector, tiny"
  ):
    configs.get_config("huge")
