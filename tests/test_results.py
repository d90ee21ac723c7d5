import json
import math

import numpy as np
import pytest

from delf_jax.data.retrieval_sets import RetrievalSet
from delf_jax.evaluation import protocols, results
from delf_jax.evaluation.protocols import GroundTruth, QueryTruth


def make(protocol, queries, *, keeps=False, **more):
  return RetrievalSet(
    name=protocol,
    root=".",
    database=(),
    truth=GroundTruth(tuple(queries), keeps_queries=keeps),
    protocol=protocol,
    **more,
  )


def values(result):
  return {name: estimate.value for name, estimate in result.estimates.items()}


QUERIES = (
  QueryTruth("p", easy=("a",), hard=("b",), junk=("j",)),
  QueryTruth("q", easy=("c", "d")),
)
RANKINGS = {
  "p": [("j", 99), ("a", 50), ("wrong", 20), ("b", 20)],
  "q": [("c", 40)],
}
OTHERS = {"distractor": [("a", 30), ("b", 0)], "silent": []}


def test_revisited_is_what_evaluate_says():
  judged = make("revisited", QUERIES)
  result = results.measure(judged, RANKINGS, OTHERS)
  said = protocols.evaluate(judged.truth, RANKINGS, OTHERS)
  curve = said.pop("curve")
  assert said.pop("num_queries") == result.num_queries == 2
  assert said.pop("num_distractors") == result.num_distractors == 2
  assert values(result) == said
  np.testing.assert_array_equal(result.curve.precision, curve.precision)
  for estimate in result.estimates.values():
    assert estimate.low <= estimate.value <= estimate.high
    assert 0 <= estimate.low and estimate.high <= 100


def test_classic_keeps_the_query_where_the_truth_lists_it():
  queries = [QueryTruth("p", ("p", "a"), ("b",), ("j",), box=(1, 2, 30, 40))]
  ranking = [("p", 90), ("j", 80), ("x", 70), ("a", 60), ("b", 50)]
  rankings = {"p#1,2,30,40": ranking}
  judged = make("classic", queries, keeps=True)
  # Hits at ranks 1, 3 and 4 once the junk is gone.
  area = (1 + 1) + (1 / 2 + 2 / 3) + (2 / 3 + 3 / 4)
  result = results.measure(judged, rankings, resamples=0)
  assert values(result)["mAP"] == pytest.approx(100 * area / 6)
  assert set(values(result)) == {"mAP", "R@90", "R@95"}
  with pytest.raises(ValueError, match="in its own ranking"):
    results.measure(make("classic", queries), rankings)


def compute_ap(positives, junk, ranking):
  """The published program for Oxford5k, in its own words: a running curve."""
  old_recall, old_precision, area = 0.0, 1.0, 0.0
  hits = seen = 0
  for name in ranking:
    if name in junk:
      continue
    hits += name in positives
    recall, precision = hits / len(positives), hits / (seen + 1.0)
    area += (recall - old_recall) * ((old_precision + precision) / 2.0)
    old_recall, old_precision, seen = recall, precision, seen + 1
  return area


def test_classic_is_the_published_program():
  rng = np.random.default_rng(0)
  names = [f"n{i}" for i in range(40)]
  queries, rankings = [], {}
  for number in range(8):
    kinds = rng.choice(4, 40, p=[0.1, 0.1, 0.1, 0.7])
    kinds[number] = 0
    lists = [
      tuple(n for n, kind in zip(names, kinds, strict=True) if kind == k)
      for k in range(3)
    ]
    query = QueryTruth(names[number], *lists, box=(0, 0, 9, 9 + number))
    queries.append(query)
    order = rng.permutation(40)
    rankings[query.id] = [(names[i], 40.0 - k) for k, i in enumerate(order)]
  judged = make("classic", queries, keeps=True)
  expected = [
    compute_ap(
      {*query.easy, *query.hard},
      set(query.junk),
      [path for path, _ in rankings[query.id]],
    )
    for query in queries
  ]
  found = results.measure(judged, rankings, resamples=0)
  assert values(found)["mAP"] == pytest.approx(100 * np.mean(expected))


def test_google_retrieval():
  judged = make("retrieval", QUERIES)
  found = values(results.measure(judged, RANKINGS, resamples=0))
  # Junk j is gone: hits at 1 and 3 of two; a hit at 1 of two.
  expected = ((1 + 2 / 3) / 2 + 1 / 2) / 2
  assert found["mAP@100"] == pytest.approx(100 * expected)


