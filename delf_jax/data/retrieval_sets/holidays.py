"""INRIA Holidays (Jegou et al., 2008)."""

import os
from collections import defaultdict

from delf_jax.data.retrieval_sets import downloads
from delf_jax.data.retrieval_sets.downloads import Source
from delf_jax.data.retrieval_sets.retrieval_set import RetrievalSet
from delf_jax.errors import InputError
from delf_jax.evaluation.protocols import GroundTruth, QueryTruth

SOURCE = Source(
  title="Holidays",
  folder="holidays",
  others=("inria_holidays", "inria-holidays", "holidays_upright", "jpg"),
  pattern=r"1\d{5}",
  count=1491,
  fetch=("jpg1.tar.gz and jpg2.tar.gz from lear.inrialpes.fr/~jegou/data.php"),
)
_QUERIES = 500


def open_holidays(
  directory: str | os.PathLike, *, complete: bool = True
) -> RetrievalSet:
  """Opens Holidays: 1,491 photographs in 500 series.

  Names are the truth: the last two digits count the photographs of a series,
  the others are the series. The first photograph of a series is a query, the
  others are its positives. Queries are whole photographs; they are in the
  database, and each is left out of its own ranking, as the authors' program
  does.

  Some photographs lie on their side. They are turned upright only if their file
  says so; many published numbers are of a version turned by hand, which is
  another set with the same names.

  Args:
    directory: folder that holds holidays/ or jpg/ with the photographs, or the
      photographs.
    complete: whether another number of photographs than published is an error.

  Raises:
    InputError: if something is missing; it says what to fetch.
  """
  names = downloads.photographs(directory, SOURCE, complete=complete)
  series = defaultdict(list)
  for name, path in names.items():
    series[name[:-2]].append((name, path))
  queries = []
  for first, *others in series.values():
    if not first[0].endswith("00"):
      raise InputError(
        f"Holidays: {first[0]!r} is the first of its series that is there, but "
        f"{first[0][:-2]}00 is the query; fetch {SOURCE.fetch}"
      )
    queries.append(QueryTruth(first[1], tuple(path for _, path in others)))
  if complete and len(queries) != _QUERIES:
    raise InputError(
      f"Holidays: {len(queries)} series, published are {_QUERIES}; fetch "
      f"{SOURCE.fetch}"
    )
  return RetrievalSet(
    name="holidays",
    root=os.fspath(directory),
    database=tuple(sorted(names.values())),
    truth=GroundTruth(tuple(queries), "the names of the photographs"),
    protocol="classic",
  )
