"""VGG-16's convolutions, the backbone of older global descriptors.

No DELF was published on it. It is here for the descriptors that retrieval is
compared with (siaMAC, NetVLAD), which pool its conv5_3.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from delf_jax.models.receptive_field import Layer
from delf_jax.models.resnet import Conv, mask_outside

CONV = Layer(3, 1, 1)
POOL = Layer(2, 2, 0)
WIDEST = 8  # times the first stage's width


class Vgg(nn.Module):
  """The backbone: an image in, the output of every stage out.

  Attributes:
    units: 3x3 convolutions of conv1, conv2, ...
    width: channels of conv1; each stage doubles them, up to eight times.
    momentum: of BatchNorm in what is put on top; there is none in here.
    axis_name: likewise.
    dtype: compute precision; parameters stay float32.
  """

  units: Sequence[int] = (2, 2, 3, 3, 3)
  width: int = 64
  momentum: float = 0.9
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @property
  def epsilon(self) -> float:
    """Of BatchNorm in what is put on top."""
    return 1e-5

  def channels(self, stage: int = 5) -> int:
    """Channels of a stage's output."""
    return self.width * min(2 ** (stage - 1), WIDEST)

  def layers(self, stage: int = 5) -> list[Layer]:
    """The spatial layers from the image to the output of a stage."""
    found = []
    for s in range(stage):
      found += [POOL] * (s > 0) + [CONV] * self.units[s]
    return found

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    sizes: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> dict[str, jax.Array]:
    """Runs the network.

    Args:
      images: [b, h, w, 3] normalised pixels.
      sizes: [b, 2] int32 true height and width of each image inside the array;
        None if they fill it.
      train: changes nothing.

    Returns:
      {"conv1": [b, h', w', c], "conv2": ..., ...}, each after its rectifier
      and before the maximum that follows.
    """
    del train
    x = images.astype(self.dtype)
    stages = {}
    for s, units in enumerate(self.units):
      if s:
        x = nn.max_pool(x, (2, 2), (2, 2))
        if sizes is not None:
          sizes = POOL.output_size(sizes)
      for u in range(units):
        x = Conv(
          self.channels(s + 1),
          kernel=3,
          padding=1,
          use_bias=True,
          dtype=self.dtype,
          name=f"conv{s + 1}_{u + 1}",
        )(mask_outside(x, sizes))
        x = nn.relu(x)
      stages[f"conv{s + 1}"] = x
    return stages
