"""The correspondence loss beside loops over points, and its step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import delf_small
from delf_jax import checkpoint
from delf_jax.errors import InputError
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.training import correspondence
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


def test_sampling_interpolates():
  maps = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
  positions = np.array([[1, 2], [0.25, 1.5], [-3, 9], [2, 2.5]], np.float32)
  found = correspondence.sample(maps, positions)
  expected = [
    maps[1, 2],
    0.75 * maps[0, 1:3].mean(0) + 0.25 * maps[1, 1:3].mean(0),
    maps[0, 3],
    maps[2, 2:4].mean(0),
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def problem(b=3, n=4, c=6, seed=0):
  generator = np.random.default_rng(seed)
  descriptors = generator.normal(size=(b, 2, n, c)).astype(np.float32)
  descriptors /= np.linalg.norm(descriptors, axis=-1, keepdims=True)
  return {
    "descriptors": descriptors,
    "points": generator.uniform(0, 60, (b, 2, n, 2)).astype(np.float32),
    "valid": generator.random((b, n)) < 0.8,
    "groups": np.array([5, -1, 5, -1, 5, 7][:b], np.int32),
  }


def in_words(descriptors, points, valid, groups, temperature, radius):
  """The definition, point by point."""
  b, _, n, _ = descriptors.shape
  losses, hits = [], []
  for view in range(2):
    for i, k in zip(*np.nonzero(valid), strict=True):
      similarities = []
      for j, m in zip(*np.nonzero(valid), strict=True):
        apart = points[i, 1 - view, k] - points[j, 1 - view, m]
        if i == j and k != m and np.linalg.norm(apart) <= radius:
          continue
        if i != j and groups[i] == groups[j] and groups[i] >= 0:
          continue
        similarity = descriptors[i, view, k] @ descriptors[j, 1 - view, m]
        similarities.append((similarity / temperature, (i, k) == (j, m)))
      values, own = (np.array(x) for x in zip(*similarities, strict=True))
      losses.append(np.log(np.exp(values).sum()) - values[own][0])
      hits.append(values[own][0] == values.max())
  return {"loss": sum(losses), "correct": sum(hits), "count": len(hits)}


def test_the_loss_is_its_definition():
  for seed in range(3):
    given = problem(seed=seed)
    options = {"temperature": 0.2, "radius": 30.0}
    found = correspondence.contrast(**given, **options)
    expected = in_words(**given, **options)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_padding_may_be_anything_and_points_in_any_order():
  given = problem()
  expected = correspondence.contrast(**given)
  changed = jax.tree.map(np.copy, given)
  hidden = np.repeat(~given["valid"][:, None], 2, axis=1)
  changed["descriptors"][hidden] = 3.0
  changed["points"][hidden] = -7.0
  order = np.array([2, 0, 3, 1])
  for name, axis in (("descriptors", 2), ("points", 2), ("valid", 1)):
    changed[name] = np.take(changed[name], order, axis)
  found = correspondence.contrast(**changed)
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_no_point_at_all_is_no_loss():
  given = problem()
  given["valid"][:] = False
  found = correspondence.contrast(**given)
  assert {name: float(value) for name, value in found.items()} == dict.fromkeys(
    ("loss", "correct", "count"), 0.0
  )


def test_options_are_checked():
  with pytest.raises(InputError, match="no option 'margin'"):
    correspondence.check_options({"margin": 1})
  with pytest.raises(InputError, match="temperature must be above 0"):
    correspondence.check_options({"temperature": 0})


def test_the_small_network_has_so_many_parameters():
  model = delf_small.get_config().model.to_dict()
  del model["batch_norm"]
  network = checkpoint.build_network(num_classes=0, **model)
  shapes = checkpoint.abstract_variables(network)["params"]
  count = {
    name: sum(leaf.size for leaf in jax.tree.leaves(group))
    for name, group in shapes.items()
  }
  norm = 2  # a scale and a bias for each channel
  conv2 = 2 * 9 * 32 * 32 + 2 * norm * 32
  conv3 = 9 * 32 * 64 + 32 * 64 + 3 * 9 * 64 * 64 + 5 * norm * 64
  conv4 = 9 * 64 * 256 + 64 * 256 + 5 * 9 * 256 * 256 + 7 * norm * 256
  assert count == {
    "backbone": 49 * 3 * 32 + norm * 32 + conv2 + conv3 + conv4,
    "autoencoder": 256 * 128 + 128 + 128 * 256 + 256,
    "attention": 256 * 256 + norm * 256 + 256 + 1,
  }
  # In float16.
  assert 2 * sum(count.values()) < 7e6
  field = network.receptive_field
  assert (field.size, field.stride, field.offset) == (259, 16, 0)


def test_widths_fit_the_stages():
  with pytest.raises(InputError, match="2 widths do not fit 3 stages"):
    checkpoint.build_network(**{**NETWORK, "width": (4, 4)})
  with pytest.raises(InputError, match="of a vgg; give one number"):
    checkpoint.build_network(
      **{**NETWORK, "backbone": "vgg", "feature_stage": "conv3"}
    )


def batch_of(b=4, n=6, side=64, seed=0):
  generator = np.random.default_rng(seed)
  points = generator.uniform(0, side - 1, (b, 2, n, 2))
  return {
    "pixels": generator.integers(0, 255, (b, 2, side, side, 3)).astype(
      np.uint8
    ),
    "points": points.astype(np.float32),
    "valid": generator.random((b, n)) < 0.8,
    "groups": np.array([2, -1, 2, -1], np.int32)[:b],
  }


def setup_step(axis_name=None, stage="correspondence", **options):
  network = checkpoint.build_network(**NETWORK, axis_name=axis_name)
  alone = checkpoint.build_network(**NETWORK)
  variables = jax.jit(alone.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  optimiser = make_optimiser(
    make_schedule(learning_rate=0.05, steps=50), weight_decay=1e-4
  )
  frozen = options.get("frozen", ())
  state = steps.initial_state(
    stage, variables, optimiser, jax.random.key(1), frozen=frozen
  )
  step = steps.make_train_step(
    network,
    optimiser,
    stage=stage,
    normalise=UNIT,
    axis_name=axis_name,
    **options,
  )
  return network, step, state


def on_devices(batch, devices=2):
  return {
    name: value.reshape(devices, -1, *value.shape[1:])
    for name, value in batch.items()
  }


def mapped(function):
  return jax.pmap(function, axis_name="batch", in_axes=(None, 0), out_axes=None)


def assert_close(found, expected, rtol=1e-3, atol=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    found,
    expected,
  )


def test_the_pmapped_step_equals_the_plain_one():
  # Points of both devices are compared with each other, and the devices have
  # different numbers of valid ones.
  batch = batch_of()
  assert len({*batch["valid"].reshape(2, -1).sum(1)}) == 2
  _, step, state = setup_step()
  plain, plain_figures = jax.jit(step)(state, batch)
  _, step, state = setup_step("batch")
  found, figures = mapped(step)(state, on_devices(batch))
  assert_close(
    (found.params, found.batch_stats, figures),
    (plain.params, plain.batch_stats, plain_figures),
  )


def test_the_mapped_evaluation_equals_the_plain_one():
  batch = batch_of()
  network, _, state = setup_step()
  evaluate = correspondence.make_evaluation_step(network, normalise=UNIT)
  expected = jax.jit(evaluate)(state.variables, batch)
  assert expected["count"] == 2 * batch["valid"].sum()
  evaluate = correspondence.make_evaluation_step(
    network, normalise=UNIT, axis_name="batch"
  )
  found = mapped(evaluate)(state.variables, on_devices(batch))
  assert_close(found, expected, rtol=1e-5)


def same(a, b):
  return all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_the_decoder_learns_and_moves_nothing_else():
  _, step, state = setup_step(reconstruction_weight=1.0)
  after, _ = jax.jit(step)(state, batch_of())
  _, step, _ = setup_step(reconstruction_weight=0.0)
  without, _ = jax.jit(step)(state, batch_of())
  found, expected = after.params["autoencoder"], without.params["autoencoder"]
  assert not same(found["conv2"], expected["conv2"])
  assert_close(found["conv1"], expected["conv1"], rtol=1e-5, atol=1e-7)
  assert_close(
    after.params["backbone"], without.params["backbone"], rtol=1e-5, atol=1e-7
  )
  for name in ("attention", "attention_classifier", "descriptor_classifier"):
    assert same(after.params[name], state.params[name])


def test_attention_leaves_frozen_codes_alone():
  _, step, state = setup_step(stage="attention", frozen=("autoencoder",))
  pixels = batch_of()["pixels"][:, 0]
  batch = {"pixels": pixels, "labels": np.arange(4, dtype=np.int32) % 3}
  after, _ = jax.jit(step)(state, batch)
  assert same(after.params["autoencoder"], state.params["autoencoder"])
  assert not same(after.params["attention"], state.params["attention"])


def test_a_step_learns():
  # The second view is the first, moved by a feature.
  batch = batch_of(n=9)
  rows = np.stack(np.meshgrid([16, 32, 48], [16, 32, 48]), -1).reshape(-1, 2)
  batch["pixels"][:, 1, 16:] = batch["pixels"][:, 0, :-16]
  batch["points"][:] = rows - [[[[16, 0]], [[0, 0]]]]
  batch["valid"][:] = True
  _, step, state = setup_step()
  step = jax.jit(step)
  figures = []
  for _ in range(25):
    state, found = step(state, batch)
    figures.append({name: float(value) for name, value in found.items()})
  assert figures[-1]["loss"] < 0.6 * figures[0]["loss"]
  assert figures[-1]["accuracy"] > 2 * figures[0]["accuracy"]
  assert figures[-1]["reconstruction_loss"] < figures[0]["reconstruction_loss"]
