"""What a config may say of a training stage, and the batches that it makes.

A stage classifies landmarks ("descriptors", "attention", "joint"), learns
without labels that two views of one place look the same ("correspondence") or
what another network extracts ("distillation"), or compares whole photographs
("ranking").
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from delf_jax import checkpoint, distillation_stage, look_alikes
from delf_jax.data import landmarks, pair_sources, pipeline
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.views import Views
from delf_jax.errors import InputError
from delf_jax.global_descriptors import mined_batches, ranking_stage
from delf_jax.global_descriptors.ranking_stage import RankingOptions

PAIRED = "correspondence"
DISTILLED = distillation_stage.STAGE
UNLABELLED = (PAIRED, DISTILLED)
RANKED = ranking_stage.STAGE
# Of the pairs of views that a run is validated on, whatever its own seed.
_VALIDATION_SEED = 1_000_003


@dataclasses.dataclass(frozen=True)
class StageOptions:
  """What `config.descriptors`, `.attention` and `.joint` may say.

  Attributes:
    resize: side of the central square of a photograph.
    crop: side of the random window in it.
    batch_size: over all devices of all processes.
    steps: how many.
    schedule: keyword arguments of `optimisers.make_schedule`.
    optimiser: keyword arguments of `optimisers.make_optimiser`.
    scales: one is drawn for every batch, which is reduced by it.
    sampling: "photograph" or "class".
    augmentation: fields of `data.augmentation.Augmentation`.
    mixup: see `training.step.make_train_step`, as for the rest.
    accumulate: parts of a batch.
    ema_decay: of running means of the parameters.
    reconstruction_weight: of the autoencoder's error.
    frozen: groups of parameters that stay as they are.
  """

  resize: int
  crop: int
  batch_size: int
  steps: int
  schedule: Mapping[str, Any]
  optimiser: Mapping[str, Any]
  scales: tuple[float, ...] = (1.0,)
  sampling: str = "photograph"
  augmentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  mixup: float = 0.0
  accumulate: int = 1
  ema_decay: float = 0.0
  reconstruction_weight: float = 10.0
  frozen: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewOptions:
  """What a config may say of a stage that sees pairs of views.

  Attributes:
    sources: see `data.pair_sources.open_pairs`.
    crop: side of the views.
    batch_size: in pairs, over all devices of all processes.
    steps: how many.
    schedule: keyword arguments of `optimisers.make_schedule`.
    optimiser: keyword arguments of `optimisers.make_optimiser`.
    views: fields of `data.views.Views`.
    augmentation: fields of `data.augmentation.Augmentation`.
    held_out: sources to validate on; none of them has to have a path.
    accumulate: parts of a batch, one after the other.
    ema_decay: of running means of the parameters.
    frozen: groups of parameters that stay as they are.
  """

  sources: Mapping[str, Mapping[str, Any]]
  crop: int
  batch_size: int
  steps: int
  schedule: Mapping[str, Any]
  optimiser: Mapping[str, Any]
  views: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  augmentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  held_out: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  accumulate: int = 1
  ema_decay: float = 0.0
  frozen: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOptions(ViewOptions):
  """What `config.correspondence` may say; parts of a batch are not compared.

  Attributes:
    points: of a pair, at most.
    family: of so many pairs of a batch, all but the first look like that to
      the network that the stage begins with (`look_alikes.find`); 1: all are
      drawn by chance.
    loss: keyword arguments of `training.correspondence.contrast`.
    reconstruction_weight: of the error of the decoder.
  """

  points: int = 64
  family: int = 1
  loss: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reconstruction_weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationOptions(ViewOptions):
  """What `config.distillation` may say; it learns from each view by itself.

  Attributes:
    teacher: the checkpoint that is learned from: a path, or `delf_small`.
  """

  teacher: str

  # What pairs of views need of points, which are not looked at here.
  points = 1
  family = 1


Options = StageOptions | ViewOptions | RankingOptions


def read_options(kind: type, values: Mapping[str, Any], name: str) -> Any:
  """Builds a dataclass of options from a part of a config.

  Raises:
    InputError: naming what is missing or unknown.
  """
  fields = {field.name: field for field in dataclasses.fields(kind)}
  unknown = sorted(set(values) - set(fields))
  missing = sorted(
    key
    for key, field in fields.items()
    if key not in values
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  )
  if unknown or missing:
    says = [f"has no option {key!r}" for key in unknown]
    says += [f"needs {key!r}" for key in missing]
    raise InputError(
      f"config.{name} {' and '.join(says)}; it takes {', '.join(fields)}"
    )
  return kind(**values)


def read_stage(stage: str, config: Mapping[str, Any]) -> Options:
  """Reads what a config says of a stage; see `read_options`."""
  kinds = {
    PAIRED: PairOptions,
    DISTILLED: DistillationOptions,
    RANKED: RankingOptions,
  }
  kind = kinds.get(stage, StageOptions)
  return read_options(kind, config[stage], stage)


def to_train(config: Mapping[str, Any]) -> list[str]:
  """Returns the stages of a config that have steps, else the last alone.

  Raises:
    InputError: if what it says of any stage is unfit.
  """
  names = list(config["stages"])
  return [name for name in names if read_stage(name, config).steps] or names[
    -1:
  ]


def check_unlabelled(names: Iterable[str]) -> None:
  """Refuses stages that cannot learn without classes.

  Raises:
    InputError: naming one.
  """
  for name in names:
    if name not in UNLABELLED:
      raise InputError(
        f"the stage {name!r} needs landmarks, and the photographs have no "
        f"classes; use another --config.dataset.kind, or "
        f"--config.stages=\"('{PAIRED}',)\""
      )


def check_batch(stage: str, options: Options, devices: int) -> None:
  """Refuses batches that do not divide.

  Raises:
    InputError: naming the size.
  """
  size = options.batch_size
  processes = jax.process_count()
  each = size // (processes * devices)
  if each * processes * devices != size or each % options.accumulate:
    raise InputError(
      f"config.{stage}.batch_size {size} does not divide among {processes} "
      f"processes of {devices} devices and {options.accumulate} parts"
    )
  if isinstance(options, PairOptions) and not 1 <= options.family <= size:
    raise InputError(
      f"config.{stage}.family {options.family} is none of a batch of {size}; "
      f"give 1 for pairs drawn by chance, or a few"
    )
  mixes = isinstance(options, StageOptions) and options.mixup
  if mixes and (each // options.accumulate) % 2:
    raise InputError(
      f"config.{stage}.mixup pairs photographs: {each // options.accumulate} "
      f"a device and part cannot be paired; double the batch_size"
    )


def training_batches(
  options: StageOptions | ViewOptions,
  data: landmarks.Dataset,
  *,
  seed: int,
  start: int,
  stride: int,
  loader: Mapping[str, Any],
  model: checkpoint.Model | None = None,
  directory: Path | None = None,
) -> pipeline.Batches:
  """Opens the batches of this process.

  Args:
    options: of the stage.
    data: what classifying stages see.
    seed: of the stage.
    start: batches consumed before.
    stride: of the features in pixels.
    loader: `workers` and `threads` that read.
    model: that the stage begins with, to which a family looks alike.
    directory: keeps what look-alikes were found, for a run that goes on.

  Raises:
    InputError: if sources are unfit.
  """
  shared = {
    "seed": seed,
    "start": start,
    "batch_size": options.batch_size,
    "crop": options.crop,
    "augmentation": Augmentation.from_config(options.augmentation),
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
    **loader,
  }
  if isinstance(options, ViewOptions):
    source = pair_sources.open_pairs(options.sources)
    alike = None
    if options.family > 1:
      alike = look_alikes.found_before(
        directory, source, model, side=options.crop
      )
    return pipeline.pair_batches(
      source,
      points=options.points,
      spacing=stride,
      views=Views.from_config(options.views),
      look_alikes=alike,
      family=options.family,
      **shared,
    )
  return pipeline.training_batches(
    data.train,
    resize=options.resize,
    scales=options.scales,
    sampling=options.sampling,
    **shared,
  )


def validation_batches(
  options: Options,
  data: landmarks.Dataset,
  *,
  count: int,
  stride: int,
) -> Callable[[], Iterable[Mapping[str, Any]]]:
  """Returns what makes the validation batches of this process, any number of
  times the same.

  Args:
    options: of the stage.
    data: what classifying stages are validated on.
    count: photographs, or pairs of views, at most; 0 for all.
    stride: of the features in pixels.
  """
  if isinstance(options, RankingOptions):
    return mined_batches.validation_batches(options, data, count=count)
  shared = {
    "batch_size": options.batch_size,
    "crop": options.crop,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }
  if isinstance(options, StageOptions):
    if not len(data.validation):
      return tuple
    return functools.partial(
      pipeline.evaluation_batches,
      data.validation,
      resize=options.resize,
      limit=count or None,
      **shared,
    )
  if not any(source.get("path") for source in options.held_out.values()):
    return tuple
  source = pair_sources.open_pairs(options.held_out)
  count = min(count or len(source), len(source))
  return functools.partial(
    pipeline.pair_batches,
    source,
    seed=_VALIDATION_SEED,
    last=max(1, count // options.batch_size),
    points=options.points,
    spacing=stride,
    views=Views.from_config(options.views),
    augmentation=Augmentation.from_config(options.augmentation),
    **shared,
  )
