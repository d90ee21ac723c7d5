"""Training: the pure step, what a stage may change, resumption, errors."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import finetune
from delf_jax import checkpoint, train
from delf_jax.errors import InputError
from delf_jax.models.normalisation import NORMALISATIONS


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
  config = finetune.get_config("tiny")
  config.dataset = {"kind": "folder", "path": str(photographs)}
  return config


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  train.train(tiny_config(photographs), str(workdir))
  return workdir


def setup_step(stage, axis_name=None):
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=4,
    layout="torchvision",
    num_classes=3,
    attention_hidden=8,
    axis_name=axis_name,
  )
  variables = network.clone(
    backbone=network.backbone.clone(axis_name=None)
  ).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  optimiser = train.make_optimiser(
    learning_rate=0.1, steps=10, warmup=0, weight_decay=1e-4
  )
  state = train.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=optimiser.init(
      {name: variables["params"][name] for name in train.TRAINED[stage]}
    ),
  )
  step = train.make_train_step(
    network,
    optimiser,
    stage=stage,
    normalise=NORMALISATIONS["unit"],
    axis_name=axis_name,
  )
  return step, state


def batch_of(n=8, side=64):
  generator = np.random.default_rng(0)
  return {
    "pixels": generator.integers(0, 255, (n, side, side, 3)).astype(np.uint8),
    "labels": np.arange(n, dtype=np.int32) % 3,
  }


@pytest.mark.parametrize("stage", ["descriptors", "attention"])
def test_the_pmapped_step_equals_the_plain_one(stage):
  assert jax.local_device_count() == 2
  batch = batch_of()
  step, state = setup_step(stage)
  plain, plain_metrics = jax.jit(step)(state, batch)
  step, state = setup_step(stage, axis_name="batch")
  mapped, metrics = jax.pmap(
    step, axis_name="batch", in_axes=(None, 0), out_axes=None
  )(state, jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
    (mapped.params, mapped.batch_stats, metrics),
    (plain.params, plain.batch_stats, plain_metrics),
  )


@pytest.mark.parametrize("stage", ["descriptors", "attention"])
def test_a_stage_changes_its_own_parameters_alone(stage):
  step, state = setup_step(stage)
  after, _ = jax.jit(step)(state, batch_of())

  def same(a, b):
    return all(
      np.array_equal(x, y)
      for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )

  for name in state.params:
    trained = name in train.TRAINED[stage]
    assert same(state.params[name], after.params[name]) != trained
  for name in state.batch_stats:
    trained = name in train.TRAINED[stage]
    assert same(state.batch_stats[name], after.batch_stats[name]) != trained


def test_a_step_learns():
  step, state = setup_step("descriptors")
  step = jax.jit(step)
  losses = []
  for _ in range(8):
    state, metrics = step(state, batch_of())
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.7 * losses[0]


def test_a_run_leaves_a_model_and_its_figures(run):
  model = checkpoint.load_model(run)
  assert model.reduction.components.shape == (8, 128)
  assert model.extraction["score"] == "product"
  lines = [
    json.loads(line)
    for line in (run / "metrics.jsonl").read_text().split("\n")
    if line
  ]
  assert [line["stage"] for line in lines] == ["descriptors"] * 4 + [
    "attention"
  ] * 4
  assert all(np.isfinite(line["loss"]) for line in lines)
  assert model.provenance["config"]["descriptors"]["crop"] == 64


def test_a_resumed_run_equals_an_uninterrupted_one(run, photographs, tmp_path):
  # As if killed in the second stage, after its first checkpoint.
  shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
  shutil.rmtree(tmp_path / "checkpoints" / "attention" / "4")
  train.train(tiny_config(photographs), str(tmp_path))
  expected, resumed = (
    checkpoint.load_model(run),
    checkpoint.load_model(tmp_path),
  )
  jax.tree.map(
    np.testing.assert_array_equal, resumed.variables, expected.variables
  )
  assert resumed.fingerprint == expected.fingerprint


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
    checkpoint.load_model(path).variables["params"]["backbone"]
    for path in (run, tmp_path / "second")
  )
  jax.tree.map(np.testing.assert_array_equal, second, first)
  config.model.layout = "slim"
  with pytest.raises(InputError, match="layout torchvision instead of slim"):
    train.train(config, str(tmp_path / "third"))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"dataset.kind": "webcam"}, "unknown dataset kind"),
    ({"dataset.path": ""}, "DIR/landmark"),
    ({"dataset.path": "/nowhere"}, "/nowhere"),
    ({"descriptors.batch_size": 3}, "does not divide among"),
    ({"descriptors.optimiser.kind": "lion"}, "unknown optimiser"),
    ({"model.layout": "resnext"}, "unknown weight layout"),
  ],
)
def test_an_unfit_config_is_refused(photographs, tmp_path, change, message):
  config = tiny_config(photographs)
  config.update_from_flattened_dict(change)
  with pytest.raises(InputError, match=message):
    train.train(config, str(tmp_path))


def test_every_variant_of_the_config_builds():
  for variant in ("", "synthetic_small", "tiny"):
    assert finetune.get_config(variant).stages
  with pytest.raises(ValueError, match="unknown variant"):
    finetune.get_config("huge")
