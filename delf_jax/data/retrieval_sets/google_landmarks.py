"""Google Landmarks v2 (Weyand et al., 2020): retrieval and recognition.

Read from a folder with the archives' own folders, index/, test/ and train/, in
which the photograph 0123456789abcdef is 0/1/2/0123456789abcdef.jpg. The CSV
files may lie in the folder itself, beside the photographs, or in metadata/ or
ground_truth/, as on the server.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from delf_jax.data import landmark_lists
from delf_jax.data.photograph_list import are_files
from delf_jax.data.retrieval_sets import downloads
from delf_jax.data.retrieval_sets.retrieval_set import RetrievalSet
from delf_jax.data.table import Table
from delf_jax.errors import InputError
from delf_jax.evaluation.protocols import GroundTruth, QueryTruth

_FROM = "github.com/cvdfoundation/google-landmark"
_PLACES = ("", "metadata", "ground_truth", "index", "test", "train")
_COUNTS = {"index": 761_757, "train": 4_132_914, "train_clean": 1_580_470}
USAGES = ("private", "public", "both")

Problems = tuple[tuple[str, str], ...]


class _Solution(NamedTuple):
  """One row of a solution file.

  Attributes:
    name: of the query.
    answers: names of photographs, or landmarks.
  """

  name: str
  answers: tuple[str, ...]


def open_retrieval(
  directory: str | os.PathLike,
  *,
  usage: str = "private",
  complete: bool = True,
) -> RetrievalSet:
  """Opens the retrieval task: test photographs search the index.

  mAP@100 over the queries of retrieval_solution_v2.1.csv; those marked Ignored,
  which have no photograph in the index, are no queries. Papers report the
  private ones as test, and the public ones as validation. Queries are whole
  photographs and not in the database.

  Args:
    directory: see the module.
    usage: "private", "public" or "both" kinds of queries.
    complete: whether another number of index photographs than published, or one
      that is not there, is an error. Otherwise those that are there are the
      database, and positives that are not count as missed.

  Raises:
    InputError: if something is missing; it says what to fetch.
  """
  directory = os.fspath(directory)
  _check_usage(usage)
  index = [
    _path("index", name)
    for name, _ in _rows(directory, "index.csv", ("id", "url"))
  ]
  if complete and len(index) != _COUNTS["index"]:
    raise InputError(
      f"index.csv lists {len(index):,} photographs, published are "
      f"{_COUNTS['index']:,}; fetch it again from {_FROM}"
    )
  database, problems = _there(directory, sorted(index), complete=complete)
  queries = tuple(
    QueryTruth(
      _path("test", solution.name),
      tuple(_path("index", name) for name in solution.answers),
    )
    for solution in _solutions(
      directory, "retrieval_solution_v2.1.csv", "images", usage
    )
    if solution.answers
  )
  queries, more = _queries(directory, queries, complete=complete)
  return RetrievalSet(
    name=f"gldv2 retrieval ({usage})",
    root=directory,
    database=database,
    truth=GroundTruth(queries, "retrieval_solution_v2.1.csv"),
    protocol="retrieval",
    problems=problems + more,
  )


def open_recognition(
  directory: str | os.PathLike,
  *,
  usage: str = "private",
  clean: bool = True,
  complete: bool = True,
) -> RetrievalSet:
  """Opens the recognition task: training photographs name test photographs.

  GAP over the queries of recognition_solution_v2.1.csv, most of which show no
  landmark; those marked Ignored are no queries. A query whose landmark has no
  training photograph counts as one that should have been recognised, as in the
  published metric.

  Args:
    directory: see the module.
    usage: "private", "public" or "both" kinds of queries.
    clean: whether the database is train_clean.csv's part of the training set.
    complete: as in `open_retrieval`, of training photographs.

  Raises:
    InputError: if something is missing; it says what to fetch.
  """
  directory = os.fspath(directory)
  _check_usage(usage)
  name = "train_clean" if clean else "train"
  table = downloads.find_file(
    directory, [f"{name}.csv"], places=_PLACES, fetch=f"it from {_FROM}"
  )
  read = (
    landmark_lists.read_google_v2_clean
    if clean
    else landmark_lists.read_google_v2
  )
  listed = read(directory, table=os.path.abspath(table), photos="train")
  found = len(listed.paths)
  if complete and found != _COUNTS[name]:
    reasons = "".join(f"; {reason}" for _, reason in listed.problems)
    raise InputError(
      f"{found:,} photographs of {name}.csv are under {directory!r}, published "
      f"are {_COUNTS[name]:,}{reasons}; fetch {_archives('train', directory)}"
    )
  labels = {
    path: (listed.names[label],)
    for path, label in zip(listed.paths, listed.labels, strict=True)
  }
  solutions = list(
    _solutions(directory, "recognition_solution_v2.1.csv", "landmarks", usage)
  )
  queries, more = _queries(
    directory,
    tuple(QueryTruth(_path("test", each.name)) for each in solutions),
    complete=complete,
  )
  database = tuple(sorted(labels))
  for each in solutions:
    labels[_path("test", each.name)] = each.answers
  return RetrievalSet(
    name=f"gldv2 recognition ({usage}{', clean' if clean else ''})",
    root=directory,
    database=database,
    truth=GroundTruth(queries, "recognition_solution_v2.1.csv"),
    protocol="recognition",
    labels=labels,
    problems=(*listed.problems, *more),
  )


def _check_usage(usage: str) -> None:
  if usage not in USAGES:
    raise InputError(f"usage is {usage!r}; expected {', '.join(USAGES)}")


def _archives(folder: str, directory: str) -> str:
  return (
    f"the archives images_000.tar and the others of {folder} from {_FROM}, and "
    f"unpack them into {os.path.join(directory, folder)!r}"
  )


def _rows(
  directory: str, name: str, columns: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
  path = downloads.find_file(
    directory, [name], places=_PLACES, fetch=f"it from {_FROM}"
  )
  table = Table(path, columns, origin=f"{name} of {_FROM}")
  yield from table
  for _, reason in table.problems:
    raise InputError(f"{path!r}: {reason}; fetch it again from {_FROM}")


def _solutions(
  directory: str, name: str, column: str, usage: str
) -> Iterator[_Solution]:
  """Reads id, answers (separated by spaces) and Usage."""
  wanted = ("private", "public") if usage == "both" else (usage,)
  for query, answers, mark in _rows(directory, name, ("id", column, "Usage")):
    mark = mark.strip().lower()
    if mark not in ("private", "public", "ignored"):
      raise InputError(
        f"{name}: {query!r} has the usage {mark!r}; expected Private, Public "
        f"or Ignored. Fetch it again from {_FROM}"
      )
    if mark in wanted:
      found = answers.split()
      yield _Solution(query, () if found == ["None"] else tuple(found))


def _path(folder: str, name: str) -> str:
  if len(name) < 3 or "/" in name:
    raise InputError(
      f"{name!r} is no photograph of Google Landmarks v2; fetch the CSV files "
      f"again from {_FROM}"
    )
  return f"{folder}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


def _queries(
  directory: str, queries: tuple[QueryTruth, ...], *, complete: bool
) -> tuple[tuple[QueryTruth, ...], Problems]:
  paths = [query.path for query in queries]
  there, problems = _there(directory, paths, complete=complete)
  known = frozenset(there)
  return tuple(query for query in queries if query.path in known), problems


def _there(
  directory: str, paths: list[str], *, complete: bool
) -> tuple[tuple[str, ...], Problems]:
  found = are_files(directory, paths)
  if len(paths) and found.all():
    return tuple(paths), ()
  if not paths:
    raise InputError(f"a list of {directory!r} is empty; fetch it from {_FROM}")
  first = paths[int(found.argmin())]
  reason = (
    f"{int((~found).sum()):,} of {len(paths):,} photographs are missing, first "
    f"{first!r}"
  )
  if complete or not found.any():
    raise InputError(
      f"{reason} under {directory!r}; fetch "
      f"{_archives(first.partition('/')[0], directory)}"
    )
  kept = tuple(
    path for path, is_there in zip(paths, found, strict=True) if is_there
  )
  return kept, ((directory, reason),)
