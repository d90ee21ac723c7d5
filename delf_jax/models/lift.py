"""LIFT: a detector, an orientation and a descriptor (Yi et al., ECCV 2016).

Made from the paper's method alone. A detector scores every pixel; a patch of
64 x 64 pixels around a good one is turned by the angle that the second network
sees in it, and the third describes it. All three see one grey channel.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.models.receptive_field import ReceptiveField
from delf_jax.models.spatial_transformer import UPRIGHT, crop

# Side of the patches that the orientation and the descriptor see.
PATCH = 64
# Side of the blocks that the detector's convolution works on.
BLOCK = 8
# Sums of so many maxima of so many linear functions.
HINGES = (4, 4)
# Of the softmax over positions (section 3.1).
SHARPNESS = 10.0
# Luma of red, green and blue.
_LUMA = (0.299, 0.587, 0.114)
_EPSILON = 1e-6
_NEARLY_NOTHING = 1e-4


def grey(pixels: jax.Array) -> jax.Array:
  """Returns the luma [...] of normalised pixels [..., 3]."""
  return jnp.einsum("...c,c->...", pixels, jnp.array(_LUMA))


def hinging_hyperplanes(
  values: jax.Array, hinges: tuple[int, int] = HINGES
) -> jax.Array:
  """Generalised hinging hyperplanes: sums of maxima with alternating signs.

  Args:
    values: [..., c * sums * maxima] linear functions.
    hinges: (sums, maxima).

  Returns:
    [..., c]: max - max + max - max.
  """
  sums, maxima = hinges
  values = values.reshape(*values.shape[:-1], -1, sums, maxima)
  signs = jnp.array([1.0 - 2.0 * (i % 2) for i in range(sums)])
  return jnp.einsum("...s,s->...", jnp.max(values, axis=-1), signs)


def softargmax(scores: jax.Array, sharpness: float = SHARPNESS) -> jax.Array:
  """Returns the mean (y, x) of a score map [h, w] under its softmax."""
  weights = jax.nn.softmax(sharpness * scores.ravel()).reshape(scores.shape)
  y = jnp.sum(weights, axis=1) @ jnp.arange(scores.shape[0], dtype=jnp.float32)
  x = jnp.sum(weights, axis=0) @ jnp.arange(scores.shape[1], dtype=jnp.float32)
  return jnp.stack([y, x])


def l2_pool(values: jax.Array, window: int) -> jax.Array:
  """Pools [b, h, w, c] by the root of the sum of squares of each window."""
  shape = (window, window)
  mean = nn.avg_pool(values**2, shape, strides=shape)
  return jnp.sqrt(window**2 * mean + _EPSILON)


def _gaussian(size: int) -> np.ndarray:
  """Returns [size, size] weights of a Gaussian, whose sigma is a quarter."""
  steps = np.arange(size) - (size - 1) / 2
  line = np.exp(-0.5 * (steps / (size / 4)) ** 2)
  window = np.outer(line, line)
  return (window / window.sum()).astype(np.float32)


def subtract_neighbours(values: jax.Array, size: int = 5) -> jax.Array:
  """Subtracts the local mean over a window and over all channels.

  At the border the mean is that of the part of the window which is inside.

  Args:
    values: [b, h, w, c].
    size: of the Gaussian window.
  """
  window = jnp.asarray(_gaussian(size))[:, :, None, None]
  means = jnp.mean(values, axis=-1, keepdims=True)

  def smooth(maps):
    return jax.lax.conv_general_dilated(
      maps, window, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  return values - smooth(means) / smooth(jnp.ones_like(means[:1]))


def blockwise(kernel: jax.Array, block: int) -> jax.Array:
  """Rearranges a kernel of one channel to work on blocks of pixels.

  A convolution from one channel to a few keeps a processor waiting for memory.
  The same sums over pixels in blocks, which take the place of channels, are a
  fraction more of multiplications and several times faster to differentiate.

  Args:
    kernel: [k, k, c].
    block: side of a block.

  Returns:
    [n, n, block**2, block**2 * c]: for n x n blocks, the weights of their
    pixels in the c sums of each pixel of the first block.
  """
  side, _, channels = kernel.shape
  count = -(-(side + block - 1) // block)
  steps = np.arange(count * block)[:, None] - np.arange(block)[None, :]
  # What lies beside the kernel weighs nothing.
  steps = np.where((steps >= 0) & (steps < side), steps, side)
  padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0)))
  found = padded[steps[:, :, None, None], steps[None, None, :, :]]
  found = found.reshape(count, block, block, count, block, block, channels)
  return found.transpose(0, 3, 1, 4, 2, 5, 6).reshape(
    count, count, block**2, block**2 * channels
  )


def convolve(
  images: jax.Array, kernel: jax.Array, block: int = BLOCK
) -> jax.Array:
  """Convolves [b, h, w] with [k, k, c] where it fits, block by block.

  Returns:
    [b, h - k + 1, w - k + 1, c].
  """
  batch, height, width = images.shape
  rows, columns = (n - kernel.shape[0] + 1 for n in (height, width))
  weights = blockwise(kernel, block)
  down, across = -(-rows // block), -(-columns // block)
  blocks = [n + len(weights) - 1 for n in (down, across)]
  images = jnp.pad(
    images,
    (
      (0, 0),
      (0, blocks[0] * block - height),
      (0, blocks[1] * block - width),
    ),
  )
  images = images.reshape(batch, blocks[0], block, blocks[1], block)
  images = images.transpose(0, 1, 3, 2, 4).reshape(batch, *blocks, block**2)
  sums = jax.lax.conv_general_dilated(
    images, weights, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  sums = sums.reshape(batch, down, across, block, block, -1)
  sums = sums.transpose(0, 1, 3, 2, 4, 5)
  sums = sums.reshape(batch, down * block, across * block, -1)
  return sums[:, :rows, :columns]


class Filters(nn.Module):
  """A convolution of one channel, where it fits.

  Attributes:
    channels: of the result.
    side: of the kernel.
  """

  channels: int
  side: int

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps [b, h, w] to [b, h - side + 1, w - side + 1, channels]."""
    kernel = self.param(
      "kernel",
      nn.initializers.lecun_normal(),
      (self.side, self.side, 1, self.channels),
    )
    bias = self.param("bias", nn.initializers.zeros, (self.channels,))
    return convolve(images, kernel[:, :, 0]) + bias[None, None, None, :]


