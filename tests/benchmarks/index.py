"""Speed, size and recall of the indexes, beside pynndescent and FAISS.

  python tests/benchmarks/index.py [--size 100000] [--dim 40] [--queries 2000]
  python tests/benchmarks/index.py --store STORE

Clustered descriptors of unit length, or a store's (its last photographs ask,
the others answer). Prints one table for one core and one for all of them, each
from a process of its own that was started on so many cores; within it the
systems take turns and medians are printed. "opened" is the time of a fresh
process from its start to the first answer, imports included. FAISS is used
where it is installed (the extra `bench`).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

K = 10

OPEN = """
import sys
import numpy as np
from delf_jax.index import open_index
open_index(sys.argv[1] + "/index").search(np.load(sys.argv[1] + "/q.npy"), 10)
"""


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


def build_all(descriptors: np.ndarray) -> dict[str, tuple]:
  """{system: (build seconds, bytes, search, ours or None)}."""
  from delf_jax.index import build_index

  # What numba compiles in every process is no part of building; it is needed
  # by pynndescent, and by our graph where it uses that.
  start = time.perf_counter()
  build_index("graph", descriptors[:2000], exact_up_to=0)
  print(f"\ncompiled NN-descent in {time.perf_counter() - start:.0f} s")
  systems = {}

  def add(name, build, size, search):
    start = time.perf_counter()
    try:
      built = build()
    except ImportError:
      return
    seconds = time.perf_counter() - start
    systems[name] = (
      seconds,
      size(built),
      lambda queries: search(built, queries),
      built if name.startswith("ours") else None,
    )

  for kind in ["exact", "graph"]:
    add(
      f"ours, {kind}",
      lambda kind=kind: build_index(kind, descriptors),
      lambda built: built.nbytes,
      lambda built, queries: built.search(queries, K)[1],
    )

  def descend():
    import pynndescent

    descent = pynndescent.NNDescent(
      descriptors, n_neighbors=30, random_state=0, compressed=True
    )
    descent.prepare()
    return descent

  for epsilon in [0.1, 0.2]:
    add(
      f"pynndescent, epsilon {epsilon}",
      descend,
      lambda built: sum(map(held_by, vars(built).values())),
      lambda built, queries, epsilon=epsilon: built.query(
        queries, K, epsilon=epsilon
      )[0],
    )

  def faiss_index(description, **settings):
    import faiss

    built = faiss.index_factory(descriptors.shape[1], description)
    built.train(descriptors)
    built.add(descriptors)
    for name, value in settings.items():
      faiss.ParameterSpace().set_index_parameter(built, name, value)
    return built

  def size_of(built):
    import faiss

    return faiss.serialize_index(built).nbytes

  lists = 1 << round(np.log2(4 * len(descriptors) ** 0.5))
  for description, settings in [
    ("Flat", {}),
    ("HNSW32,Flat", {"efSearch": 32}),
    (f"IVF{lists},Flat", {"nprobe": 16}),
  ]:
    add(
      ", ".join(
        ["FAISS " + description, *(f"{a} {b}" for a, b in settings.items())]
      ),
      lambda description=description, settings=settings: faiss_index(
        description, **settings
      ),
      size_of,
      lambda built, queries: built.search(queries, K)[1],
    )
  return systems


def time_to_open(built: object, queries: np.ndarray) -> float:
  """Seconds of a fresh process that opens an index and searches."""
  with tempfile.TemporaryDirectory() as folder:
    built.save(os.path.join(folder, "index"))
    np.save(os.path.join(folder, "q.npy"), queries)
    seconds = []
    for _ in range(3):
      start = time.perf_counter()
      subprocess.run([sys.executable, "-c", OPEN, folder], check=True)
      seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def measure(
  descriptors: np.ndarray, queries: np.ndarray, rounds: int, cores: int
) -> None:
  """Prints the table of this process."""
  systems = build_all(descriptors)
  times = {name: [] for name in systems}
  rows = {}
  for turn in range(rounds + 1):
    for name, (_, _, search, _) in systems.items():
      start = time.perf_counter()
      rows[name] = search(queries)
      if turn:  # the first compiles
        times[name].append(time.perf_counter() - start)
  true = rows["ours, exact"]
  print(
    f"{cores} core{'s' * (cores > 1)}: {len(descriptors)} descriptors of "
    f"{descriptors.shape[1]}, {len(queries)} queries at once, "
    f"median of {rounds}\n"
    f"{'':32}{'queries/s':>10}{'recall@10':>11}{'build s':>9}"
    f"{'B/desc.':>9}{'opened s':>10}"
  )
  for name, (seconds, size, _, ours) in systems.items():
    recall = np.mean(
      [np.isin(a, b).mean() for a, b in zip(true, rows[name], strict=True)]
    )
    rate = len(queries) / statistics.median(times[name])
    opened = f"{time_to_open(ours, queries[:500]):10.2f}" if ours else ""
    print(
      f"{name:32}{rate:10.0f}{recall:11.4f}{seconds:9.1f}"
      f"{size / len(descriptors):9.0f}{opened}",
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
  parser.add_argument("--cores", type=int, help="one table, on so many cores")
  options = parser.parse_args()
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
  measure(descriptors, queries, options.rounds, options.cores)


if __name__ == "__main__":
  main()
