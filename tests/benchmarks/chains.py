"""What asking again with what was found is worth, and what it costs.

  python tests/benchmarks/chains.py --store STORE --ground_truth FILE.json \
      --distractors STORE2 [--calibration FILE]

STORE holds the photographs of the ground truth (delf_jax.extract), which is as
delf_jax.evaluate takes it, STORE2 the distractor queries. A collection in which
every place has many photographs is too easy to choose anything by; so it is
thinned, at random, several times.

Prints the numbers of the protocol with and without chains
(delf_jax.match_chains), and what delf_jax.query would accept: how much of what
is right, and how many that are not, for several demands on the support of a
chain. Every photograph is asked once, in the whole collection, and what was
thinned out is left out afterwards.
"""

import argparse
import statistics
from collections.abc import Mapping

import numpy as np

from delf_jax import (
  database,
  extractors,
  match_chains,
  match_score,
  progress,
  retrieval,
)
from delf_jax.evaluation import protocols
from delf_jax.features import store
from delf_jax.index import exact

FIGURES = ("mAP_medium", "mAP_hard", "R@90", "R@95")
Found = Mapping[str, float]


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--store", required=True)
  parser.add_argument("--ground_truth", required=True)
  parser.add_argument("--distractors", required=True)
  parser.add_argument("--calibration", help="by default that of the features")
  parser.add_argument("--shares", default="0.25,0.4,1")
  parser.add_argument("--times", type=int, default=8)
  parser.add_argument("--most", default="0,10,30")
  parser.add_argument("--supports", default="0,0.05,0.1,0.15,0.2,0.3")
  arguments = parser.parse_args()

  opened = store.open_store(arguments.store)
  others = store.open_store(arguments.distractors)
  truth = protocols.read_ground_truth(arguments.ground_truth)
  calibration = (
    match_score.read_calibration(arguments.calibration)
    if arguments.calibration
    else extractors.calibration_of(opened.settings)
  )
  places = database.connect(opened, exact.build(opened.descriptors()))

  def ask(source, number, leave_out):
    found = retrieval.search(
      source.features(number),
      tuple(source.sizes[number]),
      places,
      leave_out=leave_out,
      calibration=calibration,
    )
    return {match.path: match.score for match in found}

  known = {
    path: ask(opened, i, i)
    for i, path in enumerate(
      progress.track(opened.paths, label="photographs", unit="photograph")
    )
  }
  strangers = {
    path: ask(others, i, None)
    for i, path in enumerate(
      progress.track(others.paths, label="distractors", unit="photograph")
    )
  }
  print(
    f"{len(truth.queries)} queries, {len(known)} photographs, "
    f"{len(strangers)} distractor queries; percent\n"
  )
  most = [int(number) for number in arguments.most.split(",")]
  supports = [float(value) for value in arguments.supports.split(",")]
  print(
    f"{'photographs':>12}{'asked':>6}  " + " ".join(f"{f:>10}" for f in FIGURES)
  )
  every = []
  for share in map(float, arguments.shares.split(",")):
    times = arguments.times if share < 1 else 1
    parts = [
      thin(truth, known, strangers, share, seed) for seed in range(times)
    ]
    every += parts
    for number in most:
      measured = [measure(*part, number) for part in parts]
      line = " ".join(
        f"{statistics.fmean(one[figure] for one in measured):10.1f}"
        for figure in FIGURES
      )
      print(f"{100 * share:>11.0f}%{number:>6}  {line}", flush=True)
  print(
    f"\ncalled a match, in all these collections together, asked {max(most)} "
    f"of those with probability {retrieval.MIN_PROBABILITY} or more:\n"
    f"{'support':>8}{'found':>8}{'wrong':>8}{'of these strangers':>20}"
  )
  for support in supports:
    counts = np.sum(
      [count(*part, max(most), support) for part in every], axis=0
    )
    right, positives, wrong, of_strangers = counts.tolist()
    print(
      f"{support:>8g}{100 * right / positives:>7.1f}%{wrong:>8}"
      f"{of_strangers:>20}"
    )


def thin(truth, known, strangers, share, seed):
  """Returns a random share of the photographs, and what is asked there."""
  generator = np.random.default_rng(seed)
  kept = {path for path in sorted(known) if generator.random() < share}
  queries = []
  for query in truth.queries:
    easy, hard, junk = (
      tuple(path for path in getattr(query, kind) if path in kept)
      for kind in ("easy", "hard", "junk")
    )
    if easy or hard:
      queries.append(protocols.QueryTruth(query.path, easy, hard, junk))

  def left(found):
    return {path: p for path, p in found.items() if path in kept and p > 0}

  return (
    protocols.GroundTruth(tuple(queries)),
    {path: left(found) for path, found in known.items()},
    {path: left(found) for path, found in strangers.items()},
  )


def chains(
  query: str | None,
  found: Found,
  known: Mapping[str, Found],
  most: int,
  **least,
) -> dict[str, match_chains.Chain]:
  """Follows what a query found; it never finds itself."""

  def ask(path):
    return {other: p for other, p in known[path].items() if other != query}

  return match_chains.follow(found, ask, most=most, **least)


def measure(truth, known, strangers, most) -> dict[str, float]:
  """Returns the figures of the protocol."""

  def rank(query, found):
    followed = chains(query, found, known, most)
    scores = {path: chain.score for path, chain in followed.items()}
    return sorted(scores.items(), key=lambda one: -one[1])

  return protocols.evaluate(
    truth,
    {
      query.path: rank(query.path, known[query.path]) for query in truth.queries
    },
    {path: rank(None, found) for path, found in strangers.items()},
  )


def count(truth, known, strangers, most, support) -> tuple[int, int, int, int]:
  """Counts what is called a match: right, of how many, wrong, of strangers."""

  def accept(query, found):
    followed = chains(
      query, found, known, most, least=retrieval.MIN_PROBABILITY
    )
    return {
      path
      for path, chain in followed.items()
      if found.get(path, 0) >= retrieval.MIN_PROBABILITY
      or (
        chain.probability >= retrieval.MIN_PROBABILITY
        and chain.support >= support
      )
    }

  right = positives = wrong = 0
  for query in truth.queries:
    accepted = accept(query.path, known[query.path]) - set(query.junk)
    good = set(query.easy) | set(query.hard)
    right += len(accepted & good)
    wrong += len(accepted - good)
    positives += len(good)
  of_strangers = sum(len(accept(None, f)) for f in strangers.values())
  return right, positives, wrong + of_strangers, of_strangers


if __name__ == "__main__":
  main()
