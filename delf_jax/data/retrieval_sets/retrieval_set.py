"""What a benchmark is, once it has been read from the disk."""

import dataclasses
import hashlib
from collections.abc import Mapping

from delf_jax.evaluation.protocols import GroundTruth, QueryTruth
from delf_jax.items import Item


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
  """A database of photographs, queries, and what is right.

  Attributes:
    name: of the set, with what was chosen of it, for tables.
    root: folder that every path is relative to.
    database: paths of the photographs to be found, sorted.
    truth: the queries; `truth.keeps_queries` says whether a query's own
      photograph may be found.
    distractors: queries that have nothing to find, in a seeded order: fewer of
      them are the first of more.
    protocol: how to measure, one of `evaluation.results.PROTOCOLS`.
    positions: path -> (latitude, longitude) in degrees, of queries and
      database photographs, where that is what decides (protocol "gps").
    labels: path -> landmarks, of queries (none or several) and of database
      photographs (one), where that is what decides (protocol "recognition").
    problems: (file or folder, reason) of what was left out.
  """

  name: str
  root: str
  database: tuple[str, ...]
  truth: GroundTruth
  distractors: tuple[QueryTruth, ...] = ()
  protocol: str = "revisited"
  positions: Mapping[str, tuple[float, float]] = dataclasses.field(
    default_factory=dict, repr=False
  )
  labels: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict, repr=False
  )
  problems: tuple[tuple[str, str], ...] = ()

  @property
  def query_items(self) -> tuple[Item, ...]:
    """What to extract for the queries: parts cut out where they have boxes."""
    return tuple(query.item for query in self.truth.queries)

  @property
  def distractor_items(self) -> tuple[Item, ...]:
    """What to extract for the distractor queries."""
    return tuple(query.item for query in self.distractors)

  def left_out(self, query: QueryTruth) -> str | None:
    """Returns the photograph that a query must not find, if there is one."""
    return None if self.truth.keeps_queries else query.path

  @property
  def fingerprint(self) -> str:
    """Hexadecimal: equal where two people measure the same photographs.

    Of the names of files without their folders, so that it does not matter
    where somebody unpacked them, and of the queries' boxes.
    """
    digest = hashlib.sha256()
    for names in (
      self.database,
      [query.id for query in self.truth.queries],
      [query.id for query in self.distractors],
    ):
      for name in sorted(name.rpartition("/")[2] for name in names):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
      digest.update(b"\0")
    return digest.hexdigest()
