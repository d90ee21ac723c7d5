"""Photographs -> their global descriptors, in the form of one feature each.

As such they go through the same stores, caches and programs as local features.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from delf_jax import checkpoint
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.features import local_features, pyramid, resolutions
from delf_jax.features.local_features import LocalFeatures
from delf_jax.models import resnet
from delf_jax.models.delf import folded

# Keyword arguments of `resolutions.make_describer` that users may change.
OPTIONS = ("scales", "sides", "power", "resize")

# A photograph, or a part of one, and the (height, width) of the whole.
Describe = Callable[[Photograph, tuple[int, int]], LocalFeatures]


def settle(
  model: checkpoint.Model, options: Mapping[str, Any], max_side: int
) -> tuple[dict[str, Any], int]:
  """Returns what a photograph is described with.

  Args:
    model: recommends options.
    options: override them; scales take the place of sides.
    max_side: longest side that photographs are reduced to first. With sides it
      is the largest of these.

  Returns:
    options of `resolutions.make_describer`, and the longest side.

  Raises:
    InputError: if there is no such option.
  """
  unknown = sorted(options.keys() - set(OPTIONS))
  if unknown:
    raise InputError(
      f"{', '.join(unknown)}: not an option of a global descriptor; it has "
      f"{', '.join(OPTIONS)}"
    )
  settled = {**model.extraction, **options}
  for one, other in (("scales", "sides"), ("sides", "scales")):
    if options.get(one):
      settled.pop(other, None)
  for name in ("scales", "sides"):
    if name in settled:
      settled[name] = tuple(settled[name])
  if settled.get("sides"):
    max_side = max(settled["sides"])
  return settled, max_side


def describer(
  model: checkpoint.Model, *, max_side: int, **options: Any
) -> Describe:
  """Builds the description of one photograph by a model.

  Args:
    model: a loaded checkpoint of a `GlobalDescriptor`.
    max_side: longest side of any photograph it will be given.
    options: of `resolutions.make_describer`.
  """
  network, variables = folded(model.network, model.variables)
  describe = resolutions.make_describer(
    resolutions.Network(
      describe=network.apply,
      map_size=lambda size: resnet.map_size(size, network.feature_layers),
      normalise=model.normalisation,
    ),
    max_side=max_side,
    **options,
  )
  variables = jax.device_put(variables)
  learned = jax.device_put(model.reduction)
  levels = {name: options.get(name, ()) for name in ("scales", "sides")}

  def describe_one(
    photograph: Photograph, whole: tuple[int, int]
  ) -> LocalFeatures:
    size = photograph.pixels.shape[:2]
    original = photograph.height, photograph.width
    canvas = np.zeros(
      (1, *pyramid.canvas_for(*size, max_side=max_side), 3), np.uint8
    )
    canvas[0, : size[0], : size[1]] = photograph.pixels
    sizes = resolutions.level_sizes(size, original, whole, **levels)
    found = np.asarray(
      describe(variables, learned, canvas, np.array([size]), np.array([sizes]))
    )
    return as_features(found[0], original)

  return describe_one


def as_features(descriptor: np.ndarray, size: tuple[int, int]) -> LocalFeatures:
  """Puts a [d] descriptor into the form of one feature in the middle.

  Zeros, what a photograph too small for the network has, are no feature.
  """
  if not descriptor.any():
    return local_features.empty(len(descriptor))
  return LocalFeatures(
    locations=np.array([size], np.float32) / 2,
    scales=np.ones(1, np.float32),
    scores=np.ones(1, np.float32),
    descriptors=descriptor[None].astype(np.float32),
    mask=np.ones(1, bool),
  )
