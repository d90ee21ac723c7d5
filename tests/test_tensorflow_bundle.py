"""TensorFlow's checkpoints, against TensorFlow."""

import numpy as np
import pytest

from delf_jax.conversion.tensor_bundle import (
  OBJECT_GRAPH,
  read_bundle,
  read_object_graph,
  read_v1,
  write_bundle,
)
from delf_jax.conversion.tf_models import find_tf_weights
from tests import tensorflow_networks as networks

# Of TensorFlow and its Keras; ours are checked everywhere else.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tf():
  pytest.importorskip("tensorflow", reason="compares with TensorFlow itself")
  return networks.import_tensorflow()


@pytest.fixture(params=[2, 3], ids=["keras2", "keras3"])
def keras(request, tf):
  package = "tf_keras" if request.param == 2 else "keras"
  pytest.importorskip(
    package, reason=f"Keras {request.param} saves its own way"
  )
  return networks.import_keras(request.param)


def make_tensors(count=0):
  rng = np.random.default_rng(0)
  tensors = {
    f"net/{letters}": (rng.standard_normal((3, 4)) * 9).astype(letters)
    for letters in "f4 f8 i1 i2 i4 i8 u1 u2 bool f2".split()
  }
  tensors |= {
    "scalar": np.float32(2.5),
    "empty": np.empty((0, 3), np.float32),
    "large": rng.standard_normal((500, 300)).astype(np.float32),
    "ümlaut": np.arange(6.0).reshape(2, 3),
  }
  for i in range(count):
    tensors[f"net/a_name_of_some_length/block{i}/weights"] = np.int32(i)
  return tensors


def save(tf, prefix, tensors):
  """Writes tensors with TensorFlow's operation, sorted by name."""
  names = sorted(tensors, key=str.encode)
  tf.raw_ops.SaveV2(
    prefix=str(prefix),
    tensor_names=names,
    shape_and_slices=[""] * len(names),
    tensors=[tf.constant(tensors[name]) for name in names],
  )


