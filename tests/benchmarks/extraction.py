"""Extraction speed of ResNet-50 to conv4, beside the same network in PyTorch.

  python tests/benchmarks/extraction.py [--height 768] [--width 1024]

One photograph, seven scales, float32, random weights; the two take turns and
medians are printed. "dense" is the network alone over the pyramid; "whole" is
all of ours: resizing, scores, selection of 1000, reduction to 40. Then our
throughput on many photographs of half the side by number of threads.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax import checkpoint, extraction, extractors
from delf_jax.data.photographs import Photograph
from delf_jax.features import pyramid
from delf_jax.features.reduction import Reduction
from delf_jax.models.delf import folded
from delf_jax.models.normalisation import NORMALISATIONS


def make_model() -> checkpoint.Model:
  """ResNet-50 to conv4 with attention and a reduction, random weights."""
  network = checkpoint.build_network(
    units=(3, 4, 6), width=64, layout="torchvision", num_classes=2
  )
  return checkpoint.Model(
    network=network,
    variables=jax.jit(network.init)(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    ),
    normalisation=NORMALISATIONS["imagenet"],
    reduction=Reduction(
      mean=np.zeros(1024, np.float32),
      components=np.eye(40, 1024, dtype=np.float32),
      deviations=np.ones(40, np.float32),
    ),
    extraction={"score": "product"},
    provenance={},
    fingerprint="",
  )


def make_torch_network():
  """The same backbone in PyTorch, channels last; None without PyTorch."""
  try:
    import torch
    from torch import nn
  except ImportError:
    return None

  class Unit(nn.Module):
    def __init__(self, inside, outside, stride, channels):
      super().__init__()
      self.body = nn.Sequential(
        nn.Conv2d(channels, inside, 1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(inplace=True),
        nn.Conv2d(inside, inside, 3, stride, 1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(inplace=True),
        nn.Conv2d(inside, outside, 1, bias=False),
        nn.BatchNorm2d(outside),
      )
      self.shortcut = nn.Identity()
      if channels != outside:
        self.shortcut = nn.Sequential(
          nn.Conv2d(channels, outside, 1, stride, bias=False),
          nn.BatchNorm2d(outside),
        )

    def forward(self, x):
      return torch.relu(self.body(x) + self.shortcut(x))

  parts = [
    nn.Conv2d(3, 64, 7, 2, 3, bias=False),
    nn.BatchNorm2d(64),
    nn.ReLU(inplace=True),
    nn.MaxPool2d(3, 2, 1),
  ]
  channels = 64
  for stage, units in enumerate((3, 4, 6)):
    for unit in range(units):
      stride = 2 if stage and unit == 0 else 1
      inside = 64 * 2**stage
      parts.append(Unit(inside, 4 * inside, stride, channels))
      channels = 4 * inside
  return nn.Sequential(*parts).eval().to(memory_format=torch.channels_last)


def seconds(run) -> float:
  """Times one call."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def single(model, size: tuple[int, int], rounds: int) -> None:
  """One photograph at a time, interleaved with PyTorch."""
  network, variables = folded(model.network, model.variables)
  variables = jax.device_put(variables)
  levels = [
    tuple(pyramid.level_size(n, scale) for n in size)
    for scale in pyramid.SCALES
  ]
  images = [np.random.rand(1, *level, 3).astype(np.float32) for level in levels]
  run_level = jax.jit(
    lambda variables, image: network.apply(variables, image, method="dense")[0]
  )
  photograph = Photograph(
    np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8),
    *size,
  )
  whole = extractors.delf_extractor(model, max_side=max(size))
  contenders = {
    "ours, dense": lambda: jax.block_until_ready(
      [run_level(variables, image) for image in images]
    ),
    "ours, whole": lambda: whole(photograph),
  }
  torch_network = make_torch_network()
  if torch_network is None:
    print("PyTorch is not installed: its row is left out")
  else:
    import torch

    tensors = [
      torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).to(
        memory_format=torch.channels_last
      )
      for image in images
    ]

    def run_torch():
      with torch.inference_mode():
        for tensor in tensors:
          torch_network(tensor)

    contenders["PyTorch, dense"] = run_torch
  for run in contenders.values():
    run()
  times = {name: [] for name in contenders}
  for _ in range(rounds):
    for name, run in contenders.items():
      times[name].append(seconds(run))
  medians = {name: statistics.median(values) for name, values in times.items()}
  print(
    f"\nResNet-50 to conv4, {size[1]} x {size[0]}, 7 scales, {rounds} rounds"
  )
  for name, median in medians.items():
    print(
      f"  {name:16} {median:7.2f} s   "
      f"{median / medians['ours, dense']:5.2f} x ours, dense"
    )


def many(model, size: tuple[int, int], photographs: int) -> None:
  """Photographs a second by number of threads."""
  extract = extractors.delf_extractor(model, max_side=max(size))
  generator = np.random.default_rng(0)
  items = [
    Photograph(generator.integers(0, 255, (*size, 3)).astype(np.uint8), *size)
    for _ in range(photographs)
  ]
  extract(items[0])
  print(f"\nmany photographs of {size[1]} x {size[0]}, whole")
  for workers in (1, 2, 4):
    took = seconds(
      lambda w=workers: list(extraction.in_order(extract, items, w))
    )
    print(f"  {workers} threads {photographs / took:6.2f} photographs/s")


def main() -> None:
  """Prints both tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--height", type=int, default=768)
  parser.add_argument("--width", type=int, default=1024)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--photographs", type=int, default=8)
  values = parser.parse_args()
  model = make_model()
  size = values.height, values.width
  single(model, size, values.rounds)
  many(model, (size[0] // 2, size[1] // 2), values.photographs)


if __name__ == "__main__":
  main()
