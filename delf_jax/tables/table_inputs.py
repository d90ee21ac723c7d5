"""What a row of a table needs: photographs, features, options of the search."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np

from delf_jax import (
  checkpoint,
  extraction,
  extractors,
  feature_cache,
  index,
  match_score,
  retrieval,
)
from delf_jax.data import folder, landmarks, retrieval_sets
from delf_jax.data.retrieval_sets import RetrievalSet
from delf_jax.data.sources import FileSource
from delf_jax.errors import InputError
from delf_jax.feature_cache import Selection
from delf_jax.features import pyramid
from delf_jax.features.reduction import Reduction
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.models.lift import Lift
from delf_jax.options import parse_options

# Kinds of features that need a checkpoint.
_LEARNED = ("delf", "lift", "global", "selected")

# So many are extracted where fewer are asked for: rows that differ in their
# number share them.
_SHARED_FEATURES = 1000
# Of a PCA that rows with fewer dimensions share, and photographs it is learned
# on.
_SHARED_DIMS = 512
_PCA_PHOTOGRAPHS = 200
# Of a kind of index, where the paper says so: 8,000 words, 10 sub-vectors of 5
# bits, 5 words a query descriptor, up to 10,000 entries of each.
_INDEX_OPTIONS = {
  "inverted_file": {
    "words": 8000,
    "subvectors": 10,
    "bits": 5,
    "probes": 5,
    "visit": 50_000,
  }
}


def search_options(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of the search that a config sets.

  They are what `measurement.evaluate` takes.
  """
  if settings["features.kind"] == "global":
    return {
      "expansion": settings["expansion.neighbours"],
      "alpha": settings["expansion.alpha"],
      "database_neighbours": settings["expansion.database"],
      "database_alpha": settings["expansion.alpha"],
    }
  options = {
    path.rpartition(".")[2]: value
    for path, value in settings.items()
    if path.startswith("verification.") or path in ("neighbours", "candidates")
  }
  options["expansion"] = settings["expansion.neighbours"]
  calibration = options.pop("calibration")
  if calibration:
    options["calibration"] = match_score.read_calibration(calibration)
  return options


