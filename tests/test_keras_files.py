import io
import json
import struct
import zipfile

import numpy as np
import pytest

from delf_jax.conversion import keras_files
from delf_jax.errors import InputError


@pytest.fixture
def h5py():
  return pytest.importorskip("h5py", reason="writes the files: extra convert")


def values(*shape):
  """Numbers of which no two arrays hold the same."""
  values.last += 1
  return np.random.default_rng(values.last).normal(size=shape).astype("f4")


values.last = 0


def write_classic(root, layers):
  """Writes {layer: {weight name: array}} in the layout of Keras 1 and 2."""
  root.attrs["layer_names"] = [layer.encode() for layer in layers]
  for layer, weights in layers.items():
    group = root.create_group(layer)
    group.attrs["weight_names"] = [name.encode() for name in weights]
    for name, array in weights.items():
      group[name] = array


def read(path):
  return keras_files.read_keras(path)


def check(path, expected):
  found = read(path)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def refuse(path, match):
  with pytest.raises(InputError, match=match) as caught:
    read(path)
  assert path.name in str(caught.value)
  assert str(caught.value).isprintable()


CONV, BIAS = values(3, 3, 2, 4), values(4)
NORM = {
  name: values(4)
  for name in ("gamma", "beta", "moving_mean", "moving_variance")
}
OLD = {"moving_mean": "running_mean", "moving_variance": "running_std"}
# The layers and names of resnet50_weights_tf_dim_ordering_tf_kernels.h5 (2016),
# of that of 2019, and of VGG's.
CLASSIC = {
  "2016": {
    "input_1": {},
    "conv1": {"conv1_W:0": CONV, "conv1_b:0": BIAS},
    "bn_conv1": {f"bn_conv1_{OLD.get(k, k)}:0": v for k, v in NORM.items()},
    "res2a_branch2a": {
      "res2a_branch2a_W:0": CONV + 1,
      "res2a_branch2a_b:0": BIAS + 1,
    },
  },
  "vgg": {
    "block1_conv1": {"block1_conv1_W_1:0": CONV, "block1_conv1_b_1:0": BIAS}
  },
  "2019": {
    "conv1_pad": {},
    "conv1_conv": {"conv1_conv/kernel:0": CONV, "conv1_conv/bias:0": BIAS},
    "conv1_bn": {f"conv1_bn/{k}:0": v for k, v in NORM.items()},
  },
  # Built twice in one session, inside a subclassed model, and by Keras 3.
  "scopes": {
    "conv1": {"conv1_1/kernel:0": CONV, "conv1_1/bias:0": BIAS},
    "conv2": {"delf/conv2/kernel:0": CONV + 1},
    "conv3": {"model/conv3/kernel": CONV + 2},
  },
  # Models inside the model, by Keras 2 and 3.
  "nested": {
    "resnet50": {"conv1/kernel:0": CONV, "bn_1/gamma:0": BIAS},
    "inner": {"inner/conv1/kernel": CONV + 1, "inner/bn_1/gamma": BIAS + 1},
    "dense": {"dense/kernel:0": BIAS[None], "dense/bias:0": BIAS + 2},
  },
}
CLASSIC_FOUND = {
  "2016": {
    "conv1/kernel": CONV,
    "conv1/bias": BIAS,
    **{f"bn_conv1/{k}": v for k, v in NORM.items()},
    "res2a_branch2a/kernel": CONV + 1,
    "res2a_branch2a/bias": BIAS + 1,
  },
  "vgg": {"block1_conv1/kernel": CONV, "block1_conv1/bias": BIAS},
  "2019": {
    "conv1_conv/kernel": CONV,
    "conv1_conv/bias": BIAS,
    **{f"conv1_bn/{k}": v for k, v in NORM.items()},
  },
  "scopes": {
    "conv1/kernel": CONV,
    "conv1/bias": BIAS,
    "conv2/kernel": CONV + 1,
    "conv3/kernel": CONV + 2,
  },
  "nested": {
    "resnet50/conv1/kernel": CONV,
    "resnet50/bn_1/gamma": BIAS,
    "inner/conv1/kernel": CONV + 1,
    "inner/bn_1/gamma": BIAS + 1,
    "dense/kernel": BIAS[None],
    "dense/bias": BIAS + 2,
  },
}


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize("is_model", [False, True])
def test_keras_1_and_2(tmp_path, h5py, name, is_model):
  path = tmp_path / "weights.h5"
  with h5py.File(path, "w") as file:
    root = file
    if is_model:
      file.attrs["model_config"] = "{}" * 1000
      file.create_group("optimizer_weights").attrs["weight_names"] = [b"x"]
      root = file.create_group("model_weights")
    write_classic(root, CLASSIC[name])
  check(path, CLASSIC_FOUND[name])


