"""A LIFT checkpoint, ready to extract photographs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from delf_jax import checkpoint
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.features import canvas, lift_features, local_features
from delf_jax.features.local_features import LocalFeatures
from delf_jax.models import lift


def lift_extractor(
  model: checkpoint.Model, *, max_side: int, **options: Any
) -> Callable[[Photograph], LocalFeatures]:
  """Builds the extraction of one photograph by LIFT's three networks.

  Args:
    model: a loaded checkpoint of a `Lift`.
    max_side: longest side of any photograph it will be given.
    options: override `model.extraction`; keyword arguments of
      `lift_features.make_extractor`.

  Returns:
    photograph -> its features, with locations in the pixels of the upright
    original.

  Raises:
    InputError: if an option does not apply.
  """
  unknown = sorted({"score", "iou_threshold"} & options.keys())
  if unknown:
    raise InputError(f"{', '.join(unknown)}: not an option of LIFT's features")
  network, normalise = model.network, model.normalisation

  def apply(variables, values, *, method):
    return network.apply(variables, values, method=method)

  extract = lift_features.make_extractor(
    lift_features.Network(
      detect=functools.partial(apply, method="detect"),
      orient=functools.partial(apply, method="orient"),
      describe=functools.partial(apply, method="describe"),
      grey=lambda pixels: lift.grey(normalise(pixels)),
      border=network.border,
    ),
    **{**model.extraction, **options},
  )
  variables = jax.device_put(model.variables)
  learned = jax.device_put(model.reduction)

  def extract_one(photograph: Photograph) -> LocalFeatures:
    padded, size = canvas.on_canvas(photograph.pixels, max_side=max_side)
    features = jax.device_get(extract(variables, learned, padded, size))
    return canvas.in_original(
      local_features.compact(features),
      photograph.pixels.shape[:2],
      (photograph.height, photograph.width),
    )

  return extract_one
