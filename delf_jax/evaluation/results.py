"""Rankings of a retrieval set in, numbers with intervals out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from delf_jax.evaluation import bootstrap, metrics, protocols
from delf_jax.evaluation.protocols import (
  GroundTruth,
  Pairs,
  QueryTruth,
  Ranking,
)

# Section 5.4 of the paper, and the mean radius of the earth.
MATCH_KM = 25.0
EARTH_KM = 6371.0088
_TP_PRECISIONS = {"TP@95": 0.95, "TP@90": 0.90, "TP@85": 0.85}


class Judged(Protocol):
  """What is needed of a `data.retrieval_sets.RetrievalSet`."""

  name: str
  protocol: str
  truth: GroundTruth
  distractors: Sequence[QueryTruth]
  positions: Mapping[str, tuple[float, float]]
  labels: Mapping[str, tuple[str, ...]]


class Estimate(NamedTuple):
  """A number and how far another draw of queries might move it.

  Attributes:
    value: in percent, or a count; None where nothing defines it.
    low: end of the 95 % percentile interval; None without one.
    high: its other end.
  """

  value: float | None
  low: float | None = None
  high: float | None = None

  def __str__(self) -> str:
    if self.value is None:
      return "undefined"
    if self.low is None or self.high is None:
      return f"{self.value:.2f}"
    return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclasses.dataclass(frozen=True)
class Result:
  """What a protocol says about rankings.

  Attributes:
    protocol: one of `PROTOCOLS`.
    estimates: name of a measure -> its value; percent, but for TP@P, a count.
    curve: of everything returned: precision and recall, or, where nobody knows
      how much there is to find, precision and true positives.
    num_queries: without the distractors.
    num_distractors: queries with nothing to find.
  """

  protocol: str
  estimates: dict[str, Estimate]
  curve: metrics.PrecisionRecall | metrics.PrecisionCounts
  num_queries: int
  num_distractors: int

  def as_json(self) -> dict[str, Any]:
    """Returns names -> values, "intervals" -> names -> [low, high], counts."""
    return {
      **{name: estimate.value for name, estimate in self.estimates.items()},
      "intervals": {
        name: [estimate.low, estimate.high]
        for name, estimate in self.estimates.items()
        if estimate.low is not None
      },
      "protocol": self.protocol,
      "num_queries": self.num_queries,
      "num_distractors": self.num_distractors,
    }


def measure(
  judged: Judged,
  rankings: Mapping[str, Ranking],
  distractor_rankings: Mapping[str, Ranking] | None = None,
  *,
  resamples: int = 1000,
  seed: int = 0,
) -> Result:
  """Measures rankings as the set's protocol says.

  * "revisited": mAP and mP@k in the set-ups easy, medium and hard, and R@P;
    see `protocols.evaluate`.
  * "classic" (Oxford5k, Paris6k, Holidays): mAP, trapezoidal, and R@P.
  * "retrieval" (Google Landmarks v2): mAP@100, rectangular, and R@P.
  * "recognition" (Google Landmarks v2): the first photograph returned gives
    its landmark to the query, with its score as the confidence. GAP, and
    top1: the correct share of the queries that show a landmark.
  * "gps" (section 5.4 of the paper): a returned photograph is right if it was
    taken within 25 km of the query. TP@P is the number of right ones, of all
    queries at once, at the threshold that returns the most with precision P.

  Args:
    judged: the set.
    rankings: query id -> (path, score), best first; see `protocols.evaluate`.
    distractor_rankings: the same for queries with nothing to find.
    resamples: of the queries, for the intervals; 0 for none. See `bootstrap`.
    seed: of the resamples.

  Raises:
    ValueError: if rankings and queries disagree, or see `protocols.evaluate`.
  """
  protocol = PROTOCOLS[judged.protocol]
  others = distractor_rankings or {}
  pairs = protocol.collect(judged, rankings, others)
  # With nothing to find, whatever the database holds, there is no recall.
  positives = int(pairs.positives.sum())
  counts = metrics.precision_counts(pairs.scores, pairs.correct)
  curve = counts
  if protocol.knows_positives:
    curve = metrics.precision_recall(pairs.scores, pairs.correct, positives)
  values = {
    name: protocols.percent(metrics.mean_over_queries(each))
    for name, each in pairs.per_query.items()
  }
  for name, precision in protocol.recalls.items():
    share = metrics.recall_at_precision(curve, precision)
    values[name] = protocols.percent(share)
  for name, precision in protocol.true_positives.items():
    values[name] = metrics.true_positives_at_precision(counts, precision)
  if protocol.area:
    area = metrics.global_average_precision(
      pairs.scores, pairs.correct, positives
    )
    values[protocol.area] = protocols.percent(area)
  samples = _samples(protocol, pairs, resamples, seed) if resamples else {}
  return Result(
    protocol=judged.protocol,
    estimates={
      name: Estimate(value, *_interval(samples.get(name)))
      for name, value in values.items()
    },
    curve=curve,
    num_queries=len(judged.truth.queries),
    num_distractors=len(others),
  )


def _samples(
  protocol: "_Protocol", pairs: Pairs, resamples: int, seed: int
) -> dict[str, np.ndarray]:
  """Returns name -> [b] values of the measures, as they are reported."""
  wanted = {**protocol.recalls, **protocol.true_positives}
  drawn = bootstrap.resample(
    pairs, precisions=tuple(wanted.values()), resamples=resamples, seed=seed
  )
  samples = {name: 100 * values for name, values in drawn.means.items()}
  for column, name in enumerate(wanted):
    samples[name] = (
      100 * drawn.recalls[:, column]
      if name in protocol.recalls
      else drawn.true_positives[:, column]
    )
  if protocol.area:
    samples[protocol.area] = 100 * drawn.areas
  return samples


def _interval(
  values: np.ndarray | None,
) -> tuple[float | None, float | None]:
  if values is None or np.isnan(values).all():
    return None, None
  return bootstrap.interval(values)


def _collect_revisited(judged, rankings, others) -> Pairs:
  return protocols.collect(judged.truth, rankings, others)


def _collect_classic(judged, rankings, others) -> Pairs:
  pairs = protocols.collect(judged.truth, rankings, others)
  return pairs._replace(per_query={"mAP": pairs.per_query["mAP_medium"]})


def _collect_retrieval(judged, rankings, others) -> Pairs:
  pairs = protocols.collect(judged.truth, rankings, others)
  areas = [
    metrics.average_precision_at_k(
      [path for path, _ in rankings[query.id]],
      query.easy + query.hard,
      query.junk,
      k=100,
    )
    for query in judged.truth.queries
  ]
  return pairs._replace(per_query={"mAP@100": np.array(areas)})


def _collect_recognition(judged, rankings, others) -> Pairs:
  """Lets the first photograph that was returned name the landmark."""
  queries = _check(judged, rankings)
  scores, correct, owners = [], [], []
  top = np.full(len(queries), np.nan)
  shown = np.array([bool(judged.labels.get(q.path)) for q in queries], bool)
  top[shown] = 0
  for number, query in enumerate(queries):
    for path, score in rankings[query.id][:1]:
      if not score <= 0:
        names = judged.labels.get(query.path, ())
        right = not frozenset(judged.labels[path]).isdisjoint(names)
        scores.append(score)
        correct.append(right)
        owners.append(number)
        top[number] = right if shown[number] else np.nan
  for number, ranking in enumerate(others.values(), len(queries)):
    for _, score in ranking[:1]:
      if not score <= 0:
        scores.append(score)
        correct.append(False)
        owners.append(number)
  return _pairs({"top1": top}, scores, correct, owners, shown, len(others))


def _collect_gps(judged, rankings, others) -> Pairs:
  """Compares where query and photograph were taken."""
  queries = _check(judged, rankings)
  scores, correct, owners = [], [], []
  for number, query in enumerate(queries):
    returned = [pair for pair in rankings[query.id] if not pair[1] <= 0]
    if returned:
      there = np.array([judged.positions[path] for path, _ in returned])
      apart = distance_km(np.array(judged.positions[query.path]), there)
      scores.extend(score for _, score in returned)
      correct.extend(apart <= MATCH_KM)
      owners.extend([number] * len(returned))
  for number, ranking in enumerate(others.values(), len(queries)):
    returned = [score for _, score in ranking if not score <= 0]
    scores.extend(returned)
    correct.extend([False] * len(returned))
    owners.extend([number] * len(returned))
  positives = np.zeros(len(queries))
  return _pairs({}, scores, correct, owners, positives, len(others))


def distance_km(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Great-circle distance, by the haversine formula on a sphere.

  Args:
    one: [..., 2] latitude and longitude in degrees.
    other: [..., 2] likewise; the two broadcast.

  Returns:
    [...] kilometres.
  """
  one, other = np.radians(one), np.radians(other)
  north, east = np.moveaxis(np.sin((one - other) / 2) ** 2, -1, 0)
  parallel = np.cos(one[..., 0]) * np.cos(other[..., 0])
  chord = np.clip(north + parallel * east, 0, 1)
  return 2 * EARTH_KM * np.arcsin(np.sqrt(chord))


