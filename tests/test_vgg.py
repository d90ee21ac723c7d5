"""VGG-16: counts and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models import resnet
from delf_jax.models.vgg import Vgg


def test_parameter_count_is_that_of_the_published_network():
  variables = jax.eval_shape(
    Vgg().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  assert list(variables) == ["params"]
  # torchvision's `features`: 13 convolutions with biases.
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 14_714_688


@pytest.mark.parametrize("size", [(97, 130), (112, 75), (64, 64)])
def test_padding_changes_no_feature(size):
  model = Vgg(units=(1, 2, 1, 1, 1), width=4)
  image = jax.random.normal(jax.random.key(3), (1, *size, 3))
  variables = model.init(jax.random.key(0), image)
  # Biases that make an unmasked border show.
  variables = jax.tree.map(
    lambda leaf: leaf + 0.3 if leaf.ndim == 1 else leaf, variables
  )
  canvas = jnp.full((2, 144, 160, 3), jnp.nan)
  canvas = canvas.at[0, : size[0], : size[1]].set(image[0]).at[1].set(7.0)
  plain = model.apply(variables, image)
  padded = model.apply(variables, canvas, jnp.array([size, (144, 160)]))
  for stage in (4, 5):
    height, width = (
      resnet.map_size(length, model.layers(stage)) for length in size
    )
    expected = plain[f"conv{stage}"]
    assert expected.shape == (1, height, width, model.channels(stage))
    np.testing.assert_allclose(
      padded[f"conv{stage}"][0, :height, :width],
      expected[0],
      rtol=1e-4,
      atol=1e-4,
    )
