"""RANSAC beside OpenCV, PoseLib, pydegensac and scikit-image.

  python tests/benchmarks/verification.py [--models affine homography]
    [--counts 100 200 500 1000] [--shares 10 20 30 50] [--pairs 192]
    [--timed 96] [--rounds 3] [--peers opencv poselib pydegensac skimage]

Correspondences of random transforms of a 480 x 640 photograph among uniform
outliers, with a noise of 1 pixel; inliers within 4 pixels. Affine transforms
turn by up to 30 degrees, scale by half to two and stretch by up to 2;
homographies do that to a photograph which one side is 1.2 to 2.5 times as far
away as the other. All see the same pairs and take turns; speeds are medians
over the rounds, in which the first of the pairs are timed.

  in turn     pairs a second of processor time: `verify_pairs` on one padded
              batch, the others in a loop on one thread
  in threads  pairs a second of the clock: `verify` on ragged pairs, with its
              padding and seeding; the others in a pool of threads
  success     the farthest corner of the photograph lands within 5 pixels
  error       median of that distance over the successes
  precision   of the inliers found, over all pairs; recall the same

A second table has correspondences of upright photographs, turned by up to 6
degrees and stretched by up to 1.15, with scales whose ratios are off by a
factor of exp(0.2) in the mean, and sorted by a quality that tells inliers only
roughly: what the kinds of sampling make of that. At the end, for each cell,
ours beside the fastest setting of OpenCV that succeeds as often as its best,
within 1 percent.

`--counts 30 100 300 --shares 0` measures pairs without any transform: most of
what a retrieval verifies.

Peers that are not installed are left out. `taskset -c 0` before the command
compares single cores in threads, too.
"""

import argparse
import functools
import importlib.util
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from delf_jax.geometry.ransac import verify, verify_pairs

HEIGHT, WIDTH = 480, 640
CORNERS = np.array([[0, 0], [0, WIDTH], [HEIGHT, 0], [HEIGHT, WIDTH]], float)
THRESHOLD = 4.0
MAX_ERROR = 5.0
SCALE_NOISE = 0.2

# What everybody gets besides the defaults, so that nobody starves at few
# inliers.
MANY = {"iterations": 10_000, "confidence": 0.999}
OURS = {"ours": {}, "ours, many": {"num_hypotheses": 10_000}}

# OpenCV's are these 2000 and .99; PoseLib's 100,000 and .9999, pydegensac's
# 50,000 and .999.
OPENCV_DEFAULT = {"iterations": 2000, "confidence": 0.99}

# A measurement repeats calls for at least so long, and slow peers get so few of
# the pairs that a call takes no longer than that.
MIN_SECONDS = 0.05
MAX_SECONDS = 1.0

# Of OpenCV's settings those count that succeed as often as the best but for
# this.
EQUAL = 0.01


class Pair(NamedTuple):
  """Correspondences and the truth about them."""

  source: np.ndarray  # [n, 2] float32, (y, x)
  target: np.ndarray  # [n, 2] float32
  transform: np.ndarray  # [3, 3]
  follows: np.ndarray  # [n] bool
  scales: np.ndarray  # [2, n] float32, of the source's and target's features


class Contender(NamedTuple):
  """A system with one setting: functions from pairs to what it found.

  That is a transform [3, 3], or None, and a mask of inliers [n] for each.
  """

  in_turn: Callable[[Sequence[Pair]], list[tuple[Any, np.ndarray]]]
  in_threads: Callable[[Sequence[Pair]], list[tuple[Any, np.ndarray]]] | None
  most: int | None = None  # pairs that it is given


def rotation(angle):
  return np.array(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )


def lift(points):
  return np.column_stack([points, np.ones(len(points))])


