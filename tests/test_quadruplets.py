"""Quadruplets out of two views that a known similarity relates."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.data.views import lattice
from delf_jax.models.lift import cut
from delf_jax.training import quadruplets
from delf_jax.training.quadruplets import Cutting

SIDE = 192
SCALE, DEGREES = 1.2, 25.0


def textured(seed, side=SIDE):
  generator = np.random.default_rng(seed)
  image = generator.normal(size=(side, side)).astype(np.float32)
  return 40 * cv2.GaussianBlur(image, (0, 0), 3)


def similarity():
  """[2, 3] of OpenCV, from the first view (x, y) to the second."""
  centre = (SIDE - 1) / 2
  # OpenCV turns against the clock for positive angles.
  return cv2.getRotationMatrix2D((centre, centre), -DEGREES, SCALE)


def pairs(number=3, points=300):
  """Views, points, validity, groups of pairs related by `similarity`."""
  matrix = similarity()
  views, where, valid = [], [], []
  for k in range(number):
    first = textured(k)
    second = cv2.warpAffine(first, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    found = lattice(SIDE, 4)
    there = found[:, ::-1] @ matrix[:, :2].T + matrix[:, 2]
    there = there[:, ::-1]
    inside = ((there >= 0) & (there <= SIDE - 1)).all(1)
    rows = np.random.default_rng(k).permutation(np.flatnonzero(inside))
    rows = rows[:points]
    views.append(np.stack([first, second]))
    where.append(np.stack([found[rows], there[rows]]))
    valid.append(np.ones(len(rows), bool))
  return (
    jnp.asarray(np.stack(views)),
    jnp.asarray(np.stack(where), jnp.float32),
    jnp.asarray(np.stack(valid)),
    jnp.full(number, -1),
  )


compiled = jax.jit(quadruplets.make, static_argnames="cutting")


def make(given, seed=0, **changes):
  cutting = Cutting(**{"side": 80, "count": 3, **changes})
  return compiled(*given, jax.random.key(seed), cutting=cutting)


@pytest.mark.parametrize(
  "changes",
  [{}, {"turn": 180.0}, {"shift": 0.1}],
  ids=["plain", "turned", "shifted"],
)
def test_the_first_two_show_one_point_the_third_another(changes):
  four = make(pairs(), **changes)
  assert four.patches.shape == (9, 4, 80, 80)
  assert four.mask.all()
  known = [
    np.asarray(cut(four.patches[:, k], four.points[:, k], four.rotations[:, k]))
    for k in range(3)
  ]
  # The second view is as large and upright as the first one there; what lies
  # far from the middle may be beyond the second patch.
  known = [patch[:, 16:48, 16:48].reshape(9, -1) for patch in known]
  for q in range(9):
    alike = np.corrcoef(known[0][q], known[1][q])[0, 1]
    unlike = np.corrcoef(known[0][q], known[2][q])[0, 1]
    assert alike > 0.9 and abs(unlike) < 0.8, (q, alike, unlike)


def test_without_turn_and_shift_patches_are_upright_and_central():
  four = make(pairs())
  np.testing.assert_allclose(four.points, 39.5)
  # The views turn the world by a known angle.
  angles = np.rad2deg(
    np.arctan2(four.rotations[..., 1], four.rotations[..., 0])
  )
  apart = (angles[:, 1] - angles[:, 0] + 180) % 360 - 180
  np.testing.assert_allclose(apart, DEGREES, atol=0.5)


def test_a_shift_is_within_its_bounds_and_of_the_key():
  four = make(pairs(), shift=0.1)
  shifts = np.abs(np.asarray(four.points) - 39.5)
  assert 0 < shifts.max() <= 8.0
  other = make(pairs(), seed=1, shift=0.1)
  assert not np.array_equal(other.points, four.points)


def test_points_that_are_no_points_change_nothing():
  views, points, valid, groups = pairs()
  valid = valid.at[:, 200:].set(False)
  expected = make((views, points, valid, groups), shift=0.1)
  poisoned = points.at[:, :, 200:].set(17.0)
  found = make((views, poisoned, valid, groups), shift=0.1)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  shorter = (views, points[:, :, :200], valid[:, :200], groups)
  found = make(shorter, shift=0.1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), found, expected
  )


def test_a_pair_without_points_is_masked_with_its_neighbour():
  views, points, valid, groups = pairs()
  four = make((views, points, valid.at[1].set(False), groups))
  # The first pair's third patch would come from the second.
  np.testing.assert_array_equal(
    four.mask.reshape(3, 3).all(1), [False, False, True]
  )
  assert np.isfinite(four.patches).all() and np.isfinite(four.rotations).all()


def test_pairs_of_one_place_are_no_others_to_each_other():
  views, points, valid, _ = pairs()
  four = make((views, points, valid, jnp.array([4, 4, 5])))
  np.testing.assert_array_equal(
    four.mask.reshape(3, 3).all(1), [False, True, True]
  )


def test_chosen_points_lie_apart_and_stand_out():
  views, points, valid, groups = pairs()
  blank = views.at[:, :, :96].set(0.0)  # nothing in the upper half
  four = make((blank, points, valid, groups))
  middles = np.asarray(four.patches[:, 0, 30:50, 30:50])
  assert (middles.std((1, 2)) > 1.0).all()
  empty = np.asarray(four.patches[:, 3, 30:50, 30:50])
  assert (empty.std((1, 2)) < middles.std((1, 2))).all()
  assert four.blank.any()


def test_the_hessian_ignores_edges_and_finds_blobs():
  y, x = np.mgrid[:60, :60]
  edge = quadruplets.blur(jnp.asarray((x > 30) * 1.0, jnp.float32), 3.0)
  blob = quadruplets.blur(
    jnp.asarray(((x - 30) ** 2 + (y - 30) ** 2 < 9) * 1.0, jnp.float32), 3.0
  )
  assert quadruplets.hessian(edge)[10:50].max() < 1e-4
  found = quadruplets.hessian(blob)
  assert np.unravel_index(found.argmax(), found.shape) == (30, 30)
