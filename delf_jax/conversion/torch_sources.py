"""Networks that PyTorch trained: torchvision's, timm's, and a port of DELF."""

import struct
from pathlib import Path

import numpy as np

from delf_jax.conversion import hdf5, names
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
from delf_jax.errors import InputError
from delf_jax.features.reduction import Reduction
from delf_jax.models import resnet


def torchvision(file: WeightFile, path: Path, options: Options) -> Recipe:
  """ImageNet ResNets of torchvision; timm's have the same names."""
  source = "torchvision"
  architecture = resnet_architecture(
    names.TORCH, file.tensors, layout="torchvision", source=source, path=path
  )
  return Recipe(
    architecture={**architecture, **stage_of(options)},
    tensors=file.tensors,
    pairs=names.TORCH.resnet(architecture["units"], conv_bias=False),
    normalisation="imagenet",
    extraction=backbone_only(),
    ignored=r"num_batches_tracked$|^fc\.",
  )


def vgg16(file: WeightFile, path: Path, options: Options) -> Recipe:
  """ImageNet VGG-16 of torchvision."""
  if "features.0.weight" not in file.tensors:
    raise not_there("vgg16", path, "features.0.weight", file.tensors)
  return Recipe(
    architecture={
      "backbone": "vgg",
      "units": tuple(len(places) for places in names.VGG16_PLACES),
      "width": len(file.tensors["features.0.weight"]),
      "attention_hidden": 0,
      **stage_of(options, "conv5"),
    },
    tensors=file.tensors,
    pairs=names.vgg16(),
    normalisation="imagenet",
    extraction=backbone_only(),
    ignored=r"^classifier\.",
  )


def delf_pytorch(file: WeightFile, path: Path, options: Options) -> Recipe:
  """The best-known port of DELF to PyTorch.

  It keeps a state dict a module: `base`, a sequence of torchvision's modules to
  layer3; `layer4` after its first step; `attn`, without BatchNorm, after its
  second. It was trained on pixels from 0 to 1, not normalised further, with
  its attention on features that are not.
  """
  source = "delf_pytorch"
  places = ("conv1", "bn1", None, None, "layer1", "layer2", "layer3")
  tensors = {}
  for name, value in file.tensors.items():
    module, _, rest = name.partition(".")
    place, _, inner = rest.partition(".")
    if module == "base" and place.isdecimal() and int(place) < len(places):
      name = f"{places[int(place)]}.{inner}"
    tensors[name] = value
  if "conv1.weight" not in tensors or "base.0.weight" not in file.tensors:
    raise not_there(source, path, "base.0.weight", file.tensors)
  architecture = resnet_architecture(
    names.TORCH, tensors, layout="torchvision", source=source, path=path
  )
  architecture |= stage_of(options)
  pairs = names.TORCH.resnet(architecture["units"], conv_bias=False)
  extraction = {**backbone_only(), "resize": "half_pixel"}
  notes: tuple[str, ...] = ()
  if "attn.conv1.weight" in tensors:
    hidden = len(tensors["attn.conv1.weight"])
    architecture["attention_hidden"] = hidden
    _add_identity_norm(tensors, hidden)
    pairs += names.attention(
      names.TORCH, "attn.conv1", "attn.identity", "attn.conv2"
    )
    extraction |= {"score": "attention", "iou_threshold": 0.98}
    notes = (
      "that port keeps attention above 0.17, and halves it where nothing "
      "scores as much; here the best are kept (--score_threshold sets one)",
    )
  return Recipe(
    architecture=architecture,
    tensors=tensors,
    pairs=pairs,
    normalisation="zero_to_one",
    extraction=extraction,
    ignored=r"num_batches_tracked$|^(logits|pool|optimizer)\.",
    reduction=_port_reduction(options),
    notes=notes,
  )


def _add_identity_norm(tensors: dict[str, np.ndarray], hidden: int) -> None:
  """Writes the bias of a head without BatchNorm as one that only shifts."""
  epsilon = np.float32(resnet.LAYOUTS["torchvision"].epsilon)
  tensors |= {
    "attn.identity.weight": np.ones(hidden, np.float32),
    "attn.identity.bias": tensors.pop("attn.conv1.bias", np.zeros(hidden)),
    "attn.identity.running_mean": np.zeros(hidden, np.float32),
    "attn.identity.running_var": np.full(hidden, np.float32(1) - epsilon),
  }


def _port_reduction(options: Options) -> Reduction | None:
  """The reduction that the PyTorch port keeps in a file of its own."""
  if options.pca is None:
    return None
  path = Path(options.pca)
  try:
    stored = hdf5.File(path.read_bytes()).root.children
    mean, matrix, variances = (
      stored[f"pca_{name}"].array() for name in ("mean", "matrix", "vars")
    )
  except OSError as error:
    raise InputError(
      f"cannot read {options.pca!r}: {error.strerror}"
    ) from error
  except (hdf5.UnreadError, ValueError, KeyError, struct.error) as error:
    raise InputError(
      f"{options.pca!r} is no pca.h5 of that port: it should hold pca_mean, "
      f"pca_matrix and pca_vars ({' '.join(str(error).split())[:100]})"
    ) from error
  return keep_dimensions(
    mean=mean,
    matrix=matrix,
    variances=variances,
    dim=options.pca_dim or PAPER_DIM,
    whiten=True if options.whiten is None else options.whiten,
    path=path,
  )
