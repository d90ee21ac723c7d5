"""The lists of photographs that data sets are published as.

Each `read_` function takes the folder into which a user has downloaded or
unpacked one data set, and returns the photographs of its list that are there.
What is missing is counted, and never stops anything while something is left.
"""

import array
import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from delf_jax import progress
from delf_jax.data import folder, matlab_file, photograph_list, safe_pickle
from delf_jax.data.photograph_list import PhotographList
from delf_jax.data.table import Table
from delf_jax.errors import InputError

# What a table may call the two splits.
_SPLITS = {
  "train": False,
  "training": False,
  "validation": True,
  "val": True,
  "valid": True,
}


class _Entries:
  """Collects the rows of a list: four million of them, so without objects."""

  def __init__(self) -> None:
    self.paths: list[str] = []
    self._names: dict[str, int] = {}
    self._labels = array.array("i")
    self._validation = array.array("b")

  def add(self, path: str, name: str, validation: bool = False) -> None:
    self.paths.append(path)
    self._labels.append(self._names.setdefault(name, len(self._names)))
    self._validation.append(validation)

  def listed(
    self,
    root: str,
    *,
    source: str,
    split: bool = False,
    problems: Iterable[tuple[str, str]] = (),
  ) -> PhotographList:
    """Returns the rows, without repeats.

    Raises:
      InputError: if there are none.
    """
    problems = tuple(problems)
    if not self.paths:
      reasons = "; ".join(reason for _, reason in problems)
      raise InputError(
        f"{source!r} lists no photographs with a class"
        + (f" ({reasons})" if reasons else "")
      )
    return photograph_list.without_repeats(
      PhotographList(
        root=root,
        paths=self.paths,
        labels=np.array(self._labels, np.int32),
        names=list(self._names),
        validation=np.array(self._validation, bool) if split else None,
        problems=problems,
      )
    )


def read_folder(root: str) -> PhotographList:
  """Reads `root/landmark/.../photograph.jpg`; no split is published.

  Raises:
    InputError: as `folder.labelled_photographs`.
  """
  listing = folder.labelled_photographs(root)
  return PhotographList(
    root=listing.root,
    paths=listing.paths,
    labels=listing.labels,
    names=listing.names,
    validation=None,
    problems=listing.problems,
  )


def read_table(
  root: str,
  *,
  table: str = "",
  path_column: str = "path",
  label_columns: Sequence[str] = ("label",),
  split_column: str = "",
  rows: Mapping[str, Any] | None = None,
) -> PhotographList:
  """Reads a folder of photographs that a CSV file describes.

  Args:
    root: the folder that the paths in the table start from.
    table: the CSV file; a relative path starts from `root`.
    path_column: the column of paths.
    label_columns: the columns that tell one class from another; a class is
      called by them all, joined by "/". A row that leaves one of them empty has
      no class and is left out.
    split_column: a column that says "train" or "validation", or "" for none;
      rows that say something else are left out.
    rows: column -> a value, or several, that a row must have to count.

  Raises:
    InputError: if the table is missing or unfit, or no photograph is there.
  """
  if not table:
    raise InputError(
      "the kind of data set 'table' needs the option table: a CSV file with "
      f"the columns {path_column!r} and {label_columns!r}"
    )
  if isinstance(label_columns, str):
    label_columns = (label_columns,)
  wanted = {
    column: {str(v) for v in ([value] if _is_one(value) else value)}
    for column, value in dict(rows or {}).items()
  }
  columns = [path_column, *label_columns, *wanted]
  if split_column:
    columns.append(split_column)
  reader = Table(
    os.path.join(root, table),
    columns,
    origin=f"a CSV file with the columns {', '.join(columns)}",
  )
  entries = _Entries()
  unlabelled, others = 0, {}
  middle = 1 + len(label_columns)
  values = list(wanted.values())
  for row in reader:
    if any(r not in v for r, v in zip(row[middle:], values, strict=False)):
      continue
    if not all(row[:middle]):
      unlabelled += 1
      continue
    validation = False
    if split_column:
      validation = _SPLITS.get(row[-1].lower())
      if validation is None:
        others[row[-1]] = others.get(row[-1], 0) + 1
        continue
    entries.add(row[0], "/".join(row[1:middle]), validation)
  problems = reader.problems
  if unlabelled:
    problems.append(
      (
        reader.path,
        f"{unlabelled:,} rows leave {path_column} or "
        f"{' or '.join(label_columns)} empty",
      )
    )
  problems += [
    (reader.path, f"{n:,} rows say {s!r} in {split_column}, neither split")
    for s, n in sorted(others.items())
  ]
  return photograph_list.without_missing(
    entries.listed(
      root, source=reader.path, split=bool(split_column), problems=problems
    )
  )


