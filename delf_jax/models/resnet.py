"""ResNet to conv4_x or conv5_x, in the layouts of published weights.

The same code is ResNet-50 (`units=(3, 4, 6)`, `width=64`), ResNet-101
(`units=(3, 4, 23)`) and networks of a million parameters for tests and
laptops. Photographs of different sizes may share one padded array: with
`sizes` given, every activation outside a photograph is zero, as it is where
the convolution itself pads, so that padding changes no feature.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from delf_jax.models.batch_norm import BatchNorm
from delf_jax.models.pooling import max_pool
from delf_jax.models.receptive_field import Layer, Padding


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a family of published weights lays out its network.

  Attributes:
    stride_unit: the unit of a stage that halves the map: "first", or "last"
      (which then halves it for the next stage).
    stride_conv: the convolution of that unit that does it, 1 (the 1x1) or 2
      (the 3x3).
    stem_padding: of the 7x7/2 convolution.
    pool_padding: of the 3x3/2 maximum.
    conv_bias: whether convolutions have biases beside BatchNorm.
    epsilon: of BatchNorm.
    expansion: 4: bottleneck units (1x1 - 3x3 - 1x1) put out four times the
      channels that are inside them; 1: basic units (3x3 - 3x3), as many.
  """

  stride_unit: Literal["first", "last"]
  stride_conv: Literal[1, 2]
  stem_padding: Padding
  pool_padding: Padding
  conv_bias: bool
  epsilon: float
  expansion: Literal[1, 4] = 4


# "slim" is the released TF1 DELF, "keras" the released TF2 one (and but for
# the stem's padding Keras' network of 2015, whose weights it starts from),
# "keras_applications" what Keras itself builds since, "torchvision" also timm's
# (ResNet v1.5), "basic" their ResNet-18 and -34.
LAYOUTS: Mapping[str, Layout] = {
  "slim": Layout("last", 2, 3, "same", False, 1e-5),
  "keras": Layout("first", 1, "same", "valid", True, 1e-3),
  "keras_applications": Layout("first", 1, 3, 1, True, 1.001e-5),
  "torchvision": Layout("first", 2, 3, 1, False, 1e-5),
  "basic": Layout("first", 1, 3, 1, False, 1e-5, expansion=1),
}

FIRST_STAGE = 2  # conv2_x; the stem is conv1
CONV4 = 4 - FIRST_STAGE  # index of conv4_x among the stages


def _stem(layout: Layout) -> tuple[Layer, Layer]:
  return Layer(7, 2, layout.stem_padding), Layer(3, 2, layout.pool_padding)


def _unit_stride(
  layout: Layout, stage: int, unit: int, units: Sequence[int], end_stride: int
) -> int:
  """Returns the stride of unit `unit` of the stage with index `stage`."""
  if layout.stride_unit == "first":
    if stage == CONV4 + 1 and end_stride == 2:
      return 1  # conv4_x has ended with this stride
    return 2 if stage > 0 and unit == 0 else 1
  if unit < units[stage] - 1:
    return 1
  if stage < len(units) - 1:
    return 2
  return end_stride if stage <= CONV4 else 1


def _ends_strided(layout: Layout, stage: int, end_stride: int) -> bool:
  """Whether a step of two, without a window, follows the stage's units."""
  return layout.stride_unit == "first" and stage == CONV4 and end_stride == 2


