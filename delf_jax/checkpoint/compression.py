"""Weights in fewer bits on disk.

Kernels are kept as float16, or as 8-bit integers with a step of their own for
every output channel; vectors, such as what BatchNorm has counted, stay as they
are. In memory all is float32 again.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.errors import InputError

WEIGHTS = ("float32", "float16", "int8")
_LARGEST = 127
_INTEGERS, _STEPS = "integers", "steps"


def compress(tree: Any, weights: str) -> Any:
  """Returns a tree of arrays in the form that is written.

  Args:
    tree: of float32 arrays.
    weights: one of `WEIGHTS`; of "int8", a kernel becomes {"integers": int8 of
      its shape, "steps": [channels] float32}, channels being its last axis.

  Raises:
    InputError: if there is no such form.
  """
  if weights not in WEIGHTS:
    raise InputError(
      f"weights cannot be kept as {weights!r}; expected one of "
      f"{', '.join(WEIGHTS)}"
    )
  if weights == "float32":
    return tree

  def one(leaf):
    if leaf.ndim < 2:
      return leaf
    if weights == "float16":
      return jnp.asarray(leaf, jnp.float16)
    axes = tuple(range(leaf.ndim - 1))
    largest = jnp.max(jnp.abs(leaf), axis=axes, keepdims=True)
    steps = jnp.where(largest > 0, largest, 1.0) / _LARGEST
    return {
      _INTEGERS: jnp.asarray(jnp.round(leaf / steps), jnp.int8),
      _STEPS: jnp.asarray(steps.reshape(-1), jnp.float32),
    }

  return jax.tree.map(one, tree)


def expand(tree: Any) -> Any:
  """Returns what `compress` was given, to the precision that it kept."""

  def compressed(node):
    return isinstance(node, dict) and node.keys() == {_INTEGERS, _STEPS}

  def one(node):
    if compressed(node):
      return np.asarray(node[_INTEGERS], np.float32) * np.asarray(node[_STEPS])
    return np.asarray(node, np.float32)

  return jax.tree.map(one, tree, is_leaf=compressed)
