"""Affine RANSAC beside OpenCV: pairs a second, success, precision and recall.

  python tests/benchmarks/verification.py [--pairs 192] [--rounds 5]

Correspondences of random affine transforms of a 480 x 640 photograph (turned
by up to 30 degrees, scaled by half to two, stretched by up to 2) with a noise
of 1 pixel, among uniform outliers; inliers within 4 pixels. All see the same
pairs and take turns; speeds are medians over the rounds.

  in turn     `verify_pairs` on one padded batch, OpenCV in a loop
  in threads  `verify` on ragged pairs, with its padding and seeding; OpenCV in
              a pool of threads
  success     the farthest corner of the photograph lands within 5 pixels
  error       median of that distance over the successes
  precision   of the inliers found, over all pairs; recall the same

`taskset -c 0` before the command compares single cores, and is disturbed least
by whatever else the machine does.
"""

import argparse
import functools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax
import numpy as np

from delf_jax.geometry.ransac import verify, verify_pairs

HEIGHT, WIDTH = 480, 640
CORNERS = np.array([[0, 0], [0, WIDTH], [HEIGHT, 0], [HEIGHT, WIDTH]])
THRESHOLD = 4.0
MAX_ERROR = 5.0

# Iterations as ours, and OpenCV's own confidence.
OPENCV = {"maxIters": 1000, "confidence": 0.99}


def rotation(angle):
  return np.array(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )


def make_pair(rng, n, share):
  """Returns source, target [n, 2], the transform [2, 3] and who follows it."""
  along = rotation(rng.uniform(0, np.pi))
  stretch = np.exp2(rng.uniform(-0.5, 0.5) * np.array([1, -1]))
  linear = np.exp2(rng.uniform(-1, 1)) * rotation(rng.uniform(-0.52, 0.52))
  linear = linear @ along @ np.diag(stretch) @ along.T
  centre = np.array([HEIGHT, WIDTH]) / 2
  shift = centre + rng.uniform(-50, 50, 2) - linear @ centre
  source = rng.uniform(0, 1, (n, 2)) * [HEIGHT, WIDTH]
  target = rng.uniform(0, 1, (n, 2)) * [HEIGHT, WIDTH]
  follows = rng.permutation(n) < round(share * n)
  target[follows] = source[follows] @ linear.T + shift
  target[follows] += rng.normal(0, 1, (follows.sum(), 2))
  return (
    source.astype(np.float32),
    target.astype(np.float32),
    np.column_stack([linear, shift]),
    follows,
  )


def make_contenders(pairs):
  """Returns {name: (in turn, in threads)}: functions without arguments.

  Each returns a transform, or None, and a mask of inliers for each pair.
  """
  n = len(pairs[0][0])
  size = -(-n // 64) * 64
  points = np.zeros((2, len(pairs), size, 2), np.float32)
  for i, (source, target) in enumerate(pairs):
    points[:, i, :n] = source, target
  mask = np.broadcast_to(np.arange(size) < n, (len(pairs), size))
  seeds = np.arange(len(pairs), dtype=np.uint32)

  def ours_in_turn(number):
    result = jax.device_get(
      verify_pairs(
        seeds, *points, mask, threshold=THRESHOLD, num_hypotheses=number
      )
    )
    return list(zip(result.transform, result.inliers[:, :n], strict=True))

  def ours_in_threads(number):
    results = verify(pairs, threshold=THRESHOLD, num_hypotheses=number)
    return [(result.transform, result.inliers) for result in results]

  def estimate(pair, method, options):
    transform, kept = cv2.estimateAffine2D(
      *pair, method=method, ransacReprojThreshold=THRESHOLD, **options
    )
    return transform, kept[:, 0].astype(bool)

  def opencv_in_turn(method, options):
    return [estimate(pair, method, options) for pair in pairs]

  def opencv_in_threads(method, options):
    call = functools.partial(estimate, method=method, options=options)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      return list(pool.map(call, pairs))

  contenders = {
    f"ours, {number} hypotheses": (
      functools.partial(ours_in_turn, number),
      functools.partial(ours_in_threads, number),
    )
    for number in (1000, 4000)
  }
  for name, change in [
    ("RANSAC", {}),
    ("RANSAC", {"confidence": 1 - 1e-9}),
    ("USAC_FAST", {}),
    ("USAC_DEFAULT", {}),
    ("USAC_ACCURATE", {}),
    ("USAC_MAGSAC", {}),
  ]:
    if not hasattr(cv2, name):
      continue
    arguments = (getattr(cv2, name), OPENCV | change)
    label = f"OpenCV {name}" + (", never early" if change else "")
    contenders[label] = (
      functools.partial(opencv_in_turn, *arguments),
      functools.partial(opencv_in_threads, *arguments),
    )
  return contenders


def judge(found, truths):
  """Returns success, median corner error, precision and recall."""
  errors, hits, kept, following = [], 0, 0, 0
  for (transform, inliers), (true, follows) in zip(found, truths, strict=True):
    if transform is None:
      transform = np.full((2, 3), np.inf)
    missed = CORNERS @ (transform - true)[:, :2].T + (transform - true)[:, 2]
    errors.append(np.max(np.linalg.norm(missed, axis=1)))
    hits += np.sum(inliers & follows)
    kept += np.sum(inliers)
    following += np.sum(follows)
  errors = np.array(errors)
  good = errors < MAX_ERROR
  return (
    np.mean(good),
    np.median(errors[good]) if good.any() else np.nan,
    hits / max(kept, 1),
    hits / following,
  )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--pairs", type=int, default=192)
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  cv2.setNumThreads(1)

  cores = len(os.sched_getaffinity(0))
  print(
    f"{cores} cores, {arguments.pairs} pairs, medians of "
    f"{arguments.rounds} rounds; OpenCV {cv2.__version__}, "
    f"JAX {jax.__version__}"
  )
  for n in (200, 500, 1000):
    for share in (0.1, 0.3, 0.5):
      rng = np.random.default_rng([n, round(100 * share)])
      made = [make_pair(rng, n, share) for _ in range(arguments.pairs)]
      contenders = make_contenders([pair[:2] for pair in made])
      scores = {
        name: judge(in_turn(), [pair[2:] for pair in made])
        for name, (in_turn, _) in contenders.items()
      }
      for _, in_threads in contenders.values():
        in_threads()
      seconds = {name: ([], []) for name in contenders}
      for _ in range(arguments.rounds):
        for name, ways in contenders.items():
          for way, times in zip(ways, seconds[name], strict=True):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
      print(f"\n{n} correspondences, {share:.0%} inliers")
      print(
        f"{'':30}{'pairs/s, in turn':>16}{'in threads':>12}{'success':>9}"
        f"{'error':>8}{'precision':>11}{'recall':>8}"
      )
      for name, (success, error, precision, recall) in scores.items():
        speeds = [
          arguments.pairs / statistics.median(times) for times in seconds[name]
        ]
        print(
          f"{name:30}{speeds[0]:16.0f}{speeds[1]:12.0f}{success:9.1%}"
          f"{error:8.2f}{precision:11.1%}{recall:8.1%}",
          flush=True,
        )


if __name__ == "__main__":
  main()
