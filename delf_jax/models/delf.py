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
from delf_jax.models.vgg import Vgg


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
    backbone: the network whose activations are the features.
    num_classes: landmarks to tell apart; 0 for no classifiers.
    feature_stage: which stage's output are the features.
    attention_hidden: channels inside the attention head; 0 for none.
    pool_normalised: see `attention_pool`.
    code_dim: channels of the autoencoder's code, which then is the descriptor
      (the released TF2 system's reduction, or what correspondences teach); 0
      for none.
    cosine_classifier: logits are cosines, as the ArcFace loss wants them.
    frozen_norm: the backbone's BatchNorm keeps its running statistics and
      uses them, also in training.
  """

  backbone: ResNet | Vgg
  num_classes: int
  feature_stage: str = "conv4"
  attention_hidden: int = 512
  pool_normalised: bool = True
  code_dim: int = 0
  cosine_classifier: bool = False
  frozen_norm: bool = False

  def setup(self):
    if self.attention_hidden:
      self.attention = AttentionHead(
        hidden=self.attention_hidden,
        epsilon=self.backbone.epsilon,
        momentum=self.backbone.momentum,
        axis_name=self.backbone.axis_name,
        dtype=self.backbone.dtype,
      )
    if self.num_classes:
      dense = CosineDense if self.cosine_classifier else nn.Dense
      self.descriptor_classifier = dense(self.num_classes)
      self.attention_classifier = dense(self.num_classes)
    if self.code_dim:
      self.autoencoder = Autoencoder(self.code_dim, dtype=self.backbone.dtype)

  def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
    """Runs every head there is; initialises every parameter."""
    if self.num_classes and self.attention_hidden:
      return self.outputs(images, stage="joint", train=train)
    features = self.backbone(images)[self.feature_stage]
    if self.code_dim:
      _, features = self.autoencoder(features)
    if self.attention_hidden:
      self.attention(features)
    if self.num_classes:
      return self.outputs(images, stage="descriptors", train=train)
    return Outputs()

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
      features = jax.lax.stop_gradient(maps[self.feature_stage])
      if self.code_dim:
        _, rebuilt = self.autoencoder(features)
        error = rebuilt.astype(jnp.float32) - features.astype(jnp.float32)
        found = found._replace(
          reconstruction=jnp.mean(error**2, axis=(1, 2, 3))
        )
        features = rebuilt
      scores = self.attention(features, train=train)
      pooled = jax.vmap(
        lambda f, s: attention_pool(f, s, normalise=self.pool_normalised)
      )(features, scores)
      found = found._replace(attention=self.attention_classifier(pooled))
    return found

  def codes(
    self, images: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """The descriptors of every location, as correspondences teach them.

    The decoder learns to rebuild the features from the codes, for attention to
    look at, and has no say in either.

    Args:
      images: [b, h, w, 3] normalised pixels.
      train: use and update batch statistics.

    Returns:
      [b, h', w', c] float32 un-normalised codes, or features without an
      autoencoder, and its mean squared error [b], or None.
    """
    learns = train and not self.frozen_norm
    features = self.backbone(images, train=learns)[self.feature_stage]
    if not self.code_dim:
      return features.astype(jnp.float32), None
    code, rebuilt = self.autoencoder(features, detached=True)
    target = jax.lax.stop_gradient(features).astype(jnp.float32)
    error = jnp.mean((rebuilt.astype(jnp.float32) - target) ** 2, (1, 2, 3))
    return code.astype(jnp.float32), error

  def dense(
    self,
    images: jax.Array,
    sizes: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Features and scores of every location, for extraction.

    With an autoencoder the features are its codes, given the length of the
    features they stand for, so that the L2 norm remains a score; attention
    looks at the features that the codes are decoded to, as in the released
    TF2 system.

    Args:
      images: [b, h, w, 3] normalised pixels, padded.
      sizes: [b, 2] int32 true heights and widths.
      train: use and update batch statistics, of photographs without padding.

    Returns:
      [b, h', w', c] float32 un-normalised features and [b, h', w'] attention
      scores, None without the head; only the first `map_size` rows and columns
      mean anything.
    """
    learns = train and not self.frozen_norm
    maps = self.backbone(images, sizes, train=learns)
    features = seen = maps[self.feature_stage]
    if self.code_dim:
      code, seen = self.autoencoder(features)
      length = _length(features.astype(jnp.float32))
      features = l2_normalise(code.astype(jnp.float32)) * length[..., None]
    scores = None
    if self.attention_hidden:
      scores = self.attention(seen, train=train)
    return features.astype(jnp.float32), scores

  @property
  def feature_layers(self) -> list[receptive_field.Layer]:
    """The spatial layers from the image to the features."""
    return self.backbone.layers(self._stage)

  @property
  def descriptor_channels(self) -> int:
    """Channels of what `dense` returns: codes, or features."""
    return self.code_dim or self.backbone.channels(self._stage)

  @property
  def _stage(self) -> int:
    return int(self.feature_stage.removeprefix("conv"))

  @property
  def receptive_field(self) -> receptive_field.ReceptiveField:
    """Of the features, in pixels of the image the network is given."""
    return receptive_field.compose(self.feature_layers)


def _length(features: jax.Array) -> jax.Array:
  """Returns norms over the last axis, whose gradient at zero is zero."""
  squares = jnp.sum(features**2, axis=-1)
  return jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))


def folded(
  model: nn.Module, variables: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
  """Returns the same network, faster at extraction: BatchNorm folded away.

  Args:
    model: with a `backbone`.
    variables: of it.
  """
  if not isinstance(model.backbone, ResNet):
    return model, variables
  backbone = resnet.fold_batch_norm(
    variables["params"]["backbone"],
    variables["batch_stats"]["backbone"],
    layout=model.backbone.layout,
  )
  return (
    model.clone(backbone=model.backbone.clone(folded=True)),
    {
      "params": {**variables["params"], "backbone": backbone},
      "batch_stats": {
        name: statistics
        for name, statistics in variables["batch_stats"].items()
        if name != "backbone"
      },
    },
  )
