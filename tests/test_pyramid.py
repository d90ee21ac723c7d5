"""The multi-scale extractor: padding, batches, resizing, locations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.features import pyramid
from delf_jax.models import resnet
from delf_jax.models.delf import Delf, folded
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.models.resnet import ResNet

SCALES = (0.5, 1.0, 2.0**0.5)


@functools.cache
def small_model(layout="torchvision"):
  model = Delf(
    backbone=ResNet(units=(1, 1, 1), width=8, layout=layout),
    num_classes=3,
    attention_hidden=16,
  )
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  return folded(model, variables)


def network(model):
  return pyramid.Network(
    dense=lambda variables, images, sizes: model.apply(
      variables, images, sizes, method="dense"
    ),
    map_size=lambda size: resnet.map_size(size, model.feature_layers),
    normalise=NORMALISATIONS["unit"],
    field_size=model.receptive_field.size,
    stride=model.receptive_field.stride,
  )


def photograph(height, width, seed=0):
  generator = np.random.default_rng(seed)
  coarse = generator.uniform(0, 255, (height // 8 + 2, width // 8 + 2, 3))
  large = np.kron(coarse, np.ones((8, 8, 1)))
  return large[:height, :width].astype(np.uint8)


def on_canvas(images, shape):
  pixels = np.full((len(images), *shape, 3), 99, np.uint8)
  for row, image in zip(pixels, images, strict=True):
    row[: image.shape[0], : image.shape[1]] = image
  return pixels, np.array([image.shape[:2] for image in images])


def by_location(features, i=0):
  """Valid features in an order that near-equal scores cannot disturb."""
  features = jax.tree.map(lambda leaf: np.asarray(leaf[i]), features)
  keys = np.column_stack([features.scales, features.locations])[features.mask]
  order = np.lexsort(keys.T)
  return keys[order], features.descriptors[features.mask][order], features


@pytest.mark.parametrize(
  ("layout", "score"),
  [
    ("torchvision", "l2_norm"),
    ("torchvision", "attention"),
    ("torchvision", "product"),
    ("slim", "product"),
    ("keras", "product"),
  ],
)
def test_padding_and_company_change_nothing(layout, score):
  model, variables = small_model(layout)
  extract = pyramid.make_extractor(
    network(model), scales=SCALES, score=score, max_features=500
  )
  image, other = photograph(101, 130), photograph(120, 70, seed=1)
  alone = extract(variables, None, *on_canvas([image], image.shape[:2]))
  assert 0 < alone.mask.sum() < 500  # all of them: selection cannot differ
  together = extract(variables, None, *on_canvas([other, image], (128, 144)))
  keys, descriptors, first = by_location(alone)
  padded_keys, padded_descriptors, second = by_location(together, 1)
  np.testing.assert_allclose(padded_keys, keys, atol=1e-4)
  np.testing.assert_allclose(padded_descriptors, descriptors, atol=1e-4)
  np.testing.assert_allclose(
    np.sort(second.scores), np.sort(first.scores), rtol=1e-4, atol=1e-5
  )


def test_a_hundred_sizes_need_fewer_than_ten_programs():
  generator = np.random.default_rng(0)
  sizes = generator.integers(30, 1025, (300, 2))
  shapes = {pyramid.canvas_for(*size, max_side=1024) for size in sizes.tolist()}
  assert len(shapes) < 10
  for size in sizes.tolist():
    shape = pyramid.canvas_for(*size, max_side=1024)
    assert shape[0] >= size[0] and shape[1] >= size[1]
  model, variables = small_model()
  extract = pyramid.make_extractor(network(model), scales=(0.5,))
  for size in generator.integers(8, 65, (25, 2)).tolist():
    shape = pyramid.canvas_for(*size, max_side=64)
    extract(variables, None, *on_canvas([photograph(*size)], shape))
  assert extract.num_programs() < 10
  with pytest.raises(ValueError, match="larger than max_side"):
    pyramid.canvas_for(100, 20, max_side=64)


def test_images_too_small_for_a_feature_give_an_empty_result():
  model, variables = small_model()
  extract = pyramid.make_extractor(network(model), scales=SCALES)
  for height, width in [(1, 1), (3, 60), (10, 10)]:
    image = np.zeros((height, width, 3), np.uint8)
    features = extract(variables, None, *on_canvas([image], (64, 64)))
    assert not features.mask.any()
    assert np.isfinite(features.descriptors).all()


def test_a_shift_by_strides_shifts_the_locations():
  model, variables = small_model()
  extract = pyramid.make_extractor(
    network(model), scales=(1.0,), max_features=1
  )
  found = []
  for y, x in [(100, 120), (116, 152)]:
    image = np.full((256, 272, 3), 128, np.uint8)
    image[y : y + 24, x : x + 24] = photograph(24, 24)
    features = extract(variables, None, *on_canvas([image], image.shape[:2]))
    found.append(np.asarray(features.locations[0, 0]))
  np.testing.assert_array_equal(found[1] - found[0], [16, 32])


def test_score_threshold_and_scales():
  model, variables = small_model()
  image = on_canvas([photograph(90, 90)], (96, 96))
  make = functools.partial(pyramid.make_extractor, network(model))
  features = make(scales=SCALES)(variables, None, *image)
  scores = np.asarray(features.scores[features.mask])
  threshold = float(np.median(scores))
  few = make(scales=SCALES, score_threshold=threshold)(variables, None, *image)
  assert few.mask.sum() == (scores >= threshold).sum()
  np.testing.assert_allclose(
    np.unique(features.scales[features.mask]), [2**-0.5, 1.0, 2.0], rtol=1e-6
  )
  best_first = np.asarray(few.scores[few.mask])
  assert (np.diff(best_first) <= 0).all()


def test_the_pyramid_of_the_paper():
  np.testing.assert_allclose(
    pyramid.SCALES, [0.25, 0.3536, 0.5, 0.7071, 1, 1.4142, 2], atol=1e-4
  )
  assert pyramid.level_size(1000, pyramid.SCALES[1]) == 354


@pytest.mark.parametrize(("old", "new"), [(13, 31), (31, 13), (20, 20)])
@pytest.mark.parametrize("rule", ["half_pixel", "antialias", "legacy"])
def test_resize_rules_against_independent_definitions(old, new, rule):
  signal = np.random.default_rng(0).normal(size=old).astype(np.float32)
  found = []
  for axis in range(2):
    # What lies beyond the true size may be anything.
    image = np.full((old + 7, old + 9, 2), 1e6, np.float32)
    lines = np.moveaxis(image, axis, 0)
    lines[:old, :3] = signal[:, None, None]
    size, new_size, shape = np.full(2, 3), np.full(2, 3), np.full(2, 4)
    size[axis], new_size[axis], shape[axis] = old, new, new + 5
    level = pyramid.resize_level(
      jnp.array(image), jnp.array(size), jnp.array(new_size), shape, rule
    )
    assert level.shape == (*shape, 2)
    found.append(np.moveaxis(np.asarray(level), axis, 0)[:new, :3])
  ours = found[0][:, 0, 0]
  for lines in found:
    np.testing.assert_allclose(
      lines, ours[:, None, None] + 0 * lines, atol=1e-5
    )
  if rule == "antialias":
    expected = jax.image.resize(jnp.array(signal), (new,), "linear")
  else:
    target = np.arange(new)
    source = target * old / new
    if rule == "half_pixel":
      source = (target + 0.5) * old / new - 0.5
    expected = np.interp(source, np.arange(old), signal)
  np.testing.assert_allclose(ours, expected, atol=1e-5)
