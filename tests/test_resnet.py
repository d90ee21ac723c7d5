"""The backbone: counts, layouts, padding and folding."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.models import resnet
from delf_jax.models.receptive_field import compose
from delf_jax.models.resnet import ResNet


def random_variables(model, seed=0, size=64):
  """Variables with random statistics, so that nothing is accidentally 0/1."""
  variables = model.init(jax.random.key(seed), jnp.zeros((1, size, size, 3)))
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return jax.tree.unflatten(
    tree,
    [
      leaf + 0.2 * jax.random.uniform(key, leaf.shape)
      if leaf.ndim == 1
      else leaf
      for key, leaf in zip(keys, leaves, strict=True)
    ],
  )


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ("layout", "units", "parameters"),
  [
    ("torchvision", (3, 4, 6), 8_543_296),
    ("torchvision", (3, 4, 6, 3), 23_508_032),
    ("torchvision", (3, 4, 23), 27_535_424),
    ("slim", (3, 4, 6), 8_543_296),
    # Keras' convolutions carry biases, one a channel: 64 in the stem and
    # 1,408 + 3,584 + 10,240 in the stages.
    ("keras", (3, 4, 6), 8_543_296 + 15_296),
    # Keras' own count without its classifier, less the running statistics.
    ("keras_applications", (3, 4, 6, 3), 23_587_712 - 53_120),
  ],
)
def test_parameter_counts_are_those_of_the_published_networks(
  layout, units, parameters
):
  model = ResNet(units=units, layout=layout)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  assert count(variables["params"]) == parameters


@pytest.mark.parametrize("layout", sorted(resnet.LAYOUTS))
@pytest.mark.parametrize("size", [(97, 130), (112, 75), (64, 64)])
def test_padding_changes_no_feature(layout, size):
  model = ResNet(units=(1, 2, 2), width=8, layout=layout)
  variables = random_variables(model)
  image = jax.random.normal(jax.random.key(3), (1, *size, 3))
  plain = model.apply(variables, image)["conv4"]
  canvas = jnp.full((2, 144, 160, 3), jnp.nan)
  canvas = canvas.at[0, : size[0], : size[1]].set(image[0]).at[1].set(7.0)
  sizes = jnp.array([size, (144, 160)])
  padded = model.apply(variables, canvas, sizes)["conv4"]
  height, width = (resnet.map_size(length, model.layers()) for length in size)
  assert plain.shape[1:3] == (height, width)
  np.testing.assert_allclose(
    padded[0, :height, :width], plain[0], rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("layout", sorted(resnet.LAYOUTS))
def test_folding_batch_norm_changes_nothing(layout):
  model = ResNet(units=(1, 1, 2), width=8, layout=layout)
  variables = random_variables(model)
  image = jax.random.normal(jax.random.key(3), (2, 65, 70, 3))
  params = resnet.fold_batch_norm(
    variables["params"], variables["batch_stats"], layout=layout
  )
  plain = model.apply(variables, image)["conv4"]
  fast = model.clone(folded=True).apply({"params": params}, image)["conv4"]
  np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)


class PlainConv(resnet.Conv):
  """Every convolution is XLA's."""

  @nn.compact
  def __call__(self, x):
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    around = [(self.padding, self.padding)] * 2
    y = jax.lax.conv_general_dilated(
      x,
      self.param("kernel", nn.initializers.lecun_normal(), shape),
      (self.stride, self.stride),
      around if self.kernel > 1 else "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y += bias[None, None, None, :]
    return y


class PlainNorm(nn.BatchNorm):
  """BatchNorm is Flax's, the rectifier apart."""

  @nn.compact
  def __call__(self, x, *, train, rectify):
    y = super().__call__(x, use_running_average=not train)
    return nn.relu(y) if rectify else y


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("layout", sorted(resnet.LAYOUTS))
def test_gradients_are_those_of_plain_layers(layout, train, monkeypatch):
  model = ResNet(units=(1, 2), width=8, layout=layout)
  variables = random_variables(model)
  image = jax.random.normal(jax.random.key(3), (3, 64, 51, 3))

  def loss(params, image):
    stages, updates = model.apply(
      {**variables, "params": params},
      image,
      train=train,
      mutable=["batch_stats"],
    )
    features = stages["conv3"]
    direction = jax.random.normal(jax.random.key(4), features.shape)
    return jnp.mean(features * direction), (features, updates)

  def run():
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
      variables["params"], image
    )

  found = run()
  monkeypatch.setattr(resnet, "Conv", PlainConv)
  monkeypatch.setattr(resnet, "BatchNorm", PlainNorm)
  monkeypatch.setattr(
    resnet,
    "max_pool",
    functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2)),
  )
  expected = run()
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4)
  jax.tree.map(functools.partial(close, atol=1e-4), found[0], expected[0])
  # A bias before batch statistics has no gradient, only rounding.
  largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
  jax.tree.map(
    functools.partial(close, atol=1e-6 * largest), found[1], expected[1]
  )


@pytest.mark.parametrize("layout", ["slim", "keras"])
@pytest.mark.parametrize("units", [(1, 1, 1), (1, 1, 1, 1)])
def test_conv4_can_end_with_stride_32(layout, units):
  model = ResNet(units=units, width=8, layout=layout, end_stride=2)
  stages = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, 128, 128, 3))
    )[0]
  )
  expected = resnet.map_size(128, model.layers())
  assert stages["conv4"].shape[1:3] == (expected, expected)
  assert compose(model.layers()).stride == 32
  if len(units) == 4:  # conv5_x keeps the stride
    assert stages["conv5"].shape[1:3] == (expected, expected)
    assert compose(model.layers(5)).stride == 32


@pytest.mark.parametrize("size", [(97, 130), (112, 75)])
def test_padding_changes_no_feature_at_stride_32(size):
  model = ResNet(units=(1, 1, 1), width=8, layout="keras", end_stride=2)
  variables = random_variables(model)
  image = jax.random.normal(jax.random.key(3), (1, *size, 3))
  plain = model.apply(variables, image)["conv4"]
  canvas = jnp.full((1, 144, 160, 3), jnp.nan)
  canvas = canvas.at[0, : size[0], : size[1]].set(image[0])
  padded = model.apply(variables, canvas, jnp.array([size]))["conv4"]
  height, width = plain.shape[1:3]
  np.testing.assert_allclose(
    padded[0, :height, :width], plain[0], rtol=1e-4, atol=1e-4
  )


def test_bfloat16_computes_with_float32_parameters():
  model = ResNet(units=(1, 1, 1), width=8, dtype=jnp.bfloat16)
  output, variables = model.init_with_output(
    jax.random.key(0), jnp.ones((1, 64, 64, 3))
  )
  assert output["conv4"].dtype == jnp.bfloat16
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
  assert dtypes == {jnp.dtype(jnp.float32)}
