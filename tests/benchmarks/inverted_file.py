"""The inverted file beside FAISS, and at the size of a billion descriptors.

  python tests/benchmarks/inverted_file.py compare --store STORE --words 1024
  python tests/benchmarks/inverted_file.py rerank --store STORE --words 1024
  python tests/benchmarks/inverted_file.py scan
  python tests/benchmarks/inverted_file.py stream --size 10000000 --folder DISK
  python tests/benchmarks/inverted_file.py fill --size 1000000000 --folder DISK

compare: recall and queries/s at equal bits, lists and probes. Recall@k is the
part of the true k nearest that is among the k returned. rerank: the same with a
second measurement, over probes and candidates. scan: the compiled scan of codes
beside two in JAX. stream: builds from descriptors that are generated on the
way: descriptors/s, bytes a descriptor, memory, latency. fill: the lists of a
real training filled with random codes, for sizes that nobody wants to generate
descriptors for: bytes, memory, latency.

Descriptors are a store's, its last photographs asking the others, or clustered
ones of unit length (`--size`). One thread, if `--cores` says nothing else; the
systems take turns in one process, medians are printed. FAISS is used where it
is installed (the extra `bench`).
"""

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

PHOTOGRAPH = 500  # descriptors of one query photograph


def make_clustered(
  n: int, batch: int = 1 << 18, *, dim: int = 40, clusters: int = 20_000
) -> Iterator[np.ndarray]:
  """Yields [n, dim] descriptors of unit length, batch after batch.

  Overlapping clusters in 24 dimensions, each stretched its own way.
  """
  generator = np.random.default_rng(0)
  basis = generator.normal(size=(24, dim)) / 24**0.5
  centres = generator.normal(size=(clusters, 24)) @ basis
  stretch = 0.7 * np.exp(0.5 * generator.normal(size=(64, dim)))
  for start in range(0, n, batch):
    count = min(batch, n - start)
    which = generator.integers(clusters, size=count)
    points = generator.standard_normal((count, dim), np.float32)
    points *= stretch[which % 64].astype(np.float32)
    points += centres[which].astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    yield points


