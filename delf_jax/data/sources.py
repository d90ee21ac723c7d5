"""Random access to labelled photographs, still encoded.

A source is picklable and answers `len(source)`, `source[i]` (a dict of "image",
the encoded bytes, "label", a number, "name", a path, and maybe more) and
`source.labels` ([n] int32), which costs no reading.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Source(Protocol):
  """Photographs by number; can be pickled.

  Attributes:
    labels: [n] int32, the class of each.
  """

  labels: np.ndarray

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Mapping[str, Any]:
    """{"image": encoded bytes, "label": int, "name": str}, or more."""


class PackedStrings(Sequence):
  """Many strings in two arrays.

  Four million paths take a tenth of a gigabyte this way, half a gigabyte as a
  list, and reach a worker process as two copies of memory.
  """

  def __init__(self, strings: Iterable[str]) -> None:
    """Packs strings; surrogate escapes are kept."""
    encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
    self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
    self._ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, i: int) -> str:
    i = _checked(i, len(self))
    start = self._ends[i - 1] if i else 0
    data = self._bytes[start : self._ends[i]].tobytes()
    return data.decode("utf-8", "surrogateescape")


class FileSource:
  """Labelled photographs that are files.

  Attributes:
    labels: [n] int32.
    names: [n] paths relative to the folder.
  """

  def __init__(
    self, root: str, paths: Iterable[str], labels: np.ndarray
  ) -> None:
    """Takes what a listing found.

    Args:
      root: the folder of the photographs.
      paths: of the photographs, relative to `root`.
      labels: [n] int32.
    """
    self._root = root
    self.names = PackedStrings(paths)
    self.labels = np.asarray(labels, np.int32)
    if len(self.names) != len(self.labels):
      raise ValueError(f"{len(self.names)} paths, {len(self.labels)} labels")

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, i: int) -> dict[str, Any]:
    name = self.names[i]
    try:
      with open(os.path.join(self._root, name), "rb") as file:
        image = file.read()
    except OSError:
      image = b""  # decoding reports it, as it does every other damage
    return {"image": image, "label": int(self.labels[i]), "name": name}


class RecordSource:
  """Labelled photographs that TFDS has prepared.

  Attributes:
    labels: [n] int32.
  """

  def __init__(
    self, records: Sequence[bytes], features: Any, labels: np.ndarray
  ) -> None:
    """Takes opened files.

    Args:
      records: the examples, serialised.
      features: of TFDS, which reads one.
      labels: [n] int32, of the examples.
    """
    self._records = records
    self._features = features
    self.labels = np.asarray(labels, np.int32)
    if len(records) != len(self.labels):
      raise ValueError(f"{len(records)} records, {len(self.labels)} labels")

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, i: int) -> dict[str, Any]:
    record = self._records[_checked(i, len(self))]
    example = self._features.deserialize_example_np(record)
    return {
      **example,
      "label": int(example["label"]),
      "name": os.fsdecode(example["name"]),
    }


def _checked(i: int, length: int) -> int:
  """Returns a position as one from the front, as a list would take it."""
  i = int(i)
  if not -length <= i < length:
    raise IndexError(f"{i} of {length}")
  return i % length
