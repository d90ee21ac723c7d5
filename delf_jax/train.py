r"""Trains DELF in the paper's two steps and writes a model ready to extract.

First the descriptors learn by classifying landmarks (section 3.2), or without
labels, from two views of one place; then, with descriptors frozen, attention
learns by classifying (section 3.3.2), and last the reduction (L2 -> PCA -> L2)
is learned on selected features. Global descriptors (configs/siamac.py, dir.py)
learn by comparing photographs, the hardest to tell apart, and are whitened.

  python -m delf_jax.train --config configs/synthetic.py:small --workdir RUN

The part behind the colon is a variant; any value can be changed from the
command line: --config.descriptors.batch_size=16. The same command continues a
run that was stopped, whatever stopped it, and ends in the same bits.

RUN receives config.json, metrics.jsonl, tensorboard/, checkpoints/ and, at the
end, report/index.html (curves, and where the scores look) and model/, which

  python -m delf_jax.extract --photos DIR --features RUN --output STORE

and the other programs take as --features. A config with `sweep` is several
runs, RUN/NAME each, one after the other. Of several hosts each runs this
command, with --num_processes and so on (see launch/), on one shared RUN.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from delf_jax import (
  checkpoint,
  distillation_stage,
  extraction,
  hosts,
  initialisation,
  journal,
  program,
  progress,
  run_config,
  stages,
  training_report,
  validation,
)
from delf_jax.data import landmarks
from delf_jax.errors import InputError
from delf_jax.global_descriptors import (
  global_whitening,
  mined_batches,
  ranking_stage,
)
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.options import parse_options
from delf_jax.training import (
  correspondence,
  distillation,
  optimisers,
  ranking,
)
from delf_jax.training import step as steps

HEAT_MAPS = 8
# Steps that may be under way while the next batch is fetched.
AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Run:
  """What the stages of a run share.

  Attributes:
    config: all of it, as plain values.
    workdir: where everything goes.
    data: photographs to train and to validate on.
    model: the network with its settings.
    validation: when and on what to validate.
    benchmark: for retrieval while training, or None.
    journal: of figures.
    signals: that end the run.
  """

  config: Mapping[str, Any]
  workdir: Path
  data: landmarks.Dataset
  model: checkpoint.Model
  validation: validation.Options
  benchmark: validation.RetrievalSet | None
  journal: journal.Journal
  signals: hosts.StopSignals


def train(config: ConfigDict, workdir: str) -> Path:
  """Runs every stage of a config and writes the model.

  Args:
    config: as the files of `configs/` make it.
    workdir: receives everything; an earlier run there is continued.

  Returns:
    the directory of the model checkpoint.

  Raises:
    InputError: if data, config or earlier checkpoints are unfit.
    hosts.Stopped: if a signal ended it; what was done is saved.
  """
  workdir = Path(workdir)
  settings = json.loads(config.to_json_best_effort())
  with hosts.StopSignals() as signals:
    run_config.keep(settings, workdir)
    with hosts.primary_first("the data are prepared"):
      options = dict(settings["dataset"])
      options |= parse_options(options.pop("options", ()))
      data = landmarks.open_dataset(**options)
    hosts.agree(len(data.train), "the number of training photographs")
    if not data.names:
      stages.check_unlabelled(stages.to_train(settings))
    model = initialisation.initial_model(settings, len(data.names))
    options = stages.read_options(
      validation.Options, settings.get("validation", {}), "validation"
    )
    benchmark = None
    if hosts.is_primary():
      print(data.summary())
      benchmark = validation.open_retrieval_set(
        **options.retrieval,
        source=data.validation,
        directory=workdir / "validation",
      )
    with journal.Journal(workdir, enabled=hosts.is_primary()) as figures:
      run = Run(
        config=settings,
        workdir=workdir,
        data=data,
        model=model,
        validation=options,
        benchmark=benchmark,
        journal=figures,
        signals=signals,
      )
      seconds = {}
      for stage in stages.to_train(settings):
        start = time.perf_counter()
        run, validator = run_stage(stage, run)
        seconds[stage] = round(time.perf_counter() - start, 1)
    _write_model(run, validator, seconds)
    hosts.wait("the model is written")
  return workdir / checkpoint.MODEL


def run_stage(stage: str, run: Run) -> tuple[Run, validation.Validator]:
  """Trains one stage, from its newest checkpoint if there is one.

  Returns:
    the run with the variables that the stage ends with, and what validated
    them.
  """
  options = stages.read_stage(stage, run.config)
  devices = jax.local_device_count()
  stages.check_batch(stage, options, devices)
  learning = _learning(stage, options, run)
  network, ranked = learning.network, stage == stages.RANKED
  schedule = optimisers.make_schedule(steps=options.steps, **options.schedule)
  optimiser = optimisers.make_optimiser(schedule, **options.optimiser)
  train_step = jax.pmap(
    steps.make_train_step(
      network,
      optimiser,
      stage=stage,
      normalise=run.model.normalisation,
      accumulate=options.accumulate,
      ema_decay=options.ema_decay,
      frozen=options.frozen,
      axis_name="batch",
      **learning.step,
    ),
    axis_name="batch",
    in_axes=(None, 0),
    out_axes=None,
    donate_argnums=0,
  )
  seed = zlib.crc32(f"{run.config['seed']} {stage}".encode())
  select = run.validation.select
  open_checkpoints = functools.partial(
    checkpoint.RunCheckpoints,
    run.workdir / "checkpoints" / stage,
    keep=run.config["keep"],
    best_by=None if select == "last" else select,
  )
  checkpoints = open_checkpoints()
  if not checkpoints.steps:
    run = dataclasses.replace(run, model=learning.begin(run.model))
  state, taken = checkpoints.restore(
    steps.initial_state(
      stage,
      run.model.variables,
      optimiser,
      jax.random.key(seed),
      ema=options.ema_decay > 0,
      frozen=options.frozen,
    )
  )
  first = hosts.agree(int(state.step), "the newest checkpoint")
  stride = network.receptive_field.stride
  shared = {
    "seed": seed,
    "start": taken,
    "loader": run.config.get("loader", {}),
  }
  if ranked:
    batches = mined_batches.MinedBatches(
      options,
      run.data,
      model=run.model,
      directory=run.workdir / "mined" / stage,
      **shared,
    )
  else:
    batches = stages.training_batches(
      options,
      run.data,
      stride=stride,
      model=run.model,
      directory=run.workdir,
      **shared,
    )
  validate = validation.Validator(
    run.validation,
    stage=stage,
    step=jax.pmap(
      learning.evaluation_step,
      axis_name="batch",
      in_axes=(None, 0),
      out_axes=None,
    ),
    batches=stages.validation_batches(
      options, run.data, count=run.validation.photographs, stride=stride
    ),
    model=run.model,
    train=run.data.train,
    source=run.data.validation,
    benchmark=run.benchmark,
    side=options.resize
    if isinstance(options, stages.StageOptions)
    else options.crop,
    reduction_dim=run.config["reduction"]["dim"],
  )
  run.journal.resume(stage, first)
  meter = journal.Meter(options.batch_size)
  retrieval_steps = run.validation.every * run.validation.retrieval_every
  pending = collections.deque()
  recent = []
  names = run.config["stages"]
  before = sum(
    run.config[name]["steps"] for name in names[: names.index(stage)]
  )

  def settle(ahead: int) -> None:
    """Waits until at most `ahead` steps are under way; checks the others."""
    while len(pending) > ahead:
      number, figures, photographs = pending.popleft()
      figures = {name: float(value) for name, value in figures.items()}
      _check_finite(figures, stage, number, photographs)
      recent.append(figures)

  with (
    contextlib.closing(batches),
    contextlib.closing(checkpoints),
    run.signals.deferred(),
    progress.bar(label=stage, unit="step", total=options.steps) as bar,
  ):
    bar.update(first)
    for step in range(first + 1, options.steps + 1):
      if ranked:
        with meter.paused():
          batches.mine(state.variables)
      waited = batches.waited
      batch = next(batches)
      shards = {
        name: value.reshape(devices, -1, *value.shape[1:])
        for name, value in batch.items()
        if name != "names"
      }
      state, figures = train_step(state, shards)
      pending.append((step, figures, batch["names"]))
      settle(AHEAD)
      meter.step(batches.waited - waited)
      bar.update()
      last = step == options.steps
      stopped = run.signals.stop_after(before + step)

      if step % run.config["log_every"] == 0 or last:
        settle(0)
        means = {
          name: float(np.mean([figures[name] for figures in recent]))
          for name in recent[-1]
        }
        recent.clear()
        means["learning_rate"] = float(schedule(step - 1))
        means |= meter.read()
        run.journal.write(stage, step, means)
        bar.set_postfix_str(progress.describe(means), refresh=False)

      figures = None
      if (step % run.validation.every == 0 or last) and not stopped:
        settle(0)
        with meter.paused():
          try:
            with run.signals.deferred(False):
              figures = validate(
                state.variables,
                with_retrieval=last or step % retrieval_steps == 0,
              )
          except hosts.Stopped:
            stopped = True
        if figures:
          run.journal.write(stage, step, figures, kind="validation")

      if step % run.config["save_every"] == 0 or last or figures or stopped:
        settle(0)
        with meter.paused():
          checkpoints.save(step, state, batches=step, figures=figures)
      if stopped:
        raise hosts.Stopped(f"{stage}, step {step} of {options.steps}")
  if select != "last":
    hosts.wait("the checkpoints are written")
    with contextlib.closing(open_checkpoints()) as written:
      state, _ = written.restore(state, written.best())
  if batches.skipped and hosts.is_primary():
    name, reason = next(iter(batches.skipped.items()))
    print(
      f"{stage}: {len(batches.skipped)} photographs could not be used and were "
      f"replaced, first {name}: {reason}"
    )
  variables = jax.tree.map(np.asarray, state.variables)
  model = dataclasses.replace(run.model, variables=variables)
  return dataclasses.replace(run, model=model), validate


@dataclasses.dataclass(frozen=True)
class Learning:
  """How a stage learns.

  Attributes:
    network: as the stage trains it.
    step: keyword arguments of `steps.make_train_step` that its kind has.
    evaluation_step: the pure step that validates it.
    begin: what a stage that starts anew makes of its model first.
  """

  network: nn.Module
  step: Mapping[str, Any]
  evaluation_step: Callable[..., Mapping[str, jax.Array]]
  begin: Callable[[checkpoint.Model], checkpoint.Model] = lambda model: model


def _learning(stage: str, options: stages.Options, run: Run) -> Learning:
  """Says how a stage learns, by its kind.

  Raises:
    InputError: if the network or an option is unfit.
  """
  network = run.model.network
  shared = {"normalise": run.model.normalisation, "axis_name": "batch"}
  if stage == stages.RANKED:
    ranking_stage.check(options, network)
    network = network.clone(frozen_norm=options.frozen_norm)
    return Learning(
      network,
      {"loss": options.loss},
      ranking.make_evaluation_step(network, loss=options.loss, **shared),
      lambda model: ranking_stage.begin(model, options, run.data.train),
    )
  if stage == stages.DISTILLED:
    model = distillation_stage.open_teacher(options.teacher, network)
    teacher = distillation_stage.make_teacher(model)
    objective = distillation.make_objective(
      network, teacher=teacher, normalise=run.model.normalisation
    )
    return Learning(
      network,
      {"objective": objective},
      distillation.make_evaluation_step(network, teacher=teacher, **shared),
      lambda student: (
        student
        if run.config["init_from"]
        else distillation_stage.begin(student, model)
      ),
    )
  step = {"reconstruction_weight": options.reconstruction_weight}
  if stage == stages.PAIRED:
    step["loss"] = options.loss
    evaluation_step = correspondence.make_evaluation_step(
      network, loss=options.loss, **shared
    )
  else:
    step |= {"loss": run.config.get("loss"), "mixup": options.mixup}
    evaluation_step = steps.make_evaluation_step(
      network, stage=stage, loss=step["loss"], **shared
    )
  return Learning(network, step, evaluation_step)


def _check_finite(
  figures: Mapping[str, float], stage: str, step: int, names: list[str]
) -> None:
  if np.isfinite(figures["loss"]):
    return
  shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
  raise InputError(
    f"the loss of {stage} is {figures['loss']} at step {step}, on {shown}; try "
    f"a smaller --config.{stage}.schedule.learning_rate, a longer warmup or "
    f"--config.{stage}.optimiser.clip=1, with a new --workdir"
  )


def _write_model(
  run: Run, validator: validation.Validator, seconds: Mapping[str, float]
) -> None:
  """Learns the reduction; writes the model and the pictures."""
  model = run.model
  one_each = isinstance(model.network, GlobalDescriptor)
  learn = (
    global_whitening.learn_reduction if one_each else extraction.learn_reduction
  )
  learned = learn(
    model, run.data.train, seed=run.config["seed"], **run.config["reduction"]
  )
  checkpoint.save_model(
    run.workdir / checkpoint.MODEL,
    network=model.network,
    variables=model.variables,
    normalisation=model.normalisation,
    reduction=learned,
    extraction=model.extraction,
    provenance={**model.provenance, "seconds": seconds},
  )
  if not hosts.is_primary():
    return
  page = training_report.write(
    run.workdir,
    records=journal.read(run.workdir),
    heat_maps=() if one_each else validator.maps(model.variables, HEAT_MAPS),
    title=f"delf_jax: {run.workdir.name}",
  )
  print(f"curves and score maps: {page}")


def expand(
  config: ConfigDict, workdir: str
) -> list[tuple[str, ConfigDict, str]]:
  """Lists the runs of a config: itself, or one for each entry of `sweep`.

  An entry is a name and a mapping of what differs in that run; its `init_from`
  may name an earlier one as "@NAME".

  Returns:
    name, config and directory of each run, in order.

  Raises:
    InputError: if an entry changes what does not exist.
  """
  with config.unlocked():
    base = ConfigDict(config)
    sweep = base.get("sweep")
    if "sweep" in base:
      del base["sweep"]
  if not sweep:
    return [("", base, workdir)]
  runs = []
  for name, changes in sweep:
    one = base.copy_and_resolve_references()
    one.lock()
    try:
      one.update(changes)
    except (KeyError, AttributeError, TypeError) as error:
      raise InputError(
        f"config.sweep.{name} does not fit the config: {error}"
      ) from error
    if one.init_from.startswith("@"):
      if one.init_from[1:] not in [earlier for earlier, *_ in runs]:
        raise InputError(
          f"config.sweep.{name}.init_from {one.init_from!r} names no earlier "
          f"run of the sweep"
        )
      one.init_from = str(Path(workdir) / one.init_from[1:])
    runs.append((name, one, str(Path(workdir) / name)))
  return runs


def main() -> int:
  """Trains as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  if values.num_processes or values.coordinator or values.cluster:
    hosts.connect(
      coordinator=values.coordinator,
      num_processes=values.num_processes,
      process_id=values.process_id,
    )
  config = run_config.read(values.config)
  runs = expand(config, values.workdir)
  try:
    for name, one, workdir in runs:
      if name:
        print(f"== {name}", flush=True)
      model = train(one, workdir)
  except hosts.Stopped as stopped:
    run_config.say_how_to_resume("train", stopped)
    return 0
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    reason = str(error).strip().splitlines()[0][:160]
    raise InputError(
      f"another process of this run ended or cannot be reached ({reason}); "
      f"see its output, and start all of them again with the same command"
    ) from error
  if len(runs) > 1 and hosts.is_primary():
    page = training_report.write_sweep(
      Path(values.workdir),
      {name: journal.read(Path(workdir)) for name, _, workdir in runs},
    )
    print(f"all runs side by side: {page}")
  print(f"trained in {program.elapsed(start)}; the model is in {model}")
  return 0


if __name__ == "__main__":
  config_flags.DEFINE_config_file(
    "config", None, "a file of configs/, with :variant.", lock_config=True
  )
  flags.DEFINE_string("workdir", None, "directory of the run.", required=True)
  flags.DEFINE_boolean(
    "cluster", False, "several hosts; JAX asks the cluster who they are."
  )
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
  flags.DEFINE_integer("num_processes", None, "how many hosts there are.")
  flags.DEFINE_integer("process_id", None, "of this host, from 0.")
  flags.mark_flag_as_required("config")
  program.run(main)
