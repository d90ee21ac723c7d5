"""Where the time of an evaluation goes, on generated photographs' features.

  python tests/benchmarks/evaluation.py [--photographs 5000] [--queries 70]
      [--distractors 70] [--kinds kd_tree exact ...] [--output DIR]

Everything is run as `delf_jax.evaluate` runs it, but that a photograph is a
dot of 16 x 16 pixels whose number decides what its features are: 1000 of 40
dimensions, as a PCA leaves them: the variance falls from the first to the last.
All photographs draw from the same visual words, some of them much more often
than others, and repeat a tenth of their features, as windows and foliage do. A
fifth of the photographs are views of landmarks: they share a part of their
features, noise apart, moved by an affine transform, and each sees its own part
of those, so that verification has something to find and to miss. Users of the
released code waited half a second for each pair of query and photograph.

The memory is the largest that the process had until then: give one kind a run
to compare kinds.
"""

import argparse
import contextlib
import functools
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from delf_jax import extractors, index, measurement, program
from delf_jax.data.retrieval_sets import RetrievalSet
from delf_jax.evaluation.protocols import GroundTruth, QueryTruth
from delf_jax.features.local_features import LocalFeatures

FEATURES, DIMS, VIEWS = 1000, 40, 4
# Of a landmark, and what a view sees of them.
SHARED, SEEN = 300, 80
REPEATED = 100
WORDS = 20_000
SIZE = 1024


@functools.cache
def words() -> tuple[np.ndarray, np.ndarray]:
  """Makes the visual words [WORDS, DIMS], and adds up how frequent they are."""
  drawn = spread(np.random.default_rng(0), WORDS)
  frequency = 1 / (100 + np.arange(WORDS))
  return drawn, np.cumsum(frequency / frequency.sum())


def spread(generator: np.random.Generator, count: int) -> np.ndarray:
  """Draws vectors [count, DIMS] whose variance falls as behind a PCA."""
  deviations = np.arange(1, DIMS + 1) ** -0.5
  deviations /= np.linalg.norm(deviations)
  return generator.normal(size=(count, DIMS)) * deviations


def unit(vectors: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / lengths).astype(np.float32)


def seen(generator: np.random.Generator, count: int) -> np.ndarray:
  """Draws descriptors [count, DIMS]: words, and what sets them apart."""
  centres, frequencies = words()
  chosen = np.searchsorted(frequencies, generator.uniform(size=count))
  chosen = np.minimum(chosen, WORDS - 1)
  return unit(centres[chosen] + 0.6 * spread(generator, count))


