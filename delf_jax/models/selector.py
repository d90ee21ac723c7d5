"""Attention on a list of features that some detector found (section 3.3).

What `attention.AttentionHead` is to a feature map: a small network gives every
feature a score >= 0, and the sum that the scores weigh has to tell landmarks
apart. A network's features may be summed as they are, since its last layers
learned so; SIFT's may not, and are first assigned to learned visual words.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from delf_jax.models.attention import l2_normalise

# Standard deviations, beyond which an input counts no more.
LARGEST_INPUT = 5.0


class Selector(nn.Module):
  """Scores features, and classifies photographs by those that score.

  Every method takes one photograph's features; `jax.vmap` takes several.

  Attributes:
    channels: of the inputs.
    num_classes: landmarks to tell apart.
    hidden: units between an input and its score.
    words: learned visual words that inputs are softly assigned to before they
      are summed; 0 sums the inputs themselves.
  """

  channels: int
  num_classes: int
  hidden: int = 128
  words: int = 256

  def setup(self) -> None:
    """Declares statistics and layers."""
    shape = (self.channels,)
    self.mean = self.variable("statistics", "mean", jnp.zeros, shape)
    self.deviation = self.variable("statistics", "deviation", jnp.ones, shape)
    self.attention1 = nn.Dense(self.hidden)
    self.attention2 = nn.Dense(1)
    if self.words:
      self.codebook = nn.Dense(self.words)
    self.classifier = nn.Dense(self.num_classes)

  def standardised(self, inputs: jax.Array) -> jax.Array:
    """Subtracts the mean of [n, c] inputs, divides by their deviations."""
    centred = inputs - self.mean.value[None, :]
    return jnp.clip(
      centred / self.deviation.value[None, :], -LARGEST_INPUT, LARGEST_INPUT
    )

  def scores(self, inputs: jax.Array) -> jax.Array:
    """Maps [n, c] inputs to [n] scores >= 0, each by itself."""
    x = nn.relu(self.attention1(self.standardised(inputs)))
    return nn.softplus(self.attention2(x)[:, 0])

  def logits(
    self, inputs: jax.Array, weights: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Classifies a photograph.

    Args:
      inputs: [n, c] of its features.
      weights: [n] >= 0, how much each counts.
      mask: [n] bool, which rows are features.

    Returns:
      [num_classes]. Neither the number of features nor a common factor of the
      weights matters: what is summed is scaled to unit length.
    """
    x = self.standardised(inputs)
    if self.words:
      x = nn.softmax(self.codebook(x))
    x = jnp.where(mask[:, None], x, 0.0)
    total = jnp.where(mask, weights, 0.0) @ x
    # Of a length that a classifier's first weights are made for.
    return self.classifier(l2_normalise(total) * jnp.sqrt(1.0 * len(total)))

  def __call__(
    self, inputs: jax.Array, mask: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns [n] scores and [num_classes] logits of one photograph.

    Rows beyond the mask may hold anything, also what is not a number.
    """
    inputs = jnp.where(mask[:, None], inputs, 0.0)
    scores = self.scores(inputs)
    return scores, self.logits(inputs, scores, mask)

  def unweighted(self, inputs: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [num_classes] logits by which every feature counts the same."""
    inputs = jnp.where(mask[:, None], inputs, 0.0)
    return self.logits(inputs, jnp.ones_like(inputs[:, 0]), mask)
