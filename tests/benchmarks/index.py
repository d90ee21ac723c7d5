"""Speed, size and recall of the indexes, beside pynndescent and FAISS.

  python tests/benchmarks/index.py [--size 100000] [--dim 40] [--queries 2000]
  python tests/benchmarks/index.py --store STORE
  python tests/benchmarks/index.py --size 1000000 --only graph pynndescent

Clustered descriptors of unit length, or a store's (its last photographs ask,
the others answer). Prints one table for one core and one for all of them, each
from a process of its own that was started on so many cores; within it the
systems take turns and medians are printed: of all queries in one call and, in
microseconds, of one in a call. "build" is without what numba compiles in every
process. The last four columns are of fresh processes: "fresh" a build with
imports and compilation, "opened" the time from the start to the first answer of
a saved index, and the peak memory of either, resident, in MiB, imports and data
included. FAISS is used where it is installed (the extra `bench`).
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

K = 10
EPSILONS = [0.1, 0.2, 0.3]


class System(NamedTuple):
  """What is measured; a search [m, d] -> rows [m, K] for every setting."""

  build: Callable[[np.ndarray], Any]
  nbytes: Callable[[Any], int]
  searches: dict[str, Callable[[Any, np.ndarray], np.ndarray]]
  save: Callable[[Any, str], None]
  load: Callable[[str], Any]


def make_descriptors(n: int, dim: int) -> np.ndarray:
  """[n, dim] of unit length: overlapping clusters of 100, in 24 dimensions."""
  generator = np.random.default_rng(0)
  basis = generator.normal(size=(24, dim)) / 24**0.5
  centres = generator.normal(size=(max(8, n // 100), 24)) @ basis
  noise = 0.7 * generator.normal(size=(n, dim))
  points = centres[generator.integers(len(centres), size=n)] + noise
  points /= np.linalg.norm(points, axis=1, keepdims=True)
  return points.astype(np.float32)


def read_store(path: str, queries: int) -> tuple[np.ndarray, np.ndarray]:
  """The last photographs' descriptors, at most so many, ask the others'."""
  from delf_jax.features import store

  opened = store.open_store(path)
  descriptors = np.asarray(opened.descriptors(), np.float32)
  split = int(np.searchsorted(opened.offsets, len(descriptors) - queries))
  split = int(opened.offsets[split])
  return descriptors[:split], descriptors[split:]


def held_by(value: object) -> int:
  """Bytes of the arrays in an object of pynndescent."""
  if isinstance(value, np.ndarray):
    return value.nbytes
  if isinstance(value, tuple | list):
    return sum(map(held_by, value))
  arrays = [
    getattr(value, name, None) for name in ["data", "indices", "indptr"]
  ]
  if all(isinstance(array, np.ndarray) for array in arrays):
    return sum(array.nbytes for array in arrays)
  return 0


def our_system(kind: str, **options: Any) -> System:
  """An index of ours; a graph once for every epsilon."""
  from delf_jax.index import build_index, open_index

  def search(built, queries, epsilon=None):
    if epsilon is not None:
      built.epsilon = epsilon
    return built.search(queries, K)[1]

  return System(
    lambda descriptors: build_index(kind, descriptors, **options),
    lambda built: built.nbytes,
    {
      f", epsilon {epsilon}": lambda built, queries, epsilon=epsilon: search(
        built, queries, epsilon
      )
      for epsilon in EPSILONS
    }
    if kind == "graph"
    else {"": search},
    lambda built, path: built.save(path),
    open_index,
  )


def pynndescent_system(**options: Any) -> System:
  """pynndescent, once for every epsilon."""

  def build(descriptors):
    import pynndescent

    built = pynndescent.NNDescent(
      descriptors, n_neighbors=30, random_state=0, **options
    )
    built.prepare()
    return built

  def save(built, path):
    with open(path, "wb") as file:
      pickle.dump(built, file)

  def load(path):
    with open(path, "rb") as file:
      return pickle.load(file)  # what `save` wrote a moment ago

  return System(
    build,
    lambda built: sum(map(held_by, vars(built).values())),
    {
      f", epsilon {epsilon}": lambda built, queries, epsilon=epsilon: (
        built.query(queries, K, epsilon=epsilon)[0]
      )
      for epsilon in EPSILONS
    },
    save,
    load,
  )


def faiss_system(description: str, **settings: int) -> System:
  """An index of FAISS's factory."""

  def build(descriptors):
    import faiss

    built = faiss.index_factory(descriptors.shape[1], description)
    built.train(descriptors)
    built.add(descriptors)
    for name, value in settings.items():
      faiss.ParameterSpace().set_index_parameter(built, name, value)
    return built

  def nbytes(built):
    import faiss

    return faiss.serialize_index(built).nbytes

  def save(built, path):
    import faiss

    faiss.write_index(built, path)

  def load(path):
    import faiss

    return faiss.read_index(path)

  name = "".join(f", {name} {value}" for name, value in settings.items())
  return System(
    build,
    nbytes,
    {name: lambda built, queries: built.search(queries, K)[1]},
    save,
    load,
  )


def make_systems(n: int) -> dict[str, System]:
  """All that may be measured on n descriptors."""
  lists = 1 << round(np.log2(4 * n**0.5))
  return {
    "ours, exact": our_system("exact"),
    **{
      f"ours, graph, {precision}": our_system(
        "graph", precision=precision, builder="walk"
      )
      for precision in ["float32", "float16", "int8"]
    },
    "ours, graph, built by pynndescent": our_system(
      "graph", precision="float16", builder="pynndescent"
    ),
    "pynndescent": pynndescent_system(),
    "pynndescent, compressed": pynndescent_system(compressed=True),
    "FAISS Flat": faiss_system("Flat"),
    "FAISS HNSW32,Flat": faiss_system("HNSW32,Flat", efSearch=32),
    f"FAISS IVF{lists},Flat": faiss_system(f"IVF{lists},Flat", nprobe=16),
  }


