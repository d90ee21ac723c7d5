"""Our models -> weight files of the peers."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from delf_jax.checkpoint import Model
from delf_jax.checkpoint.arrays import named
from delf_jax.conversion import names
from delf_jax.conversion.names import Pair
from delf_jax.conversion.tensor_bundle import write_bundle
from delf_jax.conversion.torch_files import write_safetensors, write_torch
from delf_jax.errors import InputError
from delf_jax.features.interchange import write_datum
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.models.resnet import ResNet

TORCH_ENDINGS = (".pth", ".pt", ".safetensors")
BUNDLE = "model.ckpt"
PBTXT = "delf_config.pbtxt"
UNITS_OF_101 = 23  # in conv4_x


def write(
  target: str, model: Model, path: str | os.PathLike
) -> tuple[str, ...]:
  """Writes the backbone, attention and reduction of a model.

  Args:
    target: a key of `TARGETS`.
    model: a loaded checkpoint.
    path: of the file or directory.

  Returns:
    what whoever reads it should know, a sentence each.

  Raises:
    InputError: if the target's network would compute something else with
      these weights, or the file cannot be written.
  """
  if isinstance(model.network, GlobalDescriptor):
    raise InputError("a global descriptor cannot be written for others yet")
  return TARGETS[target](model, Path(path))


def _torch_state_dict(model: Model, path: Path) -> tuple[str, ...]:
  """torchvision's names; beside them `attention.*` and `reduction.*`."""
  if not path.name.endswith(TORCH_ENDINGS):
    raise InputError(
      f"{path}: a state dict is a file that ends with one of "
      f"{', '.join(TORCH_ENDINGS)}"
    )
  backbone = model.network.backbone
  if isinstance(backbone, ResNet):
    _check_layout(model, "torchvision", "torchvision's ResNet")
    pairs = names.TORCH.resnet(backbone.units, conv_bias=False)
  else:
    pairs = names.vgg16()
  pairs += _attention(model, names.TORCH, "attention", "bn1", ".")
  tensors = _theirs(model, pairs)
  if model.reduction is not None:
    for field in ("mean", "components", "deviations"):
      tensors[f"reduction.{field}"] = np.asarray(
        getattr(model.reduction, field)
      )
  if path.suffix == ".safetensors":
    write_safetensors(path, tensors, {"fingerprint": model.fingerprint})
  else:
    write_torch(path, tensors)
  norm = model.normalisation
  return (
    f"pixels: channels {norm.order} of RGB from 0 to 255, minus {norm.mean}, "
    f"divided by {norm.scale}",
    "torchvision's network takes it with load_state_dict(..., strict=False)",
  )


def _delf_tf1(model: Model, path: Path) -> tuple[str, ...]:
  """A directory with a checkpoint, PCA and settings, named as released."""
  if not isinstance(model.network.backbone, ResNet):
    raise InputError("the released DELF of TensorFlow 1 is a ResNet")
  _check_layout(model, "slim", "the released DELF of TensorFlow 1")
  if model.network.code_dim:
    raise InputError("the released DELF of TensorFlow 1 has no autoencoder")
  units = model.network.backbone.units
  naming = names.slim(names.SLIM_SCOPES[units[2] == UNITS_OF_101])
  pairs = naming.resnet(units, conv_bias=False)
  pairs += _attention(
    model, naming, names.SLIM_ATTENTION, "conv1/BatchNorm", "/"
  )
  path.mkdir(parents=True, exist_ok=True)
  write_bundle(path / BUNDLE, _theirs(model, pairs))
  (path / "checkpoint").write_text(f'model_checkpoint_path: "{BUNDLE}"\n')
  if model.reduction is not None:
    (path / "pca").mkdir(exist_ok=True)
    for name, value in (
      ("mean", model.reduction.mean),
      ("pca_proj_mat", model.reduction.components),
      ("pca_vars", np.square(model.reduction.deviations)),
    ):
      write_datum(path / "pca" / f"{name}.datum", np.asarray(value))
  (path / PBTXT).write_text(_pbtxt(model))
  stride = model.network.receptive_field.stride
  return (
    f"features are {stride} pixels apart: build the graph with that stride",
  )


def _pbtxt(model: Model) -> str:
  """Settings of extraction as the released programs read them."""
  extraction = model.extraction
  lines = [f"image_scales: {scale}" for scale in extraction.get("scales", ())]
  lines += [
    "delf_local_config {",
    f"  use_pca: {str(model.reduction is not None).lower()}",
    f"  iou_threshold: {extraction.get('iou_threshold', 1.0)}",
    f"  max_feature_num: {extraction.get('max_features', 1000)}",
    f"  score_threshold: {extraction.get('score_threshold', 0.0)}",
  ]
  if model.reduction is not None:
    whitened = bool(np.any(np.asarray(model.reduction.deviations) != 1))
    lines += [
      "  pca_parameters {",
      '    mean_path: "pca/mean.datum"',
      '    projection_matrix_path: "pca/pca_proj_mat.datum"',
      f"    pca_dim: {len(model.reduction.components)}",
      f"    use_whitening: {str(whitened).lower()}",
      *(['    pca_variances_path: "pca/pca_vars.datum"'] if whitened else []),
      "  }",
    ]
  return "\n".join([*lines, "}", ""])


def _attention(
  model: Model, naming: names.Naming, where: str, norm: str, separator: str
) -> list[Pair]:
  """Pairs of the attention head, if the model has one."""
  if not model.network.attention_hidden:
    return []
  conv1, norm, conv2 = (
    f"{where}{separator}{name}" for name in ("conv1", norm, "conv2")
  )
  return names.attention(naming, conv1, norm, conv2)


def _check_layout(model: Model, layout: str, target: str) -> None:
  """Refuses weights that mean something else in another layout."""
  ours = model.network.backbone.layout
  if ours != layout:
    raise InputError(
      f"this checkpoint has the layout {ours!r}, whose strides and padding lie "
      f"elsewhere than those of {target} ({layout!r}): with these weights that "
      f"network would compute other features"
    )


def _theirs(model: Model, pairs: list[Pair]) -> dict[str, np.ndarray]:
  ours = named(model.variables)
  return {pair.theirs: names.to_theirs(pair, ours[pair.ours]) for pair in pairs}


TARGETS: Mapping[str, Callable[[Model, Path], tuple[str, ...]]] = {
  "delf_tf1": _delf_tf1,
  "torch_state_dict": _torch_state_dict,
}
