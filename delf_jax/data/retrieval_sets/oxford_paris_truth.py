"""The ground truth of Oxford5k and Paris6k, original and revisited."""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from delf_jax.data import safe_pickle
from delf_jax.data.retrieval_sets import downloads
from delf_jax.data.retrieval_sets.cities import CORRUPT, REVISITED_FROM, City
from delf_jax.errors import InputError
from delf_jax.evaluation.protocols import QueryTruth
from delf_jax.items import Box, is_box


def read_text_files(
  directory: str, city: City, names: Mapping[str, str]
) -> tuple[tuple[QueryTruth, ...], tuple[tuple[str, str], ...]]:
  """Reads LANDMARK_N_{query,good,ok,junk}.txt, wherever they lie.

  Args:
    directory: of the downloads.
    city: of the set.
    names: name -> path of its photographs.

  Returns:
    the queries, by name, and (file, reason) of what is odd.

  Raises:
    InputError: if a file is missing or unfit, or names an unknown photograph.
  """
  stems = _query_files(directory, city)
  queries, problems = [], []
  for stem in sorted(stems, key=os.path.basename):
    name, box = _read_query(stem, city)
    lists = {}
    for kind in ("good", "ok", "junk"):
      lines = _lines(f"{stem}_{kind}.txt", city, directory)
      lists[kind] = set(lines).difference(CORRUPT)
    both = lists["junk"] & (lists["good"] | lists["ok"])
    if both:
      problems.append(
        (
          f"{stem}_junk.txt",
          f"{len(both)} photographs are positive too and count as junk, first "
          f"{min(both)!r}",
        )
      )
    downloads.check_known(
      {os.path.basename(stem): [name, *sorted(set().union(*lists.values()))]},
      names,
      title=city.source.title,
    )
    queries.append(
      QueryTruth(
        names[name],
        *(
          tuple(names[each] for each in sorted(chosen))
          for chosen in (
            lists["good"] - both,
            lists["ok"] - both - lists["good"],
            lists["junk"],
          )
        ),
        box=box,
      )
    )
  return tuple(queries), tuple(problems)


def _query_files(directory: str, city: City) -> list[str]:
  """Returns paths without "_query.txt", of the files that are this city's."""
  place = downloads.place_of(directory, city.source)
  # The photographs' own folder first: there may be copies elsewhere.
  for root in dict.fromkeys((os.path.join(directory, place), directory)):
    stems = {}
    for folder, _, files in os.walk(root):
      for file in files:
        if file.endswith("_query.txt") and not file.startswith("."):
          stem = os.path.join(folder, file.removesuffix("_query.txt"))
          name = _read_query(stem, city)[0]
          if re.fullmatch(city.source.pattern, name):
            stems.setdefault(os.path.basename(stem), stem)
    if stems:
      return list(stems.values())
  raise city.source.absent(
    directory, f"no ground truth of {city.source.title} (LANDMARK_1_query.txt)"
  )


def _read_query(stem: str, city: City) -> tuple[str, Box]:
  """Reads "oxc1_NAME x1 y1 x2 y2"; Paris has no such prefix."""
  path = f"{stem}_query.txt"
  fields = " ".join(_lines(path, city, os.path.dirname(path))).split()
  try:
    name, (left, top, right, bottom) = fields[0], map(float, fields[1:])
  except (IndexError, ValueError):
    box = None
  else:
    box = (top, left, bottom, right)
  if box is None or not is_box(box):
    raise InputError(
      f"{path!r} holds {' '.join(fields)[:80]!r}; expected a name and x1 y1 x2 "
      f"y2, as in {city.truth}"
    )
  return name.removeprefix("oxc1_"), box


def _lines(path: str, city: City, directory: str) -> list[str]:
  """Returns the names in a file, one a line, without extension."""
  try:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
      lines = [line.strip() for line in file]
  except OSError as error:
    raise city.source.absent(
      directory, f"cannot read {path!r} ({error.strerror})"
    ) from error
  return [line.removesuffix(".jpg") for line in lines if line]


def read_pickle(
  directory: str, city: City, names: Mapping[str, str]
) -> tuple[list[str], tuple[QueryTruth, ...]]:
  """Reads gnd_*.pkl: {"imlist", "qimlist", "gnd": [{"bbx", "easy", ...}]}.

  Args:
    directory: of the downloads.
    city: of the set.
    names: name -> path of its photographs.

  Returns:
    names of the database's photographs, and the queries.

  Raises:
    InputError: if the file is missing, unsafe or unfit, or names an unknown
      photograph.
  """
  title = city.revisited
  path = downloads.find_file(
    directory,
    [title],
    places=(
      "",
      downloads.place_of(directory, city.source),
      city.source.folder,
      f"r{city.source.folder}",
      "revisitop",
    ),
    fetch=f"it from {REVISITED_FROM}",
  )
  content = safe_pickle.load(path)
  try:
    listed = [_name(each) for each in content["imlist"]]
    asked = [_name(each) for each in content["qimlist"]]
    entries = list(content["gnd"])
    if len(entries) != len(asked):
      raise ValueError(f"{len(entries)} entries of {len(asked)} queries")
    downloads.check_known(
      {title: listed, "the queries": asked}, names, title=city.source.title
    )
    return listed, tuple(
      _pickled_query(names[name], entry, [names[each] for each in listed])
      for name, entry in zip(asked, entries, strict=True)
    )
  except InputError:
    raise
  except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
    raise InputError(
      f"{path!r} is not the revisited ground truth ({error!r:.80}); fetch it "
      f"from {REVISITED_FROM}"
    ) from error


def _name(value: Any) -> str:
  """Returns a photograph's name without extension."""
  if not isinstance(value, str):
    raise ValueError(f"a name is {value!r:.40}")
  return value.rpartition("/")[2].removesuffix(".jpg")


def _pickled_query(
  path: str, entry: Mapping[str, Any], listed: list[str]
) -> QueryTruth:
  """Turns indices into paths, and x1 y1 x2 y2 into a box."""
  left, top, right, bottom = (float(edge) for edge in entry["bbx"])
  if not is_box((top, left, bottom, right)):
    raise ValueError(f"the box of {path}")
  lists = []
  for kind in ("easy", "hard", "junk"):
    numbers = np.asarray(entry[kind], np.float64).reshape(-1).astype(np.int64)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(listed):
      raise ValueError(f"{kind} of {path} beyond the list")
    lists.append(tuple(listed[number] for number in numbers))
  return QueryTruth(path, *lists, box=(top, left, bottom, right))
