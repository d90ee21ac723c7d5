"""The receptive field, against gradients and shifted images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.features import pyramid
from delf_jax.models import resnet
from delf_jax.models.delf import Delf
from delf_jax.models.receptive_field import compose
from delf_jax.models.resnet import ResNet
from delf_jax.models.vgg import Vgg


@pytest.mark.parametrize(
  ("layout", "size", "stride", "padding"),
  [
    ("slim", 291, 16, 145),
    ("keras", 291, 16, 145),
    ("keras_applications", 291, 16, 145),
    ("torchvision", 267, 16, 133),
  ],
)
def test_resnet50_to_conv4(layout, size, stride, padding):
  field = compose(resnet.layers((3, 4, 6), layout=layout))
  assert (field.size, field.stride, field.padding) == (size, stride, padding)


@pytest.mark.parametrize("layout", ["slim", "keras"])
def test_released_stride_of_the_third_block(layout):
  field = compose(resnet.layers((3, 4, 6), layout=layout, end_stride=2))
  assert (field.size, field.stride, field.padding) == (291, 32, 145)


def test_resnet50_to_conv5_as_released():
  field = compose(resnet.layers((3, 4, 6, 3), layout="slim", stage=5))
  assert (field.size, field.stride, field.padding) == (483, 32, 241)


@pytest.mark.parametrize(
  ("stage", "size", "stride", "padding", "offset"),
  [(4, 92, 8, 42, 3.5), (5, 196, 16, 90, 7.5)],
)
def test_vgg16(stage, size, stride, padding, offset):
  field = compose(Vgg().layers(stage))
  assert (field.size, field.stride, field.padding) == (size, stride, padding)
  assert field.offset == offset


def support(model, variables, image, row, column, stage="conv4"):
  """First and last image row and column that feature (row, column) sees."""

  def feature(image):
    return jnp.sum(model.apply(variables, image)[stage][0, row, column])

  gradient = np.abs(jax.grad(feature)(image)[0]).sum(axis=-1)
  rows, columns = np.nonzero(gradient)
  return rows.min(), rows.max(), columns.min(), columns.max()


def positive(model, side):
  """A rising ramp, and weights that keep every rectifier open.

  On a ramp every window's maximum is its far pixel, so that the gradient
  reaches the far edge of the support.
  """
  ramp = jnp.linspace(1.0, 2.0, side)
  image = jnp.broadcast_to(
    (ramp[:, None] * ramp[None, :])[None, :, :, None], (1, side, side, 3)
  )
  variables = jax.tree.map(
    lambda leaf: jnp.abs(leaf) + 1e-2,
    model.init(jax.random.key(0), image),
  )
  return image, variables


@pytest.mark.parametrize("layout", sorted(resnet.LAYOUTS))
@pytest.mark.parametrize("side", [399, 400])
def test_composed_field_is_where_the_gradient_is(layout, side):
  # The full depth of ResNet-50 with few channels; with basic units, which see
  # more each, only what fits the image.
  units = (1, 2, 3) if layout == "basic" else (3, 4, 6)
  model = ResNet(units=units, width=2, layout=layout, folded=True)
  image, variables = positive(model, side)
  field = compose(model.layers())
  row, column = 12, 13
  top, bottom, left, right = support(model, variables, image, row, column)
  # A pooling window hands on one pixel of three, the far one on a ramp, so the
  # near edge of the support is short by two pooling steps.
  near = 2 * 2
  assert field.size - near <= bottom - top + 1 <= field.size
  assert bottom - top == right - left
  # Nominal location: "same" and "valid" layers shift it by up to 3 pixels.
  exact = layout in ("torchvision", "keras_applications", "basic")
  slack = 0 if exact else 3
  end = field.stride * row - field.padding + field.size - 1
  assert abs(bottom - end) <= slack
  assert abs((right - bottom) - field.stride) == 0


@pytest.mark.parametrize("side", [299, 304])
def test_the_field_of_vgg16_is_where_the_gradient_is(side):
  model = Vgg(width=2)
  image, variables = positive(model, side)
  field = compose(model.layers())
  row, column = 9, 8
  top, bottom, left, right = support(
    model, variables, image, row, column, "conv5"
  )
  end = field.stride * row - field.padding + field.size - 1
  assert bottom == end and right == end - field.stride
  # Each of the four maxima looks away from the near edge.
  near = 1 + 2 + 4 + 8
  assert bottom - top + 1 == right - left + 1 == field.size - near


BACKBONES = {
  **{
    # Two basic units see more than a bottleneck does, too much for the images.
    layout: ResNet((1, 1, 1) if layout == "basic" else (1, 2, 2), 8, layout)
    for layout in resnet.LAYOUTS
  },
  "slim, stride 32": ResNet((1, 2, 2), width=8, layout="slim", end_stride=2),
  "keras, stride 32": ResNet((1, 2, 2), width=8, layout="keras", end_stride=2),
  "vgg": Vgg((1, 1, 1, 1, 1), width=8),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(256, 288), (255, 273)])
def test_a_match_lands_where_the_image_was_shifted_to(name, size):
  network = Delf(
    backbone=BACKBONES[name],
    num_classes=0,
    attention_hidden=0,
    feature_stage="conv5" if name == "vgg" else "conv4",
  )
  field = network.receptive_field
  by = np.array([2 * field.stride, field.stride])
  scene = jax.random.uniform(
    jax.random.key(0), (size[0] + by[0], size[1] + by[1], 3)
  )
  scene = (255 * scene).astype(jnp.uint8)
  variables = network.init(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))
  extract = pyramid.make_extractor(
    pyramid.Network(
      dense=lambda variables, images, sizes: network.apply(
        variables, images, sizes, method="dense"
      ),
      map_size=lambda length: resnet.map_size(length, network.feature_layers),
      normalise=lambda pixels: pixels / 128 - 1,
      field_size=field.size,
      stride=field.stride,
      offset=field.offset,
    ),
    scales=(1.0,),
    max_features=400,
  )
  pixels = np.stack([scene[by[0] :, by[1] :], scene[: size[0], : size[1]]])
  found = jax.device_get(
    extract(variables, None, pixels, np.array([size, size]))
  )
  first, second = (
    jax.tree.map(lambda leaf, i=i: leaf[i][found.mask[i]], found)
    for i in range(2)
  )
  # Features whose support, and its twin's, lie inside: no padding seen.
  low = first.locations - field.size / 2 - 3
  high = first.locations + field.size / 2 + 3
  inside = (low >= 0).all(1) & (high + by <= np.array(size)).all(1)
  assert inside.sum() >= 6
  nearest = (first.descriptors[inside] @ second.descriptors.T).argmax(axis=1)
  np.testing.assert_array_equal(
    second.locations[nearest], first.locations[inside] + by
  )
