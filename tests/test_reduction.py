"""L2 -> PCA -> L2 against a literal computation."""

import numpy as np
import pytest

from delf_jax.features import reduction


def sample(n=400, c=24):
  generator = np.random.default_rng(0)
  return (generator.normal(size=(n, c)) * np.linspace(3, 0.1, c) + 1.0).astype(
    np.float32
  )


@pytest.mark.parametrize("whiten", [False, True])
def test_reduction_is_an_eigen_projection(whiten):
  features = sample()
  learned = reduction.fit(features, 6, whiten=whiten)
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  values, vectors = np.linalg.eigh(np.cov(unit.T.astype(np.float64)))
  projected = (unit - unit.mean(axis=0)) @ vectors[:, ::-1][:, :6]
  if whiten:
    projected /= np.sqrt(values[::-1][:6])
  projected /= np.linalg.norm(projected, axis=1, keepdims=True)
  ours = np.asarray(reduction.reduce(learned, features))
  signs = np.sign(np.sum(ours * projected, axis=0))
  np.testing.assert_allclose(ours, projected * signs, atol=2e-4)


def test_the_scale_of_a_feature_does_not_matter():
  features = sample()
  learned = reduction.fit(features, 6)
  np.testing.assert_allclose(
    reduction.reduce(learned, features),
    reduction.reduce(learned, 100 * features),
    atol=1e-5,
  )


def test_too_small_a_sample_is_refused():
  with pytest.raises(ValueError, match="cannot learn 30 dimensions"):
    reduction.fit(sample(n=10), 30)


def test_zero_features_stay_finite():
  assert np.isfinite(reduction.reduce(None, np.zeros((2, 8), "f4"))).all()
