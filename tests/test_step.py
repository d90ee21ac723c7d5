"""The pure step: pmapped equals plain, what a stage may change, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax import checkpoint
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.training import step as steps
from delf_jax.training.optimisers import make_optimiser, make_schedule

UNIT = NORMALISATIONS["unit"]


def setup_step(stage, axis_name=None, *, network=None, rate=0.1, **options):
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=4,
    layout="torchvision",
    num_classes=3,
    attention_hidden=8,
    axis_name=axis_name,
    **(network or {}),
  )
  alone = network.clone(backbone=network.backbone.clone(axis_name=None))
  variables = jax.jit(alone.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  optimiser = make_optimiser(
    make_schedule(learning_rate=rate, steps=10), weight_decay=1e-4
  )
  state = steps.initial_state(
    stage,
    variables,
    optimiser,
    jax.random.key(1),
    ema=options.get("ema_decay", 0) > 0,
  )
  step = steps.make_train_step(
    network,
    optimiser,
    stage=stage,
    normalise=UNIT,
    axis_name=axis_name,
    **options,
  )
  return step, state


def batch_of(n=8, side=64):
  generator = np.random.default_rng(0)
  return {
    "pixels": generator.integers(0, 255, (n, side, side, 3)).astype(np.uint8),
    "labels": np.arange(n, dtype=np.int32) % 3,
  }


def run_mapped(step, state, batch, devices=2):
  shards = jax.tree.map(
    lambda x: x.reshape(devices, -1, *x.shape[1:]), dict(batch)
  )
  return jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None)(
    state, shards
  )


def assert_close(found, expected, rtol=1e-3, atol=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    found,
    expected,
  )


@pytest.mark.parametrize(
  ("stage", "options"),
  [
    ("descriptors", {}),
    ("attention", {}),
    ("joint", {"network": {"code_dim": 5}, "ema_decay": 0.9}),
    ("descriptors", {"mixup": 0.4, "loss": {"label_smoothing": 0.1}}),
    (
      "attention",
      {"network": {"cosine_classifier": True}, "loss": {"kind": "arcface"}},
    ),
  ],
)
def test_the_pmapped_step_equals_the_plain_one(stage, options):
  assert jax.local_device_count() == 2
  batch = batch_of()
  step, state = setup_step(stage, **options)
  plain, plain_figures = jax.jit(step)(state, batch)
  step, state = setup_step(stage, axis_name="batch", **options)
  mapped, figures = run_mapped(step, state, batch)
  assert_close(
    (mapped.params, mapped.batch_stats, mapped.ema, figures),
    (plain.params, plain.batch_stats, plain.ema, plain_figures),
  )


def same(a, b):
  return all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.mark.parametrize("stage", ["descriptors", "attention", "joint"])
def test_a_stage_changes_its_own_parameters_alone(stage):
  step, state = setup_step(stage, axis_name="batch")
  after, _ = run_mapped(step, state, batch_of())
  for name in state.params:
    assert same(state.params[name], after.params[name]) != (
      name in steps.STAGES[stage]
    )
  for name in state.batch_stats:
    assert same(state.batch_stats[name], after.batch_stats[name]) != (
      name in steps.STAGES[stage]
    )


def test_the_gradient_of_attention_stops_at_the_features():
  network = {"code_dim": 5}
  joint, state = setup_step("joint", network=network)
  alone, other = setup_step("descriptors", network=network)
  joint, _ = jax.jit(joint)(state, batch_of())
  alone, _ = jax.jit(alone)(other, batch_of())
  assert_close(
    joint.params["backbone"], alone.params["backbone"], rtol=1e-4, atol=1e-6
  )


def test_frozen_norm_keeps_its_statistics_and_learns_the_rest():
  step, state = setup_step("descriptors", network={"frozen_norm": True})
  after, _ = jax.jit(step)(state, batch_of())
  assert same(state.batch_stats, after.batch_stats)
  assert not same(state.params["backbone"], after.params["backbone"])


def test_local_norm_averages_statistics_over_devices():
  # The network knows no axis, the step does.
  _, state = setup_step("descriptors")
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=4,
    layout="torchvision",
    num_classes=3,
    attention_hidden=8,
  )
  optimiser = make_optimiser(
    make_schedule(learning_rate=0.1, steps=10), weight_decay=1e-4
  )
  step = steps.make_train_step(
    network, optimiser, stage="descriptors", normalise=UNIT, axis_name="batch"
  )
  after, _ = run_mapped(step, state, batch_of())
  batch = batch_of()
  halves = [
    jax.jit(setup_step("descriptors")[0])(
      state, {name: value[part] for name, value in batch.items()}
    )[0]
    for part in (slice(0, 4), slice(4, 8))
  ]
  expected = jax.tree.map(
    lambda a, b: (a + b) / 2, *(half.batch_stats for half in halves)
  )
  assert_close(after.batch_stats, expected)


def test_accumulated_parts_are_one_batch():
  network = {"frozen_norm": True}
  whole, state = setup_step("descriptors", network=network)
  whole, expected = jax.jit(whole)(state, batch_of())
  parts, state = setup_step("descriptors", network=network, accumulate=4)
  parts, figures = jax.jit(parts)(state, batch_of())
  assert_close((parts.params, figures), (whole.params, expected))


def test_means_of_parameters_follow_slowly():
  step, state = setup_step("descriptors", ema_decay=0.5)
  first, _ = jax.jit(step)(state, batch_of())
  learned = steps.trained("descriptors", first.params)
  before = steps.trained("descriptors", state.params)
  # At step 0 the mean moves by 1 - 1/10.
  expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, learned, before)
  assert_close(first.ema, expected, rtol=1e-4, atol=1e-6)
  assert first.variables["params"]["backbone"] is first.ema["backbone"]
  assert first.variables["params"]["attention"] is first.params["attention"]


def test_bfloat16_computes_beside_float32_parameters():
  step, state = setup_step("descriptors", network={"dtype": "bfloat16"})
  after, figures = jax.jit(step)(state, batch_of())
  assert all(
    leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.params)
  )
  assert figures["loss"].dtype == jnp.float32
  exact, state = setup_step("descriptors")
  _, expected = jax.jit(exact)(state, batch_of())
  np.testing.assert_allclose(figures["loss"], expected["loss"], rtol=0.05)


def test_a_step_learns():
  step, state = setup_step("joint", network={"code_dim": 8})
  step = jax.jit(step)
  found = []
  for _ in range(8):
    state, figures = step(state, batch_of())
    found.append({name: float(value) for name, value in figures.items()})
  # Attention pools unit vectors: its logits grow slowly.
  falls = {"descriptors": 0.7, "attention": 0.99, "reconstruction": 0.9}
  for name, fall in falls.items():
    assert found[-1][f"{name}_loss"] < fall * found[0][f"{name}_loss"]
  assert int(state.step) == 8


def test_evaluation_counts_by_weight_and_ignores_padding():
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=4,
    layout="torchvision",
    num_classes=3,
    attention_hidden=8,
  )
  variables = jax.jit(network.init)(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  evaluate = jax.jit(
    steps.make_evaluation_step(network, stage="attention", normalise=UNIT)
  )
  batch = {**batch_of(4), "weights": np.array([1, 1, 1, 0], np.float32)}
  found = evaluate(variables, batch)
  assert found["count"] == 3
  batch["pixels"][3] = 255 - batch["pixels"][3]
  batch["labels"][3] = 2
  again = evaluate(variables, batch)
  assert_close(again, found, rtol=0, atol=0)
  logits = network.apply(
    variables, UNIT(batch["pixels"]), stage="attention", method="outputs"
  ).attention
  hits = np.argmax(logits, axis=1)[:3] == batch["labels"][:3]
  assert found["correct"] == hits.sum()
