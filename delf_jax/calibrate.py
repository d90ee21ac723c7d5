"""Fits the probability of a match to your own features and ground truth.

  python -m delf_jax.calibrate --store STORE --ground_truth FILE.json \
      --output calibration.json
  python -m delf_jax.calibrate --store STORE --store STORE2 \
      --pairs FILE.csv --prefix train/ --distractors STORE3 \
      --output calibration.json

Searches STORE, what `delf_jax.extract` wrote, with queries of the ground truth:
candidates that it calls easy or hard are matches, junk counts for nothing, all
others are none. FILE.csv has columns path_a and path_b, a pair of photographs
of the same place a line; photographs that are linked by others only, or lie in
the same folder, count for nothing. Paths are those of the stores, in FILE.csv
after PREFIX. A probability should mean the same wherever it is given, so every
other query is also looked for among a few dozen photographs and compared with
single ones, full and reduced. Photographs of --distractors, features like those
of a STORE, show none of its places; a folder of the same name counts for
nothing.

Several stores weigh the same. Prints how well the probabilities of places that
were held out keep what they promise. --keep writes what was found, for other
fits with --gathered. `query` and `evaluate` take the file with
--calibration, and find it themselves as calibration.json in a checkpoint's
directory; the search options must be theirs.
"""

import csv
import dataclasses
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from delf_jax import (
  calibration,
  database,
  index,
  match_score,
  options,
  program,
  progress,
  retrieval,
)
from delf_jax.errors import InputError
from delf_jax.evaluation import metrics, protocols
from delf_jax.features import store
from delf_jax.features.local_features import LocalFeatures
from delf_jax.index import exact

# Where a probability must hold: the whole store, a small collection, a pair.
WHOLE, SMALL, PAIR, DISTRACTOR = "whole", "small", "pair", "distractor"
# Photographs of a small collection, of the query's place in it, and single
# ones of any other place that a query is compared with.
SMALL_SIZES = (20, 150)
SAME_PLACE = 2
OTHER_PLACES = 6
# Half of those queries are as if their photographs were so much smaller.
REDUCED = 0.4


@dataclasses.dataclass(frozen=True)
class Candidates:
  """Verified candidates whose truth is known.

  Attributes:
    evidence: [n, f] of `match_score.evidence`.
    positive: [n] bool, of the same place as their query.
    places: [n] a photograph that stands for the query's place.
    conditions: [n] where they were found: one of the above.
  """

  evidence: np.ndarray
  positive: np.ndarray
  places: np.ndarray
  conditions: np.ndarray


def read_pairs(
  path: str, *, prefix: str = "", photographs: Iterable[str] = ()
) -> protocols.GroundTruth:
  """Reads pairs of photographs of the same place as ground truth.

  Every photograph of a pair becomes a query. Its partners are easy; those that
  it is linked with through others, or that lie in its folder, are junk.

  Args:
    path: CSV file with the columns path_a and path_b.
    prefix: of the paths; it is taken off, and pairs without it are left out.
    photographs: that are searched.

  Raises:
    InputError: if the file has no such pairs.
  """
  try:
    with open(path, newline="") as file:
      pairs = [(row["path_a"], row["path_b"]) for row in csv.DictReader(file)]
  except OSError as error:
    raise InputError(
      f"{path!r} cannot be read: {error.strerror or error}"
    ) from error
  except (KeyError, csv.Error, UnicodeDecodeError) as error:
    raise InputError(
      f"{path!r} is no list of pairs: a CSV file with the columns path_a and "
      f"path_b"
    ) from error
  pairs = [
    (one.removeprefix(prefix), other.removeprefix(prefix))
    for one, other in pairs
    if one != other and one.startswith(prefix) and other.startswith(prefix)
  ]
  if not pairs or not all(one and other for one, other in pairs):
    raise InputError(f"{path!r} has no pairs, or a pair without a path")
  partners: dict[str, set[str]] = {}
  for one, other in pairs:
    partners.setdefault(one, set()).add(other)
    partners.setdefault(other, set()).add(one)
  place = _places(partners.items())
  near: dict[str, set[str]] = {}
  for name, first in place.items():
    near.setdefault(first, set()).add(name)
  for name in photographs:
    if os.path.dirname(name):
      near.setdefault(os.path.dirname(name), set()).add(name)
  return protocols.GroundTruth(
    tuple(
      protocols.QueryTruth(
        name,
        easy=tuple(sorted(others)),
        junk=tuple(
          sorted(
            (near[place[name]] | near.get(os.path.dirname(name), set()))
            - others
            - {name}
          )
        ),
      )
      for name, others in sorted(partners.items())
    ),
    source=f"pairs {path!r}",
  )


