"""Photographs of which is known where they were taken (section 5.4)."""

import math
import os

from delf_jax.data.photograph_list import are_files
from delf_jax.data.retrieval_sets.retrieval_set import RetrievalSet
from delf_jax.data.table import Table
from delf_jax.errors import InputError
from delf_jax.evaluation.protocols import GroundTruth, QueryTruth

_ORIGIN = (
  "a CSV file with the columns path, lat and lon: a photograph's path relative "
  "to the folder, and where it was taken, in degrees"
)

Positions = dict[str, tuple[float, float]]


def open_gps(
  directory: str | os.PathLike,
  *,
  database: str = "database.csv",
  queries: str = "queries.csv",
) -> RetrievalSet:
  """Opens photographs with positions, for the protocol of the large scale.

  A photograph that is returned is right if it was taken within 25 km of the
  query. Most queries may have nothing to find. A query that is in the database
  too is left out of its own search.

  Args:
    directory: of the photographs.
    database: CSV file of the photographs to be found; a relative path starts
      from `directory`.
    queries: CSV file of the queries, likewise.

  Raises:
    InputError: if a file is missing or unfit, or a photograph is not there.
  """
  directory = os.fspath(directory)
  found = _read(directory, database)
  asked = _read(directory, queries)
  for path in found.keys() & asked.keys():
    if found[path] != asked[path]:
      raise InputError(
        f"{path!r} is at {found[path]} in {database!r} and at {asked[path]} in "
        f"{queries!r}; correct one"
      )
  return RetrievalSet(
    name="gps",
    root=directory,
    database=tuple(sorted(found)),
    truth=GroundTruth(tuple(map(QueryTruth, asked)), "the positions"),
    protocol="gps",
    positions={**found, **asked},
  )


def _read(directory: str, name: str) -> Positions:
  """Reads positions, (latitude, longitude) in degrees."""
  path = os.path.join(directory, name)
  positions: Positions = {}
  table = Table(path, ("path", "lat", "lon"), origin=_ORIGIN)
  for number, (photo, *numbers) in enumerate(table, 1):
    try:
      lat, lon = map(float, numbers)
    except ValueError:
      lat = lon = math.nan
    if not (abs(lat) <= 90 and abs(lon) <= 180):
      raise InputError(
        f"{path!r}, row {number}: {photo!r} is at {numbers}; expected a "
        "latitude from -90 to 90 and a longitude from -180 to 180"
      )
    if photo in positions:
      raise InputError(f"{path!r}: {photo!r} is there twice; keep one")
    positions[photo] = lat, lon
  for _, reason in table.problems:
    raise InputError(f"{path!r}: {reason}")
  if not positions:
    raise InputError(f"{path!r} has no photographs; expected {_ORIGIN}")
  listed = list(positions)
  there = are_files(directory, listed)
  if not there.all():
    raise InputError(
      f"{path!r}: {int((~there).sum()):,} of {len(listed):,} photographs are "
      f"not under {directory!r}, first {listed[int(there.argmin())]!r}; paths "
      "must be relative to it"
    )
  return positions
