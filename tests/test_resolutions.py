"""Global descriptors at several resolutions: sizes, padding, whitening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.features import resolutions
from delf_jax.features.reduction import Reduction
from delf_jax.features.resolutions import level_sizes, sum_resolutions
from delf_jax.models import resnet
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.models.vgg import Vgg

MODEL = GlobalDescriptor(
  backbone=Vgg(units=(1, 1, 1, 1, 1), width=4), regions="map", levels=2
)
NETWORK = resolutions.Network(
  describe=MODEL.apply,
  map_size=lambda size: resnet.map_size(size, MODEL.feature_layers),
  normalise=NORMALISATIONS["imagenet"],
)


@pytest.fixture(scope="module")
def variables():
  return MODEL.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_resolutions_are_summed():
  descriptors = unit(np.abs(np.random.default_rng(0).normal(size=(3, 8))))
  mask = np.array([True, False, True])
  poisoned = np.where(mask[:, None], descriptors, np.nan)
  np.testing.assert_allclose(
    sum_resolutions(poisoned, mask),
    unit(descriptors[0] + descriptors[2]),
    rtol=1e-5,
  )
  powers = (descriptors[0] ** 3 + descriptors[2] ** 3) ** (1 / 3)
  np.testing.assert_allclose(
    sum_resolutions(poisoned, mask, power=3.0), unit(powers), rtol=1e-4
  )
  np.testing.assert_allclose(sum_resolutions(poisoned, mask & False), 0)


def test_sizes_of_resolutions():
  # Oxford's photographs, read as they are: DIR enlarges them for 1050.
  whole = (768, 1024)
  sizes = level_sizes(whole, whole, whole, sides=(550, 800, 1050))
  assert sizes == [(412, 550), (600, 800), (788, 1050)]
  # A query's box keeps the resolution of the whole photograph.
  part = (384, 512)
  sizes = level_sizes(part, part, whole, sides=(800,))
  assert sizes == [(300, 400)]
  # Scales are of the pixels there are.
  sizes = level_sizes((200, 100), (800, 400), (800, 400), scales=(1, 0.5))
  assert sizes == [(200, 100), (100, 50)]


def describe(variables, image, canvas, reduction=None, **options):
  height, width = image.shape[:2]
  pixels = np.full((1, *canvas, 3), 77, np.uint8)
  pixels[0, :height, :width] = image
  size = (height, width)
  levels = level_sizes(size, size, size, **options)
  run = resolutions.make_describer(NETWORK, max_side=256, **options)
  found = run(
    variables, reduction, pixels, np.array([size]), np.array([levels])
  )
  return np.asarray(found[0])


IMAGE = np.random.default_rng(0).integers(0, 256, (120, 180, 3), np.uint8)


@pytest.mark.parametrize(
  "options", [{"scales": (1.0, 0.5)}, {"sides": (90, 200)}], ids=str
)
def test_padding_changes_nothing(variables, options):
  plain = describe(variables, IMAGE, (120, 180), **options)
  padded = describe(variables, IMAGE, (192, 256), **options)
  np.testing.assert_allclose(np.linalg.norm(plain), 1, atol=1e-4)
  np.testing.assert_allclose(padded, plain, atol=2e-5)


def test_one_scale_is_the_network_alone(variables):
  found = describe(variables, IMAGE, (120, 180), scales=(1.0,))
  pixels = NORMALISATIONS["imagenet"](IMAGE[None])
  np.testing.assert_allclose(
    found, MODEL.apply(variables, pixels)[0], atol=2e-5
  )


def test_the_sum_is_whitened(variables):
  generator = np.random.default_rng(1)
  reduction = Reduction(
    mean=generator.normal(size=32).astype(np.float32),
    components=generator.normal(size=(6, 32)).astype(np.float32),
    deviations=np.full(6, 2.0, np.float32),
  )
  plain = describe(variables, IMAGE, (120, 180), scales=(1.0, 0.5))
  found = describe(variables, IMAGE, (120, 180), reduction, scales=(1.0, 0.5))
  expected = unit(reduction.components @ (plain - reduction.mean))
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_too_small_a_photograph_has_none(variables):
  tiny = IMAGE[:8, :40]
  assert not describe(variables, tiny, (16, 48), scales=(1.0, 0.5)).any()
  # The larger resolution is enough.
  low = IMAGE[:20, :40]
  one = describe(variables, low, (32, 48), scales=(1.0,))
  both = describe(variables, low, (32, 48), scales=(1.0, 0.5))
  np.testing.assert_allclose(both, one, atol=1e-5)


def test_scales_or_sides():
  for options in ({}, {"scales": (1.0,), "sides": (800,)}):
    with pytest.raises(ValueError, match="scales or sides"):
      resolutions.make_describer(NETWORK, **options)
