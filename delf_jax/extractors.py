"""What `--features` may name, opened.

The one place that knows what that is: a checkpoint, the name of one that comes
with the package, or one of `HANDCRAFTED`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from delf_jax import (
  checkpoint,
  lift_extraction,
  match_score,
  selected_extraction,
)
from delf_jax.data.photographs import (
  Photograph,
)
from delf_jax.errors import InputError
from delf_jax.features import (
  detectors,
  handcrafted,
  local_features,
  pyramid,
)
from delf_jax.features.local_features import LocalFeatures
from delf_jax.global_descriptors import global_extraction
from delf_jax.models import resnet
from delf_jax.models.delf import folded
from delf_jax.models.global_descriptor import GlobalDescriptor

HANDCRAFTED = (*handcrafted.KINDS, *detectors.KINDS)
MAX_SIDE = 1024
# What a checkpoint's directory may hold: the calibration of its own matches.
CALIBRATION = "calibration.json"
# Keyword arguments of `pyramid.make_extractor` that users may change.
OPTIONS = (
  "scales",
  "score",
  "score_threshold",
  "iou_threshold",
  "max_features",
  "resize",
)

Extract = Callable[[Photograph], LocalFeatures]


@dataclasses.dataclass(frozen=True)
class Extractor:
  """One kind of feature, ready to run.

  Attributes:
    extract: photograph -> its features, with locations in the pixels of the
      upright original; may be called from several threads.
    settings: all that the result depends on, as JSON.
    source: what `--features` named, to open the same extractor again.
    max_side: photographs are reduced to this longest side first.
    describe: of global descriptors, `extract` of a part of a photograph, which
      is seen at the resolution that the whole is seen at.
  """

  extract: Extract
  settings: Mapping[str, Any]
  source: str
  max_side: int
  describe: global_extraction.Describe | None = None


def open_extractor(
  features: str, *, max_side: int = MAX_SIDE, **options: Any
) -> Extractor:
  """Opens what `--features` names.

  Args:
    features: one of `HANDCRAFTED`, one of `checkpoint.NAMES`, or a checkpoint
      that `delf_jax.train`, `delf_jax.train_patches` or
      `delf_jax.train_selection` wrote.
    max_side: photographs are reduced to this longest side first.
    options: override what the checkpoint recommends (keyword arguments of
      `pyramid.make_extractor`, or of LIFT's `lift_features.make_extractor`); of
      handcrafted features, only `max_features`, and of selected ones `score`
      too.

  Raises:
    InputError: if there is no such thing or an option does not apply.
  """
  if features in HANDCRAFTED:
    unknown = sorted(options.keys() - {"max_features"})
    if unknown:
      raise InputError(
        f"{', '.join(unknown)}: not an option of {features}; it applies to "
        f"checkpoints alone"
      )
    count = options.get("max_features", 1000)
    settings = {"kind": features, "max_features": count, "max_side": max_side}
    extract = handcrafted.extract
    if features in detectors.KINDS:
      learned = detectors.fingerprint_of(features)
      settings |= {"fingerprint": learned} if learned else {}
      extract = functools.partial(detectors.extract, max_side=max_side)
    return Extractor(
      extract=lambda photograph: extract(
        photograph.pixels,
        kind=features,
        max_features=count,
        size=(photograph.height, photograph.width),
      ),
      settings=settings,
      source=features,
      max_side=max_side,
    )
  kind = kind_of(features)
  if checkpoint.find_selector(features) is not None:
    return _selecting_extractor(features, max_side=max_side, **options)
  model = checkpoint.load_model(features)
  if isinstance(model.network, GlobalDescriptor):
    return global_extractor(model, features, max_side=max_side, **options)
  unknown = sorted(options.keys() - set(OPTIONS))
  if unknown:
    raise InputError(
      f"{', '.join(unknown)}: no option of local features, of which "
      f"{features!r} is a checkpoint"
    )
  extraction = {**model.extraction, **options}
  settings = {
    "kind": kind,
    "fingerprint": model.fingerprint,
    "max_side": max_side,
    **extraction,
  }
  make = delf_extractor if kind == "delf" else lift_extraction.lift_extractor
  return Extractor(
    extract=make(model, max_side=max_side, **options),
    settings=settings,
    source=source_of(features),
    max_side=max_side,
  )


def source_of(features: str) -> str:
  """Returns what names the same features from any directory."""
  if features in HANDCRAFTED or checkpoint.shipped(features):
    return features
  return os.path.abspath(features)


def kind_of(features: str) -> str:
  """Returns the kind of what `--features` names, as settings name it.

  Raises:
    InputError: if there is no such thing.
  """
  if features in HANDCRAFTED:
    return features
  if not checkpoint.shipped(features) and not os.path.exists(features):
    raise InputError(
      f"{features}: no such checkpoint; expected a directory that "
      f"delf_jax.train wrote, or one of "
      f"{', '.join((*checkpoint.NAMES, *HANDCRAFTED))}"
    )
  if checkpoint.find_selector(features) is not None:
    return checkpoint.load_selector(features).features["kind"]
  return checkpoint.read_kind(features)


def global_extractor(
  model: checkpoint.Model,
  source: str | os.PathLike,
  *,
  max_side: int = MAX_SIDE,
  **options: Any,
) -> Extractor:
  """Opens a model that gives every photograph one descriptor.

  Args: see `open_extractor` and `global_extraction.settle`.
  """
  settled, max_side = global_extraction.settle(model, options, max_side)
  describe = global_extraction.describer(model, max_side=max_side, **settled)
  return Extractor(
    extract=lambda photograph: describe(
      photograph, (photograph.height, photograph.width)
    ),
    settings={
      "kind": "global",
      "fingerprint": model.fingerprint,
      "max_side": max_side,
      **settled,
    },
    source=source_of(os.fspath(source)),
    max_side=max_side,
    describe=describe,
  )


def _selecting_extractor(
  source: str, *, max_side: int, **options: Any
) -> Extractor:
  """Opens what `delf_jax.train_selection` wrote; see `open_extractor`.

  The kind of feature stays what it is, and so its calibration.
  """
  model = checkpoint.load_selector(source)
  unknown = sorted(options.keys() - {"max_features", "score"})
  if unknown:
    raise InputError(
      f"{', '.join(unknown)}: not an option of selected "
      f"{model.features['kind']} features"
    )
  detected = model.features["max_features"]
  chosen = {**model.extraction, **options}
  if chosen["max_features"] > detected:
    raise InputError(
      f"max_features {chosen['max_features']}: {source} selects from "
      f"{detected} features a photograph; ask for fewer"
    )
  base = reopen({**model.features, "max_side": max_side})
  return Extractor(
    extract=selected_extraction.selecting(base.extract, model, **chosen),
    settings={
      **base.settings,
      "fingerprint": model.fingerprint,
      "detected": detected,
      **chosen,
    },
    source=source_of(source),
    max_side=max_side,
  )


def reopen(
  settings: Mapping[str, Any], *, features: str | None = None
) -> Extractor:
  """Opens the extractor that a store was made with.

  Args:
    settings: of the store.
    features: the checkpoint, if it is no longer where it was.

  Raises:
    InputError: if it is not the same any more.
  """
  if settings["kind"] == "imported":
    raise InputError(
      f"the features of the index were imported from {settings['features']!r}, "
      f"and nothing here can extract their like from a photograph; search with "
      f"delf_jax.retrieval and features imported too"
    )
  names = (*OPTIONS, "max_side")
  if settings["kind"] == "global":
    names = (*global_extraction.OPTIONS, "max_side")
  extractor = open_extractor(
    features or settings["features"],
    **{name: settings[name] for name in names if name in settings},
  )
  for key in ("kind", "fingerprint"):
    if extractor.settings.get(key) != settings.get(key):
      raise InputError(
        f"{extractor.source!r} is not what the photographs of the index were "
        f"extracted with; give that checkpoint with --features, or extract "
        f"and index again"
      )
  return extractor


def calibration_of(
  settings: Mapping[str, Any], features: str | None = None
) -> match_score.Calibration:
  """Chooses the calibration for matches of a kind of feature.

  Args:
    settings: of a store or an extractor.
    features: the checkpoint; by default where the settings say it was.

  Returns:
    the checkpoint's own, `CALIBRATION` in its directory, if it has one; else
    what is shipped for features of its kind.

  Raises:
    InputError: if the checkpoint's own cannot be read.
  """
  kind = settings.get("kind", "")
  named = features or settings.get("features") or ""
  source = checkpoint.shipped(named) or Path(named)
  if named not in HANDCRAFTED:
    for directory in (source, source / "model"):
      if source.name and (directory / CALIBRATION).is_file():
        return match_score.read_calibration(directory / CALIBRATION)
  return match_score.shipped(kind)


def delf_extractor(
  model: checkpoint.Model, *, max_side: int = MAX_SIDE, **options: Any
) -> Extract:
  """Builds the extraction of one photograph by a model.

  Args:
    model: a loaded checkpoint.
    max_side: longest side of any photograph it will be given.
    options: override `model.extraction`.

  Raises:
    InputError: if features are to be selected by an attention head that the
      model does not have.
  """
  options = {**model.extraction, **options}
  score = options.get("score", "l2_norm")
  if score != "l2_norm" and not model.network.attention_hidden:
    raise InputError(
      f"this checkpoint has no attention head, so features cannot be selected "
      f"by {score!r}; use l2_norm"
    )
  network, variables = pyramid_network(model)
  extract = pyramid.make_extractor(network, **options)
  variables = jax.device_put(variables)
  learned = jax.device_put(model.reduction)

  def extract_one(photograph: Photograph) -> LocalFeatures:
    size = photograph.pixels.shape[:2]
    canvas = np.zeros(
      (1, *pyramid.canvas_for(*size, max_side=max_side), 3), np.uint8
    )
    canvas[0, : size[0], : size[1]] = photograph.pixels
    features = extract(variables, learned, canvas, np.array([size]))
    features = jax.tree.map(lambda leaf: leaf[0], jax.device_get(features))
    return _in_original_pixels(local_features.compact(features), photograph)

  return extract_one


def pyramid_network(
  model: checkpoint.Model,
) -> tuple[pyramid.Network, dict[str, Any]]:
  """Returns what the pyramid needs to know of a model, and its variables."""
  network, variables = folded(model.network, model.variables)
  field = network.receptive_field
  return (
    pyramid.Network(
      dense=lambda variables, images, sizes: network.apply(
        variables, images, sizes, method="dense"
      ),
      map_size=lambda size: resnet.map_size(size, network.feature_layers),
      normalise=model.normalisation,
      field_size=field.size,
      stride=field.stride,
      offset=field.offset,
    ),
    variables,
  )


def _in_original_pixels(
  features: LocalFeatures, photograph: Photograph
) -> LocalFeatures:
  """Undoes the reduction to `max_side` in locations and scales."""
  height, width = photograph.pixels.shape[:2]
  ratio = np.array(
    [photograph.height / height, photograph.width / width], np.float32
  )
  if np.all(ratio == 1):
    return features
  return features.replace(
    locations=features.locations * ratio[None, :],
    scales=features.scales * ratio.max(),
  )