def read_google_v1(
  root: str, *, table: str = "train.csv", photos: Sequence[str] = ()
) -> PhotographList:
  """Reads Google-Landmarks (v1): a table and folders of downloads.

  The table has the columns id, url, landmark_id, as in train.csv of the data
  set "google-landmarks-dataset" on Kaggle; its authors' and its users'
  downloaders write id.jpg. A landmark_id that is empty or None is no class.
  No split is published.

  Args:
    root: the folder of the table.
    table: the CSV file; a relative path starts from `root`.
    photos: folders below `root` that are searched, at any depth, for files
      named by id, whatever their extension; none means all of `root`.

  Raises:
    InputError: if the table is missing or unfit, or no photograph is there.
  """
  reader = Table(
    os.path.join(root, table),
    ["id", "landmark_id"],
    origin="the table of Google-Landmarks with the columns id, url, "
    "landmark_id (Kaggle, google-landmarks-dataset, train.csv)",
  )
  if isinstance(photos, str):
    photos = (photos,)
  problems, places = [], {}
  for place in photos or ("",):
    listing = folder.list_photographs(os.path.join(root, place))
    problems += [
      (os.path.join(place, path), reason) for path, reason in listing.problems
    ]
    for path in listing.paths:
      stem = path.rpartition("/")[2].rpartition(".")[0]
      places.setdefault(stem, os.path.join(place, path))
  entries = _Entries()
  unlabelled = absent = 0
  first = ""
  for name, landmark in reader:
    if landmark in ("", "None"):
      unlabelled += 1
    elif name in places:
      entries.add(places[name], landmark)
    else:
      first = first if absent else name
      absent += 1
  problems += reader.problems
  if unlabelled:
    problems.append((reader.path, f"{unlabelled:,} rows name no landmark"))
  if absent:
    present = len(entries.paths)
    problems.append(
      photograph_list.missing(root, first, found=present, of=present + absent)
    )
  return entries.listed(root, source=reader.path, problems=problems)


def read_google_v2(
  root: str, *, table: str = "train.csv", photos: str | None = None
) -> PhotographList:
  """Reads the training photographs of Google Landmarks v2.

  As github.com/cvdfoundation/google-landmark describes it: train.csv has the
  columns id, url, landmark_id, and photograph id lies at a/b/c/id.jpg, where
  a, b and c are the first three characters of id. No split is published.

  Args:
    root: the folder of the table.
    table: the CSV file; a relative path starts from `root`.
    photos: the folder, below `root`, of the folders a; by default "train" if
      there is one, else `root`.

  Raises:
    InputError: if the table is missing or unfit, or no photograph is there.
  """
  reader = Table(
    os.path.join(root, table),
    ["id", "landmark_id"],
    origin="train.csv of Google Landmarks v2 with the columns id, url, "
    "landmark_id (github.com/cvdfoundation/google-landmark)",
  )
  prefix = _google_v2_prefix(root, photos)
  entries = _Entries()
  unlabelled = 0
  for name, landmark in reader:
    if landmark and len(name) >= 3:
      entries.add(f"{prefix}{name[0]}/{name[1]}/{name[2]}/{name}.jpg", landmark)
    else:
      unlabelled += 1
  problems = reader.problems
  if unlabelled:
    problems.append((reader.path, f"{unlabelled:,} rows lack id or landmark"))
  return photograph_list.without_missing(
    entries.listed(root, source=reader.path, problems=problems)
  )


