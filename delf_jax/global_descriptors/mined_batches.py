"""The batches of the stage "ranking": tuples that are hard to tell apart.

Global descriptors learn from photographs that the network, as it is now, takes
for the wrong ones. So these are looked for again every so many steps, a segment
at a time, and kept in the run's directory: a run that goes on after a stop, in
the middle of a segment, learns from the same. Of several processes each looks
for itself, and finds the same.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from delf_jax import checkpoint, hosts, progress
from delf_jax.data import landmarks, matching_pairs, pipeline
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.examples import random_generator
from delf_jax.data.matching_pairs import MatchingPairs
from delf_jax.data.photograph_tuples import Tuples
from delf_jax.data.sources import Source
from delf_jax.errors import InputError
from delf_jax.global_descriptors.ranking_stage import RankingOptions
from delf_jax.training import mining

# Of the tuples that a run is validated on, whatever its own seed.
_VALIDATION_SEED = 1_000_003
# Photographs that a device describes at a time.
_DESCRIBED = 32
# The first number after the seed keeps these streams of chance apart.
_POOL, _GROUPS, _NEGATIVES, _TRIPLETS = range(220, 224)


class MinedBatches:
  """Batches of the stage, which `mine` prepares a segment at a time.

  Attributes:
    skipped: name -> reason of the photographs that could not be read.
    waited: seconds that the consumer has spent waiting for batches.
  """

  def __init__(
    self,
    options: RankingOptions,
    data: landmarks.Dataset,
    *,
    model: checkpoint.Model,
    seed: int,
    start: int,
    directory: Path,
    loader: Mapping[str, Any],
  ) -> None:
    """Prepares to mine.

    Args:
      options: of the stage.
      data: the photographs; the classes are the 3-D clusters, whose members are
        no negatives of each other.
      model: describes them; its variables do not matter.
      seed: of the stage.
      start: batches consumed before.
      directory: receives what is mined.
      loader: `workers` and `threads` that read.

    Raises:
      InputError: if nothing matches, or the file of pairs is unfit.
    """
    self.skipped: dict[str, str] = {}
    self._waited = 0.0
    self._options = options
    self._source = data.train
    self._labels = np.asarray(data.train.labels)
    self._seed = seed
    self._consumed = start
    self._directory = directory
    self._loader = dict(loader)
    self._describe = _describer(model)
    self._batches: pipeline.Batches | None = None
    self._pairs = None
    if options.kind == "contrastive":
      self._pairs = MatchingPairs(
        self._labels,
        matching_pairs.read_pairs(options.pairs, data.train)
        if options.pairs
        else None,
        seed=seed,
      )

  @property
  def waited(self) -> float:
    return self._waited + (self._batches.waited if self._batches else 0.0)

  def mine(self, variables: Mapping[str, Any]) -> None:
    """Sees that there is a next batch; the network looks for it if need be.

    Args:
      variables: of the network, as they are now.

    Raises:
      InputError: if what the interrupted run had mined is not there.
    """
    segment, place = divmod(self._consumed, self._options.mine_every)
    if self._batches is not None:
      if place:
        return
      self.close()
    rows, mask = self._mined(segment, place, variables)
    size = self._options.batch_size
    self._batches = pipeline.tuple_batches(
      _tuples(
        self._options,
        self._source,
        rows,
        mask,
        seed=self._seed,
        first=segment * self._options.mine_every * size,
      ),
      batch_size=size,
      start=place,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      **self._loader,
    )

  def __next__(self) -> dict[str, Any]:
    batch = next(self._batches)
    self._consumed += 1
    self.skipped.update(self._batches.skipped)
    return _without_sizes(batch, self._options)

  def close(self) -> None:
    """Ends the reading."""
    if self._batches is not None:
      self._waited += self._batches.waited
      self._batches.close()
      self._batches = None

  def _mined(
    self, segment: int, place: int, variables: Mapping[str, Any]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns [n, r] rows of the source and [n, r] bool, of a segment."""
    path = self._directory / f"{segment:06d}.npz"
    try:
      with np.load(path) as file:
        return file["rows"], file["mask"]
    except FileNotFoundError:
      pass
    except (OSError, ValueError, KeyError) as error:
      raise InputError(
        f"{path}: cannot be read ({error}); begin anew with another --workdir"
      ) from error
    if place:
      raise InputError(
        f"{path} is missing: the tuples that the stage was stopped among; "
        f"begin anew with another --workdir"
      )
    rows, mask = self._look(segment, variables)
    if hosts.is_primary():
      self._directory.mkdir(parents=True, exist_ok=True)
      unfinished = path.with_suffix(".unfinished")
      with open(unfinished, "wb") as file:
        np.savez_compressed(file, rows=rows.astype(np.int32), mask=mask)
      os.replace(unfinished, path)
    return rows, mask

  def _look(
    self, segment: int, variables: Mapping[str, Any]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Looks for the tuples of a segment."""
    options = self._options
    count = options.mine_every * options.batch_size
    first = segment * count
    if options.kind == "average_precision":
      return _groups(
        self._labels, count, options.per_class, seed=self._seed, first=first
      )
    number = len(self._labels)
    pool = np.arange(number)
    if 0 < options.pool < number:
      generator = random_generator(self._seed, _POOL, segment)
      pool = np.sort(generator.permutation(number)[: options.pool])
    if options.kind == "triplet":
      found, there = self._described(pool, variables)
      key = jax.random.fold_in(jax.random.key(self._seed), segment)
      rows, mask = mining.draw_triplets(
        jax.random.fold_in(key, _TRIPLETS),
        found,
        self._labels[pool],
        there,
        count=count,
        hardest=options.hardest,
        margin=options.loss.get("margin", 0.1),
      )
      mask = np.asarray(mask)[:, None] & np.ones((1, 3), bool)
      return pool[np.asarray(rows)], mask
    pairs = np.array([self._pairs(first + i) for i in range(count)])
    needed = np.unique(np.concatenate([pool, pairs[:, 0]]))
    found, there = self._described(needed, variables)
    queries = np.searchsorted(needed, pairs[:, 0])
    negatives, present = mining.hard_negatives(
      found[queries],
      self._labels[pairs[:, 0]],
      found,
      self._labels[needed],
      there & np.isin(needed, pool),
      count=options.negatives,
    )
    rows = np.concatenate([pairs, needed[np.asarray(negatives)]], axis=1)
    mask = np.concatenate([np.ones_like(pairs, bool), present], axis=1)
    return rows, mask

  def _described(
    self, numbers: np.ndarray, variables: Mapping[str, Any]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Describes photographs: [n, d] and [n] bool, which can be read."""
    size = _DESCRIBED * jax.local_device_count()
    rows = np.resize(numbers, -(-len(numbers) // size) * size)
    batches = pipeline.tuple_batches(
      _tuples(self._options, self._source, rows[:, None], None, seed=None),
      batch_size=size,
      **self._loader,
    )
    found, there = [], []
    for batch in progress.track(
      batches, label="mining", unit="batch", total=len(rows) // size
    ):
      self.skipped.update(batches.skipped)
      there.append(batch["mask"][:, 0])
      batch = _without_sizes(batch, self._options)
      found.append(self._describe(variables, batch))
    return (
      np.concatenate(found)[: len(numbers)],
      np.concatenate(there)[: len(numbers)],
    )


def validation_batches(
  options: RankingOptions,
  data: landmarks.Dataset,
  *,
  count: int,
) -> Callable[[], Iterable[Mapping[str, Any]]]:
  """Returns what makes the validation batches, any number of times the same.

  Tuples of photographs that are not trained on, their negatives drawn by
  chance.

  Args:
    options: of the stage.
    data: whose validation photographs are taken.
    count: photographs, at most; 0 for as many as there are.
  """
  labels = np.asarray(data.validation.labels)
  _, sizes = np.unique(labels, return_counts=True)
  if len(sizes) < 2 or sizes.max() < 2:
    return tuple
  count = min(count or len(labels), len(labels))
  batches = max(1, count // (options.photographs * options.batch_size))
  tuples = batches * options.batch_size
  if options.kind == "average_precision":
    rows, mask = _groups(
      labels, tuples, options.per_class, seed=_VALIDATION_SEED, first=0
    )
  else:
    pairs = MatchingPairs(labels, None, seed=_VALIDATION_SEED)
    rows = np.array(
      [
        [*pairs(i), *_others(labels, pairs(i)[0], options.photographs - 2, i)]
        for i in range(tuples)
      ]
    )
    mask = np.ones(rows.shape, bool)

  def batches_of() -> Iterator[Mapping[str, Any]]:
    for batch in pipeline.tuple_batches(
      _tuples(options, data.validation, rows, mask, seed=None),
      batch_size=options.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ):
      yield _without_sizes(batch, options)

  return batches_of


def _tuples(
  options: RankingOptions,
  source: Source,
  rows: np.ndarray,
  mask: np.ndarray | None,
  *,
  seed: int | None,
  first: int = 0,
) -> Tuples:
  return Tuples(
    source,
    rows,
    side=options.crop,
    mask=mask,
    resize=options.resize,
    augmentation=Augmentation.from_config(options.augmentation),
    seed=seed,
    first=first,
  )


def _without_sizes(
  batch: Mapping[str, Any], options: RankingOptions
) -> dict[str, Any]:
  """Leaves out the sizes of windows: they fill their array."""
  return {
    name: value
    for name, value in batch.items()
    if name != "sizes" or not options.resize
  }


def _groups(
  labels: np.ndarray, count: int, size: int, *, seed: int, first: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws groups of photographs of one class, all classes in turn.

  Returns:
    [count, size] rows and [count, size] bool: small classes leave gaps.
  """
  classes, sizes = np.unique(labels, return_counts=True)
  classes = classes[sizes > 1]
  if not len(classes):
    raise InputError("no class has two photographs; there is nothing to rank")
  rows = np.zeros((count, size), np.int64)
  mask = np.zeros((count, size), bool)
  orders = {}
  for i in range(count):
    cycle, place = divmod(first + i, len(classes))
    if cycle not in orders:
      generator = random_generator(seed, _GROUPS, cycle)
      orders = {cycle: generator.permutation(classes)}
    members = np.flatnonzero(labels == orders[cycle][place])
    generator = random_generator(seed, _GROUPS, cycle, place)
    chosen = generator.permutation(members)[:size]
    rows[i, : len(chosen)] = chosen
    mask[i, : len(chosen)] = True
  return rows, mask


def _others(
  labels: np.ndarray, query: int, count: int, position: int
) -> Sequence[int]:
  """Draws photographs of other classes than the query's."""
  others = np.flatnonzero(labels != labels[query])
  generator = random_generator(_VALIDATION_SEED, _NEGATIVES, position)
  return generator.choice(others, count).tolist()


def _describer(
  model: checkpoint.Model,
) -> Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], np.ndarray]:
  """Builds (variables, batch of [n, 1] photographs) -> [n, d] descriptors."""
  network = model.network
  network = network.clone(backbone=network.backbone.clone(axis_name=None))

  @functools.partial(jax.pmap, in_axes=(None, 0))
  def describe(variables, batch):
    sizes = batch.get("sizes")
    return network.apply(
      variables,
      model.normalisation(batch["pixels"][:, 0]),
      None if sizes is None else sizes[:, 0],
    )

  def describe_all(variables, batch):
    devices = jax.local_device_count()
    found = describe(
      dict(variables),
      {
        name: batch[name].reshape(devices, -1, *batch[name].shape[1:])
        for name in ("pixels", "sizes")
        if name in batch
      },
    )
    return np.asarray(found).reshape(-1, found.shape[-1])

  return describe_all
