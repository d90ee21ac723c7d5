"""The stage "distillation": its teacher, and how a student begins."""

import dataclasses
from typing import Any

import jax
import numpy as np

from delf_jax import checkpoint
from delf_jax.errors import InputError
from delf_jax.models.delf import Delf
from delf_jax.training.distillation import Teacher

STAGE = "distillation"


def open_teacher(path: str, network: Any) -> checkpoint.Model:
  """Reads the teacher.

  Args:
    path: of its checkpoint, or the name of one that comes with the package.
    network: the student.

  Raises:
    InputError: if there is none, or it extracts what the student cannot.
  """
  if not path:
    raise InputError(
      "config.distillation.teacher is not given; it is the checkpoint to learn "
      "from, as in --config.distillation.teacher=delf_small"
    )
  model = checkpoint.load_model(path)
  for one, whose in ((network, "the student"), (model.network, "the teacher")):
    if not isinstance(one, Delf):
      raise InputError(
        f"{path}: distillation is of local features, and {whose} "
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
      f"{path}: its features are others than the student's: "
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