class Detector(nn.Module):
  """One convolution and hinging hyperplanes: a score for every pixel.

  Attributes:
    kernel: its odd side.
    hinges: (sums, maxima).
  """

  kernel: int = 25
  hinges: tuple[int, int] = HINGES

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Scores [b, h, w] -> [b, h - kernel + 1, w - kernel + 1]."""
    values = Filters(self.hinges[0] * self.hinges[1], self.kernel, name="conv")(
      images
    )
    return hinging_hyperplanes(values, self.hinges)[..., 0]


class Orientation(nn.Module):
  """Sees by how much a patch is turned.

  Attributes:
    channels: of the three convolutions (5 x 5, 5 x 5, 3 x 3).
    hidden: of the first of two fully connected layers.
    hinges: (sums, maxima) of both.
  """

  channels: Sequence[int] = (10, 20, 50)
  hidden: int = 100
  hinges: tuple[int, int] = HINGES

  @nn.compact
  def __call__(self, patches: jax.Array) -> jax.Array:
    """Maps [b, 64, 64] to [b, 2]: (cosine, sine), of unit length."""
    values = patches[..., None]
    for i, (channels, kernel) in enumerate(
      zip(self.channels, (5, 5, 3), strict=True)
    ):
      values = nn.Conv(
        channels, (kernel, kernel), padding="VALID", name=f"conv{i + 1}"
      )(values)
      values = nn.max_pool(nn.relu(values), (2, 2), strides=(2, 2))
    values = values.reshape(len(values), -1)
    linear = self.hinges[0] * self.hinges[1]
    values = nn.Dense(self.hidden * linear, name="dense1")(values)
    values = hinging_hyperplanes(values, self.hinges)
    values = nn.Dense(2 * linear, name="dense2")(values)
    values = hinging_hyperplanes(values, self.hinges)
    # A vector of no length is taken for upright.
    values = values + _NEARLY_NOTHING * jnp.array([UPRIGHT])
    return values * jax.lax.rsqrt(
      jnp.sum(values**2, axis=-1, keepdims=True) + _NEARLY_NOTHING**4
    )


class Descriptor(nn.Module):
  """Describes a patch (the network of Simo-Serra et al., ICCV 2015).

  Attributes:
    channels: of the three convolutions (7 x 7, 6 x 6, 5 x 5); the last is the
      descriptor's dimension.
  """

  channels: Sequence[int] = (32, 64, 128)

  @nn.compact
  def __call__(self, patches: jax.Array) -> jax.Array:
    """Maps [b, 64, 64] to [b, d], not of unit length."""
    values = patches[..., None]
    for i, (channels, kernel, window) in enumerate(
      zip(self.channels, (7, 6, 5), (2, 3, 4), strict=True)
    ):
      values = nn.Conv(
        channels, (kernel, kernel), padding="VALID", name=f"conv{i + 1}"
      )(values)
      values = l2_pool(nn.tanh(values), window)
      if i < 2:
        values = subtract_neighbours(values)
    return values.reshape(len(values), -1)


class Lift(nn.Module):
  """The three networks; calling it is for initialisation.

  Attributes:
    kernel: side of the detector's convolution.
    hinges: (sums, maxima) of detector and orientation.
    orientation_channels: see `Orientation`.
    orientation_hidden: see `Orientation`.
    descriptor_layers: channels; see `Descriptor`.
  """

  kernel: int = 25
  hinges: tuple[int, int] = HINGES
  orientation_channels: Sequence[int] = (10, 20, 50)
  orientation_hidden: int = 100
  descriptor_layers: Sequence[int] = (32, 64, 128)

  def setup(self) -> None:
    self.detector = Detector(self.kernel, self.hinges)
    self.orientation = Orientation(
      self.orientation_channels, self.orientation_hidden, self.hinges
    )
    self.descriptor = Descriptor(self.descriptor_layers)

  def detect(self, images: jax.Array) -> jax.Array:
    """Scores [b, h, w] images where the convolution fits into them."""
    return self.detector(images)

  def orient(self, patches: jax.Array) -> jax.Array:
    """Maps [b, 64, 64] patches to [b, 2] rotations."""
    return self.orientation(patches)

  def describe(self, patches: jax.Array) -> jax.Array:
    """Maps [b, 64, 64] patches to [b, d] descriptors."""
    return self.descriptor(patches)

  def locate(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the one point of each image [b, h, w].

    Returns:
      its score map and [b, 2] (y, x) in the image.
    """
    scores = self.detect(images)
    return scores, jax.vmap(softargmax)(scores) + self.border

  def turned(self, images: jax.Array, points: jax.Array) -> jax.Array:
    """Returns the rotations [b, 2] of patches around a point of each image."""
    return self.orient(cut(images, points))

  def __call__(self, images: jax.Array) -> jax.Array:
    """Detects, turns and describes the one point of each image [b, h, w]."""
    _, points = self.locate(images)
    rotations = self.turned(images, points)
    return self.describe(cut(images, points, rotations))

  @property
  def border(self) -> int:
    """Pixels at each end of an image that get no score."""
    return self.kernel // 2

  @property
  def descriptor_channels(self) -> int:
    """Dimension of the descriptors."""
    return self.descriptor_layers[-1]

  @property
  def receptive_field(self) -> ReceptiveField:
    """What a descriptor sees, at the scale at which it was found."""
    return ReceptiveField(size=PATCH, stride=1, padding=PATCH // 2)


def cut(
  images: jax.Array, points: jax.Array, rotations: jax.Array | None = None
) -> jax.Array:
  """Cuts [b, 64, 64] patches out of images [b, h, w] around [b, 2] points.

  Args:
    images: one each.
    points: (y, x).
    rotations: [b, 2]; None: upright.
  """
  if rotations is None:
    rotations = jnp.broadcast_to(jnp.array([UPRIGHT]), points.shape)
  return jax.vmap(lambda i, p, r: crop(i, p, r, side=PATCH))(
    images, points, rotations
  )
