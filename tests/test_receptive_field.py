"""The receptive field, against the gradient of one feature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models import resnet
from delf_jax.models.receptive_field import compose
from delf_jax.models.resnet import ResNet


@pytest.mark.parametrize(
  ("layout", "size", "stride", "padding"),
  [
    ("slim", 291, 16, 145),
    ("keras", 291, 16, 145),
    ("torchvision", 267, 16, 133),
  ],
)
def test_resnet50_to_conv4(layout, size, stride, padding):
  field = compose(resnet.layers((3, 4, 6), layout=layout))
  assert (field.size, field.stride, field.padding) == (size, stride, padding)


def test_slim_with_the_strides_of_its_third_block():
  field = compose(resnet.layers((3, 4, 6), layout="slim", end_stride=2))
  assert (field.size, field.stride, field.padding) == (291, 32, 145)


def support(model, variables, image, row, column):
  """First and last image row and column that feature (row, column) sees."""

  def feature(image):
    return jnp.sum(model.apply(variables, image)["conv4"][0, row, column])

  gradient = np.abs(jax.grad(feature)(image)[0]).sum(axis=-1)
  rows, columns = np.nonzero(gradient)
  return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.mark.parametrize("layout", sorted(resnet.LAYOUTS))
@pytest.mark.parametrize("side", [399, 400])
def test_composed_field_is_where_the_gradient_is(layout, side):
  # The full depth of ResNet-50 with few channels. Positive weights and images
  # keep every rectifier open, and a rising ramp lets every window's maximum
  # reach the support's far edge.
  model = ResNet(units=(3, 4, 6), width=2, layout=layout, folded=True)
  ramp = jnp.linspace(1.0, 2.0, side)
  image = jnp.broadcast_to(
    (ramp[:, None] * ramp[None, :])[None, :, :, None], (1, side, side, 3)
  )
  variables = jax.tree.map(
    lambda leaf: jnp.abs(leaf) + 1e-2,
    model.init(jax.random.key(0), image),
  )
  field = compose(model.conv4_layers)
  row, column = 12, 13
  top, bottom, left, right = support(model, variables, image, row, column)
  # A pooling window hands on one pixel of three, the far one on a ramp, so the
  # near edge of the support is short by two pooling steps.
  near = 2 * 2
  assert field.size - near <= bottom - top + 1 <= field.size
  assert bottom - top == right - left
  # Nominal location: "same" and "valid" layers shift it by up to 3 pixels.
  slack = 0 if layout == "torchvision" else 3
  end = field.stride * row - field.padding + field.size - 1
  assert abs(bottom - end) <= slack
  assert abs((right - bottom) - field.stride) == 0
