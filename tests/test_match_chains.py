"""Chains of matches: the most probable ones, against all there are."""

import itertools

import numpy as np
import pytest

from delf_jax import match_chains
from delf_jax.match_chains import Chain


def world(seed, count=7, links=0.5):
  """Returns what a query finds, and what each photograph finds."""
  generator = np.random.default_rng(seed)
  names = [f"{number}.jpg" for number in range(count)]
  table = generator.uniform(size=(count + 1, count))
  table[generator.uniform(size=table.shape) > links] = 0
  table[1:][np.eye(count, dtype=bool)] = 0
  query, *rest = [dict(zip(names, row.tolist(), strict=True)) for row in table]
  return query, dict(zip(names, rest, strict=True))


def all_chains(found, graph):
  """The best probability of every photograph, over all simple chains."""
  best = {}
  for length in range(1, len(graph) + 1):
    for chain in itertools.permutations(graph, length):
      p = found[chain[0]]
      for one, other in itertools.pairwise(chain):
        p *= graph[one][other]
      if p > best.get(chain[-1], 0):
        best[chain[-1]] = p
  return best


@pytest.mark.parametrize("seed", range(6))
def test_the_most_probable_chain_of_all(seed):
  found, graph = world(seed)
  chains = match_chains.follow(found, graph.get, most=100, least=0)
  expected = all_chains(found, graph)
  assert set(chains) == set(expected)
  for path, (probability, via, _) in chains.items():
    assert probability == pytest.approx(expected[path], rel=1e-12)
    steps = [*via, path]
    product = found[steps[0]]
    for one, other in itertools.pairwise(steps):
      product *= graph[one][other]
    assert product == pytest.approx(probability, rel=1e-12)


def test_who_is_asked():
  found = {"a": 0.5, "b": 0.9, "c": 0.05, "d": 0.5, "e": 0.0}
  graph = {
    "a": {"b": 1.0},
    "b": {"c": 0.8, "f": 0.12},
    "c": {"f": 0.5},
    "d": {},
    "f": {},
  }
  asked = []

  def ask(path):
    asked.append(path)
    return graph[path]

  chains = match_chains.follow(found, ask, most=3)
  assert asked == ["b", "c", "a"]  # c by way of b, a before d
  assert chains["c"][:2] == (0.9 * 0.8, ("b",))
  assert chains["f"][:2] == (0.9 * 0.8 * 0.5, ("b", "c"))
  assert chains["a"][:2] == (0.5, ()) and chains["b"][:2] == (0.9, ())
  assert "e" not in chains
  asked.clear()
  match_chains.follow(found, ask, least=0.4)
  assert asked == ["b", "c", "a", "d"]  # not f, at 0.36
  asked.clear()
  unchanged = match_chains.follow(found, ask, most=0)
  assert not asked
  assert unchanged == {p: Chain(found[p], (), found[p]) for p in "abcd"}


def test_the_order_in_which_things_are_listed_does_not_matter():
  found, graph = world(3, links=0.9)
  found = dict.fromkeys(found, 0.5)
  graph = {path: dict.fromkeys(links, 0.9) for path, links in graph.items()}

  def reverse(listed):
    return dict(reversed(listed.items()))

  once = match_chains.follow(found, graph.get, most=3)
  turned = match_chains.follow(
    reverse(found), lambda path: reverse(graph[path]), most=3
  )
  assert once == turned


@pytest.mark.parametrize("seed", range(4))
def test_no_photograph_is_scored_above_those_on_the_way(seed):
  found, graph = world(seed)
  chains = match_chains.follow(found, graph.get, least=0)
  assert any(chain.via for chain in chains.values())
  for chain in chains.values():
    for path in chain.via:
      assert chain.score <= chains[path].score


def test_what_a_query_finds_of_what_is_linked_supports_a_chain():
  found = {"a": 0.9, "b": 0.4, "x": 0.2}
  graph = {
    "a": {"b": 0.5, "c": 0.6, "d": 1.0},
    "b": {"a": 0.8, "c": 0.1},
    "c": {"a": 0.3},
    "d": {},
    "x": {},
  }
  chains = match_chains.follow(found, graph.get)
  support = {path: chain.support for path, chain in chains.items()}
  of_a = (0.9 + 0.8 * 0.4 + 0.6 * 0 + 1.0 * 0) / (1 + 0.8 + 0.6 + 1.0)
  assert support == pytest.approx(
    {
      "a": of_a,
      # By way of a, whose support is less than (0.4 + 0.8 * 0.9 + 0.1 * 0) /
      # (1 + 0.8 + 0.1).
      "b": of_a,
      "c": (0 + 0.6 * 0.9 + 0.1 * 0.4) / (1 + 0.6 + 0.1),
      "d": of_a,  # less than (0 + 1.0 * 0.9) / (1 + 1.0)
      "x": 0.2,
    }
  )
  assert chains["b"].via == ("a",)
  assert chains["c"].score == pytest.approx(0.54**0.75 * (0.58 / 1.7) ** 0.25)
  assert Chain(0.5, (), 0.0).score == pytest.approx(0.5**0.75 * 0.01**0.25)


def test_one_mistake_brings_no_place():
  # A stranger that finds one photograph of a place whose ten others it does
  # not, and a query that finds every second.
  places = [f"{i:02d}" for i in range(11)]
  links = {a: {b: 0.99 for b in places if b != a} for a in places}
  stranger = match_chains.follow({"00": 0.95}, links.get)
  query = match_chains.follow(dict.fromkeys(places[::2], 0.95), links.get)
  for found, expected in ((stranger, ["00"]), (query, places)):
    assert sorted(found) == places
    assert all(chain.probability > 0.9 for chain in found.values())
    convincing = [
      path
      for path, chain in sorted(found.items())
      if match_chains.convincing(chain.via, chain.support)
    ]
    assert convincing == expected


def test_a_stranger_gains_nothing():
  found, graph = world(5, links=1.0)
  found = {path: 0.2 * p for path, p in found.items()}
  chains = match_chains.follow(found, graph.get, most=100, least=0)
  assert max(c.probability for c in chains.values()) == max(found.values())