def test_google_recognition():
  queries = [QueryTruth(name) for name in "pqrst"]
  labels = {
    "p": ("7", "8"),
    "q": ("9",),
    "r": (),
    "s": ("7",),
    "t": (),
    "a": ("7",),
    "b": ("8",),
    "c": ("9",),
  }
  rankings = {
    "p": [("b", 9), ("c", 3)],  # right
    "q": [("a", 8), ("c", 7)],  # wrong: the first alone counts
    "r": [("a", 5)],  # shows no landmark
    "s": [("a", 4)],  # right
    "t": [("c", 0)],  # nothing was returned
  }
  judged = make("recognition", queries, labels=labels)
  result = results.measure(judged, rankings, {"d": [("a", 6), ("b", 1)]})
  # In order of confidence: p right, q wrong, d wrong, r wrong, s right.
  assert values(result)["GAP"] == pytest.approx(100 * (1 + 2 / 5) / 3)
  assert values(result)["top1"] == pytest.approx(100 * 2 / 3)
  for name in ("GAP", "top1"):
    estimate = result.estimates[name]
    assert estimate.low <= estimate.value <= estimate.high


def test_gps():
  degree = 2 * math.pi * results.EARTH_KM / 360
  positions = {
    "p": (0, 0),
    "near": (0, 24.9 / degree),
    "far": (0, 25.1 / degree),
    "over": (0.1, -179.9),
    "q": (0.1, 179.9),
  }
  judged = make("gps", [QueryTruth("p"), QueryTruth("q")], positions=positions)
  rankings = {
    "p": [("near", 9), ("far", 7), ("over", 0)],
    "q": [("over", 8), ("near", 2)],
  }
  result = results.measure(judged, rankings, {"d": [("near", 1)]})
  assert values(result) == {"TP@95": 2, "TP@90": 2, "TP@85": 2}
  np.testing.assert_array_equal(result.curve.true_positives, [1, 2, 2, 2, 2])
  np.testing.assert_allclose(
    result.curve.precision, [1, 1, 2 / 3, 2 / 4, 2 / 5]
  )
  assert result.estimates["TP@90"].low >= 0


def test_distances():
  paris, oxford = np.array([48.8566, 2.3522]), np.array([51.752, -1.2577])
  # By the spherical law of cosines, another formula.
  a, b = np.radians(paris), np.radians(oxford)
  angle = math.acos(
    math.sin(a[0]) * math.sin(b[0])
    + math.cos(a[0]) * math.cos(b[0]) * math.cos(a[1] - b[1])
  )
  expected = results.EARTH_KM * angle
  assert results.distance_km(paris, oxford) == pytest.approx(expected)
  assert 400 < expected < 420
  half = math.pi * results.EARTH_KM
  assert results.distance_km(
    np.array([0, 0]), np.array([[0, 180], [0, -180], [90, 7], [0, 0]])
  ) == pytest.approx([half, half, half / 2, 0])


def test_results_are_json_and_read_well():
  result = results.measure(make("revisited", QUERIES), RANKINGS, OTHERS)
  said = json.loads(json.dumps(result.as_json(), allow_nan=False))
  assert said["mAP_medium"] == result.estimates["mAP_medium"].value
  assert said["intervals"]["R@90"] == list(result.estimates["R@90"][1:])
  assert said["protocol"] == "revisited" and said["num_distractors"] == 2
  assert str(results.Estimate(45.678, 40.1, 50.23)) == "45.68 [40.10, 50.23]"
  assert str(results.Estimate(45.678)) == "45.68"
  assert str(results.Estimate(None)) == "undefined"


def test_without_hard_photographs_hard_is_not_defined():
  judged = make("revisited", [QueryTruth("q", ("a",))])
  result = results.measure(judged, {"q": [("a", 9)]})
  assert result.estimates["mAP_hard"] == (None, None, None)
  assert "mAP_hard" not in result.as_json()["intervals"]
  json.dumps(result.as_json(), allow_nan=False)


def test_intervals_are_seeded_and_may_be_left_out():
  judged = make("revisited", QUERIES)
  one, same, other = (
    results.measure(judged, RANKINGS, OTHERS, seed=seed).estimates
    for seed in (1, 1, 2)
  )
  assert one == same
  none = results.measure(judged, RANKINGS, OTHERS, resamples=0)
  assert all(e.low is e.high is None for e in none.estimates.values())
  assert {n: e.value for n, e in one.items()} == values(none)
  assert {n: e.value for n, e in one.items()} == {
    n: e.value for n, e in other.items()
  }


@pytest.mark.parametrize("protocol", list(results.PROTOCOLS))
def test_rankings_must_be_of_the_queries(protocol):
  judged = make(protocol, [QueryTruth("q", ("a",), box=(0, 0, 5, 5))])
  for rankings in ({}, {"q": []}, {"q#0,0,5,5": [], "r": []}):
    with pytest.raises(ValueError, match="exactly the ground truth's queries"):
      results.measure(judged, rankings)
