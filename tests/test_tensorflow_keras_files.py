"""Files of the real Keras: run where TensorFlow and Keras are installed."""

import inspect
import os
import warnings

import numpy as np
import pytest

from delf_jax.conversion import keras_files

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def importorskip(name):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip(name, reason="compares with Keras itself")


@pytest.fixture(scope="module")
def keras():
  return importorskip("keras")


@pytest.fixture(scope="module")
def tf_keras():
  importorskip("tensorflow")
  return importorskip("tf_keras")


@pytest.fixture(scope="module")
def resnet(keras):
  model = keras.applications.ResNet50(
    weights=None, include_top=False, input_shape=(32, 32, 3)
  )
  fill(model)
  return model


def fill(model):
  """Gives every variable numbers of its own."""
  generator = np.random.default_rng(0)
  model.set_weights(
    [generator.normal(size=w.shape).astype("f4") for w in model.get_weights()]
  )


def expected(model, prefix=""):
  """What a model holds, by layer and variable."""
  found = {}
  for layer in model.layers:
    if hasattr(layer, "layers"):
      found |= expected(layer, f"{prefix}{layer.name}/")
      continue
    for weight in layer.weights:
      variable = weight.name.split("/")[-1].split(":")[0]
      found[f"{prefix}{layer.name}/{variable}"] = weight.numpy()
  return found


def check(path, arrays):
  found = keras_files.read_keras(path)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], array)


def save(model, path):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that .h5 is old
    if ".weights" in path.name:
      model.save_weights(path)
    else:
      model.save(path)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras", ".h5"])
def test_resnet_50(tmp_path, resnet, ending):
  path = tmp_path / f"resnet{ending}"
  save(resnet, path)
  arrays = expected(resnet)
  assert len(arrays) == 318
  for name in ("conv1_conv/kernel", "conv2_block1_0_bn/moving_variance"):
    assert name in arrays
  check(path, arrays)


def nested(keras):
  layers = keras.layers
  inner = keras.Sequential(
    [
      layers.InputLayer((8, 8, 3)),
      layers.Conv2D(4, 3, name="first"),
      layers.BatchNormalization(name="norm"),
    ],
    name="backbone",
  )
  outer = keras.Sequential(
    [
      layers.InputLayer((8, 8, 3)),
      inner,
      layers.Conv2D(5, 1, use_bias=False, name="attention"),
      layers.Conv2D(1, 1, name="a_score"),
      layers.BatchNormalization(name="a_norm"),
    ],
    name="delf",
  )
  fill(outer)
  outer.compile("adam", "mse")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    outer.fit(np.zeros((2, 8, 8, 3)), np.zeros((2, 6, 6, 1)), verbose=0)
  return outer


@pytest.mark.parametrize("ending", [".weights.h5", ".keras", ".h5"])
def test_a_model_in_a_model(tmp_path, keras, ending):
  model = nested(keras)
  path = tmp_path / f"model{ending}"
  save(model, path)
  arrays = expected(model)
  assert "backbone/first/kernel" in arrays
  check(path, arrays)


@pytest.mark.parametrize("ending", ["_weights.h5", ".keras", ".h5"])
def test_keras_2(tmp_path, tf_keras, ending):
  model = nested(tf_keras)
  path = tmp_path / f"model{ending}"
  if ending == "_weights.h5":
    model.save_weights(path)
  else:
    save(model, path)
  check(path, expected(model))


def test_keras_2_without_names(tmp_path, tf_keras):
  model = nested(tf_keras)
  path = tmp_path / "model.weights.h5"
  save(model, path)
  kinds = {
    "backbone/first": "sequential/conv2d",
    "backbone/norm": "sequential/batch_normalization",
    "attention": "conv2d",
    "a_score": "conv2d_1",
    "a_norm": "batch_normalization",
  }
  arrays = {}
  for name, array in expected(model).items():
    layer, variable = name.rsplit("/", 1)
    arrays[f"{kinds[layer]}/{variable}"] = array
  check(path, arrays)


@pytest.mark.parametrize("which", ["keras", "tf_keras"])
def test_a_subclassed_model(tmp_path, request, which):
  library = request.getfixturevalue(which)

  class Delf(library.Model):
    def __init__(self):
      super().__init__(name="delf")
      self.backbone = library.layers.Conv2D(4, 3, name="conv1_conv")
      self.attention = library.layers.BatchNormalization(name="norm")

    def call(self, pixels):
      return self.attention(self.backbone(pixels))

  model = Delf()
  model(np.zeros((1, 8, 8, 3), "f4"))
  fill(model)
  arrays = expected(model)
  endings = [".weights.h5", ".keras"] if which == "keras" else ["_weights.h5"]
  for ending in endings:
    path = tmp_path / f"model{ending}"
    if ending == "_weights.h5":
      model.save_weights(path)
    else:
      save(model, path)
    check(path, arrays)


def test_bfloat16(tmp_path, keras):
  model = keras.Sequential(
    [
      keras.layers.InputLayer((8,)),
      keras.layers.Dense(3, dtype="bfloat16", name="dense"),
    ]
  )
  path = tmp_path / "model.weights.h5"
  save(model, path)
  kernel, bias = (
    np.asarray(keras.ops.cast(w, "float32")) for w in model.weights
  )
  check(path, {"dense/kernel": kernel, "dense/bias": bias})


def test_names_of_groups(keras):
  from keras.src.utils import naming

  names = [n for n, _ in inspect.getmembers(keras.layers, inspect.isclass)]
  assert len(names) > 100
  for name in [*names, "MyResNet50V2Block", "A"]:
    assert keras_files._snake_case(name) == naming.to_snake_case(name)
