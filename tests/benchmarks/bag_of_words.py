"""Bags of words: how fast, how large, and how good by their words alone.

  taskset -c 2 python tests/benchmarks/bag_of_words.py --store STORE \
    --vocabulary INDEX --vocabulary INDEX2 --ground_truth FILE.json

STORE holds the photographs that are searched (delf_jax.extract), INDEX a bag of
words of others (delf_jax.build_index --kind bag_of_words), whose words are
taken. Prints for every vocabulary and way to use it the bytes a photograph, but
for the words themselves, how long a query takes to find its words, to rank the
photographs by them, and to verify 100 of them (median of the queries of the
ground truth, or of 50 photographs), and with --ground_truth the mean average
precision of the ranking. Use taskset for one core.
"""

import argparse
import statistics
import time

import numpy as np

from delf_jax import database, index, retrieval
from delf_jax.evaluation import protocols
from delf_jax.features import store

QUERIES = 50
VERIFIED = 3  # queries that are also verified
WAYS = {
  "hard": {},
  "stop 5 %": {"stop": 0.05},
}


def seconds_of(work) -> float:
  """Returns the time of a call."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--store", required=True)
  parser.add_argument("--vocabulary", action="append", required=True)
  parser.add_argument("--ground_truth")
  parser.add_argument("--sigma", default="0.3")
  arguments = parser.parse_args()
  opened = store.open_store(arguments.store)
  counts = np.diff(opened.offsets)
  numbers = {path: i for i, path in enumerate(opened.paths)}
  truth = None
  asked = range(min(QUERIES, len(counts)))
  if arguments.ground_truth:
    truth = protocols.read_ground_truth(arguments.ground_truth)
    asked = [numbers[query.path] for query in truth.queries]
  ways = {**WAYS}
  for sigma in arguments.sigma.split(","):
    ways[f"soft 3, sigma {sigma}"] = {"soft": 3, "sigma": float(sigma)}
  print(
    f"{len(counts)} photographs, {opened.offsets[-1]:,} descriptors, "
    f"{len(asked)} queries\n"
  )
  print(
    "| words | assignment | bytes a photograph | words, ms | ranking, ms | "
    "100 verified, ms | mAP |"
  )
  print("|---|---|---|---|---|---|---|")
  for vocabulary in arguments.vocabulary:
    for name, options in ways.items():
      built = index.call(
        index.module(index.BAG_OF_WORDS).build,
        index.BAG_OF_WORDS,
        lambda: database.descriptor_batches(opened),
        counts,
        database.kind_of_features(opened.settings),
        vocabulary=vocabulary,
        **options,
      )
      words_held = built.vocabulary.words.nbytes
      searchable = database.connect(opened, built)
      finding, ranking, verifying, rankings = [], [], [], {}
      for place, number in enumerate(asked):
        features = opened.features(number)
        start = time.perf_counter()
        words = built.describe(features.descriptors)
        middle = time.perf_counter()
        found, cosines = built.rank(*words, leave_out=number)
        end = time.perf_counter()
        finding.append(middle - start)
        ranking.append(end - middle)
        rankings[opened.paths[number]] = [
          (opened.paths[i], float(cosine))
          for i, cosine in zip(found, cosines, strict=True)
        ]
        if place <= VERIFIED:  # the first one compiles
          verifying.append(
            seconds_of(
              lambda f=features, n=number, s=searchable: retrieval.search(
                f,
                tuple(opened.sizes[n]),
                s,
                matching="votes",
                score="inliers",
                leave_out=n,
              )
            )
          )
      mean = "-"
      if truth is not None:
        result = protocols.evaluate(truth, rankings, {})
        mean = f"{result['mAP_medium']:.1f}"
      times = [
        1000 * statistics.median(some)
        for some in (finding, ranking, verifying[1:] or verifying)
      ]
      print(
        f"| {len(built.vocabulary):,} | {name} | "
        f"{(built.nbytes - words_held) / len(counts):,.0f} | "
        f"{times[0]:.1f} | {times[1]:.2f} | {times[2]:.0f} | {mean} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