def make_transform(rng, model, upright):
  """A random transform [3, 3] of the photograph."""
  much = 0.2 if upright else 1.0
  along = rotation(rng.uniform(0, np.pi))
  stretch = np.exp2(much * rng.uniform(-0.5, 0.5) * np.array([1, -1]))
  linear = np.exp2(rng.uniform(-1, 1)) * rotation(
    much * rng.uniform(-0.52, 0.52)
  )
  transform = np.eye(3)
  transform[:2, :2] = linear @ along @ np.diag(stretch) @ along.T
  centre = np.array([HEIGHT, WIDTH]) / 2
  there, back = np.eye(3), np.eye(3)
  there[:2, 2] = centre + rng.uniform(-50, 50, 2)
  back[:2, 2] = -centre
  if model == "homography":
    farther = rng.uniform(1.2, 2.5)
    direction = rotation(rng.uniform(0, 2 * np.pi))[0]
    half = np.abs(direction) @ centre
    transform[2, :2] = direction / half * (farther - 1) / (farther + 1)
  return there @ transform @ back


def make_pair(rng, n, share, model, *, ordered=False, upright=False):
  """A pair of n correspondences of which a share follows a transform."""
  transform = make_transform(rng, model, upright)
  source = rng.uniform(0, 1, (n, 2)) * [HEIGHT, WIDTH]
  target = rng.uniform(0, 1, (n, 2)) * [HEIGHT, WIDTH]
  follows = rng.permutation(n) < round(share * n)
  if ordered:
    # The chance that an inlier is better than an outlier is 76 percent.
    follows = follows[np.argsort(rng.normal(0, 1, n) - follows)]
  mapped = lift(source) @ transform.T
  places = mapped[:, :2] / mapped[:, 2:]
  target[follows] = places[follows] + rng.normal(0, 1, (follows.sum(), 2))
  scales = np.exp(rng.uniform(0, 1.4, (2, n)))
  # How much a homography scales areas at a point.
  area = np.linalg.det(transform) / mapped[:, 2] ** 3
  ratios = np.sqrt(area) * np.exp(rng.normal(0, SCALE_NOISE, n))
  scales[1, follows] = (scales[0] * ratios)[follows]
  return Pair(
    source.astype(np.float32),
    target.astype(np.float32),
    transform,
    follows,
    scales.astype(np.float32),
  )


