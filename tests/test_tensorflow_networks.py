"""Converted weights, beside the same networks run by TensorFlow."""

import jax
import numpy as np
import pytest

from delf_jax import checkpoint, convert
from delf_jax.conversion import sources, targets
from delf_jax.conversion.recipe import Options
from delf_jax.data.photographs import Photograph
from delf_jax.extractors import delf_extractor
from delf_jax.features.interchange import write_datum
from delf_jax.models.delf import folded
from delf_jax.models.normalisation import NORMALISATIONS
from tests import tensorflow_networks as networks

# Of TensorFlow and its Keras; ours are checked everywhere else.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = [(96, 128), (97, 131), (99, 66)]
# Units as published, channels few: deep enough to show a misplaced stride.
UNITS = (3, 4, 6, 3)
SCALES = (0.3536, 0.7071, 1.0, 1.4142)


@pytest.fixture(scope="module")
def tf():
  pytest.importorskip("tensorflow", reason="compares with TensorFlow itself")
  return networks.import_tensorflow()


@pytest.fixture(scope="module", params=[2, 3], ids=["keras2", "keras3"])
def keras(request, tf):
  package = "tf_keras" if request.param == 2 else "keras"
  pytest.importorskip(
    package, reason=f"Keras {request.param} saves its own way"
  )
  return networks.import_keras(request.param)


def image(size, seed=1):
  return np.random.default_rng(seed).standard_normal((1, *size, 3), np.float32)


