"""What other people call the tensors of a network, and how they lay them out.

A naming is a list of pairs: the name of one of our parameters, as
`params.backbone.conv2_1.conv1.kernel`, and theirs. The same list converts both
ways.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

FIRST_STAGE = 2  # conv2_x
MOST_STAGES = 4  # to conv5_x
SHORTCUT = 0  # the branch beside convolutions 1, 2 and 3


@dataclasses.dataclass(frozen=True)
class Pair:
  """One tensor under both names.

  Attributes:
    ours: collection, modules and variable, with dots between.
    theirs: the other name.
    kernel: "torch" for a kernel stored [out, in, height, width] ("linear" for
      one stored [out, in]), "tensorflow" for one stored as ours, [height,
      width, in, out]; None for vectors.
  """

  ours: str
  theirs: str
  kernel: Literal["torch", "linear", "tensorflow"] | None = None


@dataclasses.dataclass(frozen=True)
class Naming:
  """How one family of files names a ResNet.

  Attributes:
    stem: names of the first convolution and of its BatchNorm.
    branch: (stage from 2, unit from 1, convolution 1 to 3 or `SHORTCUT`) ->
      names of the convolution and of its BatchNorm.
    kernel: see `Pair`.
    weight: variable of a convolution, with its separator.
    bias: likewise.
    norm: variables of BatchNorm, with their separator: scale, bias, mean and
      variance.
  """

  stem: tuple[str, str]
  branch: Callable[[int, int, int], tuple[str, str]]
  kernel: Literal["torch", "tensorflow"]
  weight: str
  bias: str
  norm: tuple[str, str, str, str]

  def conv(self, ours: str, theirs: str, *, bias: bool) -> list[Pair]:
    """Pairs of a convolution; `ours` names the module, from the top."""
    pairs = [Pair(f"params.{ours}.kernel", theirs + self.weight, self.kernel)]
    if bias:
      pairs.append(Pair(f"params.{ours}.bias", theirs + self.bias))
    return pairs

  def batch_norm(self, ours: str, theirs: str) -> list[Pair]:
    """Pairs of a BatchNorm."""
    scale, bias, mean, variance = (theirs + suffix for suffix in self.norm)
    return [
      Pair(f"params.{ours}.scale", scale),
      Pair(f"params.{ours}.bias", bias),
      Pair(f"batch_stats.{ours}.mean", mean),
      Pair(f"batch_stats.{ours}.var", variance),
    ]

  def resnet(self, units: Sequence[int], *, conv_bias: bool) -> list[Pair]:
    """Pairs of a backbone.

    Args:
      units: bottleneck units of conv2_x, conv3_x, ...
      conv_bias: whether its convolutions have biases.
    """

    def both(module: str, name: str, theirs: tuple[str, str]) -> list[Pair]:
      conv = "shortcut" if name == "shortcut" else f"conv{name}"
      return [
        *self.conv(f"{module}.{conv}", theirs[0], bias=conv_bias),
        *self.batch_norm(f"{module}.bn_{name}", theirs[1]),
      ]

    pairs = both("backbone", "1", self.stem)
    for s, count in enumerate(units, FIRST_STAGE):
      for u in range(1, count + 1):
        module = f"backbone.conv{s}_{u}"
        if u == 1:
          pairs += both(module, "shortcut", self.branch(s, u, SHORTCUT))
        for i in (1, 2, 3):
          pairs += both(module, str(i), self.branch(s, u, i))
    return pairs

  def units(self, tensors: Mapping[str, Any]) -> tuple[int, ...]:
    """Counts the bottleneck units of every stage in a file; () if none."""
    found = []
    for s in range(FIRST_STAGE, FIRST_STAGE + MOST_STAGES):
      count = 0
      while self.branch(s, count + 1, 3)[0] + self.weight in tensors:
        count += 1
      if not count:
        break
      found.append(count)
    return tuple(found)


def _letter(unit: int) -> str:
  return "abcdefghijklmnopqrstuvwxyz"[unit - 1] if unit <= 26 else f"z{unit}"


def _torch_branch(stage: int, unit: int, branch: int) -> tuple[str, str]:
  block = f"layer{stage - 1}.{unit - 1}"
  if branch == SHORTCUT:
    return f"{block}.downsample.0", f"{block}.downsample.1"
  return f"{block}.conv{branch}", f"{block}.bn{branch}"


def _slim_branch(scope: str) -> Callable[[int, int, int], tuple[str, str]]:
  def branch(stage: int, unit: int, branch: int) -> tuple[str, str]:
    name = "shortcut" if branch == SHORTCUT else f"conv{branch}"
    path = f"{scope}/block{stage - 1}/unit_{unit}/bottleneck_v1/{name}"
    return path, f"{path}/BatchNorm"

  return branch


def _keras_branch(stage: int, unit: int, branch: int) -> tuple[str, str]:
  path = f"conv{stage}_block{unit}_{branch}"
  return f"{path}_conv", f"{path}_bn"


def _keras_2015_branch(stage: int, unit: int, branch: int) -> tuple[str, str]:
  tail = "1" if branch == SHORTCUT else "2" + "abc"[branch - 1]
  path = f"{stage}{_letter(unit)}_branch{tail}"
  return f"res{path}", f"bn{path}"


def _tf2_branch(stage: int, unit: int, branch: int) -> tuple[str, str]:
  path = f"backbone/l{stage}{_letter(unit)}"
  tail = "_shortcut" if branch == SHORTCUT else "2" + "abc"[branch - 1]
  return f"{path}/conv{tail}", f"{path}/bn{tail}"


_KERAS = {
  "kernel": "tensorflow",
  "weight": "/kernel",
  "bias": "/bias",
  "norm": ("/gamma", "/beta", "/moving_mean", "/moving_variance"),
}

TORCH = Naming(
  stem=("conv1", "bn1"),
  branch=_torch_branch,
  kernel="torch",
  weight=".weight",
  bias=".bias",
  norm=(".weight", ".bias", ".running_mean", ".running_var"),
)
KERAS = Naming(stem=("conv1_conv", "conv1_bn"), branch=_keras_branch, **_KERAS)
KERAS_2015 = Naming(
  stem=("conv1", "bn_conv1"), branch=_keras_2015_branch, **_KERAS
)
TF2 = Naming(
  stem=("backbone/conv1", "backbone/bn_conv1"), branch=_tf2_branch, **_KERAS
)
SLIM_SCOPES = ("resnet_v1_50", "resnet_v1_101")


def slim(scope: str) -> Naming:
  """The naming of TF-Slim under a scope such as "resnet_v1_50"."""
  return Naming(
    stem=(f"{scope}/conv1", f"{scope}/conv1/BatchNorm"),
    branch=_slim_branch(scope),
    kernel="tensorflow",
    weight="/weights",
    bias="/biases",
    norm=("/gamma", "/beta", "/moving_mean", "/moving_variance"),
  )


def attention(
  naming: Naming, conv1: str, norm: str | None, conv2: str
) -> list[Pair]:
  """Pairs of the attention head.

  Args:
    naming: of its variables.
    conv1: name of the first convolution; its bias, if there is one, is not
      among the pairs: our head has none.
    norm: name of its BatchNorm; None if there is none.
    conv2: name of the second convolution, which has a bias.
  """
  return [
    *naming.conv("attention.conv1", conv1, bias=False),
    *(naming.batch_norm("attention.bn_1", norm) if norm else ()),
    *naming.conv("attention.conv2", conv2, bias=True),
  ]


SLIM_ATTENTION = "attention_block/attention/compute"

# torchvision's place of every convolution of VGG-16 in `features`; maxima and
# rectifiers take the places between.
VGG16_PLACES = (
  (0, 2),
  (5, 7),
  (10, 12, 14),
  (17, 19, 21),
  (24, 26, 28),
)


def vgg16() -> list[Pair]:
  """Pairs of torchvision's VGG-16, its classifier left out."""
  return [
    pair
    for s, places in enumerate(VGG16_PLACES, 1)
    for u, place in enumerate(places, 1)
    for pair in TORCH.conv(
      f"backbone.conv{s}_{u}", f"features.{place}", bias=True
    )
  ]


