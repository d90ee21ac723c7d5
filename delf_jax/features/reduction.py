"""L2 -> PCA -> L2 (section 3.4 of the paper)."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA

EPSILON = 1e-12


@flax.struct.dataclass
class Reduction:
  """A learned projection.

  Attributes:
    mean: [c] of the l2-normalised features.
    components: [d, c] principal directions, one a row, strongest first.
    deviations: [d] what each projected dimension is divided by: ones, or the
      standard deviations when whitening.
  """

  mean: jax.Array
  components: jax.Array
  deviations: jax.Array


def l2_normalise(x: jax.Array) -> jax.Array:
  """Scales the last axis to unit length; zeros stay zeros."""
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + EPSILON)


def fit(features: np.ndarray, dim: int, *, whiten: bool = False) -> Reduction:
  """Learns the projection on a sample of features.

  Args:
    features: [n, c] un-normalised or normalised, n > dim.
    dim: dimensions to keep.
    whiten: divide each by its standard deviation (off in the paper and in the
      released models).

  Raises:
    ValueError: if the sample is too small for `dim`.
  """
  if min(features.shape) < dim:
    raise ValueError(
      f"cannot learn {dim} dimensions from {features.shape[0]} features of "
      f"{features.shape[1]} dimensions"
    )
  unit = np.asarray(l2_normalise(features), np.float64)
  pca = PCA(n_components=dim, svd_solver="covariance_eigh").fit(unit)
  deviations = np.sqrt(pca.explained_variance_) if whiten else np.ones(dim)
  return Reduction(
    mean=np.asarray(pca.mean_, np.float32),
    components=np.asarray(pca.components_, np.float32),
    deviations=np.asarray(deviations, np.float32),
  )


def reduce(reduction: Reduction | None, features: jax.Array) -> jax.Array:
  """Turns [n, c] features into [n, d] descriptors of unit length.

  Without a reduction only the first normalisation is done.
  """
  unit = l2_normalise(features)
  if reduction is None:
    return unit
  projected = jnp.einsum(
    "nc,dc->nd",
    unit - reduction.mean[None, :],
    reduction.components,
    precision=jax.lax.Precision.HIGHEST,
  )
  return l2_normalise(projected / reduction.deviations[None, :])
