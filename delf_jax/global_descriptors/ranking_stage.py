"""The stage "ranking": what a config may say of it, and how it begins."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from delf_jax import checkpoint
from delf_jax.data.sources import Source
from delf_jax.errors import InputError
from delf_jax.global_descriptors import global_whitening
from delf_jax.models.global_descriptor import GlobalDescriptor

STAGE = "ranking"


@dataclasses.dataclass(frozen=True)
class RankingOptions:
  """What `config.ranking` may say.

  Attributes:
    crop: side of the array that photographs are put into.
    batch_size: in tuples, over all devices of all processes.
    steps: how many.
    schedule: keyword arguments of `optimisers.make_schedule`.
    optimiser: keyword arguments of `optimisers.make_optimiser`.
    loss: "kind" ("contrastive", "triplet" or "average_precision") and keyword
      arguments of that function of `training.ranking_losses`.
    resize: side of the central square that windows are cut from; 0 takes whole
      photographs, as the published systems do.
    pairs: a file of queries and positives (`data.matching_pairs.read_pairs`);
      "" lets any two photographs of a class match.
    negatives: of a tuple of the contrastive loss.
    mine_every: steps.
    pool: photographs that negatives or triplets are looked for among, a sample
      of the training set that is new every time; 0 for all.
    hardest: see `training.mining.draw_triplets`.
    per_class: photographs of a class that come together, of the loss
      average_precision.
    frozen_norm: the backbone's BatchNorm keeps its statistics.
    regions_from: photographs whose regions' PCA the projection of regions
      starts as, where there is one; 0 leaves it as it was.
    augmentation: fields of `data.augmentation.Augmentation`.
    accumulate: parts of a batch, one after the other.
    ema_decay: of running means of the parameters.
    frozen: groups of parameters that stay as they are.
  """

  crop: int
  batch_size: int
  steps: int
  schedule: Mapping[str, Any]
  optimiser: Mapping[str, Any]
  loss: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"kind": "contrastive"}
  )
  resize: int = 0
  pairs: str = ""
  negatives: int = 5
  mine_every: int = 400
  pool: int = 0
  hardest: int = 25
  per_class: int = 4
  frozen_norm: bool = True
  regions_from: int = 0
  augmentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  accumulate: int = 1
  ema_decay: float = 0.0
  frozen: tuple[str, ...] = ()

  @property
  def kind(self) -> str:
    """Of the loss."""
    return self.loss.get("kind", "contrastive")

  @property
  def photographs(self) -> int:
    """Of a tuple."""
    return {
      "contrastive": 2 + self.negatives,
      "average_precision": self.per_class,
    }.get(self.kind, 3)


def check(options: RankingOptions, network: Any) -> None:
  """Refuses what a ranking stage cannot do.

  Raises:
    InputError: if the network has no global descriptor, or an option is unfit.
  """
  if not isinstance(network, GlobalDescriptor):
    raise InputError(
      "the stage 'ranking' learns global descriptors; give "
      "config.model.descriptor, as configs/siamac.py does"
    )
  for name, least in (
    ("mine_every", 1),
    ("negatives", 1),
    ("hardest", 1),
    ("per_class", 2),
  ):
    if getattr(options, name) < least:
      raise InputError(f"config.ranking.{name} must be {least} or more")
  cuts = ("crop_area", "homography", "erasing")
  cut = [name for name in cuts if options.augmentation.get(name)]
  if cut and not options.resize:
    raise InputError(
      f"config.ranking.augmentation.{cut[0]} is of windows; whole photographs "
      f"(resize=0) are not cut"
    )
  if not options.resize and not options.frozen_norm:
    raise InputError(
      "config.ranking.frozen_norm=False would learn the statistics of padding: "
      "whole photographs (resize=0) are padded; give a resize"
    )


def begin(
  model: checkpoint.Model, options: RankingOptions, source: Source
) -> checkpoint.Model:
  """Returns the model that the stage starts with, where it starts anew."""
  if not options.regions_from or not model.network.regional_dim:
    return model
  return global_whitening.start_regional_layer(
    model,
    source,
    photographs=options.regions_from,
    max_side=options.crop,
  )
