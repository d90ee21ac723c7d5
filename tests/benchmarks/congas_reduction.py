"""Learns the PCA of CONGAS' descriptors that comes with delf_jax.

  python tests/benchmarks/congas_reduction.py --photos DIR --output FILE.npz
      [--count 300] [--dims 40] [--seed 0]

A seeded sample of photographs from under DIR, at most 1024 pixels large, gives
1000 raw descriptors each. Half of the photographs teach the projection that is
compared, the other half tell how much of the descriptors' variance it keeps
and how it changes their nearest neighbours: how often the nearest descriptor of
another photograph is the same with and without it. What is written is then
learned on all.
"""

import argparse
from pathlib import Path

import numpy as np

from delf_jax.data import folder
from delf_jax.data.photographs import read_photograph
from delf_jax.features import detectors, reduction

SIDE = 1024
# Descriptors of a photograph whose neighbours are looked for.
PROBES = 50


def read(photos: str, count: int, seed: int) -> list[np.ndarray]:
  """Returns [n, 200] raw descriptors of each of some photographs."""
  paths = folder.list_photographs(photos).paths
  order = np.random.default_rng(seed).permutation(len(paths))[:count]
  return [
    detectors.extract(
      read_photograph(Path(photos) / paths[i], max_side=SIDE).pixels,
      kind="congas_raw",
      max_side=SIDE,
    ).descriptors
    for i in order
  ]


def nearest(descriptors: list[np.ndarray]) -> np.ndarray:
  """Returns rows of the nearest descriptors of other photographs."""
  everything = np.concatenate(descriptors)
  owners = np.repeat(np.arange(len(descriptors)), [*map(len, descriptors)])
  found = []
  for i, own in enumerate(descriptors):
    alike = own[:PROBES] @ everything.T
    found.append(np.where(owners == i, -np.inf, alike).argmax(1))
  return np.concatenate(found)


def main() -> None:
  """Learns, measures and writes."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--photos", required=True)
  parser.add_argument("--output", required=True)
  parser.add_argument("--count", type=int, default=300)
  parser.add_argument("--dims", type=int, default=40)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  found = read(arguments.photos, arguments.count, arguments.seed)
  half = len(found) // 2
  learned = reduction.fit(np.concatenate(found[:half]), arguments.dims)
  others = found[half:]
  raw = np.concatenate(others)
  kept = (raw - learned.mean) @ learned.components.T
  reduced = [np.asarray(reduction.reduce(learned, one)) for one in others]
  agree = np.mean(nearest(others) == nearest(reduced))
  print(
    f"{len(found)} photographs, {sum(map(len, found))} descriptors; on the "
    f"other half, {arguments.dims} dimensions keep "
    f"{kept.var(0).sum() / raw.var(0).sum():.3f} of the variance and "
    f"{agree:.3f} of the nearest neighbours"
  )
  learned = reduction.fit(np.concatenate(found), arguments.dims)
  np.savez(
    arguments.output,
    mean=learned.mean,
    components=learned.components,
    deviations=learned.deviations,
  )


if __name__ == "__main__":
  main()
