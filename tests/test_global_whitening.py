"""Whitening learned from photographs, and the layer that starts as a PCA."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from delf_jax import checkpoint
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.features.reduction import reduce
from delf_jax.global_descriptors import global_extraction, global_whitening
from delf_jax.models.normalisation import NORMALISATIONS


def encoded(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def photographs(places=12, views=3):
  generator = np.random.default_rng(0)
  labels = np.repeat(np.arange(places), views)
  colours = generator.integers(0, 256, (places, 5, 7, 3))
  pixels = colours[labels].repeat(16, 1).repeat(16, 2)
  pixels = np.clip(pixels + generator.normal(0, 40, pixels.shape), 0, 255)
  source = [{"image": encoded(one)} for one in pixels.astype(np.uint8)]
  source[4] = {"image": b"no photograph"}
  return source, labels


class Photographs(list):
  """A source of some photographs in memory."""

  def __init__(self, examples, labels):
    super().__init__(examples)
    self.labels = labels
    self.names = [f"{i}.png" for i in range(len(labels))]


def model_of(**descriptor):
  network = checkpoint.build_network(
    units=(1, 1, 1, 1, 1),
    width=2,
    num_classes=0,
    backbone="vgg",
    feature_stage="conv5",
    descriptor=descriptor,
  )
  return checkpoint.Model(
    network=network,
    variables=network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))),
    normalisation=NORMALISATIONS["imagenet"],
    reduction=None,
    extraction={"scales": (1.0,)},
    provenance={},
    fingerprint="",
  )


def describe_all(model, source):
  describe = global_extraction.describer(model, max_side=128, scales=(1.0,))
  found = []
  for one in source:
    if one["image"] != b"no photograph":
      pixels = np.asarray(Image.open(io.BytesIO(one["image"])))
      size = pixels.shape[:2]
      found.append(describe(Photograph(pixels, *size), size).descriptors[0])
  return np.array(found)


@pytest.mark.parametrize("kind", ["pairs", "pca"])
def test_whitening_is_learned_and_applied(kind):
  source, labels = photographs()
  model = model_of()
  learned = dataclasses.replace(
    model,
    reduction=global_whitening.learn_reduction(
      model, Photographs(source, labels), kind=kind, dim=6
    ),
  )
  plain = describe_all(model, source)
  found = describe_all(learned, source)
  assert found.shape == (35, 6)
  np.testing.assert_allclose(found, reduce(learned.reduction, plain), atol=1e-4)


def test_pairs():
  queries, positives = global_whitening.pairs_of(np.array([7, 3, 7, 7, 3, 5]))
  pairs = set(zip(queries.tolist(), positives.tolist(), strict=True))
  assert pairs == {(1, 4), (0, 2), (2, 3), (3, 0)}


def test_regions_start_white():
  source, _ = photographs()
  model = model_of(regions="map", levels=2, regional_dim=5)
  started = global_whitening.start_regional_layer(model, source, max_side=128)
  pixels = np.stack(
    [
      np.asarray(Image.open(io.BytesIO(one["image"])))
      for one in source
      if one["image"] != b"no photograph"
    ]
  )
  network, layer = model.network, started.variables["params"]["regional"]
  _, found = network.apply(
    started.variables,
    started.normalisation(pixels),
    mutable=["intermediates"],
  )
  ((vectors, there),) = found["intermediates"]["regions"]
  projected = np.asarray(vectors)[there] @ layer["kernel"] + layer["bias"]
  np.testing.assert_allclose(projected.mean(0), 0, atol=1e-2)
  np.testing.assert_allclose(np.cov(projected.T), np.eye(5), atol=2e-2)


def test_too_few_photographs():
  source, labels = photographs()
  with pytest.raises(InputError, match="too few to learn whitening"):
    global_whitening.learn_reduction(
      model_of(), Photographs(source[:1], labels[:1])
    )
  with pytest.raises(
    InputError, match="whitening 'zca'; expected pca or pairs"
  ):
    global_whitening.learn_reduction(
      model_of(), Photographs(source, labels), kind="zca"
    )
  model = model_of(regions="map", levels=1, regional_dim=12)
  with pytest.raises(InputError, match="give more photographs"):
    global_whitening.start_regional_layer(model, source[:1], max_side=128)
