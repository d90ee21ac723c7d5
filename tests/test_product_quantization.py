import numpy as np
import pytest

from delf_jax.index import inverted_file_kernels as kernels
from delf_jax.index import product_quantization
from delf_jax.index.product_quantization import balance, principal


def make_residuals(words=6, each=400, d=12, spectrum=0.7):
  """Descriptors around words, each with axes and centroids of its own."""
  generator = np.random.default_rng(0)
  which = np.repeat(np.arange(words), each)
  axes = np.linalg.qr(generator.normal(size=(words, d, d)))[0]
  axes *= spectrum ** np.arange(d)[:, None]
  centres = generator.normal(size=(words, d)).astype(np.float32)
  noise = generator.normal(size=(len(which), d))
  sample = centres[which] + np.einsum("nd,nde->ne", noise, axes[which])
  return sample.astype(np.float32), which, centres


def train(sample, which, centres, **options):
  return product_quantization.train(
    sample,
    which,
    centres,
    **{
      "subvectors": 3,
      "bits": 4,
      "rotation": "local",
      "codebooks": "local",
      "seed": 0,
      "threads": 2,
      **options,
    },
  )


def encode(sample, which, centres, quantiser):
  """Codes, and what they stand for."""
  codes = np.empty((len(sample), quantiser.codebooks.shape[1]), np.uint8)
  kernels.encode(
    sample,
    np.arange(len(sample)),
    which.astype(np.int32),
    centres,
    quantiser.rotation_of,
    quantiser.rotations,
    quantiser.codebook_of,
    quantiser.codebooks,
    codes,
    0,
    len(sample),
  )
  books = quantiser.codebooks[quantiser.codebook_of[which]]
  rows, parts = np.indices(codes.shape)
  rotations = quantiser.rotations[quantiser.rotation_of[which]]
  nearest = books[rows, parts, :, codes].reshape(
    len(sample), rotations.shape[2]
  )
  meant = centres[which] + np.einsum("nD,ndD->nd", nearest, rotations)
  return codes, meant


def loss(sample, which, centres, **options):
  quantiser = train(sample, which, centres, **options)
  meant = encode(sample, which, centres, quantiser)[1]
  return np.square(sample - meant).sum(axis=1).mean()


def test_variances_are_divided_evenly():
  variances = np.array([[8.0, 4, 2, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
  order = balance(variances, 2)
  assert (np.sort(order, axis=1) == np.arange(4)).all()
  np.testing.assert_array_equal(order[0], [0, 3, 1, 2])  # 8 * 1 and 4 * 2
  generator = np.random.default_rng(0)
  variances = generator.exponential(size=(50, 40)) ** 3
  parts = np.take_along_axis(variances, balance(variances, 10), axis=1)
  products = np.log(parts).reshape(50, 10, 4).sum(axis=2)
  by_size = np.log(-np.sort(-variances)).reshape(50, 10, 4).sum(axis=2)
  assert (products.std(axis=1) < by_size.std(axis=1) / 3).all()


@pytest.mark.parametrize("d, subvectors", [(12, 3), (10, 3), (5, 5), (3, 1)])
def test_principal_axes_are_orthonormal(d, subvectors):
  generator = np.random.default_rng(0)
  x = generator.normal(size=(2, 50, d)) * np.arange(1, d + 1)
  covariances = np.einsum("rnd,rne->rde", x, x) / 50
  rotations = principal(covariances, subvectors)
  assert rotations.dtype == np.float32
  assert rotations.shape[2] % subvectors == 0 and rotations.shape[2] >= d
  np.testing.assert_allclose(
    rotations @ rotations.transpose(0, 2, 1), [np.eye(d)] * 2, atol=1e-5
  )
  rotated = rotations.transpose(0, 2, 1) @ covariances @ rotations
  off = rotated * (1 - np.eye(rotations.shape[2]))
  np.testing.assert_allclose(off, 0, atol=1e-3)


def test_codes_are_the_nearest_centroids():
  sample, which, centres = make_residuals()
  quantiser = train(sample, which, centres)
  codes, meant = encode(sample, which, centres, quantiser)
  for i in range(0, len(sample), 37):
    residual = (sample[i] - centres[which[i]]) @ quantiser.rotations[
      quantiser.rotation_of[which[i]]
    ]
    book = quantiser.codebooks[quantiser.codebook_of[which[i]]]
    squares = np.square(residual.reshape(3, 4, 1) - book).sum(axis=1)
    np.testing.assert_allclose(
      squares[np.arange(3), codes[i]], squares.min(axis=1), rtol=1e-4
    )


def test_own_rotations_and_centroids_lose_less():
  data = make_residuals()
  losses = [
    loss(*data, rotation=rotation, codebooks=codebooks)
    for rotation, codebooks in [
      ("none", "global"),
      ("global", "global"),
      ("local", "global"),
      ("local", "local"),
    ]
  ]
  assert losses == sorted(losses, reverse=True)
  assert losses[3] < 0.8 * losses[0]


def test_more_bits_lose_less():
  data = make_residuals()
  losses = [loss(*data, bits=bits) for bits in [4, 5, 8]]
  assert losses == sorted(losses, reverse=True)


def test_words_with_few_residuals_share():
  sample, which, centres = make_residuals(words=4)
  # 5, 11, 12, 64 of them: none of its own, none, a rotation, both.
  kept = np.concatenate(
    [np.flatnonzero(which == w)[:n] for w, n in enumerate([5, 11, 12, 64])]
  )
  quantiser = train(sample[kept], which[kept], centres)
  np.testing.assert_array_equal(quantiser.rotation_of, [0, 0, 1, 2])
  np.testing.assert_array_equal(quantiser.codebook_of, [0, 0, 0, 1])
  assert len(quantiser.rotations) == 3 and len(quantiser.codebooks) == 2


@pytest.mark.parametrize("n", [0, 1, 3])
def test_next_to_nothing_is_enough(n):
  sample, which, centres = make_residuals()
  quantiser = train(sample[:n], which[:n], centres)
  codes, meant = encode(sample[:n], which[:n], centres, quantiser)
  np.testing.assert_allclose(meant, sample[:n], atol=1e-5)


def test_equal_residuals_are_met_exactly():
  sample, which, centres = make_residuals()
  sample[:] = 1
  quantiser = train(sample, which, centres)
  assert np.isfinite(quantiser.codebooks).all()
  meant = encode(sample, which, centres, quantiser)[1]
  np.testing.assert_allclose(meant, sample, atol=1e-4)


def test_threads_do_not_change_a_bit():
  data = make_residuals()
  one, many = train(*data, threads=1), train(*data, threads=3)
  for name, array in vars(one).items():
    np.testing.assert_array_equal(array, vars(many)[name])
  other = train(*data, seed=1)
  assert not np.array_equal(other.codebooks, one.codebooks)
