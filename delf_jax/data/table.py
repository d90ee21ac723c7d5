"""CSV files with a header, read row by row."""

import csv
import operator
import os
from collections.abc import Iterator, Sequence

from delf_jax.errors import InputError


class Table:
  """Some columns of a CSV file.

  Iterating yields a tuple of strings a row. Rows that have not as many fields
  as the header are left out, and are among `problems` afterwards. The text is
  UTF-8; other bytes become surrogate escapes, as in file names.
  """

  def __init__(
    self, path: str | os.PathLike, columns: Sequence[str], *, origin: str
  ) -> None:
    """Opens the file for a moment, to look at its header.

    Args:
      path: the file.
      columns: names of the columns to read, in the order wanted; two or more.
      origin: what the file is and where it comes from, for the error.

    Raises:
      InputError: if there is no such file or a column is missing.
    """
    self.path = os.fspath(path)
    self.problems: list[tuple[str, str]] = []
    header = next(self._lines(origin), [])
    self._header = [name.strip() for name in header]
    lacking = [name for name in columns if name not in self._header]
    if lacking:
      raise InputError(
        f"{self.path!r} has no column {lacking[0]!r}; its columns are "
        f"{', '.join(self._header) or 'none'}. Expected: {origin}"
      )
    self._pick = operator.itemgetter(*map(self._header.index, columns))

  def __iter__(self) -> Iterator[tuple[str, ...]]:
    lines = self._lines("")
    next(lines)
    width, pick = len(self._header), self._pick
    odd = first = 0
    for number, line in enumerate(lines, 2):
      if len(line) == width:
        yield pick(line)
      elif line:
        odd += 1
        first = first or number
    if odd:
      self.problems.append(
        (
          self.path,
          f"{odd:,} rows have not {width} fields as the header has, first row "
          f"{first}",
        )
      )

  def _lines(self, origin: str) -> Iterator[list[str]]:
    try:
      with open(
        self.path, encoding="utf-8-sig", errors="surrogateescape", newline=""
      ) as file:
        yield from csv.reader(file)
    except FileNotFoundError as error:
      raise InputError(f"no file {self.path!r}; expected {origin}") from error
    except OSError as error:
      raise InputError(
        f"cannot read {self.path!r}: {error.strerror}"
      ) from error
    except csv.Error as error:
      raise InputError(
        f"{self.path!r} is no CSV file ({error}); copy or download it again"
      ) from error
