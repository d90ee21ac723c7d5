r"""Learns which of a detector's features are worth keeping (section 3.3).

Attention as DELF has it, but on features that are found by hand-crafted rules:
extract many of them, learn a score for which the sum that it weighs tells
landmarks apart, with no other label than the landmark of a photograph, and keep
those that score highest.

  python -m delf_jax.extract --photos LANDMARKS --features rootsift \
    --max_features 4000 --output STORE
  python -m delf_jax.train_selection --config configs/selection.py:default \
    --config.data.stores="('STORE',)" --workdir RUN
  python -m delf_jax.evaluate --features RUN ...

LANDMARKS is a folder a landmark; several stores are learned on together. Any
value of the config can be changed from the command line. The same command
continues a run that was stopped, and ends in the same bits.

RUN receives config.json, metrics.jsonl, tensorboard/, checkpoints/ and, at the
end, model/, which the other programs take as --features: they extract as many
features as STORE has of a photograph and keep --max_features (1000) of them, by
--score attention, or product: attention times the detector's response.
"""

import contextlib
import functools
import json
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from delf_jax import (
  checkpoint,
  extraction,
  extractors,
  hosts,
  journal,
  labelled_features,
  program,
  progress,
  run_config,
)
from delf_jax.errors import InputError
from delf_jax.features import selection
from delf_jax.models.selector import Selector
from delf_jax.training import optimisers
from delf_jax.training import selection as steps


def train(config: ConfigDict, workdir: str) -> Path:
  """Runs the stages of a config and writes the model.

  Args:
    config: as `configs/selection.py` makes it.
    workdir: receives everything; an earlier run there is continued.

  Returns:
    the directory of the model.

  Raises:
    InputError: if data, config or earlier checkpoints are unfit.
    hosts.Stopped: if a signal ended it; what was done is saved.
  """
  settings = json.loads(config.to_json_best_effort())
  workdir = Path(workdir)
  _check(settings)
  with hosts.StopSignals() as signals:
    run_config.keep(settings, workdir)
    data = labelled_features.open_labelled(**settings["data"])
    kind = data.settings["kind"]
    if kind not in extractors.HANDCRAFTED:
      raise InputError(
        f"selection is learned on {' and '.join(extractors.HANDCRAFTED)}, not "
        f"on {kind}, which has an attention of its own"
      )
    print(data.summary())
    selector = Selector(
      channels=data.channels,
      num_classes=len(data.names),
      **settings["model"],
    )
    variables = jax.jit(selector.init)(
      jax.random.key(settings["seed"]),
      jnp.zeros((1, data.channels)),
      jnp.ones(1, bool),
    )
    variables["statistics"] = labelled_features.statistics(
      data, seed=settings["seed"]
    )
    with journal.Journal(workdir) as figures:
      for stage in settings["stages"]:
        variables = run_stage(
          stage,
          settings,
          data,
          selector,
          variables,
          workdir=workdir,
          figures=figures,
          signals=signals,
        )
  features = {k: v for k, v in data.settings.items() if k != "photos"}
  checkpoint.save_selector(
    workdir / checkpoint.MODEL,
    checkpoint.SelectorModel(
      selector=selector,
      variables=jax.tree.map(np.asarray, variables),
      features=features,
      geometry=data.geometry,
      extraction=settings["extraction"],
      provenance={
        "config": settings,
        "landmarks": len(data.names),
        "photographs": len(data.train.labels),
        "stores": [one.fingerprint for one in data.stores],
      },
    ),
  )
  return workdir / checkpoint.MODEL


