"""Attention that foresees which features are found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import delf_small
from delf_jax import checkpoint, stages
from delf_jax.errors import InputError
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.training import neighbours
from delf_jax.training import step as steps
from delf_jax.training.optimisers import make_optimiser, make_schedule

UNIT = NORMALISATIONS["unit"]
NETWORK = {
  "units": (1, 1, 1),
  "width": (4, 4, 8),
  "layout": "basic",
  "num_classes": 3,
  "attention_hidden": 8,
  "code_dim": 6,
}
FROZEN = ("autoencoder",)


def features_of(b=5, n=7, c=4, seed=0):
  generator = np.random.default_rng(seed)
  features = generator.normal(size=(b, n, c)).astype(np.float32)
  return features / np.linalg.norm(features, axis=-1, keepdims=True)


def in_words(features, labels, usable):
  """The definition, feature by feature."""
  found = np.zeros(features.shape[:2], bool)
  known = np.zeros(len(labels), bool)
  for i in range(len(labels)):
    others = [j for j in range(len(labels)) if j != i and usable[j]]
    same = {labels[j] == labels[i] for j in others}
    known[i] = usable[i] and same == {True, False}
    for k, feature in enumerate(features[i]):
      most = {j: (features[j] @ feature).max() for j in others}
      if most:
        nearest = max(most, key=most.get)
        found[i, k] = labels[nearest] == labels[i]
  return found, known


@pytest.mark.parametrize("seed", range(3))
def test_what_is_found_again_is_its_definition(seed):
  features = features_of(b=6, seed=seed)
  labels = np.array([4, 1, 4, 1, 9, 4], np.int32)
  usable = np.array([True, True, True, True, True, False])
  found, known = neighbours.found_again(features, labels, usable)
  expected, expected_known = in_words(features, labels, usable)
  np.testing.assert_array_equal(known, expected_known)
  assert list(known) == [True, True, True, True, False, False]
  known = np.asarray(known)
  np.testing.assert_array_equal(np.asarray(found)[known], expected[known])
  assert 0 < expected[known].mean() < 1


def test_the_loss_is_the_cross_entropy_of_a_probability():
  scores = np.array([0.01, 0.3, 2.0, 9.0])
  probability = 1 - np.exp(-scores)
  for found, expected in (
    (True, -np.log(probability)),
    (False, -np.log(1 - probability)),
  ):
    np.testing.assert_allclose(
      neighbours.losses_of(scores, jnp.full(4, found)), expected, rtol=1e-5
    )
  gradient = jax.grad(lambda s: neighbours.losses_of(s, jnp.array(True)))(0.0)
  assert np.isfinite(gradient)


def planted(b=8, side=64, seed=0):
  """Photographs with the colour of their landmark, right, and noise, left."""
  generator = np.random.default_rng(seed)
  pixels = generator.integers(0, 255, (b, side, side, 3))
  labels = np.arange(b) % 4
  for row, label in zip(pixels, labels, strict=True):
    row[:, side // 2 :] = np.random.default_rng(label).integers(0, 255, 3)
  return {
    "pixels": pixels.astype(np.uint8),
    "labels": labels.astype(np.int32),
  }


def setup_step(axis_name=None, learning_rate=0.02):
  network = checkpoint.build_network(**NETWORK, axis_name=axis_name)
  alone = checkpoint.build_network(**NETWORK)
  variables = jax.jit(alone.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  optimiser = make_optimiser(
    make_schedule(learning_rate=learning_rate, steps=60), weight_decay=1e-4
  )
  state = steps.initial_state(
    "attention", variables, optimiser, jax.random.key(1), frozen=FROZEN
  )
  step = steps.make_train_step(
    network,
    optimiser,
    stage="attention",
    objective=neighbours.make_objective(
      network, normalise=UNIT, axis_name=axis_name
    ),
    normalise=UNIT,
    frozen=FROZEN,
    axis_name=axis_name,
  )
  return network, step, state


def test_attention_learns_to_see_what_recurs():
  network, step, state = setup_step()
  step = jax.jit(step)
  for seed in range(100):
    state, figures = step(state, planted(side=160, seed=seed))
  # Better than the best probability that is the same everywhere.
  share = float(figures["found"])
  constant = -share * np.log(share) - (1 - share) * np.log(1 - share)
  assert 0.1 < share < 0.9
  assert figures["loss"] < 0.9 * constant
  _, scores = network.apply(
    state.variables,
    UNIT(planted(side=160, seed=1000)["pixels"]),
    method="dense",
  )
  # Columns of the map that see the colour alone, and the noise alone.
  assert np.mean(scores[:, :, -1]) > 1.25 * np.mean(scores[:, :, 0])


def test_descriptors_stay_as_they_are():
  _, step, state = setup_step()
  after, _ = jax.jit(step)(state, planted())
  for name in ("backbone", "autoencoder", "descriptor_classifier"):
    jax.tree.map(
      np.testing.assert_array_equal, after.params[name], state.params[name]
    )
  jax.tree.map(
    np.testing.assert_array_equal,
    after.batch_stats["backbone"],
    state.batch_stats["backbone"],
  )
  moved = jax.tree.map(
    lambda a, b: bool(np.any(a != b)),
    after.params["attention"],
    state.params["attention"],
  )
  assert all(jax.tree.leaves(moved))


def mapped(function):
  return jax.pmap(function, axis_name="batch", in_axes=(None, 0), out_axes=None)


def on_devices(batch, devices=2):
  return {
    name: value.reshape(devices, -1, *value.shape[1:])
    for name, value in batch.items()
  }


def test_the_pmapped_step_equals_the_plain_one():
  # Photographs of both devices are compared; on one of them a label is alone.
  batch = planted()
  batch["labels"][0] = 7
  _, step, state = setup_step()
  plain, plain_figures = jax.jit(step)(state, batch)
  _, step, state = setup_step("batch")
  found, figures = mapped(step)(state, on_devices(batch))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
    (found.params, found.batch_stats, figures),
    (plain.params, plain.batch_stats, plain_figures),
  )


def test_padding_is_not_looked_at_when_validating():
  network, _, state = setup_step()
  evaluate = jax.jit(neighbours.make_evaluation_step(network, normalise=UNIT))
  batch = {**planted(), "weights": np.ones(8, np.float32)}
  expected = evaluate(state.variables, batch)
  assert expected["count"] == 8 * 16
  padded = jax.tree.map(
    lambda x: np.concatenate([x, np.zeros_like(x[:4])]), batch
  )
  found = evaluate(state.variables, padded)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5)
  both = neighbours.make_evaluation_step(
    network, normalise=UNIT, axis_name="batch"
  )
  found = mapped(both)(state.variables, on_devices(padded))
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5)


@pytest.mark.parametrize(
  ("stage", "changes", "message"),
  [
    ("attention", {"objective": "labels"}, "expected one of classification, n"),
    ("joint", {"frozen": FROZEN}, "neighbours teach attention alone"),
    ("attention", {"frozen": ()}, "frozen must name 'autoencoder'"),
  ],
)
def test_unfit_objectives_are_refused(stage, changes, message):
  options = delf_small.get_config("tiny").attention.to_dict()
  assert stages.read_stage("attention", {"attention": options})
  options = {**options, "objective": "neighbours", **changes}
  with pytest.raises(InputError, match=message):
    stages.read_stage(stage, {stage: options})
