"""Every kind of index on the same descriptors: which to take for how many.

  taskset -c 2 python tests/benchmarks/kinds.py --store STORE

The last photographs of the store ask the others; with --size, only so many of
the first descriptors are indexed. Prints for each kind the time to build, bytes
a descriptor, the share of the true 10 nearest that it finds, and how long it
takes for the 500 descriptors of a photograph, alone and in a batch of 2,000
(median of five). Kinds whose library is missing are left out. Use taskset for
one core: all searches may use every core that they see.
"""

import argparse
import statistics
import time

import numpy as np

from delf_jax import index
from delf_jax.errors import InputError
from delf_jax.features import store

K = 10
PHOTOGRAPH = 500
QUERIES = 2000
KINDS = {
  "exact": ("exact", {}),
  "graph": ("graph", {}),
  "graph, int8": ("graph", {"precision": "int8"}),
  "kd_tree, T = 1280": ("kd_tree", {"leaves": 1280}),
  "kd_tree, T = 5000, originals": (
    "kd_tree",
    {"leaves": 5000, "originals": True},
  ),
  "inverted_file": ("inverted_file", {}),
  "inverted_file, rerank 8, 16 probes": (
    "inverted_file",
    {"rerank": 8, "probes": 16},
  ),
  "faiss": ("faiss", {}),
  "scann": ("scann", {}),
}


def median_seconds(work, rounds=5) -> float:
  """Median time of a call, after one that compiles."""
  work()
  seconds = []
  for _ in range(rounds):
    start = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--store", required=True)
  parser.add_argument("--size", type=int, default=0)
  arguments = parser.parse_args()
  opened = store.open_store(arguments.store)
  last = int(
    opened.offsets[
      np.searchsorted(opened.offsets, opened.offsets[-1] - QUERIES)
    ]
  )
  queries = opened.descriptors(last)[:QUERIES]
  base = opened.descriptors(0, min(last, arguments.size or last))
  truth = index.build_index("exact", base).search(queries, K)[1]
  print(f"{len(base):,} descriptors of {base.shape[1]} dimensions\n")
  print(
    "| kind | build, s | bytes | recall@10 | a photograph, ms | queries/s |"
  )
  print("|---|---|---|---|---|---|")
  for name, (kind, options) in KINDS.items():
    try:
      start = time.perf_counter()
      built = index.build_index(kind, base, **options)
    except InputError as error:
      print(f"| {name} | {error} |")
      continue
    seconds = time.perf_counter() - start
    rows = built.search(queries, K)[1]
    recall = np.mean(
      [len(np.intersect1d(a, b)) / K for a, b in zip(rows, truth, strict=True)]
    )
    one = median_seconds(lambda b=built: b.search(queries[:PHOTOGRAPH], K))
    many = median_seconds(lambda b=built: b.search(queries, K))
    print(
      f"| {name} | {seconds:.1f} | {built.nbytes / len(base):.1f} | "
      f"{recall:.3f} | {1000 * one:.1f} | {len(queries) / many:,.0f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