def index_options(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of the index that a config sets."""
  if settings["features.kind"] == "global":
    return {}  # no index is asked
  kind = settings["index.kind"]
  options = {**_INDEX_OPTIONS.get(kind, {})}
  if kind == "kd_tree":
    options["leaves"] = settings["index.leaves"]
  return options | parse_options(settings["index.options"])


def check(settings: Mapping[str, Any]) -> None:
  """Looks at what can be known to be wrong before anything is made or read.

  Raises:
    InputError: if a value is none that its option has, or a checkpoint is
      missing.
  """
  kind = settings["features.kind"]
  _check_choice(settings, "features.kind", (*_LEARNED, *extractors.HANDCRAFTED))
  _check_choice(settings, "features.score", get_args(pyramid.Score))
  _check_choice(settings, "index.kind", index.KINDS)
  signature = inspect.signature(retrieval.search).parameters
  for path in settings:
    if path.startswith("verification.") and path != "verification.calibration":
      annotation = signature[path.rpartition(".")[2]].annotation
      if get_origin(annotation) is Literal:
        _check_choice(settings, path, get_args(annotation))
  if kind == "selected":
    _find_selector(_checkpoint(settings))
  elif kind in _LEARNED:
    checkpoint.find_model(_checkpoint(settings))


def _find_selector(source: str) -> None:
  if checkpoint.find_selector(source) is None:
    raise InputError(
      f"{source}: no finished selection; give a run of delf_jax.train_selection"
    )


def _check_choice(
  settings: Mapping[str, Any], path: str, choices: Sequence[str]
) -> None:
  if settings[path] not in choices:
    raise InputError(
      f"config.{path} {settings[path]!r}: expected one of {', '.join(choices)}"
    )


def open_dataset(
  settings: Mapping[str, Any], data: str, cache: str | os.PathLike
) -> RetrievalSet:
  """Opens the dataset of a measurement.

  Args:
    settings: of the measurement.
    data: where it is. Of "json", a folder with `photos`, `ground_truth.json`
      and, if there are, `distractors`; dataset.options may name others in it,
      and a folder of `clutter`.
    cache: where synthetic landmarks are written if `data` is "".

  Raises:
    InputError: if it is not there.
  """
  name = settings["dataset.name"]
  options = parse_options(settings["dataset.options"])
  count = settings["dataset.distractors"]
  if name == "synthetic" and not data:
    data = os.fspath(Path(cache) / f"synthetic-{feature_cache.digest(options)}")
  if not data:
    raise InputError(
      f"--data is missing: the folder of {name!r}; --config.dataset.name="
      f"synthetic needs none, and neither does the variant small"
    )
  drawn_here = name in ("synthetic", "json")
  if name == "synthetic":
    options = _written(data, options)
  elif name == "json":
    data, options = _own_folder(data, options)
  elif count >= 0:
    options |= {"distractors": count, "seed": settings["dataset.seed"]}
  try:
    opened = retrieval_sets.open_set(name, data, **options)
  except TypeError as error:
    raise InputError(f"config.dataset: {error}") from error
  if drawn_here and count >= 0:
    opened = _fewer_distractors(opened, count, settings["dataset.seed"])
  return opened


def _own_folder(
  data: str, options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
  """Finds photographs, ground truth and distractor queries of a user's own."""
  options = dict(options)
  photos = os.path.join(data, options.pop("photos", "photos"))
  truth = options.pop("ground_truth", "ground_truth.json")
  options["ground_truth"] = os.path.join(data, truth)
  others = os.path.join(data, options.pop("distractors", "distractors"))
  if os.path.isdir(others):
    options["distractors"] = others
  if "clutter" in options:
    options["clutter"] = [os.path.join(data, options["clutter"])]
  return photos, options


def _written(data: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves out the number of distractors where they are written already."""
  written = (Path(data) / "ground_truth.json").exists()
  return {
    name: value
    for name, value in options.items()
    if not (written and name == "distractors")
  }


def _fewer_distractors(
  opened: RetrievalSet, count: int, seed: int
) -> RetrievalSet:
  """Draws distractor queries; fewer are the first of more."""
  there = len(opened.distractors)
  if count > there:
    raise InputError(
      f"config.dataset.distractors is {count}, and there are {there}; give a "
      f"smaller number, or -1 for all"
    )
  order = np.random.default_rng(seed).permutation(there)[:count]
  return dataclasses.replace(
    opened, distractors=tuple(opened.distractors[i] for i in order)
  )


def open_features(
  settings: Mapping[str, Any], cache: str | os.PathLike
) -> tuple[extractors.Extractor, Selection]:
  """Opens the features of a measurement.

  What is extracted is shared with other rows: features of one network, set of
  scales and score, 1000 at least, with the largest PCA; the row's part of them
  is selected afterwards.

  Args:
    settings: of the measurement.
    cache: where learned reductions are kept.

  Raises:
    InputError: if there is no such kind or checkpoint.
  """
  kind = settings["features.kind"]
  count = settings["features.max_features"]
  max_side = settings["features.max_side"]
  selection = Selection(
    max_features=count, min_score=settings["features.score_threshold"]
  )
  most = max(count, _SHARED_FEATURES)
  if kind in extractors.HANDCRAFTED:
    return (
      extractors.open_extractor(kind, max_side=max_side, max_features=most),
      selection,
    )
  if kind == "global":
    return _global_features(settings), selection
  source = _checkpoint(settings)
  if kind == "selected":
    _find_selector(source)
    return (
      extractors.open_extractor(source, max_side=max_side, max_features=count),
      selection,
    )
  model = _load(source)
  if isinstance(model.network, Lift) != (kind == "lift"):
    raise InputError(
      f"config.features.kind {kind!r}: {source!r} is a checkpoint of "
      f"{type(model.network).__name__}"
    )
  if kind == "lift":
    return (
      extractors.open_extractor(source, max_side=max_side, max_features=most),
      selection,
    )
  options = {
    **model.extraction,
    "scales": tuple(map(float, settings["features.scales"])),
    "score": settings["features.score"],
    "score_threshold": 0.0,
    "iou_threshold": settings["features.iou_threshold"],
    "max_features": most,
  }
  model = dataclasses.replace(model, extraction=options)
  dims = settings["features.pca"]
  reduction, learned = model.reduction, "as stored"
  if dims == 0:
    reduction, learned = None, "none"
  elif dims > (0 if reduction is None else len(reduction.components)):
    reduction, learned = _learned_reduction(
      model, source, max(dims, _SHARED_DIMS), settings, Path(cache)
    )
  if dims > 0:
    selection = dataclasses.replace(selection, dims=dims)
  model = dataclasses.replace(model, reduction=reduction)
  extractor = extractors.Extractor(
    extract=_lazy_extractor(model, max_side),
    settings={
      "kind": "delf",
      "fingerprint": model.fingerprint,
      "max_side": max_side,
      "reduction": learned,
      **options,
    },
    source=extractors.source_of(source),
    max_side=max_side,
  )
  return extractor, selection


def _global_features(settings: Mapping[str, Any]) -> extractors.Extractor:
  """Opens global descriptors: with the checkpoint's whitening, or none."""
  source = _checkpoint(settings)
  model = _load(source)
  if not isinstance(model.network, GlobalDescriptor):
    raise InputError(f"{source!r} is a checkpoint of local features")
  dims = settings["features.pca"]
  if dims > 0:
    raise InputError(
      "config.features.pca is of local features; of global descriptors -1 "
      "takes the whitening of the checkpoint and 0 none"
    )
  sides = settings["features.sides"]
  extractor = extractors.global_extractor(
    dataclasses.replace(model, reduction=None) if dims == 0 else model,
    source,
    max_side=settings["features.max_side"],
    **({"sides": sides} if sides else {}),
  )
  whitened = model.reduction is not None and dims != 0
  return dataclasses.replace(
    extractor, settings={**extractor.settings, "whitened": whitened}
  )


@functools.lru_cache(maxsize=4)
def _load(source: str) -> checkpoint.Model:
  return checkpoint.load_model(source)


def _lazy_extractor(
  model: checkpoint.Model, max_side: int
) -> extractors.Extract:
  """Compiles when the first photograph comes, if one does."""

  @functools.cache
  def extractor() -> Callable:
    return extractors.delf_extractor(model, max_side=max_side)

  return lambda photograph: extractor()(photograph)


def _checkpoint(settings: Mapping[str, Any]) -> str:
  named = settings["features.checkpoint"]
  if named.startswith("@"):
    path = settings.get(f"checkpoints.{named[1:]}")
    if path:
      return path
    raise InputError(
      f"needs the checkpoint {named[1:]!r}: give a training run with "
      f"--config.checkpoints.{named[1:]}=RUN"
    )
  if not named:
    raise InputError(
      "give a training run with --config.features.checkpoint=RUN"
    )
  return named


def _learned_reduction(
  model: checkpoint.Model,
  source: str,
  dims: int,
  settings: Mapping[str, Any],
  cache: Path,
) -> tuple[Reduction, str]:
  """Learns a PCA, or reads it from the cache; also returns its digest."""
  channels = model.network.descriptor_channels
  dims = min(dims, channels)
  if settings["features.pca"] > dims:
    raise InputError(
      f"config.features.pca is {settings['features.pca']}, and the features "
      f"of {source!r} have {channels} dimensions"
    )
  photographs = settings["features.pca_photographs"]
  name = feature_cache.digest(
    [model.fingerprint, model.extraction, dims, os.path.abspath(photographs)]
  )
  path = cache / "reductions" / f"{name}.npz"
  if not path.exists():
    learned = extraction.learn_reduction(
      dataclasses.replace(model, reduction=None),
      _training_photographs(model, source, photographs),
      dim=dims,
      photographs=_PCA_PHOTOGRAPHS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(unfinished, **dataclasses.asdict(learned))
    unfinished.replace(path)
  with np.load(path) as arrays:
    return Reduction(**arrays), name


def _training_photographs(
  model: checkpoint.Model, source: str, photographs: str
) -> Sequence[Mapping[str, Any]]:
  """Opens what a PCA is learned on."""
  if photographs:
    paths = list(folder.list_photographs(photographs).paths)
    return FileSource(photographs, paths, np.zeros(len(paths), np.int32))
  dataset = dict(model.provenance.get("config", {}).get("dataset", {}))
  if not dataset:
    raise InputError(
      f"{source!r} does not say what it was trained on, which the PCA is to be "
      f"learned on; give training photographs with "
      f"--config.features.pca_photographs=DIR"
    )
  dataset |= parse_options(dataset.pop("options", ()))
  try:
    return landmarks.open_dataset(**dataset).train
  except InputError as error:
    raise InputError(
      f"what {source!r} was trained on, which the PCA is to be learned on, is "
      f"not here ({error}); give training photographs with "
      f"--config.features.pca_photographs=DIR"
    ) from error
