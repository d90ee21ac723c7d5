"""Oxford5k and Paris6k: as published, with Flickr100k, and revisited.

Every set is read from one folder of downloads with a folder for each source:

```
DIR/oxford5k/     photographs (oxbuild_images) and gt_files_170407
DIR/paris6k/      photographs (paris_1, paris_2) and paris_120310
DIR/flickr100k/   photographs (oxc1_100k), for Oxford105k and Paris106k
DIR/revisitop1m/  photographs, for the revisited sets with a million more
DIR/gnd_roxford5k.pkl, DIR/gnd_rparis6k.pkl
```

Under these folders, and what others call them, photographs are known by their
names, however deep they lie; ground truth may be anywhere there too. A folder
that holds one set alone will do as DIR.
"""

import hashlib
import os
from collections.abc import Iterable

from delf_jax.data.retrieval_sets import downloads
from delf_jax.data.retrieval_sets import oxford_paris_truth as truth
from delf_jax.data.retrieval_sets.cities import (
  CITIES,
  CORRUPT,
  FLICKR,
  MILLION,
  REVISITED_FROM,
)
from delf_jax.data.retrieval_sets.downloads import Source
from delf_jax.data.retrieval_sets.retrieval_set import RetrievalSet
from delf_jax.errors import InputError
from delf_jax.evaluation import protocols
from delf_jax.evaluation.protocols import GroundTruth, QueryTruth


def open_classic(
  directory: str | os.PathLike,
  *,
  city: str,
  flickr100k: bool = False,
  distractors: int = 0,
  seed: int = 0,
  crop_queries: bool = True,
  complete: bool = True,
) -> RetrievalSet:
  """Opens Oxford5k or Paris6k as published (Philbin et al., 2007 and 2008).

  11 landmarks with 5 queries each. "good" (here: easy) and "ok" (here: hard)
  photographs are positives, "junk" is ignored. A query is a box of a photograph
  that stays in the database, where it is one of its own positives: so the
  authors' program counts, and so is every published mAP counted. In Paris6k the
  20 corrupt files are left out, also of the lists.

  Args:
    directory: see the module.
    city: "oxford5k" or "paris6k".
    flickr100k: adds Flickr100k to the database: Oxford105k, Paris106k.
    distractors: number of distractor queries, Q_D of the paper (section 5.1):
      photographs of the other set's database. More of them contain fewer.
    seed: chooses the distractors.
    crop_queries: False makes whole photographs the queries; no published number
      is of that.
    complete: whether another number of photographs than published is an error.

  Raises:
    InputError: if something is missing; it says what to fetch.
  """
  directory = os.fspath(directory)
  this = CITIES[city]
  names = _photographs(directory, city, complete=complete)
  queries, problems = truth.read_text_files(directory, this, names)
  if complete and len(queries) != this.queries:
    raise this.source.absent(
      directory,
      f"{len(queries)} queries of {this.source.title}, published are "
      f"{this.queries}",
    )
  database = set(names.values())
  if flickr100k:
    database.update(_everything(directory, FLICKR, complete=complete))
  return _finish(
    directory,
    name={"oxford5k": "oxford105k", "paris6k": "paris106k"}[city]
    if flickr100k
    else city,
    database=database,
    ground_truth=GroundTruth(queries, this.truth, keeps_queries=True),
    distractors=_distractors(
      directory, city, distractors, seed, complete=complete
    ),
    protocol="classic",
    crop_queries=crop_queries,
    problems=problems,
  )


