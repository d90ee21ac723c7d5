"""Builds the index that finds nearest descriptors in a store.

  python -m delf_jax.build_index --store STORE --kind graph --output INDEX
  python -m delf_jax.build_index --store STORE --output INDEX --update
  python -m delf_jax.build_index --store STORE --output INDEX --remove a.jpg

KIND, and how large a collection it is for (README.md has the measurements):
  exact          compares with every descriptor; to some hundred thousand
  graph          finds nearly all neighbours in 30 microseconds; to some million
  kd_tree        the paper's small-scale index: 8 bits a dimension, no rival of
                 the graph
  inverted_file  the paper's large-scale index: 8 bytes a descriptor, or 48 with
                 --option rerank=4 for better neighbours; to a billion
  faiss, scann   those libraries, where they are installed
  bag_of_words   ranks photographs by the visual words that they share: 12 bytes
                 a descriptor, or 44 with --option soft=3, which finds more;
                 --option vocabulary=INDEX takes the words of a bag of words
                 that was built from other photographs
--option NAME=VALUE sets an option of the kind, such as probes=20.

--update adds the photographs that are new in the store to an inverted file or a
bag of words, and --remove takes some out; indexes of other kinds are built
again.

Then: python -m delf_jax.query --index INDEX --photo FILE
"""

import functools
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from delf_jax import database, index, options, program, progress
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.index import streaming


def build(
  store_directory: str,
  kind: str,
  output: str,
  *,
  seed: int = 0,
  **options: Any,
) -> int:
  """Builds and saves an index; returns the number of its descriptors.

  Args:
    store_directory: what `delf_jax.extract` wrote.
    kind: one of `index.KINDS`.
    output: the index directory.
    seed: of kinds that have one.
    **options: of the kind's `build`.

  Raises:
    InputError: if the store is missing, damaged, unfinished or empty, a
      descriptor unfit, or an option unknown.
  """
  opened = store.open_store(store_directory)
  if not opened.offsets[-1]:
    raise InputError(
      f"{store_directory!r} holds no features; extract photographs first"
    )
  if kind != "exact":
    options = {"seed": seed, **options}
  total = int(opened.offsets[-1])

  def batches():
    return progress.track(
      database.descriptor_batches(opened),
      label="index",
      unit="batch",
      total=-(-total // database.BATCH),
    )

  if kind == index.BAG_OF_WORDS:
    built = index.call(
      index.module(kind).build,
      kind,
      batches,
      np.diff(opened.offsets),
      database.kind_of_features(opened.settings),
      functools.partial(progress.track, label="words", unit="round"),
      **options,
    )
  elif kind == streaming.KIND:
    folder = os.path.dirname(os.path.abspath(output))
    os.makedirs(folder, exist_ok=True)
    built = streaming.build(
      batches,
      total,
      folder=folder,
      **options,
    )
  else:
    descriptors = np.empty((total, opened.dim), np.float32)
    row = 0
    for batch in database.descriptor_batches(opened):
      descriptors[row : row + len(batch)] = batch
      row += len(batch)
    built = index.build_index(kind, descriptors, **options)
  built.save(output, provenance=database.provenance(opened))
  return total


def update(
  store_directory: str,
  output: str,
  *,
  add: bool = False,
  remove: Sequence[str] = (),
) -> tuple[int, int]:
  """Adds a store's new photographs to an index, or removes some.

  Args:
    store_directory: the store that the index was built from, with or without
      more photographs.
    output: the index directory, whose index is replaced when the new one is
      whole.
    add: add the photographs that the store has got since.
    remove: paths of photographs, as the store has them.

  Returns:
    how many photographs were added and removed.

  Raises:
    InputError: if the index is of a kind that cannot, or of another store, or
      a photograph is not in it.
  """
  meta = index.read_meta(output)
  words = meta["kind"] == index.BAG_OF_WORDS
  if meta["kind"] != streaming.KIND and not words:
    raise InputError(
      f"{output!r} is a {meta['kind']} index, which cannot change; build it "
      f"again, or build an {streaming.KIND}"
    )
  opened = store.open_store(store_directory)
  origin = meta["provenance"]
  database.check_origin(output, origin, opened)
  count = origin["photographs"]
  changed = index.open_index(output)
  gone = set(origin["removed"])
  added = len(opened.paths) - count if add else 0
  if add:
    start = int(opened.offsets[count])
    batches = database.descriptor_batches(opened, start=start)
    if words:
      changed.add(batches, np.diff(opened.offsets[count:]))
    else:
      for batch in batches:
        changed.add(batch)
    count = len(opened.paths)
  numbers = {path: i for i, path in enumerate(opened.paths[:count])}
  sizes = np.diff(opened.offsets)
  for path in remove:
    number = numbers.get(path)
    if number is None or number in gone:
      raise InputError(f"{path!r} is not among the photographs of {output!r}")
    before = [earlier for earlier in gone if earlier < number]
    if words:
      changed.remove(number - len(before))
    else:
      first = int(opened.offsets[number]) - int(sizes[before].sum())
      changed.remove(first, first + int(sizes[number]))
    gone.add(number)
  changed.save(
    output,
    provenance=database.provenance(opened, photographs=count, removed=gone),
  )
  return added, len(remove)


def main() -> int:
  """Builds as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  if values.update or values.remove:
    added, removed = update(
      values.store, values.output, add=values.update, remove=values.remove
    )
    print(
      f"{values.output}: {added} photographs added, {removed} removed in "
      f"{program.elapsed(start)}"
    )
    return 0
  count = build(
    values.store,
    values.kind,
    values.output,
    seed=values.seed,
    **options.parse_options(values.option),
  )
  print(
    f"{values.output}: {values.kind} index of {count} descriptors in "
    f"{program.elapsed(start)}"
  )
  return 0


if __name__ == "__main__":
  flags.DEFINE_string(
    "store", None, "what delf_jax.extract wrote.", required=True
  )
  flags.DEFINE_enum("kind", "graph", index.KINDS, "of index.")
  flags.DEFINE_string("output", None, "the index, a directory.", required=True)
  flags.DEFINE_multi_string(
    "option", [], "name=value, of the kind of index; may be repeated."
  )
  flags.DEFINE_bool("update", False, "add what is new in the store.")
  flags.DEFINE_multi_string(
    "remove", [], "a photograph to remove; may be repeated."
  )
  flags.DEFINE_integer("seed", 0, "of what is random.")
  program.run(main)