def check(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("count", [0, 9000])  # one index block, and several
def test_v2_in_both_directions(tf, tmp_path, count):
  tensors = make_tensors(count)
  save(tf, tmp_path / "theirs", tensors)
  check(read_bundle(tmp_path / "theirs"), tensors)
  write_bundle(tmp_path / "ours", tensors)
  reader = tf.train.load_checkpoint(str(tmp_path / "ours"))
  shapes = reader.get_variable_to_shape_map()
  check({name: reader.get_tensor(name) for name in shapes}, tensors)
  for ending in (".index", ".data-00000-of-00001"):
    theirs = (tmp_path / f"theirs{ending}").read_bytes()
    if ending != ".index" or not count:
      assert (tmp_path / f"ours{ending}").read_bytes() == theirs
    else:
      assert len(theirs) > 2**18


def test_bfloat16_and_strings(tf, tmp_path):
  values = np.array([1.5, -2.0, 3e38], np.float32)
  tensors = {"b": tf.cast(values, tf.bfloat16), "s": tf.constant(["ab", ""])}
  save(tf, tmp_path / "theirs", tensors)
  found = read_bundle(tmp_path / "theirs")
  assert list(found) == ["b"] and found["b"].dtype == np.float32
  np.testing.assert_allclose(found["b"], values, rtol=2**-8)
  write_bundle(tmp_path / "ours", {"s": b"\0" * 300})
  reader = tf.train.load_checkpoint(str(tmp_path / "ours"))
  assert reader.get_tensor("s") == b"\0" * 300


def test_several_shards(tf, tmp_path):
  tensors = make_tensors()
  names = sorted(tensors)
  for i, part in enumerate((names[:5], names[5:])):
    save(tf, tmp_path / f"part{i}", {name: tensors[name] for name in part})
  tf.raw_ops.MergeV2Checkpoints(
    checkpoint_prefixes=[str(tmp_path / f"part{i}") for i in range(2)],
    destination_prefix=str(tmp_path / "whole"),
  )
  assert (tmp_path / "whole.data-00001-of-00002").is_file()
  check(read_bundle(tmp_path / "whole"), tensors)


def build_variables(v1, tf):
  """Variables of every kind that V1 knows; partitioned ones among them."""
  rng = np.random.default_rng(0)
  expected = make_tensors()
  del expected["net/u2"], expected["empty"], expected["ümlaut"]
  for name, value in expected.items():
    v1.get_variable(name, initializer=value)
  partitioned = {}
  for name, shape, axis in (("p", (40_000, 2), 0), ("q", (5, 200), 1)):
    partitioned[name] = v1.get_variable(
      name,
      shape=shape,
      initializer=v1.random_normal_initializer(seed=int(rng.integers(99))),
      partitioner=v1.fixed_size_partitioner(3, axis=axis),
      use_resource=False,
    )
  return expected, partitioned


@pytest.mark.parametrize("version", [1, 2])
def test_savers_of_tensorflow_1(tf, tmp_path, version):
  v1 = tf.compat.v1
  with tf.Graph().as_default(), v1.Session() as session:
    expected, partitioned = build_variables(v1, tf)
    session.run(v1.global_variables_initializer())
    for name, variable in partitioned.items():
      expected[name] = session.run(variable.as_tensor())
    saver = v1.train.Saver(write_version=version)
    prefix = saver.save(session, str(tmp_path / "model.ckpt"), global_step=7)
  read = read_v1 if version == 1 else read_bundle
  check(read(prefix), expected)
  for path in (tmp_path, prefix):
    found = find_tf_weights(path)
    assert found.kind == "slim"
    check(found.tensors, expected)


def test_a_saver_restores_what_we_write(tf, tmp_path):
  v1 = tf.compat.v1
  value = np.arange(6, dtype=np.float32).reshape(2, 3)
  write_bundle(tmp_path / "ours", {"scope/weights": value, "other": value})
  with tf.Graph().as_default(), v1.Session() as session:
    with v1.variable_scope("scope"):
      variable = v1.get_variable("weights", (2, 3))
    v1.train.Saver().restore(session, str(tmp_path / "ours"))
    np.testing.assert_array_equal(session.run(variable), value)


def test_objects_restored_from_what_we_write(tf, tmp_path):
  module = tf.Module()
  module.items = [tf.Variable([1.0, 2.0]), tf.Variable(3)]
  path = tf.train.Checkpoint(m=module).write(str(tmp_path / "theirs"))
  graph = tf.train.load_checkpoint(path).get_tensor(OBJECT_GRAPH)
  tensors = read_bundle(path)
  key = "m/items/0/.ATTRIBUTES/VARIABLE_VALUE"
  assert read_object_graph(path)[key].path == "m/items/0"
  tensors[key] = tensors[key] * 10
  write_bundle(tmp_path / "ours", {**tensors, OBJECT_GRAPH: graph})
  status = tf.train.Checkpoint(m=module).read(str(tmp_path / "ours"))
  status.assert_consumed()
  assert module.items[0].numpy().tolist() == [10.0, 20.0]


def test_the_released_tf1_layout(tf, tmp_path):
  networks.write_slim(tmp_path, units=(1, 1, 1))
  v1 = tf.compat.v1
  with tf.Graph().as_default(), v1.Session() as session:
    tags = [v1.saved_model.tag_constants.SERVING]
    v1.saved_model.load(session, tags, str(tmp_path / "model"))
    expected = {
      variable.op.name: session.run(variable)
      for variable in v1.global_variables()
    }
  for path in (tmp_path, tmp_path / "model", tmp_path / "checkpoints"):
    found = find_tf_weights(path)
    assert found.kind == "slim"
    check(found.tensors, expected)


def attributes(model, prefix):
  """A subclassed model's variables by the attributes that lead to them."""
  found = {}

  def collect(owner, path):
    for name, value in vars(owner).items():
      if hasattr(value, "variables") and not name.startswith("_"):
        collect(value, f"{path}{name}/")
    for name in ("kernel", "bias", "gamma", "beta", "moving_mean"):
      if getattr(owner, name, None) is not None:
        found[path + name] = np.asarray(getattr(owner, name))
    if hasattr(owner, "moving_variance"):
      found[f"{path}moving_variance"] = np.asarray(owner.moving_variance)

  collect(model, prefix)
  assert len(found) == len(model.variables)
  return found


def test_tf2_models(tf, keras, tmp_path):
  model = networks.tf2_delf(keras, units=(1, 1, 1), code_dim=5, num_classes=3)
  networks.export_tf2(model, tmp_path / "exported")
  optimizer = networks.train_step(keras, model)
  tf.train.Checkpoint(model=model, optimizer=optimizer).save(
    str(tmp_path / "training" / "ck")
  )
  tf.train.Checkpoint(model).write(str(tmp_path / "bare" / "delf_weights"))
  for name, prefix in (("training", "model/"), ("bare", "")):
    found = find_tf_weights(tmp_path / name)
    assert found.kind == "object_graph"
    check(found.tensors, attributes(model, prefix))
  exported = find_tf_weights(tmp_path / "exported")
  assert exported.tensors.keys() == attributes(model, "_model/").keys()
  for name in ("moving_mean", "moving_variance"):  # not trained in between
    name = f"_model/backbone/l2a/bn2a/{name}"
    np.testing.assert_array_equal(
      exported.tensors[name], attributes(model, "_model/")[name]
    )


def test_functional_models(tf, keras, tmp_path):
  inputs = keras.Input((8, 8, 3))
  x = keras.layers.Conv2D(4, 3, name="conv1_conv")(inputs)
  x = keras.layers.BatchNormalization(name="conv1_bn")(x)
  model = keras.Model(inputs, x)
  networks.randomise(model, 0)
  tf.train.Checkpoint(model=model).write(str(tmp_path / "ck"))
  expected = {
    getattr(variable, "path", variable.name).split(":")[0]: np.asarray(variable)
    for variable in model.variables
  }
  assert "conv1_bn/moving_mean" in expected
  check(find_tf_weights(tmp_path).tensors, expected)
  if hasattr(model, "export"):
    model.export(str(tmp_path / "exported"))
  else:
    model.save(str(tmp_path / "exported"), save_format="tf")
  check(find_tf_weights(tmp_path / "exported").tensors, expected)
