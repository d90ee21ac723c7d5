"""Votes -> candidates -> geometric verification -> ranking, or nothing.

Section 5.1 of the paper: the nearest index descriptors of every query
descriptor are aggregated per photograph, the best photographs are verified by
RANSAC, and the number of inliers is the score. Here the inliers are the better
part of the evidence that `match_score` makes a probability of.
"""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np

from delf_jax import match_chains, match_score, voting, word_candidates
from delf_jax import matching as direct
from delf_jax.errors import InputError
from delf_jax.features.local_features import LocalFeatures
from delf_jax.geometry import ransac
from delf_jax.geometry.models import ErrorName, ModelName
from delf_jax.geometry.sampling import SamplingName
from delf_jax.index import Index, PhotographIndex, exact

Counting = Literal["one_to_one", "plain"]
Matching = Literal["votes", "mutual", "ratio"]
Transforms = Literal["plausible", "any"]
Score = Literal["probability", "inliers", "weighted"]

# Residual of an inlier, as in the released pair-matching demo, in pixels of
# photographs at most REFERENCE_SIDE large, so that a large photograph and its
# reduction get the same answer.
THRESHOLD = 20.0
REFERENCE_SIDE = 1024

# Options of RANSAC, by what transforms they let pass. Given each time: what is
# left to its defaults is another program to compile.
BOUNDS = {
  "plausible": {"min_span": 4.0, "max_stretch": 4.0, "mirrored": False},
  "any": {"min_span": 0.0, "max_stretch": np.inf, "mirrored": True},
}

# What a search does unless told otherwise, chosen on training photographs.
NEIGHBOURS = 32
MATCHING: Matching = "mutual"
SCORE: Score = "probability"

# Of direct matching by ratio, chosen on training photographs.
MAX_RATIO = 0.9

# The probability from which `accept` takes a match for one: above 95 % of those
# are right, of training photographs with either kind of features, in the whole
# collection, in small ones and in pairs.
MIN_PROBABILITY = 0.8

# Inliers from which a candidate of a bag of words is put above those that were
# not verified: an affine transform fits any three matches.
_VERIFIED = 4


class Rows(Protocol):
  """An array, or something that is read by rows."""

  def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Database:
  """An index and what its rows mean.

  Attributes:
    index: over the descriptors of all photographs, or a bag of words of them.
    paths: of the photographs.
    sizes: [p, 2] (height, width) of the upright originals.
    offsets: [p + 1], rows offsets[i] to offsets[i + 1] are of photograph i.
    locations: [n, 2] (y, x) of every row, in original pixels; or what gives
      [m, 2] for rows [m], as all that follow.
    scales: [n] of every feature; None if only searches without them are made.
    descriptors: [n, d] of every row; None if only votes are matched, which a
      bag of words cannot do without.
    calibration: of the probability of matches of such features; None for
      `match_score.shipped()`.
  """

  index: Index | PhotographIndex
  paths: Sequence[str]
  sizes: np.ndarray
  offsets: np.ndarray
  locations: Rows
  scales: Rows | None = None
  descriptors: Rows | None = None
  calibration: match_score.Calibration | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
  """One candidate photograph after verification.

  Attributes:
    path: of the photograph.
    score: what the candidates are sorted by.
    inlier_count: inliers, as `counting` counts them; 0 when nothing was
      verified.
    probability: that both show the same place, from 0 to 1.
    transform: [3, 3], (y, x, 1) of the query -> homogeneous (y, x, 1) of the
      photograph, both in original pixels.
    features: [m] query features of the putative matches.
    query_locations: [m, 2] (y, x) of the same in the query.
    image_locations: [m, 2] (y, x) of the same in the photograph.
    distances: [m] between the descriptors of a match.
    farthest: [m] distance of the query feature's last neighbour in the index:
      what is about as near as its background.
    scale_ratios: [m] how much larger the photograph's feature is, in pixels;
      1 where the database has no scales.
    inliers: [m] bool, which of them the transform explains.
    residuals: [m] how far it misses them, pixels of the photograph.
    reach: the largest residual of an inlier, pixels of the photograph.
    query_size: (height, width) of the query.
    image_size: (height, width) of the photograph.
    query_features: how many features the query has.
    via: of a match that was found by way of others (`match_chains`), the
      photographs between the query and this one. Then "the query" of all other
      attributes is the last of these, but for score, probability and support,
      which are of the whole chain (`match_chains.Chain`).
    support: see there; 1 where nothing was asked again.
  """

  path: str
  score: float
  inlier_count: int
  probability: float
  transform: np.ndarray
  features: np.ndarray
  query_locations: np.ndarray
  image_locations: np.ndarray
  distances: np.ndarray
  farthest: np.ndarray
  scale_ratios: np.ndarray
  inliers: np.ndarray
  residuals: np.ndarray
  reach: float
  query_size: tuple[int, int]
  image_size: tuple[int, int]
  query_features: int
  via: tuple[str, ...] = ()
  support: float = 1.0

  @property
  def votes(self) -> int:
    """Putative matches."""
    return len(self.inliers)

  @property
  def weights(self) -> np.ndarray:
    """[m] `voting.closeness` of the putative matches."""
    return voting.closeness(self.distances, self.farthest)

  @functools.cached_property
  def evidence(self) -> np.ndarray:
    """What speaks for the match, see `match_score.evidence`."""
    return match_score.evidence(self)

  def expected_by_chance(self) -> float:
    """Inliers the transform would have if the matches were shuffled.

    Few, for features spread over both photographs; many, where the transform
    maps everything onto a patch on which the features crowd.
    """
    if not self.votes:
      return 0.0
    y, x, w = (
      self.transform
      @ np.column_stack([self.query_locations, np.ones(self.votes)]).T
    )
    down, across = self.image_locations.T
    apart = np.square(np.subtract.outer(y / w, down))
    apart += np.square(np.subtract.outer(x / w, across))
    return np.count_nonzero(apart <= self.reach**2) / self.votes


