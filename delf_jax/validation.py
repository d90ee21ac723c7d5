"""What a run is judged by while it trains: accuracy, score maps, retrieval."""

import dataclasses
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from delf_jax import checkpoint, extraction, extractors, hosts, measurement
from delf_jax.data import (
  examples,
  retrieval_sets,
  synthetic_folder,
)
from delf_jax.data.photographs import decode_photograph
from delf_jax.data.retrieval_sets import RetrievalSet
from delf_jax.errors import InputError
from delf_jax.evaluation import metrics
from delf_jax.models.delf import Delf
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.models.normalisation import Normalisation

RETRIEVAL_SETS = ("", "held_out", "synthetic", "folder")
# Synthetic landmarks that neither training nor the demo's report sees.
FIRST_UNSEEN = 500


def classification(
  step: Callable[..., Mapping[str, jax.Array]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """Averages an evaluation step over batches.

  Args:
    step: (variables, batch with a leading axis of devices) -> sums of "loss",
      "correct" and "count" over all devices of all processes.
    variables: of the network.
    batches: of `pipeline.evaluation_batches`, or of `pipeline.pair_batches`.

  Returns:
    "loss" and "accuracy"; none if there is nothing to average.
  """
  devices = jax.local_device_count()
  totals = {"loss": 0.0, "correct": 0.0, "count": 0.0}
  for batch in batches:
    arrays = {
      name: value.reshape(devices, -1, *value.shape[1:])
      for name, value in batch.items()
      if name != "names"
    }
    for name, value in step(variables, arrays).items():
      totals[name] += float(value)
  if not totals["count"]:
    return {}
  return {
    "loss": totals["loss"] / totals["count"],
    "accuracy": totals["correct"] / totals["count"],
  }


@dataclasses.dataclass(frozen=True)
class ScoreMap:
  """The scores of every feature position of one photograph.

  Attributes:
    name: of the photograph.
    pixels: [s, s, 3] uint8, its central square.
    l2_norm: [h', w'] float32, of the features.
    attention: [h', w'] float32.
    stride: feature (i, j) looks at pixel (stride * i, stride * j).
    mask: [s, s] bool, where the landmark is; None if that is not known.
  """

  name: str
  pixels: np.ndarray
  l2_norm: np.ndarray
  attention: np.ndarray
  stride: int
  mask: np.ndarray | None


def make_scorer(
  network: Delf, normalise: Normalisation
) -> Callable[[Mapping[str, Any], np.ndarray], tuple[jax.Array, jax.Array]]:
  """Builds the compiled (variables, pixels [s, s, 3]) -> norms, attention."""
  backbone = network.backbone.clone(axis_name=None)
  network = network.clone(backbone=backbone)

  @jax.jit
  def score(variables, pixels):
    features, attention = network.apply(
      variables, normalise(pixels[None]), method="dense"
    )
    return jnp.linalg.norm(features[0], axis=-1), attention[0]

  return score


def score_maps(
  scorer: Callable[..., tuple[jax.Array, jax.Array]],
  variables: Mapping[str, Any],
  source: Any,
  *,
  count: int,
  side: int,
  stride: int,
) -> list[ScoreMap]:
  """Scores photographs spread evenly over a source, at one scale.

  Args:
    scorer: of `make_scorer`.
    variables: of the network.
    source: random access to {"image", "name", "mask" (optional)}.
    count: how many photographs at most; broken ones are left out.
    side: of the central square that is looked at.
    stride: of the features.
  """
  found = []
  count = min(count, len(source))
  for i in np.linspace(0, len(source) - 1, count).astype(int):
    example = source[int(i)]
    name = str(example.get("name", i))
    try:
      photograph = decode_photograph(example["image"], name=name)
    except InputError:
      continue
    pixels = _central_square(photograph.pixels, side)
    norms, attention = scorer(variables, pixels)
    mask = None
    if "mask" in example:
      with Image.open(io.BytesIO(example["mask"])) as image:
        levels = np.asarray(image.convert("L"))
      mask = _central_square(levels, side) > 127
    found.append(
      ScoreMap(
        name=name,
        pixels=pixels,
        l2_norm=np.asarray(norms),
        attention=np.asarray(attention),
        stride=stride,
        mask=mask,
      )
    )
  return found


def _central_square(pixels: np.ndarray, side: int) -> np.ndarray:
  """Resizes the largest central square of [h, w(, 3)] uint8 pixels."""
  top, left, bottom, right = examples.window(
    *pixels.shape[:2], side, side, (0, 0)
  )
  return np.asarray(
    Image.fromarray(pixels).resize(
      (side, side),
      Image.Resampling.BILINEAR,
      box=(left, top, right, bottom),
    )
  )


def separation(maps: Iterable[ScoreMap]) -> dict[str, float]:
  """Measures how well the scores tell landmark from clutter.

  Returns:
    "attention_auc" and "l2_norm_auc": area under the ROC curve over all
    feature positions of all photographs together; empty if no photograph
    comes with a mask, or the masks hold only landmark or only clutter.
  """
  truth, norms, attention = [], [], []
  for one in maps:
    if one.mask is None:
      continue
    rows, columns = (
      np.minimum(np.arange(n) * one.stride, side - 1)
      for n, side in zip(one.l2_norm.shape, one.mask.shape, strict=True)
    )
    truth.append(one.mask[np.ix_(rows, columns)].ravel())
    norms.append(one.l2_norm.ravel())
    attention.append(one.attention.ravel())
  if not truth:
    return {}
  positive = np.concatenate(truth)
  if positive.all() or not positive.any():
    return {}
  return {
    "attention_auc": metrics.area_under_roc(
      np.concatenate(attention), positive
    ),
    "l2_norm_auc": metrics.area_under_roc(np.concatenate(norms), positive),
  }


def open_retrieval_set(
  kind: str,
  source: Any,
  directory: Path,
  *,
  photos: str = "",
  ground_truth: str = "",
  distractors: str = "",
  seed: int = 0,
  landmarks: int = 8,
  per_class: int = 5,
) -> RetrievalSet | None:
  """Finds or makes the small benchmark that a run validates on.

  Args:
    kind: "" for none; "held_out" takes the validation photographs (a quarter
      of their landmarks become distractor queries); "synthetic" makes
      landmarks that training does not see; "folder" is your own.
    source: of the validation photographs.
    directory: receives what is made.
    photos: of "folder".
    ground_truth: of "folder".
    distractors: of "folder"; may be empty.
    seed: of "held_out" and "synthetic".
    landmarks: how many, of "synthetic".
    per_class: photographs of a landmark, of "held_out" and "synthetic".

  Raises:
    InputError: if the kind is unknown or there is too little to find.
  """
  if not kind:
    return None
  if kind == "folder":
    if not photos or not ground_truth:
      raise InputError(
        "config.validation.retrieval of kind 'folder' needs photos=DIR and "
        "ground_truth=FILE.json"
      )
    return retrieval_sets.open_set(
      "json",
      photos,
      ground_truth=ground_truth,
      distractors=distractors or None,
    )
  if (directory / "ground_truth.json").exists():
    pass  # an earlier run made it
  elif kind == "synthetic":
    synthetic_folder.write_folder(
      directory,
      seed=seed,
      num_landmarks=landmarks,
      views=per_class,
      first_landmark=FIRST_UNSEEN,
      clutter=2 * landmarks,
      distractors=2 * landmarks,
    )
  elif kind == "held_out":
    _write_held_out(source, directory, per_class=per_class, seed=seed)
  else:
    raise InputError(
      f"unknown kind {kind!r} of config.validation.retrieval; expected "
      f"{', '.join(map(repr, RETRIEVAL_SETS))}"
    )
  return retrieval_sets.open_set(
    "json",
    directory / "photos",
    ground_truth=directory / "ground_truth.json",
    distractors=directory / "distractors",
  )


def _write_held_out(
  source: Any, directory: Path, *, per_class: int, seed: int
) -> None:
  """Writes validation photographs as a benchmark; the ground truth last."""
  classes: dict[int, list[int]] = {}
  for i, label in enumerate(np.asarray(source.labels).tolist()):
    classes.setdefault(label, []).append(i)
  order = np.random.default_rng(seed).permutation(sorted(classes)).tolist()
  distractors = order[: len(order) // 4]
  queries = []
  for label in order:
    apart = label in distractors
    folder = directory / ("distractors" if apart else "photos") / f"{label:06d}"
    names = []
    for i in classes[label]:
      if len(names) == per_class:
        break
      image = source[i]["image"]
      try:
        decode_photograph(image, name=f"{i}")
      except InputError:
        continue
      folder.mkdir(parents=True, exist_ok=True)
      # The decoder looks at the content, not at the name.
      (folder / f"{i:08d}.jpg").write_bytes(image)
      names.append(f"{label:06d}/{i:08d}.jpg")
    if not apart and len(names) > 1:
      lists = {"easy": names[1:], "hard": [], "junk": []}
      queries.append({"query": names[0], **lists})
  if not queries or not (directory / "distractors").exists():
    raise InputError(
      "config.validation.retrieval 'held_out' needs validation photographs of "
      "four landmarks or more, two of each; add photographs, raise "
      "config.dataset.validation_share, or set the kind to ''"
    )
  truth = json.dumps({"queries": queries}, indent=1)
  (directory / "ground_truth.json").write_text(truth + "\n")


def retrieval(
  model: checkpoint.Model,
  benchmark: RetrievalSet,
  *,
  max_side: int,
  options: Mapping[str, Any],
) -> dict[str, float]:
  """Measures a model as `delf_jax.evaluate` does.

  Args:
    model: with its reduction.
    benchmark: what to search.
    max_side: photographs are reduced to this longest side.
    options: override `model.extraction`, of local features.

  Returns:
    "mAP" (easy and hard) and "R@90", from 0 to 1; an undefined one is left
    out.
  """
  if isinstance(model.network, GlobalDescriptor):
    extractor = extractors.global_extractor(
      model, "training", max_side=max_side
    )
  else:
    extractor = extractors.Extractor(
      extract=extractors.delf_extractor(model, max_side=max_side, **options),
      settings={"kind": "delf", "max_side": max_side},
      source="training",
      max_side=max_side,
    )
  with tempfile.TemporaryDirectory() as output:
    found = measurement.evaluate(extractor, benchmark, output=output)
  figures = {"mAP": found["mAP_medium"], "R@90": found["R@90"]}
  return {
    name: value / 100
    for name, value in figures.items()
    if value is not None and math.isfinite(value)
  }


@dataclasses.dataclass(frozen=True)
class Options:
  """When and on what a run is validated.

  Attributes:
    every: steps between validations; the end of a stage is always one.
    photographs: to classify, at most; 0 for all.
    score_maps: photographs with masks to measure the scores on, at most.
    retrieval: keyword arguments of `open_retrieval_set`.
    retrieval_every: validations between two retrievals; the last of a stage
      always has one.
    max_side: longest side of the photographs of retrieval.
    extraction: overrides `config.extraction` in retrieval, to be quick.
    reduction_photographs: that a reduction is learned on for retrieval.
    select: "last", or the figure whose best checkpoint a stage ends with.
  """

  every: int = 1000
  photographs: int = 2000
  score_maps: int = 40
  retrieval: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"kind": ""}
  )
  retrieval_every: int = 1
  max_side: int = 512
  extraction: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"scales": (0.5, 1.0), "max_features": 300}
  )
  reduction_photographs: int = 40
  select: str = "last"


