r"""Trains LIFT on patches, stage by stage, and writes a model ready to extract.

First the descriptor, then the orientation that makes it match, then the
detector that finds where (Yi et al., ECCV 2016).

  python -m delf_jax.train_patches --config configs/lift.py:small \
    --workdir RUN --config.data.sources.pool.path=PHOTOGRAPHS

The same command continues a run that was stopped, whatever stopped it, and
ends in the same bits. RUN receives config.json, metrics.jsonl, tensorboard/,
checkpoints/, report/index.html and model/, which

  python -m delf_jax.extract --photos DIR --features RUN --output STORE

and the other programs take as --features.
"""

import contextlib
import dataclasses
import json
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from delf_jax import (
  checkpoint,
  hosts,
  journal,
  program,
  progress,
  run_config,
  stages,
  training_report,
)
from delf_jax.data import pipeline
from delf_jax.errors import InputError
from delf_jax.features import reduction
from delf_jax.models.lift import PATCH
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.training import detector_start, lift, optimisers
from delf_jax.training import step as steps
from delf_jax.training.quadruplets import Cutting

# What the detector may begin with.
STARTS = ("blobs", "random")
_LITTLE = 0.02


@dataclasses.dataclass(frozen=True)
class Validation:
  """What `config.validation` may say.

  Attributes:
    every: steps, and at the end of a stage.
    pairs: of views, at most.
  """

  every: int
  pairs: int


@dataclasses.dataclass(frozen=True)
class Run:
  """What the stages of a run share.

  Attributes:
    config: all of it, as plain values.
    workdir: where everything goes.
    validation: when and on how much to validate.
    journal: of figures.
    signals: that end the run.
  """

  config: Mapping[str, Any]
  workdir: Path
  validation: Validation
  journal: journal.Journal
  signals: hosts.StopSignals


def train(config: ConfigDict, workdir: str) -> Path:
  """Runs every stage of a config and writes the model.

  Args:
    config: as `configs/lift.py` makes it.
    workdir: receives everything; an earlier run there is continued.

  Returns:
    the directory of the model checkpoint.

  Raises:
    InputError: if photographs, config or earlier checkpoints are unfit.
    hosts.Stopped: if a signal ended it; what was done is saved.
  """
  workdir = Path(workdir)
  settings = json.loads(config.to_json_best_effort())
  with hosts.StopSignals() as signals:
    run_config.keep(settings, workdir)
    model = initial_model(settings)
    with journal.Journal(workdir, enabled=hosts.is_primary()) as figures:
      run = Run(
        config=settings,
        workdir=workdir,
        validation=stages.read_options(
          Validation, settings["validation"], "validation"
        ),
        journal=figures,
        signals=signals,
      )
      for stage in settings["stages"]:
        model = run_stage(stage, run, model)
      model = dataclasses.replace(model, reduction=learn_reduction(run, model))
    checkpoint.save_model(
      workdir / checkpoint.MODEL,
      network=model.network,
      variables={"params": model.variables["params"]},
      normalisation=model.normalisation,
      reduction=model.reduction,
      extraction=model.extraction,
      provenance=model.provenance,
    )
    if hosts.is_primary():
      page = training_report.write(
        workdir,
        records=journal.read(workdir),
        title=f"delf_jax: {workdir.name}",
      )
      print(f"curves: {page}")
    hosts.wait("the model is written")
  return workdir / checkpoint.MODEL


def initial_model(settings: Mapping[str, Any]) -> checkpoint.Model:
  """Builds the three networks with new variables.

  Raises:
    InputError: if the config says no known start.
  """
  if settings["start"] not in STARTS:
    raise InputError(
      f"config.start {settings['start']!r}: expected one of {', '.join(STARTS)}"
    )
  network = checkpoint.build_lift(**settings["model"])
  variables = jax.jit(network.init)(
    jax.random.key(settings["seed"]), jnp.zeros((1, PATCH, PATCH))
  )
  variables = jax.tree.map(np.array, variables)
  if settings["start"] == "blobs":
    # What it adds to is chance, but little of it: all of it can learn.
    filters = variables["params"]["detector"]["conv"]["kernel"]
    filters *= _LITTLE
    filters += detector_start.blob_filters(network.kernel, network.hinges)[
      :, :, None
    ]
  return checkpoint.Model(
    network=network,
    variables=variables,
    normalisation=NORMALISATIONS[settings["normalisation"]],
    reduction=None,
    extraction=settings["extraction"],
    provenance={"config": settings},
    fingerprint="",
  )