def read(options: argparse.Namespace) -> tuple[np.ndarray, ...]:
  """What is trained with, searched in and asked for."""
  sys.path.insert(0, os.path.dirname(__file__))
  import index

  if options.store:
    base, queries = index.read_store(options.store, options.queries)
  else:
    both = index.make_descriptors(options.size + options.queries, 40)
    base, queries = np.split(both, [options.size])
  sample = base
  if options.apart:
    # The first half, by photograph to within one, is only trained with.
    sample, base = np.split(base, [len(base) // 2])
  return sample, base, queries


def true_neighbours(base: np.ndarray, queries: np.ndarray) -> np.ndarray:
  from delf_jax.index import exact

  return exact.build(base).search(queries, 100)[1]


def recall(rows: np.ndarray, true: np.ndarray, k: int) -> float:
  pairs = zip(rows[:, :k], true[:, :k], strict=True)
  return float(np.mean([np.isin(b, a).mean() for a, b in pairs]))


def take_turns(
  searches: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
  """Median seconds of each, which take turns; the first turn is not counted."""
  seconds = {name: [] for name in searches}
  for turn in range(rounds + 1):
    for name, search in searches.items():
      start = time.perf_counter()
      search()
      if turn:
        seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(times) for name, times in seconds.items()}


def ours(
  sample: np.ndarray,
  base: np.ndarray,
  threads: int,
  rerank: int = 0,
  **options: object,
):
  """Trains and fills, and says how long it took."""
  from delf_jax.index import inverted_file

  start = time.perf_counter()
  trained = inverted_file.train(sample, threads=threads, **options)
  middle = time.perf_counter()
  writer = inverted_file.Writer(trained, rerank=rerank, threads=threads)
  writer.add(base)
  built = writer.finish()
  return built, middle - start, time.perf_counter() - middle


def theirs(sample: np.ndarray, base: np.ndarray, description: str):
  import faiss

  start = time.perf_counter()
  built = faiss.index_factory(base.shape[1], description)
  built.train(sample)
  middle = time.perf_counter()
  built.add(base)
  return built, middle - start, time.perf_counter() - middle


def size_of(built: object) -> int:
  import faiss

  return faiss.serialize_index(built).nbytes


def compare(options: argparse.Namespace) -> None:
  """Recall and queries/s at equal bits, lists and probes."""
  sample, base, queries = read(options)
  true = true_neighbours(base, queries)
  words = options.words or round(len(base) ** 0.5)
  systems = {}
  for name, choice in {
    "ours, LOPQ": {},
    "ours, local rotations": {"codebooks": "global"},
    "ours, one rotation": {"rotation": "global", "codebooks": "global"},
    "ours, plain": {"rotation": "none", "codebooks": "global"},
    "ours, LOPQ, 10x4": {"bits": 4},
    "ours, LOPQ, 10x8": {"bits": 8},
  }.items():
    systems[name] = (
      *ours(sample, base, options.cores, words=words, **choice),
      choice,
    )
  try:
    import faiss

    faiss.omp_set_num_threads(options.cores)
    for bits in ["10x5", "10x4fs", "10x8"]:
      description = f"IVF{words},PQ{bits}"
      systems[f"FAISS {description}"] = (
        *theirs(sample, base, description),
        None,
      )
    description = f"OPQ10,IVF{words},PQ10x5"
    systems[f"FAISS {description}"] = (*theirs(sample, base, description), None)
  except ImportError:
    pass
  print(
    f"{len(base)} descriptors of {base.shape[1]}, {words} lists, "
    f"{len(queries)} queries at once, {options.cores} thread(s), median of "
    f"{options.rounds}\n{'':28}{'probes':>7}{'recall@10':>11}{'queries/s':>11}"
    f"{'recall@100':>12}{'queries/s':>11}{'train s':>9}{'add/s':>9}"
    f"{'B/desc.':>9}"
  )
  for probes in options.probes:
    found = {}
    searches = {}
    for name, (built, _, _, choice) in systems.items():
      for k in [10, 100]:
        if choice is None:
          faiss.extract_index_ivf(built).nprobe = probes

          def search(built=built, k=k):
            return built.search(queries, k)[1]
        else:
          built.probes = probes

          def search(built=built, k=k):
            return built.search(queries, k)[1]

        searches[f"{name} {k}"] = search
        found[f"{name} {k}"] = search()
    seconds = take_turns(searches, options.rounds)
    for name, (built, training, adding, choice) in systems.items():
      size = size_of(built) if choice is None else built.nbytes
      ten, hundred = f"{name} 10", f"{name} 100"
      print(
        f"{name:28}{probes:7}{recall(found[ten], true, 10):11.3f}"
        f"{len(queries) / seconds[ten]:11.0f}"
        f"{recall(found[hundred], true, 100):12.3f}"
        f"{len(queries) / seconds[hundred]:11.0f}{training:9.1f}"
        f"{len(base) / adding:9.0f}{size / len(base):9.1f}",
        flush=True,
      )


def rerank(options: argparse.Namespace) -> None:
  """Recall@10 against queries/s with a second measurement."""
  sample, base, queries = read(options)
  true = true_neighbours(base, queries)
  words = options.words or round(len(base) ** 0.5)
  built, _, _ = ours(sample, base, options.cores, rerank=1, words=words)
  systems = {"ours, 8 bits": built}
  try:
    import faiss

    faiss.omp_set_num_threads(options.cores)
    for kind in ["RFlat", "Refine(SQ8)"]:
      description = f"IVF{words},PQ10x5,{kind}"
      systems[f"FAISS {description}"] = theirs(sample, base, description)[0]
  except ImportError:
    pass
  print(
    f"{len(base)} descriptors, {words} lists, {len(queries)} queries at once, "
    f"10 neighbours, {options.cores} thread(s), median of {options.rounds}\n"
    f"{'':32}{'probes':>7}{'factor':>8}{'recall@10':>11}{'queries/s':>11}"
  )
  for probes in options.probes:
    for factor in [4, 8, 16, 32]:
      searches = {}
      found = {}
      for name, system in systems.items():
        if name.startswith("ours"):
          system.probes, system.rerank = probes, factor
        else:
          system.k_factor = factor
          faiss.extract_index_ivf(system.base_index).nprobe = probes

        def search(system=system):
          return system.search(queries, 10)[1]

        searches[name] = search
        found[name] = search()
      seconds = take_turns(searches, options.rounds)
      for name in systems:
        print(
          f"{name:32}{probes:7}{factor:8}{recall(found[name], true, 10):11.3f}"
          f"{len(queries) / seconds[name]:11.0f}",
          flush=True,
        )


def scan(options: argparse.Namespace) -> None:
  """One list's codes against one query's tables: compiled, and in JAX."""
  import jax
  import jax.numpy as jnp

  from delf_jax.index import inverted_file_kernels as kernels

  n, m, k = 1 << 20, 10, 10
  generator = np.random.default_rng(0)
  codes = generator.integers(0, 32, (n, m)).astype(np.uint8)
  table = generator.random((m, 32)).astype(np.float32)
  words = np.zeros(n, np.int32)
  sizes = np.array([n])
  starts = kernels.row_starts(n, sizes)
  blocks = np.zeros((n // kernels.BLOCK, 20 * m), np.uint8)
  rows = np.zeros(starts[-1], np.uint64)
  block_starts = np.array([0, len(blocks)])
  kernels.scatter(
    words,
    codes,
    0,
    np.zeros(1, np.int64),
    block_starts,
    sizes,
    starts,
    n,
    5,
    blocks,
    rows,
  )
  # One word at the origin; the table is that of a query at the origin.
  books = np.zeros((1, m, 4, 32), np.float32)
  books[0, :, 0] = np.sqrt(table)
  columns = np.zeros((1, 4 * m, kernels.LANES), np.float32)
  norms = np.full((1, kernels.LANES), np.inf, np.float32)
  norms[0, 0] = 0
  frozen = [
    columns,
    norms,
    np.zeros((1, 4 * m), np.float32),
    np.zeros(1, np.int32),
    np.eye(4 * m, dtype=np.float32)[None],
    np.zeros(1, np.int32),
    books,
    np.zeros((1, 4 * m), np.float32),
    blocks,
    rows,
    block_starts,
    sizes,
    starts,
    np.zeros(0, np.uint32),
  ]
  for array in frozen:
    array.flags.writeable = False
  trained, (query, *lists) = frozen[:7], frozen[7:]

  def compiled(wide):
    distances = np.full((1, k), np.inf, np.float32)
    found = np.full((1, k), -1, np.int64)
    kernels.search(
      query,
      *trained,
      5,
      *lists[:5],
      n,
      lists[5],
      sizes,
      1,
      0,
      k,
      wide,
      0,
      0,
      distances,
      found,
      0,
      1,
    )
    return found

  @jax.jit
  def gathered(table, codes):
    sums = jnp.take_along_axis(table, codes.astype(jnp.int32), axis=1)
    return jax.lax.top_k(-sums.sum(axis=0), k)[1]

  @jax.jit
  def spelt_out(table, codes):
    ones = jax.nn.one_hot(codes, 32, dtype=jnp.bfloat16, axis=1)
    sums = jnp.einsum("mc,mcn->n", table.astype(jnp.bfloat16), ones)
    return jax.lax.top_k(-sums, k)[1]

  given = jnp.asarray(codes.T.copy())
  seconds = take_turns(
    {
      "numba, 32 at a time": lambda: compiled(kernels.WIDE),
      "numba, one by one": lambda: compiled(False),
      "JAX, gathered": lambda: np.asarray(gathered(table, given)),
      "JAX, one-hot": lambda: np.asarray(spelt_out(table, given)),
    },
    options.rounds,
  )
  for name, second in seconds.items():
    print(f"{name:24}{1e9 * second / n:8.2f} ns a code")


def memory() -> str:
  """What this process holds: the most so far, and now by kind of page."""
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  with open("/proc/self/status") as file:
    now = dict(line.split(":", 1) for line in file)
  anonymous, mapped = (
    int(now[name].split()[0]) / 2**20 for name in ["RssAnon", "RssFile"]
  )
  return f"{anonymous:.2f} GiB held, {mapped:.2f} mapped, {most:.2f} at most"


def ask(opened: object, queries: np.ndarray, rounds: int) -> None:
  """Prints how long a query photograph takes."""
  for k in [10, 60]:
    start = time.perf_counter()
    opened.search(queries[:PHOTOGRAPH], k)
    first = time.perf_counter() - start
    seconds = take_turns(
      {"": lambda k=k: opened.search(queries[:PHOTOGRAPH], k)}, rounds
    )[""]
    print(
      f"{PHOTOGRAPH} descriptors, k {k}: {seconds:.3f} s (the first time "
      f"{first:.2f} s); {memory()}",
      flush=True,
    )


def report(built: object, options: argparse.Namespace, queries: np.ndarray):
  """Saves, opens and asks; prints what it takes."""
  from delf_jax.index import open_index

  part = built._parts[0]
  n = len(built)
  print(
    f"{n} descriptors: {built.nbytes / n:.3f} bytes each ("
    f"{part.codes.nbytes / n:.3f} codes, {part.rows.nbytes / n:.3f} rows), "
    f"{built.nbytes / 1e9:.3f} GB, {built.nbytes / 2**30:.3f} GiB",
    flush=True,
  )
  path = os.path.join(options.folder, "index")
  start = time.perf_counter()
  built.save(path)
  print(f"saved in {time.perf_counter() - start:.1f} s")
  del built, part
  start = time.perf_counter()
  opened = open_index(path, verify=False)
  opened.threads = options.cores
  print(f"opened in {time.perf_counter() - start:.2f} s; {memory()}")
  ask(opened, queries, options.rounds)


def stream(options: argparse.Namespace) -> None:
  """Builds from generated descriptors, a batch at a time."""
  from delf_jax.index import inverted_file

  queries = next(make_clustered(1 << 18))[-PHOTOGRAPH:]
  sample = np.concatenate(list(make_clustered(options.sample)))
  start = time.perf_counter()
  trained = inverted_file.train(
    sample, size=options.size, words=options.words, threads=options.cores
  )
  print(
    f"{len(trained.centres)} words from {len(sample)} descriptors in "
    f"{time.perf_counter() - start:.1f} s",
    flush=True,
  )
  del sample
  adding = 0.0
  with inverted_file.Writer(
    trained, folder=options.folder, threads=options.cores
  ) as writer:
    for batch in make_clustered(options.size):
      start = time.perf_counter()
      writer.add(batch)
      adding += time.perf_counter() - start
    start = time.perf_counter()
    built = writer.finish()
  finishing = time.perf_counter() - start
  rate = options.size / (adding + finishing)
  print(
    f"added {options.size / adding:.0f}/s, finished "
    f"{options.size / finishing:.0f}/s on {options.cores} thread(s); at that "
    f"rate 100 million take {1e8 / rate / 3600:.2f} h and a billion "
    f"{1e9 / rate / 3600:.2f} h; "
    f"{memory()}",
    flush=True,
  )
  report(built, options, queries)


def fill(options: argparse.Namespace) -> None:
  """Fills the lists of a training with random codes."""
  from delf_jax.index import inverted_file

  queries = next(make_clustered(1 << 18))[-PHOTOGRAPH:]
  sample = np.concatenate(list(make_clustered(options.sample)))
  trained = inverted_file.train(
    sample,
    size=options.size,
    words=options.words,
    threads=options.cores,
  )
  # Lists as long, in proportion, as those of the sample.
  shares = np.bincount(
    trained.encode(sample, options.cores)[0], minlength=len(trained.centres)
  ) / len(sample)
  del sample
  generator = np.random.default_rng(0)
  cumulated = np.cumsum(shares)
  start = time.perf_counter()
  with inverted_file.Writer(
    trained, folder=options.folder, threads=options.cores
  ) as writer:
    left = options.size
    while left:
      count = min(left, 1 << 20)
      left -= count
      words = np.searchsorted(cumulated, generator.random(count)).astype(
        np.int32
      )
      words = np.minimum(words, len(shares) - 1)
      codes = generator.integers(
        0, 1 << trained.bits, (count, trained.subvectors), np.uint8
      )
      writer.add_codes(words, codes)
    built = writer.finish()
  print(
    f"filled in {time.perf_counter() - start:.0f} s; {memory()}", flush=True
  )
  report(built, options, queries)


def main() -> None:
  """Measures as the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  works = {
    work.__name__: work for work in [compare, rerank, scan, stream, fill]
  }
  parser.add_argument("work", choices=works)
  parser.add_argument("--store", help="a store of features")
  parser.add_argument("--size", type=int, default=300_000)
  parser.add_argument("--queries", type=int, default=2000)
  parser.add_argument("--words", type=int, default=0)
  parser.add_argument("--probes", type=int, nargs="+", default=[5, 16])
  parser.add_argument("--sample", type=int, default=1 << 20)
  parser.add_argument("--apart", action="store_true", help="train on others")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--cores", type=int, default=1)
  parser.add_argument("--folder", default=".")
  options = parser.parse_args()
  # Before any library counts the cores.
  usable = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, usable[-options.cores :])
  works[options.work](options)


if __name__ == "__main__":
  main()
