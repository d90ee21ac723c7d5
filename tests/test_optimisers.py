"""Schedules and update rules against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.training.optimisers import make_optimiser, make_schedule

PARAMS = {
  "backbone": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)},
  "attention": {"kernel": jnp.full((2, 2), 2.0)},
}


def constant(rate):
  return make_schedule(learning_rate=rate, steps=10, decay="constant")


def updates_of(optimiser, gradient=0.0, steps=1):
  gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), PARAMS)
  state = optimiser.init(PARAMS)
  for _ in range(steps):
    updates, state = optimiser.update(gradients, state, PARAMS)
  return updates


@pytest.mark.parametrize(
  ("decay", "expected"),
  [
    ("linear", [0.0, 0.4, 0.8, 0.4, 0.0]),
    ("cosine", [0.0, 0.4, 0.8, 0.4, 0.0]),
    ("constant", [0.0, 0.4, 0.8, 0.8, 0.8]),
  ],
)
def test_the_rate_rises_and_falls(decay, expected):
  schedule = make_schedule(learning_rate=0.8, steps=30, warmup=10, decay=decay)
  found = [float(schedule(step)) for step in (0, 5, 10, 20, 30)]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_rate_halves():
  schedule = make_schedule(
    learning_rate=0.8, steps=30, decay="halving", halve_every=10
  )
  found = [float(schedule(step)) for step in (0, 9, 10, 29)]
  np.testing.assert_allclose(found, [0.8, 0.8, 0.4, 0.2], rtol=1e-6)


def test_momentum_adds_up():
  updates = updates_of(make_optimiser(constant(0.1), momentum=0.5), 1.0, 3)
  # 1, then 1 + .5, then 1 + .5 * 1.5
  np.testing.assert_allclose(updates["backbone"]["bias"], -0.175, rtol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm():
  updates = updates_of(make_optimiser(constant(1.0), clip=0.5), 3.0)
  total = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(updates)))
  np.testing.assert_allclose(total, 0.5, rtol=1e-5)


def test_decay_spares_biases_and_follows_its_groups():
  groups = {"default": 0.1, "attention": 0.5}
  updates = updates_of(make_optimiser(constant(1.0), weight_decay=groups))
  np.testing.assert_allclose(updates["backbone"]["kernel"], -0.2, rtol=1e-6)
  np.testing.assert_allclose(updates["backbone"]["bias"], 0.0)
  np.testing.assert_allclose(updates["attention"]["kernel"], -1.0, rtol=1e-6)
  alone = updates_of(
    make_optimiser(constant(1.0), weight_decay={"attention": 0.5})
  )
  np.testing.assert_allclose(alone["backbone"]["kernel"], 0.0)


def test_adamw_decays_beside_the_gradient():
  optimiser = make_optimiser(constant(0.1), kind="adamw", weight_decay=0.1)
  updates = updates_of(optimiser, 5.0)
  # Adam's first step is the sign of the gradient.
  np.testing.assert_allclose(updates["backbone"]["bias"], -0.1, rtol=1e-4)
  np.testing.assert_allclose(updates["backbone"]["kernel"], -0.12, rtol=1e-4)


def test_unknown_names_are_refused():
  with pytest.raises(InputError, match="unknown optimiser 'lion'"):
    make_optimiser(constant(0.1), kind="lion")
  with pytest.raises(InputError, match="unknown decay 'steps'"):
    make_schedule(learning_rate=0.1, steps=10, decay="steps")
  with pytest.raises(InputError, match="needs halve_every"):
    make_schedule(learning_rate=0.1, steps=10, decay="halving")
