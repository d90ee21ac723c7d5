"""What pixels look like to a network; it belongs to the weights."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Normalisation:
  """(pixels[..., order] - mean) / scale, for RGB pixels from 0 to 255.

  Attributes:
    order: which input channel each channel of the network reads; (2, 1, 0)
      for networks that were trained on BGR.
    mean: three numbers, in the network's order.
    scale: three numbers, in the network's order.
  """

  order: tuple[int, int, int]
  mean: tuple[float, float, float]
  scale: tuple[float, float, float]

  def __call__(self, pixels: jax.Array) -> jax.Array:
    """Maps [..., 3] uint8 or float pixels to float32 network input."""
    pixels = jnp.asarray(pixels, jnp.float32)[..., jnp.array(self.order)]
    shape = (1,) * (pixels.ndim - 1) + (3,)
    mean = jnp.array(self.mean, jnp.float32).reshape(shape)
    scale = jnp.array(self.scale, jnp.float32).reshape(shape)
    return (pixels - mean) / scale


# "unit" is the released DELF's; "imagenet" torchvision's and timm's; "caffe"
# that of Keras' converted ImageNet weights and "slim" that of TF-Slim's own;
# "zero_to_one" what the best-known port of DELF to PyTorch was trained on.
NORMALISATIONS: Mapping[str, Normalisation] = {
  "unit": Normalisation((0, 1, 2), (128.0,) * 3, (128.0,) * 3),
  "imagenet": Normalisation(
    (0, 1, 2), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  ),
  "caffe": Normalisation((2, 1, 0), (103.939, 116.779, 123.68), (1.0,) * 3),
  "slim": Normalisation((0, 1, 2), (123.68, 116.779, 103.939), (1.0,) * 3),
  "zero_to_one": Normalisation((0, 1, 2), (0.0,) * 3, (255.0,) * 3),
}
