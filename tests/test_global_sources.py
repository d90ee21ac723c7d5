"""Converted global descriptors, beside the same networks run by PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="needs PyTorch: pip install 'delf_jax[torch]'"
)

from delf_jax import checkpoint, convert  # noqa: E402
from delf_jax.conversion import sources  # noqa: E402
from delf_jax.conversion.recipe import Options  # noqa: E402
from delf_jax.errors import InputError  # noqa: E402
from delf_jax.features import reduction  # noqa: E402
from tests import torch_global_networks as networks  # noqa: E402

UNITS = (1, 2, 2, 1)
SIZES = [(96, 128), (131, 97)]


def ours(converted, pixels):
  network = converted.network
  return jax.jit(network.apply)(converted.variables, pixels)


def assert_same(converted, network, sizes=SIZES):
  for size in sizes:
    pixels = np.random.default_rng(1).standard_normal((1, *size, 3), np.float32)
    expected = networks.describe(network, pixels)
    found = np.asarray(ours(converted, pixels))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def saved(path, network, **beside):
  state = {"state_dict": network.state_dict(), "epoch": 30, **beside}
  torch.save(state, path)
  return path


SIAMACS = {
  "siaMAC": ("vgg", "mac", {}),
  "SPoC": ("vgg", "spoc", {}),
  "GeM": ("resnet", "gem", {"whitening": True}),
  "R-MAC": ("vgg", "rmac", {}),
  "regions projected": ("resnet", "mac", {"regional": True}),
  "GeM of regions": ("vgg", "gem", {"regional": True, "whitening": True}),
}


def siamac(backbone, pooling, meta):
  features, channels = networks.vgg_features(8), 64
  if backbone == "resnet":
    features, channels = networks.resnet_features(UNITS, 8), 256
  pool = {
    "mac": networks.Maximum,
    "spoc": networks.Mean,
    "gem": networks.Power,
    "rmac": lambda: networks.Regional(networks.Maximum()),
  }[pooling]()
  if meta.get("regional"):
    pool = networks.Regional(pool, torch.nn.Linear(channels, 24))
    channels = 24
  whiten = torch.nn.Linear(channels, 20) if meta.get("whitening") else None
  return networks.randomise(networks.SiaMac(features, pool, whiten))


@pytest.mark.parametrize("name", SIAMACS)
def test_networks_of_siamac(tmp_path, name):
  backbone, pooling, meta = SIAMACS[name]
  network = siamac(backbone, pooling, meta)
  meta = {
    "architecture": backbone,
    "pooling": pooling,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    **meta,
  }
  path = saved(tmp_path / "net.pth", network, meta=meta)
  converted = sources.convert("siamac_pytorch", path)
  assert converted.notes == ()
  assert_same(converted, network)


@pytest.mark.parametrize("pool", [networks.Power, networks.Maximum])
def test_networks_of_dir(tmp_path, pool):
  network = networks.randomise(networks.Dir(UNITS, 8, pool(), 32))
  path = saved(tmp_path / "net.pt", network, model_options={"arch": "resnet"})
  converted = sources.convert("dir_pytorch", path)
  assert converted.network.descriptor_channels == 32
  assert converted.network.pooling == (
    "gem" if pool is networks.Power else "mac"
  )
  assert_same(converted, network)


def test_resnet_101_to_conv5(tmp_path):
  network = networks.randomise(
    networks.Dir((3, 4, 23, 3), 8, networks.Power(), 32)
  )
  converted = sources.convert(
    "dir_pytorch", saved(tmp_path / "net.pt", network)
  )
  assert_same(converted, network, SIZES[:1])


def test_learned_whitening_comes_along(tmp_path):
  generator = np.random.default_rng(0)
  mean, matrix = generator.normal(size=(64, 1)), generator.normal(size=(64, 64))
  meta = {
    "pooling": "mac",
    "Lw": {"retrieval-SfM-30k": {"ss": {}, "ms": {"m": mean, "P": matrix}}},
  }
  path = saved(tmp_path / "net.pth", siamac("vgg", "mac", {}), meta=meta)
  converted = sources.convert("siamac_pytorch", path, Options(pca_dim=16))
  assert converted.notes == ("whitened as learned on retrieval-SfM-30k (ms)",)
  vector = generator.normal(size=(1, 64)).astype(np.float32)
  vector /= np.linalg.norm(vector)
  expected = matrix[:16] @ (vector.T - mean)
  expected /= np.linalg.norm(expected)
  found = reduction.reduce(converted.reduction, vector)
  np.testing.assert_allclose(found, expected.T, atol=1e-5)


def test_the_pca_of_dir_comes_along(tmp_path):
  from sklearn.decomposition import PCA

  generator = np.random.default_rng(0)
  sample = generator.normal(size=(200, 32)) * np.linspace(2, 0.1, 32)
  fitted = PCA().fit(sample)
  network = networks.randomise(networks.Dir(UNITS, 8, networks.Power(), 32))
  path = saved(tmp_path / "net.pt", network, pca={"Landmarks_clean": fitted})
  converted = sources.convert("dir_pytorch", path)
  vector = sample[:1].astype(np.float32)
  vector /= np.linalg.norm(vector)
  expected = (vector - fitted.mean_) @ fitted.components_.T
  expected *= fitted.explained_variance_**-0.25
  expected /= np.linalg.norm(expected)
  found = reduction.reduce(converted.reduction, vector)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_checkpoints_keep_them(tmp_path):
  network = siamac("resnet", "gem", {"whitening": True})
  path = saved(tmp_path / "net.pth", network, meta={"pooling": "gem"})
  converted = convert.convert_from("siamac_pytorch", path, tmp_path / "model")
  model = checkpoint.load_model(tmp_path / "model")
  assert model.network == converted.network
  same = jax.tree.map(
    lambda one, other: np.array_equal(one, other),
    model.variables,
    converted.variables,
  )
  assert all(jax.tree.leaves(same))
  assert tuple(model.extraction["scales"]) == converted.extraction["scales"]


def test_other_files_are_refused(tmp_path):
  network = networks.randomise(networks.Dir(UNITS, 8, networks.Power(), 32))
  path = saved(tmp_path / "net.pt", network)
  with pytest.raises(InputError, match="looks like --from dir_pytorch"):
    sources.convert("siamac_pytorch", path)
  meta = {"pooling": "netvlad"}
  path = saved(tmp_path / "b.pt", siamac("vgg", "mac", {}), meta=meta)
  with pytest.raises(InputError, match="pools by 'netvlad'; expected one of"):
    sources.convert("siamac_pytorch", path)
  with pytest.raises(InputError, match="dir_pytorch: missing conv1.weight"):
    sources.convert("dir_pytorch", path)
