import json
import math

import numpy as np
import pytest

from delf_jax.errors import InputError
from delf_jax.evaluation import metrics, protocols
from delf_jax.evaluation.protocols import GroundTruth, QueryTruth


def write(path, content):
  path.write_text(json.dumps(content))
  return path


def entry(query="q", easy=("a",), hard=(), junk=(), **more):
  lists = {"easy": list(easy), "hard": list(hard), "junk": list(junk)}
  return {"query": query, **lists, **more}


def test_reads_the_revisited_form_and_ignores_the_rest(tmp_path):
  names = ["a b.jpg", 'x/"é".jpg', "new\nline", "\udcff.jpg"]
  file = write(
    tmp_path / "truth.json",
    {
      "note": "ignored",
      "queries": [
        entry(names[0], [names[1]], [names[2]], [names[3]], landmark="ignored"),
        entry(names[1], [], [], []),
      ],
    },
  )
  truth = protocols.read_ground_truth(file)
  assert truth == GroundTruth(
    (
      QueryTruth(names[0], (names[1],), (names[2],), (names[3],)),
      QueryTruth(names[1]),
    )
  )
  protocols.check_paths(truth, names)


def test_a_photograph_may_be_the_query_of_several_boxes(tmp_path):
  file = write(
    tmp_path / "truth.json",
    {
      "queries": [
        entry(box=[1, 2, 30.5, 40]),
        entry(box=[5, 2, 30.5, 40]),
        entry(box=None),
      ]
    },
  )
  truth = protocols.read_ground_truth(file)
  assert [query.id for query in truth.queries] == [
    "q#1,2,30.5,40",
    "q#5,2,30.5,40",
    "q",
  ]
  assert truth.queries[0].item == ("q", (1, 2, 30.5, 40))
  rankings = {query.id: [("a", 9)] for query in truth.queries}
  assert protocols.evaluate(truth, rankings, {})["mAP_medium"] == 100
  assert protocols.uncropped(truth).queries == (QueryTruth("q", ("a",)),)
  write(tmp_path / "truth.json", {"queries": [entry(box=[1, 2, 3, 4])] * 2})
  with pytest.raises(InputError, match="query 1 and again query 2"):
    protocols.read_ground_truth(file)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ([], "no list of queries"),
    ({"queries": {}}, "no list of queries"),
    ({"queries": []}, "has no queries"),
    ({"queries": [entry(), "b"]}, "query 2 is not an object"),
    ({"queries": [entry(), {"query": "b"}]}, "query 2 has no 'easy'"),
    ({"queries": [{"easy": [], "hard": [], "junk": []}]}, "1 has no 'query'"),
    ({"queries": [entry(query=7)]}, "query 1: 'query' must be the path"),
    ({"queries": [entry(query="")]}, "query 1: 'query' must be the path"),
    ({"queries": [{**entry(), "hard": "a"}]}, "'hard' must be a list"),
    ({"queries": [entry(junk=[3])]}, "'junk' must be a list"),
    ({"queries": [entry(easy=["q"])]}, "lists itself, 'q', as 'easy'"),
    ({"queries": [entry(junk=["a"])]}, "'a' as 'easy' and again as 'junk'"),
    (
      {"queries": [entry(easy=["a", "a"])]},
      "'a' as 'easy' and again as 'easy'",
    ),
    ({"queries": [entry(), entry("p"), entry()]}, "query 1 and again query 3"),
    ({"queries": [entry(easy=[], junk=["a"])]}, "nothing to find"),
  ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, content, message):
  file = write(tmp_path / "truth\n.json", content)
  with pytest.raises(InputError) as raised:
    protocols.read_ground_truth(file)
  assert message in str(raised.value)
  assert r"truth\n.json" in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"\x89PNG\r\n"]
)
def test_what_is_not_json_is_one_clear_line(tmp_path, content):
  file = tmp_path / "truth.json"
  file.write_bytes(content)
  with pytest.raises(InputError, match=r"truth\.json' is not JSON"):
    protocols.read_ground_truth(file)


