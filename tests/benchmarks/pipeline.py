"""Images/s of the input pipeline alone, beside plain loops and PyTorch.

  python tests/benchmarks/pipeline.py [--photos DIR] [--rounds 5]

DIR holds landmark/photograph.jpg; without it 300 synthetic photographs of 1024
x 768 are drawn. Three kinds of examples: a window of 224 from a square of 250,
one of 720 from 900 (the paper's two stages), and 224 with every augmentation.
All contenders take turns; medians over the rounds are printed.

  Pillow     a plain loop: open, cut, resize, cut, NumPy; no augmentation
  ours       a plain loop over the function that the pipeline calls
  pipeline   batches of 32 as training gets them
  PyTorch    its DataLoader over the same function, where it is installed

  of a loop  speed as a multiple of the plain loop over our function, in the
             same round; beside it, what so many cores can bring at most
  CPU ms     processor time an image, of all processes together: hardly
             disturbed by what else the machine does, as the speeds are
  first s    until the first batch, processes started and all

Prints the number of cores and the load at its start. Linux only.
"""

import argparse
import importlib.util
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from delf_jax.data import folder, pipeline, synthetic
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.examples import TrainingExamples
from delf_jax.data.sources import FileSource

BATCH = 32
WARM = 4  # batches before the clock starts: what was read ahead

STRONG = Augmentation(
  crop_area=(0.2, 1.0),
  homography=0.15,
  flip=0.5,
  brightness=0.4,
  contrast=0.4,
  saturation=0.4,
  hue=0.05,
  greyscale=0.1,
  blur=0.3,
  jpeg=0.2,
  erasing=0.3,
)
KINDS = {
  "250 / 224": {"resize": 250, "crop": 224},
  "900 / 720": {"resize": 900, "crop": 720},
  "224, strong augmentation": {
    "resize": 250,
    "crop": 224,
    "augmentation": STRONG,
  },
}


class Rows:
  """Our function as PyTorch wants a data set."""

  def __init__(
    self, source: FileSource, kind: dict[str, Any], count: int
  ) -> None:
    self._arguments = source, kind
    self._count = count
    self._examples = None

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, position: int) -> tuple[np.ndarray, int, str]:
    if self._examples is None:
      source, kind = self._arguments
      self._examples = TrainingExamples(
        source, seed=0, batch_size=BATCH, **kind
      )
    side = self._arguments[1]["crop"]
    pixels = np.empty((1, side, side, 3), np.uint8)
    (example,) = self._examples.fill(position, pixels)
    return pixels[0], example.label, example.name


def draw(root: Path, count: int) -> None:
  """Writes synthetic photographs of ten landmarks."""

  def write(i: int) -> None:
    view = synthetic.render_view(0, i % 10, i, size=(1024, 768))
    path = root / str(i % 10) / f"{i}.jpg"
    path.write_bytes(synthetic.encode_jpeg(view.pixels))

  for landmark in range(10):
    (root / str(landmark)).mkdir()
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(write, range(count)))


def pillow_loop(source: FileSource, kind: dict[str, Any]) -> Iterator[None]:
  """Yields after each batch, as all of these do."""
  resize, crop = kind["resize"], kind["crop"]
  generator = np.random.default_rng(0)
  while True:
    batch = []
    for i in generator.integers(0, len(source), BATCH):
      image = Image.open(io.BytesIO(source[int(i)]["image"])).convert("RGB")
      width, height = image.size
      length = min(width, height)
      left, top = (width - length) // 2, (height - length) // 2
      image = image.crop((left, top, left + length, top + length))
      image = image.resize((resize, resize), Image.Resampling.BILINEAR)
      left, top = generator.integers(0, resize - crop + 1, 2)
      batch.append(np.asarray(image)[top : top + crop, left : left + crop])
    np.stack(batch)
    yield


def our_loop(source: FileSource, kind: dict[str, Any]) -> Iterator[None]:
  examples = TrainingExamples(source, seed=0, batch_size=BATCH, **kind)
  position = 0
  while True:
    pixels = np.empty((BATCH, kind["crop"], kind["crop"], 3), np.uint8)
    examples.fill(position, pixels)
    position += BATCH
    yield


def our_pipeline(
  source: FileSource, kind: dict[str, Any], **options: int
) -> Iterator[None]:
  with pipeline.training_batches(
    source, seed=0, batch_size=BATCH, **kind, **options
  ) as batches:
    for _ in batches:
      yield


