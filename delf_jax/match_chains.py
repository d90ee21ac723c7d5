"""What a query finds through photographs that it has found.

A photograph of the back of a palace may have nothing in common with a query of
its front, and much with one of its side. If the query shows the same place as
the side with probability p, and the side the same as the back with q, then the
query shows the same as the back with p q at least: the most probable chain of
verified matches tells how sure that is. A stranger gains nothing by it, since
no chain is more probable than its first match.

Asking again with what was found and verified is query expansion (Chum et al.,
"Total recall", ICCV 2007); theirs averages features, and one wrong photograph
among those found spoils them. Here it weighs what its match weighs.
"""

import heapq
from collections.abc import Callable, Mapping
from typing import NamedTuple

# Chosen on training photographs: there thirty photographs asked again found
# what asking every one did, ten nearly as much, and asking those found with a
# smaller probability changed nothing but the time.
MOST = 30
LEAST = 0.02


class Chain(NamedTuple):
  """How a photograph was found.

  Attributes:
    probability: that it shows the same place as the query: the product of
      those of the matches of the chain.
    via: photographs between the query and it, in this order; none of what the
      query found itself.
  """

  probability: float
  via: tuple[str, ...] = ()


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
    first counts.
  """
  chains = {path: Chain(p) for path, p in found.items() if p > 0}
  waiting = [(-chain.probability, path) for path, chain in chains.items()]
  heapq.heapify(waiting)
  asked: set[str] = set()
  while waiting and len(asked) < most:
    negative, path = heapq.heappop(waiting)
    if -negative < least:
      break
    if path in asked:
      continue  # waited with a smaller probability as well
    asked.add(path)
    chain = chains[path]
    for other, p in ask(path).items():
      probability = chain.probability * p
      if probability > (chains[other].probability if other in chains else 0):
        chains[other] = Chain(probability, (*chain.via, path))
        heapq.heappush(waiting, (-probability, other))
  return chains