def search(
  query: LocalFeatures,
  size: tuple[int, int],
  database: Database,
  *,
  neighbours: int = NEIGHBOURS,
  candidates: int = 100,
  votes: voting.Votes = "distance_bursts",
  matching: Matching = MATCHING,
  model: ModelName = "affine",
  error: ErrorName = "one_way",
  sampling: SamplingName = "uniform",
  num_hypotheses: int = 3000,
  threshold: float = THRESHOLD,
  counting: Counting = "one_to_one",
  transforms: Transforms = "plausible",
  score: Score = SCORE,
  calibration: match_score.Calibration | None = None,
  leave_out: int | None = None,
  seed: int = 0,
) -> list[Match]:
  """Finds the photographs that show the same place as a query.

  Args:
    query: its features (compact).
    size: (height, width) of the query, in the pixels of its locations.
    database: where to look.
    neighbours: nearest index descriptors of a query descriptor (the paper's
      K).
    candidates: photographs to verify. A bag of words ranks the others behind
      them, and takes 0: nothing is verified.
    votes: see `voting.vote`; a bag of words has none.
    matching: what is verified of a candidate. "votes": the neighbours that
      made it one, or the features with the same word. "mutual": the mutually
      nearest of both photographs' features, as far as they are no farther than
      the query feature's last neighbour in the index, or in the photographs
      with the most alike words. "ratio": the nearest, as far as they are
      clearly nearer than the next place (`MAX_RATIO`).
    model: of the transform, see `ransac.ransac`.
    error: "one_way" measures residuals in the photograph, "symmetric" in both.
    sampling: how hypotheses are drawn, see `ransac.ransac`; "prosac" takes the
      matches that are nearest, compared with their background, first.
    num_hypotheses: transforms that are scored of a candidate, at most.
    threshold: largest residual of an inlier, in pixels of photographs reduced
      to `REFERENCE_SIDE` (smaller ones are not enlarged).
    counting: "one_to_one" verifies, of the matches that share a place in one
      of the photographs, the nearest alone, so that a repeated pattern or many
      query features on one place do not inflate the inliers; "plain" verifies
      and counts all of them, as the released systems do.
    transforms: "plausible" refuses collapses, mirror images and extreme
      stretches (the defaults of `ransac.ransac`), "any" takes every transform,
      as the released systems do.
    score: what candidates are sorted by: the "probability" of a match, the
      number of "inliers", or their "weighted" number (`Match.weights`).
    calibration: of the probability; by default the database's.
    leave_out: a photograph that must not be found: the query itself.
    seed: of RANSAC.

  Returns:
    every candidate, the best score first; equal scores by inliers, then by
    votes, then by place in the database. `accept` says which of them are
    matches. A bag of words ranks all photographs that share a word with the
    query (`word_candidates.LONGEST` at most): those with less than four
    inliers, or not verified, come last, and their score is their cosine less
    one.

  Raises:
    InputError: if there are no candidates to be found.
  """
  ranking = None
  if isinstance(database.index, PhotographIndex):
    ranking = word_candidates.rank(
      query.descriptors, database.index, leave_out=leave_out
    )
    found = ranking.candidates(candidates)
    # Nobody asks for it where nothing is verified.
    far = found and word_candidates.farthest(
      query.descriptors,
      ranking.images,
      database.descriptors,
      database.offsets,
      neighbours,
    )
  elif candidates < 1:
    raise InputError(
      "nothing is verified (candidates is 0), which only a bag of words can do "
      "without"
    )
  else:
    distances, rows = _neighbours(query, database, neighbours, leave_out)
    far = voting.farthest(rows, distances)
    found = voting.vote(
      rows, distances, database.offsets, candidates=candidates, votes=votes
    )

  def putative(candidate):
    if matching != "votes":
      candidate = _match_directly(
        query, database, candidate.image, far, matching
      )
    elif ranking is not None:
      candidate = word_candidates.candidate(
        query.descriptors,
        database.index,
        database.descriptors,
        ranking.words,
        candidate.image,
      )
    return _pair(query, database, candidate, far, counting, sampling)

  with ThreadPoolExecutor(exact.usable_cores()) as pool:
    pairs = list(pool.map(putative, found))
  sized = sampling in ("scale", "exhaustive") or model == "translation_scale"
  shrink = _to_reference(size)
  shrinks = [_to_reference(database.sizes[c.image]) for c in found]
  results = ransac.verify(
    [
      ransac.Pair(
        pair.query_locations * shrink,
        pair.image_locations * by,
        query.scales[pair.features] * shrink if sized else None,
        database.scales[pair.rows] * by if sized else None,
      )
      for pair, by in zip(pairs, shrinks, strict=True)
    ],
    threshold=threshold,
    model=model,
    error=error,
    sampling=sampling,
    num_hypotheses=num_hypotheses,
    seed=seed,
    **BOUNDS[transforms],
  )
  matches = []
  for candidate, pair, by, result in zip(
    found, pairs, shrinks, results, strict=True
  ):
    match = Match(
      path=database.paths[candidate.image],
      score=0.0,
      inlier_count=int(result.num_inliers),
      probability=0.0,
      transform=_from_reference(result.transform, shrink, by),
      features=pair.features,
      query_locations=pair.query_locations,
      image_locations=pair.image_locations,
      distances=pair.distances,
      farthest=far[pair.features],
      scale_ratios=_scale_ratios(query, database, pair),
      inliers=result.inliers,
      residuals=result.residuals / by,
      reach=threshold / float(by),
      query_size=(int(size[0]), int(size[1])),
      image_size=tuple(map(int, database.sizes[candidate.image])),
      query_features=len(query.mask),
    )
    matches.append(_scored(match, score, calibration or database.calibration))
  images = [candidate.image for candidate in found]
  if ranking is not None:
    matches = _with_unverified(matches, ranking, query, size, database)
    images = ranking.images
  order = sorted(
    range(len(matches)),
    key=lambda i: (
      -matches[i].score,
      -matches[i].inlier_count,
      -matches[i].votes,
      images[i],
    ),
  )
  return [matches[i] for i in order]


