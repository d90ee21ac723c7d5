"""Global descriptors in PyTorch, as oracles; written from the papers.

Names of layers are those of the published state dicts.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tests import torch_networks
from tests.region_grids import literal_grid


def unit(x):
  return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


class Power(nn.Module):
  """GeM's pooling, with its power as a parameter."""

  def __init__(self, power=3.0):
    super().__init__()
    self.p = nn.Parameter(torch.ones(1) * power)

  def forward(self, x):
    return x.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class Maximum(nn.Module):
  def forward(self, x):
    return x.amax((2, 3))


class Mean(nn.Module):
  def forward(self, x):
    return x.mean((2, 3))


class Regional(nn.Module):
  """Regions of the map and the whole: pooled, perhaps projected, summed."""

  def __init__(self, rpool, whiten=None, levels=3):
    super().__init__()
    self.rpool, self.whiten, self.levels = rpool, whiten, levels

  def forward(self, x):
    parts = [x]
    for top, left, side in literal_grid(*x.shape[2:], self.levels):
      parts.append(x[:, :, top : top + side, left : left + side])
    total = 0
    for part in parts:
      vector = unit(self.rpool(part))
      if self.whiten is not None:
        vector = unit(self.whiten(vector))
      total = total + vector
    return total


class SiaMac(nn.Module):
  """A sequence of the backbone's layers, a pooling, perhaps a projection."""

  def __init__(self, features, pool, whiten=None):
    super().__init__()
    self.features, self.pool, self.whiten = features, pool, whiten

  def forward(self, x):
    x = unit(self.pool(self.features(x)))
    return x if self.whiten is None else unit(self.whiten(x))


def resnet_features(units, width):
  network = torch_networks.ResNet(units, width=width, classes=0)
  return nn.Sequential(
    network.conv1,
    network.bn1,
    network.relu,
    network.maxpool,
    network.layer1,
    network.layer2,
    network.layer3,
    network.layer4,
  )


def vgg_features(width):
  return torch_networks.Vgg16(width=width).features[:-1]


class Dir(torch_networks.ResNet):
  """torchvision's ResNet, `adpool`, and `fc` on what is not normalised."""

  def __init__(self, units, width, pool, dim):
    super().__init__(units, width=width, classes=dim)
    self.adpool = pool

  def forward(self, x):
    x = super().forward(x)["conv5"]
    return unit(self.fc(self.adpool(x)))


def randomise(network, seed=0):
  torch_networks.randomise(network, seed)
  generator = torch.Generator().manual_seed(seed + 1)
  with torch.no_grad():
    for name, parameter in network.named_parameters():
      if name.endswith(".p"):
        parameter.uniform_(2.0, 4.0, generator=generator)
    for module in network.modules():
      if isinstance(module, nn.Linear):
        bound = module.in_features**-0.5
        module.weight.uniform_(-bound, bound, generator=generator)
        module.bias.uniform_(-0.1, 0.1, generator=generator)
  return network


def describe(network, pixels):
  """[b, h, w, 3] NumPy pixels -> [b, d] descriptors."""
  with torch.no_grad():
    found = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
  return F.normalize(found, dim=-1).numpy()