def torch_loader(
  source: FileSource, kind: dict[str, Any], workers: int, batches: int
) -> Iterator[None]:
  import torch
  from torch.utils.data import DataLoader

  torch.set_num_threads(1)  # as its workers do
  loader = DataLoader(
    Rows(source, kind, batches * BATCH),
    batch_size=BATCH,
    num_workers=workers,
    multiprocessing_context="spawn" if workers else None,
  )
  for _ in loader:
    yield


def processor_time() -> float:
  """Seconds that this process and its children have computed."""
  ticks = 0
  for path in Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = path.read_text().rpartition(")")[2].split()
    except OSError:
      continue  # it has ended meanwhile
    if int(fields[1]) == os.getpid():
      ticks += int(fields[11]) + int(fields[12])
  return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measure(
  start: Callable[[], Iterator[None]], batches: int
) -> tuple[float, float, float]:
  """Returns images/s, processor seconds an image, seconds to the first."""
  begun = time.perf_counter()
  running = start()
  next(running)
  first = time.perf_counter() - begun
  for _ in range(WARM - 1):
    next(running)
  begun, computed = time.perf_counter(), processor_time()
  for _ in range(batches):
    next(running)
  seconds, computed = time.perf_counter() - begun, processor_time() - computed
  running.close()
  count = batches * BATCH
  return count / seconds, computed / count, first


def compare(
  source: FileSource,
  title: str,
  *,
  threads: list[int],
  workers: list[int],
  rounds: int,
) -> None:
  """Prints the table of one kind of examples."""
  kind = KINDS[title]
  batches = 12 if kind["crop"] > 500 else 30
  # Name -> (how to start it, how many cores it can use).
  contenders = {
    "Pillow": (lambda: pillow_loop(source, kind), 1),
    "ours": (lambda: our_loop(source, kind), 1),
  }
  if "augmentation" in kind:
    del contenders["Pillow"]
  for n in threads:
    contenders[f"pipeline, {n} threads"] = (
      lambda n=n: our_pipeline(source, kind, threads=n),
      n,
    )
  for n in filter(None, workers):
    for each in (1, 2):
      contenders[f"pipeline, {n} workers of {each} threads"] = (
        lambda n=n, each=each: our_pipeline(
          source, kind, workers=n, threads=each
        ),
        n,
      )
  if importlib.util.find_spec("torch"):
    for n in workers:
      contenders[f"PyTorch, {n} workers"] = (
        lambda n=n: torch_loader(source, kind, n, WARM + batches),
        max(1, n),
      )
  found = {name: [] for name in contenders}
  for _ in range(rounds):
    for name, (start, _) in contenders.items():
      found[name].append(measure(start, batches))
  print(
    f"\n{title}, median of {rounds}\n"
    f"{'':34}{'images/s':>9}{'of a loop':>14}{'CPU ms':>8}{'first s':>9}"
  )
  for name, (_, cores) in contenders.items():
    rate, computed, first = map(
      statistics.median, zip(*found[name], strict=True)
    )
    ratio = statistics.median(
      a[0] / b[0] for a, b in zip(found[name], found["ours"], strict=True)
    )
    print(
      f"{name:34}{rate:9.0f}{ratio:9.2f} of {cores}{1000 * computed:8.2f}"
      f"{first:9.2f}",
      flush=True,
    )


def main() -> None:
  """Measures as the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--photos", help="a folder with one folder a landmark")
  parser.add_argument(
    "--count", type=int, default=300, help="of synthetic ones"
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--threads", type=int, nargs="*", default=[1, 2, 4])
  parser.add_argument("--workers", type=int, nargs="*", default=[0, 2, 4])
  parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
  options = parser.parse_args()
  cv2.setNumThreads(1)  # a plain loop shall be one core's
  print(
    f"{len(os.sched_getaffinity(0))} cores, load "
    f"{', '.join(f'{load:.1f}' for load in os.getloadavg())}"
  )
  with tempfile.TemporaryDirectory() as made:
    if not options.photos:
      draw(Path(made), options.count)
    listing = folder.labelled_photographs(options.photos or made)
    source = FileSource(listing.root, listing.paths, listing.labels)
    sizes = [len(source[i]["image"]) for i in range(len(source))]
    print(f"{len(source)} photographs of {np.mean(sizes) / 1024:.0f} KiB")
    for title in options.kinds:
      compare(
        source,
        title,
        threads=options.threads,
        workers=options.workers,
        rounds=options.rounds,
      )


if __name__ == "__main__":
  main()
