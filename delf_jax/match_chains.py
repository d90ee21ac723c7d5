"""What a query finds through photographs that it has found.

A photograph of the back of a palace may have nothing in common with a query of
its front, and much with one of its side. If the query shows the same place as
the side with probability p, and the side the same as the back with q, then the
query shows the same as the back with p q at least: the most probable chain of
verified matches tells how sure that is. No chain is more probable than its
first match, so that a stranger is no surer of what it finds; but one mistake
leads it to all photographs of a place. What tells the two apart is that a query
finds many of those that find each other, and a stranger one: besides the
probability of a chain counts how probably the query itself matches what is
linked to its end.

Asking again with what was found and verified is query expansion (Chum et al.,
"Total recall", ICCV 2007); theirs averages features, and one wrong photograph
among those found spoils them. Here it weighs what its match weighs.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from delf_jax.errors import InputError

# Chosen on training photographs: there thirty photographs asked again found
# what asking every one did, ten nearly as much, and asking those found with a
# smaller probability changed nothing but the time.
MOST = 30
LEAST = 0.02

# The power of the support in the score, and what it is never less than. Chosen
# on training photographs, where anything from 0.15 to 0.35 finds as much, and
# on drawings, whose matches are too sure: there it counts.
SUPPORT_POWER = 0.25
LEAST_SUPPORT = 0.01

# A match by way of others needs this support to be called one, so that a single
# mistake brings no place with it (tests/benchmarks/chains.py). On training
# photographs one in thirty right ones is lost by it (delf_small; RootSIFT: one
# in thirteen) and none is wrong either way; on drawings, where RootSIFT is far
# too sure, five of six wrong ones go.
CONVINCING = 0.15


def check_score(score: str) -> None:
  """Refuses candidates that are sorted by anything but their probability.

  Args:
    score: of `retrieval.search`.

  Raises:
    InputError: if chains cannot be made of it.
  """
  if score != "probability":
    raise InputError(
      f"photographs that were found are asked again (expansion) by the "
      f"probability of their match, not by their score, which is {score!r} here"
    )


class Chain(NamedTuple):
  """How a photograph was found.

  Attributes:
    probability: that it shows the same place as the query: the product of
      those of the matches of the chain.
    via: photographs between the query and it, in this order; none of what the
      query found itself.
    support: the mean probability that the query itself matches a photograph or
      one that is linked to it, weighted by those links (and one for itself); of
      the photographs of the chain the least, so that none is scored above those
      on the way to it.
  """

  probability: float
  via: tuple[str, ...] = ()
  support: float = 1.0

  @property
  def score(self) -> float:
    """What photographs are best sorted by, from 0 to 1."""
    support = min(max(self.support, LEAST_SUPPORT), 1.0)
    return self.probability ** (1 - SUPPORT_POWER) * support**SUPPORT_POWER


def convincing(via: Sequence[str], support: float) -> bool:
  """Says whether a match that is probable enough may be called one.

  Args:
    via: see `Chain`; what the query found itself needs no support.
    support: see there.
  """
  return not via or support >= CONVINCING


def follow(
  found: Mapping[str, float],
  ask: Callable[[str], Mapping[str, float]],
  *,
  most: int = MOST,
  least: float = LEAST,
) -> dict[str, Chain]:
  """Asks again with what was found, the most probable first.

  Args:
    found: path -> probability of what the query found.
    ask: path -> what that photograph finds, likewise; called once a photograph
      at most. Neither may hold the query itself.
    most: photographs that are asked.
    least: a photograph found with a smaller probability is not asked.

  Returns:
    path -> its most probable chain. Equally probable photographs are asked in
    the order of their paths; of equally probable chains the one that was found
    first counts. Links are known of photographs that were asked, in the
    direction that is surer.
  """
  chains = {path: Chain(p) for path, p in found.items() if p > 0}
  waiting = [(-chain.probability, path) for path, chain in chains.items()]
  heapq.heapify(waiting)
  asked: dict[str, Mapping[str, float]] = {}
  while waiting and len(asked) < most:
    negative, path = heapq.heappop(waiting)
    if -negative < least:
      break
    if path in asked:
      continue  # waited with a smaller probability as well
    asked[path] = ask(path)
    chain = chains[path]
    for other, p in asked[path].items():
      probability = chain.probability * p
      if probability > (chains[other].probability if other in chains else 0):
        chains[other] = Chain(probability, (*chain.via, path))
        heapq.heappush(waiting, (-probability, other))
  support = {path: _support(path, found, asked) for path in chains}
  return {
    path: chain._replace(support=min(support[p] for p in (*chain.via, path)))
    for path, chain in chains.items()
  }


def _support(
  path: str,
  found: Mapping[str, float],
  asked: Mapping[str, Mapping[str, float]],
) -> float:
  """Returns how a photograph by itself is supported, see `Chain`."""
  total, weights = max(found.get(path, 0.0), 0.0), 1.0
  for other, links in sorted(asked.items()):
    weight = max(links.get(path, 0.0), asked.get(path, {}).get(other, 0.0))
    if other != path and weight > 0:
      total += weight * max(found.get(other, 0.0), 0.0)
      weights += weight
  return total / weights
