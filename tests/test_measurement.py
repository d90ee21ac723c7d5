"""What measurements share, do again, and where a killed one goes on."""

import dataclasses
import json

import numpy as np
import pytest

from delf_jax import (
  extractors,
  match_chains,
  match_score,
  measurement,
  retrieval,
)
from delf_jax.data import retrieval_sets
from delf_jax.errors import InputError
from delf_jax.evaluation import results
from delf_jax.evaluation.protocols import QueryTruth
from delf_jax.feature_cache import Selection

FAST = {"candidates": 5, "neighbours": 4}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
  return retrieval_sets.open_set(
    "synthetic",
    tmp_path_factory.mktemp("world"),
    num_landmarks=3,
    views=3,
    queries=1,
    clutter=2,
    distractors=2,
  )


@pytest.fixture(scope="module")
def extractor():
  return extractors.open_extractor("rootsift", max_features=200)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def searches(monkeypatch):
  """Counts searches, which are made all the same."""
  made = []
  search = retrieval.search

  def counted(query, *arguments, **options):
    made.append(query)
    return search(query, *arguments, **options)

  monkeypatch.setattr(retrieval, "search", counted)
  return made


def evaluate(extractor, benchmark, output, cache, **options):
  return measurement.evaluate(
    extractor, benchmark, output=output, cache=cache, **{**FAST, **options}
  )


def test_results_are_those_of_the_rankings(
  benchmark, extractor, cache, tmp_path
):
  found = evaluate(extractor, benchmark, tmp_path, cache)
  assert found == json.loads((tmp_path / "metrics.json").read_text())
  rankings = json.loads((tmp_path / "rankings.json").read_text())
  assert len(rankings["queries"]) == 3 and len(rankings["distractors"]) == 2
  for query, ranking in rankings["queries"].items():
    assert query not in [path for path, _ in ranking]
  measured = results.measure(
    benchmark, rankings["queries"], rankings["distractors"]
  )
  assert measured.as_json().items() <= found.items()
  assert found["intervals"]["mAP_medium"][0] <= found["mAP_medium"]
  curve = measurement.read_curve(tmp_path)
  for precision in (0.5, 0.9, 0.95):
    enough = measured.curve.recall[measured.curve.precision >= precision]
    kept = curve.recall[curve.precision >= precision]
    assert np.max(kept, initial=0) == np.max(enough, initial=0)
  assert (tmp_path / "precision_recall.png").stat().st_size > 1000


def test_what_is_done_is_not_done_again(
  benchmark, extractor, cache, tmp_path, searches
):
  first = evaluate(extractor, benchmark, tmp_path / "a", cache)
  searches.clear()
  assert evaluate(extractor, benchmark, tmp_path / "a", cache) == first
  assert not searches
  fewer = dataclasses.replace(benchmark, distractors=benchmark.distractors[:1])
  second = evaluate(extractor, fewer, tmp_path / "b", cache)
  assert not searches and second["num_distractors"] == 1
  third = evaluate(extractor, benchmark, tmp_path / "a", cache, neighbours=5)
  assert len(searches) == 5 and third["depends"] != first["depends"]


def test_probabilities_are_of_the_kind_of_feature(
  benchmark, extractor, cache, tmp_path
):
  found = evaluate(extractor, benchmark, tmp_path / "a", cache)
  shipped = match_score.shipped("rootsift")
  assert found["settings"]["calibration"] == str(shipped)
  found = evaluate(extractor, benchmark, tmp_path / "b", cache, score="inliers")
  assert "calibration" not in found["settings"]


def test_a_killed_search_goes_on_where_it_was(
  benchmark, extractor, cache, tmp_path, searches
):
  options = {"seed": 7}
  first = evaluate(extractor, benchmark, tmp_path / "a", cache, **options)
  searches.clear()
  journal = max(
    (cache / "rankings").glob("*.jsonl"), key=lambda path: path.stat().st_mtime
  )
  lines = journal.read_bytes().splitlines(keepends=True)
  assert len(lines) == 5
  journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])
  again = evaluate(extractor, benchmark, tmp_path / "b", cache, **options)
  assert len(searches) == 2
  assert {**again, "seconds": 0} == {**first, "seconds": 0}
  assert len(journal.read_bytes().splitlines()) == 5


def test_an_index_is_kept_and_its_search_options_are_not_part_of_it(
  benchmark, extractor, cache, tmp_path, searches
):
  def run(leaves):
    return evaluate(
      extractor,
      benchmark,
      tmp_path / str(leaves),
      cache,
      kind="kd_tree",
      index_options={"leaves": leaves},
    )

  few = run(1)
  assert len(list((cache / "indexes").iterdir())) == 1
  many = run(10_000)
  assert len(list((cache / "indexes").iterdir())) == 1
  # All leaves: what an exact search over the codes would find.
  assert few["depends"] != many["depends"] and len(searches) == 10
  rebuilt = evaluate(
    extractor,
    benchmark,
    tmp_path / "apart",
    tmp_path / "cache",
    kind="kd_tree",
    index_options={"leaves": 10_000},
  )
  assert rebuilt["mAP_medium"] == many["mAP_medium"]
  assert rebuilt["R@90"] == many["R@90"]


