"""Queries whose answers are kept in a journal, and asked again of its finds.

A measurement that was killed goes on at the query where it was, and another
with the same database and options does not search again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from delf_jax import (
  feature_cache,
  match_chains,
  progress,
  retrieval,
  whole_files,
)
from delf_jax.data.retrieval_sets import RetrievalSet
from delf_jax.errors import InputError
from delf_jax.feature_cache import Selection
from delf_jax.global_descriptors import global_search
from delf_jax.items import Item

Ranking = list[tuple[str, float]]
Rankings = dict[str, Ranking]


class Job(NamedTuple):
  """One query, and the photograph of the database that it must not find."""

  item: Item
  left_out: str | None


def list_jobs(
  retrieval_set: RetrievalSet, cached: feature_cache.Cached
) -> tuple[list[Job], list[Job]]:
  """Lists the queries, and the distractor queries that can be used.

  A query that cannot be used finds nothing; a distractor query that cannot be
  used is left out, since its silence says nothing.

  Raises:
    InputError: if none of the distractor queries can be used.
  """
  jobs = [
    Job(query.item, retrieval_set.left_out(query))
    for query in retrieval_set.truth.queries
  ]
  for item, _ in jobs:
    if item.name not in cached.numbers:
      print(
        f"query {item.name!r} could not be used: all it had to find counts "
        f"as missed"
      )
  strangers = [
    Job(item, None)
    for item in retrieval_set.distractor_items
    if item.name in cached.numbers
  ]
  lost = len(retrieval_set.distractor_items) - len(strangers)
  if lost and not strangers:
    raise InputError(f"none of the {lost} distractor queries could be used")
  if lost:
    print(f"{lost} distractor queries could not be used and are left out")
  return jobs, strangers


class Asker:
  """Asks queries, and remembers what they found."""

  def __init__(
    self,
    cached: feature_cache.Cached,
    searchable: retrieval.Database,
    selection: Selection,
    journal: Path,
    search: Callable[..., Sequence[retrieval.Match | global_search.Found]],
  ) -> None:
    """Takes what is asked, and where the answers are kept.

    Args:
      cached: features of queries and database.
      searchable: the database.
      selection: of every photograph's features.
      journal: a file, perhaps of an earlier run; it belongs to this database
        and these options of the search.
      search: (features, size, database, leave_out) -> what was found.
    """
    self._cached = cached
    self._searchable = searchable
    self._selection = selection
    self._journal = journal
    self._search = search
    self._numbers = {path: i for i, path in enumerate(searchable.paths)}
    journal.parent.mkdir(parents=True, exist_ok=True)
    self._known = _read_journal(journal)

  def rank(self, jobs: Sequence[Job]) -> Rankings:
    """Returns what queries found; one that cannot be used finds nothing."""
    missing = [
      job
      for job in jobs
      if job.item.name in self._cached.numbers
      and self._key(job) not in self._known
    ]
    for job in progress.track(missing, label="search", unit="query"):
      self._ask(job)
    return {job.item.name: self._known.get(self._key(job), []) for job in jobs}

  def expand(
    self, jobs: Sequence[Job], rankings: Rankings, most: int
  ) -> Rankings:
    """Asks again with what queries found; see `match_chains.follow`."""

    def found(ranking, query):
      # Photographs that were not verified have no probability, but a cosine
      # less one.
      return {path: p for path, p in ranking if p > 0 and path != query}

    expanded = {}
    for job in progress.track(jobs, label="ask again", unit="query"):
      ranking = rankings[job.item.name]
      chains = match_chains.follow(
        found(ranking, job.left_out),
        lambda path, job=job: found(
          self._ask(Job(Item(path), path)), job.left_out
        ),
        most=most,
      )
      scores = dict(ranking) | {
        path: chain.score for path, chain in chains.items()
      }
      # Equal ones stay as they were, those that are new behind them.
      expanded[job.item.name] = sorted(
        scores.items(), key=lambda pair: -pair[1]
      )
    return expanded

  def _ask(self, job: Job) -> Ranking:
    key = self._key(job)
    if key not in self._known:
      name = job.item.name
      matches = self._search(
        self._cached.features(name, self._selection),
        self._cached.size(name),
        self._searchable,
        leave_out=self._numbers.get(job.left_out),
      )
      self._known[key] = [(one.path, one.score) for one in matches]
      with open(self._journal, "a") as file:
        file.write(json.dumps([key, self._known[key]]) + "\n")
    return self._known[key]

  def _key(self, job: Job) -> str:
    item, left_out = job
    return json.dumps([item.name, self._cached.stamps[item.path], left_out])


def _read_journal(path: Path) -> Rankings:
  """Reads what was found before, and cuts off a line that was not finished."""
  try:
    content = path.read_bytes()
  except OSError:
    return {}
  whole = content[: content.rfind(b"\n") + 1]
  if len(whole) < len(content):
    whole_files.write_file(path, whole)
  entries = map(json.loads, whole.splitlines())
  return {
    key: [(found, score) for found, score in ranking]
    for key, ranking in entries
  }
