"""The stage of global descriptors: steps that learn, pmapped equals plain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.models.resnet import ResNet
from delf_jax.models.vgg import Vgg
from delf_jax.training import step as steps
from delf_jax.training.optimisers import make_optimiser, make_schedule

GEM = {"pooling": "gem", "dim": 8}


def setup_step(kind, axis_name=None, *, backbone=None, rate=0.02, **options):
  network = GlobalDescriptor(
    backbone=backbone or Vgg(units=(1, 1, 1, 1, 1), width=4), **GEM
  )
  variables = network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  optimiser = make_optimiser(make_schedule(learning_rate=rate, steps=50))
  state = steps.initial_state(
    "ranking",
    {"batch_stats": {}, **variables},
    optimiser,
    jax.random.key(1),
  )
  step = steps.make_train_step(
    network,
    optimiser,
    stage="ranking",
    normalise=NORMALISATIONS["unit"],
    loss={"kind": kind, **options},
    axis_name=axis_name,
  )
  return step, state


def views(labels, side=32, seed=0):
  """Photographs of one label differ by noise."""
  generator = np.random.default_rng(seed)
  places = generator.integers(60, 196, (10, 4, 4, 3))
  pixels = places[np.asarray(labels)].repeat(side // 4, 1).repeat(side // 4, 2)
  noise = generator.normal(0, 25, pixels.shape)
  return np.clip(pixels + noise, 0, 255).astype(np.uint8)


TUPLES = {
  "average_precision": [[0, 0], [1, 1], [2, 2], [3, 4]],
  "triplet": [[0, 0, 1], [2, 2, 3], [1, 1, 4], [3, 3, 0]],
  "contrastive": [[0, 0, 1, 2], [1, 1, 3, 0], [2, 2, 1, 4], [3, 3, 0, 2]],
}


def batch_of(kind):
  labels = np.array(TUPLES[kind], np.int32)
  flat = views(labels.reshape(-1))
  return {
    "pixels": flat.reshape(*labels.shape, *flat.shape[1:]),
    "labels": labels,
    "mask": np.ones(labels.shape, bool),
  }


@pytest.mark.parametrize(
  "kind", ["contrastive", "triplet", "average_precision"]
)
def test_steps_learn(kind):
  options = {"margin": 1.0} if kind == "triplet" else {}
  step, state = setup_step(kind, **options)
  batch = batch_of(kind)
  step = jax.jit(step)
  first = None
  for _ in range(25):
    state, figures = step(state, batch)
    first = first or figures
  assert np.isfinite(figures["gradient_norm"])
  assert figures["loss"] < 0.8 * first["loss"]
  assert figures["accuracy"] >= first["accuracy"]
  assert int(state.step) == 25


@pytest.mark.parametrize("kind", ["contrastive", "triplet"])
def test_pmapped_equals_plain(kind):
  batch = batch_of(kind)
  # The devices have not equally many queries.
  batch["mask"][0, 0] = False
  step, state = setup_step(kind)
  plain, figures = jax.jit(step)(state, batch)
  step, state = setup_step(kind, "batch")
  shards = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
  replicated = jax.tree.map(lambda x: jnp.stack([x, x]), state)
  mapped, found = jax.pmap(step, axis_name="batch")(replicated, shards)
  np.testing.assert_allclose(found["loss"][0], figures["loss"], rtol=1e-4)
  for one, other in zip(
    jax.tree.leaves(mapped.params), jax.tree.leaves(plain.params), strict=True
  ):
    np.testing.assert_allclose(one[0], other, atol=1e-5)


def test_padding_and_what_is_not_there_change_nothing():
  batch = batch_of("contrastive")
  step, state = setup_step("contrastive")
  expected, figures = jax.jit(step)(state, batch)
  canvas = np.full((4, 5, 48, 64, 3), 99, np.uint8)
  canvas[:, :4, :32, :32] = batch["pixels"]
  padded = {
    "pixels": canvas,
    "sizes": np.full((4, 5, 2), 32, np.int32),
    "labels": np.pad(batch["labels"], ((0, 0), (0, 1))),
    "mask": np.pad(batch["mask"], ((0, 0), (0, 1))),
  }
  found, same = jax.jit(step)(state, padded)
  np.testing.assert_allclose(same["loss"], figures["loss"], rtol=1e-4)
  for one, other in zip(
    jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_statistics_stay_frozen():
  backbone = ResNet(units=(1, 1, 1, 1), width=4)
  step, state = setup_step("triplet", backbone=backbone)
  after, _ = jax.jit(step)(state, batch_of("triplet"))
  jax.tree.map(
    np.testing.assert_array_equal, after.batch_stats, state.batch_stats
  )
  moved = jax.tree.map(
    lambda one, other: bool((one != other).any()),
    after.params["backbone"]["conv1"],
    state.params["backbone"]["conv1"],
  )
  assert moved["kernel"]


def test_an_unknown_loss():
  with pytest.raises(InputError, match="unknown loss 'arcface' of global"):
    setup_step("arcface")
