"""Stored features of labelled photographs, and batches of them.

The class of a photograph is the first folder of its path. What a batch holds
depends on the seed and its number alone.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from delf_jax.data import class_selection
from delf_jax.data.photograph_list import PhotographList
from delf_jax.errors import InputError
from delf_jax.features import selection, store

SAMPLINGS = ("photograph", "class")

# What stores of different photographs may differ in.
_WHERE = ("photos", "features")


@dataclasses.dataclass(frozen=True)
class Part:
  """Photographs, of which each is (number of its store, number in it).

  Attributes:
    places: [n, 2] int.
    labels: [n] int32.
  """

  places: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
  """Features to train and to validate on.

  Attributes:
    stores: of one kind of feature, with the same settings.
    train: what to train on.
    validation: other photographs of the same classes, maybe none.
    names: of the classes.
    geometry: what joins a descriptor; see `features.selection.inputs`.
    problems: (path, reason) of what was left out.
  """

  stores: tuple[store.Store, ...]
  train: Part
  validation: Part
  names: tuple[str, ...]
  geometry: tuple[str, ...]
  problems: tuple[tuple[str, str], ...]

  @property
  def settings(self) -> dict[str, Any]:
    """Those that the features were extracted with."""
    return self.stores[0].settings

  @property
  def channels(self) -> int:
    """Dimensions of the inputs."""
    return self.stores[0].dim + len(self.geometry)

  def inputs(self, place: Sequence[int]) -> np.ndarray:
    """Returns the inputs of all of a photograph's features."""
    number, i = place
    return selection.inputs(self.stores[number].features(i), self.geometry)

  def summary(self) -> str:
    """Describes the photographs in a few lines for people."""
    lines = [
      f"{self.settings['kind']} features of {len(self.names):,} landmarks",
      f"  training    {len(self.train.labels):,} photographs",
      f"  validation  {len(self.validation.labels):,} photographs",
    ]
    return "\n".join([*lines, *(f"  {why}: {p}" for p, why in self.problems)])


def open_labelled(
  stores: Sequence[str],
  *,
  geometry: Sequence[str] = selection.GEOMETRY,
  validation_share: float = 0.1,
  min_photographs: int = 3,
  exclude: str = "",
  seed: int = 0,
) -> LabelledFeatures:
  """Opens stores whose photographs lie in a folder a landmark.

  Args:
    stores: directories that `delf_jax.extract` wrote, all with the same
      settings.
    geometry: see `features.selection.inputs`.
    validation_share: see `data.class_selection.select`, as for the rest.
    min_photographs: of a class, all stores together.
    exclude: a file of names of classes to leave out, or "".
    seed: of the hold-out.

  Raises:
    InputError: if a store is none, they differ in their settings, the features
      were not extracted here, photographs lie in no folder, or too few classes
      are left.
  """
  if not stores:
    raise InputError(
      "no features to learn on; give --config.data.stores=STORE, which "
      "delf_jax.extract writes"
    )
  opened = tuple(store.open_store(path) for path in stores)
  _check_alike(opened)
  paths, places, classes, problems = [], {}, {}, []
  for number, one in enumerate(opened):
    counts = np.diff(one.offsets)
    for i, path in enumerate(one.paths):
      name, inside, _ = path.partition("/")
      if not inside:
        raise InputError(
          f"{one.directory}: {path!r} lies in no folder, whose name would be "
          f"its landmark; extract a folder of folders, one a landmark"
        )
      if not counts[i]:
        problems.append((path, "has no features and is left out"))
        continue
      # Two stores may hold the same paths, of different photographs.
      key = f"{number}/{path}"
      places[key] = (number, i)
      paths.append((key, classes.setdefault(name, len(classes))))
  photographs = class_selection.select(
    PhotographList(
      root=", ".join(one.directory for one in opened),
      paths=[key for key, _ in paths],
      labels=np.array([label for _, label in paths], np.int32),
      names=tuple(classes),
      validation=None,
      problems=tuple(problems),
    ),
    validation_share=validation_share,
    min_photographs=min_photographs,
    exclude=exclude,
    seed=seed,
  ).photographs
  found = np.array([places[key] for key in photographs.paths])
  # By name: the order of the stores' rows changes nothing.
  order = np.argsort(np.array(photographs.paths))
  parts = {
    held_out: order[photographs.validation[order] == held_out]
    for held_out in (False, True)
  }
  return LabelledFeatures(
    stores=opened,
    train=Part(found[parts[False]], photographs.labels[parts[False]]),
    validation=Part(found[parts[True]], photographs.labels[parts[True]]),
    names=tuple(photographs.names),
    geometry=tuple(geometry),
    problems=photographs.problems,
  )


