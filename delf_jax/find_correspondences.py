r"""Finds what pairs of photographs of one place show in common, to train on.

  python -m delf_jax.extract --photos DIR --features FEATURES --output STORE
  python -m delf_jax.find_correspondences --store STORE --output PAIRS.npz

Any two photographs in one folder of DIR may show the same place, up to
--most_pairs of a folder, drawn by chance. Their features are matched and planes
(homographies) are fitted to the matches, one after the other, as facades and
grounds mostly are. So a network finds pairs that differ more than those it was
trained on, for its successor to be trained on.

--pairs names a CSV file with the columns path_a and path_b instead: pairs that
are known to show the same place, such as another program has verified. --prefix
takes only the pairs whose paths both begin with it, and removes it.

The correspondence stage of `delf_jax.train` takes the file, beside the folder
of the photographs, as a source: real changes of viewpoint and light.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from delf_jax import extractors, matching, options, program, progress
from delf_jax.data import pair_sources
from delf_jax.data.table import Table
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.geometry import ransac

# Planes of a pair at most.
MOST_PLANES = 3


@dataclasses.dataclass(frozen=True)
class Demands:
  """What is asked of the matches of a pair.

  Attributes:
    max_ratio: see `matching.match`.
    threshold: largest residual of a plane's match, as a share of the longest
      side of either photograph.
    least: matches of a plane.
    least_affine: matches that one affine transform must explain before any
      plane is looked for; 0 asks for none. Planes fit almost anything, and
      stiffer transforms less.
    affine_threshold: largest residual of those.
  """

  max_ratio: float | None
  threshold: float
  least: int
  least_affine: int = 0
  affine_threshold: float = 0.0


# Keypoints lie within a pixel or two, learned features on a coarse grid. So
# many matches within that affine threshold had 1 % of 37,000 pairs of strangers
# and 74 % of those that show one place, as most in one folder do.
PRECISE = Demands(max_ratio=0.92, threshold=0.0075, least=15)
COARSE = Demands(
  max_ratio=None,
  threshold=0.014,
  least=20,
  least_affine=25,
  affine_threshold=0.02,
)


def demands_of(settings: dict) -> Demands:
  """Returns what to ask of features with such settings of a store."""
  if settings.get("kind") in extractors.HANDCRAFTED:
    return PRECISE
  return COARSE


def planes(
  features: store.Store,
  pairs: Sequence[tuple[int, int]],
  demands: Demands = PRECISE,
) -> tuple[list[tuple[int, int]], list[np.ndarray], list[np.ndarray]]:
  """Fits planes to the matches of pairs of photographs.

  Args:
    features: of the photographs.
    pairs: numbers of photographs in the store.
    demands: what is asked of matches.

  Returns:
    of every plane: the pair, the homography [3, 3] from the first photograph
    to the second, and its inliers [n, 2] in the first.
  """
  todo = []
  for first, second in progress.track(
    pairs, label="match", unit="pair", total=len(pairs)
  ):
    source, target = _matches(features, first, second, demands.max_ratio)
    if len(source) >= max(demands.least, demands.least_affine):
      side = features.sizes[[first, second]].max()
      todo.append(((first, second), source, target, side))
  if demands.least_affine:
    results = _fit(todo, demands.affine_threshold, model="affine")
    todo = [
      item
      for item, result in zip(todo, results, strict=True)
      if result.num_inliers >= demands.least_affine
    ]
  found = []
  for _ in range(MOST_PLANES):
    left = []
    results = _fit(todo, demands.threshold, model="homography")
    for (pair, source, target, side), result in zip(todo, results, strict=True):
      inliers = np.asarray(result.inliers)
      if inliers.sum() < demands.least:
        continue
      scale = side * demands.threshold
      zoom = np.diag([scale, scale, 1.0])
      transform = zoom @ np.asarray(result.transform) @ np.linalg.inv(zoom)
      found.append((pair, transform, source[inliers]))
      rest = source[~inliers], target[~inliers]
      if len(rest[0]) >= demands.least:
        left.append((pair, *rest, side))
    todo = left
  found.sort(key=lambda plane: plane[0])
  return tuple(map(list, zip(*found, strict=True))) if found else ([], [], [])


def _fit(todo, threshold, *, model):
  """Runs RANSAC on (pair, source, target, longest side)."""
  return ransac.verify(
    # The threshold is in units of these points.
    [
      (source / (side * threshold), target / (side * threshold))
      for _, source, target, side in todo
    ],
    threshold=1.0,
    model=model,
  )


def _matches(
  features: store.Store, first: int, second: int, max_ratio: float | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the matched locations [n, 2] of two photographs."""
  one, other = features.features(first), features.features(second)
  mine, theirs, _ = matching.match(
    np.asarray(one.descriptors, np.float32),
    np.asarray(other.descriptors, np.float32),
    max_ratio=max_ratio,
  )
  return (
    np.asarray(one.locations, np.float64)[mine],
    np.asarray(other.locations, np.float64)[theirs],
  )


def pairs_of_folders(
  paths: Sequence[str], *, most: int, seed: int = 0
) -> list[tuple[int, int]]:
  """Returns pairs of photographs that lie in one folder.

  Args:
    paths: of the photographs.
    most: pairs of a folder; of more, some are drawn by chance.
    seed: of the chance.

  Raises:
    InputError: if no two photographs lie in one folder.
  """
  folders: dict[str, list[int]] = {}
  for number, path in enumerate(paths):
    folders.setdefault(os.path.dirname(path), []).append(number)
  generator = np.random.default_rng(seed)
  found = []
  for folder in sorted(folders):
    pairs = list(itertools.combinations(folders[folder], 2))
    chosen = generator.permutation(len(pairs))[:most]
    found += [pairs[i] for i in sorted(chosen)]
  if not found:
    raise InputError(
      "no two photographs of the store lie in one folder; give --pairs"
    )
  return found


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
  if values.pairs is None:
    options.refuse(values, ("prefix",), "is of --pairs")
    pairs = pairs_of_folders(
      features.paths, most=values.most_pairs, seed=values.seed
    )
  else:
    options.refuse(values, ("most_pairs", "seed"), "does not apply to --pairs")
    pairs = read_pairs(values.pairs, numbers, prefix=values.prefix)
  found, homographies, inliers = planes(
    features, pairs, demands_of(features.settings)
  )
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
  flags.DEFINE_string("store", None, "of features.", required=True)
  flags.DEFINE_string(
    "pairs", None, "CSV file of pairs (any two photographs in one folder)."
  )
  flags.DEFINE_string("prefix", "", "of the paths in it that count.")
  flags.DEFINE_integer(
    "most_pairs", 900, "of a folder, drawn by chance.", lower_bound=1
  )
  flags.DEFINE_integer("seed", 0, "of the chance.", lower_bound=0)
  flags.DEFINE_string("output", None, "file that is written.", required=True)
  program.run(main)
