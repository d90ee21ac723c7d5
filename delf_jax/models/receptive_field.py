"""Size, stride and padding of a feature's support, composed from the layers.

A hard-coded 291 / 16 / 145 is right for two of the three weight layouts of
ResNet-50 and wrong for the third: the receptive field follows from where the
strides sit, so it is computed from the same list of layers that builds the
network.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

Padding = int | Literal["same", "valid"]


@dataclasses.dataclass(frozen=True)
class Layer:
  """One spatial layer (convolution or pooling) on the longest path.

  Attributes:
    kernel: side of the window.
    stride: step of the window.
    padding: pixels added on each side, or TensorFlow's "same" (which puts the
      odd pixel behind, so that it depends on the input's parity) or "valid".
  """

  kernel: int
  stride: int
  padding: Padding

  def output_size(self, size):
    """Returns the output length for an input length (int or int array)."""
    if self.padding == "same":
      return (size + self.stride - 1) // self.stride
    around = 0 if self.padding == "valid" else 2 * self.padding
    return (size + around - self.kernel) // self.stride + 1


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
  """Where a feature looks, in pixels of the image the network was given.

  Attributes:
    size: side of the square support.
    stride: distance between the supports of neighbouring features.
    padding: how far the first support reaches out of the image.
  """

  size: int
  stride: int
  padding: int

  @property
  def offset(self) -> float:
    """Centre of the first support, in pixels from the first pixel's centre."""
    return (self.size - 1) / 2 - self.padding


def compose(layers: Sequence[Layer]) -> ReceptiveField:
  """Composes the receptive field of the last layer's output.

  "same" and "valid" layers count with the symmetric padding (kernel - 1) / 2,
  the convention of the released systems for locating features; the true
  support is then off by a pixel or two, depending on the input's parity.

  Args:
    layers: from the image to the features.
  """
  size, stride, padding = 1, 1, 0
  for layer in layers:
    side = layer.padding
    if isinstance(side, str):
      side = (layer.kernel - 1) // 2
    size += (layer.kernel - 1) * stride
    padding += side * stride
    stride *= layer.stride
  return ReceptiveField(size=size, stride=stride, padding=padding)
