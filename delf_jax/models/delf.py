"""The DELF network: backbone, attention and the classifiers that train them."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from delf_jax.models import receptive_field, resnet
from delf_jax.models.attention import (
  AttentionHead,
  Autoencoder,
  CosineDense,
  attention_pool,
  l2_normalise,
)
from delf_jax.models.resnet import ResNet


class Outputs(NamedTuple):
  """What the heads of a training stage say; None for heads it has not.

  Attributes:
    descriptors: [b, num_classes] float32 logits of section 3.2.
    attention: [b, num_classes] float32 logits of section 3.3.2.
    reconstruction: [b] mean squared error of the autoencoder.
  """

  descriptors: jax.Array | None = None
  attention: jax.Array | None = None
  reconstruction: jax.Array | None = None


class Delf(nn.Module):
  """One module for every training stage and for extraction.

  Attributes:
    backbone: the network whose conv4_x output are the features.
    num_classes: landmarks to tell apart.
    attention_hidden: channels inside the attention head.
    pool_normalised: see `attention_pool`.
    code_dim: channels of the autoencoder's code, which then is the descriptor
      (the released TF2 system's reduction); 0 for none.
    cosine_classifier: logits are cosines, as the ArcFace loss wants them.
    frozen_norm: the backbone's BatchNorm keeps its running statistics and
      uses them, also in training.
  """

  backbone: ResNet
  num_classes: int
  attention_hidden: int = 512
  pool_normalised: bool = True
  code_dim: int = 0
  cosine_classifier: bool = False
  frozen_norm: bool = False

  def setup(self):
    self.attention = AttentionHead(
      hidden=self.attention_hidden,
      epsilon=resnet.LAYOUTS[self.backbone.layout].epsilon,
      momentum=self.backbone.momentum,
      axis_name=self.backbone.axis_name,
      dtype=self.backbone.dtype,
    )
    dense = CosineDense if self.cosine_classifier else nn.Dense
    self.descriptor_classifier = dense(self.num_classes)
    self.attention_classifier = dense(self.num_classes)
    if self.code_dim:
      self.autoencoder = Autoencoder(self.code_dim, dtype=self.backbone.dtype)

  def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
    """Runs every head; initialises every parameter."""
    return self.outputs(images, stage="joint", train=train)

  def outputs(
    self, images: jax.Array, *, stage: str, train: bool = False
  ) -> Outputs:
    """Runs what a training stage learns.

    Args:
      images: [b, h, w, 3] normalised pixels.
      stage: "descriptors" classifies by the mean of the last stage's map
        (section 3.2); "attention" by the score-weighted features, with the
        backbone as it is at extraction, so that neither a gradient nor an
        update of statistics reaches it (section 3.3.2); "joint" does both in
        one pass, and only the gradient of attention stops at the features
        (the released TF2 system).
      train: use and update batch statistics.
    """
    learns = train and stage != "attention" and not self.frozen_norm
    maps = self.backbone(images, train=learns)
    found = Outputs()
    if stage in ("descriptors", "joint"):
      last = list(maps.values())[-1]
      pooled = jnp.mean(last.astype(jnp.float32), axis=(1, 2))
      found = found._replace(descriptors=self.descriptor_classifier(pooled))
    if stage in ("attention", "joint"):
      features = jax.lax.stop_gradient(maps["conv4"])
      scores = self.attention(features, train=train)
      if self.code_dim:
        _, rebuilt = self.autoencoder(features)
        error = rebuilt.astype(jnp.float32) - features.astype(jnp.float32)
        found = found._replace(
          reconstruction=jnp.mean(error**2, axis=(1, 2, 3))
        )
        features = rebuilt
      pooled = jax.vmap(
        lambda f, s: attention_pool(f, s, normalise=self.pool_normalised)
      )(features, scores)
      found = found._replace(attention=self.attention_classifier(pooled))
    return found

  def dense(
    self, images: jax.Array, sizes: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Features and scores of every location, for extraction.

    With an autoencoder the features are its codes, given the length of the
    features they stand for, so that the L2 norm remains a score.

    Args:
      images: [b, h, w, 3] normalised pixels, padded.
      sizes: [b, 2] int32 true heights and widths.

    Returns:
      [b, h', w', c] float32 un-normalised features and [b, h', w'] attention
      scores; only the first `map_size` rows and columns mean anything.
    """
    features = self.backbone(images, sizes)["conv4"]
    scores = self.attention(features)
    if not self.code_dim:
      return features.astype(jnp.float32), scores
    code, _ = self.autoencoder(features)
    length = jnp.linalg.norm(features.astype(jnp.float32), axis=-1)
    code = l2_normalise(code.astype(jnp.float32))
    return code * length[..., None], scores

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