def test_a_file_that_cannot_be_opened(tmp_path):
  for path in (tmp_path / "absent.json", tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
      protocols.read_ground_truth(path)


def test_names_photographs_that_are_not_there():
  truth = GroundTruth(
    (QueryTruth("q", ("a", "b"), ("c",), ("d",)), QueryTruth("r", ("a", "e")))
  )
  protocols.check_paths(truth, list("abcdeqr") + ["more"])
  with pytest.raises(InputError, match="5 photographs .*: 'a', 'd'; are"):
    protocols.check_paths(truth, list("bceqr"))
  with pytest.raises(InputError, match="'q', 'a', 'b' and 4 more; are"):
    protocols.check_paths(truth, [])


def test_evaluate_by_hand():
  truth = GroundTruth(
    (
      QueryTruth("p", easy=("a",), hard=("b",), junk=("j",)),
      QueryTruth("q", easy=("c", "d")),
    )
  )
  result = protocols.evaluate(
    truth,
    {
      # Without junk: a wrong b. For hard, a goes too: wrong b.
      "p": [("j", 99), ("a", 50), ("wrong", 20), ("b", 20)],
      # c, and d never came back.
      "q": [("c", 40)],
    },
    {"distractor": [("a", 30), ("b", 0)], "silent": []},
  )
  curve = result.pop("curve")
  assert result == {
    # Without hard: a, then wrong; c, and d never came back.
    "mAP_easy": pytest.approx(100 * (1 + 0.5) / 2),
    "mP@1_easy": pytest.approx(100),
    "mP@5_easy": pytest.approx(100 * (1 + 1 / 5) / 2),
    "mP@10_easy": pytest.approx(100 * (1 + 1 / 10) / 2),
    "mP@1_hard": pytest.approx(0),
    "mP@5_hard": pytest.approx(100 / 2),
    "mP@10_hard": pytest.approx(100 / 2),
    "mAP_medium": pytest.approx(100 * ((0.5 + 7 / 24) + 0.5) / 2),
    "mAP_hard": pytest.approx(100 * 0.25),
    "mP@1": pytest.approx(100),
    "mP@5": pytest.approx(100 * (2 / 3 + 1 / 5) / 2),
    "mP@10": pytest.approx(100 * (2 / 3 + 1 / 10) / 2),
    "R@90": pytest.approx(100 * 2 / 4),
    "R@95": pytest.approx(100 * 2 / 4),
    "num_queries": 2,
    "num_distractors": 2,
  }
  np.testing.assert_array_equal(curve.thresholds, [50, 40, 30, 20])
  np.testing.assert_allclose(curve.precision, [1, 1, 2 / 3, 3 / 5])
  np.testing.assert_allclose(curve.recall, [1 / 4, 2 / 4, 2 / 4, 3 / 4])
  json.dumps(result, allow_nan=False)


def test_what_has_no_inliers_keeps_its_rank_and_is_not_returned():
  truth = GroundTruth((QueryTruth("q", ("a",)),))
  result = protocols.evaluate(
    truth, {"q": [("a", 0.0), ("x", 0.0)]}, {"d": [("a", 0.0)]}
  )
  assert result["mAP_medium"] == 100
  assert result["R@90"] == 0
  assert len(result["curve"].thresholds) == 0


def test_one_confident_distractor_costs_recall():
  truth = GroundTruth((QueryTruth("q", ("a", "b")),))
  rankings = {"q": [("a", 50), ("b", 20)]}
  quiet = protocols.evaluate(truth, rankings, {"d": []})
  loud = protocols.evaluate(truth, rankings, {"d": [("a", 30)]})
  assert quiet["R@90"] == 100 and loud["R@90"] == 50
  assert quiet["mAP_medium"] == loud["mAP_medium"] == 100


def test_without_hard_photographs_hard_is_not_defined():
  truth = GroundTruth((QueryTruth("q", ("a",)),))
  result = protocols.evaluate(truth, {"q": [("a", 9)]}, {})
  assert result["mAP_hard"] is None and result["mAP_medium"] == 100


def slow_evaluate(truth, rankings, distractors):
  """Counts, for every query and threshold, what equations 2 and 3 count."""
  ranked = {"mAP_easy": [], "mAP_medium": [], "mAP_hard": []}
  for query in truth.queries:
    for name, positives, junk in (
      ("mAP_easy", query.easy, query.junk + query.hard),
      ("mAP_medium", query.easy + query.hard, query.junk),
      ("mAP_hard", query.hard, query.junk + query.easy),
    ):
      kept = [path for path, _ in rankings[query.path] if path not in junk]
      area = 0.0
      for place, path in enumerate(kept):
        if path in positives:
          earlier = sum(other in positives for other in kept[:place])
          before = earlier / place if place else 1.0
          area += (before + (earlier + 1) / (place + 1)) / 2 / len(positives)
      if positives:
        ranked[name].append(area)
  best = {0.90: 0.0, 0.95: 0.0}
  every = [*rankings.values(), *distractors.values()]
  for threshold in {score for r in every for _, score in r if score > 0}:
    returned = right = wanted = 0
    for query in truth.queries:
      wanted += len(query.easy) + len(query.hard)
      for path, score in rankings[query.path]:
        if score >= threshold and path not in query.junk:
          returned += 1
          right += path in query.easy or path in query.hard
    for ranking in distractors.values():
      returned += sum(score >= threshold for _, score in ranking)
    for precision in best:
      if returned and right / returned >= precision:
        best[precision] = max(best[precision], right / wanted)
  means = {name: 100 * np.mean(values) for name, values in ranked.items()}
  return {**means, "R@90": 100 * best[0.90], "R@95": 100 * best[0.95]}


def test_evaluate_is_the_slow_one_on_random_rankings():
  rng = np.random.default_rng(3)
  for _ in range(30):
    paths = [f"{i:02d}.jpg" for i in range(24)]
    queries, rankings = [], {}
    for number in range(6):
      others = [path for path in paths if path != paths[number]]
      labels = rng.choice(
        ["easy", "hard", "junk", ""], 23, p=[0.2, 0.2, 0.1, 0.5]
      )
      lists = [
        tuple(
          p for p, label in zip(others, labels, strict=True) if label == name
        )
        for name in ("easy", "hard", "junk")
      ]
      queries.append(QueryTruth(paths[number], *lists))
      bonus = np.isin(labels, ["easy", "hard"]) * rng.integers(0, 25, 23)
      scores = rng.integers(0, 8, 23) + bonus
      order = np.argsort(-scores, kind="stable")[: rng.integers(1, 23)]
      rankings[paths[number]] = [(others[i], float(scores[i])) for i in order]
    distractors = {
      f"d{i}": [
        (p, float(rng.integers(0, 9))) for p in rng.permutation(paths)[:5]
      ]
      for i in range(3)
    }
    truth = GroundTruth(tuple(queries))
    result = protocols.evaluate(truth, rankings, distractors)
    for name, value in slow_evaluate(truth, rankings, distractors).items():
      assert result[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize(
  ("rankings", "message"),
  [
    ({}, "exactly the ground truth's queries"),
    ({"q": [], "r": []}, "exactly the ground truth's queries"),
    ({"q": [("q", 3)]}, "'q' is in its own ranking"),
    ({"q": [("a", 3), ("a", 2)]}, "twice"),
    ({"q": [("a", math.nan)]}, "nan"),
  ],
)
def test_mistakes_raise(rankings, message):
  truth = GroundTruth((QueryTruth("q", ("a",)),))
  with pytest.raises(ValueError, match=message):
    protocols.evaluate(truth, rankings, {})


def test_the_curve_is_of_pairs_over_all_queries():
  truth = GroundTruth((QueryTruth("p", ("a",)), QueryTruth("q", ("b",))))
  rankings = {"p": [("a", 5), ("b", 4)], "q": [("a", 5), ("b", 4)]}
  curve = protocols.evaluate(truth, rankings, {})["curve"]
  expected = metrics.precision_recall([5, 4, 5, 4], [1, 0, 0, 1], 2)
  for ours, theirs in zip(curve, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
