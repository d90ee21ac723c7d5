"""Global descriptors that PyTorch trained: siaMAC's and DIR's programs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax.conversion import names
from delf_jax.conversion.names import Pair
from delf_jax.conversion.recipe import (
  Options,
  Recipe,
  keep_dimensions,
  not_there,
  resnet_architecture,
  some,
)
from delf_jax.conversion.weight_files import WeightFile
from delf_jax.errors import InputError
from delf_jax.features.reduction import Reduction
from delf_jax.models.normalisation import NORMALISATIONS

# Of R-MAC and of regional pooling in the program of siaMAC's authors.
_LEVELS = 3
# Its poolings, and ours: pooling and regions.
_POOLINGS = {
  "mac": ("mac", "none"),
  "spoc": ("spoc", "none"),
  "gem": ("gem", "none"),
  "rmac": ("mac", "map"),
}
# What its extraction of several scales is called.
_SCALES = {"ms": (1.0, 2**-0.5, 0.5), "ss": (1.0,)}
# The least that GeM takes the power of is the same in both programs.
_SIDES = (800,)
# The power of the variances that DIR's program divides by.
_WHITENING_POWER = 0.25


def siamac_pytorch(file: WeightFile, path: Path, options: Options) -> Recipe:
  """The networks of siaMAC's authors, also with R-MAC, SPoC and GeM.

  They keep VGG's or ResNet's layers in a sequence called `features`; beside
  them a power, a projection of every region (`pool.whiten`) and one of the
  whole (`whiten`); and beside the weights what was pooled how (`meta`) and
  learned whitenings (`meta.Lw`), of which that for several scales is taken.
  """
  source = "siamac_pytorch"
  tensors = dict(file.tensors)
  if "features.0.weight" not in tensors:
    raise not_there(source, path, "features.0.weight", tensors)
  meta = _mapping(file.saved.get("meta"))
  places = {"0": "conv1", "1": "bn1"} | {
    str(4 + stage): f"layer{stage + 1}" for stage in range(4)
  }
  if "features.4.0.conv1.weight" in tensors:
    tensors = {_renamed(name, places): tensors[name] for name in tensors}
    architecture = resnet_architecture(
      names.TORCH, tensors, layout="torchvision", source=source, path=path
    )
    pairs = names.TORCH.resnet(architecture["units"], conv_bias=False)
  else:
    architecture = {
      "backbone": "vgg",
      "units": tuple(len(places) for places in names.VGG16_PLACES),
      "width": len(tensors["features.0.weight"]),
    }
    pairs = names.vgg16()
  pooling = _text(meta.get("pooling"), _guess_pooling(tensors))
  if pooling not in _POOLINGS:
    raise InputError(
      f"{path}: pools by {pooling!r}; expected one of {', '.join(_POOLINGS)}"
    )
  kind, regions = _POOLINGS[pooling]
  descriptor: dict[str, Any] = {"pooling": kind, "regions": regions}
  prefix = "pool"
  if meta.get("regional") or any("pool.rpool" in name for name in tensors):
    descriptor["regions"], prefix = "map", "pool.rpool"
  if descriptor["regions"] != "none":
    descriptor["levels"] = _LEVELS
  if kind == "gem":
    pairs = [*pairs, Pair("params.power", f"{prefix}.p")]
  for field, ours, theirs in (
    ("regional_dim", "regional", "pool.whiten"),
    ("dim", "whitening", "whiten"),
  ):
    if f"{theirs}.weight" in tensors:
      descriptor[field] = len(tensors[f"{theirs}.weight"])
      pairs = [*pairs, *names.linear(ours, theirs)]
  if "regional_dim" in descriptor and descriptor["regions"] == "none":
    descriptor |= {"regions": "map", "levels": _LEVELS}
  reduction, notes = _learned(meta, options, path)
  notes += _pixels(meta)
  return Recipe(
    architecture=_of_stage(architecture, options, descriptor),
    tensors=tensors,
    pairs=pairs,
    normalisation="imagenet",
    extraction={"scales": _SCALES["ms"]},
    ignored=r"num_batches_tracked$|^classifier\.",
    reduction=reduction,
    notes=notes,
  )


def dir_pytorch(file: WeightFile, path: Path, options: Options) -> Recipe:
  """The networks of DIR's authors in PyTorch (their later program).

  torchvision's names, GeM's power as `adpool.p` (the maximum without it), and
  the projection `fc` of what was pooled, as long as it is.
  """
  source = "dir_pytorch"
  architecture = resnet_architecture(
    names.TORCH, file.tensors, layout="torchvision", source=source, path=path
  )
  pairs = names.TORCH.resnet(architecture["units"], conv_bias=False)
  given = _mapping(file.saved.get("model_options"))
  descriptor: dict[str, Any] = {"pooling": "mac"}
  if "adpool.p" in file.tensors:
    descriptor["pooling"] = "gem"
    pairs = [*pairs, Pair("params.power", "adpool.p")]
  elif _text(given.get("pooling"), "max") == "avg":
    descriptor["pooling"] = "spoc"
  ignored = r"num_batches_tracked$"
  if given.get("without_fc"):
    ignored += r"|^fc\."
  else:
    if "fc.weight" not in file.tensors:
      raise not_there(source, path, "fc.weight", file.tensors)
    descriptor["dim"] = len(file.tensors["fc.weight"])
    descriptor["project_unit"] = bool(given.get("norm_features", False))
    pairs = [*pairs, *names.linear("whitening", "fc")]
  return Recipe(
    architecture=_of_stage(architecture, options, descriptor),
    tensors=file.tensors,
    pairs=pairs,
    normalisation="imagenet",
    extraction={"sides": _SIDES},
    ignored=ignored,
    reduction=_pca(file, options, path),
  )


def _of_stage(
  architecture: Mapping[str, Any], options: Options, descriptor: dict[str, Any]
) -> dict[str, Any]:
  known = {k: v for k, v in architecture.items() if k != "attention_hidden"}
  stage = options.feature_stage or "conv5"
  return {**known, "feature_stage": stage, "descriptor": descriptor}


def _renamed(name: str, places: Mapping[str, str]) -> str:
  """Gives a layer of the sequence `features` the name it has in ResNet."""
  found = re.match(r"features\.(\d+)\.(.*)", name)
  if found is None or found[1] not in places:
    return name
  return f"{places[found[1]]}.{found[2]}"


def _guess_pooling(tensors: Mapping[str, np.ndarray]) -> str:
  powers = ("pool.p", "pool.rpool.p")
  return "gem" if any(name in tensors for name in powers) else "mac"


def _mapping(value: Any) -> Mapping[Any, Any]:
  return value if isinstance(value, Mapping) else {}


def _text(value: Any, default: str) -> str:
  return value if isinstance(value, str) else default


def _learned(
  meta: Mapping[str, Any], options: Options, path: Path
) -> tuple[Reduction | None, tuple[str, ...]]:
  """Takes the whitening that was learned beside the network, if one was."""
  learned = _mapping(meta.get("Lw"))
  if not learned or options.pca_dim == 0:
    return None, ()
  name = max(learned)  # retrieval-SfM-30k before -120k
  kinds = _mapping(learned[name])
  kind = next((kind for kind in _SCALES if kind in kinds), None)
  if kind is None:
    raise InputError(
      f"{path}: its learned whitening {name!r} is for {some(list(kinds))}; "
      f"expected ms or ss"
    )
  found = _mapping(kinds[kind])
  mean, matrix = (np.asarray(found[key]) for key in ("m", "P"))
  note = f"whitened as learned on {name} ({kind})"
  others = sorted(set(learned) - {name})
  if others:
    note += f"; there are others, of {some(others)}"
  return (
    keep_dimensions(
      mean=mean,
      matrix=matrix,
      variances=None,
      dim=options.pca_dim or len(matrix),
      whiten=False,
      path=path,
    ),
    (note,),
  )


def _pixels(meta: Mapping[str, Any]) -> tuple[str, ...]:
  """Says so if the network was trained on other pixels than ImageNet's."""
  expected = NORMALISATIONS["imagenet"]
  for key, ours in (("mean", expected.mean), ("std", expected.scale)):
    value = meta.get(key)
    if value is not None and not np.allclose(
      255 * np.ravel(value), ours, atol=0.2
    ):
      return (
        f"it says that its pixels had the {key} {tuple(np.ravel(value))}, and "
        f"is given others here",
      )
  return ()


def _pca(file: WeightFile, options: Options, path: Path) -> Reduction | None:
  """Takes the PCA beside the network: that of the landmarks, if it is there."""
  kept = _mapping(file.saved.get("pca"))
  if not kept or options.pca_dim == 0:
    return None
  name = "Landmarks_clean" if "Landmarks_clean" in kept else sorted(kept)[0]
  found = _mapping(kept[name])
  if not {"mean_", "components_", "explained_variance_"} <= found.keys():
    raise InputError(
      f"{path}: its PCA {name!r} holds {some(sorted(map(str, found)))}, and "
      f"not mean_, components_ and explained_variance_"
    )
  variances = np.asarray(found["explained_variance_"], np.float64)
  return keep_dimensions(
    mean=np.asarray(found["mean_"]),
    matrix=np.asarray(found["components_"]),
    # A standard deviation is the variance to the power 0.5.
    variances=variances ** (2 * _WHITENING_POWER),
    dim=options.pca_dim or len(found["components_"]),
    whiten=True if options.whiten is None else options.whiten,
    path=path,
  )