def layers(
  units: Sequence[int], *, layout: str, stage: int = 4, end_stride: int = 1
) -> list[Layer]:
  """Lists the spatial layers from the image to the output of a stage.

  Args:
    units: of conv2_x, conv3_x, ...
    layout: a key of `LAYOUTS`.
    stage: the last stage to list, 4 for conv4_x.
    end_stride: see `ResNet`.
  """
  rules = LAYOUTS[layout]
  found = list(_stem(rules))
  for s in range(stage - FIRST_STAGE + 1):
    for u in range(units[s]):
      stride = _unit_stride(rules, s, u, units, end_stride)
      first = stride if rules.stride_conv == 1 else 1
      if rules.expansion == 1:
        found += [Layer(3, first, 1), Layer(3, stride // first, 1)]
      else:
        found += [Layer(1, first, 0), Layer(3, stride // first, 1)]
    if _ends_strided(rules, s, end_stride):
      found.append(Layer(1, 2, 0))
  return found


def map_size(size, path: Sequence[Layer]):
  """Returns the feature map's length for an image length (int or array)."""
  for layer in path:
    size = layer.output_size(size)
  return size


class Conv(nn.Module):
  """Convolution with an explicit kernel, square and without dilation.

  1x1 convolutions are products of two matrices, which XLA runs faster on CPU.
  They are not einsums over [b, h, w, c]: for the gradient of the kernel of such
  a contraction over three axes, XLA's CPU backend first copies the activations'
  gradient, transposed, element by element. That was a quarter of the training
  step of ResNet-50 (0.5 of 2.05 s on one core at 224, batch 8).
  """

  features: int
  kernel: int
  stride: int = 1
  padding: int = 0
  use_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [b, h, w, c]
    kernel = self.param(
      "kernel",
      nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
      (self.kernel, self.kernel, x.shape[-1], self.features),
    )
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if self.kernel == 1:
      x = x[:, :: self.stride, :: self.stride]
      y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
      y = y.reshape(*x.shape[:-1], self.features)
    else:
      y = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(self.stride, self.stride),
        padding=[(self.padding, self.padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y = y + bias.astype(self.dtype)[None, None, None, :]
    return y


def mask_outside(x: jax.Array, sizes: jax.Array | None) -> jax.Array:
  """Zeroes [b, h, w, c] outside the first `sizes` [b, 2] rows and columns."""
  if sizes is None:
    return x
  inside = inside_mask(sizes, x.shape[1:3])
  return jnp.where(inside[..., None], x, jnp.zeros((), x.dtype))


def inside_mask(sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Returns [b, h, w] bool, True in the first `sizes` [b, 2] rows, columns."""
  rows = jnp.arange(shape[0])[None, :] < sizes[:, :1]
  columns = jnp.arange(shape[1])[None, :] < sizes[:, 1:]
  return rows[:, :, None] & columns[:, None, :]


def _pad_for(x: jax.Array, layer: Layer, sizes: jax.Array | None) -> jax.Array:
  """Pads [b, h, w, c] so that `layer` may run without padding of its own.

  TensorFlow's "same" puts one pixel less in front of an even length. When the
  lengths are only known at run time, the array is padded for the odd case and
  shifted by one where the length is even.
  """
  if layer.padding == "valid":
    return x
  if layer.padding != "same":
    around = (layer.padding, layer.padding)
    return jnp.pad(x, ((0, 0), around, around, (0, 0)))
  reach = layer.kernel // 2
  if sizes is None:
    around = []
    for length in x.shape[1:3]:
      front = reach - (1 - length % 2)
      around.append((front, reach))
    return jnp.pad(x, ((0, 0), *around, (0, 0)))
  around = (reach, reach + 1)
  x = jnp.pad(x, ((0, 0), around, around, (0, 0)))
  shape = (x.shape[1] - 1, x.shape[2] - 1, x.shape[3])
  shift = (sizes + 1) % 2
  return jax.vmap(
    lambda image, by: jax.lax.dynamic_slice(image, (by[0], by[1], 0), shape)
  )(x, shift)


class Unit(nn.Module):
  """Two or three convolutions with a shortcut; `ResNet` says what fields mean.

  A bottleneck is 1x1 - 3x3 - 1x1, a basic unit 3x3 - 3x3.
  """

  width: int
  stride: int
  layout: str
  folded: bool
  momentum: float
  axis_name: str | None
  dtype: Any

  @nn.compact
  def __call__(
    self, x: jax.Array, sizes: jax.Array | None, train: bool
  ) -> jax.Array:
    rules = LAYOUTS[self.layout]
    basic = rules.expansion == 1
    first = self.stride if rules.stride_conv == 1 else 1

    def conv_norm(x, index, features, kernel, stride=1, rectify=False):
      suffix = "shortcut" if index is None else str(index)
      x = Conv(
        features,
        kernel,
        stride,
        kernel // 2,
        use_bias=rules.conv_bias or self.folded,
        dtype=self.dtype,
        name=f"conv{suffix}" if index else "shortcut",
      )(x)
      return _norm(self, f"bn_{suffix}", x, train, rectify)

    if basic:
      x = mask_outside(x, sizes)
    residual = conv_norm(
      x, 1, self.width, 3 if basic else 1, first, rectify=True
    )
    if sizes is not None:
      sizes = Layer(1, first, 0).output_size(sizes)
    residual = mask_outside(residual, sizes)
    residual = conv_norm(
      residual, 2, self.width, 3, self.stride // first, rectify=not basic
    )
    channels = rules.expansion * self.width
    if not basic:
      residual = conv_norm(residual, 3, channels, 1)
    if x.shape[-1] != channels:
      x = conv_norm(x, None, channels, 1, self.stride)
    else:
      x = x[:, :: self.stride, :: self.stride]
    return nn.relu(x + residual)


def _norm(
  module, name: str, x: jax.Array, train: bool, rectify: bool
) -> jax.Array:
  """Applies the BatchNorm called `name`, unless folded, and the rectifier."""
  if module.folded:
    return nn.relu(x) if rectify else x
  return BatchNorm(
    momentum=module.momentum,
    epsilon=LAYOUTS[module.layout].epsilon,
    axis_name=module.axis_name,
    name=name,
  )(x, train=train, rectify=rectify)


class ResNet(nn.Module):
  """The backbone: an image in, the output of every stage out.

  Attributes:
    units: units of conv2_x, conv3_x, conv4_x (and conv5_x).
    width: channels inside the units of conv2_x, which each stage doubles, or
      those of every stage; but for basic units, four times as many come out.
    layout: a key of `LAYOUTS`.
    end_stride: 2 makes conv4_x end at stride 32, as the released graphs do:
      in its last unit in the "slim" layout (which has no choice if conv5_x
      follows), by a 1x1 maximum in the others (TF2's `block3_strides`, with
      conv5_x at the same stride).
    folded: BatchNorm is folded into the convolutions (`fold_batch_norm`).
    momentum: of the running statistics.
    axis_name: mapped axis over which training statistics are averaged.
    dtype: compute precision; parameters and statistics stay float32.
  """

  units: Sequence[int] = (3, 4, 6)
  width: int | tuple[int, ...] = 64
  layout: str = "torchvision"
  end_stride: int = 1
  folded: bool = False
  momentum: float = 0.9
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @property
  def epsilon(self) -> float:
    """Of BatchNorm, here and in what is put on top."""
    return LAYOUTS[self.layout].epsilon

  def channels(self, stage: int = 4) -> int:
    """Channels of a stage's output."""
    expansion = LAYOUTS[self.layout].expansion
    return expansion * self.widths[stage - FIRST_STAGE]

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels inside the units of every stage."""
    if isinstance(self.width, int):
      return tuple(self.width * 2**s for s in range(len(self.units)))
    return tuple(self.width)

  def layers(self, stage: int = 4) -> list[Layer]:
    """The spatial layers from the image to the output of a stage."""
    return layers(
      self.units, layout=self.layout, stage=stage, end_stride=self.end_stride
    )

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
      train: use and update batch statistics.

    Returns:
      {"conv2": [b, h', w', c], "conv3": ..., ...} without a guarantee about
      activations beyond an image's own map.
    """
    rules = LAYOUTS[self.layout]
    stem, pool = _stem(rules)
    x = mask_outside(images.astype(self.dtype), sizes)
    x = Conv(
      self.widths[0],
      stem.kernel,
      stem.stride,
      use_bias=rules.conv_bias or self.folded,
      dtype=self.dtype,
      name="conv1",
    )(_pad_for(x, stem, sizes))
    x = _norm(self, "bn_1", x, train, rectify=True)
    if sizes is not None:
      sizes = stem.output_size(sizes)
    # Zero padding is as good as none: after the rectifier nothing is smaller.
    x = _pad_for(mask_outside(x, sizes), pool, sizes)
    x = max_pool(x)
    if sizes is not None:
      sizes = pool.output_size(sizes)

    stages = {}
    for s, units in enumerate(self.units):
      for u in range(units):
        stride = _unit_stride(rules, s, u, self.units, self.end_stride)
        x = Unit(
          self.widths[s],
          stride,
          self.layout,
          self.folded,
          self.momentum,
          self.axis_name,
          self.dtype,
          name=f"conv{s + FIRST_STAGE}_{u + 1}",
        )(x, sizes, train)
        if sizes is not None:
          sizes = Layer(1, stride, 0).output_size(sizes)
      if _ends_strided(rules, s, self.end_stride):
        x = x[:, ::2, ::2]
        if sizes is not None:
          sizes = Layer(1, 2, 0).output_size(sizes)
      stages[f"conv{s + FIRST_STAGE}"] = x
    return stages


def fold_batch_norm(
  params: Mapping[str, Any], batch_stats: Mapping[str, Any], *, layout: str
) -> dict[str, Any]:
  """Folds BatchNorm's running statistics into the convolutions.

  Args:
    params: of a `ResNet`, nested as Flax makes them.
    batch_stats: of the same.
    layout: the network's, for its epsilon.

  Returns:
    parameters of the same network with `folded=True`.
  """
  folded = {}
  for name, child in params.items():
    if name.startswith("bn_"):
      continue
    if "kernel" not in child:
      folded[name] = fold_batch_norm(child, batch_stats[name], layout=layout)
      continue
    norm = f"bn_{name.removeprefix('conv')}"
    statistics = batch_stats[norm]
    gain = params[norm]["scale"] * jax.lax.rsqrt(
      statistics["var"] + LAYOUTS[layout].epsilon
    )
    shift = child.get("bias", jnp.zeros_like(gain)) - statistics["mean"]
    folded[name] = {
      "kernel": child["kernel"] * gain[None, None, None, :],
      "bias": params[norm]["bias"] + shift * gain,
    }
  return folded
