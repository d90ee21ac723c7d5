"""Plain folders of photographs: which there are, and of what landmark."""

import heapq
import os
import stat
from typing import NamedTuple

import numpy as np

from delf_jax.errors import InputError

EXTENSIONS = frozenset(
  (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
)


class Listing(NamedTuple):
  """The photographs under a folder.

  Attributes:
    root: the folder, as it was given.
    paths: sorted paths relative to `root`, with "/" between their parts and
      surrogate escapes (`os.fsdecode`) for bytes that are no text.
    problems: (path, reason) of what could not be listed, sorted.
  """

  root: str
  paths: tuple[str, ...]
  problems: tuple[tuple[str, str], ...]


class LabelledListing(NamedTuple):
  """The photographs under a folder of landmarks; see `Listing`.

  Attributes:
    root: as in `Listing`.
    paths: as in `Listing`.
    problems: as in `Listing`.
    labels: [n] int32, the index in `names` of each path's landmark.
    names: the landmarks, sorted.
  """

  root: str
  paths: tuple[str, ...]
  problems: tuple[tuple[str, str], ...]
  labels: np.ndarray
  names: tuple[str, ...]


def list_photographs(
  root: str | bytes | os.PathLike, *, any_name: bool = False
) -> Listing:
  """Lists the photographs under a folder, at any depth.

  A photograph is a file with one of `EXTENSIONS`, in small letters or
  capitals. Hidden files and folders (".name") are left out. Links are
  followed, but each folder is entered once and each linked file listed once:
  by its path without links where it has one under `root`, else by the path
  with the fewest linked folders, then by the first in order. So links may
  loop, and the result does not depend on the file system's order.

  Args:
    root: the folder.
    any_name: takes every file for a photograph, as downloads without an
      extension need it.

  Returns:
    The listing. Folders that cannot be read, broken links and things with a
    photograph's name that are no files are among its problems.

  Raises:
    InputError: if `root` is not a readable folder or has no photographs.
  """
  root = os.fsdecode(root)
  try:
    if not stat.S_ISDIR(os.stat(root).st_mode):
      raise InputError(f"{root!r} is not a folder; give one of photographs")
    with os.scandir(root):
      pass
  except FileNotFoundError as error:
    raise InputError(f"no folder {root!r}; check the path") from error
  except PermissionError as error:
    raise InputError(
      f"no permission to read the folder {root!r}; change its mode or owner"
    ) from error
  except (OSError, ValueError) as error:
    # ValueError: a path with a null character.
    raise InputError(
      f"cannot read the folder {root!r} ({error}); check the path"
    ) from error
  paths, problems = _walk(root, any_name)
  if not paths:
    unread = f" ({len(problems)} entries unreadable)" if problems else ""
    raise InputError(
      f"no photographs under {root!r}{unread}; expected .jpg, .png or .webp, "
      "or .bmp, .tif, .gif or .ppm"
    )
  return Listing(root, tuple(sorted(paths)), tuple(sorted(problems)))


def labelled_photographs(
  root: str | bytes | os.PathLike,
) -> LabelledListing:
  """Lists photographs laid out as `root/landmark/.../photograph.jpg`.

  Args:
    root: a folder with one folder a landmark.

  Returns:
    The listing with labels. Photographs that lie directly in `root` have no
    landmark: they are left out and are among its problems.

  Raises:
    InputError: as in `list_photographs`, or if there are fewer than two
      landmarks with photographs.
  """
  listing = list_photographs(root)
  paths = tuple(path for path in listing.paths if "/" in path)
  loose = [
    (path, "not in a landmark's folder")
    for path in listing.paths
    if "/" not in path
  ]
  landmarks = [path.split("/", 1)[0] for path in paths]
  names, labels = np.unique(
    np.array(landmarks, dtype=object), return_inverse=True
  )
  if len(names) < 2:
    raise InputError(
      f"{len(names)} landmarks with photographs under {listing.root!r}, at "
      "least 2 are needed; expected root/landmark/photograph.jpg"
    )
  return LabelledListing(
    root=listing.root,
    paths=paths,
    problems=tuple(sorted([*listing.problems, *loose])),
    labels=labels.astype(np.int32),
    names=tuple(names),
  )


def _walk(root: str, any_name: bool) -> tuple[list[str], list[tuple[str, str]]]:
  """Returns the unsorted photographs and problems under `root`."""
  paths = []
  linked = []
  problems = []
  entered = set()
  listed = set()
  # (linked folders on the way, path): all that can be reached without links
  # is visited first, so that a link never takes a real folder's place.
  folders = [(0, "")]
  while folders:
    links, folder = heapq.heappop(folders)
    place = os.path.join(root, folder)
    try:
      status = os.stat(place)
      if (status.st_dev, status.st_ino) in entered:
        continue
      entered.add((status.st_dev, status.st_ino))
      with os.scandir(place) as entries:
        entries = [e for e in entries if not e.name.startswith(".")]
    except OSError as error:
      problems.append((folder or ".", _reason(error)))
      continue
    real_place = os.path.realpath(place)
    for entry in entries:
      path = f"{folder}/{entry.name}" if folder else entry.name
      extension = os.path.splitext(entry.name)[1].lower()
      wanted = any_name or extension in EXTENSIONS
      try:
        mode = entry.stat().st_mode if entry.is_symlink() else None
        is_folder = entry.is_dir() if mode is None else stat.S_ISDIR(mode)
        is_file = entry.is_file() if mode is None else stat.S_ISREG(mode)
      except OSError as error:
        problems.append((path, _reason(error)))
        continue
      if is_folder:
        heapq.heappush(folders, (links + (mode is not None), path))
      elif wanted and not is_file:
        problems.append((path, "not a regular file"))
      elif wanted and mode is None:
        paths.append(path)
        listed.add(os.path.join(real_place, entry.name))
      elif wanted:
        linked.append((links, path, os.path.realpath(entry.path)))
  # Hard links stay: neither of two names is the link.
  for _, path, target in sorted(linked):
    if target not in listed:
      listed.add(target)
      paths.append(path)
  return paths, problems


def _reason(error: OSError) -> str:
  if isinstance(error, FileNotFoundError):
    return "broken link, or removed meanwhile"
  return error.strerror or type(error).__name__
