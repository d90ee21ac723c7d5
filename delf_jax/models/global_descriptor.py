"""One descriptor a photograph: the networks that the paper compares with.

  siaMAC (Radenovic et al., ECCV 2016): the maximum of VGG-16's conv5
  R-MAC  (Tolias et al., ICLR 2016): maxima over a grid of regions, summed
  DIR    (Gordo et al., ECCV 2016): R-MAC with a fully connected layer a region
  GeM    (Radenovic et al., TPAMI 2018): a power mean with a learned power

Photographs of different sizes may share one padded array: with `sizes` given,
padding changes nothing.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from delf_jax.models import receptive_field, regions
from delf_jax.models.attention import CosineDense, l2_normalise
from delf_jax.models.delf import Outputs
from delf_jax.models.resnet import ResNet, inside_mask, map_size
from delf_jax.models.vgg import Vgg

Pooling = Literal["mac", "spoc", "gem"]
Grid = Literal["none", "image", "map"]

POOLINGS = ("mac", "spoc", "gem")
GRIDS = ("none", "image", "map")
# What GeM takes the power of at least.
SMALLEST = 1e-6


def pool(
  features: jax.Array,
  inside: jax.Array,
  *,
  kind: Pooling,
  power: jax.Array | float = 3.0,
) -> jax.Array:
  """Pools a part of a feature map.

  Args:
    features: [h, w, c] activations, not negative.
    inside: [h, w] bool, which of them count.
    kind: "mac" is the maximum, "spoc" the mean (the sum of Babenko and
      Lempitsky without its Gaussian, up to the length that normalising takes
      away), "gem" the mean of powers, to the inverse power.
    power: of "gem".

  Returns:
    [c]; zeros if nothing counts.
  """
  kept = inside[:, :, None]
  if kind == "mac":
    return jnp.max(jnp.where(kept, features, 0.0), axis=(0, 1))
  count = jnp.maximum(jnp.sum(inside), 1)
  if kind == "spoc":
    return jnp.sum(jnp.where(kept, features, 0.0), axis=(0, 1)) / count
  # Outside, where anything may be, no power is taken: its gradient might be
  # infinite, and times zero no number.
  raised = jnp.maximum(jnp.where(kept, features, SMALLEST), SMALLEST) ** power
  mean = jnp.sum(jnp.where(kept, raised, 0.0), axis=(0, 1)) / count
  smallest = jnp.asarray(SMALLEST, jnp.float32) ** power
  return jnp.maximum(mean, smallest) ** (1.0 / power)


class GlobalDescriptor(nn.Module):
  """A backbone, its pooling and what is learned on top.

  Attributes:
    backbone: the network whose activations are pooled.
    feature_stage: which stage's.
    pooling: see `pool`.
    regions: "none" pools the whole map. "image" pools a grid of squares laid
      on the image, without the whole (DIR's program); "map" one laid on the
      map, and the whole (Tolias', and the popular program of siaMAC and GeM).
      Regions are l2-normalised, perhaps projected and normalised again, and
      summed.
    levels: of the grid.
    regional_dim: dimensions of the projection of every region (DIR's per-region
      PCA, as a layer); 0 for none.
    dim: dimensions of a projection of the whole descriptor; 0 for none.
    project_unit: it is normalised before that projection, too.
    num_classes: landmarks to tell apart in a classifying stage; 0 for no
      classifier.
    cosine_classifier: see `Delf`.
    frozen_norm: the backbone's BatchNorm keeps its running statistics and uses
      them, also in training. Others would be those of padding too: without it
      the photographs of a batch must fill their array.
  """

  backbone: ResNet | Vgg
  feature_stage: str = "conv5"
  pooling: Pooling = "mac"
  regions: Grid = "none"
  levels: int = 3
  regional_dim: int = 0
  dim: int = 0
  project_unit: bool = True
  num_classes: int = 0
  cosine_classifier: bool = False
  frozen_norm: bool = True

  def setup(self):
    if self.num_classes:
      dense = CosineDense if self.cosine_classifier else nn.Dense
      self.descriptor_classifier = dense(self.num_classes)

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    sizes: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Describes images.

    Args:
      images: [b, h, w, 3] normalised pixels.
      sizes: [b, 2] int32 true heights and widths; None if they fill the array.
      train: use and update batch statistics, unless they are frozen.

    Returns:
      [b, d] float32 of unit length.
    """
    maps = self.backbone(images, sizes, train=train and not self.frozen_norm)
    features = maps[self.feature_stage].astype(jnp.float32)  # [b, h', w', c]
    if sizes is None:
      sizes = jnp.full((len(images), 2), jnp.array(images.shape[1:3]))
    map_sizes = map_size(sizes, self.feature_layers)
    if self.num_classes and self.is_initializing():
      self.descriptor_classifier(jnp.mean(features, axis=(1, 2)))
    power = 3.0
    if self.pooling == "gem":
      power = self.param("power", nn.initializers.constant(3.0), (1,))[0]
    # Zeros outside, where a convolution may have left anything.
    whole = inside_mask(map_sizes, features.shape[1:3])
    features = jnp.where(whole[..., None], features, 0.0)
    if self.regions == "none":
      pooled = jax.vmap(
        lambda f, m: pool(f, m, kind=self.pooling, power=power)
      )(features, whole)
      descriptors = pooled
    else:
      pooled, there = jax.vmap(self._regional, in_axes=(0, 0, 0, None))(
        features, sizes, map_sizes, power
      )
      vectors = l2_normalise(pooled)  # [b, r, c]
      # What the PCA that the projection starts as is learned on.
      self.sow("intermediates", "regions", (vectors, there))
      if self.regional_dim:
        vectors = nn.Dense(self.regional_dim, name="regional")(vectors)
        vectors = l2_normalise(vectors)
      vectors = jnp.where(there[..., None], vectors, 0.0)
      descriptors = jnp.sum(vectors, axis=1)
    if self.dim:
      if self.project_unit:
        descriptors = l2_normalise(descriptors)
      descriptors = nn.Dense(self.dim, name="whitening")(descriptors)
    return l2_normalise(descriptors)

  def outputs(
    self, images: jax.Array, *, stage: str, train: bool = False
  ) -> Outputs:
    """Classifies by the mean of the map, as a network for ImageNet does.

    DIR's first step: neither regions nor projections take part.

    Args:
      images: [b, h, w, 3] normalised pixels that fill the array.
      stage: "descriptors", the only one.
      train: use and update batch statistics, unless they are frozen.

    Raises:
      ValueError: if the stage is another.
    """
    if stage != "descriptors":
      raise ValueError(f"a global descriptor has no stage {stage!r}")
    maps = self.backbone(images, train=train and not self.frozen_norm)
    features = maps[self.feature_stage].astype(jnp.float32)
    pooled = jnp.mean(features, axis=(1, 2))
    return Outputs(descriptors=self.descriptor_classifier(pooled))

  def _regional(
    self,
    features: jax.Array,
    size: jax.Array,
    map_size: jax.Array,
    power: jax.Array | float,
  ) -> tuple[jax.Array, jax.Array]:
    """Pools the regions of one [h', w', c] map: [r, c] and [r] bool."""
    if self.regions == "image":
      found = regions.on_map(
        regions.grid(size, levels=self.levels),
        map_size,
        stride=self.receptive_field.stride,
      )
    else:
      found = regions.grid(map_size, levels=self.levels)
      everything = jnp.concatenate([jnp.zeros(2, jnp.int32), map_size])
      found = regions.Regions(
        jnp.concatenate([everything[None], found.edges]),
        jnp.concatenate([jnp.all(map_size > 0)[None], found.mask]),
      )

    # One at a time: all at once would hold the map once for every region.
    @jax.checkpoint
    def one(edges):
      inside = regions.inside(edges, features.shape[:2])
      return pool(features, inside, kind=self.pooling, power=power)

    return jax.lax.map(one, found.edges), found.mask

  @property
  def feature_layers(self) -> list[receptive_field.Layer]:
    """The spatial layers from the image to the map that is pooled."""
    return self.backbone.layers(self._stage)

  @property
  def descriptor_channels(self) -> int:
    """Dimensions of the descriptor."""
    return self.dim or self.regional_dim or self.backbone.channels(self._stage)

  @property
  def receptive_field(self) -> receptive_field.ReceptiveField:
    """Of the map that is pooled, in pixels of the image."""
    return receptive_field.compose(self.feature_layers)

  @property
  def _stage(self) -> int:
    return int(self.feature_stage.removeprefix("conv"))