def run_stage(
  stage: str,
  settings: Mapping[str, Any],
  data: labelled_features.LabelledFeatures,
  selector: Selector,
  variables: Mapping[str, Any],
  *,
  workdir: Path,
  figures: journal.Journal,
  signals: hosts.StopSignals,
) -> dict[str, Any]:
  """Trains one stage, from its newest checkpoint if there is one.

  Returns:
    the variables that it ends with.
  """
  options = settings[stage]
  count, batch_size = options["steps"], options["batch_size"]
  schedule = optimisers.make_schedule(steps=count, **options["schedule"])
  optimiser = optimisers.make_optimiser(schedule, **options["optimiser"])
  train_step = jax.jit(
    steps.make_train_step(
      selector,
      optimiser,
      stage=stage,
      label_smoothing=settings["label_smoothing"],
    )
  )
  evaluation_step = jax.jit(steps.make_evaluation_step(selector, stage=stage))
  checkpoints = checkpoint.RunCheckpoints(workdir / "checkpoints" / stage)
  state, first = checkpoints.restore(
    steps.initial_state(stage, variables, optimiser)
  )
  figures.resume(stage, first)
  draw = functools.partial(
    labelled_features.training_batch,
    data,
    seed=zlib.crc32(f"{settings['seed']} {stage}".encode()),
    batch_size=batch_size,
    features=options["features"],
    sampling=options["sampling"],
  )
  batches = extraction.in_order(draw, range(first + 1, count + 1), workers=1)
  recent, meter = [], journal.Meter(batch_size)
  with (
    contextlib.closing(checkpoints),
    contextlib.closing(batches),
    signals.deferred(),
    progress.bar(label=stage, unit="step", total=count) as bar,
  ):
    bar.update(first)
    for step in range(first + 1, count + 1):
      start = time.perf_counter()
      _, batch = next(batches)
      meter.step(time.perf_counter() - start)
      state, found = train_step(state, batch)
      recent.append(found)
      bar.update()
      last = step == count
      stopped = signals.stop_after(step)
      if step % settings["log_every"] == 0 or last:
        means = _means(recent, stage, step)
        recent.clear()
        means |= {"learning_rate": float(schedule(step - 1)), **meter.read()}
        figures.write(stage, step, means)
        bar.set_postfix_str(progress.describe(means), refresh=False)
      judged = step % settings["validate_every"] == 0 or last
      if judged and len(data.validation.labels):
        with meter.paused():
          result = validate(evaluation_step, state.variables, data, options)
        figures.write(stage, step, result, kind="validation")
        if last:
          print(f"{stage}: {progress.describe(result)} (validation)")
      if step % settings["save_every"] == 0 or last or stopped:
        checkpoints.save(step, state, batches=step)
      if stopped:
        raise hosts.Stopped(f"{stage}, step {step} of {count}")
  return jax.tree.map(np.asarray, state.variables)


def validate(
  evaluation_step: Callable[..., Mapping[str, jax.Array]],
  variables: Mapping[str, Any],
  data: labelled_features.LabelledFeatures,
  options: Mapping[str, Any],
) -> dict[str, float]:
  """Returns mean loss and accuracy on the photographs that were held out."""
  sums = {"loss": [], "correct": []}
  for batch in labelled_features.validation_batches(
    data,
    batch_size=options["batch_size"],
    features=data.settings["max_features"],
  ):
    found = evaluation_step(variables, batch)
    for name, values in sums.items():
      values.append(np.asarray(found[name])[batch["labels"] >= 0])
  means = {n: float(np.mean(np.concatenate(v))) for n, v in sums.items()}
  return {"loss": means["loss"], "accuracy": means["correct"]}


def _means(recent: list, stage: str, step: int) -> dict[str, float]:
  """Returns the means of some steps' figures.

  Raises:
    InputError: if the loss is no number any more.
  """
  recent = jax.device_get(recent)
  means = {n: float(np.mean([one[n] for one in recent])) for n in recent[-1]}
  if not np.isfinite(means["loss"]):
    raise InputError(
      f"the loss of {stage} is {means['loss']} at step {step}; try a smaller "
      f"--config.{stage}.schedule.learning_rate, with a new --workdir"
    )
  return means


def _check(settings: Mapping[str, Any]) -> None:
  """Refuses a config that is unfit, before anything is written.

  Raises:
    InputError: naming the value.
  """
  chosen = settings["extraction"]
  selection.check(settings["data"]["geometry"], chosen["score"])
  for stage in settings["stages"]:
    if stage not in steps.STAGES:
      raise InputError(
        f"unknown stage {stage!r}; expected any of {', '.join(steps.STAGES)}"
      )
    sampling = settings[stage]["sampling"]
    if sampling not in labelled_features.SAMPLINGS:
      raise InputError(
        f"unknown config.{stage}.sampling {sampling!r}; expected "
        f"{' or '.join(labelled_features.SAMPLINGS)}"
      )


def main() -> int:
  """Trains as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  config = run_config.read(values.config)
  try:
    model = train(config, values.workdir)
  except hosts.Stopped as stopped:
    run_config.say_how_to_resume("train_selection", stopped)
    return 0
  print(f"trained in {program.elapsed(start)}; the model is in {model}")
  return 0


if __name__ == "__main__":
  config_flags.DEFINE_config_file(
    "config", None, "a file of configs/, with :variant.", lock_config=True
  )
  flags.DEFINE_string("workdir", None, "directory of the run.", required=True)
  flags.mark_flag_as_required("config")
  program.run(main)
