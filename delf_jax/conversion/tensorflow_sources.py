"""Networks that TensorFlow trained: Keras' and the released DELFs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax.conversion import names
from delf_jax.conversion.recipe import (
  PAPER_DIM,
  Options,
  Recipe,
  backbone_only,
  keep_dimensions,
  not_there,
  resnet_architecture,
  stage_of,
)
from delf_jax.conversion.weight_files import WeightFile
from delf_jax.features.interchange import read_datum
from delf_jax.features.reduction import Reduction
from delf_jax.models import resnet

# The score thresholds and the reductions' dimensions that come with the
# released models, by a part of their file's name; the scores of each model
# have a range of their own.
THRESHOLDS = {
  "delf_v1_": 100.0,
  "delf_gld_": 100.0,
  "r50delg_gld_": 175.0,
  "r50delg_gldv2clean_": 454.6,
}
TF2_FIRST = "backbone/conv1/kernel"
PCA_DIMS = {"delf_v1_": 40, "delf_gld_": 128}


def keras(file: WeightFile, path: Path, options: Options) -> Recipe:
  """ImageNet ResNets of Keras, with the names of 2015 or those since."""
  tensors = _below("conv1_conv/kernel", file.tensors)
  modern = tensors is not None
  naming = names.KERAS if modern else names.KERAS_2015
  if tensors is None:
    tensors = _below("res2a_branch2a/kernel", file.tensors) or file.tensors
  layout = options.layout or ("keras_applications" if modern else "keras")
  architecture = resnet_architecture(
    naming, tensors, layout=layout, source="keras", path=path
  )
  notes = ()
  if not modern and options.layout is None:
    notes = (
      "these are Keras' weights of 2015; they get the layout of the released "
      "TF2 DELF, which started from them (--layout=keras_applications for the "
      "padding and epsilon of today's Keras)",
    )
  return Recipe(
    architecture={**architecture, **stage_of(options)},
    tensors=tensors,
    pairs=naming.resnet(
      architecture["units"], conv_bias=resnet.LAYOUTS[layout].conv_bias
    ),
    normalisation="caffe",
    extraction=backbone_only(),
    ignored=r"^(predictions|fc1000|probs)/",
    notes=notes,
  )


def tf_delf(file: WeightFile, path: Path, options: Options) -> Recipe:
  """The released DELF of TensorFlow 1, or a SavedModel of TensorFlow 2."""
  if _below(TF2_FIRST, file.tensors) is not None:
    return tf_delf2(file, path, options)
  for scope in names.SLIM_SCOPES:
    if f"{scope}/conv1/weights" in file.tensors:
      break
  else:
    raise not_there("tf_delf", path, "resnet_v1_50/conv1/weights", file.tensors)
  naming = names.slim(scope)
  architecture = resnet_architecture(
    naming, file.tensors, layout="slim", source="tf_delf", path=path
  )
  architecture |= stage_of(options)
  pairs = naming.resnet(architecture["units"], conv_bias=False)
  where = names.SLIM_ATTENTION
  if f"{where}/conv1/weights" not in file.tensors:
    return Recipe(
      architecture=architecture,
      tensors=file.tensors,
      pairs=pairs,
      normalisation="slim",
      extraction={**backbone_only(), "resize": "legacy"},
      ignored=r"^(global_step|.*/logits/|.*/mean_rgb)",
      notes=("it has no attention: an ImageNet network of TF-Slim",),
    )
  pairs += names.attention(
    naming, f"{where}/conv1", f"{where}/conv1/BatchNorm", f"{where}/conv2"
  )
  extraction, notes = _released_extraction(file, path, resize="legacy")
  reduction, also = _released_reduction(file, path, options)
  return Recipe(
    architecture={
      **architecture,
      "attention_hidden": file.tensors[f"{where}/conv1/weights"].shape[-1],
      "end_stride": options.stride // 16,
    },
    tensors=file.tensors,
    pairs=pairs,
    normalisation="unit",
    extraction=extraction,
    ignored=r"^global_step$|/logits/|^attention_block/(?!attention/)",
    reduction=reduction,
    notes=notes + also,
  )


def _released_extraction(
  file: WeightFile, path: Path, *, resize: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Extraction settings of a released model, and what to say of them."""
  settings = file.tensorflow.settings if file.tensorflow else {}
  extraction = {
    "score": "attention",
    "max_features": settings.get("max_feature_num", 1000),
    "resize": resize,
  }
  if settings.get("image_scales"):
    extraction["scales"] = list(settings["image_scales"])
  if "iou_threshold" in settings:
    extraction["iou_threshold"] = settings["iou_threshold"]
  threshold = settings.get("score_threshold", _by_name(THRESHOLDS, path))
  if threshold is None:
    return extraction, (
      "nothing says from which score its features are any good: all are kept "
      "up to --max_features (--score_threshold sets it)",
    )
  extraction["score_threshold"] = threshold
  return extraction, ()


