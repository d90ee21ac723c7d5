"""Weights that others trained -> our networks, tensor by tensor."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax.checkpoint import abstract_variables, build_network
from delf_jax.checkpoint.arrays import named
from delf_jax.conversion import (
  global_sources,
  names,
  tensorflow_sources,
  torch_sources,
  weight_files,
)
from delf_jax.conversion.recipe import Options, Recipe, advice, some
from delf_jax.conversion.weight_files import WeightFile
from delf_jax.errors import InputError
from delf_jax.features.reduction import Reduction
from delf_jax.models.delf import Delf
from delf_jax.models.global_descriptor import GlobalDescriptor

SOURCES: Mapping[str, Callable[[WeightFile, Path, Options], Recipe]] = {
  "torchvision": torch_sources.torchvision,
  "timm": torch_sources.torchvision,
  "keras": tensorflow_sources.keras,
  "tf_delf": tensorflow_sources.tf_delf,
  "tf_delf2": tensorflow_sources.tf_delf2,
  "delf_pytorch": torch_sources.delf_pytorch,
  "vgg16": torch_sources.vgg16,
  "siamac_pytorch": global_sources.siamac_pytorch,
  "dir_pytorch": global_sources.dir_pytorch,
}


@dataclasses.dataclass(frozen=True)
class Converted:
  """A model of ours with the weights of others.

  Attributes:
    network: the module.
    variables: its parameters and statistics.
    normalisation: a key of `NORMALISATIONS`.
    reduction: L2 -> PCA -> L2, or None.
    extraction: see `checkpoint.Model`.
    provenance: source, file and hash.
    notes: what a user should know, a sentence each.
  """

  network: Delf | GlobalDescriptor
  variables: dict[str, Any]
  normalisation: str
  reduction: Reduction | None
  extraction: dict[str, Any]
  provenance: dict[str, Any]
  notes: tuple[str, ...]


def convert(
  source: str, path: str | os.PathLike, options: Options | None = None
) -> Converted:
  """Converts a weight file.

  Args:
    source: a key of `SOURCES`.
    path: file, directory or checkpoint prefix.
    options: see there.

  Raises:
    InputError: if the file cannot be read, or its tensors are not those of
      the source: then it lists them and guesses the right one.
  """
  options = options or Options()
  file = weight_files.read(path)
  recipe = SOURCES[source](file, Path(path), options)
  network = build_network(num_classes=0, **recipe.architecture)
  variables = _take(recipe, network, source, path)
  sha256, size = weight_files.fingerprint(path)
  return Converted(
    network=network,
    variables=variables,
    normalisation=recipe.normalisation,
    reduction=recipe.reduction,
    extraction={**recipe.extraction, **options.extraction},
    provenance={
      "source": source,
      "weights": Path(path).name,
      "bytes": size,
      "sha256": sha256,
    },
    notes=recipe.notes,
  )


def _take(
  recipe: Recipe,
  network: Delf | GlobalDescriptor,
  source: str,
  path: str | os.PathLike,
) -> dict[str, Any]:
  """Lays their tensors out as ours, all of them and no other."""
  tensors = recipe.tensors
  taken = {
    pair.ours: names.to_ours(pair, tensors[pair.theirs])
    for pair in recipe.pairs
    if pair.theirs in tensors
  }
  theirs = {pair.ours: pair.theirs for pair in recipe.pairs}
  expected = named(abstract_variables(network))
  missing = sorted(set(theirs.values()) - tensors.keys())
  left = [
    name
    for name in sorted(tensors.keys() - set(theirs.values()))
    if not re.search(recipe.ignored, name)
  ]
  misshapen = [
    f"{theirs[name]} {tensors[theirs[name]].shape}"
    for name, value in taken.items()
    if value.shape != expected[name].shape
  ]
  broken = [
    theirs[name]
    for name, value in taken.items()
    if not np.isfinite(value).all()
  ]
  problems = [
    f"{what} {some(found)}"
    for what, found in (
      ("missing", missing),
      ("unexpected", left),
      ("of another shape", misshapen),
      ("not finite", broken),
    )
    if found
  ]
  if problems:
    raise InputError(
      f"{path}: not the weights of --from {source}: {'; '.join(problems)}"
      f"{advice(tensors, source)}"
    )
  return names.nested(taken)