def compare(
  query: LocalFeatures,
  query_size: tuple[int, int],
  other: LocalFeatures,
  other_size: tuple[int, int],
  **options: Any,
) -> Match:
  """Matches two photographs, without an index.

  Args:
    query: features of the one (compact).
    query_size: its (height, width), in the pixels of its locations.
    other: features of the other, of the same kind.
    other_size: its (height, width).
    **options: of `search`.

  Returns:
    the match, with an empty path; without a putative match if one photograph
    has no features.

  Raises:
    InputError: if the features are of different kinds.
  """
  database = Database(
    index=exact.build(other.descriptors),
    paths=("",),
    sizes=np.array([other_size]),
    offsets=np.array([0, len(other.mask)]),
    locations=other.locations,
    scales=other.scales,
    descriptors=other.descriptors,
  )
  found = search(query, query_size, database, **options)
  return found[0] if found else _nothing(query, query_size, other_size)


def features_of(database: Database, number: int) -> LocalFeatures:
  """Returns the features of a photograph of a database, to search with.

  Args:
    database: with scales and descriptors.
    number: of the photograph.

  Returns:
    its features, in the database's order; their scores, which it does not
    hold, are zeros.
  """
  rows = np.arange(*database.offsets[number : number + 2])
  return LocalFeatures(
    locations=database.locations[rows],
    scales=database.scales[rows],
    scores=np.zeros(len(rows), np.float32),
    descriptors=database.descriptors[rows],
    mask=np.ones(len(rows), bool),
  )


def accept(
  matches: Sequence[Match],
  *,
  min_probability: float = MIN_PROBABILITY,
) -> list[Match]:
  """Returns the candidates that show the same place, as far as can be told.

  Args:
    matches: from `search`.
    min_probability: less probable ones are no match. One that was found by way
      of others must be convincing as well (`match_chains.convincing`).
  """
  return [
    match
    for match in matches
    if match.probability >= min_probability
    and match_chains.convincing(match.via, match.support)
  ]


