"""Boxes, overlap and greedy selection."""

import jax.numpy as jnp
import numpy as np

from delf_jax.features import keypoints


def brute_force_select(scores, mask, boxes, threshold, count):
  order = [i for i in np.argsort(-scores, kind="stable") if mask[i]]
  kept = []
  for i in order:
    overlaps = []
    for j in kept:
      low = np.maximum(boxes[i, :2], boxes[j, :2])
      high = np.minimum(boxes[i, 2:], boxes[j, 2:])
      both = np.prod(np.maximum(high - low, 0))
      one, other = (np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j))
      overlaps.append(both / (one + other - both))
    if all(overlap <= threshold for overlap in overlaps):
      kept.append(i)
  return kept[:count]


def random_features(seed, n=150):
  generator = np.random.default_rng(seed)
  locations = generator.uniform(0, 300, (n, 2)).astype(np.float32)
  scales = generator.choice([0.5, 1.0, 2.0], n).astype(np.float32)
  scores = generator.choice(np.arange(60), n).astype(np.float32)
  mask = generator.random(n) < 0.8
  return keypoints.boxes(locations, scales, 51), scores, mask


def test_selection_equals_a_plain_greedy_loop():
  for seed in range(3):
    boxes, scores, mask = random_features(seed)
    for threshold in (0.2, 0.5, 0.9, 1.0):
      rows, valid = keypoints.select(
        jnp.array(scores),
        jnp.array(mask),
        boxes,
        max_features=40,
        iou_threshold=threshold,
      )
      expected = brute_force_select(
        scores, mask, np.asarray(boxes), threshold, 40
      )
      assert np.asarray(rows)[np.asarray(valid)].tolist() == expected


def test_fewer_candidates_than_asked_for():
  boxes, scores, _ = random_features(0, n=5)
  for threshold in (0.5, 1.0):
    rows, valid = keypoints.select(
      jnp.array(scores),
      jnp.array([True, False, True, False, False]),
      boxes * 0 + jnp.arange(5)[:, None] * 1000 + jnp.array([[0, 0, 9, 9]]),
      max_features=8,
      iou_threshold=threshold,
    )
    assert valid.tolist() == [True] * 2 + [False] * 6
    assert set(rows[:2].tolist()) == {0, 2}


def test_boxes_follow_the_released_formula():
  # stride * [i, j, i, j] + [-p, -p, rf - 1 - p, rf - 1 - p], over the scale.
  size, stride, padding, scale = 291, 16, 145, 0.5
  centres = keypoints.grid_centres((4, 5), stride) / scale
  boxes = keypoints.boxes(centres, jnp.full((20,), 1 / scale), size)
  i, j = 2, 3
  expected = (
    np.array([i, j, i, j]) * stride
    + np.array([-padding, -padding, size - 1 - padding, size - 1 - padding])
  ) / scale
  np.testing.assert_array_equal(boxes[i * 5 + j], expected)