def linear(ours: str, theirs: str) -> list[Pair]:
  """Pairs of a fully connected layer of PyTorch, with its bias."""
  return [
    Pair(f"params.{ours}.kernel", f"{theirs}.weight", "linear"),
    Pair(f"params.{ours}.bias", f"{theirs}.bias"),
  ]


def to_ours(pair: Pair, value: np.ndarray) -> np.ndarray:
  """Lays a foreign tensor out as ours, in float32."""
  value = np.asarray(value, np.float32)
  if pair.kernel == "torch" and value.ndim == 4:
    value = value.transpose(2, 3, 1, 0)
  if pair.kernel == "linear":
    value = value.T
  return np.ascontiguousarray(value)


def to_theirs(pair: Pair, value: np.ndarray) -> np.ndarray:
  """Lays one of our tensors out as theirs."""
  value = np.asarray(value, np.float32)
  if pair.kernel == "torch":
    value = value.transpose(3, 2, 0, 1)
  if pair.kernel == "linear":
    value = value.T
  return np.ascontiguousarray(value)


def nested(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Turns {"params.a.b": array} into {"params": {"a": {"b": array}}}.

  `checkpoint.arrays.named` undoes it.
  """
  tree: dict[str, Any] = {}
  for name, value in named.items():
    *path, last = name.split(".")
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[last] = value
  return tree
