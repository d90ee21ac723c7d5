"""What a vote should weigh, and how many neighbours should vote.

  python tests/benchmarks/votes.py --store STORE --ground_truth FILE.json

STORE holds the photographs of the ground truth (delf_jax.extract), which is as
delf_jax.evaluate takes it. Ranks them by their votes alone, without
verification, and prints the mean average precision and how many of the
positives are among the photographs that would be verified.
"""

import argparse
import statistics

import numpy as np

from delf_jax import voting
from delf_jax.evaluation import protocols
from delf_jax.features import store
from delf_jax.index import exact

KINDS = ("count", "distance", "bursts", "distance_bursts")


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--store", required=True)
  parser.add_argument("--ground_truth", required=True)
  parser.add_argument("--neighbours", default="4,8,16,32,64,128")
  parser.add_argument("--candidates", type=int, default=100)
  arguments = parser.parse_args()
  neighbours = [int(k) for k in arguments.neighbours.split(",")]

  opened = store.open_store(arguments.store)
  truth = protocols.read_ground_truth(arguments.ground_truth)
  numbers = {path: i for i, path in enumerate(opened.paths)}
  index = exact.build(opened.descriptors())
  rankings = {(k, kind): {} for k in neighbours for kind in KINDS}
  found = {key: [] for key in rankings}
  for query in truth.queries:
    number = numbers[query.path]
    start, stop = (int(row) for row in opened.offsets[number : number + 2])
    distances, rows = index.search(
      opened.descriptors(start, stop), max(neighbours), exclude=(start, stop)
    )
    for k, kind in rankings:
      candidates = voting.vote(
        rows[:, :k],
        distances[:, :k],
        opened.offsets,
        candidates=len(opened.paths),
        votes=kind,
      )
      ranked = [opened.paths[c.image] for c in candidates]
      # The order alone counts; a score stands for it.
      rankings[k, kind][query.path] = [
        (path, len(ranked) - place) for place, path in enumerate(ranked)
      ]
      positives = set(query.easy) | set(query.hard)
      seen = positives.intersection(ranked[: arguments.candidates])
      found[k, kind].append(len(seen) / max(len(positives), 1))

  print(
    f"{len(truth.queries)} queries, {len(opened.paths)} photographs, "
    f"{len(index.descriptors)} descriptors; mAP in percent by votes alone, and "
    f"the positives among the first {arguments.candidates}\n"
  )
  print(f"{'K':>4}" + "".join(f"{kind:>24}" for kind in KINDS))
  for k in neighbours:
    line = f"{k:>4}"
    for kind in KINDS:
      result = protocols.evaluate(truth, rankings[k, kind], {})
      share = 100 * statistics.fmean(found[k, kind])
      line += f"{result['mAP_medium']:>16.1f}{share:>8.1f}"
    print(line, flush=True)


if __name__ == "__main__":
  np.seterr(all="raise")
  main()