def run_stage(
  stage: str, run: Run, model: checkpoint.Model
) -> checkpoint.Model:
  """Trains one stage, from its newest checkpoint if there is one.

  Returns:
    the model with the variables that the stage ends with.
  """
  options, cutting, loss = read_stage(stage, run.config)
  devices = jax.local_device_count()
  _check_batch(stage, options, devices)
  schedule = optimisers.make_schedule(steps=options.steps, **options.schedule)
  optimiser = optimisers.make_optimiser(schedule, **options.optimiser)
  objective = lift.make_objective(
    model.network,
    stage=stage,
    normalise=model.normalisation,
    cutting=cutting,
    loss=loss,
    axis_name="batch",
  )
  train_step = jax.pmap(
    steps.make_train_step(
      model.network,
      optimiser,
      stage=stage,
      normalise=model.normalisation,
      objective=objective,
      axis_name="batch",
    ),
    axis_name="batch",
    in_axes=(None, 0),
    out_axes=None,
    donate_argnums=0,
  )

  def evaluate(params, batch):
    _, (_, figures) = objective(params, {}, batch, jax.random.key(0))
    return jax.lax.pmean(figures, "batch")

  evaluation_step = jax.pmap(
    evaluate, axis_name="batch", in_axes=(None, 0), out_axes=None
  )
  seed = zlib.crc32(f"{run.config['seed']} {stage}".encode())
  checkpoints = checkpoint.RunCheckpoints(
    run.workdir / "checkpoints" / stage, keep=run.config["keep"]
  )
  state, taken = checkpoints.restore(
    steps.initial_state(
      stage,
      {"params": model.variables["params"], "batch_stats": {}},
      optimiser,
      jax.random.key(seed),
    )
  )
  first = hosts.agree(int(state.step), "the newest checkpoint")
  spacing = run.config["spacing"]
  held_out = stages.validation_batches(
    options, None, count=run.validation.pairs, stride=spacing
  )
  batches = stages.training_batches(
    options,
    None,
    seed=seed,
    start=taken,
    stride=spacing,
    loader=run.config["loader"],
  )
  run.journal.resume(stage, first)
  meter = journal.Meter(2 * options.batch_size)
  names = run.config["stages"]
  before = sum(
    run.config[name]["steps"] for name in names[: names.index(stage)]
  )
  recent = []
  with (
    contextlib.closing(batches),
    contextlib.closing(checkpoints),
    run.signals.deferred(),
    progress.bar(label=stage, unit="step", total=options.steps) as bar,
  ):
    bar.update(first)
    for step in range(first + 1, options.steps + 1):
      waited = batches.waited
      batch = next(batches)
      state, figures = train_step(state, _shards(batch, devices, step - 1))
      recent.append({name: float(value) for name, value in figures.items()})
      _check_finite(recent[-1], stage, step, batch["names"])
      meter.step(batches.waited - waited)
      bar.update()
      last = step == options.steps
      stopped = run.signals.stop_after(before + step)
      if step % run.config["log_every"] == 0 or last:
        means = _means(recent)
        recent.clear()
        means["learning_rate"] = float(schedule(step - 1))
        means |= meter.read()
        run.journal.write(stage, step, means)
        bar.set_postfix_str(progress.describe(means), refresh=False)
      if (step % run.validation.every == 0 or last) and not stopped:
        with meter.paused():
          found = [
            evaluation_step(state.params, _shards(held, devices, step))
            for held in _opened(held_out)
          ]
        if found:
          run.journal.write(stage, step, _means(found), kind="validation")
      if step % run.config["save_every"] == 0 or last or stopped:
        with meter.paused():
          checkpoints.save(step, state, batches=step)
      if stopped:
        raise hosts.Stopped(f"{stage}, step {step} of {options.steps}")
  variables = {"params": jax.tree.map(np.asarray, state.params)}
  return dataclasses.replace(model, variables=variables)