def _check(judged, rankings) -> Sequence[QueryTruth]:
  queries = judged.truth.queries
  if set(rankings) != {query.id for query in queries}:
    raise ValueError("rankings must be of exactly the ground truth's queries")
  return queries


def _pairs(per_query, scores, correct, owners, positives, count) -> Pairs:
  return Pairs(
    per_query=per_query,
    scores=np.array(scores, np.float64),
    correct=np.array(correct, bool),
    owners=np.array(owners, np.int64),
    positives=np.asarray(positives, np.int64),
    num_distractors=count,
  )


class _Protocol(NamedTuple):
  """How rankings are judged and which numbers that gives."""

  collect: Callable[[Judged, Mapping, Mapping], Pairs]
  recalls: Mapping[str, float] = MappingProxyType(protocols.PRECISIONS)
  true_positives: Mapping[str, float] = MappingProxyType({})
  area: str = ""
  knows_positives: bool = True


PROTOCOLS = {
  "revisited": _Protocol(_collect_revisited),
  "classic": _Protocol(_collect_classic),
  "retrieval": _Protocol(_collect_retrieval),
  "recognition": _Protocol(_collect_recognition, area="GAP"),
  "gps": _Protocol(
    _collect_gps,
    recalls={},
    true_positives=_TP_PRECISIONS,
    knows_positives=False,
  ),
}
