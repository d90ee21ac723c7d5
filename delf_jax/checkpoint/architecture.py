"""The network that plain values describe, in a config or in `meta.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from delf_jax.errors import InputError
from delf_jax.models import resnet
from delf_jax.models.delf import Delf
from delf_jax.models.lift import PATCH, Lift
from delf_jax.models.resnet import ResNet
from delf_jax.models.vgg import Vgg

# backbone -> the number of its first stage
FIRST_STAGES = {"resnet": resnet.FIRST_STAGE, "vgg": 1}
# Fields that every module has.
_LINEN = ("parent", "name")


def build_network(
  *,
  units: tuple[int, ...],
  width: int | Sequence[int],
  num_classes: int,
  backbone: str = "resnet",
  layout: str = "torchvision",
  end_stride: int = 1,
  feature_stage: str = "conv4",
  attention_hidden: int = 512,
  pool_normalised: bool = True,
  code_dim: int = 0,
  cosine_classifier: bool = False,
  frozen_norm: bool = False,
  momentum: float = 0.9,
  axis_name: str | None = None,
  dtype: str = "float32",
) -> Delf:
  """Builds the module from plain values, as a config or `meta.json` has them.

  See `Delf`, `ResNet` and `Vgg` (which has no layout) for what they mean.

  Raises:
    InputError: if there is no such backbone, layout or stage.
  """
  if backbone not in FIRST_STAGES:
    raise InputError(
      f"unknown backbone {backbone!r}; expected one of "
      f"{', '.join(FIRST_STAGES)}"
    )
  first = FIRST_STAGES[backbone]
  stages = [f"conv{first + s}" for s in range(len(units))]
  if feature_stage not in stages:
    raise InputError(
      f"no stage {feature_stage!r} in a {backbone} of {len(units)} stages; "
      f"expected one of {', '.join(stages)}"
    )
  if layout not in resnet.LAYOUTS:
    raise InputError(
      f"unknown weight layout {layout!r}; expected one of "
      f"{', '.join(sorted(resnet.LAYOUTS))}"
    )
  if not isinstance(width, int) and (
    backbone == "vgg" or len(width) != len(units)
  ):
    raise InputError(
      f"{len(width)} widths do not fit {len(units)} stages of a {backbone}; "
      f"give one number, or for a resnet one a stage"
    )
  shared = {
    "units": tuple(units),
    "width": width if isinstance(width, int) else tuple(width),
    "momentum": momentum,
    "axis_name": axis_name,
    "dtype": jnp.dtype(dtype),
  }
  return Delf(
    backbone=Vgg(**shared)
    if backbone == "vgg"
    else ResNet(layout=layout, end_stride=end_stride, **shared),
    num_classes=num_classes,
    feature_stage=feature_stage,
    attention_hidden=attention_hidden,
    pool_normalised=pool_normalised,
    code_dim=code_dim,
    cosine_classifier=cosine_classifier,
    frozen_norm=frozen_norm,
  )


def build_lift(
  *,
  kernel: int,
  hinges: Sequence[int],
  orientation_channels: Sequence[int],
  orientation_hidden: int,
  descriptor_layers: Sequence[int],
) -> Lift:
  """Builds LIFT from plain values; see `Lift` for what they mean.

  Raises:
    InputError: if the detector's kernel is even.
  """
  if kernel % 2 == 0:
    raise InputError(
      f"a detector of {kernel} x {kernel} has no middle; give an odd kernel"
    )
  return Lift(
    kernel=kernel,
    hinges=tuple(hinges),
    orientation_channels=tuple(orientation_channels),
    orientation_hidden=orientation_hidden,
    descriptor_layers=tuple(descriptor_layers),
  )


def rebuild(described: Mapping[str, Any]) -> Delf | Lift:
  """Builds the network that `architecture` described."""
  values = dict(described)
  if values.pop("kind", "delf") == "lift":
    return build_lift(**values)
  return build_network(**values)


def architecture(network: Delf | Lift) -> dict[str, Any]:
  """Returns what `rebuild` needs to build the same network."""
  if isinstance(network, Lift):
    names = [field.name for field in dataclasses.fields(network)]
    described = {name: getattr(network, name) for name in names}
    described = {k: v for k, v in described.items() if k not in _LINEN}
    return {"kind": "lift", **described}
  backbone = network.backbone
  described = {"units": list(backbone.units), "width": backbone.width}
  if isinstance(backbone, Vgg):
    described["backbone"] = "vgg"
  else:
    described["layout"] = backbone.layout
    described["end_stride"] = backbone.end_stride
  return {
    **described,
    "feature_stage": network.feature_stage,
    "attention_hidden": network.attention_hidden,
    "pool_normalised": network.pool_normalised,
    "code_dim": network.code_dim,
    "cosine_classifier": network.cosine_classifier,
    "num_classes": network.num_classes,
  }


def abstract_variables(network: Delf | Lift) -> dict[str, Any]:
  """Returns the shapes and types of a network's variables."""
  if isinstance(network, Lift):
    return jax.eval_shape(
      network.init, jax.random.key(0), jnp.zeros((1, PATCH, PATCH))
    )
  network = network.clone(backbone=network.backbone.clone(axis_name=None))
  return jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )


def check_same_architecture(network: Delf, other: Delf, name: str) -> None:
  """Refuses weights of a backbone that another network cannot take.

  Args:
    network: the one to be filled.
    other: the one that the checkpoint holds.
    name: of the checkpoint, for the message.

  Raises:
    InputError: naming every field that differs.
  """
  ours, theirs = architecture(network), architecture(other)
  keys = ("backbone", "units", "width", "layout", "end_stride")
  differing = [
    f"{key} {theirs.get(key)} instead of {ours.get(key)}"
    for key in keys
    if theirs.get(key) != ours.get(key)
  ]
  if differing:
    raise InputError(
      f"{name}: a checkpoint of another network: {', '.join(differing)}; "
      f"change the config's model or start from another checkpoint"
    )
