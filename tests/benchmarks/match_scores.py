"""Which score of a match finds most at high precision, for fixed features.

  python tests/benchmarks/match_scores.py --store rootsift=STORE \
      --distractors rootsift=STORE2 --ground_truth FILE.json
  python tests/benchmarks/match_scores.py --store rootsift=STORE \
      --pairs FILE.csv --prefix train/

STORE is what delf_jax.extract wrote; several kinds of features may be given.
The first form searches it with the queries of the ground truth and with the
distractor photographs of STORE2, and prints mAP, mAP hard, R@90 and R@95. The
second compares the pairs of the CSV file (columns path_a and path_b) whose
paths begin with the prefix, which the store's paths lack, and as many pairs of
photographs of different folders: area under ROC, true positives at 1 % and
0.1 % false ones, and whether the probability keeps what it promises. OpenCV's
count is that of `estimateAffine2D` with 1000 hypotheses, the same threshold
and the same putative matches; with "votes" and "plain" every vote is one, many
to one or not.
"""

import argparse
import csv

import cv2
import numpy as np

from delf_jax import calibration, database, extractors, match_score, retrieval
from delf_jax.evaluation import metrics, protocols
from delf_jax.features import store
from delf_jax.index import exact

SCORES = (
  "votes, plain",
  "votes, plain, OpenCV",
  "mutual, OpenCV",
  "mutual, one to one",
  "mutual, weighted",
  "probability",
)


def opencv_count(match: retrieval.Match) -> int:
  """Counts inliers as OpenCV finds them."""
  if match.votes < 3:
    return 0
  by = retrieval.THRESHOLD / match.reach
  shrink = min(1.0, retrieval.REFERENCE_SIDE / max(match.query_size))
  _, inliers = cv2.estimateAffine2D(
    match.query_locations[:, ::-1] * shrink,
    match.image_locations[:, ::-1] * by,
    ransacReprojThreshold=retrieval.THRESHOLD,
    maxIters=1000,
  )
  return 0 if inliers is None else int(inliers.sum())


def scores_of(
  plain: retrieval.Match | None, match: retrieval.Match, chosen
) -> list[float]:
  """Returns the scores of a candidate in the order of `SCORES`."""
  return [
    plain.inlier_count if plain else 0,
    opencv_count(plain) if plain else 0,
    opencv_count(match),
    match.inlier_count,
    float(match.weights[match.inliers].sum()),
    float(match_score.probability(match_score.evidence(match), chosen)),
  ]


def rank(opened, numbers, searchable, left_out, chosen):
  """Searches; returns, by score, the rankings of the queries."""
  rankings = [{} for _ in SCORES]
  for number in numbers:
    query, size = opened.features(number), tuple(opened.sizes[number])
    options = {"leave_out": number if left_out else None, "score": "inliers"}
    plain = {
      match.path: match
      for match in retrieval.search(
        query, size, searchable, matching="votes", counting="plain", **options
      )
    }
    found = retrieval.search(query, size, searchable, **options)
    table = [scores_of(plain.get(m.path), m, chosen) for m in found]
    for ranking, scores in zip(rankings, np.transpose(table), strict=True):
      order = np.argsort(-scores, kind="stable")
      ranking[opened.paths[number]] = [
        (found[i].path, float(scores[i])) for i in order
      ]
  return rankings


def measure_retrieval(kind, arguments, chosen) -> None:
  """Prints a row a score."""
  opened = store.open_store(dict(arguments.store)[kind])
  searchable = database.connect(opened, exact.build(opened.descriptors()))
  truth = protocols.read_ground_truth(arguments.ground_truth)
  numbers = {path: i for i, path in enumerate(opened.paths)}
  queries = [numbers[query.path] for query in truth.queries]
  rankings = rank(opened, queries, searchable, True, chosen)
  distractors = [{} for _ in SCORES]
  if kind in dict(arguments.distractors):
    others = store.open_store(dict(arguments.distractors)[kind])
    distractors = rank(
      others, range(len(others.paths)), searchable, False, chosen
    )
  print(f"\n| {kind} | mAP | hard | R@90 | R@95 |\n|---|---|---|---|---|")
  for name, found, none in zip(SCORES, rankings, distractors, strict=True):
    result = protocols.evaluate(truth, found, none)
    values = (
      "-" if result[key] is None else f"{result[key]:.1f}"
      for key in ("mAP_medium", "mAP_hard", "R@90", "R@95")
    )
    print(f"| {name} | " + " | ".join(values) + " |", flush=True)


def measure_pairs(kind, arguments, chosen) -> None:
  """Prints a row a score, and the reliability of the probability."""
  opened = store.open_store(dict(arguments.store)[kind])
  numbers = {arguments.prefix + path: i for i, path in enumerate(opened.paths)}
  with open(arguments.pairs, newline="") as file:
    pairs = [(row["path_a"], row["path_b"]) for row in csv.DictReader(file)]
  pairs = [p for p in pairs if p[0] in numbers and p[1] in numbers]
  generator = np.random.default_rng(arguments.seed)
  if arguments.limit:
    chosen_rows = generator.permutation(len(pairs))[: arguments.limit]
    pairs = [pairs[i] for i in chosen_rows]
  names = sorted({path for pair in pairs for path in pair})
  others: list[tuple[str, str]] = []
  while len(others) < len(pairs):
    one, other = (names[i] for i in generator.integers(len(names), size=2))
    if one.rsplit("/", 1)[0] != other.rsplit("/", 1)[0]:
      others.append((one, other))
  table = []
  for one, other in pairs + others:
    given = []
    for name in (one, other):
      number = numbers[name]
      given += [opened.features(number), tuple(opened.sizes[number])]
    plain = retrieval.compare(*given, matching="votes", counting="plain")
    table.append(scores_of(plain, retrieval.compare(*given), chosen))
  positive = np.arange(len(table)) < len(pairs)
  print(
    f"\n{kind}: {len(pairs)} pairs of one place, as many of two\n\n"
    f"| score | area | true at 1 % | true at 0.1 % |\n|---|---|---|---|"
  )
  for name, scores in zip(SCORES, np.transpose(table), strict=True):
    area = metrics.area_under_roc(scores, positive)
    found = [
      np.mean(scores[positive] > np.quantile(scores[~positive], 1 - share))
      for share in (0.01, 0.001)
    ]
    print(f"| {name} | {area:.4f} | {found[0]:.3f} | {found[1]:.3f} |")
  print("\n| predicted | observed | pairs |\n|---|---|---|")
  for row in calibration.reliability(np.array(table)[:, -1], positive):
    print(f"| {row.predicted:.3f} | {row.observed:.3f} | {row.count} |")


def named(text: str) -> tuple[str, str]:
  kind, found, path = text.partition("=")
  if not found:
    raise argparse.ArgumentTypeError("expected KIND=STORE")
  return kind, path


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--store", type=named, action="append", required=True)
  parser.add_argument("--distractors", type=named, action="append", default=[])
  parser.add_argument("--ground_truth")
  parser.add_argument("--pairs")
  parser.add_argument("--prefix", default="")
  parser.add_argument("--limit", type=int, help="so many pairs, by chance")
  parser.add_argument("--calibration", help="what delf_jax.calibrate wrote")
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  for kind, path in arguments.store:
    chosen = extractors.calibration_of(store.open_store(path).settings)
    if arguments.calibration:
      chosen = match_score.read_calibration(arguments.calibration)
    if arguments.ground_truth:
      measure_retrieval(kind, arguments, chosen)
    if arguments.pairs:
      measure_pairs(kind, arguments, chosen)


if __name__ == "__main__":
  main()
