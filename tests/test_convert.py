"""Conversion without PyTorch or TensorFlow: both ways, errors, the program."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from delf_jax import checkpoint, convert, initialisation
from delf_jax.checkpoint.arrays import named
from delf_jax.conversion import names, sources, targets
from delf_jax.conversion.keras_files import read_keras
from delf_jax.conversion.recipe import Options
from delf_jax.conversion.tensor_bundle import write_bundle
from delf_jax.conversion.torch_files import write_safetensors, write_torch
from delf_jax.errors import InputError
from delf_jax.features.interchange import write_datum
from delf_jax.models.normalisation import NORMALISATIONS
from tests.test_programs import run

h5py = pytest.importorskip("h5py", reason="pip install 'delf_jax[convert]'")

UNITS = (1, 2, 2, 1)
WIDTH = 4
SLIM = names.slim("resnet_v1_50")


def resnet_tensors(naming, units=UNITS, *, conv_bias=False, width=WIDTH):
  """Random tensors of a ResNet under a naming."""
  layout = "keras" if conv_bias else "torchvision"
  network = checkpoint.build_network(
    units=units,
    width=width,
    layout=layout,
    num_classes=0,
    attention_hidden=0,
    feature_stage=f"conv{len(units) + 1}",
  )
  return _random(naming.resnet(units, conv_bias=conv_bias), network)


def _random(pairs, network):
  shapes = named(checkpoint.abstract_variables(network))
  generator = np.random.default_rng(0)
  return {
    pair.theirs: names.to_theirs(
      pair,
      generator.uniform(0.5, 1.5, shapes[pair.ours].shape),
    )
    for pair in pairs
  }


def write_h5(path, tensors):
  """Classic HDF5 weights of Keras."""
  with h5py.File(path, "w") as file:
    layers = sorted({name.partition("/")[0] for name in tensors})
    file.attrs["layer_names"] = [layer.encode() for layer in layers]
    for layer in layers:
      group = file.create_group(layer)
      mine = [name for name in tensors if name.startswith(f"{layer}/")]
      group.attrs["weight_names"] = [f"{name}:0".encode() for name in mine]
      for name in mine:
        group[f"{name}:0"] = tensors[name]
  assert read_keras(path).keys() == tensors.keys()


def slim_tensors(*, attention=True):
  tensors = resnet_tensors(SLIM, UNITS[:3])
  if attention:
    generator = np.random.default_rng(1)
    where = names.SLIM_ATTENTION
    channels = 16 * WIDTH
    tensors |= {
      f"{where}/conv1/weights": generator.normal(size=(1, 1, channels, 6)),
      f"{where}/conv2/weights": generator.normal(size=(1, 1, 6, 1)),
      f"{where}/conv2/biases": generator.normal(size=(1,)),
      **{
        f"{where}/conv1/BatchNorm/{name}": generator.uniform(0.5, 1.5, 6)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
      },
    }
  return {name: np.float32(value) for name, value in tensors.items()}


def tf2_tensors(*, code_dim=0):
  tensors = resnet_tensors(names.TF2, conv_bias=True)
  generator = np.random.default_rng(1)
  channels = 16 * WIDTH
  shapes = {
    "attention/conv1/kernel": (1, 1, channels, 6),
    "attention/conv1/bias": (6,),
    "attention/conv2/kernel": (1, 1, 6, 1),
    "attention/conv2/bias": (1,),
    **{
      f"attention/bn_conv1/{name}": (6,)
      for name in ("gamma", "beta", "moving_mean", "moving_variance")
    },
    "desc_classification/kernel": (8, 3),
  }
  if code_dim:
    shapes |= {
      "autoencoder/conv1/kernel": (1, 1, channels, code_dim),
      "autoencoder/conv1/bias": (code_dim,),
      "autoencoder/conv2/kernel": (1, 1, code_dim, channels),
      "autoencoder/conv2/bias": (channels,),
    }
  return tensors | {
    name: np.float32(generator.uniform(0.5, 1.5, shape))
    for name, shape in shapes.items()
  }


def released(directory, *, pca=True, config=True):
  """A directory such as the released archives unpack to."""
  model = directory / "model"
  (model / "variables").mkdir(parents=True)
  (model / "saved_model.pb").write_bytes(b"never looked at")
  write_bundle(model / "variables" / "variables", slim_tensors())
  if pca:
    generator = np.random.default_rng(2)
    channels = 16 * WIDTH
    (directory / "pca").mkdir()
    for name, value in (
      ("mean", generator.normal(size=channels)),
      ("pca_proj_mat", generator.normal(size=(channels, channels))),
      ("pca_vars", generator.uniform(0.5, 1, channels)),
    ):
      write_datum(directory / "pca" / f"{name}.datum", np.float32(value))
  if config:
    (directory / "delf_config_example.pbtxt").write_text(
      "image_scales: .5\nimage_scales: 1.0\n"
      "delf_local_config { use_pca: true max_feature_num: 300\n"
      "  score_threshold: 100.0 iou_threshold: 1.0\n"
      "  pca_parameters { pca_dim: 5 use_whitening: false } }\n"
    )
  return directory


@pytest.mark.parametrize(
  ("source", "naming", "ending", "layout", "normalisation"),
  [
    ("torchvision", names.TORCH, ".pth", "torchvision", "imagenet"),
    ("timm", names.TORCH, ".safetensors", "torchvision", "imagenet"),
    ("keras", names.KERAS, ".h5", "keras_applications", "caffe"),
    ("keras", names.KERAS_2015, ".h5", "keras", "caffe"),
    ("tf_delf", SLIM, "", "slim", "slim"),
  ],
)
def test_imagenet_networks(
  tmp_path, source, naming, ending, layout, normalisation
):
  tensors = resnet_tensors(naming, conv_bias=source == "keras")
  path = tmp_path / f"weights{ending}"
  if ending == ".pth":
    tensors["fc.weight"] = np.zeros((3, 8), np.float32)
    write_torch(path, {"module." + name: tensors[name] for name in tensors})
  elif ending == ".safetensors":
    write_safetensors(path, tensors, {})
  elif ending == ".h5":
    write_h5(path, tensors)
  else:
    write_bundle(path, tensors)
  converted = sources.convert(source, path)
  backbone = converted.network.backbone
  assert (backbone.units, backbone.width) == (UNITS, WIDTH)
  assert backbone.layout == layout
  assert converted.normalisation == normalisation
  assert converted.extraction["score"] == "l2_norm"
  assert converted.reduction is None
  for pair in naming.resnet(UNITS, conv_bias=source == "keras"):
    found = named(converted.variables)[pair.ours]
    np.testing.assert_array_equal(
      names.to_theirs(pair, found), tensors[pair.theirs]
    )


def test_keras_layout_can_be_chosen(tmp_path):
  path = tmp_path / "weights.h5"
  write_h5(path, resnet_tensors(names.KERAS_2015, conv_bias=True))
  assert "--layout" in sources.convert("keras", path).notes[0]
  chosen = sources.convert("keras", path, Options(layout="keras_applications"))
  assert chosen.network.backbone.layout == "keras_applications"
  assert chosen.notes == ()


def test_a_released_model(tmp_path):
  path = released(tmp_path / "delf_v1_20171026")
  converted = sources.convert("tf_delf", path)
  network = converted.network
  assert network.receptive_field.stride == 32
  assert network.attention_hidden == 6
  assert converted.normalisation == "unit"
  assert converted.extraction == {
    "score": "attention",
    "max_features": 300,
    "resize": "legacy",
    "scales": [0.5, 1.0],
    "iou_threshold": 1.0,
    "score_threshold": 100.0,
  }
  assert converted.reduction.components.shape == (5, 16 * WIDTH)
  assert converted.notes == ()
  assert len(converted.provenance["sha256"]) == 64
  fine = sources.convert("tf_delf", path, Options(stride=16, pca_dim=7))
  assert fine.network.receptive_field.stride == 16
  assert len(fine.reduction.components) == 7
  white = sources.convert("tf_delf", path, Options(whiten=True))
  assert (white.reduction.deviations != 1).all()


@pytest.mark.parametrize(
  ("name", "threshold", "dim"),
  [("delf_v1_20171026", 100.0, 40), ("delf_gld_20190411", 100.0, 64)],
)
def test_a_released_model_is_known_by_its_name(
  tmp_path, name, threshold, dim, monkeypatch
):
  path = released(tmp_path / name, config=False)
  converted = sources.convert("tf_delf", path, Options(pca_dim=dim))
  assert converted.extraction["score_threshold"] == threshold
  assert len(converted.reduction.components) == dim
  other = shutil.copytree(path, tmp_path / "mine")
  converted = sources.convert("tf_delf", other)
  assert "score_threshold" not in converted.extraction
  assert "--score_threshold" in converted.notes[0]
  with pytest.raises(InputError, match="cannot give 100 dimensions"):
    sources.convert("tf_delf", path, Options(pca_dim=100))


@pytest.mark.parametrize("prefix", ["", "_model/", "model/"])
@pytest.mark.parametrize("code_dim", [0, 3])
def test_models_of_tensorflow_2(tmp_path, prefix, code_dim):
  tensors = tf2_tensors(code_dim=code_dim)
  write_bundle(
    tmp_path / "ckpt",
    {f"{prefix}{name}": value for name, value in tensors.items()},
  )
  converted = sources.convert("tf_delf2", tmp_path / "ckpt")
  network = converted.network
  assert network.code_dim == code_dim
  assert network.backbone.layout == "keras"
  assert network.receptive_field.stride == 32
  assert converted.extraction["resize"] == "half_pixel"
  # The head has no bias of its own: BatchNorm takes it over.
  np.testing.assert_allclose(
    converted.variables["batch_stats"]["attention"]["bn_1"]["mean"],
    tensors["attention/bn_conv1/moving_mean"] - tensors["attention/conv1/bias"],
  )
  again = sources.convert("tf_delf", tmp_path / "ckpt")
  jax.tree.map(
    np.testing.assert_array_equal, again.variables, converted.variables
  )


def test_the_port_and_its_reduction(tmp_path):
  tensors = resnet_tensors(names.TORCH, UNITS[:3])
  places = {"layer1": "4", "layer2": "5", "layer3": "6", "conv1": "0"}
  base = {}
  for name, value in tensors.items():
    first, _, rest = name.partition(".")
    base[f"base.{places.get(first, '1')}.{rest}"] = value
  generator = np.random.default_rng(1)
  channels = 16 * WIDTH
  head = {
    "attn.conv1.weight": generator.normal(size=(6, channels, 1, 1)),
    "attn.conv1.bias": generator.normal(size=6),
    "attn.conv2.weight": generator.normal(size=(1, 6, 1, 1)),
    "attn.conv2.bias": generator.normal(size=1),
  }
  path = tmp_path / "fix.pth.tar"
  write_torch(path, {**base, **{n: np.float32(v) for n, v in head.items()}})
  with h5py.File(tmp_path / "pca.h5", "w") as file:
    file["pca_mean"] = generator.normal(size=channels)
    file["pca_matrix"] = generator.normal(size=(channels, channels))
    file["pca_vars"] = generator.uniform(0.5, 1, channels)
  converted = sources.convert(
    "delf_pytorch", path, Options(pca=str(tmp_path / "pca.h5"), pca_dim=9)
  )
  assert converted.network.attention_hidden == 6
  assert converted.normalisation == "zero_to_one"
  assert converted.extraction["iou_threshold"] == 0.98
  assert len(converted.reduction.components) == 9
  assert (converted.reduction.deviations != 1).all()
  (tmp_path / "other.h5").write_bytes(b"\x89HDF no more")
  for name, message in (("other.h5", "no pca.h5"), ("gone.h5", "cannot read")):
    with pytest.raises(InputError, match=message):
      sources.convert("delf_pytorch", path, Options(pca=str(tmp_path / name)))
  # Without its head it is a backbone.
  write_torch(path, base)
  assert sources.convert("delf_pytorch", path).network.attention_hidden == 0


def _save(path, converted, **changes):
  checkpoint.save_model(
    path,
    network=converted.network,
    variables=converted.variables,
    normalisation=NORMALISATIONS[converted.normalisation],
    reduction=converted.reduction,
    extraction=converted.extraction,
    provenance=converted.provenance,
  )
  return dataclasses.replace(checkpoint.load_model(path), **changes)


def test_there_and_back_as_a_released_model(tmp_path):
  converted = sources.convert("tf_delf", released(tmp_path / "delf_v1_1"))
  model = _save(tmp_path / "model", converted)
  notes = targets.write("delf_tf1", model, tmp_path / "theirs")
  assert "32 pixels apart" in notes[0]
  again = sources.convert("tf_delf", tmp_path / "theirs")
  assert again.network == converted.network
  assert again.extraction == converted.extraction
  for field in ("variables", "reduction"):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(again, field),
      getattr(converted, field),
    )


def test_a_whitened_reduction_survives(tmp_path):
  path = released(tmp_path / "delf_v1_1")
  converted = sources.convert("tf_delf", path, Options(whiten=True))
  model = _save(tmp_path / "model", converted)
  targets.write("delf_tf1", model, tmp_path / "theirs")
  again = sources.convert("tf_delf", tmp_path / "theirs")
  np.testing.assert_allclose(
    again.reduction.deviations, converted.reduction.deviations, rtol=1e-6
  )


def test_a_layout_is_not_passed_off_as_another(tmp_path):
  path = tmp_path / "weights.pth"
  write_torch(path, resnet_tensors(names.TORCH))
  model = _save(tmp_path / "model", sources.convert("torchvision", path))
  with pytest.raises(InputError, match="'torchvision'.*'slim'"):
    targets.write("delf_tf1", model, tmp_path / "out")
  with pytest.raises(InputError, match="ends with one of"):
    targets.write("torch_state_dict", model, tmp_path / "out")
  slim = _save(
    tmp_path / "slim",
    sources.convert("tf_delf", released(tmp_path / "delf_v1_1")),
  )
  with pytest.raises(InputError, match="other features"):
    targets.write("torch_state_dict", slim, tmp_path / "out.pth")
  assert not (tmp_path / "out").exists()
  assert not (tmp_path / "out.pth").exists()


def test_training_starts_from_converted_weights(tmp_path, capsys):
  path = tmp_path / "weights.pth"
  write_torch(path, resnet_tensors(names.TORCH))
  convert.convert_from("torchvision", path, tmp_path / "imagenet")
  settings = {
    "seed": 0,
    "init_from": str(tmp_path / "imagenet"),
    "normalisation": "imagenet",
    "extraction": {},
    "model": {
      "units": UNITS,
      "width": WIDTH,
      "layout": "torchvision",
      "attention_hidden": 5,
    },
  }
  begun = initialisation.initial_model(settings, num_classes=3)
  source = checkpoint.load_model(tmp_path / "imagenet").variables
  for collection, groups in source.items():
    jax.tree.map(
      np.testing.assert_array_equal,
      begun.variables[collection]["backbone"],
      groups["backbone"],
    )
  assert begun.variables["params"]["attention_classifier"]["kernel"].shape == (
    16 * WIDTH,
    3,
  )
  assert capsys.readouterr().out == ""
  settings["normalisation"] = "unit"
  initialisation.initial_model(settings, num_classes=3)
  assert "on other pixels than" in capsys.readouterr().out
  settings["model"]["layout"] = "slim"
  with pytest.raises(InputError, match="layout torchvision instead of slim"):
    initialisation.initial_model(settings, num_classes=3)


def _without(tensors, *gone):
  return {name: value for name, value in tensors.items() if name not in gone}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda t: _without(t, "bn1.weight", "layer2.1.bn3.running_var"),
      "missing bn1.weight, layer2.1.bn3.running_var",
    ),
    (
      lambda t: {**t, "layer1.0.se.fc.weight": np.zeros((1,), np.float32)},
      "unexpected layer1.0.se.fc.weight",
    ),
    (
      lambda t: {**t, "layer1.0.conv2.weight": np.zeros((4, 2, 3, 3), "f4")},
      r"of another shape layer1.0.conv2.weight \(4, 2, 3, 3\)",
    ),
    (
      lambda t: {**t, "bn1.bias": np.full(WIDTH, np.nan, np.float32)},
      "not finite bn1.bias",
    ),
    (
      lambda t: {f"{name}x{i}": t[name] for name in t for i in range(1)},
      "missing conv1.weight; it holds .* and [0-9]+ more",
    ),
    (
      lambda t: _without(t, *[n for n in t if "conv3" in n]),
      "ResNet-18 or -34",
    ),
    (
      lambda t: {
        "conv1.0.weight" if name == "conv1.weight" else name: value
        for name, value in t.items()
      },
      "three convolutions in its stem",
    ),
    (lambda t: {}, "holds nothing. The file holds no tensors"),
  ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
  path = tmp_path / "weights.pth"
  write_torch(path, change(resnet_tensors(names.TORCH)))
  with pytest.raises(InputError, match=message):
    sources.convert("torchvision", path)


@pytest.mark.parametrize("asked", sorted(sources.SOURCES))
def test_the_right_source_is_guessed(tmp_path, asked):
  files = {}
  for source in ("torchvision", "keras", "tf_delf", "tf_delf2"):
    path = files[source] = tmp_path / source
    if source == "torchvision":
      write_torch(path, resnet_tensors(names.TORCH))
    elif source == "keras":
      write_h5(path, resnet_tensors(names.KERAS, conv_bias=True))
    else:
      made = slim_tensors() if source == "tf_delf" else tf2_tensors()
      write_bundle(path, made)
  for source, path in files.items():
    fits = {
      "torchvision": ("torchvision", "timm"),
      "tf_delf2": ("tf_delf2", "tf_delf"),
    }.get(source, (source,))
    if asked in fits:
      assert sources.convert(asked, path).network.backbone.units
      continue
    with pytest.raises(InputError, match=f"looks like --from {source}"):
      sources.convert(asked, path)


def test_the_programs(tmp_path):
  weights = tmp_path / "resnet.safetensors"
  write_safetensors(weights, resnet_tensors(names.TORCH), {})
  printed = run(
    "convert",
    "--from=torchvision",
    f"--weights={weights}",
    f"--output={tmp_path}/model",
  )
  assert "layout torchvision" in printed and "selected by l2_norm" in printed
  described = run("checkpoint", tmp_path / "model")
  sha256 = json.loads((tmp_path / "model" / "meta.json").read_text())[
    "provenance"
  ]["sha256"]
  for fact in (
    sha256,
    "layout             torchvision",
    "backbone.conv2_1.conv2",
    "kernel 3x3x4x4",
    "(RGB - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)",
  ):
    assert fact in described
  run(
    "convert",
    "--to=torch_state_dict",
    f"--checkpoint={tmp_path}/model",
    f"--output={tmp_path}/back.safetensors",
  )
  again = sources.convert("torchvision", tmp_path / "back.safetensors")
  model = checkpoint.load_model(tmp_path / "model")
  jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
  wrong = run(
    "convert",
    "--from=vgg16",
    f"--weights={weights}",
    f"--output={tmp_path}/other",
    status=1,
  )
  assert "It looks like --from torchvision" in wrong
  assert not (tmp_path / "other").exists()
  assert "either --from" in run("convert", "--output=x", status=1)
  assert "one CHECKPOINT" in run("checkpoint", status=2)
