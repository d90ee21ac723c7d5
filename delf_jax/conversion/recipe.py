"""What a source makes of a weight file, before any tensor is moved."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax.conversion import names
from delf_jax.conversion.names import Naming, Pair
from delf_jax.errors import InputError
from delf_jax.features.reduction import Reduction

# Of an error message's lists.
MOST_NAMES = 8
PAPER_DIM = 40  # of the paper's reduction


@dataclasses.dataclass(frozen=True)
class Options:
  """What a user may say of weights that their file does not.

  Attributes:
    layout: of Keras weights, a key of `resnet.LAYOUTS`.
    stride: of the released systems' features, 16 or 32.
    feature_stage: whose output the features are, such as "conv5".
    pca: file of a PyTorch port's reduction (HDF5).
    pca_dim: dimensions that are kept.
    whiten: divide them by their standard deviations.
    extraction: overrides what the weights recommend.
  """

  layout: str | None = None
  stride: int = 32
  feature_stage: str | None = None
  pca: str | None = None
  pca_dim: int | None = None
  whiten: bool | None = None
  extraction: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a source makes of a file, before any tensor is looked at.

  Attributes:
    architecture: keyword arguments of `build_network`.
    tensors: theirs, by the names that the pairs use.
    pairs: which of theirs is which of ours.
    normalisation: see `Converted`.
    extraction: likewise.
    ignored: regular expression of tensors that are left out on purpose.
    reduction: see `Converted`.
    notes: likewise.
  """

  architecture: dict[str, Any]
  tensors: Mapping[str, np.ndarray]
  pairs: list[Pair]
  normalisation: str
  extraction: dict[str, Any]
  ignored: str = "$^"
  reduction: Reduction | None = None
  notes: tuple[str, ...] = ()


def some(found: Sequence[str]) -> str:
  """Lists the first names, and says how many more there are."""
  shown = ", ".join(found[:MOST_NAMES])
  more = len(found) - MOST_NAMES
  return shown + (f" and {more} more" if more > 0 else "")


def guess(tensors: Mapping[str, Any]) -> str:
  """Says what a file's tensors look like; empty if like nothing known."""

  def has(*wanted: str) -> bool:
    return all(name in tensors for name in wanted)

  if has("adpool.p"):
    return "--from dir_pytorch"
  if has("features.4.0.conv1.weight") or has("features.0.weight", "pool.p"):
    return "--from siamac_pytorch"
  if has("conv1.weight", "layer1.0.conv3.weight"):
    return "--from torchvision (or timm)"
  if has("conv1.weight", "layer1.0.conv2.weight"):
    return "a ResNet-18 or -34 of PyTorch, which has no bottleneck units"
  if has("conv1.0.weight", "layer1.0.conv3.weight"):
    return "a ResNet of timm with three convolutions in its stem"
  if has("features.0.weight", "features.28.weight"):
    return "--from vgg16"
  if has("base.0.weight", "base.4.0.conv1.weight"):
    return "--from delf_pytorch"
  if has("conv1_conv/kernel") or has("res2a_branch2a/kernel"):
    return "--from keras"
  if has("backbone/conv1/kernel"):
    return "--from tf_delf2"
  if any(has(f"{scope}/conv1/weights") for scope in names.SLIM_SCOPES):
    return "--from tf_delf"
  return ""


def advice(tensors: Mapping[str, Any], source: str) -> str:
  """Ends an error message with what the file looks like, if not `source`."""
  found = guess(tensors)
  if found and source not in found:
    return f". It looks like {found}"
  if not tensors:
    return ". The file holds no tensors"
  return ""


def not_there(
  source: str, path: Path, wanted: str, tensors: Mapping[str, Any]
) -> InputError:
  """The error for a file without even the first tensors of its source."""
  here = some(sorted(tensors)) or "nothing"
  return InputError(
    f"{path}: not the weights of --from {source}: missing {wanted}; it holds "
    f"{here}{advice(tensors, source)}"
  )


def resnet_architecture(
  naming: Naming,
  tensors: Mapping[str, np.ndarray],
  *,
  layout: str,
  source: str,
  path: Path,
) -> dict[str, Any]:
  """Reads units and width off the tensors' names and shapes."""
  stem = naming.stem[0] + naming.weight
  units = naming.units(tensors)
  if stem not in tensors or len(units) < 3:
    wanted = stem
    if stem in tensors:
      stage = names.FIRST_STAGE + len(units)
      wanted = naming.branch(stage, 1, 3)[0] + naming.weight
    raise not_there(source, path, wanted, tensors)
  shape = tensors[stem].shape
  return {
    "units": units,
    "width": shape[0] if naming.kernel == "torch" else shape[-1],
    "layout": layout,
    "attention_hidden": 0,
  }


def backbone_only(score: str = "l2_norm") -> dict[str, Any]:
  return {"score": score, "max_features": 1000, "resize": "half_pixel"}


def stage_of(options: Options, default: str = "conv4") -> dict[str, str]:
  return {"feature_stage": options.feature_stage or default}


def keep_dimensions(
  *,
  mean: np.ndarray,
  matrix: np.ndarray,
  variances: np.ndarray | None,
  dim: int,
  whiten: bool,
  path: Path,
) -> Reduction:
  """Keeps the first `dim` rows of a projection.

  Raises:
    InputError: if the parts do not fit each other or `dim`.
  """
  mean, matrix = np.ravel(mean), np.asarray(matrix)
  if matrix.ndim != 2 or matrix.shape[1] != len(mean) or dim > len(matrix):
    raise InputError(
      f"{path}: its PCA cannot give {dim} dimensions: the mean has the shape "
      f"{mean.shape} and the projection {matrix.shape}"
    )
  deviations = np.ones(dim)
  if whiten:
    if variances is None or np.size(variances) < dim:
      raise InputError(
        f"{path}: whitening needs the variances of its PCA, {dim} of them"
      )
    deviations = np.sqrt(np.ravel(variances)[:dim])
    if not (deviations > 0).all():
      raise InputError(
        f"{path}: some variances of its PCA are not positive; take fewer "
        f"dimensions (--pca_dim) or do not whiten"
      )
  return Reduction(
    mean=np.asarray(mean, np.float32),
    components=np.asarray(matrix[:dim], np.float32),
    deviations=np.asarray(deviations, np.float32),
  )
