"""The stage "distillation": what a config may say of it, and how it begins."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from delf_jax import checkpoint
from delf_jax.errors import InputError
from delf_jax.models.delf import Delf
from delf_jax.training.distillation import Teacher

STAGE = "distillation"


@dataclasses.dataclass(frozen=True)
class DistillationOptions:
  """What `config.distillation` may say.

  Attributes:
    teacher: the checkpoint that is learned from: a path, or `delf_small`.
    sources: see `data.pair_sources.open_pairs`; both views of a pair are
      learned from, each by itself.
    crop: side of the views.
    batch_size: in pairs of views, over all devices of all processes.
    steps: how many.
    schedule: keyword arguments of `optimisers.make_schedule`.
    optimiser: keyword arguments of `optimisers.make_optimiser`.
    views: fields of `data.views.Views`.
    augmentation: fields of `data.augmentation.Augmentation`.
    held_out: sources to validate on; none of them has to have a path.
    accumulate: parts of a batch, one after the other.
    ema_decay: of running means of the parameters.
    frozen: groups of parameters that stay as they are.
  """

  teacher: str
  sources: Mapping[str, Mapping[str, Any]]
  crop: int
  batch_size: int
  steps: int
  schedule: Mapping[str, Any]
  optimiser: Mapping[str, Any]
  views: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  augmentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  held_out: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  accumulate: int = 1
  ema_decay: float = 0.0
  frozen: tuple[str, ...] = ()

  # What pairs of views need of points, which are not looked at here.
  points = 1
  family = 1


def open_teacher(
  options: DistillationOptions, network: Any
) -> checkpoint.Model:
  """Reads the teacher.

  Args:
    options: of the stage.
    network: the student.

  Raises:
    InputError: if there is none, or it extracts what the student cannot.
  """
  if not options.teacher:
    raise InputError(
      "config.distillation.teacher is not given; it is the checkpoint to learn "
      "from, as in --config.distillation.teacher=delf_small"
    )
  model = checkpoint.load_model(options.teacher)
  for one, whose in ((network, "the student"), (model.network, "the teacher")):
    if not isinstance(one, Delf):
      raise InputError(
        f"{options.teacher}: distillation is of local features, and {whose} "
        f"has none; see configs/delf_small.py"
      )
  differing = [
    f"{what} {theirs} instead of {ours}"
    for what, ours, theirs in (
      (
        "descriptors of dimension",
        network.descriptor_channels,
        model.network.descriptor_channels,
      ),
      (
        "a stride of",
        network.receptive_field.stride,
        model.network.receptive_field.stride,
      ),
      (
        "attention",
        bool(network.attention_hidden),
        bool(model.network.attention_hidden),
      ),
    )
    if ours != theirs
  ]
  if differing:
    raise InputError(
      f"{options.teacher}: its features are others than the student's: "
      f"{', '.join(differing)}; change config.model"
    )
  return model


def make_teacher(model: checkpoint.Model) -> Teacher:
  """Returns what the teacher extracts, as a function of pixels alone."""
  backbone = model.network.backbone.clone(axis_name=None)
  network = model.network.clone(backbone=backbone)

  def teach(pixels):
    return network.apply(
      model.variables, model.normalisation(pixels), method="dense"
    )

  return teach


def begin(
  student: checkpoint.Model, teacher: checkpoint.Model
) -> checkpoint.Model:
  """Gives a new student those of its teacher's arrays that fit.

  An array fits if one of the same name has the same shape; classifiers are
  left as they are.
  """
  theirs = dict(jax.tree_util.tree_flatten_with_path(teacher.variables)[0])

  def take(path, ours):
    found = theirs.get(path)
    head = any(str(part.key).endswith("classifier") for part in path)
    if head or found is None or np.shape(found) != np.shape(ours):
      return ours
    return np.asarray(found, ours.dtype)

  return dataclasses.replace(
    student,
    variables=jax.tree_util.tree_map_with_path(take, student.variables),
  )
