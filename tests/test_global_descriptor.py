"""Pooling, regions, heads and padding of global descriptors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models import regions
from delf_jax.models.global_descriptor import GlobalDescriptor, pool
from delf_jax.models.resnet import ResNet
from delf_jax.models.vgg import Vgg
from tests.region_grids import literal_grid, literal_map_regions

SMALL_RESNET = ResNet(units=(1, 1, 1, 1), width=4)
SMALL_VGG = Vgg(units=(1, 1, 1, 1, 1), width=4)
EVERY = [
  {"pooling": "mac"},
  {"pooling": "spoc"},
  {"pooling": "gem"},
  {"regions": "map"},
  {"regions": "image", "levels": 2, "regional_dim": 6},
  {"pooling": "gem", "regions": "map", "regional_dim": 5},
  {"pooling": "gem", "dim": 7},
]


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def activations(shape=(9, 13, 6), seed=0):
  generator = np.random.default_rng(seed)
  return np.maximum(generator.normal(size=shape), 0).astype(np.float32)


@pytest.mark.parametrize("power", [1.0, 3.0, 6.5])
def test_pooling(power):
  features = activations()
  everything = np.ones(features.shape[:2], bool)
  flat = features.reshape(-1, 6).astype(np.float64)
  np.testing.assert_allclose(
    pool(features, everything, kind="mac"), flat.max(0)
  )
  np.testing.assert_allclose(
    pool(features, everything, kind="spoc"), flat.mean(0), rtol=1e-5
  )
  np.testing.assert_allclose(
    pool(features, everything, kind="gem", power=power),
    (np.maximum(flat, 1e-6) ** power).mean(0) ** (1 / power),
    rtol=1e-4,
  )


@pytest.mark.parametrize("kind", ["mac", "spoc", "gem"])
def test_what_does_not_count_changes_neither_result_nor_gradient(kind):
  features = activations()
  inside = np.zeros((9, 13), bool)
  inside[2:7, 3:9] = True
  poisoned = np.where(inside[..., None], features, np.nan)

  def length(x, p):
    return jnp.sum(pool(x, inside, kind=kind, power=p) ** 2)

  found = pool(poisoned, inside, kind=kind)
  part = features[2:7, 3:9]
  expected = pool(part, np.ones(part.shape[:2], bool), kind=kind)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  gradient, by_power = jax.grad(length, (0, 1))(poisoned, 3.0)
  assert np.isfinite(gradient).all() and np.isfinite(by_power)
  assert not np.asarray(gradient)[~inside].any()
  np.testing.assert_allclose(
    pool(poisoned, np.zeros_like(inside), kind=kind), 0, atol=1.1e-6
  )


def test_powers_lie_between_the_mean_and_the_maximum():
  features, inside = activations() + 0.1, np.ones((9, 13), bool)
  mean = pool(features, inside, kind="spoc")
  most = pool(features, inside, kind="mac")
  one = pool(features, inside, kind="gem", power=1.0)
  np.testing.assert_allclose(one, mean, rtol=1e-5)
  many = pool(features, inside, kind="gem", power=60.0)
  np.testing.assert_allclose(many, most, rtol=0.1)


def described(options, backbone, images, sizes=None):
  model = GlobalDescriptor(backbone=backbone, **options)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  # Biases and powers that are not what they start as.
  variables = jax.tree.map(
    lambda leaf: leaf + 0.2 if leaf.ndim == 1 else leaf, variables
  )
  return model, variables, jax.jit(model.apply)(variables, images, sizes)


@pytest.mark.parametrize(
  ("backbone", "options"),
  [(SMALL_RESNET, EVERY[4]), *((SMALL_VGG, options) for options in EVERY)],
  ids=lambda x: str(x) if isinstance(x, dict) else type(x).__name__,
)
def test_padding_changes_nothing(backbone, options):
  size = (97, 150)
  image = jax.random.normal(jax.random.key(1), (1, *size, 3))
  canvas = jnp.full((2, 176, 160, 3), jnp.nan)
  canvas = canvas.at[0, : size[0], : size[1]].set(image[0]).at[1].set(0.5)
  sizes = jnp.array([size, (176, 160)])
  model, _, plain = described(options, backbone, image)
  _, _, padded = described(options, backbone, canvas, sizes)
  assert plain.shape == (1, model.descriptor_channels)
  np.testing.assert_allclose(padded[0], plain[0], atol=2e-5)
  np.testing.assert_allclose(np.linalg.norm(padded, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("size", [(97, 150), (160, 96), (128, 128)])
@pytest.mark.parametrize("grid", ["image", "map"])
def test_regions_are_pooled_projected_and_summed(grid, size):
  image = jax.random.normal(jax.random.key(1), (1, *size, 3))
  options = {"regions": grid, "levels": 2, "regional_dim": 6}
  model, variables, found = described(options, SMALL_VGG, image)
  params = variables["params"]
  features = np.asarray(
    SMALL_VGG.apply({"params": params["backbone"]}, image)["conv5"][0]
  )
  height, width = features.shape[:2]
  if grid == "image":
    edges = literal_map_regions(*size, 2, 16, (height, width))
  else:
    edges = [(0, 0, height, width)]
    edges += [
      (top, left, top + side, left + side)
      for top, left, side in literal_grid(height, width, 2)
    ]
  total = 0
  for top, left, bottom, right in edges:
    vector = unit(features[top:bottom, left:right].max((0, 1)))
    layer = params["regional"]
    total += unit(vector @ np.asarray(layer["kernel"]) + layer["bias"])
  np.testing.assert_allclose(found[0], unit(total), atol=1e-5)


def test_published_sizes():
  def count(model):
    shapes = jax.eval_shape(
      model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

  siamac = GlobalDescriptor(backbone=Vgg())
  assert siamac.descriptor_channels == 512
  assert count(siamac) == 14_714_688
  assert siamac.receptive_field.stride == 16
  dir_ = GlobalDescriptor(
    backbone=ResNet(units=(3, 4, 23, 3)),
    regions="image",
    levels=2,
    regional_dim=2048,
  )
  assert dir_.descriptor_channels == 2048
  # torchvision's ResNet-101 without its classifier, and 2048 x 2049.
  assert count(dir_) == 44_549_160 - 2049 * 1000 + 2048 * 2049
  assert dir_.receptive_field.stride == 32


@pytest.mark.parametrize("options", EVERY[4:], ids=str)
def test_everything_learns(options):
  image = jax.random.normal(jax.random.key(1), (2, 64, 96, 3))
  model, variables, _ = described(options, SMALL_VGG, image)
  goal = jax.random.normal(jax.random.key(2), (model.descriptor_channels,))

  def loss(variables):
    return jnp.sum(model.apply(variables, image, train=True) @ goal)

  gradients = jax.jit(jax.grad(loss))(variables)
  for path, leaf in jax.tree.leaves_with_path(gradients):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_frozen_statistics_stay():
  model = GlobalDescriptor(backbone=SMALL_RESNET)
  image = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
  variables = model.init(jax.random.key(0), image)
  for frozen, changes in ((True, False), (False, True)):
    _, updated = model.clone(frozen_norm=frozen).apply(
      variables, image, train=True, mutable="batch_stats"
    )
    same = jax.tree.map(
      lambda new, old: bool((new == old).all()),
      updated["batch_stats"],
      variables["batch_stats"],
    )
    assert all(jax.tree.leaves(same)) != changes


def test_the_number_of_regions_is_that_of_the_grid():
  assert regions.most_regions(3) == 7 + 16 + 27