def _check_alike(opened: Sequence[store.Store]) -> None:
  """Refuses stores that cannot be learned on together."""
  first = opened[0]
  if "max_features" not in first.settings:
    raise InputError(
      f"{first.directory}: features of the kind {first.settings['kind']!r} "
      f"cannot be extracted again, so nothing can be selected of them later; "
      f"give stores that delf_jax.extract wrote"
    )
  for one in opened[1:]:
    differing = sorted(
      key
      for key in first.settings.keys() | one.settings.keys()
      if key not in _WHERE and first.settings.get(key) != one.settings.get(key)
    )
    if differing:
      raise InputError(
        f"{one.directory}: extracted with another {', '.join(differing)} than "
        f"{first.directory}; extract both alike"
      )


def statistics(
  data: LabelledFeatures, *, seed: int, photographs: int = 200
) -> dict[str, np.ndarray]:
  """Returns mean and deviation of the inputs, [c] each, of a seeded sample."""
  order = np.random.default_rng(seed).permutation(len(data.train.labels))
  sample = np.concatenate(
    [data.inputs(place) for place in data.train.places[order[:photographs]]],
    dtype=np.float64,
  )
  deviation = sample.std(axis=0)
  return {
    "mean": sample.mean(axis=0).astype(np.float32),
    # What never changes tells nothing apart.
    "deviation": np.where(deviation > 1e-6, deviation, 1).astype(np.float32),
  }


def training_batch(
  data: LabelledFeatures,
  number: int,
  *,
  seed: int,
  batch_size: int,
  features: int,
  sampling: str = "class",
) -> dict[str, np.ndarray]:
  """Draws a batch.

  Args:
    data: of which `train` is drawn from.
    number: of the batch.
    seed: of the stage.
    batch_size: photographs, drawn independently.
    features: of each, drawn anew whenever it is; of fewer, all.
    sampling: "photograph", or "class": every class as often, and then one of
      its photographs.

  Returns:
    {"inputs": [b, features, c] float32, "mask": [b, features] bool, "labels":
    [b] int32}.
  """
  generator = np.random.default_rng([seed, number])
  labels = data.train.labels
  if sampling == "class":
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(len(data.names) + 1))
    drawn = generator.integers(len(data.names), size=batch_size)
    rows = by_class[generator.integers(starts[drawn], starts[drawn + 1])]
  else:
    rows = generator.integers(len(labels), size=batch_size)
  chosen = []
  for row in rows:
    found = data.inputs(data.train.places[row])
    chosen.append(found[generator.permutation(len(found))[:features]])
  return {**pad(chosen, features), "labels": labels[rows]}


def validation_batches(
  data: LabelledFeatures, *, batch_size: int, features: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the photographs of `validation`, each with its first features.

  The last batch is filled up with empty photographs of label -1.

  Args:
    data: of which `validation` is taken.
    batch_size: photographs.
    features: of each, at most.
  """
  part = data.validation
  for start in range(0, len(part.labels), batch_size):
    places = part.places[start : start + batch_size]
    labels = np.full(batch_size, -1, np.int32)
    labels[: len(places)] = part.labels[start : start + batch_size]
    chosen = [data.inputs(place)[:features] for place in places]
    empty = np.zeros((0, data.channels), np.float32)
    chosen += [empty] * (batch_size - len(places))
    yield {**pad(chosen, features), "labels": labels}


def pad(rows: Sequence[np.ndarray], count: int) -> dict[str, np.ndarray]:
  """Stacks [n_i, c] arrays into "inputs" [b, count, c] and "mask"."""
  inputs = np.zeros((len(rows), count, rows[0].shape[1]), np.float32)
  mask = np.zeros((len(rows), count), bool)
  for i, one in enumerate(rows):
    inputs[i, : len(one)] = one
    mask[i, : len(one)] = True
  return {"inputs": inputs, "mask": mask}