def test_a_selection_is_measured_as_if_it_alone_were_extracted(
  benchmark, extractor, cache, tmp_path
):
  part = evaluate(
    extractor,
    benchmark,
    tmp_path / "part",
    cache,
    selection=Selection(max_features=60),
  )
  alone = evaluate(
    extractors.open_extractor("rootsift", max_features=60),
    benchmark,
    tmp_path / "alone",
    cache,
  )
  assert part["settings"]["descriptors"] == alone["settings"]["descriptors"]
  for name in ("part", "alone"):
    assert (tmp_path / name / "rankings.json").exists()
  assert (tmp_path / "part" / "rankings.json").read_bytes() == (
    tmp_path / "alone" / "rankings.json"
  ).read_bytes()


def test_what_was_found_is_asked_again(
  benchmark, extractor, cache, tmp_path, searches
):
  options = {"seed": 3}
  plain = evaluate(extractor, benchmark, tmp_path / "a", cache, **options)
  assert len(searches) == 5 and "without_expansion" not in plain
  options["expansion"] = 4
  found = evaluate(extractor, benchmark, tmp_path / "b", cache, **options)
  assert found["without_expansion"].items() <= plain.items()
  assert found["settings"]["expansion"] == 4
  assert plain["settings"]["expansion"] == 0
  # Every photograph of the database is asked once at most, however often it
  # is found, and queries in the database have been asked already.
  assert 5 < len(searches) <= 5 + len(benchmark.database) - 3

  every = dataclasses.replace(
    benchmark,
    truth=dataclasses.replace(
      benchmark.truth,
      queries=tuple(
        QueryTruth(path, easy=tuple({*benchmark.database} - {path}))
        for path in benchmark.database
      ),
    ),
  )
  options["expansion"] = 0
  evaluate(extractor, every, tmp_path / "c", cache, **options)
  first, second, links = (
    json.loads((tmp_path / name / "rankings.json").read_text())
    for name in "abc"
  )
  for kind in ("queries", "distractors"):
    for query, ranking in first[kind].items():

      def ask(path, query=query):
        asked = dict(links["queries"][path])
        return {other: p for other, p in asked.items() if other != query}

      chains = match_chains.follow(dict(ranking), ask, most=4)
      expected = dict(ranking) | {p: c.score for p, c in chains.items()}
      assert dict(second[kind][query]) == expected
      scores = [score for _, score in second[kind][query]]
      assert scores == sorted(scores, reverse=True)
      assert query not in expected

  with pytest.raises(InputError, match="which is 'inliers' here"):
    evaluate(
      extractor,
      benchmark,
      tmp_path / "d",
      cache,
      score="inliers",
      expansion=1,
    )


def test_a_query_that_cannot_be_used_finds_nothing(extractor, tmp_path, capsys):
  made = retrieval_sets.open_set(
    "synthetic",
    tmp_path / "world",
    num_landmarks=2,
    views=3,
    queries=1,
    clutter=0,
    distractors=0,
  )
  query = made.truth.queries[0].path
  (tmp_path / "world" / "photos" / query).write_bytes(b"\xff\xd8\xff")
  found = evaluate(extractor, made, tmp_path / "a", None)
  printed = capsys.readouterr().out
  assert query in printed and "could not be used" in printed
  assert found["num_queries"] == 2
  rankings = json.loads((tmp_path / "a" / "rankings.json").read_text())
  assert rankings["queries"][query] == []


def test_a_distractor_that_cannot_be_used_is_no_silent_one(
  extractor, tmp_path, capsys
):
  made = retrieval_sets.open_set(
    "synthetic",
    tmp_path / "world",
    num_landmarks=1,
    views=2,
    queries=1,
    clutter=0,
    distractors=2,
  )
  photographs = sorted((tmp_path / "world" / "distractors").iterdir())
  photographs[0].write_bytes(b"\xff\xd8\xff")
  found = evaluate(extractor, made, tmp_path / "a", None)
  assert "1 distractor queries could not be used" in capsys.readouterr().out
  assert found["num_distractors"] == 1
  photographs[1].unlink()
  with pytest.raises(InputError, match="none of the 2 distractor queries"):
    evaluate(extractor, made, tmp_path / "b", None)


def test_an_unknown_option_of_an_index(benchmark, extractor, cache, tmp_path):
  with pytest.raises(InputError, match="no option of graph"):
    evaluate(
      extractor,
      benchmark,
      tmp_path,
      cache,
      kind="graph",
      index_options={"leafs": 3},
    )