def gather(
  opened: store.Store,
  truth: protocols.GroundTruth,
  *,
  searchable: retrieval.Database,
  distractors: store.Store | None = None,
  most_queries: int | None = None,
  seed: int = 0,
  **search: Any,
) -> Candidates:
  """Searches with every query and describes what is found.

  Args:
    opened: the store of the photographs.
    truth: with the store's paths; queries that the store lacks are left out.
    searchable: the store and an index of it.
    distractors: photographs of other places.
    most_queries: by default all; and half as many distractors.
    seed: of the choice of queries, collections and pairs.
    search: options of `retrieval.search`.

  Returns:
    the candidates with at least one inlier.

  Raises:
    InputError: if the store has none of the queries.
  """
  numbers = {path: i for i, path in enumerate(opened.paths)}
  queries = [query for query in truth.queries if query.path in numbers]
  if not queries:
    raise InputError(
      f"{truth.source}: none of its queries is in the store "
      f"{opened.directory!r}; are the paths relative to the same folder?"
    )
  place = _places(
    (query.path, (*query.easy, *query.hard, *query.junk)) for query in queries
  )
  generator = np.random.default_rng(seed)
  rows: list[tuple[np.ndarray, bool, str, str]] = []

  def add(matches, same, unclear, where, condition):
    rows.extend(
      (match_score.evidence(match), match.path in same, where, condition)
      for match in matches
      if match.inlier_count and match.path not in unclear
    )

  chosen = generator.permutation(len(queries))[:most_queries]
  for turn, i in enumerate(
    progress.track(chosen, label="search", unit="query")
  ):
    query, number = queries[i], numbers[queries[i].path]
    look = _Photograph(
      query.path, opened.features(number), opened.sizes[number]
    )
    same, unclear = {*query.easy, *query.hard}, {*query.junk, query.path}
    where = place[query.path]
    found = retrieval.search(
      look.features, look.size, searchable, leave_out=number, **search
    )
    add(found, same, unclear, where, WHOLE)
    if turn % 2:
      continue
    others = [name for name in opened.paths if name not in same | unclear]
    partners = sorted(same & numbers.keys())
    partners = [
      partners[j] for j in generator.permutation(len(partners))[:SAME_PLACE]
    ]
    count = min(int(generator.integers(*SMALL_SIZES)), len(others))
    drawn = [others[j] for j in generator.permutation(len(others))[:count]]
    by = REDUCED if generator.random() < 0.5 else 1.0
    looks = [
      _Photograph(
        name, opened.features(numbers[name]), opened.sizes[numbers[name]]
      ).reduced(by)
      for name in (*partners, *drawn)
    ]
    look = look.reduced(by)
    found = retrieval.search(
      look.features, look.size, _collection(looks), **search
    )
    add(found, same, unclear, where, SMALL)
    found = [
      dataclasses.replace(
        retrieval.compare(
          look.features, look.size, one.features, one.size, **search
        ),
        path=one.name,
      )
      for one in looks[: len(partners) + OTHER_PLACES]
    ]
    add(found, same, unclear, where, PAIR)
  if distractors is not None:
    most = None if most_queries is None else most_queries // 2
    chosen = generator.permutation(len(distractors.paths))[:most]
    for i in progress.track(chosen, label="distractors", unit="query"):
      name = distractors.paths[i]
      folder = os.path.dirname(name)
      found = retrieval.search(
        distractors.features(int(i)),
        tuple(distractors.sizes[i]),
        searchable,
        **search,
      )
      unclear = {
        path for path in opened.paths if folder == os.path.dirname(path) != ""
      }
      add(found, set(), unclear, folder or name, DISTRACTOR)
  evidence, positive, places, conditions = zip(*rows, strict=True)
  return Candidates(
    np.array(evidence),
    np.array(positive),
    np.array(places),
    np.array(conditions),
  )


