"""ScaNN behind our interface, for those who pip install 'delf_jax[scann]'.

Descriptors are put in lists, coded in 4 bits a pair of dimensions, and the best
by their codes are measured again as they are: ScaNN's tree, asymmetric hashing
and reordering. Small sets are left to `exact`: ScaNN compares whole sets by
matrix products alone, which make a distance of 0 one of 0.004, and another one
in other company. ScaNN is made for processors with AVX and writes lines of its
own to stderr while it builds.

ScaNN's builder takes no seed and its lists differ from run to run; its settings
have seeds, which count once the first centres come from k-means++. They are
given here, and its index is then the same in every run and with any number of
threads.

Saved are the arrays and messages that ScaNN writes. Its list of files, which
could name others, is written anew when an index is opened, and the pickle that
it can keep of names is neither written nor read. The checksums of the directory
say that the rest is what was saved, not that it is harmless: ScaNN reads it in
C++, which was not made for files that are meant to deceive. Open only what you
trust.
"""

import functools
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import directory, exact

_KIND = "scann"
_FEWEST = 64  # descriptors, for ScaNN to learn its codes from
_SPARE = 32  # neighbours beyond k, for excluded ones
_SAMPLE = 100_000  # descriptors that the centres are learned from
_BATCH = 256  # queries that a thread takes at a time
# What ScaNN writes: {our array: (its name for the asset, its file)}.
_ASSETS = {
  "descriptors": ("DATASET_NPY", "dataset.npy"),
  "codes": ("AH_DATASET_NPY", "hashed_dataset.npy"),
  "lists": ("TOKENIZATION_NPY", "datapoint_to_token.npy"),
  "codebook": ("AH_CENTERS", "ah_codebook.pb"),
  "partitioner": ("PARTITIONER", "serialized_partitioner.pb"),
}
_CONFIG = "scann_config.pb"
_LIST_OF_ASSETS = "scann_assets.pbtxt"


