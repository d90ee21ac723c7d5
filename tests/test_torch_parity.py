"""Converted weights, beside the same networks run by PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="needs PyTorch: pip install 'delf_jax[torch]'"
)

from delf_jax import checkpoint, convert  # noqa: E402
from delf_jax.conversion import sources, targets  # noqa: E402
from delf_jax.conversion.recipe import Options  # noqa: E402
from delf_jax.models.delf import folded  # noqa: E402
from tests import torch_networks  # noqa: E402

SIZES = [(96, 128), (97, 130), (99, 65)]
# Units as published, channels few: deep enough to show a misplaced stride.
RESNETS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}


def save(path, state, legacy=False):
  torch.save(state, path, _use_new_zipfile_serialization=not legacy)
  return path


def image(size, seed=1):
  generator = np.random.default_rng(seed)
  return generator.standard_normal((1, *size, 3), np.float32)


def theirs(network, pixels):
  with torch.no_grad():
    found = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
  return {
    name: value.numpy().transpose(0, 2, 3, 1) for name, value in found.items()
  }


def ours(converted, pixels):
  network, variables = converted.network, converted.variables
  return jax.jit(
    lambda variables, x: network.apply(
      variables, x, method=lambda model, x: model.backbone(x)
    )
  )(variables, pixels)


def assert_same(found, expected, tolerance=1e-4):
  """Agrees to `tolerance`, relative to the largest activation."""
  found = np.asarray(found)
  assert found.shape == expected.shape
  largest = np.abs(expected).max()
  assert np.abs(found - expected).max() < tolerance * largest


@pytest.mark.parametrize("depth", RESNETS)
def test_every_stage_of_resnet(tmp_path, depth):
  network = torch_networks.ResNet(RESNETS[depth], width=8)
  torch_networks.randomise(network)
  path = save(tmp_path / "resnet.pth", network.state_dict())
  converted = sources.convert("torchvision", path)
  assert converted.network.backbone.units == RESNETS[depth]
  for size in SIZES if depth == "50" else SIZES[:1]:
    pixels = image(size)
    expected, found = theirs(network, pixels), ours(converted, pixels)
    assert list(found) == list(expected) == ["conv2", "conv3", "conv4", "conv5"]
    for stage in expected:
      assert_same(found[stage], expected[stage])


def test_resnet50_at_its_real_width(tmp_path):
  network = torch_networks.ResNet(RESNETS["50"], classes=1000)
  torch_networks.randomise(network)
  count = sum(parameter.numel() for parameter in network.parameters())
  assert count == 25_557_032  # as published
  path = save(tmp_path / "resnet50.pth", network.state_dict(), legacy=True)
  converted = sources.convert("timm", path)
  pixels = image((97, 130))
  expected, found = theirs(network, pixels), ours(converted, pixels)
  for stage in expected:
    assert_same(found[stage], expected[stage])


@pytest.mark.parametrize("size", SIZES)
def test_every_stage_of_vgg16(tmp_path, size):
  network = torch_networks.randomise(torch_networks.Vgg16(width=8))
  path = save(tmp_path / "vgg16.pth", {"state_dict": network.state_dict()})
  converted = sources.convert("vgg16", path)
  pixels = image(size)
  expected, found = theirs(network, pixels), ours(converted, pixels)
  assert list(found) == list(expected)
  for stage in expected:
    assert_same(found[stage], expected[stage])


@pytest.fixture(scope="module")
def port(tmp_path_factory):
  """(network, attention, what --from delf_pytorch makes of its checkpoint)."""
  network = torch_networks.ResNet((1, 2, 2), width=8, classes=0)
  attention = torch_networks.PortAttention(128, hidden=12)
  torch_networks.randomise(network)
  torch_networks.randomise(attention, seed=1)
  path = save(
    tmp_path_factory.mktemp("port") / "fix.pth.tar",
    torch_networks.port_checkpoint(network, attention),
    legacy=True,
  )
  return network, attention, sources.convert("delf_pytorch", path)


@pytest.mark.parametrize("size", SIZES)
def test_features_and_attention_of_the_port(port, size):
  network, attention, converted = port
  pixels = image(size)
  expected = theirs(network, pixels)["conv4"]
  with torch.no_grad():
    scores = attention(
      torch.from_numpy(expected.transpose(0, 3, 1, 2).copy())
    ).numpy()
  assert converted.normalisation == "zero_to_one"
  model, variables = folded(converted.network, converted.variables)
  features, found = model.apply(variables, pixels, method="dense")
  assert_same(features, expected)
  assert_same(found, scores)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_there_and_back_keeps_every_bit(tmp_path, ending):
  network = torch_networks.ResNet((1, 2, 2, 1), width=8)
  torch_networks.randomise(network)
  original = network.state_dict()
  path = save(tmp_path / "resnet.pth", original)
  convert.convert_from("torchvision", path, tmp_path / "model")
  model = checkpoint.load_model(tmp_path / "model")
  written = tmp_path / f"back{ending}"
  targets.write("torch_state_dict", model, written)
  if ending == ".pth":
    state = torch.load(written, weights_only=True)
  else:
    load_file = pytest.importorskip("safetensors.torch").load_file
    state = load_file(written)
  again = torch_networks.ResNet((1, 2, 2, 1), width=8, classes=0)
  again.load_state_dict(state)  # strict: every name, and no other
  for name, value in again.eval().state_dict().items():
    if not name.endswith("num_batches_tracked"):
      assert torch.equal(value, original[name]), name
  pixels = image((97, 66))
  expected, found = theirs(network, pixels), theirs(again, pixels)
  for stage in expected:
    np.testing.assert_array_equal(found[stage], expected[stage])


def test_attention_and_reduction_are_written_too(tmp_path, port):
  _, _, converted = port
  model = checkpoint.Model(
    network=converted.network,
    variables=converted.variables,
    normalisation=None,
    reduction=None,
    extraction={},
    provenance={},
    fingerprint="",
  )
  reduction = sources.Reduction(
    mean=np.arange(128, dtype=np.float32),
    components=np.ones((4, 128), np.float32),
    deviations=np.ones(4, np.float32),
  )
  model = dataclasses.replace(
    model,
    reduction=reduction,
    normalisation=convert.NORMALISATIONS["zero_to_one"],
  )
  targets.write("torch_state_dict", model, tmp_path / "delf.pth")
  state = torch.load(tmp_path / "delf.pth", weights_only=True)
  features = torch.randn(1, 128, 3, 4, generator=torch.manual_seed(0))
  x = torch.nn.functional.conv2d(features, state["attention.conv1.weight"])
  x = torch.nn.functional.batch_norm(
    x,
    *(
      state[f"attention.bn1.{name}"]
      for name in ("running_mean", "running_var", "weight", "bias")
    ),
    eps=1e-5,
  )
  x = torch.nn.functional.conv2d(
    torch.relu(x),
    state["attention.conv2.weight"],
    state["attention.conv2.bias"],
  )
  expected = torch.nn.functional.softplus(x)[:, 0].numpy()
  found = model.network.apply(
    model.variables,
    jnp.asarray(features.numpy().transpose(0, 2, 3, 1)),
    method=lambda network, x: network.attention(x),
  )
  assert_same(found, expected)
  np.testing.assert_array_equal(state["reduction.mean"].numpy(), reduction.mean)


def test_conv5_as_features(tmp_path):
  network = torch_networks.ResNet(RESNETS["101"], width=8)
  torch_networks.randomise(network)
  path = save(tmp_path / "resnet101.pth", network.state_dict())
  converted = sources.convert(
    "torchvision", path, Options(feature_stage="conv5")
  )
  pixels = image((96, 128))
  features, scores = converted.network.apply(
    converted.variables, pixels, method="dense"
  )
  assert scores is None
  assert_same(features, theirs(network, pixels)["conv5"])
