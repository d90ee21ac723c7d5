"""Recall and speed of the KD-tree beside OpenCV's FLANN, check for check.

  python tests/benchmarks/kd_tree.py [--size 100000] [--dim 40]
  python tests/benchmarks/kd_tree.py --store STORE [--size 300000]

Clustered descriptors of unit length, or a store's (its last photographs ask,
the first descriptors answer). A check is a descriptor that is compared with the
query: FLANN's `checks` counts those, for its leaves hold one descriptor; ours
visits checks / leaf_size leaves. Both stop earlier where nothing nearer can be
left. One core, the systems take turns,
medians are printed. FLANN's bytes are reckoned: its descriptors as float32, and
a tree of two nodes a descriptor, each two pointers and two numbers of 4 bytes.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from index import make_descriptors, read_store

from delf_jax.index import exact, kd_tree

K = 10
CHECKS = (1280, 5000, 10000, 15000)
FLANN_KD_TREE = 1  # OpenCV has no name for it in Python

Search = Callable[[np.ndarray, int], np.ndarray]


def build_all(
  descriptors: np.ndarray, dim: int
) -> dict[str, tuple[float, float, Search]]:
  """{system: (build seconds, bytes a descriptor, search)}."""
  kd_tree.build(descriptors[:1000]).search(descriptors[:1], K)  # compiles
  systems = {}

  def add(name, build, size, search):
    start = time.perf_counter()
    built = build()
    seconds = time.perf_counter() - start
    systems[name] = (
      seconds,
      size(built) / len(descriptors),
      lambda queries, checks: search(built, queries, checks),
    )

  def ours(built, queries, checks, leaf_size):
    built.leaves = max(1, checks // leaf_size)
    return built.search(queries, K)[1]

  for leaf_size, originals in [(6, False), (6, True), (8, True), (4, True)]:
    add(
      f"ours, leaves of {leaf_size}" + ", originals" * originals,
      lambda leaf_size=leaf_size, originals=originals: kd_tree.build(
        descriptors, leaf_size=leaf_size, originals=originals, threads=1
      ),
      lambda built: built.nbytes,
      lambda built, queries, checks, leaf_size=leaf_size: ours(
        built, queries, checks, leaf_size
      ),
    )
  for trees in [1, 4]:
    cv2.setRNGSeed(0)
    add(
      f"FLANN, {trees} tree" + "s" * (trees > 1),
      lambda trees=trees: cv2.flann.Index(
        descriptors, {"algorithm": FLANN_KD_TREE, "trees": trees}
      ),
      lambda built, trees=trees: len(descriptors) * (4 * dim + 4 + 48 * trees),
      lambda built, queries, checks: built.knnSearch(
        queries, K, params={"checks": checks}
      )[0],
    )
  return systems


def main() -> None:
  """Measures as the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, default=100_000)
  parser.add_argument("--dim", type=int, default=40)
  parser.add_argument("--queries", type=int, default=1000)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--store", help="a store of features to take instead")
  options = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
  cv2.setNumThreads(1)
  if options.store:
    descriptors, queries = read_store(options.store, options.queries)
    descriptors = np.ascontiguousarray(descriptors[: options.size])
  else:
    both = make_descriptors(options.size + options.queries, options.dim)
    descriptors, queries = np.split(both, [options.size])
  true = exact.build(descriptors).search(queries, K)[1]
  systems = build_all(descriptors, descriptors.shape[1])
  print(
    f"{len(descriptors)} descriptors of {descriptors.shape[1]}, "
    f"{len(queries)} queries, one core, median of {options.rounds}: "
    "queries/s and recall@10 by checks\n"
    f"{'':30}{'build s':>8}{'B/desc.':>8}"
    + "".join(f"{checks:>15}" for checks in CHECKS)
  )
  lines = {
    name: f"{name:30}{seconds:8.2f}{size:8.0f}"
    for name, (seconds, size, _) in systems.items()
  }
  for checks in CHECKS:
    times = {name: [] for name in systems}
    rows = {}
    for turn in range(options.rounds + 1):
      for name, (_, _, search) in systems.items():
        start = time.perf_counter()
        rows[name] = search(queries, checks)
        if turn:  # the first is slower
          times[name].append(time.perf_counter() - start)
    for name, found in rows.items():
      recall = np.mean(
        [np.isin(a, b).mean() for a, b in zip(true, found, strict=True)]
      )
      rate = len(queries) / statistics.median(times[name])
      lines[name] += f"{rate:8.0f}{recall:7.4f}"
  print("\n".join(lines.values()), flush=True)


if __name__ == "__main__":
  main()
