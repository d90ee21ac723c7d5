"""The features of one photograph: what extraction makes and retrieval reads."""

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class LocalFeatures:
  """Local features of one photograph, or of several with a leading axis.

  Inside a compiled program `n` is fixed and `mask` says which rows are real;
  on disk and in the hands of users only the real rows are kept.

  Attributes:
    locations: [n, 2] float32, (y, x) in pixels of the upright original
      photograph; the centre of the receptive field.
    scales: [n] float32, how much larger the feature's support is than at
      image scale 1 (1 / image scale).
    scores: [n] float32, what the features were selected by; higher is better.
    descriptors: [n, d] float32, of unit length.
    mask: [n] bool, True for real rows.
  """

  locations: jax.Array
  scales: jax.Array
  scores: jax.Array
  descriptors: jax.Array
  mask: jax.Array


def empty(dim: int) -> LocalFeatures:
  """Returns no features, with descriptors of `dim` dimensions (NumPy)."""
  return LocalFeatures(
    locations=np.zeros((0, 2), np.float32),
    scales=np.zeros((0,), np.float32),
    scores=np.zeros((0,), np.float32),
    descriptors=np.zeros((0, dim), np.float32),
    mask=np.zeros((0,), bool),
  )


def compact(features: LocalFeatures) -> LocalFeatures:
  """Returns the valid rows of one photograph's features, as NumPy arrays."""
  features = jax.tree.map(np.asarray, features)
  return jax.tree.map(lambda leaf: leaf[features.mask], features)


def pad(features: LocalFeatures, n: int) -> LocalFeatures:
  """Returns one photograph's features padded with masked zero rows to `n`.

  Raises:
    ValueError: if there are more than `n` rows already.
  """
  missing = n - len(features.mask)
  if missing < 0:
    raise ValueError(f"cannot pad {len(features.mask)} features to {n}")
  return jax.tree.map(
    lambda leaf: np.pad(
      np.asarray(leaf), [(0, missing)] + [(0, 0)] * (np.ndim(leaf) - 1)
    ),
    features,
  )
