"""How well each kind of feature finds the same places again, and which is fast.

  python tests/benchmarks/detectors.py [--photos DIR] [--features KIND ...]
      [--pairs 40] [--max_features 1000] [--pictures DIR]

Pairs of views with known homographies: views of made-up landmarks, and with
--photos warped photographs from under DIR, in four series: turned by up to 180
degrees, enlarged by up to 3, seen from aside, and with other light, blur, noise
and compression. --features takes whatever delf_jax.extract does, checkpoints
too, and may be given more than once. "opencv sift" is OpenCV's detector and
OpenCV's matcher called by hand.

Repeatability: of the features of a view that lie in what both show, how many
have a counterpart, within 3 pixels and half an octave of scale, one to one.
Matching score: how many of them are matched with the right feature, each being
the other's nearest descriptor, within 3 pixels. Both are shares of the smaller
number of features there. Mean matching accuracy: the share of those matches
that is right within 1 to 10 pixels. In percent, means over pairs. Milliseconds
are medians a photograph, one after the other. --pictures draws the features of
the first pair of each series, and all kinds beside each other as SERIES.png.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from delf_jax import extractors, matching
from delf_jax.data import folder, synthetic, views
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.photographs import Photograph
from delf_jax.evaluation import keypoint_measures
from delf_jax.features import handcrafted
from delf_jax.features.local_features import LocalFeatures
from delf_jax.pictures import feature_pictures

KINDS = ("sift", "rootsift", "surf", "surf_upright", "congas", "congas_raw")
PEER = "opencv sift"
SIDE = 480
NOTHING = [0.0] * (3 + len(keypoint_measures.THRESHOLDS))

STILL = {"rotation": 0, "scale": 1, "shift": 0.05, "perspective": 0}
SERIES = {
  "turned": (views.Views(length=(0.6, 0.8), **STILL | {"rotation": 90}), None),
  "enlarged": (
    views.Views(length=(0.4, 0.5), zoom=4, **STILL | {"scale": 3}),
    None,
  ),
  "aside": (
    views.Views(length=(0.6, 0.8), **STILL | {"perspective": 0.2}),
    None,
  ),
  "light": (
    views.Views(length=(0.6, 0.8), **STILL),
    Augmentation(
      brightness=0.5,
      contrast=0.5,
      blur=0.5,
      blur_sigma=(0.5, 2.0),
      noise=10,
      jpeg=0.5,
    ),
  ),
}


class Pair(NamedTuple):
  """Two views and the truth about them.

  Attributes:
    pixels: two of [h, w, 3] uint8.
    masks: two of [h, w] bool, where the homography holds.
    homography: [3, 3] from (y, x, 1) of the first to that of the second.
  """

  pixels: tuple[np.ndarray, np.ndarray]
  masks: tuple[np.ndarray, np.ndarray]
  homography: np.ndarray


class Kind(NamedTuple):
  """How to extract and how to match."""

  extract: Callable[[np.ndarray], LocalFeatures]
  match: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def synthetic_pairs(count: int) -> Iterator[Pair]:
  """Yields two views of each of some made-up landmarks."""
  for landmark in range(count):
    one, other = (
      synthetic.render_view(0, landmark, view, size=(640, 480))
      for view in (0, 1)
    )
    yield Pair(
      (one.pixels, other.pixels),
      (one.mask, other.mask),
      synthetic.homography_between(one, other),
    )


def warped_pairs(
  photos: str, series: str, count: int, seed: int = 0
) -> Iterator[Pair]:
  """Yields two views of each of some photographs."""
  options, augmentation = SERIES[series]
  listing = folder.list_photographs(photos)
  generator = np.random.default_rng(seed)
  for i in generator.permutation(len(listing.paths))[:count]:
    path = Path(photos) / listing.paths[i]
    chosen, sizes = [], []

    def choose(height, width, chosen=chosen, sizes=sizes):
      if not sizes:
        chosen.extend(
          views.random_pair(height, width, SIDE, generator, options)
        )
      sizes.append((height, width))
      return chosen[len(sizes) - 1]

    pixels = [
      views.look(path.read_bytes(), name=path.name, side=SIDE, choose=choose)[0]
      for _ in range(2)
    ]
    if augmentation:
      pixels[1] = augmentation.change(pixels[1], generator)
    # What lies beyond the photograph mirrors it, and is no truth.
    whole = np.ones(sizes[0], bool)
    masks = [
      keypoint_measures.lie_in(
        views.project(view, views.lattice(SIDE, 1)), whole
      )
      for view in chosen
    ]
    yield Pair(
      tuple(pixels),
      tuple(mask.reshape(SIDE, SIDE) for mask in masks),
      np.linalg.inv(chosen[1]) @ chosen[0],
    )


def our_matches(one: np.ndarray, other: np.ndarray):
  return matching.match(one, other)[:2]


def opencv_matches(one: np.ndarray, other: np.ndarray):
  found = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(one, other)
  return tuple(
    np.array([getattr(m, name) for m in found], int)
    for name in ("queryIdx", "trainIdx")
  )


def opencv_sift(pixels: np.ndarray, *, max_features: int) -> LocalFeatures:
  grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
  sift = cv2.SIFT_create(nfeatures=max_features)
  keypoints, descriptors = sift.detectAndCompute(grey, None)
  rows = np.array(
    [(k.pt[1], k.pt[0], k.size, k.response) for k in keypoints], np.float32
  ).reshape(-1, 4)
  return LocalFeatures(
    locations=rows[:, :2],
    scales=rows[:, 2] / handcrafted.BASE_DIAMETER,
    scores=rows[:, 3],
    descriptors=np.zeros((0, 128), np.float32)
    if descriptors is None
    else descriptors,
    mask=np.ones(len(rows), bool),
  )


def open_kind(name: str, max_features: int) -> Kind:
  """Opens what a row of the table is about."""
  if name == PEER:
    return Kind(
      functools.partial(opencv_sift, max_features=max_features), opencv_matches
    )
  extractor = extractors.open_extractor(name, max_features=max_features)
  return Kind(
    lambda pixels: extractor.extract(Photograph(pixels, *pixels.shape[:2])),
    our_matches,
  )


def measure(kind: Kind, pair: Pair, one, other) -> list[float] | None:
  """Compares the features of two views: the columns of the table."""
  if not (len(one.mask) and len(other.mask)):
    return None
  found = keypoint_measures.compare(
    *(
      keypoint_measures.Side(features.locations, features.scales, mask)
      for features, mask in zip((one, other), pair.masks, strict=True)
    ),
    kind.match(one.descriptors, other.descriptors),
    pair.homography,
  )
  if found is None:
    return None
  return [
    found.common,
    found.repeatability,
    found.matching_score,
    *found.accuracies,
  ]


def measure_series(name: str, pairs: list[Pair], kinds: dict[str, Kind]):
  """Prints a table."""
  print(
    f"\n{name}, {len(pairs)} pairs\n\n| features | number | repeatability "
    "| matching score | accuracy, 1 px | "
    + " | ".join(map(str, keypoint_measures.THRESHOLDS[1:]))
    + " | ms |\n"
    + "|---" * (5 + len(keypoint_measures.THRESHOLDS))
    + "|"
  )
  for label, kind in kinds.items():
    for pixels in pairs[0].pixels:  # compiles
      kind.extract(pixels)
    seconds, rows = [], []
    for pair in pairs:
      found = []
      for pixels in pair.pixels:
        start = time.perf_counter()
        found.append(kind.extract(pixels))
        seconds.append(time.perf_counter() - start)
      rows.append(measure(kind, pair, *found) or NOTHING)
    number, *shares = np.mean(rows, axis=0)
    print(
      f"| {label} | {number:.0f} | "
      + " | ".join(f"{100 * share:.1f}" for share in shares)
      + f" | {1000 * statistics.median(seconds):.0f} |",
      flush=True,
    )


def draw(name: str, pair: Pair, kinds: dict[str, Kind], output: Path) -> None:
  """Writes a picture a kind and view, and one of all."""
  output.mkdir(parents=True, exist_ok=True)
  rows = []
  for label, kind in kinds.items():
    pictures = []
    for side, pixels in zip("ab", pair.pixels, strict=True):
      found = kind.extract(pixels)
      picture = feature_pictures.draw_features(
        pixels,
        found.locations,
        found.scales,
        found.scores,
        name=f"{Path(label).name}, {name} {side}",
      )
      file = f"{name}-{Path(label).name}-{side}.png".replace(" ", "_")
      Image.fromarray(picture).save(output / file)
      pictures.append(picture)
    rows.append(np.concatenate(pictures))
  sheet = np.concatenate(rows, axis=1)
  Image.fromarray(sheet).save(output / f"{name}.png")


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--photos", help="a folder of photographs to warp")
  parser.add_argument("--features", action="append")
  parser.add_argument("--series", action="append", choices=SERIES)
  parser.add_argument("--pairs", type=int, default=40)
  parser.add_argument("--max_features", type=int, default=1000)
  parser.add_argument("--pictures", type=Path)
  arguments = parser.parse_args()
  kinds = {
    name: open_kind(name, arguments.max_features)
    for name in (PEER, *(arguments.features or KINDS))
  }
  sets = {"synthetic": functools.partial(synthetic_pairs, arguments.pairs)}
  if arguments.photos:
    for series in arguments.series or SERIES:
      sets[series] = functools.partial(
        warped_pairs, arguments.photos, series, arguments.pairs
      )
  for name, make in sets.items():
    pairs = list(make())
    measure_series(name, pairs, kinds)
    if arguments.pictures:
      draw(name, pairs[0], kinds, arguments.pictures)


if __name__ == "__main__":
  main()
