"""The DELF network: backbone, attention and the classifiers that train them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from delf_jax.models import receptive_field, resnet
from delf_jax.models.attention import AttentionHead, attention_pool
from delf_jax.models.resnet import ResNet


class Delf(nn.Module):
  """One module for both training stages and for extraction.

  Attributes:
    backbone: the network whose conv4_x output are the features.
    num_classes: landmarks to tell apart.
    attention_hidden: channels inside the attention head.
    pool_normalised: see `attention_pool`.
  """

  backbone: ResNet
  num_classes: int
  attention_hidden: int = 512
  pool_normalised: bool = True

  def setup(self):
    self.attention = AttentionHead(
      hidden=self.attention_hidden,
      epsilon=resnet.LAYOUTS[self.backbone.layout].epsilon,
      momentum=self.backbone.momentum,
      axis_name=self.backbone.axis_name,
      dtype=self.backbone.dtype,
    )
    self.descriptor_classifier = nn.Dense(self.num_classes)
    self.attention_classifier = nn.Dense(self.num_classes)

  def __call__(
    self, images: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the logits of both stages; initialises every parameter."""
    return (
      self.classify_descriptors(images, train=train),
      self.classify_attention(images, train=train),
    )

  def classify_descriptors(
    self, images: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Landmark logits from the mean of the last stage's map (section 3.2).

    Args:
      images: [b, h, w, 3] normalised pixels.
      train: use and update batch statistics.

    Returns:
      [b, num_classes] float32 logits.
    """
    stages = self.backbone(images, train=train)
    last = list(stages.values())[-1]
    pooled = jnp.mean(last.astype(jnp.float32), axis=(1, 2))
    return self.descriptor_classifier(pooled)

  def classify_attention(
    self, images: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Landmark logits from the score-weighted features (section 3.3.2).

    No gradient and no statistics update reaches the backbone: descriptors are
    fixed while attention learns.
    """
    features = self.backbone(images, train=False)["conv4"]
    features = jax.lax.stop_gradient(features)
    scores = self.attention(features, train=train)
    pooled = jax.vmap(
      lambda f, s: attention_pool(f, s, normalise=self.pool_normalised)
    )(features, scores)
    return self.attention_classifier(pooled)

  def dense(
    self, images: jax.Array, sizes: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Features and scores of every location, for extraction.

    Args:
      images: [b, h, w, 3] normalised pixels, padded.
      sizes: [b, 2] int32 true heights and widths.

    Returns:
      [b, h', w', c] float32 un-normalised features and [b, h', w'] attention
      scores; only the first `map_size` rows and columns mean anything.
    """
    features = self.backbone(images, sizes)["conv4"]
    scores = self.attention(features)
    return features.astype(jnp.float32), scores

  @property
  def receptive_field(self) -> receptive_field.ReceptiveField:
    """Of the features, in pixels of the image the network is given."""
    return receptive_field.compose(self.backbone.conv4_layers)


def folded(
  model: Delf, variables: dict[str, Any]
) -> tuple[Delf, dict[str, Any]]:
  """Returns the same network, faster at extraction: BatchNorm folded away."""
  backbone = resnet.fold_batch_norm(
    variables["params"]["backbone"],
    variables["batch_stats"]["backbone"],
    layout=model.backbone.layout,
  )
  return (
    model.clone(backbone=model.backbone.clone(folded=True)),
    {
      "params": {**variables["params"], "backbone": backbone},
      "batch_stats": {"attention": variables["batch_stats"]["attention"]},
    },
  )