class ScannIndex:
  """Nearest neighbours by ScaNN.

  Attributes:
    threads: that build and search; all usable cores by default. The results do
      not depend on it. Not to be changed during a search.
    nbytes: what ScaNN writes, which is about what it holds in memory.
  """

  def __init__(
    self,
    searcher: Any,
    *,
    built_with: Mapping[str, Any],
    threads: int | None = None,
  ):
    """Use `build`.

    Args:
      searcher: ScaNN's, or of `exact` where there are no lists.
    """
    self._searcher = searcher
    self._built_with = dict(built_with)
    self.threads = threads or exact.usable_cores()

  @property
  def threads(self) -> int:
    return self._threads

  @threads.setter
  def threads(self, threads: int) -> None:
    self._threads = threads
    if self._built_with["lists"]:
      self._searcher.set_num_threads(threads)

  @functools.cached_property
  def nbytes(self) -> int:
    return sum(array.nbytes for array in self._written().values())

  def search(
    self,
    queries: np.ndarray,
    k: int,
    *,
    exclude: tuple[int, int] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds k near descriptors of each query, most of them the nearest.

    Args:
      queries: [m, d].
      k: at least 1.
      exclude: rows [start, stop) are left out.

    Returns:
      distances [m, k] float32, Euclidean as ScaNN measures them, ascending, and
      rows [m, k] int32; equal distances in the order of rows. Where fewer than
      k rows are left the tail is (inf, -1). Queries whose lists hold fewer are
      compared with everything.

    Raises:
      InputError: if a query is not finite or has another dimension.
    """
    n, d = self._built_with["n"], self._built_with["d"]
    if not self._built_with["lists"]:
      return self._searcher.search(queries, k, exclude=exclude)
    queries = exact.checked(queries, name="query", dimension=d)
    start, stop = exact.checked_range(k, exclude, n)
    distances = np.full((len(queries), k), np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int32)
    span = stop - start
    wanted = min(k, n - span)
    if wanted == 0:
      return distances, rows
    left = np.arange(len(queries))
    some, few = self._built_with["measured"], self._built_with["search"]
    # Excluded rows are found and dropped; seldom are there many of them.
    for count, measured, lists in [
      (k + min(span, _SPARE), some, few),
      (k + span, some, few),
      (k + span, n, self._built_with["lists"]),
    ]:
      if len(left):
        count = min(count, n)
        distances[left], rows[left] = self._ask(
          queries[left], k, count, max(count, measured), lists, start, stop
        )
        left = left[rows[left, wanted - 1] < 0]
    return distances, rows

  def save(
    self,
    path: str | os.PathLike,
    *,
    provenance: Mapping[str, Any] | None = None,
  ) -> None:
    """Saves to an index directory; see `directory.write`."""
    directory.write(
      path,
      kind=_KIND,
      parameters={"built_with": self._built_with},
      arrays=self._written(),
      provenance=provenance or {},
    )

  def _written(self) -> dict[str, np.ndarray]:
    if not self._built_with["lists"]:
      return {"descriptors": self._searcher.descriptors}
    with tempfile.TemporaryDirectory() as folder:
      self._searcher.serialize(folder, True)
      arrays = {"config": np.fromfile(os.path.join(folder, _CONFIG), np.uint8)}
      for name, (_, file) in _ASSETS.items():
        where = os.path.join(folder, file)
        if file.endswith(".npy"):
          arrays[name] = np.load(where, allow_pickle=False)
        else:
          arrays[name] = np.fromfile(where, np.uint8)
    return arrays

  def _ask(
    self,
    queries: np.ndarray,
    k: int,
    count: int,
    measured: int,
    lists: int,
    start: int,
    stop: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    if self.threads == 1:
      found = self._searcher.search_batched(queries, count, measured, lists)
    else:
      found = self._searcher.search_batched_parallel(
        queries, count, measured, lists, _BATCH
      )
    rows, squares = found
    # Not a number after the last one found.
    there = (squares >= 0) & ~((rows >= start) & (rows < stop))
    distances = np.full(rows.shape, np.inf, np.float32)
    distances[there] = np.sqrt(squares[there])
    rows = np.where(there, rows.astype(np.int64), -1)
    order = np.lexsort((rows, distances), axis=-1)[:, :k]
    near = np.full((len(queries), k), np.inf, np.float32)
    near_rows = np.full((len(queries), k), -1, np.int32)
    width = order.shape[1]
    near[:, :width] = np.take_along_axis(distances, order, axis=1)
    near_rows[:, :width] = np.take_along_axis(rows, order, axis=1)
    return near, near_rows


def build(
  descriptors: np.ndarray,
  *,
  seed: int = 0,
  lists: int | None = None,
  search: int | None = None,
  measured: int = 500,
  exact_up_to: int = 1 << 15,
  threads: int | None = None,
) -> ScannIndex:
  """Builds an index of ScaNN.

  The same descriptors and seed give the same bits on one machine.

  Args:
    descriptors: [n, d]; n may be 0.
    seed: of the lists and the codes.
    lists: that the descriptors are put in; about 2 sqrt(n) when None.
    search: lists that a query looks into; a tenth of them, and at most 64,
      when None.
    measured: how many of the best by their codes are measured, if not more
      than that are asked for.
    exact_up_to: so many descriptors are left to `exact`.
    threads: that build and search; all usable cores by default.

  Raises:
    InputError: if ScaNN is not installed, or a descriptor is not finite.
  """
  if measured < 1 or (lists or 1) < 1 or (search or 1) < 1:
    raise ValueError(f"{lists=}, {search=}, {measured=}")
  scann = _scann()
  threads = threads or exact.usable_cores()
  descriptors = exact.checked(descriptors, name="descriptor")
  n, d = descriptors.shape
  if n <= max(exact_up_to, _FEWEST):
    lists = search = 0
    searcher = exact.build(descriptors)
  else:
    lists = min(n, lists or round(2 * n**0.5))
    search = min(lists, search or min(64, -(-lists // 10)))
    searcher = scann.create_searcher(
      descriptors, _config(scann, descriptors, seed, lists), threads
    )
  return ScannIndex(
    searcher,
    built_with={
      "seed": seed,
      "lists": lists,
      "search": search,
      "measured": measured,
      "n": n,
      "d": d,
    },
    threads=threads,
  )


def restore(
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  verify: bool = True,
) -> ScannIndex:
  """Makes the index that was saved; see `delf_jax.index.open_index`.

  Its arrays are copied to a temporary directory on the way.

  Raises:
    InputError: if ScaNN is not installed.
    ValueError: if the arrays do not fit together, or ScaNN cannot read them.
  """
  del verify  # ScaNN looks at what it looks at
  scann = _scann()
  built_with = dict(parameters["built_with"])
  n, d = built_with["n"], built_with["d"]
  _check_shapes(arrays, n, d, built_with["lists"])
  if not built_with["lists"]:
    searcher = exact.build(arrays["descriptors"])
    return ScannIndex(searcher, built_with=built_with)
  with tempfile.TemporaryDirectory() as folder:
    arrays["config"].tofile(os.path.join(folder, _CONFIG))
    with open(os.path.join(folder, _LIST_OF_ASSETS), "w") as listed:
      for name, (asset, file) in _ASSETS.items():
        where = os.path.join(folder, file)
        if file.endswith(".npy"):
          np.save(where, arrays[name])
        else:
          arrays[name].tofile(where)
        listed.write(f'assets {{ asset_type: {asset} asset_path: "{file}" }}\n')
    try:
      searcher = scann.load_searcher(folder)
    except RuntimeError as error:
      raise ValueError(f"ScaNN cannot read it: {error}") from error
  if searcher.size() != n:
    raise ValueError("ScaNN read another index than the one that was built")
  return ScannIndex(searcher, built_with=built_with)


def _check_shapes(
  arrays: Mapping[str, np.ndarray], n: int, d: int, lists: int
) -> None:
  names = {"config", *_ASSETS} if lists else {"descriptors"}
  if (
    set(arrays) != names
    or arrays["descriptors"].dtype != np.float32
    or arrays["descriptors"].shape != (n, d)
    or (lists and len(arrays["codes"]) != n)
    or (lists and len(arrays["lists"]) != n)
    or any(
      arrays[name].dtype != np.uint8 or arrays[name].ndim != 1
      for name in {"config", "codebook", "partitioner"} & set(arrays)
    )
  ):
    raise ValueError("its arrays do not fit together")


@functools.cache
def _scann() -> Any:
  try:
    from scann.scann_ops.py import scann_ops_pybind
  except ImportError as error:
    raise InputError(
      "ScaNN is not installed; pip install 'delf_jax[scann]', or choose "
      "another kind of index"
    ) from error
  return scann_ops_pybind


def _config(scann: Any, descriptors: np.ndarray, seed: int, lists: int) -> str:
  """What ScaNN is to build, in its own words."""
  sample = min(len(descriptors), _SAMPLE)
  config = (
    scann.builder(descriptors, 10, "squared_l2")
    .tree(lists, 1, training_sample_size=sample, random_init=False)
    .score_ah(2, training_sample_size=sample)
    .reorder(100)
    .create_config()
  )
  # The builder leaves these out.
  seeds = {
    "partitioning": f"clustering_seed: {seed}",
    "asymmetric_hash": f"clustering_seed: {seed} sampling_seed: {seed}",
  }
  for message, text in seeds.items():
    if config.count(f" {message} {{") != 1:
      raise InputError(
        "this release of ScaNN cannot be seeded; pip install 'scann==1.4.2'"
      )
    config = config.replace(f" {message} {{", f" {message} {{ {text} ")
  return config
