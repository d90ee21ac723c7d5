"""Weights in fewer bits."""

import jax
import numpy as np
import pytest

from delf_jax.checkpoint import compression
from delf_jax.errors import InputError


def tree_of(seed=0):
  generator = np.random.default_rng(seed)
  return {
    "conv": {
      "kernel": generator.normal(size=(3, 3, 4, 5)).astype(np.float32),
      "bias": generator.normal(size=5).astype(np.float32),
    },
    "norm": {"var": np.array([1e6, 1e-9], np.float32)},
  }


def test_float32_is_left_alone():
  tree = tree_of()
  found = compression.expand(compression.compress(tree, "float32"))
  jax.tree.map(np.testing.assert_array_equal, found, tree)


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_vectors_stay_as_they_are_and_kernels_nearly(weights):
  tree = tree_of()
  found = compression.expand(compression.compress(tree, weights))
  assert jax.tree.map(lambda x: x.dtype.name, found) == jax.tree.map(
    lambda x: x.dtype.name, tree
  )
  np.testing.assert_array_equal(found["conv"]["bias"], tree["conv"]["bias"])
  np.testing.assert_array_equal(found["norm"]["var"], tree["norm"]["var"])
  error = np.abs(found["conv"]["kernel"] - tree["conv"]["kernel"])
  largest = np.abs(tree["conv"]["kernel"]).max(axis=(0, 1, 2))
  assert 0 < error.max()
  # Half a step of each channel; ten bits of a half-precision fraction.
  bound = largest / 127 / 2 if weights == "int8" else largest / 2**11
  assert np.all(error <= bound * 1.0001)


def test_eight_bits_are_eight_bits():
  kept = compression.compress(tree_of(), "int8")["conv"]["kernel"]
  assert kept["integers"].dtype == np.int8
  assert kept["integers"].shape == (3, 3, 4, 5)
  assert kept["steps"].shape == (5,)
  # The largest of every channel uses the whole range.
  np.testing.assert_array_equal(
    np.abs(np.asarray(kept["integers"], int)).max(axis=(0, 1, 2)), 127
  )


def test_what_was_kept_is_kept_again_in_the_same_bits():
  for weights in compression.WEIGHTS:
    once = compression.expand(compression.compress(tree_of(), weights))
    again = compression.expand(compression.compress(once, weights))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, once
    )


def test_a_channel_of_zeros_stays_zero():
  kernel = {"kernel": np.zeros((2, 3), np.float32)}
  found = compression.expand(compression.compress(kernel, "int8"))
  np.testing.assert_array_equal(found["kernel"], 0)


def test_unknown_forms_are_refused():
  with pytest.raises(InputError, match="'int4'; expected one of float32"):
    compression.compress(tree_of(), "int4")
