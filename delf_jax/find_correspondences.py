r"""Finds what pairs of photographs of one place show in common, to train on.

  python -m delf_jax.extract --photos DIR --features rootsift --output STORE
  python -m delf_jax.find_correspondences --store STORE --pairs PAIRS.csv \
    --output PAIRS.npz

PAIRS.csv has the columns path_a and path_b: pairs that are known to show the
same place, such as another program has verified. Their RootSIFT features are
matched and planes (homographies) are fitted to the matches, one after the
other, as facades and grounds mostly are. --prefix takes only the pairs whose
paths both begin with it, and removes it.

The correspondence stage of `delf_jax.train` takes the file, beside the folder
of the photographs, as a source: real changes of viewpoint and light.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags

from delf_jax import matching, program, progress
from delf_jax.data import pair_sources
from delf_jax.data.table import Table
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.geometry import ransac

# Of the longest side of either photograph: six pixels of 800.
THRESHOLD = 0.0075
# Planes of a pair at most, and matches of each at least.
MOST_PLANES = 3
LEAST_INLIERS = 15
MAX_RATIO = 0.92


def planes(
  features: store.Store, pairs: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[np.ndarray], list[np.ndarray]]:
  """Fits planes to the matches of pairs of photographs.

  Args:
    features: of the photographs.
    pairs: numbers of photographs in the store.

  Returns:
    of every plane: the pair, the homography [3, 3] from the first photograph
    to the second, and its inliers [n, 2] in the first.
  """
  todo = []
  for first, second in progress.track(
    pairs, label="match", unit="pair", total=len(pairs)
  ):
    source, target = _matches(features, first, second)
    if len(source) >= LEAST_INLIERS:
      threshold = THRESHOLD * features.sizes[[first, second]].max()
      todo.append(((first, second), source, target, threshold))
  found = []
  for _ in range(MOST_PLANES):
    left = []
    results = ransac.verify(
      # The threshold is in units of these points.
      [(source / scale, target / scale) for _, source, target, scale in todo],
      threshold=1.0,
      model="homography",
    )
    for (pair, source, target, scale), result in zip(
      todo, results, strict=True
    ):
      inliers = np.asarray(result.inliers)[: len(source)]
      if inliers.sum() < LEAST_INLIERS:
        continue
      zoom = np.diag([scale, scale, 1.0])
      transform = zoom @ np.asarray(result.transform) @ np.linalg.inv(zoom)
      found.append((pair, transform, source[inliers]))
      rest = source[~inliers], target[~inliers]
      if len(rest[0]) >= LEAST_INLIERS:
        left.append((pair, *rest, scale))
    todo = left
  found.sort(key=lambda plane: plane[0])
  return tuple(map(list, zip(*found, strict=True))) if found else ([], [], [])


def _matches(
  features: store.Store, first: int, second: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the matched locations [n, 2] of two photographs."""
  one, other = features.features(first), features.features(second)
  mine, theirs, _ = matching.match(
    np.asarray(one.descriptors, np.float32),
    np.asarray(other.descriptors, np.float32),
    max_ratio=MAX_RATIO,
  )
  return (
    np.asarray(one.locations, np.float64)[mine],
    np.asarray(other.locations, np.float64)[theirs],
  )


def read_pairs(
  path: str, numbers: dict[str, int], *, prefix: str = ""
) -> list[tuple[int, int]]:
  """Reads pairs of photographs.

  Args:
    path: a CSV file with the columns path_a and path_b.
    numbers: of the photographs in the store, by path.
    prefix: of the paths that count; it is removed.

  Raises:
    InputError: if no pair is in the store.
  """
  table = Table(
    path, ["path_a", "path_b"], origin="a CSV file of pairs of photographs"
  )
  found = []
  for row in table:
    names = [name.removeprefix(prefix) for name in row[:2]]
    if all(name.startswith(prefix) for name in row[:2]) and all(
      name in numbers for name in names
    ):
      found.append((numbers[names[0]], numbers[names[1]]))
  if not found:
    raise InputError(
      f"{path}: no pair of it is in the store; check --store and --prefix"
    )
  return found


def main() -> None:
  """Finds correspondences as the flags say."""
  values = flags.FLAGS
  features = store.open_store(values.store)
  numbers = {name: i for i, name in enumerate(features.paths)}
  pairs = read_pairs(values.pairs, numbers, prefix=values.prefix)
  found, homographies, inliers = planes(features, pairs)
  if not found:
    raise InputError("no plane was found in any pair; nothing is written")
  pair_sources.write_verified(
    values.output,
    paths=features.paths,
    pairs=np.array(found),
    homographies=np.array(homographies),
    inliers=inliers,
  )
  print(
    f"{len(found):,} planes in {len(set(found)):,} of {len(pairs):,} pairs, "
    f"with {sum(map(len, inliers)):,} matches; {values.output}"
  )


if __name__ == "__main__":
  flags.DEFINE_string("store", None, "RootSIFT features.", required=True)
  flags.DEFINE_string("pairs", None, "CSV file of pairs.", required=True)
  flags.DEFINE_string("prefix", "", "of the paths that count.")
  flags.DEFINE_string("output", None, "file that is written.", required=True)
  program.run(main)