def ours(model, *, scales=False, **options):
  """Our RANSAC: `verify_pairs` in turn and `verify` in threads."""
  options |= {"threshold": THRESHOLD, "model": model}

  def in_turn(pairs):
    n = len(pairs[0].source)
    size = -(-n // 64) * 64
    points = np.zeros((2, len(pairs), size, 2), np.float32)
    sizes = np.ones((2, len(pairs), size), np.float32)
    for i, pair in enumerate(pairs):
      points[:, i, :n] = pair.source, pair.target
      sizes[:, i, :n] = pair.scales
    mask = np.broadcast_to(np.arange(size) < n, (len(pairs), size))
    seeds = np.arange(len(pairs), dtype=np.uint32)
    more = {}
    if scales:
      more = dict(zip(("source_scales", "target_scales"), sizes, strict=True))
    result = jax.device_get(
      verify_pairs(seeds, *points, mask, **more, **options)
    )
    return list(zip(result.transform, result.inliers[:, :n], strict=True))

  def in_threads(pairs):
    given = [
      {
        "source": pair.source,
        "target": pair.target,
        "source_scales": pair.scales[0],
        "target_scales": pair.scales[1],
      }
      if scales
      else (pair.source, pair.target)
      for pair in pairs
    ]
    results = verify(given, **options)
    return [(result.transform, result.inliers) for result in results]

  return Contender(in_turn, in_threads)


def peer(find, most=None):
  """A peer that takes one pair at a time."""

  def in_turn(pairs):
    return [find(pair) for pair in pairs]

  def in_threads(pairs):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      return list(pool.map(find, pairs))

  return Contender(in_turn, None if most else in_threads, most)


def find_with_opencv(pair, estimate, method, iterations, confidence):
  transform, kept = estimate(
    pair.source,
    pair.target,
    method=method,
    ransacReprojThreshold=THRESHOLD,
    maxIters=iterations,
    confidence=confidence,
  )
  kept = np.zeros(len(pair.source)) if kept is None else kept
  return transform, np.ravel(kept).astype(bool)


def opencv_contenders(model):
  estimate, others = {
    "affine": (cv2.estimateAffine2D, []),
    "homography": (cv2.findHomography, ["RHO"]),
  }[model]
  names = ["RANSAC", "USAC_FAST", "USAC_DEFAULT", "USAC_ACCURATE"]
  return {
    f"OpenCV {name}{more}": peer(
      functools.partial(
        find_with_opencv,
        estimate=estimate,
        method=getattr(cv2, name),
        **budget,
      )
    )
    for name in [*names, "USAC_MAGSAC", *others]
    if hasattr(cv2, name)
    for more, budget in {"": OPENCV_DEFAULT, ", many": MANY}.items()
  }


def poselib_contenders(model):
  if model != "homography":
    return {}
  import poselib

  def find(pair, **budget):
    transform, found = poselib.estimate_homography(
      pair.source, pair.target, {"max_reproj_error": THRESHOLD, **budget}, {}
    )
    return transform, np.array(found["inliers"], bool)

  many = {
    "max_iterations": MANY["iterations"],
    "success_prob": MANY["confidence"],
  }
  return {
    "PoseLib": peer(find),
    "PoseLib, many": peer(functools.partial(find, **many)),
  }


def pydegensac_contenders(model):
  if model != "homography":
    return {}
  import pydegensac

  def find(pair, **budget):
    transform, kept = pydegensac.findHomography(
      pair.source, pair.target, THRESHOLD, seed=1, **budget
    )
    return transform, np.array(kept, bool)

  many = {"max_iters": MANY["iterations"], "conf": MANY["confidence"]}
  return {
    "pydegensac": peer(find),
    "pydegensac, many": peer(functools.partial(find, **many)),
  }


def skimage_contenders(model):
  import skimage.measure
  import skimage.transform

  kind, size = {
    "affine": (skimage.transform.AffineTransform, 3),
    "homography": (skimage.transform.ProjectiveTransform, 4),
  }[model]

  def find(pair):
    found, kept = skimage.measure.ransac(
      (pair.source, pair.target),
      kind,
      min_samples=size,
      residual_threshold=THRESHOLD,
      max_trials=1000,
      rng=1,
    )
    kept = np.zeros(len(pair.source), bool) if kept is None else kept
    return (found.params if found else None), kept

  # It takes up to half a second for one.
  return {"scikit-image": peer(find, most=4)}


PEERS = {
  "opencv": ("cv2", opencv_contenders),
  "poselib": ("poselib", poselib_contenders),
  "pydegensac": ("pydegensac", pydegensac_contenders),
  "skimage": ("skimage", skimage_contenders),
}


def corner_error(found, true):
  """How far the farthest corner of the photograph lands from its place."""
  if found is None or not np.all(np.isfinite(found)):
    return np.inf
  found = np.asarray(found, float)
  if len(found) == 2:
    found = np.vstack([found, [0, 0, 1]])
  landed, expected = (lift(CORNERS) @ side.T for side in (found, true))
  if np.min(landed[:, 2] / landed[0, 2]) <= 0:
    return np.inf
  missed = landed[:, :2] / landed[:, 2:] - expected[:, :2] / expected[:, 2:]
  return np.max(np.linalg.norm(missed, axis=1))


def judge(found, pairs):
  """Returns success, median corner error, precision and recall."""
  errors, hits, kept, following = [], 0, 0, 0
  for (transform, inliers), pair in zip(found, pairs, strict=True):
    errors.append(corner_error(transform, pair.transform))
    hits += np.sum(inliers & pair.follows)
    kept += np.sum(inliers)
    following += np.sum(pair.follows)
  errors = np.array(errors)
  good = errors < MAX_ERROR
  return (
    np.mean(good),
    np.median(errors[good]) if good.any() else np.nan,
    hits / max(kept, 1),
    hits / max(following, 1),
  )


def measure(find, pairs, clock):
  """Seconds for each of the pairs, of calls repeated for a while."""
  calls, start = 0, clock()
  while not calls or clock() - start < MIN_SECONDS:
    find(pairs)
    calls += 1
  return (clock() - start) / (calls * len(pairs))


def compare(contenders, pairs, *, timed, rounds):
  """Prints the table of a cell; returns {name: (pairs/s in turn, success)}."""
  scores, given, seconds, clocks = {}, {}, {}, {}
  for name, contender in contenders.items():
    some = pairs[: contender.most]
    start = time.perf_counter()
    scores[name] = judge(contender.in_turn(some), some)
    each = (time.perf_counter() - start) / len(some)
    # Ours compile in that first call, and take all pairs at once.
    most = timed if name[:4] == "ours" else min(timed, int(MAX_SECONDS / each))
    given[name] = some[: max(4, most)]
    seconds[name], clocks[name] = [], []
    contender.in_turn(given[name])
    if contender.in_threads:
      contender.in_threads(given[name])
  for _ in range(rounds):
    for name, contender in contenders.items():
      some = given[name]
      seconds[name].append(measure(contender.in_turn, some, time.process_time))
      if contender.in_threads:
        clocks[name].append(
          measure(contender.in_threads, some, time.perf_counter)
        )
  print(
    f"{'':28}{'in turn':>9}{'in threads':>12}{'success':>9}"
    f"{'error':>8}{'precision':>11}{'recall':>8}"
  )
  speeds = {}
  for name, (success, error, precision, recall) in scores.items():
    speeds[name] = 1 / statistics.median(seconds[name]), success
    clock = "-"
    if clocks[name]:
      clock = f"{1 / statistics.median(clocks[name]):.0f}"
    print(
      f"{name:28}{speeds[name][0]:9.0f}{clock:>12}{success:9.1%}"
      f"{error:8.2f}{precision:11.1%}{recall:8.1%}",
      flush=True,
    )
  return speeds


def summarise(cells):
  """Prints ours beside the best of OpenCV; cells as `compare` returns them."""
  if not any(share for _, _, share in cells):
    return
  print(
    f"\n{'':38}{'OpenCV, fastest of its best':>36}{'ours':>9}{'ratio':>7}"
    f"{'many':>8}{'ratio':>7}{'MAGSAC':>9}{'ratio':>7}"
  )
  least = {}
  for (model, n, share), speeds in cells.items():
    if share == 0:
      continue
    theirs = {
      name: speed for name, speed in speeds.items() if name[:6] == "OpenCV"
    }
    if not theirs:
      continue
    best = max(success for _, success in theirs.values())
    name, (fastest, success) = max(
      (
        (name, speed)
        for name, speed in theirs.items()
        if speed[1] >= best - EQUAL
      ),
      key=lambda item: item[1][0],
    )
    line = f"{model:12}{n:5}{share:5.0%}{best:9.1%} best"
    line += f"{name:>28}{fastest:8.0f}{success:7.1%}"
    for ours_name in OURS:
      speed, reached = speeds[ours_name]
      line += f"{reached:9.1%}{speed / fastest:6.2f}"
      line += " " if reached >= success else "!"
      least.setdefault((model, ours_name), []).append(
        (speed / fastest, reached - success)
      )
    magsac = theirs.get("OpenCV USAC_MAGSAC")
    if magsac:
      line += f"{magsac[1]:9.1%}{speeds['ours'][0] / magsac[0]:6.2f}"
    print(line)
  for (model, ours_name), values in least.items():
    ratios, gains = zip(*values, strict=True)
    print(
      f"{model}, {ours_name}: at least {min(ratios):.2f} times as fast, median "
      f"{statistics.median(ratios):.2f}; success lower by at most "
      f"{max(0.0, -min(gains)):.1%}"
    )


def compare_sampling(arguments):
  """Prints what scales and an order are worth."""
  for model in arguments.models:
    for n in (200, 1000):
      for share in (0.05, 0.1, 0.2):
        rng = np.random.default_rng([2, n, round(100 * share)])
        pairs = [
          make_pair(rng, n, share, model, ordered=True, upright=True)
          for _ in range(arguments.pairs)
        ]
        contenders = {
          "ours, uniform": ours(model),
          "ours, prosac": ours(model, sampling="prosac"),
          "ours, scale": ours(model, scales=True, sampling="scale"),
          "ours, exhaustive": ours(model, scales=True, sampling="exhaustive"),
        }
        theirs = opencv_contenders(model) if "opencv" in arguments.peers else {}
        for name in ("OpenCV USAC_DEFAULT", "OpenCV USAC_DEFAULT, many"):
          if name in theirs:
            contenders[name] = theirs[name]
        if theirs and hasattr(cv2, "USAC_PROSAC"):
          contenders["OpenCV USAC_PROSAC, many"] = peer(
            functools.partial(
              find_with_opencv,
              estimate=cv2.estimateAffine2D
              if model == "affine"
              else cv2.findHomography,
              method=cv2.USAC_PROSAC,
              **MANY,
            )
          )
        print(f"\n{model}, {n} correspondences, {share:.0%} inliers; scales")
        compare(
          contenders, pairs, timed=arguments.timed, rounds=arguments.rounds
        )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  models = ["affine", "homography"]
  parser.add_argument("--models", nargs="*", default=models, choices=models)
  parser.add_argument(
    "--counts", nargs="*", type=int, default=[100, 200, 500, 1000]
  )
  parser.add_argument("--shares", nargs="*", type=int, default=[10, 20, 30, 50])
  parser.add_argument("--pairs", type=int, default=192)
  parser.add_argument("--timed", type=int, default=96)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument(
    "--peers", nargs="*", default=list(PEERS), choices=list(PEERS)
  )
  parser.add_argument("--nosampling", action="store_true")
  arguments = parser.parse_args()
  cv2.setNumThreads(1)

  print(
    f"{len(os.sched_getaffinity(0))} cores, {arguments.pairs} pairs, at most "
    f"{arguments.timed} of them timed, medians of {arguments.rounds} rounds; "
    f"OpenCV {cv2.__version__}, JAX {jax.__version__}"
  )
  for name in list(arguments.peers):
    if importlib.util.find_spec(PEERS[name][0]) is None:
      print(f"{name} is not installed and left out")
      arguments.peers.remove(name)
  cells = {}
  for model in arguments.models:
    contenders = {
      name: ours(model, **options) for name, options in OURS.items()
    }
    for name in arguments.peers:
      contenders |= PEERS[name][1](model)
    for n in arguments.counts:
      start = time.perf_counter()
      contenders["ours"].in_turn(
        [make_pair(np.random.default_rng(0), n, 0.5, model)]
      )
      print(f"\nfirst call: {time.perf_counter() - start:.1f} s", end="")
      for percent in arguments.shares:
        share = percent / 100
        rng = np.random.default_rng([n, percent])
        pairs = [
          make_pair(rng, n, share, model) for _ in range(arguments.pairs)
        ]
        print(f"\n{model}, {n} correspondences, {share:.0%} inliers")
        cells[model, n, share] = compare(
          contenders, pairs, timed=arguments.timed, rounds=arguments.rounds
        )
  if not arguments.nosampling:
    compare_sampling(arguments)
  summarise(cells)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(f"peak memory {peak / 1024:.0f} MiB")


if __name__ == "__main__":
  main()