def read_google_v2_clean(
  root: str, *, table: str = "train_clean.csv", photos: str | None = None
) -> PhotographList:
  """Reads the cleaned training photographs of Google Landmarks v2.

  train_clean.csv has the columns landmark_id and images, the latter with ids
  separated by spaces; see `read_google_v2` for the photographs.

  Args:
    root: the folder of the table.
    table: the CSV file; a relative path starts from `root`.
    photos: as in `read_google_v2`.

  Raises:
    InputError: if the table is missing or unfit, or no photograph is there.
  """
  path = os.path.join(root, table)
  origin = (
    "train_clean.csv of Google Landmarks v2 with the columns landmark_id, "
    "images (github.com/cvdfoundation/google-landmark)"
  )
  lines = _lines(path, origin)
  header = [name.strip(' "') for name in next(lines, "").split(",")]
  if header != ["landmark_id", "images"]:
    raise InputError(
      f"{path!r} has the columns {', '.join(header)}; expected {origin}"
    )
  prefix = _google_v2_prefix(root, photos)
  entries = _Entries()
  odd = 0
  # A landmark's ids can be more than the csv module takes for one field.
  for line in lines:
    landmark, _, images = line.partition(",")
    landmark = landmark.strip(' "')
    for name in images.strip(' "').split():
      if landmark and len(name) >= 3:
        entries.add(
          f"{prefix}{name[0]}/{name[1]}/{name[2]}/{name}.jpg", landmark
        )
      else:
        odd += 1
  problems = [(path, f"{odd:,} ids lack a landmark")] if odd else []
  return photograph_list.without_missing(
    entries.listed(root, source=path, problems=problems)
  )


def read_landmarks(
  root: str,
  *,
  variant: str,
  lists: str | None = None,
  photos: str = "",
  match: str = "url",
) -> PhotographList:
  """Reads the Landmarks set, as Deep Image Retrieval published its lists.

  The photographs were chosen by Babenko et al. (Neural Codes for Image
  Retrieval, 2014); Gordo et al. (2016) took out what shows Oxford, Paris and
  Holidays, and cleaned the rest. Their archive annotations_landmarks holds
  annotation_{full,clean}_{train,val}.txt, of lines "url label" (full) and "url
  label x1 x2 y1 y2" (clean; an estimated box, not used here), labels 0 to 585,
  and annotation_clean_{train,val}.md5sum with one MD5 a line for the lines of
  the clean lists. All this was read in the archive's README and in the files;
  that the MD5s are in the order of the lines was seen from their number and
  from how others use them. The split is theirs.

  The photographs themselves are not distributed; many links are dead, and
  everybody has named downloads differently. So a photograph is looked for as

  - host/path of its URL (as `wget --force-directories` writes),
  - the MD5 of its URL, with .jpg or nothing behind,
  - label/name or just name, where name is the last part of the URL,

  with and without the query, as it stands and with %-escapes decoded. A bare
  name that URLs of several classes share says nothing and is not used. If your
  files are called otherwise, `match="md5"` finds those of the clean set by
  their content.

  Args:
    root: the folder of the downloads.
    variant: "full" or "clean".
    lists: the folder of the lists; by default `root` or annotations_landmarks
      or annotations below it.
    photos: the folder of the photographs, below `root`.
    match: "url" or "md5".

  Raises:
    InputError: if a list is missing or unfit, or no photograph is there.
  """
  if match not in ("url", "md5"):
    raise InputError(f"match is {match!r}; expected 'url' or 'md5'")
  if match == "md5" and variant != "clean":
    raise InputError(
      "match 'md5' needs the published MD5s, which are of landmarks_clean alone"
    )
  origin = (
    f"annotation_{variant}_train.txt and annotation_{variant}_val.txt of Deep "
    "Image Retrieval (annotations_landmarks, from "
    "download.europe.naverlabs.com/Computer-Vision-CodeandModels)"
  )
  lists = _folder_with(
    root, lists, f"annotation_{variant}_train.txt", origin=origin
  )
  urls, names, validation, problems = [], [], [], []
  sums = []
  for split in ("train", "val"):
    path = os.path.join(lists, f"annotation_{variant}_{split}.txt")
    found, odd = _read_urls(path, origin)
    if odd:
      problems.append((path, f"{odd:,} lines are not 'url label ...'"))
    urls += [url for url, _ in found]
    names += [label for _, label in found]
    validation += [split == "val"] * len(found)
    if match == "md5":
      path = os.path.join(lists, f"annotation_{variant}_{split}.md5sum")
      hashes = [line.split()[0].lower() for line in _lines(path, origin)]
      if odd or len(hashes) != len(found):
        raise InputError(
          f"{path!r} has {len(hashes):,} lines, its list {len(found) + odd:,}; "
          "download both again"
        )
      sums += hashes
  base = os.path.join(root, photos) if photos else root
  if match == "md5":
    paths = _match_content(base, sums)
  else:
    paths = _match_urls(base, urls, names)
  entries = _Entries()
  for path, name, kept in zip(paths, names, validation, strict=True):
    if path is not None:
      entries.add(path, name, kept)
  if None in paths:
    problems.append(
      photograph_list.missing(
        base,
        urls[paths.index(None)],
        found=len(entries.paths),
        of=len(paths),
      )
    )
  return entries.listed(base, source=lists, split=True, problems=problems)