def open_revisited(
  directory: str | os.PathLike,
  *,
  city: str,
  million: bool = False,
  distractors: int = 0,
  seed: int = 0,
  crop_queries: bool = True,
  complete: bool = True,
) -> RetrievalSet:
  """Opens Revisited Oxford or Paris (Radenovic et al., 2018).

  70 queries, again boxes, whose photographs are not in the database; easy, hard
  and unclear (here: junk) photographs for each.

  Args:
    directory: see the module; the ground truth may also lie in the folder of
      the photographs.
    city: "oxford5k" or "paris6k".
    million: adds the million distractor photographs (R1M) to the database.
    distractors: number of distractor queries, from the other revisited set's
      photographs; the paper did so with the original sets.
    seed: chooses the distractors.
    crop_queries: see `open_classic`.
    complete: see `open_classic`.

  Raises:
    InputError: if something is missing; it says what to fetch.
  """
  directory = os.fspath(directory)
  this = CITIES[city]
  names = _photographs(directory, city, complete=False)
  listed, queries = truth.read_pickle(directory, this, names)
  found = len(listed), len(queries)
  published = this.revisited_database, this.revisited_queries
  if complete and found != published:
    raise InputError(
      f"{this.revisited} lists {found[0]:,} photographs and {found[1]} "
      f"queries, published are {published[0]:,} and {published[1]}; fetch it "
      f"from {REVISITED_FROM}"
    )
  database = {names[name] for name in listed}
  if million:
    database.update(_everything(directory, MILLION, complete=complete))
  return _finish(
    directory,
    name=f"r{city}+1m" if million else f"r{city}",
    database=database,
    ground_truth=GroundTruth(queries, this.revisited),
    distractors=_distractors(
      directory, city, distractors, seed, complete=complete
    ),
    protocol="revisited",
    crop_queries=crop_queries,
    problems=(),
  )


def choose(
  names: Iterable[str], *, count: int, seed: int, against: Iterable[str] = ()
) -> list[str]:
  """Chooses names as if at random, so that more of them contain fewer.

  Names are put in the order of a hash of the seed and the name, which is the
  same everywhere and for ever, and the first are taken.

  Args:
    names: to choose from.
    count: how many.
    seed: another seed is another choice.
    against: names of the set that the choice must be foreign to: what is in
      both, or shows a landmark that both are named after, is left out.

  Raises:
    InputError: if there are fewer.
  """
  against = frozenset(against)
  landmarks = frozenset(map(_landmark, against))
  names = [
    name
    for name in names
    if name not in against and _landmark(name) not in landmarks
  ]
  if not 0 <= count <= len(names):
    raise InputError(
      f"{count:,} distractor queries wanted, {len(names):,} photographs can be "
      "that; ask for fewer"
    )
  names.sort(key=lambda name: _hash(f"{seed}:{name}"))
  return names[:count]


def _landmark(name: str) -> str:
  """Returns "louvre" for paris_louvre_000136, "keble" for keble_000051."""
  return name.rpartition("_")[0].removeprefix("paris_")


def _hash(text: str) -> bytes:
  return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _photographs(
  directory: str, city: str, *, complete: bool
) -> dict[str, str]:
  return downloads.photographs(
    directory, CITIES[city].source, left_out=CORRUPT, complete=complete
  )


def _everything(
  directory: str, source: Source, *, complete: bool
) -> Iterable[str]:
  """Returns the paths of photographs that nobody refers to by name."""
  if not downloads.place_of(directory, source):
    raise source.absent(
      directory, f"no folder of {source.title} in {directory!r}"
    )
  return downloads.paths(directory, source, complete=complete)


def _distractors(
  directory: str, city: str, count: int, seed: int, *, complete: bool
) -> tuple[QueryTruth, ...]:
  """Returns photographs of the other city, with nothing to find."""
  if not count:
    return ()
  other = _photographs(directory, CITIES[city].other, complete=complete)
  here = _photographs(directory, city, complete=False)
  names = choose(other, count=count, seed=seed, against=here)
  return tuple(QueryTruth(other[name]) for name in names)


def _finish(
  directory: str,
  *,
  name: str,
  database: Iterable[str],
  ground_truth: GroundTruth,
  distractors: tuple[QueryTruth, ...],
  protocol: str,
  crop_queries: bool,
  problems: tuple[tuple[str, str], ...],
) -> RetrievalSet:
  """Names the set after what was chosen."""
  if distractors:
    name += f"* ({len(distractors)})"
  if not crop_queries:
    name += " (uncropped)"
    ground_truth = protocols.uncropped(ground_truth)
  return RetrievalSet(
    name=name,
    root=directory,
    database=tuple(sorted(database)),
    truth=ground_truth,
    distractors=distractors,
    protocol=protocol,
    problems=problems,
  )
