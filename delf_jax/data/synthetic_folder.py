"""Writes synthetic landmarks as a folder of photographs with ground truth."""

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from delf_jax.data import synthetic
from delf_jax.errors import InputError
from delf_jax.progress import track

# What makes a pair easy, hard or junk; see `write_folder`.
JUNK_SHARE = 0.1
EASY_SHARE = 0.5
EASY_TILT = 1.5
EASY_ZOOM = 1.6

_GRID = 4  # pixels of the landmark's plane between the points compared


class Relation(NamedTuple):
  """How two views of one landmark compare.

  Attributes:
    share: of the landmark that is visible in both, 0 to 1.
    tilt: largest over smallest stretch from one view to the other, 1 or more,
      in the middle of what both see; 1 is a similarity.
    zoom: larger over smaller scale there, 1 or more.
  """

  share: float
  tilt: float
  zoom: float


def write_folder(
  root: str | os.PathLike[str],
  *,
  seed: int = 0,
  num_landmarks: int = 10,
  views: int = 10,
  queries: int = 2,
  clutter: int = 40,
  distractors: int = 40,
  first_landmark: int = 0,
  first_view: int = 0,
  first_clutter: int = 0,
  size: tuple[int, int] = synthetic.SIZE,
  quality: int = 92,
) -> Path:
  """Writes photographs, distractor queries and the ground truth.

  ```
  root/photos/landmark_00/view_000.jpg ...   the database, queries among it
  root/photos/clutter/clutter_000.jpg ...    no landmark in them
  root/distractors/clutter_040.jpg ...       queries without a match, every
  root/distractors/landmark_10.jpg ...       other one a landmark not in photos
  root/ground_truth.json                     the form that `evaluate` reads
  ```

  The first `queries` views of a landmark are its queries. Another view of it is
  junk if less than a tenth of the landmark is visible in both; else easy if at
  least half is and, where both see it, one view turns into the other with a
  tilt (the ratio of the stretches in two directions) of at most 1.5 and a
  change of scale of at most 1.6; else hard.

  Every file is written to another name and renamed; the ground truth comes
  last. The same arguments write the same bytes again.

  Args:
    root: folder to write to; made if it does not exist.
    seed: of the collection.
    num_landmarks: number of landmarks.
    views: photographs of each.
    queries: how many of them are queries.
    clutter: photographs of nothing in particular in the database.
    distractors: queries without a match.
    first_landmark: the first landmark; others than those trained on are unseen.
    first_view: the first view; others than those trained on are unseen.
    first_clutter: the first clutter photograph.
    size: longer and shorter side of the photographs in pixels.
    quality: of the JPEG files, 1 to 100.

  Returns:
    the path of the ground truth.

  Raises:
    InputError: if the folder cannot be written, or holds other photographs.
    ValueError: if there are more queries than views.
  """
  if queries > views:
    raise ValueError(f"{queries} queries of {views} views")
  root = Path(root)
  landmarks = range(first_landmark, first_landmark + num_landmarks)
  numbers = range(first_view, first_view + views)

  jobs: dict[str, tuple[Callable, tuple[int, ...]]] = {}
  for landmark in landmarks:
    for view in numbers:
      path = f"photos/{_photograph(landmark, view)}"
      jobs[path] = (synthetic.render_view, (landmark, view))
  for index in range(first_clutter, first_clutter + clutter):
    path = f"photos/clutter/clutter_{index:03d}.jpg"
    jobs[path] = (synthetic.render_clutter, (index,))
  for index in range(distractors):
    if index % 2:
      stranger = first_landmark + num_landmarks + index // 2
      path = f"distractors/landmark_{stranger:02d}.jpg"
      jobs[path] = (synthetic.render_view, (stranger, first_view))
    else:
      other = first_clutter + clutter + index // 2
      path = f"distractors/clutter_{other:03d}.jpg"
      jobs[path] = (synthetic.render_clutter, (other,))
  _refuse_others(root, jobs)

  def run(path):
    render, key = jobs[path]
    picture = render(seed, *key, size=size)
    seen = isinstance(picture, synthetic.View)
    pixels = picture.pixels if seen else picture
    _write(root / path, synthetic.encode_jpeg(pixels, quality=quality))
    # The pixels would fill the memory, and the truth does not need them.
    return path, picture._replace(pixels=np.empty(0)) if seen else None

  made = {}
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for path, view in track(
      pool.map(run, jobs),
      label="synthetic photographs",
      unit="photo",
      total=len(jobs),
    ):
      if view is not None:
        made[path.removeprefix("photos/")] = view
  truth = {
    "note": (
      f"Synthetic landmarks, seed {seed}. Paths are relative to photos/. junk: "
      f"less than {JUNK_SHARE} of the landmark is visible in both; easy: at "
      f"least {EASY_SHARE}, tilt at most {EASY_TILT}, scale change at most "
      f"{EASY_ZOOM}; hard: the rest."
    ),
    "queries": [
      _query(seed, landmark, view, numbers, made)
      for landmark in landmarks
      for view in numbers[:queries]
    ],
  }
  path = root / "ground_truth.json"
  _write(path, (json.dumps(truth, indent=1) + "\n").encode())
  return path


