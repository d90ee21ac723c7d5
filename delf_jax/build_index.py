"""Builds the index that finds nearest descriptors in a store.

  python -m delf_jax.build_index --store STORE --kind graph --output INDEX

graph answers in a fraction of a millisecond and misses a few neighbours; exact
compares with every descriptor, and is faster to build and to open: the better
choice below some hundred thousand descriptors.

Then: python -m delf_jax.query --index INDEX --photo FILE
"""

import time

from absl import flags

from delf_jax import database, index, program
from delf_jax.errors import InputError
from delf_jax.features import store


def build(
  store_directory: str, kind: str, output: str, *, seed: int = 0
) -> int:
  """Builds and saves an index; returns the number of its descriptors.

  Raises:
    InputError: if the store is missing, damaged, unfinished or empty.
  """
  opened = store.open_store(store_directory)
  descriptors = opened.descriptors()
  if not len(descriptors):
    raise InputError(
      f"{store_directory!r} holds no features; extract photographs first"
    )
  options = {"seed": seed} if kind == "graph" else {}
  built = index.build_index(kind, descriptors, **options)
  built.save(output, provenance=database.provenance(opened))
  return len(descriptors)


def main() -> int:
  """Builds as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  count = build(values.store, values.kind, values.output, seed=values.seed)
  print(
    f"{values.output}: {values.kind} index of {count} descriptors in "
    f"{program.elapsed(start)}"
  )
  return 0


if __name__ == "__main__":
  flags.DEFINE_string(
    "store", None, "what delf_jax.extract wrote.", required=True
  )
  flags.DEFINE_enum("kind", "graph", ["graph", "exact"], "of index.")
  flags.DEFINE_string("output", None, "the index, a directory.", required=True)
  flags.DEFINE_integer("seed", 0, "of the graph.")
  program.run(main)
