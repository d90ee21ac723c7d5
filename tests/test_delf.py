"""The whole network: which heads there are, and what they look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models.delf import Delf, folded
from delf_jax.models.resnet import ResNet
from delf_jax.models.vgg import Vgg

BACKBONES = {
  "resnet": ResNet((1, 1, 1), width=4),
  "vgg": Vgg((1, 1, 1, 1), width=4),
}


def make(**options):
  return Delf(
    backbone=BACKBONES[options.pop("backbone", "resnet")],
    **{"num_classes": 3, "attention_hidden": 5, **options},
  )


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
  ("options", "heads"),
  [
    (
      {},
      {"attention", "attention_classifier", "descriptor_classifier"},
    ),
    ({"num_classes": 0}, {"attention"}),
    ({"num_classes": 0, "code_dim": 2}, {"attention", "autoencoder"}),
    ({"num_classes": 0, "attention_hidden": 0}, set()),
    ({"num_classes": 0, "attention_hidden": 0, "code_dim": 2}, {"autoencoder"}),
  ],
)
def test_only_the_heads_that_are_asked_for(backbone, options, heads):
  network = make(backbone=backbone, **options)
  images = jnp.ones((1, 64, 64, 3))
  variables = network.init(jax.random.key(0), images)
  assert set(variables["params"]) == {"backbone", *heads}
  features, scores = network.apply(variables, images, method="dense")
  assert features.shape[-1] == network.descriptor_channels
  assert (scores is None) == ("attention" not in heads)
  if scores is not None:
    assert scores.shape == features.shape[:-1]
  again = folded(network, variables)
  found, _ = again[0].apply(again[1], images, method="dense")
  np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-4)


def test_attention_of_codes_looks_at_what_they_are_decoded_to():
  # As the released TF2 system: what the code loses, attention does not see.
  network = make(code_dim=2)
  images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
  variables = network.init(jax.random.key(0), images)

  def parts(model, images):
    features = model.backbone(images)["conv4"]
    _, rebuilt = model.autoencoder(features)
    return model.attention(rebuilt), model.attention(features)

  expected, direct = network.apply(variables, images, method=parts)
  _, scores = network.apply(variables, images, method="dense")
  np.testing.assert_array_equal(scores, expected)
  assert not np.allclose(scores, direct)