def _by_name(table: Mapping[str, Any], path: Path) -> Any:
  """Looks a released model up by the names in its path; None if unknown."""
  names_in_path = "/".join(path.absolute().parts[-3:]) + "_"
  for part, value in table.items():
    if part in names_in_path:
      return value
  return None


def _released_reduction(
  file: WeightFile, path: Path, options: Options
) -> tuple[Reduction | None, tuple[str, ...]]:
  """The released PCA, if its files are there."""
  found = file.tensorflow
  settings = found.settings if found else {}
  if settings.get("use_pca") is False:
    return None, ()
  if not found or not found.mean or not found.projection:
    return None, ("no PCA files beside it: descriptors are not reduced",)
  return keep_dimensions(
    mean=read_datum(found.mean),
    matrix=read_datum(found.projection),
    variances=read_datum(found.variances) if found.variances else None,
    dim=options.pca_dim
    or settings.get("pca_dim")
    or _by_name(PCA_DIMS, path)
    or PAPER_DIM,
    whiten=settings.get("use_whitening", False)
    if options.whiten is None
    else options.whiten,
    path=path,
  ), ()


def _below(
  first: str, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
  """A model's tensors by its own names, whatever model it is part of.

  Args:
    first: the name of its first kernel.
    tensors: by names that may all have something in front.

  Returns:
    None if there is no such kernel.
  """
  for name in tensors:
    prefix = name.removesuffix(first)
    if name.endswith(first) and (not prefix or prefix.endswith("/")):
      return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
      }
  return None


def tf_delf2(file: WeightFile, path: Path, options: Options) -> Recipe:
  """The released training code of TensorFlow 2, with or without codes."""
  tensors = _below(TF2_FIRST, file.tensors)
  if tensors is None:
    raise not_there("tf_delf2", path, TF2_FIRST, file.tensors)
  architecture = resnet_architecture(
    names.TF2, tensors, layout="keras", source="tf_delf2", path=path
  )
  pairs = names.TF2.resnet(architecture["units"], conv_bias=True)
  pairs += names.attention(
    names.TF2, "attention/conv1", "attention/bn_conv1", "attention/conv2"
  )
  _move_bias(tensors, "attention/conv1/bias", "attention/bn_conv1/moving_mean")
  code_dim = 0
  if "autoencoder/conv1/kernel" in tensors:
    code_dim = tensors["autoencoder/conv1/kernel"].shape[-1]
    for name in ("conv1", "conv2"):
      pairs += names.TF2.conv(
        f"autoencoder.{name}", f"autoencoder/{name}", bias=True
      )
  extraction, notes = _released_extraction(file, path, resize="half_pixel")
  reduction = None
  if not code_dim:
    reduction, also = _released_reduction(file, path, options)
    notes += also
  hidden = tensors.get("attention/conv2/kernel", np.zeros((1, 1, 1, 1))).shape
  return Recipe(
    architecture={
      **architecture,
      **stage_of(options),
      "attention_hidden": hidden[2],
      "code_dim": code_dim,
      "end_stride": options.stride // 16,
    },
    tensors=tensors,
    pairs=pairs,
    normalisation="unit",
    extraction=extraction,
    ignored=r"^(desc|attn)_classification/|^backbone/embedding_layer/"
    r"|optimizer|^save_counter$|^step$|^iter$",
    reduction=reduction,
    notes=notes,
  )


def _move_bias(tensors: dict[str, np.ndarray], bias: str, mean: str) -> None:
  """Takes a bias before BatchNorm out of its running mean instead."""
  if bias in tensors and mean in tensors:
    tensors[mean] = tensors[mean] - tensors.pop(bias)