def learn_reduction(run: Run, model: checkpoint.Model) -> reduction.Reduction:
  """Learns L2 -> PCA -> L2 on descriptors of training patches.

  The descriptor's last pooling gives no negative number, so that all have much
  in common and a unit length leaves little between them: what counts is that
  the projection takes their mean away.

  Raises:
    InputError: if there are too few patches.
  """
  settings = run.config["reduction"]
  stage = run.config["stages"][0]
  options, cutting, _ = read_stage(stage, run.config)
  describe = jax.jit(
    lambda params, batch, key: lift.describe(
      model.network,
      params,
      batch,
      key,
      normalise=model.normalisation,
      cutting=cutting,
    )
  )
  seed = zlib.crc32(f"{run.config['seed']} reduction".encode())
  batches = stages.training_batches(
    options,
    None,
    seed=seed,
    start=0,
    stride=run.config["spacing"],
    loader=run.config["loader"],
  )
  found = []
  with contextlib.closing(batches):
    for number in range(settings["batches"]):
      batch = dict(next(batches))
      del batch["names"]
      key = jax.random.fold_in(jax.random.key(seed), number)
      values, mask = describe(model.variables["params"], batch, key)
      found.append(np.asarray(values)[np.asarray(mask)])
  try:
    return reduction.fit(np.concatenate(found), settings["dim"])
  except ValueError as error:
    raise InputError(
      f"{error}; give more --config.reduction.batches"
    ) from error


def read_stage(
  stage: str, config: Mapping[str, Any]
) -> tuple[stages.PairOptions, Cutting, lift.Loss]:
  """Reads what a config says of a stage.

  Raises:
    InputError: if there is no such stage, or an option is missing or unknown.
  """
  if stage not in lift.STAGES:
    raise InputError(
      f"unknown stage {stage!r}; expected one of {', '.join(lift.STAGES)}"
    )
  values = {**config["data"], **config[stage]}
  cutting = stages.read_options(
    Cutting, values.pop("cutting", {}), f"{stage}.cutting"
  )
  options = stages.read_options(stages.PairOptions, values, stage)
  loss = stages.read_options(lift.Loss, options.loss, f"{stage}.loss")
  if cutting.side < PATCH:
    raise InputError(
      f"config.{stage}.cutting.side {cutting.side} is less than the "
      f"{PATCH} pixels that are cut out of it"
    )
  return options, cutting, loss


def _check_batch(stage: str, options: stages.PairOptions, devices: int) -> None:
  """Refuses batches that leave a device without another pair to compare."""
  stages.check_batch(stage, options, devices)
  if options.batch_size < 2 * devices * jax.process_count():
    raise InputError(
      f"config.{stage}.batch_size {options.batch_size} leaves a device with "
      f"one pair, and nothing to tell it from; give two or more each"
    )


def _shards(
  batch: Mapping[str, Any], devices: int, step: int
) -> dict[str, np.ndarray]:
  """Shares a batch out to the devices, with the steps done before it."""
  shards = {
    name: value.reshape(devices, -1, *value.shape[1:])
    for name, value in batch.items()
    if name != "names"
  }
  return {**shards, "step": np.full(devices, step, np.int32)}


def _opened(make):
  """Yields the batches that `make` opens, and closes them."""
  batches = make()
  if isinstance(batches, pipeline.Batches):
    with batches:
      yield from batches


def _means(recent) -> dict[str, float]:
  return {
    name: float(np.mean([figures[name] for figures in recent]))
    for name in recent[-1]
  }


def _check_finite(
  figures: Mapping[str, float], stage: str, step: int, names: list[str]
) -> None:
  if not np.isfinite(figures["loss"]):
    raise InputError(
      f"the loss of {stage} is {figures['loss']} at step {step}, on "
      f"{', '.join(names[:8])}; try a smaller "
      f"--config.{stage}.schedule.learning_rate with a new --workdir"
    )


def main() -> int:
  """Trains as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  config = run_config.read(values.config)
  try:
    model = train(config, values.workdir)
  except hosts.Stopped as stopped:
    run_config.say_how_to_resume("train_patches", stopped)
    return 0
  print(f"trained in {program.elapsed(start)}; the model is in {model}")
  return 0


if __name__ == "__main__":
  config_flags.DEFINE_config_file(
    "config", None, "configs/lift.py, with :variant.", lock_config=True
  )
  flags.DEFINE_string("workdir", None, "directory of the run.", required=True)
  flags.mark_flag_as_required("config")
  program.run(main)