def peak_memory() -> float:
  """MiB that were resident at most since this program was started."""
  with open("/proc/self/status") as file:
    for line in file:
      if line.startswith("VmHWM"):
        return int(line.split()[1]) / 1024
  return float("nan")


def work_fresh(work: str, system: System, folder: str) -> None:
  """Builds or opens in this process and prints its peak memory."""
  if work == "build":
    system.build(np.load(os.path.join(folder, "descriptors.npy")))
  else:
    built = system.load(os.path.join(folder, "index"))
    for search in system.searches.values():
      search(built, np.load(os.path.join(folder, "queries.npy")))
  print(json.dumps(peak_memory()))


def time_fresh(
  work: str, name: str, size: int, folder: str, rounds: int = 1
) -> tuple[float, float]:
  """Median seconds and MiB of fresh processes that do a `work_fresh`."""
  seconds, peaks = [], []
  for _ in range(rounds):
    start = time.perf_counter()
    done = subprocess.run(
      [
        sys.executable,
        __file__,
        f"--size={size}",
        "--fresh",
        work,
        name,
        folder,
      ],
      check=True,
      stdout=subprocess.PIPE,
    )
    seconds.append(time.perf_counter() - start)
    peaks.append(json.loads(done.stdout))
  return statistics.median(seconds), statistics.median(peaks)


def measure(
  descriptors: np.ndarray,
  queries: np.ndarray,
  rounds: int,
  cores: int,
  only: list[str],
) -> None:
  """Prints the table of this process."""
  systems = make_systems(len(descriptors))
  true = systems["ours, exact"].searches[""](
    systems["ours, exact"].build(descriptors), queries
  )
  built, costs = {}, {}
  for name, system in systems.items():
    if only and not any(word in name for word in only):
      continue
    with tempfile.TemporaryDirectory() as folder:
      try:
        system.build(descriptors[:2000])  # compiles
      except ImportError:
        continue
      np.save(os.path.join(folder, "descriptors.npy"), descriptors)
      np.save(os.path.join(folder, "queries.npy"), queries[:500])
      start = time.perf_counter()
      built[name] = system.build(descriptors)
      seconds = time.perf_counter() - start
      fresh = time_fresh("build", name, len(descriptors), folder)
      system.save(built[name], os.path.join(folder, "index"))
      opened = time_fresh("open", name, len(descriptors), folder, rounds=3)
      costs[name] = (seconds, *fresh, *opened)
  calls = {
    name + setting: (
      lambda asked, name=name, call=call: call(built[name], asked)
    )
    for name in built
    for setting, call in systems[name].searches.items()
  }
  times = {name: [] for name in calls}
  alone = {name: [] for name in calls}
  rows = {}
  for turn in range(rounds + 1):
    for name, search in calls.items():
      start = time.perf_counter()
      rows[name] = search(queries)
      if turn:  # the first compiles
        times[name].append(time.perf_counter() - start)
      for i in range(turn and 50):
        start = time.perf_counter()
        search(queries[i : i + 1])
        alone[name].append(time.perf_counter() - start)
  print(
    f"\n{cores} core{'s' * (cores > 1)}: {len(descriptors)} descriptors of "
    f"{descriptors.shape[1]}, {len(queries)} queries at once, "
    f"median of {rounds}\n"
    f"{'':36}{'queries/s':>10}{'one, us':>8}{'recall@10':>10}{'B/desc.':>8}"
    f"{'build s':>8}{'fresh s':>8}{'MiB':>6}{'opened s':>9}{'MiB':>6}"
  )
  for name, index in built.items():
    for setting in systems[name].searches:
      row = name + setting
      recall = np.mean(
        [np.isin(a, b).mean() for a, b in zip(true, rows[row], strict=True)]
      )
      rate = len(queries) / statistics.median(times[row])
      each = systems[name].nbytes(index) / len(descriptors)
      seconds, fresh, fresh_peak, opened, opened_peak = costs[name]
      print(
        f"{row:36}{rate:10.0f}{1e6 * statistics.median(alone[row]):8.0f}"
        f"{recall:10.4f}{each:8.0f}{seconds:8.1f}{fresh:8.1f}{fresh_peak:6.0f}"
        f"{opened:9.2f}{opened_peak:6.0f}",
        flush=True,
      )


def main() -> None:
  """Measures as the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, default=100_000)
  parser.add_argument("--dim", type=int, default=40)
  parser.add_argument("--queries", type=int, default=2000)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--store", help="a store of features to take instead")
  parser.add_argument(
    "--only", nargs="+", default=[], help="systems with such a word"
  )
  parser.add_argument(
    "--fresh", nargs=3, metavar=("WORK", "SYSTEM", "FOLDER"), help="used within"
  )
  parser.add_argument("--cores", type=int, help="one table, on so many cores")
  options = parser.parse_args()
  if options.fresh:
    work, name, folder = options.fresh
    work_fresh(work, make_systems(options.size)[name], folder)
    return
  usable = sorted(os.sched_getaffinity(0))
  if options.cores is None:
    for cores in sorted({1, len(usable)}):
      subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--cores", str(cores)],
        check=True,
      )
    return
  # Before any library counts the cores.
  os.sched_setaffinity(0, usable[: options.cores])
  if options.store:
    descriptors, queries = read_store(options.store, options.queries)
  else:
    both = make_descriptors(options.size + options.queries, options.dim)
    descriptors, queries = np.split(both, [options.size])
  measure(descriptors, queries, options.rounds, options.cores, options.only)


if __name__ == "__main__":
  main()
