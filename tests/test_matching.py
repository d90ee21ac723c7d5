"""Direct matching against a matcher that looks at every pair."""

import numpy as np
import pytest

from delf_jax import matching


def unit(generator, n, d=8):
  descriptors = generator.normal(size=(n, d))
  descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
  return descriptors.astype(np.float32)


def slowly(query, image, *, mutual, max_ratio, max_distance, locations):
  distances = np.linalg.norm(
    query[:, None].astype(np.float64) - image[None], axis=2
  )
  found = []
  for feature, line in enumerate(distances):
    row = int(line.argmin())
    if mutual and distances[:, row].argmin() != feature:
      continue
    if max_distance is not None and line[row] > max_distance:
      continue
    if max_ratio is not None:
      if locations is None:
        elsewhere = np.arange(len(image)) != row
      else:
        elsewhere = (locations != locations[row]).any(axis=1)
      if elsewhere.any() and line[row] > max_ratio * line[elsewhere].min():
        continue
    found.append((feature, row, line[row]))
  return found


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("max_ratio", [None, 0.9])
@pytest.mark.parametrize("max_distance", [None, 0.7])
@pytest.mark.parametrize("with_locations", [True, False])
def test_it_finds_what_looking_at_every_pair_finds(
  mutual, max_ratio, max_distance, with_locations
):
  generator = np.random.default_rng(0)
  query, image = unit(generator, 70), unit(generator, 300)
  locations = None
  if with_locations:
    locations = generator.integers(0, 12, (300, 2)).astype(np.float32)
  expected = slowly(
    query,
    image,
    mutual=mutual,
    max_ratio=max_ratio,
    max_distance=max_distance,
    locations=locations,
  )
  features, rows, distances = matching.match(
    query,
    image,
    mutual=mutual,
    max_ratio=max_ratio,
    max_distance=max_distance,
    image_locations=locations,
  )
  assert 5 < len(expected)
  assert [(f, r) for f, r, _ in expected] == list(
    zip(features.tolist(), rows.tolist(), strict=True)
  )
  np.testing.assert_allclose(distances, [d for _, _, d in expected], rtol=1e-5)


def test_mutual_matches_are_the_same_from_both_sides():
  generator = np.random.default_rng(1)
  some, others = unit(generator, 90), unit(generator, 120)
  features, rows, distances = matching.match(some, others)
  back, forth, again = matching.match(others, some)
  order = np.argsort(rows)
  np.testing.assert_array_equal(rows[order], back)
  np.testing.assert_array_equal(features[order], forth)
  np.testing.assert_array_equal(distances[order], again)


def test_among_copies_the_first_is_matched_once():
  generator = np.random.default_rng(2)
  query, image = unit(generator, 4)[[0, 0, 1]], unit(generator, 5)
  image = np.concatenate([image, query[:1], query[:1]])
  features, rows, distances = matching.match(query, image, max_distance=0.1)
  assert (features.tolist(), rows.tolist()) == ([0], [5])
  assert distances[0] == 0
  features, rows, _ = matching.match(
    query, image, mutual=False, max_distance=0.1
  )
  assert (features.tolist(), rows.tolist()) == ([0, 1], [5, 5])


def test_levels_of_a_pyramid_do_not_spoil_the_ratio_test():
  generator = np.random.default_rng(3)
  query, image = unit(generator, 1), unit(generator, 40)
  image[:2] = query[0] + generator.normal(scale=0.01, size=(2, 8))
  locations = np.arange(80, dtype=np.float32).reshape(40, 2)
  locations[1] = locations[0]
  plain = matching.match(query, image, max_ratio=0.5)
  assert len(plain[0]) == 0
  features, _, _ = matching.match(
    query, image, max_ratio=0.5, image_locations=locations
  )
  assert features.tolist() == [0]
  alone = matching.match(query, image[:1], max_ratio=0.5)
  assert alone[0].tolist() == [0]


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_nothing_matches_nothing(sizes):
  generator = np.random.default_rng(0)
  found = matching.match(*(unit(generator, n) for n in sizes))
  assert [len(part) for part in found] == [0, 0, 0]


def test_descriptors_of_two_kinds_cannot_be_matched():
  generator = np.random.default_rng(0)
  with pytest.raises(ValueError, match="of 8 and of 16 dimensions"):
    matching.match(unit(generator, 3), unit(generator, 3, d=16))


def test_a_match_does_not_depend_on_the_padding():
  generator = np.random.default_rng(4)
  query, image = unit(generator, 60), unit(generator, 250)
  far = np.concatenate([image, 50 + unit(generator, 30)])
  for a, b in zip(
    matching.match(query, image), matching.match(query, far), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_one_to_one_takes_the_nearest_first():
  generator = np.random.default_rng(5)
  sources = generator.integers(0, 15, 80)
  targets = generator.integers(0, 15, 80)
  distances = generator.integers(0, 30, 80)  # some of them equal
  taken, used = [], (set(), set())
  for i in np.argsort(distances, kind="stable").tolist():
    if sources[i] not in used[0] and targets[i] not in used[1]:
      taken.append(i)
      used[0].add(sources[i])
      used[1].add(targets[i])
  kept = matching.one_to_one(sources, targets, distances)
  assert sorted(taken) == np.flatnonzero(kept).tolist()
  none = np.zeros(0, int)
  assert len(matching.one_to_one(none, none, none)) == 0


def test_equal_locations_are_one_place():
  locations = np.array([[1, 2], [0.0, 3], [1, 2], [-0.0, 3], [2, 1]])
  numbers = matching.places(locations.astype(np.float32))
  assert numbers[0] == numbers[2] and numbers[1] == numbers[3]
  assert len(set(numbers.tolist())) == 3
  assert matching.places(np.zeros((0, 2), np.float32)).shape == (0,)
