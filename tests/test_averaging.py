"""The mean of two networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax import checkpoint
from delf_jax.checkpoint.__main__ import save_as
from delf_jax.checkpoint.averaging import average
from delf_jax.errors import InputError
from delf_jax.models.normalisation import NORMALISATIONS


def write(directory, *, seed, width=4, normalisation="unit", num_classes=3):
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=width,
    layout="basic",
    attention_hidden=5,
    num_classes=num_classes,
  )
  variables = jax.jit(network.init)(
    jax.random.key(seed), jnp.zeros((1, 64, 64, 3))
  )
  checkpoint.save_model(
    directory,
    network=network,
    variables=variables,
    normalisation=NORMALISATIONS[normalisation],
    reduction=None,
    extraction={"score": "product"},
    provenance={"seed": seed},
  )
  return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """Two networks; the second tells another number of landmarks apart."""
  base = tmp_path_factory.mktemp("models")
  return write(base / "a", seed=1), write(base / "b", seed=2, num_classes=7)


def test_the_body_is_the_mean_and_the_heads_stay(models, tmp_path):
  save_as(models[0], tmp_path / "both", others=[models[1]])
  a, b, both = (
    jax.tree_util.tree_flatten_with_path(checkpoint.load_model(path).variables)
    for path in (*models, tmp_path / "both")
  )
  names = set()
  for (path, one), (_, other), (_, mean) in zip(
    a[0], b[0], both[0], strict=True
  ):
    name = path[1].key
    names.add(name)
    if name in ("attention", "attention_classifier", "descriptor_classifier"):
      expected = one
    else:
      assert one.shape == other.shape
      expected = (np.float64(one) + np.float64(other)) / 2
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-7)
  assert names >= {"attention", "attention_classifier", "descriptor_classifier"}
  assert len(names) > 3
  first, second, found = (
    checkpoint.load_model(path) for path in (*models, tmp_path / "both")
  )
  assert found.extraction == first.extraction
  assert found.provenance == {
    "seed": 1,
    "averaged": [first.fingerprint, second.fingerprint],
  }


def test_the_mean_of_one_network_is_that_network(models):
  model = checkpoint.load_model(models[0])
  same = average(model, [model, model])
  jax.tree.map(np.testing.assert_array_equal, same, model.variables)


def test_other_networks_are_refused(models, tmp_path):
  wider = write(tmp_path / "wider", seed=1, width=8)
  with pytest.raises(InputError, match="of the same layers"):
    save_as(models[0], tmp_path / "new", others=[wider])
  model = checkpoint.load_model(models[0])
  other = dataclasses.replace(model, normalisation=NORMALISATIONS["imagenet"])
  with pytest.raises(InputError, match="different normalisations"):
    average(model, [other])
  assert not (tmp_path / "new").exists()