@dataclasses.dataclass(frozen=True)
class _Pair:
  """The putative matches of one candidate, [m] or [m, 2] each; see `Match`."""

  features: np.ndarray
  rows: np.ndarray
  query_locations: np.ndarray
  image_locations: np.ndarray
  distances: np.ndarray


def _neighbours(query, database, neighbours, leave_out):
  exclude = None
  if leave_out is not None:
    start, stop = database.offsets[leave_out : leave_out + 2]
    exclude = (int(start), int(stop))
  return database.index.search(query.descriptors, neighbours, exclude=exclude)


def _with_unverified(matches, ranking, query, size, database):
  """Adds the photographs after the candidates, and sorts out the failed."""
  found = [
    match
    if match.inlier_count >= _VERIFIED
    else dataclasses.replace(match, score=float(cosine) - 1)
    for match, cosine in zip(matches, ranking.cosines, strict=False)
  ]
  for image, cosine in zip(
    ranking.images[len(found) :], ranking.cosines[len(found) :], strict=True
  ):
    nothing = _nothing(query, size, database.sizes[image])
    found.append(
      dataclasses.replace(
        nothing, path=database.paths[image], score=float(cosine) - 1
      )
    )
  return found


def _match_directly(query, database, image, far, matching):
  rows = np.arange(*database.offsets[image : image + 2])
  options = {"mutual": matching == "mutual"}
  if matching == "ratio":
    options |= {
      "max_ratio": MAX_RATIO,
      "image_locations": database.locations[rows],
    }
  features, chosen, distances = direct.match(
    query.descriptors, database.descriptors[rows], **options
  )
  if matching == "mutual":
    # What is farther than so many of the collection is chance.
    kept = distances <= far[features]
    features, chosen, distances = features[kept], chosen[kept], distances[kept]
  return voting.Candidate(image, features, rows[chosen], distances)


def _pair(query, database, candidate, far, counting, sampling):
  """Looks up a candidate's matches, chooses among them and orders them."""
  features, rows = candidate.features, candidate.rows
  sources, targets = query.locations[features], database.locations[rows]
  closeness = voting.closeness(candidate.distances, far[features])
  kept = np.arange(len(features))
  if counting == "one_to_one":
    kept = np.flatnonzero(
      direct.one_to_one(
        direct.places(sources), direct.places(targets), -closeness
      )
    )
  if sampling == "prosac":
    kept = kept[np.argsort(-closeness[kept], kind="stable")]
  values = features, rows, sources, targets, candidate.distances
  return _Pair(*(value[kept] for value in values))


def _scale_ratios(query, database, pair):
  """[m] float32, how much larger the photograph's features are."""
  if database.scales is None:
    return np.ones(len(pair.rows), np.float32)
  with np.errstate(divide="ignore", invalid="ignore"):
    return database.scales[pair.rows] / query.scales[pair.features]


def _scored(match, score, calibration):
  """Adds the probability and what the candidates are sorted by."""
  probability = float(match_score.probability(match.evidence, calibration))
  scores = {
    "probability": probability,
    "inliers": float(match.inlier_count),
    "weighted": float(match.weights[match.inliers].sum()),
  }
  return dataclasses.replace(
    match, probability=probability, score=scores[score]
  )


def _nothing(
  query: LocalFeatures, query_size: Sequence[int], image_size: Sequence[int]
) -> Match:
  """A match without any putative matches."""
  none, nowhere = np.zeros(0, np.float32), np.zeros((0, 2), np.float32)
  return Match(
    path="",
    score=0.0,
    inlier_count=0,
    probability=0.0,
    transform=np.eye(3, dtype=np.float32),
    features=np.zeros(0, np.int64),
    query_locations=nowhere,
    image_locations=nowhere,
    distances=none,
    farthest=none,
    scale_ratios=none,
    inliers=np.zeros(0, bool),
    residuals=none,
    reach=THRESHOLD / float(_to_reference(image_size)),
    query_size=(int(query_size[0]), int(query_size[1])),
    image_size=(int(image_size[0]), int(image_size[1])),
    query_features=len(query.mask),
  )


def _to_reference(size: Sequence[int]) -> np.float32:
  return np.float32(min(1.0, REFERENCE_SIDE / max(size)))


def _from_reference(
  transform: np.ndarray, source: np.float32, target: np.float32
) -> np.ndarray:
  """Turns a transform between reduced photographs into one of originals."""
  enlarge = np.array([1 / target, 1 / target, 1], np.float32)
  reduce = np.array([source, source, 1], np.float32)
  return transform * enlarge[:, None] * reduce[None, :]
