"""Networks in PyTorch with torchvision's names, as oracles for the converters.

Written from the papers and from the names in published state dicts;
torchvision itself is not needed.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
  """The unit of ResNet v1.5: the 3x3 convolution carries the stride."""

  def __init__(self, channels, width, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(
      width, width, 3, stride=stride, padding=1, bias=False
    )
    self.bn2 = nn.BatchNorm2d(width)
    self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * width)
    self.downsample = None
    if stride > 1 or channels != 4 * width:
      self.downsample = nn.Sequential(
        nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False),
        nn.BatchNorm2d(4 * width),
      )

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = F.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  """Stages by our names: conv2 is layer1."""

  def __init__(self, units, width=64, classes=10):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.relu = nn.ReLU()
    self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
    self.stages = len(units)
    channels = width
    for s, count in enumerate(units):
      inner = width * 2**s
      blocks = []
      for u in range(count):
        stride = 2 if s > 0 and u == 0 else 1
        blocks.append(Bottleneck(channels, inner, stride))
        channels = 4 * inner
      setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
    if classes:
      self.fc = nn.Linear(channels, classes)

  def forward(self, x):
    x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
    found = {}
    for s in range(self.stages):
      x = getattr(self, f"layer{s + 1}")(x)
      found[f"conv{s + 2}"] = x
    return found


class Vgg16(nn.Module):
  """Stages by our names, each before its maximum."""

  def __init__(self, width=64):
    super().__init__()
    layers, channels = [], 3
    self.ends = []
    for s, count in enumerate((2, 2, 3, 3, 3)):
      for _ in range(count):
        out = width * min(2**s, 8)
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
        channels = out
      self.ends.append(len(layers) - 1)
      layers.append(nn.MaxPool2d(2, 2))
    self.features = nn.Sequential(*layers)
    self.classifier = nn.Sequential(nn.Linear(channels, 7))

  def forward(self, x):
    found = {}
    for i, layer in enumerate(self.features):
      x = layer(x)
      if i in self.ends:
        found[f"conv{self.ends.index(i) + 1}"] = x
    return found


class PortAttention(nn.Module):
  """The head of the best-known PyTorch port of DELF: no BatchNorm."""

  def __init__(self, channels, hidden):
    super().__init__()
    self.conv1 = nn.Conv2d(channels, hidden, 1)
    self.conv2 = nn.Conv2d(hidden, 1, 1)

  def forward(self, x):
    return F.softplus(self.conv2(F.relu(self.conv1(x))))[:, 0]


def randomise(network, seed=0):
  """Random weights and BatchNorm statistics; activations keep their size."""
  generator = torch.Generator().manual_seed(seed)

  def uniform(tensor, low, high):
    with torch.no_grad():
      tensor.uniform_(low, high, generator=generator)

  for module in network.modules():
    if isinstance(module, nn.Conv2d):
      spread = (3 / module.weight[0].numel()) ** 0.5
      uniform(module.weight, -1.4 * spread, 1.4 * spread)
      if module.bias is not None:
        uniform(module.bias, -0.3, 0.3)
    if isinstance(module, nn.BatchNorm2d):
      uniform(module.weight, 0.5, 1.5)
      uniform(module.bias, -0.3, 0.3)
      uniform(module.running_mean, -0.3, 0.3)
      uniform(module.running_var, 0.5, 1.5)
  return network.eval()


def port_checkpoint(network, attention):
  """What that port saves after its second step."""
  base = nn.Sequential(
    network.conv1,
    network.bn1,
    network.relu,
    network.maxpool,
    network.layer1,
    network.layer2,
    network.layer3,
  )
  return {
    "epoch": 30,
    "best_score": 0.5,
    "base": base.state_dict(),
    "attn": attention.state_dict(),
    "pool": {},
    "logits": nn.Sequential(nn.Conv2d(4, 3, 1)).state_dict(),
  }