def test_long_lists_and_top_level_weights(tmp_path, h5py):
  path = tmp_path / "weights.h5"
  with h5py.File(path, "w") as file:
    # Keras splits a list that is too long for one attribute.
    file.attrs["layer_names0"] = [b"a"]
    file.attrs["layer_names1"] = ["b", "c"]
    for i, layer in enumerate("abc"):
      group = file.create_group(layer)
      group.attrs["weight_names"] = [f"{layer}/kernel:0"]
      group[f"{layer}/kernel:0"] = CONV + i
    top = file.create_group("top_level_model_weights")
    top.attrs["weight_names"] = [b"token_b:0"]
    top["token_b:0"] = BIAS
  expected = {f"{k}/kernel": CONV + i for i, k in enumerate("abc")}
  check(path, {**expected, "top_level_model_weights/token_b": BIAS})


def write_numbered(file, groups):
  """Writes {group: (name, arrays)} in the layout of Keras 3."""
  for place, (name, arrays) in groups.items():
    group = file.create_group(f"{place}/vars" if place else "vars")
    if name:
      group.attrs["name"] = name
    for i, array in enumerate(arrays):
      group[str(i)] = array


NUMBERED = {
  "": ("model", []),
  "layers/input_layer": ("input_layer", []),
  "layers/conv2d": ("conv1_conv", [CONV, BIAS]),
  "layers/conv2d_1": ("no_bias", [CONV + 1]),
  "layers/batch_normalization": ("conv1_bn", list(NORM.values())),
  "layers/functional": ("backbone", []),
  "layers/functional/layers/conv2d": ("conv1_conv", [CONV + 2]),
  "layers/separable_conv2d": ("sep", [CONV, CONV[:1], BIAS]),
  "layers/layer_normalization": ("norm", [BIAS, BIAS + 1]),
  "layers/embedding": ("many", [values(2)] * 11),
  "attention/score": ("scores", [CONV + 3, BIAS + 3]),
  "optimizer": ("adam", [BIAS]),
  "metrics/mean": ("loss", [BIAS]),
}
NUMBERED_FOUND = {
  "{conv1_conv}/kernel": CONV,
  "{conv1_conv}/bias": BIAS,
  "{no_bias}/kernel": CONV + 1,
  **{"{conv1_bn}/" + k: v for k, v in NORM.items()},
  "{backbone}/{inner}/kernel": CONV + 2,
  "{sep}/0": CONV,
  "{sep}/1": CONV[:1],
  "{sep}/2": BIAS,
  "{norm}/0": BIAS,
  "{norm}/1": BIAS + 1,
  **{"{many}/" + str(i): NUMBERED["layers/embedding"][1][0] for i in range(11)},
  "attention/{score}/kernel": CONV + 3,
  "attention/{score}/bias": BIAS + 3,
}
NAMES = {
  "conv1_conv": "conv2d",
  "no_bias": "conv2d_1",
  "conv1_bn": "batch_normalization",
  "backbone": "functional",
  "inner": "conv2d",
  "sep": "separable_conv2d",
  "norm": "layer_normalization",
  "many": "embedding",
  "score": "score",
}
NAMED = {name: name for name in NAMES} | {
  "inner": "conv1_conv",
  "score": "scores",
}


def renamed(names):
  return {k.format(**names): v for k, v in NUMBERED_FOUND.items()}


def test_keras_3(tmp_path, h5py):
  path = tmp_path / "model.weights.h5"
  with h5py.File(path, "w") as file:
    write_numbered(file, NUMBERED)
  check(path, renamed(NAMED))
  # Before Keras 3.6 the layers have no names.
  nameless = {k: (None, arrays) for k, (_, arrays) in NUMBERED.items()}
  with h5py.File(path, "w") as file:
    write_numbered(file, nameless)
  check(path, renamed(NAMES))
  # A variable of the model itself, and TensorFlow 2.12's name of the list.
  with h5py.File(path, "w") as file:
    write_numbered(file, {"": (None, [BIAS])})
    place = "_layer_checkpoint_dependencies/conv2d"
    write_numbered(file, {place: (None, [CONV])})
  check(path, {"vars/0": BIAS, "conv2d/kernel": CONV})