def compare(
  source: synthetic.View, target: synthetic.View, picture: np.ndarray
) -> Relation:
  """Compares two views of one landmark by what is true about them.

  Args:
    source: a view.
    target: another view.
    picture: [h, w, 4] of `synthetic.landmark_picture`.
  """
  points = np.argwhere(picture[::_GRID, ::_GRID, 3] >= 128) * float(_GRID)
  both = _visible(source, points) & _visible(target, points)
  if not both.any():
    return Relation(share=0.0, tilt=np.inf, zoom=np.inf)
  matrix = synthetic.homography_between(source, target)
  middle = points[both].mean(axis=0)
  y, x, w = source.homography @ (*middle, 1)
  stretches = np.linalg.svd(_jacobian(matrix, y / w, x / w), compute_uv=False)
  scale = np.sqrt(stretches.prod())
  return Relation(
    share=float(both.mean()),
    tilt=float(stretches[0] / stretches[1]),
    zoom=float(max(scale, 1 / scale)),
  )


def _visible(view: synthetic.View, points: np.ndarray) -> np.ndarray:
  """Returns [n] bool: which points [n, 2] of the plane the view shows."""
  mapped = np.c_[points, np.ones(len(points))] @ view.homography.T
  y, x = np.rint(mapped[:, :2] / mapped[:, 2:]).astype(int).T
  height, width = view.mask.shape
  inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
  inside[inside] = view.mask[y[inside], x[inside]]
  return inside


def _jacobian(matrix: np.ndarray, y: float, x: float) -> np.ndarray:
  """Returns the [2, 2] affine part of a homography at a point."""
  *top, w = matrix @ (y, x, 1)
  mapped = np.array(top) / w
  return (matrix[:2, :2] - mapped[:, None] * matrix[2, None, :2]) / w


def _photograph(landmark: int, view: int) -> str:
  return f"landmark_{landmark:02d}/view_{view:03d}.jpg"


def _query(seed, landmark, view, numbers, made) -> dict[str, Any]:
  """Returns one entry of the ground truth."""
  picture = synthetic.landmark_picture(seed, landmark)
  query = _photograph(landmark, view)
  entry = {"query": query, "landmark": f"landmark_{landmark:02d}"}
  entry |= {"easy": [], "hard": [], "junk": []}
  for other in numbers:
    if other == view:
      continue
    path = _photograph(landmark, other)
    share, tilt, zoom = compare(made[query], made[path], picture)
    if share < JUNK_SHARE:
      entry["junk"].append(path)
    elif share >= EASY_SHARE and tilt <= EASY_TILT and zoom <= EASY_ZOOM:
      entry["easy"].append(path)
    else:
      entry["hard"].append(path)
  return entry


def _refuse_others(root: Path, expected: Iterable[str]) -> None:
  """Raises if photographs lie in the folder that the truth would not know."""
  for name in ("photos", "distractors"):
    for path in sorted((root / name).rglob("*.jpg")):
      if path.relative_to(root).as_posix() not in expected:
        raise InputError(
          f"{path} is not one of the photographs to write; choose an empty "
          "folder or remove the old ones"
        )


def _write(path: Path, data: bytes) -> None:
  partial = path.with_name(path.name + ".partial")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(data)
    os.replace(partial, path)
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror}; choose another folder or make "
      "room"
    ) from error
