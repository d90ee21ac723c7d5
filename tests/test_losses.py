"""Losses: values worked out by hand, margins, mixing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.training import losses


def test_softmax_is_the_negative_log_probability():
  logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
  targets = jax.nn.one_hot(jnp.array([0, 1]), 3)
  np.testing.assert_allclose(
    losses.classification(logits, targets),
    -np.log([0.7, 0.1]),
    rtol=1e-5,
  )


def test_label_smoothing_spreads_the_target():
  probabilities = np.array([0.7, 0.2, 0.1])
  logits = jnp.log(jnp.asarray(probabilities))[None]
  target = np.array([0.9, 0.0, 0.0]) + 0.1 / 3
  found = losses.classification(
    logits, jax.nn.one_hot(jnp.array([0]), 3), label_smoothing=0.1
  )
  expected = -(target * np.log(probabilities)).sum()
  np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_arcface_adds_the_margin_to_the_true_angle():
  angles = np.array([0.4, 1.0, 2.0])
  turned = 30 * np.cos(angles + [0, 0.15, 0])
  expected = np.log(np.exp(turned).sum()) - turned[1]
  found = losses.classification(
    jnp.cos(jnp.asarray(angles))[None],
    jax.nn.one_hot(jnp.array([1]), 3),
    kind="arcface",
    scale=30.0,
    margin=0.15,
  )
  np.testing.assert_allclose(found, [expected], rtol=1e-4)


def test_a_turned_cosine_never_rises_again():
  cosines = jnp.linspace(-1.0, 1.0, 401)
  turned = losses.add_angle(cosines, jnp.full_like(cosines, 0.5))
  # Where the sum of the angles passes pi the two branches differ by a step.
  assert float(jnp.min(jnp.diff(turned))) > -1e-2
  assert (turned <= cosines + 1e-6).all()
  slopes = jax.vmap(jax.grad(losses.add_angle))(
    cosines, jnp.full_like(cosines, 0.5)
  )
  assert np.isfinite(slopes).all()


def test_no_margin_is_no_change():
  cosines = jnp.linspace(-1.0, 1.0, 11)
  np.testing.assert_allclose(
    losses.add_angle(cosines, jnp.zeros_like(cosines)), cosines, atol=1e-6
  )


def test_neighbours_are_mixed_with_one_share():
  pixels = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 2, 2, 3))
  targets = jax.nn.one_hot(jnp.arange(4), 4)
  mixed, labels = losses.mix(pixels, targets, jax.random.key(3), 0.4)
  share = float(labels[0, 0])
  assert 0 <= share <= 1
  expected = [1 - share, share, 2 * share + 3 * (1 - share)]
  expected += [3 * share + 2 * (1 - share)]
  np.testing.assert_allclose(mixed[:, 0, 0, 0], expected, rtol=1e-5)
  np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-6)
  np.testing.assert_allclose(labels[1, 0], 1 - share, rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "triplet"}, "unknown loss 'triplet'"),
    ({"temperature": 3}, "no option temperature"),
    ({"label_smoothing": 1.5}, r"must lie in \[0, 1\)"),
  ],
)
def test_unfit_losses_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    losses.check_loss(**options)
