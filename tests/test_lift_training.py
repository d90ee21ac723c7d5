"""What the stages of LIFT learn: losses, and one stage's parameters alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_quadruplets import pairs

from delf_jax.models.lift import Lift
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.training import lift, optimisers
from delf_jax.training import step as steps
from delf_jax.training.lift import Loss
from delf_jax.training.quadruplets import Cutting, Quadruplets

NETWORK = Lift(
  kernel=9,
  hinges=(2, 2),
  orientation_channels=(2, 3, 4),
  orientation_hidden=6,
  descriptor_layers=(4, 4, 8),
)


def test_the_hardest_are_those_with_the_largest_losses():
  losses = jnp.array([3.0, 9.0, 1.0, 7.0, 5.0])
  mask = jnp.array([True, False, True, True, True])
  found = lift.hardest(losses, mask, 0.5)
  np.testing.assert_array_equal(found, [False, False, False, True, True])
  np.testing.assert_array_equal(lift.hardest(losses, mask, 1.0), mask)
  # One at least.
  assert lift.hardest(losses, mask, 0.01).tolist() == [False] * 3 + [True] + [
    False
  ]


def test_overlap_of_squares():
  offset = jnp.array([[0.0, 0.0], [32.0, 0.0], [0.0, -64.0], [200.0, 0.0]])
  third = 1 / 3  # half of one is a third of both
  beyond = (200 - 128) / np.sqrt(2 * 64**2)
  np.testing.assert_allclose(
    lift.overlap_loss(offset), [0.0, 1 - third, 1.0, 1.0 + beyond], atol=1e-4
  )
  slope = jax.grad(lambda d: lift.overlap_loss(d).sum())(offset)
  assert np.isfinite(slope).all() and slope[1, 0] > 0


def test_class_loss_wants_high_scores_and_low_ones():
  scores = jnp.zeros((3, 4, 5, 6))
  # Nothing scores: each of the four is a margin of one away.
  blank = jnp.array([True, True, False])
  good = scores.at[1, :3].set(2.0).at[1, 3].set(-2.0)
  found = lift.class_loss(good, blank)
  np.testing.assert_allclose(found, [1.0, 0.0, 0.5], atol=1e-5)
  # A single high place makes a patch stand out.
  one = scores.at[0, 0, 2, 3].set(30.0)
  np.testing.assert_allclose(lift.class_loss(one, blank)[0], 5 / 6, atol=1e-5)


def test_matching_counts_nearest_counterparts():
  first = jnp.eye(4)
  second = jnp.eye(4)[jnp.array([0, 2, 1, 3])]
  mask = jnp.array([True, True, True, False])
  found = lift.matched(first, second, mask)
  np.testing.assert_array_equal(found, [True, False, False, False])


def of(rotations, points=None):
  q = len(rotations)
  return Quadruplets(
    patches=jnp.zeros((q, 4, 64, 64)),
    points=jnp.zeros((q, 4, 2)) if points is None else points,
    rotations=jnp.tile(rotations[:, None], (1, 4, 1)),
    blank=jnp.ones(q, bool),
    mask=jnp.ones(q, bool),
  )


def unit(degrees):
  angle = np.deg2rad(np.array(degrees, np.float32))
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def test_disagreement_is_an_angle_in_the_world():
  four = of(unit([0.0, 350.0]))
  rotations = jnp.stack([unit([10.0, 5.0]), unit([40.0, 345.0])])
  np.testing.assert_allclose(
    lift.disagreement(rotations, four), [30.0, 20.0], atol=1e-3
  )


def test_displacement_is_seen_from_the_same_side():
  rotations = jnp.stack([unit([0.0]), unit([90.0])], axis=1)  # [1, 2, 2]
  four = of(unit([0.0])).replace(
    rotations=jnp.concatenate([rotations, rotations], axis=1)
  )
  # Right of the point in one patch; below it in the other, turned by 90.
  points = jnp.array([[[0.0, 5.0]], [[5.0, 0.0]]])
  np.testing.assert_allclose(
    lift.displacement(points, four), [[0.0, 0.0]], atol=1e-5
  )


def batch_of_views():
  views, points, valid, groups = pairs(number=3, points=120)
  pixels = jnp.clip(128 + 2 * views, 0, 255).astype(jnp.uint8)
  return {
    "pixels": jnp.repeat(pixels[..., None], 3, axis=-1),
    "points": points,
    "valid": valid,
    "groups": groups,
    "step": jnp.zeros((), jnp.int32),
  }


@pytest.fixture(scope="module")
def params():
  variables = jax.jit(NETWORK.init)(jax.random.key(0), jnp.zeros((1, 72, 72)))
  return variables["params"]


def make_step(stage, rate, **loss):
  optimiser = optimisers.make_optimiser(
    optimisers.make_schedule(learning_rate=rate, steps=100, decay="constant"),
    kind="adamw",
  )
  objective = lift.make_objective(
    NETWORK,
    stage=stage,
    normalise=NORMALISATIONS["imagenet"],
    cutting=Cutting(side=80, count=3, shift=0.1 * (stage == "detector")),
    loss=Loss(**loss),
  )
  step = steps.make_train_step(
    NETWORK,
    optimiser,
    stage=stage,
    normalise=NORMALISATIONS["imagenet"],
    objective=objective,
  )
  return jax.jit(step), optimiser


# From the descriptors of what it finds a detector learns slowly: in large steps
# the points jump from maximum to maximum.
@pytest.mark.parametrize(
  "stage, rate, overlap_steps, share",
  [
    ("descriptor", 3e-3, 0, 0.9),
    ("orientation", 3e-3, 0, 0.9),
    ("detector", 3e-3, 100, 0.9),
    ("detector", 3e-4, 0, 0.97),
  ],
)
def test_a_stage_lowers_its_loss_and_leaves_the_others_alone(
  stage, rate, overlap_steps, share, params
):
  step, optimiser = make_step(
    stage, rate, class_weight=0.1, overlap_steps=overlap_steps
  )
  state = steps.initial_state(
    stage,
    {"params": params, "batch_stats": {}},
    optimiser,
    jax.random.key(1),
  )
  batch = batch_of_views()
  found = []
  for _ in range(12):
    # The same patches again: the key folds in the number of the step.
    state, figures = step(state.replace(step=jnp.zeros((), jnp.int32)), batch)
    assert np.isfinite(list(figures.values())).all()
    found.append(float(figures["loss"]))
  assert found[-1] < share * found[0], found
  for name, group in state.params.items():
    moved = [
      not np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves(group), jax.tree.leaves(params[name]), strict=True
      )
    ]
    assert any(moved) == (name == stage)


def test_mining_learns_from_fewer_as_steps_go_by(params):
  def loss_after(done):
    objective = lift.make_objective(
      NETWORK,
      stage="descriptor",
      normalise=NORMALISATIONS["imagenet"],
      cutting=Cutting(side=80, count=3),
      loss=Loss(mine_every=10, mine_most=4),
    )
    batch = {**batch_of_views(), "step": jnp.int32(done)}
    total, _ = jax.jit(objective)(params, {}, batch, jax.random.key(0))
    return float(total)

  losses = [loss_after(done) for done in (0, 10, 25, 100)]
  # The mean of the hardest half is more than that of all.
  assert losses[0] < losses[1] < losses[2] == losses[3]