def photograph(size=(150, 211), seed=2):
  """Smooth patches, so that no two scores are the same by accident."""
  rng = np.random.default_rng(seed)
  blocks = rng.integers(0, 256, (size[0] // 9 + 1, size[1] // 9 + 1, 3))
  pixels = np.kron(blocks, np.ones((9, 9, 1)))[: size[0], : size[1]]
  return (
    (pixels + rng.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
  )


def ours(converted, pixels):
  network, variables = converted.network, converted.variables
  found = jax.jit(
    lambda variables, x: network.apply(
      variables, x, method=lambda model, x: model.backbone(x)
    )
  )(variables, pixels)
  return {name: np.asarray(value) for name, value in found.items()}


def assert_same(found, expected, tolerance=1e-4):
  """Agrees to `tolerance`, relative to the largest activation."""
  found = np.asarray(found)
  assert found.shape == expected.shape
  largest = np.abs(expected).max()
  assert np.abs(found - expected).max() < tolerance * largest


def assert_same_network(converted, expected, pixels):
  """Compares every stage and, if there is one, the attention."""
  found = ours(converted, pixels)
  for stage in found:
    assert_same(found[stage], expected[stage])
  if "attention" in expected:
    for network, variables in (
      (converted.network, converted.variables),
      folded(converted.network, converted.variables),
    ):
      features, scores = network.apply(variables, pixels, method="dense")
      attention = expected["attention"].reshape(scores.shape)
      assert_same(scores, attention)
      assert_same(
        unit(features), unit(expected.get("features", found["conv4"]))
      )


def unit(features):
  features = np.asarray(features)
  return features / np.linalg.norm(features, axis=-1, keepdims=True)


def assert_same_features(found, expected):
  """Compares what was extracted, in whichever order ties are.

  Args:
    found: our LocalFeatures.
    expected: by the names of `networks.OUTPUTS`.
  """
  boxes = expected["boxes"]
  locations = (boxes[:, :2] + boxes[:, 2:]) / 2
  assert len(found.scores) == len(locations)
  assert (np.diff(expected["scores"][:, 0]) <= 0).all()
  theirs = np.lexsort((*locations.T.round(1), expected["scales"].round(3)))
  mine = np.lexsort(
    (*np.asarray(found.locations).T.round(1), np.asarray(found.scales).round(3))
  )
  for our, their in (
    (found.locations, locations),
    (found.scales, expected["scales"]),
    (found.scores, expected["scores"][:, 0]),
    (found.descriptors, unit(expected["features"])),
  ):
    assert_same(np.asarray(our)[mine], np.asarray(their)[theirs])


def extract(model, pixels, **options):
  height, width = pixels.shape[:2]
  return delf_extractor(model, max_side=256, **options)(
    Photograph(pixels=pixels, height=height, width=width)
  )


# TensorFlow 1.


@pytest.mark.parametrize("end_stride", [1, 2])
def test_every_stage_of_tf1(tf, tmp_path, end_stride):
  images = [image(size) for size in SIZES[-1 - end_stride :]]
  activations = networks.write_slim(
    tmp_path, images=images, units=UNITS[:3], end_stride=end_stride
  )
  options = Options(stride=16 * end_stride)
  converted = sources.convert("tf_delf", tmp_path / "model", options)
  assert converted.network.backbone.units == UNITS[:3]
  for pixels, expected in zip(images, activations, strict=True):
    assert_same_network(converted, expected, pixels)
  bare = tmp_path / "checkpoints" / "model.ckpt"
  again = sources.convert("tf_delf", bare, options)
  jax.tree.map(
    np.testing.assert_array_equal, again.variables, converted.variables
  )
  field = converted.network.receptive_field
  assert (field.size, field.stride) == (291, 16 * end_stride)


def test_tf1_at_its_real_width(tf, tmp_path):
  pixels = image((97, 130))
  (expected,) = networks.write_slim(
    tmp_path, images=[pixels], units=UNITS[:3], width=64, hidden=512
  )
  converted = sources.convert("tf_delf", tmp_path / "model")
  assert expected["conv4"].shape[-1] == 1024
  assert_same_network(converted, expected, pixels)


@pytest.fixture(scope="module")
def tf1(tf, tmp_path_factory):
  """(directory of a released-looking model, what --from tf_delf makes of it)"""
  directory = tmp_path_factory.mktemp("tf1")
  networks.write_slim(directory)
  convert.convert_from("tf_delf", directory, directory / "converted")
  return directory, checkpoint.load_model(directory / "converted")


@pytest.mark.parametrize("size", [(150, 211), (97, 130)])
@pytest.mark.parametrize(
  ("max_features", "threshold"), [(1000, 0.0), (1000, 1.0), (15, 0.5)]
)
def test_extraction_of_tf1(tf1, size, max_features, threshold):
  directory, model = tf1
  pixels = photograph(size)
  expected = networks.run_slim(
    directory / "model",
    pixels,
    scales=SCALES,
    max_features=max_features,
    threshold=threshold,
  )
  found = extract(
    model,
    pixels,
    scales=SCALES,
    max_features=max_features,
    score_threshold=threshold,
  )
  assert 5 < len(expected["scores"]) <= max_features
  assert_same_features(found, expected)


@pytest.mark.parametrize("whiten", [False, True])
def test_the_released_reduction(tf1, tmp_path, whiten):
  directory, _ = tf1
  rng = np.random.default_rng(3)
  channels, dim = 128, 10
  mean = (0.1 * rng.standard_normal(channels)).astype(np.float32)
  matrix = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
  variances = np.sort(rng.uniform(0.1, 1, channels))[::-1]
  (tmp_path / "pca").mkdir()
  (tmp_path / "model").symlink_to(directory / "model")
  for name, array in (
    ("mean", mean),
    ("pca_proj_mat", matrix),
    ("pca_vars", variances),
  ):
    write_datum(tmp_path / "pca" / f"{name}.datum", array)
  (tmp_path / "delf_config.pbtxt").write_text(
    "image_scales: [0.5, 1.0]\n"
    "delf_local_config { max_feature_num: 40 score_threshold: 0.1\n"
    f"  pca_parameters {{ pca_dim: {dim} "
    f"use_whitening: {str(whiten).lower()} }} }}"
  )
  convert.convert_from("tf_delf", tmp_path, tmp_path / "converted")
  model = checkpoint.load_model(tmp_path / "converted")
  pixels = photograph()
  found = extract(model, pixels)
  expected = networks.run_slim(
    tmp_path / "model",
    pixels,
    scales=(0.5, 1.0),
    max_features=40,
    threshold=0.1,
  )
  reduced = (unit(expected["features"]) - mean) @ matrix[:dim].T
  if whiten:
    reduced /= np.sqrt(variances[:dim])
  assert_same_features(found, {**expected, "features": reduced})


# TensorFlow 2.


@pytest.mark.parametrize(
  ("code_dim", "block3_strides"), [(0, True), (5, True), (5, False)]
)
def test_every_stage_of_tf2(tf, keras, tmp_path, code_dim, block3_strides):
  model = networks.tf2_delf(
    keras,
    units=(2, 3, 3, 2) if code_dim else (2, 3, 3),
    code_dim=code_dim,
    block3_strides=block3_strides,
    num_classes=7 if block3_strides else 0,
  )
  optimizer = networks.train_step(keras, model)
  training = tf.train.Checkpoint(model=model, optimizer=optimizer)
  training.save(str(tmp_path / "ck"))
  converted = sources.convert(
    "tf_delf2", tmp_path, Options(stride=32 if block3_strides else 16)
  )
  for size in SIZES[:2]:
    pixels = image(size)
    expected = networks.activations(model, pixels)
    assert_same_network(converted, expected, pixels)


@pytest.mark.parametrize("code_dim", [0, 5])
def test_extraction_of_tf2(tf, keras, tmp_path, code_dim):
  model = networks.tf2_delf(keras, units=(1, 1, 2), code_dim=code_dim)
  networks.export_tf2(model, tmp_path / "exported")
  convert.convert_from("tf_delf", tmp_path / "exported", tmp_path / "converted")
  pixels = photograph()
  options = {"scales": SCALES, "max_features": 60}
  expected = networks.run_tf2(
    tmp_path / "exported", pixels, threshold=0.1, **options
  )
  found = extract(
    checkpoint.load_model(tmp_path / "converted"),
    pixels,
    score_threshold=0.1,
    **options,
  )
  assert len(expected["scores"]) > 20
  assert_same_features(found, expected)


# Keras' own.


@pytest.mark.parametrize("ending", [".h5", "checkpoint"])
def test_keras_resnet50(tf, keras, tmp_path, ending):
  model = networks.keras_resnet(keras)
  if ending == ".h5":
    # Keras 2 means another format by .weights.h5, Keras 3 knows no other.
    new = not hasattr(keras, "__internal__")
    path = tmp_path / ("resnet50.weights.h5" if new else "resnet50.h5")
    model.save_weights(str(path))
  else:
    tf.train.Checkpoint(model=model).write(str(tmp_path / "ck"))
    path = tmp_path
  converted = sources.convert("keras", path)
  pixels = image((97, 130))
  expected = networks.keras_activations(keras, model, pixels)
  assert_same_network(converted, expected, pixels)


def test_keras_resnet101(tf, tmp_path):
  pytest.importorskip("keras", reason="compares with Keras itself")
  keras = networks.import_keras(3)
  model = networks.keras_resnet(keras, "ResNet101")
  model.save(str(tmp_path / "resnet101.keras"))
  converted = sources.convert("keras", tmp_path / "resnet101.keras")
  assert converted.network.backbone.units[:3] == (3, 4, 23)
  pixels = image((96, 65))
  expected = networks.keras_activations(keras, model, pixels)
  assert_same_network(converted, expected, pixels)


def test_keras_pixels(tf):
  pytest.importorskip("keras", reason="compares with Keras itself")
  keras = networks.import_keras(3)
  pixels = photograph().astype(np.float32)
  expected = keras.applications.resnet50.preprocess_input(pixels.copy())
  found = NORMALISATIONS["caffe"](pixels)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_there_and_back_to_tf1(tf, tmp_path):
  pixels = image((97, 130))
  shape = {"units": (1, 2, 2), "width": 8, "end_stride": 2, "hidden": 16}
  (expected,) = networks.write_slim(tmp_path, images=[pixels], **shape)
  convert.convert_from("tf_delf", tmp_path / "model", tmp_path / "ours")
  targets.write(
    "delf_tf1", checkpoint.load_model(tmp_path / "ours"), tmp_path / "theirs"
  )
  v1 = tf.compat.v1
  with tf.Graph().as_default(), v1.Session() as session:
    images = v1.placeholder(tf.float32, [None, None, None, 3])
    activations = networks.slim_delf(images, np.random.default_rng(9), **shape)
    session.run(v1.global_variables_initializer())
    latest = tf.train.latest_checkpoint(str(tmp_path / "theirs"))
    v1.train.Saver().restore(session, latest)
    found = session.run(activations, {images: pixels})
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)