class Validator:
  """Validates one stage; see `Options` for what it measures."""

  def __init__(
    self,
    options: Options,
    *,
    stage: str,
    step: Callable[..., Mapping[str, jax.Array]],
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    model: checkpoint.Model,
    train: Any,
    source: Any,
    benchmark: RetrievalSet | None,
    side: int,
    reduction_dim: int,
  ) -> None:
    """Prepares the validation of a stage.

    Args:
      options: of all stages.
      stage: a key of `training.step.STAGES`.
      step: the compiled evaluation step.
      batches: makes the batches that it sees; none make no figures.
      model: the network with its settings; its variables do not matter.
      train: training photographs, for the reduction.
      source: validation photographs, for score maps.
      benchmark: for retrieval, or None.
      side: of the central square that score maps show.
      reduction_dim: of the features that retrieval compares; global
        descriptors are compared as they are.
    """
    self._options = options
    self._step = step
    self._train = train
    self._source = source
    self._benchmark = benchmark
    self._batches = batches
    self._side = side
    self._reduction_dim = reduction_dim
    self._global = isinstance(model.network, GlobalDescriptor)
    self._has_attention = not self._global and stage not in (
      "descriptors",
      "correspondence",
    )
    if not self._global:
      score = model.extraction["score"] if self._has_attention else "l2_norm"
      model = dataclasses.replace(
        model, extraction={**model.extraction, "score": score}
      )
    self._model = model
    self._scorer = make_scorer(model.network, model.normalisation)

  def __call__(
    self, variables: Mapping[str, Any], *, with_retrieval: bool
  ) -> dict[str, float]:
    """Returns "loss", "accuracy" and what else the data allow.

    Every process calls this; retrieval and score maps are the first's alone.
    """
    figures = classification(self._step, variables, self._batches())
    if not hosts.is_primary():
      return figures
    variables = jax.tree.map(np.asarray, dict(variables))
    if self._has_attention and len(self._source):
      figures |= separation(self.maps(variables, self._options.score_maps))
    if with_retrieval and self._benchmark is not None:
      model = dataclasses.replace(self._model, variables=variables)
      reduction = None
      if not self._global:
        reduction = extraction.learn_reduction(
          model,
          self._train,
          dim=self._reduction_dim,
          photographs=self._options.reduction_photographs,
        )
      figures |= retrieval(
        dataclasses.replace(model, reduction=reduction),
        self._benchmark,
        max_side=self._options.max_side,
        options=self._options.extraction,
      )
    return figures

  def maps(self, variables: Mapping[str, Any], count: int) -> list[ScoreMap]:
    """Returns the score maps of some validation photographs."""
    return score_maps(
      self._scorer,
      variables,
      self._source,
      count=count,
      side=self._side,
      stride=self._model.network.receptive_field.stride,
    )