def read_retrieval_sfm(
  root: str, *, variant: str, database: str | None = None, photos: str = "ims"
) -> PhotographList:
  """Reads retrieval-SfM-30k or -120k, the training set of siaMAC and GeM.

  Layout and formats as in the authors' code (github.com/filipradenovic/
  cnnimageretrieval-pytorch and cnnimageretrieval): retrieval-SfM-120k.pkl is a
  dict of "train" and "val", each with "cids" (names of photographs) and
  "cluster" (the 3-D model that each belongs to) and pairs, which
  `matching_pairs.read_pairs` reads; photograph ...uvwxyz lies, without
  extension, at ims/yz/wx/uv/...uvwxyz: its last three pairs of characters,
  backwards. A class is a cluster. Training and validation clusters are
  disjoint, so the published validation photographs are not trained on, and
  classification is validated on a hold-out.

  Of the 30k set no pickle is published. If there is no retrieval-SfM-30k.pkl
  of that form, its photographs are those of the 120k set that
  retrieval-SfM-30k-imagenames-clusterids.mat lists.

  The pickles are read without running their code.

  Args:
    root: the folder of the set, data/train/retrieval-SfM-120k in the authors'
      layout.
    variant: "30k" or "120k".
    database: the folder of the pickle and the MAT file; by default `root`, or
      retrieval-SfM-120k beside it.
    photos: the folder of the photographs, below `root`.

  Raises:
    InputError: if a file is missing or unfit, or no photograph is there.
  """
  site = "cmp.felk.cvut.cz/cnnimageretrieval/data/train"
  own, large = f"retrieval-SfM-{variant}.pkl", "retrieval-SfM-120k.pkl"
  chosen = None
  if variant == "30k" and not os.path.exists(
    os.path.join(database or root, own)
  ):
    listed = "retrieval-SfM-30k-imagenames-clusterids.mat"
    place = _folder_with(
      root,
      database,
      listed,
      origin=f"{listed} from {site}/ims (and {large} from {site}/dbs)",
    )
    chosen = _read_chosen(os.path.join(place, listed))
    own = large
  place = _folder_with(root, database, own, origin=f"{large} from {site}/dbs")
  path = os.path.join(place, own)
  content = safe_pickle.load(path)
  entries = _Entries()
  odd = 0
  for split in ("train", "val"):
    try:
      cids = [str(cid) for cid in content[split]["cids"]]
      clusters = [int(cluster) for cluster in content[split]["cluster"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise InputError(
        f"{path!r} has no lists cids and cluster under {split!r}; expected "
        f"{large} from {site}/dbs"
      ) from error
    if len(cids) != len(clusters):
      raise InputError(
        f"{path!r} has {len(cids)} cids and {len(clusters)} clusters under "
        f"{split!r}; download it again"
      )
    for cid, cluster in zip(cids, clusters, strict=True):
      if len(cid) < 6 or "/" in cid:
        odd += 1
      elif chosen is None or cid in chosen:
        at = f"{photos}/{cid[-2:]}/{cid[-4:-2]}/{cid[-6:-4]}/{cid}"
        entries.add(at, str(cluster), split == "val")
  problems = [(path, f"{odd:,} names are too short")] if odd else []
  return photograph_list.without_missing(
    entries.listed(root, source=path, split=True, problems=problems)
  )


def _is_one(value: Any) -> bool:
  return isinstance(value, str) or not isinstance(value, Iterable)


def _google_v2_prefix(root: str, photos: str | None) -> str:
  if photos is None:
    photos = "train" if os.path.isdir(os.path.join(root, "train")) else ""
  return f"{photos.rstrip('/')}/" if photos else ""


def _lines(path: str, origin: str) -> Iterable[str]:
  """Yields the lines of a text file that are not empty."""
  try:
    with open(
      path, encoding="utf-8-sig", errors="surrogateescape", newline="\n"
    ) as file:
      for line in file:
        line = line.strip()
        if line:
          yield line
  except FileNotFoundError as error:
    raise InputError(f"no file {path!r}; expected {origin}") from error
  except OSError as error:
    raise InputError(f"cannot read {path!r}: {error.strerror}") from error


def _folder_with(
  root: str, given: str | None, name: str, *, origin: str
) -> str:
  """Returns the folder that holds a file of a published list.

  Raises:
    InputError: if no folder that comes into question does.
  """
  below = ["", "annotations_landmarks", "annotations", "../retrieval-SfM-120k"]
  places = [given] if given else [os.path.join(root, b) for b in below]
  for place in places:
    if os.path.exists(os.path.join(place, name)):
      return place
  raise InputError(f"no {name} in {given or root!r}; expected {origin}")


_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def _read_urls(path: str, origin: str) -> tuple[list[tuple[str, str]], int]:
  """Returns (url, label) of every line, and how many lines are otherwise."""
  found, odd = [], 0
  for line in _lines(path, origin):
    fields = line.split(" ")
    # With a box the label is the fifth from the end, without it the last.
    boxed = len(fields) >= 6 and all(map(_NUMBER.fullmatch, fields[-5:]))
    at = -5 if boxed else -1
    if len(fields) >= 2 and fields[at].isdigit():
      found.append((" ".join(fields[:at]), fields[at]))
    else:
      odd += 1
  return found, odd


def _match_content(base: str, sums: Sequence[str]) -> list[str | None]:
  """Returns for each MD5 a file below `base` that has it, or None."""
  listing = folder.list_photographs(base, any_name=True)
  wanted = set(sums)
  places = {}
  for path in progress.track(
    listing.paths, label="compare contents", unit="photograph"
  ):
    try:
      with open(os.path.join(base, path), "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    except OSError:
      continue
    if found in wanted:
      places.setdefault(found, path)
  return [places.get(s) for s in sums]


def _match_urls(
  base: str, urls: Sequence[str], names: Sequence[str]
) -> list[str | None]:
  """Returns where each URL was downloaded to, or None; see `read_landmarks`."""
  owners: dict[str, set[str]] = {}
  for url, name in zip(urls, names, strict=True):
    for last in _last_parts(url):
      owners.setdefault(last, set()).add(name)
  paths: list[str | None] = [None] * len(urls)
  for convention in (
    lambda url, name: _spellings(url.partition("://")[2] or url),
    lambda url, name: [digest := _md5(url), f"{digest}.jpg"],
    lambda url, name: [f"{name}/{last}" for last in _last_parts(url)],
    lambda url, name: [s for s in _last_parts(url) if len(owners[s]) == 1],
  ):
    tried = [
      (i, path)
      for i, pair in enumerate(zip(urls, names, strict=True))
      if paths[i] is None
      for path in convention(*pair)
      if _is_below(path)
    ]
    there = photograph_list.are_files(base, [path for _, path in tried])
    for (i, path), is_there in zip(tried, there, strict=True):
      if is_there and paths[i] is None:
        paths[i] = path
  return paths


def _last_parts(url: str) -> list[str]:
  """Returns the last part of a URL's path, with and without a query."""
  place = url.partition("://")[2] or url
  path = re.split(r"[?#]", place, maxsplit=1)[0]
  lasts = (path.rpartition("/")[2], place.rpartition("/")[2])
  return list(dict.fromkeys(s for last in lasts for s in _spellings(last)))


def _spellings(path: str) -> list[str]:
  """Returns a path as it stands and with %-escapes decoded, if that differs."""
  decoded = urllib.parse.unquote(path, errors="surrogateescape")
  return [path] if decoded == path else [path, decoded]


def _is_below(path: str) -> bool:
  """Whether a path taken from a URL names a file inside the folder."""
  parts = path.split("/")
  return "" not in (parts[0], parts[-1]) and ".." not in parts


def _md5(text: str) -> str:
  return hashlib.md5(text.encode("utf-8", "surrogateescape")).hexdigest()


def _read_chosen(path: str) -> set[str]:
  """Returns the photographs of the 30k set."""
  content = matlab_file.load(path)
  cids = content.get("cids")
  if not isinstance(cids, list) or not all(isinstance(c, str) for c in cids):
    raise InputError(
      f"{path!r} has no cell array cids of names; download it again"
    )
  return set(cids)
