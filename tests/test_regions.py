"""R-MAC's regions, against loops in floating point."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models import regions
from tests.region_grids import literal_grid, literal_map_regions


@functools.partial(jax.jit, static_argnames="levels")
def grids(sizes, levels):
  return jax.vmap(lambda size: regions.grid(size, levels=levels))(sizes)


def rows(found, i):
  return sorted(map(tuple, np.asarray(found.edges[i])[found.mask[i]].tolist()))


def test_the_published_example():
  # 4:3: two squares along the long side at level 1, 2 x 3 at level 2.
  found = regions.grid(jnp.array([600, 800]), levels=2)
  assert regions.most_regions(2) == len(found.mask) == 7 + 16
  assert found.mask.sum() == 2 + 6
  edges = np.asarray(found.edges)[np.asarray(found.mask)]
  np.testing.assert_array_equal(
    edges[:2], [[0, 0, 600, 600], [0, 200, 600, 800]]
  )
  np.testing.assert_array_equal(
    edges[2:, :2], [[y, x] for y in (0, 200) for x in (0, 200, 400)]
  )
  assert (edges[2:, 2:] - edges[2:, :2] == 400).all()


def test_a_square_has_no_more_regions_along_a_side():
  found = regions.grid(jnp.array([32, 32]), levels=3)
  assert found.mask.sum() == 1 + 4 + 9


@pytest.mark.parametrize("levels", [2, 3])
def test_every_map_up_to_forty(levels):
  sizes = [(h, w) for h in range(1, 41) for w in range(1, 41)]
  found = jax.device_get(grids(jnp.array(sizes), levels))
  for i, (height, width) in enumerate(sizes):
    expected = sorted(
      (top, left, top + side, left + side)
      for top, left, side in literal_grid(height, width, levels)
    )
    assert rows(found, i) == expected, (height, width)


def test_images_and_their_maps():
  generator = np.random.default_rng(0)
  sizes = [*generator.integers(33, 1100, (300, 2)).tolist(), [1050, 1050]]
  found = jax.device_get(grids(jnp.array(sizes), 2))
  for stride in (16, 32):
    maps = [[-(-h // stride), -(-w // stride)] for h, w in sizes]
    carried = jax.vmap(functools.partial(regions.on_map, stride=stride))(
      jax.tree.map(jnp.asarray, found), jnp.array(maps)
    )
    carried = jax.device_get(carried)
    for i, (height, width) in enumerate(sizes):
      expected = literal_map_regions(height, width, 2, stride, maps[i])
      assert rows(carried, i) == sorted(expected), (height, width)


def test_turning_the_rectangle_turns_the_regions():
  found = jax.device_get(grids(jnp.array([[20, 33], [33, 20]]), 3))
  turned = sorted((x, y, right, down) for y, x, down, right in rows(found, 1))
  assert rows(found, 0) == turned