@dataclasses.dataclass(frozen=True)
class _Photograph:
  """A photograph of a store."""

  name: str
  features: LocalFeatures
  size: Sequence[int]

  def reduced(self, by: float) -> "_Photograph":
    """As if it had been reduced without losing a feature."""
    features = self.features.replace(
      locations=self.features.locations * np.float32(by),
      scales=self.features.scales * np.float32(by),
    )
    size = tuple(max(1, round(side * by)) for side in map(int, self.size))
    return _Photograph(self.name, features, size)


def _collection(looks: Sequence[_Photograph]) -> retrieval.Database:
  """Makes some photographs searchable."""
  every = [look.features for look in looks]
  locations, scales, descriptors = (
    np.concatenate([getattr(features, name) for features in every])
    for name in ("locations", "scales", "descriptors")
  )
  return retrieval.Database(
    index=exact.build(descriptors),
    paths=tuple(look.name for look in looks),
    sizes=np.array([look.size for look in looks]),
    offsets=np.cumsum([0, *(len(features.mask) for features in every)]),
    locations=locations,
    scales=scales,
    descriptors=descriptors,
  )


def _places(links: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
  """Names, for every photograph, the first of those it is linked with."""
  parent: dict[str, str] = {}

  def root(path):
    parent.setdefault(path, path)
    while parent[path] != path:
      parent[path] = path = parent[parent[path]]
    return path

  for path, others in links:
    for other in others:
      one, two = sorted((root(path), root(other)))
      parent[two] = one
  return {path: root(path) for path in list(parent)}


def _distractors_of(
  opened: store.Store, distractors: Sequence[store.Store]
) -> store.Store | None:
  """Finds the distractors with a store's kind of feature."""
  for other in distractors:
    if all(
      other.settings.get(key) == opened.settings.get(key)
      for key in ("kind", "fingerprint")
    ):
      return other
  return None


def _print_reliability(given: np.ndarray, positive: np.ndarray) -> None:
  area = metrics.area_under_roc(given, positive) if positive.any() else np.nan
  loss = calibration.log_loss(given, positive)
  print(f"  log loss {loss:.4f}, area under ROC {area:.4f}")
  print("  predicted  observed  candidates")
  for row in calibration.reliability(given, positive):
    print(f"  {row.predicted:9.3f}  {row.observed:8.3f}  {row.count:10d}")


def write_candidates(
  found: Candidates, described: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
  """Writes candidates, and what describes them, as .npz.

  Raises:
    InputError: if the file cannot be written.
  """
  try:
    with open(path, "wb") as file:
      np.savez_compressed(
        file,
        names=np.array(match_score.NAMES),
        described=json.dumps(described),
        **{
          field.name: getattr(found, field.name)
          for field in dataclasses.fields(found)
        },
      )
  except OSError as error:
    raise InputError(
      f"{os.fspath(path)!r} cannot be written: {error.strerror or error}"
    ) from error


def read_candidates(
  path: str | os.PathLike[str],
) -> tuple[Candidates, dict[str, Any]]:
  """Reads what `write_candidates` wrote.

  Raises:
    InputError: if it is not there, or from another version.
  """
  try:
    with np.load(path, allow_pickle=False) as content:
      if content["names"].tolist() != list(match_score.NAMES):
        raise InputError(
          f"{os.fspath(path)!r} holds other evidence than this version looks "
          f"at; gather it again with --store"
        )
      found = Candidates(
        *(content[field.name] for field in dataclasses.fields(Candidates))
      )
      return found, json.loads(str(content["described"]))
  except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
    raise InputError(
      f"{os.fspath(path)!r} cannot be read as candidates: {error}"
    ) from error


def fit(
  parts: Sequence[tuple[Candidates, Mapping[str, Any]]],
) -> match_score.Calibration:
  """Fits a calibration, and prints what it promises and keeps.

  Args:
    parts: the candidates of each store and what describes them; the stores
      weigh the same.

  Raises:
    InputError: if there are too few.
  """
  evidence, positive, places, conditions = (
    np.concatenate([getattr(found, field.name) for found, _ in parts])
    for field in dataclasses.fields(Candidates)
  )
  sources = np.repeat(
    np.arange(len(parts)), [len(found.positive) for found, _ in parts]
  )
  weights = len(positive) / len(parts) / np.bincount(sources)[sources]
  fitted = calibration.fit(
    evidence,
    positive,
    sample_weights=weights,
    provenance={
      "command": "python -m delf_jax.calibrate",
      "stores": [described for _, described in parts],
    },
  )
  _, groups = np.unique(places, return_inverse=True)
  held_out = calibration.cross_validate(
    evidence, positive, groups, sample_weights=weights
  )
  for number, (_, described) in enumerate(parts):
    for condition in dict.fromkeys(conditions):
      part = (sources == number) & (conditions == condition)
      if part.any():
        print(f"{described['features']} {number + 1}, {condition}, held out:")
        _print_reliability(held_out[part], positive[part])
  print("all, held out:")
  _print_reliability(held_out, positive)
  print("all, by what is shipped for any features:")
  _print_reliability(match_score.probability(evidence), positive)
  return fitted


def main() -> None:
  """Gathers and fits as the flags say."""
  values = flags.FLAGS
  if not values.store and not values.gathered:
    raise InputError("give --store, or --gathered")
  if values.store and (values.ground_truth is None) == (values.pairs is None):
    raise InputError("give either --ground_truth or --pairs")
  if values.keep and len(values.store) != 1:
    raise InputError("--keep is for the candidates of one --store")
  if not values.keep and not values.output:
    raise InputError("give --output, --keep or both")
  search = options.search_options(values)
  distractors = [store.open_store(path) for path in values.distractors]
  parts = [read_candidates(path) for path in values.gathered]
  for directory in values.store:
    opened = store.open_store(directory)
    if opened.settings.get("kind") == "global":
      raise InputError(
        f"{directory!r}: global descriptors have no inliers to judge a match by"
      )
    if values.pairs is not None:
      truth = read_pairs(
        values.pairs, prefix=values.prefix, photographs=opened.paths
      )
    else:
      truth = protocols.read_ground_truth(values.ground_truth)
    searchable = database.connect(
      opened, index.build_index(values.kind, opened.descriptors())
    )
    others = _distractors_of(opened, distractors)
    found = gather(
      opened,
      truth,
      searchable=searchable,
      distractors=others,
      most_queries=values.queries,
      seed=values.seed,
      **{name: value for name, value in search.items() if name != "seed"},
    )
    described = {
      "features": opened.settings["kind"],
      "fingerprint": opened.settings.get("fingerprint", ""),
      "dimensions": opened.dim,
      "photographs": len(opened.paths),
      "distractors": 0 if others is None else len(others.paths),
      "queries": values.queries or "all",
      "truth": os.path.basename(values.pairs or values.ground_truth),
      "search": {key: str(value) for key, value in search.items()},
      "candidates": len(found.positive),
      "positives": int(found.positive.sum()),
    }
    parts.append((found, described))
  if values.keep:
    write_candidates(*parts[-1], values.keep)
    print(f"kept: {values.keep}")
  if values.output:
    match_score.write_calibration(fit(parts), values.output)
    print(f"written: {values.output}")


if __name__ == "__main__":
  flags.DEFINE_multi_string(
    "store", [], "what delf_jax.extract wrote; may be repeated."
  )
  flags.DEFINE_string(
    "ground_truth", None, "queries and what they should find."
  )
  flags.DEFINE_string("pairs", None, "or pairs of the same place, CSV.")
  flags.DEFINE_string("prefix", "", "of the paths in --pairs, to be taken off.")
  flags.DEFINE_multi_string(
    "distractors", [], "features of photographs of other places; repeatable."
  )
  flags.DEFINE_integer(
    "queries",
    None,
    "of a store, by chance, at most, and half as many of the distractors "
    "(all).",
    lower_bound=2,
  )
  flags.DEFINE_multi_string(
    "gathered", [], "what --keep kept, to fit to as well; may be repeated."
  )
  flags.DEFINE_string("keep", None, "write the candidates here, .npz.")
  flags.DEFINE_string("output", None, "JSON file to write.")
  flags.DEFINE_enum("kind", "exact", index.KINDS, "of index to search.")
  options.define_search()
  program.run(main)