def features_of(number: int, *, landmarks: int) -> LocalFeatures:
  """Makes the features of a photograph; the first are views of landmarks."""
  own = np.random.default_rng([1, number])
  descriptors = seen(own, FEATURES)
  locations = own.uniform(0, SIZE, (FEATURES, 2)).astype(np.float32)
  descriptors[-REPEATED:] = unit(
    descriptors[own.integers(0, FEATURES // 20, REPEATED)]
    + 0.2 * spread(own, REPEATED)
  )
  if number < landmarks * VIEWS:
    place = np.random.default_rng([2, number // VIEWS])
    shared = seen(place, SHARED)
    where = place.uniform(0.2 * SIZE, 0.8 * SIZE, (SHARED, 2))
    mine = own.permutation(SHARED)[:SEEN]
    linear = np.eye(2) * own.uniform(0.6, 1.4) + own.normal(0, 0.1, (2, 2))
    descriptors[:SEEN] = unit(
      shared[mine] + own.uniform(0.4, 0.8) * spread(own, SEEN)
    )
    locations[:SEEN] = where[mine] @ linear.T + own.uniform(-50, 50, 2)
    locations[:SEEN] += own.normal(0, 4, (SEEN, 2))
  return LocalFeatures(
    locations=locations,
    scales=np.ones(FEATURES, np.float32),
    scores=np.linspace(1, 0.1, FEATURES, dtype=np.float32),
    descriptors=descriptors,
    mask=np.ones(FEATURES, bool),
  )


def write_photographs(root: Path, numbers: range) -> list[str]:
  """Writes dots whose colour is their number."""
  root.mkdir(parents=True, exist_ok=True)
  names = [f"{number:06d}.png" for number in numbers]
  for number, name in zip(numbers, names, strict=True):
    if not (root / name).exists():
      colour = (number >> 16, number >> 8 & 255, number & 255)
      Image.new("RGB", (16, 16), colour).save(root / name)
  return names


def extract(photograph, *, landmarks: int) -> LocalFeatures:
  """Reads the number of a dot and makes its features."""
  red, green, blue = map(int, photograph.pixels[0, 0])
  return features_of(red << 16 | green << 8 | blue, landmarks=landmarks)


def make_set(root: Path, arguments: argparse.Namespace) -> RetrievalSet:
  """Makes photographs, queries and distractor queries."""
  count, landmarks = arguments.photographs, arguments.photographs // 5 // VIEWS
  names = write_photographs(root, range(count + arguments.distractors))
  queries = tuple(
    QueryTruth(
      names[landmark * VIEWS],
      easy=tuple(names[landmark * VIEWS + view] for view in range(1, VIEWS)),
    )
    for landmark in range(min(arguments.queries, landmarks))
  )
  return RetrievalSet(
    name="generated",
    root=str(root),
    database=tuple(names[:count]),
    truth=GroundTruth(queries),
    distractors=tuple(map(QueryTruth, names[count:])),
  )


@contextlib.contextmanager
def timed_neighbours(seconds: list[float]):
  """Notes what the index takes of every search."""
  made = {"build_index": index.build_index, "open_index": index.open_index}

  def with_clock(make):
    def make_timed(*given, **options):
      made_one = make(*given, **options)
      search = made_one.search

      def timed(*asked, **how):
        start = time.perf_counter()
        found = search(*asked, **how)
        seconds.append(time.perf_counter() - start)
        return found

      made_one.search = timed
      return made_one

    return make_timed

  for name, make in made.items():
    setattr(index, name, with_clock(make))
  try:
    yield
  finally:
    for name, make in made.items():
      setattr(index, name, make)


def main() -> None:
  """Measures every kind of index and prints where the time goes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--photographs", type=int, default=5000)
  parser.add_argument("--queries", type=int, default=70)
  parser.add_argument("--distractors", type=int, default=70)
  parser.add_argument("--kinds", nargs="*", default=["kd_tree"])
  parser.add_argument("--output")
  arguments = parser.parse_args()
  program.use_compilation_cache()
  with tempfile.TemporaryDirectory() as scratch:
    output = Path(arguments.output or scratch)
    made = make_set(output / "photographs", arguments)
    landmarks = arguments.photographs // 5 // VIEWS
    extractor = extractors.Extractor(
      extract=functools.partial(extract, landmarks=landmarks),
      settings={"kind": "generated", "landmarks": landmarks},
      source="generated",
      max_side=SIZE,
    )
    for kind in arguments.kinds:
      neighbours: list[float] = []
      start, cpu = time.perf_counter(), time.process_time()
      with timed_neighbours(neighbours):
        found = measurement.evaluate(
          extractor,
          made,
          output=output / kind,
          cache=output / "cache",
          kind=kind,
        )
      total = time.perf_counter() - start
      cpu = time.process_time() - cpu
      seconds = found["seconds"]
      asked = found["num_queries"] + found["num_distractors"]
      rest = seconds["search"] - sum(neighbours)
      memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
      print(
        f"{kind}: {asked} queries against {arguments.photographs} photographs "
        f"in {total:.1f} s ({cpu:.1f} s of CPU): "
        f"store {seconds['extract']:.1f}, index {seconds['index']:.1f}, "
        f"neighbours {sum(neighbours):.1f}, "
        f"verification {rest:.1f}, metrics {seconds['metrics']:.1f}; "
        f"{1000 * seconds['search'] / asked:.0f} ms a query; mAP "
        f"{found['mAP_medium']:.1f}, R@90 {found['R@90']:.1f}; {memory:.1f} "
        f"GiB",
        flush=True,
      )


if __name__ == "__main__":
  main()