def archived(path, data, config=None, *, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    if config is not None:
      archive.writestr("config.json", json.dumps(config))
    archive.writestr("model.weights.h5", data)


def layer(kind, name, layers=()):
  inner = {"layers": list(layers)} if layers else {}
  return {"class_name": kind, "config": {"name": name, **inner}}


def test_keras_archives(tmp_path, h5py):
  path = tmp_path / "model.keras"
  data = {}
  for is_named in (True, False):
    groups = {
      k: (name if is_named else None, arrays)
      for k, (name, arrays) in NUMBERED.items()
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
      write_numbered(file, groups)
    data[is_named] = buffer.getvalue()
  archived(path, data[True])
  check(path, renamed(NAMED))
  # Where the layers have no names, the configuration has them.
  config = layer(
    "Functional",
    "model",
    [
      layer("InputLayer", "input_layer"),
      layer("Conv2D", "conv1_conv"),
      layer("BatchNormalization", "conv1_bn"),
      layer("Functional", "backbone", [layer("Conv2D", "conv1_conv")]),
      layer("Conv2D", "no_bias"),
      layer("SeparableConv2D", "sep"),
      layer("LayerNormalization", "norm"),
      layer("Embedding", "many"),
    ],
  )
  for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    archived(path, data[False], config, compression=compression)
    check(path, renamed({**NAMED, "score": "score"}))
  for config in ({}, [], {"config": []}, {"config": {"layers": [{}]}}):
    archived(path, data[False], config)
    if config in ({}, {"config": []}):
      check(path, renamed(NAMES))
    else:
      refuse(path, "not a whole Keras file")
  for members, match in (
    ({"a.npy": b""}, r"zip archive without model\.weights\.h5"),
    ({"model.weights.h5": b"no"}, "no signature of HDF5"),
    ({"model.weights.h5": b"", "config.json": b"{"}, "not a whole Keras file"),
    ({"model.weights.h5": bytes(10**8)}, "much larger than the whole"),
  ):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
      for name, content in members.items():
        archive.writestr(name, content)
    refuse(path, match)
  # A member that unpacks to more than it says.
  archived(path, bytes(10**7), compression=zipfile.ZIP_DEFLATED)
  size = struct.pack("<L", 10**7)
  path.write_bytes(path.read_bytes().replace(size, struct.pack("<L", 100)))
  refuse(path, "CRC|no signature")
  archived(path, data[True], compression=zipfile.ZIP_LZMA)
  refuse(path, "compression of kind 14")


def test_what_is_refused(tmp_path, h5py):
  path = tmp_path / "weights.h5"
  other = tmp_path / "other.h5"
  with h5py.File(other, "w") as file:
    file["kernel:0"] = CONV
  for make in (
    lambda group: group.update(x=h5py.ExternalLink(other, "kernel:0")),
    lambda group: group.update(x=h5py.SoftLink("/y")),
    lambda group: group.create_dataset(
      "x", (3,), "f4", external=[(str(other), 0, 12)]
    ),
    lambda group: group.create_dataset("x", data="text"),
  ):
    for layout in ("classic", "numbered"):
      with h5py.File(path, "w") as file:
        if layout == "classic":
          file.attrs["layer_names"] = [b"a"]
          make(file.create_group("a"))
          file["a"].attrs["weight_names"] = [b"x"]
        else:
          make(file.create_group("layers/a/vars"))
      refuse(path, "which weights do not need; load it with Keras")
  for groups, match in (
    ({}, "HDF5 file without weights of Keras"),
    ({"layer_0": ["param_0"]}, "HDF5 file without weights of Keras"),
  ):
    with h5py.File(path, "w") as file:
      for name, children in groups.items():
        for child in children:
          file.create_group(name)[child] = CONV
    refuse(path, match)
  with h5py.File(path, "w") as file:
    write_classic(file, {"a": {"a/kernel:0": CONV, "kernel:0": BIAS}})
  refuse(path, "two weights called 'a/kernel'")
  with h5py.File(path, "w") as file:
    write_classic(file, {"a": {}})
    file["a"].attrs["weight_names"] = [b"a/kernel:0"]
  refuse(path, "'a' is listed but not there")
  with h5py.File(path, "w") as file:
    group = file.create_group("layers/a")
    group["b"] = file["layers"]
  refuse(path, "a group inside itself")
  path.write_bytes(b"<html>")
  refuse(path, "is a web page")
  path.write_bytes(b"")
  refuse(path, "is empty")
  with pytest.raises(InputError, match="cannot read .*none.*No such file"):
    read(tmp_path / "none")
  with pytest.raises(InputError, match="it is not a file"):
    read(tmp_path)


@pytest.mark.parametrize("which", ["classic", "numbered", "archive"])
def test_damage_is_one_line(tmp_path, h5py, which):
  path = tmp_path / "weights.h5"
  with h5py.File(path, "w") as file:
    if which == "classic":
      write_classic(file, CLASSIC["2016"])
    else:
      write_numbered(file, {k: NUMBERED[k] for k in list(NUMBERED)[:4]})
  whole = path.read_bytes()
  if which == "archive":
    config = layer("Functional", "a", [layer("Conv2D", "b")])
    archived(path, whole, config, compression=zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
  read(path)
  for cut in range(0, len(whole), len(whole) // 150):
    path.write_bytes(whole[:cut])
    refuse(path, "weights.h5")
  generator = np.random.default_rng(0)
  used = np.flatnonzero(np.frombuffer(whole, np.uint8))
  for _ in range(200):
    damaged = bytearray(whole)
    for place in generator.choice(used, generator.integers(1, 4)):
      damaged[place] ^= generator.choice([1, 2, 128, 255])
    path.write_bytes(damaged)
    try:
      read(path)
    except InputError as error:
      assert str(error).isprintable()
