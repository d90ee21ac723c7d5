"""A whole folder by `delf_jax.extract`, beside OpenCV's SIFT.

  taskset -c 0,1 python tests/benchmarks/folder.py [--photos DIR]

Every program runs alone, in turns, on the cores that the benchmark may use;
medians of photographs a second, start and compilation included, and the
largest memory. Programs compile into a cache of the benchmark's own, which is
empty in the first turn: that one is shown apart. "OpenCV" reads, reduces and
describes the same photographs by cv2.SIFT alone, as RootSIFT, with as many
threads. Without --photos, 200 synthetic photographs of 800 x 600 are drawn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from delf_jax.data import folder, synthetic

OPENCV = """
import concurrent.futures, sys
import cv2
import numpy as np

cv2.setNumThreads(1)
paths, side, workers = sys.argv[3:], int(sys.argv[1]), int(sys.argv[2])


def describe(path):
  image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
  scale = min(1.0, side / max(image.shape))
  if scale < 1:
    image = cv2.resize(
      image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
    )
  _, found = cv2.SIFT_create(1000).detectAndCompute(image, None)
  return 0 if found is None else len(np.sqrt(found))


with concurrent.futures.ThreadPoolExecutor(workers) as pool:
  print(sum(pool.map(describe, paths)))
"""


def draw(directory: Path, count: int) -> None:
  """Draws photographs of made-up landmarks, 800 x 600."""
  directory.mkdir()
  for i in range(count):
    view = synthetic.render_view(0, 5000 + i // 4, i % 4, size=(800, 600))
    (directory / f"{i:04}.jpg").write_bytes(synthetic.encode_jpeg(view.pixels))


def measure(command: list[str], cache: Path) -> tuple[float, float]:
  """Runs a program; returns its seconds and its largest memory in MiB."""
  start = time.perf_counter()
  process = subprocess.Popen(
    command,
    stdout=subprocess.DEVNULL,
    env={**os.environ, "DELF_JAX_CACHE": str(cache)},
  )
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"{command[:3]} ended with {status}")
  return time.perf_counter() - start, usage.ru_maxrss / 2**10


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--photos")
  parser.add_argument("--count", type=int, default=200)
  parser.add_argument("--max_side", type=int, default=800)
  parser.add_argument("--features", nargs="+", default=["delf_small"])
  parser.add_argument("--rounds", type=int, default=3)
  options = parser.parse_args()
  workers = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as work:
    work = Path(work)
    photos = work / "photos"
    if options.photos:
      photos.mkdir()
      for path in folder.list_photographs(options.photos).paths[
        : options.count
      ]:
        (photos / path.replace("/", "_")).symlink_to(
          Path(options.photos).absolute() / path
        )
    else:
      draw(photos, options.count)
    paths = sorted(map(str, photos.iterdir()))
    commands = {
      "OpenCV": [
        sys.executable,
        "-c",
        OPENCV,
        str(options.max_side),
        str(workers),
        *paths,
      ]
    }
    for features in (*options.features, "rootsift"):
      commands[f"extract, {features}"] = [
        sys.executable,
        "-m",
        "delf_jax.extract",
        f"--photos={photos}",
        f"--features={features}",
        f"--max_side={options.max_side}",
        f"--workers={workers}",
        "--strict",
      ]
    found = {name: [] for name in commands}
    for turn in range(options.rounds + 1):
      for name, command in commands.items():
        if "extract" in name:
          command = [*command, f"--output={work / f'{name}-{turn}'}"]
        found[name].append(measure(command, work / "cache"))
  print(f"{len(paths)} photographs of {options.max_side}, {workers} cores")
  print(f"{'':24}{'photographs/s':>14}{'first time':>12}{'MiB':>8}")
  for name, turns in found.items():
    (first, _), *others = turns
    median = statistics.median(seconds for seconds, _ in others)
    memory = max(size for _, size in turns)
    print(
      f"{name:24}{len(paths) / median:14.2f}{len(paths) / first:12.2f}"
      f"{memory:8.0f}"
    )


if __name__ == "__main__":
  main()
