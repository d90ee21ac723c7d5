"""A user's own photographs and ground truth, and synthetic ones."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from delf_jax.data import folder, synthetic_folder
from delf_jax.data.retrieval_sets.retrieval_set import RetrievalSet
from delf_jax.errors import InputError
from delf_jax.evaluation import protocols

# What `synthetic` writes where there is nothing yet, besides the distractors.
_SYNTHETIC = {
  "seed": 0,
  "num_landmarks": 10,
  "views": 10,
  "queries": 2,
  "clutter": 40,
  "first_landmark": 0,
  "first_view": 0,
  "first_clutter": 0,
}


def open_json(
  directory: str | os.PathLike,
  *,
  ground_truth: str | os.PathLike,
  distractors: str | os.PathLike | None = None,
  num_distractors: int | None = None,
  clutter: Sequence[str | os.PathLike] = (),
  crop_queries: bool = True,
) -> RetrievalSet:
  """Opens a folder of photographs with ground truth in JSON.

  Every photograph under the folder is in the database, queries among them; a
  query's own photograph is left out of its search. Clutter is in the database
  too, and right for no query.

  Args:
    directory: folder of the database.
    ground_truth: see `protocols.read_ground_truth`; its paths are relative to
      `directory`.
    distractors: folder of distractor queries, or None.
    num_distractors: how many of them; all by default. A seed would help
      nobody: the first by name are taken.
    clutter: folders that make the database larger.
    crop_queries: False searches for whole photographs although the ground truth
      has boxes.

  Raises:
    InputError: if a folder or the ground truth is unfit, or one of the folders
      lies in another.
  """
  root = os.fspath(directory)
  truth = protocols.read_ground_truth(ground_truth)
  listing = folder.list_photographs(root)
  protocols.check_paths(truth, listing.paths)
  strangers, problems = (), listing.problems
  places = [("--photos", root), *(("--clutter", place) for place in clutter)]
  if distractors is not None:
    places.append(("--distractors", distractors))
  _check_apart(places)
  database = listing.paths
  for place in clutter:
    others = _beside(root, place)
    problems += others.problems
    database += others.paths
  if distractors is not None:
    others = _beside(root, distractors)
    problems += others.problems
    strangers = _first(others.paths, num_distractors, where=others.root)
  elif num_distractors:
    raise InputError(
      f"{num_distractors} distractor queries of no folder; name one with "
      "--distractors"
    )
  if not crop_queries:
    truth = protocols.uncropped(truth)
  return RetrievalSet(
    name="json" if crop_queries else "json (uncropped)",
    root=root,
    database=tuple(sorted(database)),
    truth=truth,
    distractors=tuple(protocols.QueryTruth(path) for path in strangers),
    problems=problems,
  )


def open_synthetic(
  directory: str | os.PathLike,
  *,
  distractors: int | None = None,
  **options: int,
) -> RetrievalSet:
  """Opens synthetic landmarks; writes them first where there is nothing.

  Args:
    directory: what `synthetic_folder.write_folder` wrote, or will write to.
    distractors: number of distractor queries (Q_D); by default those that are
      there, or 40. Every other one is clutter.
    options: of `synthetic_folder.write_folder`: seed, num_landmarks, views,
      queries, clutter (photographs in the database without a landmark),
      first_landmark, first_view, first_clutter.

  Raises:
    InputError: if the folder cannot be written or read, was written with other
      options, or has fewer distractor queries.
    TypeError: for an unknown option.
  """
  unknown = sorted(options.keys() - _SYNTHETIC.keys())
  if unknown:
    raise TypeError(f"unknown options of synthetic: {', '.join(unknown)}")
  root = Path(directory)
  record = root / "synthetic.json"
  if not (root / "ground_truth.json").exists():
    written = {**_SYNTHETIC, **options}
    count = 40 if distractors is None else distractors
    synthetic_folder.write_folder(root, distractors=count, **written)
    record.write_text(json.dumps(written, indent=1) + "\n")
  elif options:
    _check_written(record, options)
  strangers = root / "distractors"
  none = distractors == 0 or not strangers.exists()
  opened = open_json(
    root / "photos",
    ground_truth=root / "ground_truth.json",
    distractors=None if none else strangers,
    num_distractors=None if none and not distractors else distractors,
  )
  return RetrievalSet(
    name="synthetic",
    root=opened.root,
    database=opened.database,
    truth=opened.truth,
    distractors=opened.distractors,
    problems=opened.problems,
  )


def _check_written(record: Path, options: dict[str, int]) -> None:
  """Raises if a folder was written with other options, as far as is known."""
  try:
    written = json.loads(record.read_text())
  except (OSError, ValueError) as error:
    raise InputError(
      f"{os.fspath(record)!r} cannot be read, so nobody knows with what "
      "options the synthetic landmarks beside it were written; give none, or "
      "another folder"
    ) from error
  for name, value in options.items():
    if written.get(name) != value:
      raise InputError(
        f"{os.fspath(record.parent)!r} was written with {name}="
        f"{written.get(name)}, not {value}; give another folder"
      )


def _beside(root: str, place: str | os.PathLike) -> folder.Listing:
  """Lists the photographs of a folder by their paths relative to another."""
  listing = folder.list_photographs(place)
  # Where the root is a link, ".." leads away from where the link goes.
  relative = Path(
    os.path.relpath(os.path.realpath(listing.root), os.path.realpath(root))
  )
  return listing._replace(
    paths=tuple((relative / path).as_posix() for path in listing.paths)
  )


def _first(
  paths: tuple[str, ...], count: int | None, *, where: str
) -> tuple[str, ...]:
  if count is None:
    return paths
  if not 0 <= count <= len(paths):
    raise InputError(
      f"{count} distractor queries wanted, {len(paths)} photographs are under "
      f"{where!r}; add some or ask for fewer"
    )
  return paths[:count]


def _check_apart(places: Sequence[tuple[str, str | os.PathLike]]) -> None:
  """Refuses folders of which one lies in another."""
  for (flag, place), (other, beside) in itertools.combinations(places, 2):
    pair = [os.path.realpath(place), os.path.realpath(beside)]
    if os.path.commonpath(pair) in pair:
      raise InputError(
        f"{other} {os.fspath(beside)!r} and {flag} {os.fspath(place)!r} "
        f"overlap; a distractor query must not be in the database, and no "
        f"photograph be there twice"
      )
