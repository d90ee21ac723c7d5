r"""Trains DELF in the paper's two steps and writes a model ready to extract.

First the descriptors learn by classifying landmarks (section 3.2), then, with
descriptors frozen, attention learns the same way (section 3.3.2), and last the
reduction (L2 -> PCA -> L2) is learned on selected features.

  python -m delf_jax.train --config configs/finetune.py:synthetic_small \
    --workdir runs/small

The part behind the colon is a variant; any value can be changed from the
command line: --config.descriptors.batch_size=16. The same command continues a
run that was stopped. The working directory receives config.json,
metrics.jsonl, checkpoints/ and, at the end, model/, which

  python -m delf_jax.extract --photos DIR --features runs/small --output STORE

and the other programs take as --features.
"""

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict, config_flags

from delf_jax import checkpoint, extraction, program, progress
from delf_jax.data import folder, pipeline, synthetic_landmarks
from delf_jax.data.photographs import Photograph, decode_photograph
from delf_jax.errors import InputError
from delf_jax.features import reduction as reductions
from delf_jax.models.delf import Delf
from delf_jax.models.normalisation import NORMALISATIONS, Normalisation

# The parameters that a stage learns; the others are frozen, bit by bit.
TRAINED = {
  "descriptors": ("backbone", "descriptor_classifier"),
  "attention": ("attention", "attention_classifier"),
}
METHODS = {
  "descriptors": "classify_descriptors",
  "attention": "classify_attention",
}


@flax.struct.dataclass
class TrainState:
  """All that a stage changes.

  Attributes:
    step: int32, steps done in this stage.
    params: of the whole network.
    batch_stats: running statistics of the whole network.
    opt_state: of the trained parameters alone.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any


TrainStep = Callable[
  [TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, Any]]
]


def make_train_step(
  network: Delf,
  optimiser: optax.GradientTransformation,
  *,
  stage: str,
  normalise: Normalisation,
  axis_name: str | None = None,
) -> TrainStep:
  """Builds the pure step of a stage.

  Args:
    network: the module.
    optimiser: of the stage.
    stage: a key of `TRAINED`.
    normalise: of pixels.
    axis_name: mapped axis to average over, or None.

  Returns:
    step(state, {"pixels": [b, h, w, 3] uint8, "labels": [b]}) -> state,
    {"loss", "accuracy"}.
  """

  def mean(tree):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  def train_step(state, batch):
    def loss_of(trained):
      logits, updates = network.apply(
        {
          "params": {**state.params, **trained},
          "batch_stats": state.batch_stats,
        },
        normalise(batch["pixels"]),
        train=True,
        method=METHODS[stage],
        mutable=["batch_stats"],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch["labels"]
      )
      correct = jnp.argmax(logits, axis=-1) == batch["labels"]
      return jnp.mean(losses), (updates, jnp.mean(correct))

    trained = {name: state.params[name] for name in TRAINED[stage]}
    (loss, (updates, accuracy)), gradients = jax.value_and_grad(
      loss_of, has_aux=True
    )(trained)
    gradients = mean(gradients)
    steps, opt_state = optimiser.update(gradients, state.opt_state, trained)
    new_state = TrainState(
      step=state.step + 1,
      params={**state.params, **optax.apply_updates(trained, steps)},
      batch_stats={**state.batch_stats, **mean(updates["batch_stats"])},
      opt_state=opt_state,
    )
    return new_state, mean({"loss": loss, "accuracy": accuracy})

  return train_step


def make_optimiser(
  *,
  learning_rate: float,
  steps: int,
  warmup: int,
  weight_decay: float,
  kind: str = "sgd",
  momentum: float = 0.9,
  clip: float = 10.0,
) -> optax.GradientTransformation:
  """Builds SGD or AdamW under a warm-up and a cosine fall to zero.

  Weight decay spares biases and BatchNorm, which have one axis.

  Raises:
    InputError: if `kind` is neither "sgd" nor "adamw".
  """
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, min(warmup, steps), max(steps, warmup + 1)
  )

  def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

  if kind == "adamw":
    rule = optax.adamw(schedule, weight_decay=weight_decay, mask=matrices)
  elif kind == "sgd":
    rule = optax.chain(
      optax.add_decayed_weights(weight_decay, matrices),
      optax.sgd(schedule, momentum=momentum),
    )
  else:
    raise InputError(f"unknown optimiser {kind!r}; expected sgd or adamw")
  return optax.chain(optax.clip_by_global_norm(clip), rule)


def open_source(dataset: ConfigDict) -> tuple[Any, int]:
  """Opens the training photographs.

  Returns:
    random access to {"image", "label"} and the number of classes.

  Raises:
    InputError: if the kind is unknown or the folder is unfit.
  """
  if dataset.kind == "folder":
    if not dataset.path:
      raise InputError(
        "no training photographs: give --config.dataset.path=DIR with "
        "DIR/landmark/*.jpg, or the variant :synthetic_small"
      )
    listing = folder.labelled_photographs(dataset.path)
    return (
      pipeline.PhotographFiles(dataset.path, listing.paths, listing.labels),
      len(listing.names),
    )
  if dataset.kind == "synthetic":
    options = dict(dataset)
    for key in ("kind", "path"):
      options.pop(key)
    splits = synthetic_landmarks.open_synthetic(dataset.path, **options)
    return splits["train"], dataset.num_landmarks
  raise InputError(
    f"unknown dataset kind {dataset.kind!r}; expected folder or synthetic"
  )


def run_stage(
  stage: str,
  config: ConfigDict,
  workdir: Path,
  *,
  network: Delf,
  variables: Mapping[str, Any],
  source: Any,
  normalise: Normalisation,
) -> dict[str, Any]:
  """Trains one stage, from its newest checkpoint if there is one.

  Returns:
    the network's variables afterwards.
  """
  options = config[stage]
  devices = jax.local_device_count()
  batch_size = options.batch_size // jax.process_count()
  if batch_size % devices:
    raise InputError(
      f"config.{stage}.batch_size {options.batch_size} does not divide among "
      f"{jax.process_count()} processes of {devices} devices"
    )
  optimiser = make_optimiser(steps=options.steps, **options.optimiser)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=optimiser.init(
      {name: variables["params"][name] for name in TRAINED[stage]}
    ),
  )
  batches = pipeline.training_batches(
    source,
    seed=config.seed,
    batch_size=batch_size,
    resize=options.resize,
    crop=options.crop,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  checkpoints = checkpoint.RunCheckpoints(workdir / "checkpoints" / stage)
  state, position = checkpoints.restore(state)
  if position is not None:
    batches.set_state(position)
  train_step = jax.pmap(
    make_train_step(
      network, optimiser, stage=stage, normalise=normalise, axis_name="batch"
    ),
    axis_name="batch",
    in_axes=(None, 0),
    out_axes=None,
    donate_argnums=0,
  )

  first, last = int(state.step), options.steps
  with (
    open(workdir / "metrics.jsonl", "a") as log,
    progress.bar(label=stage, unit="step", total=last) as bar,
  ):
    bar.update(first)
    for step in range(first + 1, last + 1):
      batch = next(batches)
      shards = jax.tree.map(
        lambda x: x.reshape(devices, -1, *x.shape[1:]), batch
      )
      state, metrics = train_step(state, shards)
      bar.update()
      if step % config.log_every == 0 or step == last:
        metrics = {name: float(value) for name, value in metrics.items()}
        _check_finite(metrics, stage, step)
        bar.set_postfix(metrics, refresh=False)
        line = {"stage": stage, "step": step, **metrics}
        log.write(json.dumps(line) + "\n")
        log.flush()
      if step % config.save_every == 0 or step == last:
        checkpoints.save(step, state, batches.get_state())
  checkpoints.close()
  return {"params": state.params, "batch_stats": state.batch_stats}


def _check_finite(metrics: Mapping[str, float], stage: str, step: int) -> None:
  if not np.isfinite(metrics["loss"]):
    raise InputError(
      f"the loss of {stage} is {metrics['loss']} at step {step}; try a smaller "
      f"--config.{stage}.optimiser.learning_rate, and continue from the "
      f"checkpoints before it"
    )


def sample_photographs(source: Any, count: int, seed: int) -> list[Photograph]:
  """Decodes a seeded sample of the training photographs."""
  order = np.random.default_rng(seed).permutation(len(source))
  found = []
  for i in order:
    if len(found) == count:
      break
    try:
      found.append(decode_photograph(source[int(i)]["image"], name=f"{i}"))
    except InputError:
      continue
  return found


def learn_reduction(
  config: ConfigDict, model: checkpoint.Model, source: Any
) -> reductions.Reduction | None:
  """Learns L2 -> PCA -> L2 on the selected features of a sample."""
  options = config.reduction
  if not options.dim:
    return None
  photographs = sample_photographs(source, options.photographs, config.seed)
  largest = max(max(photograph.pixels.shape) for photograph in photographs)
  extract = extraction.delf_extractor(
    model, max_side=max(largest, extraction.MIN_SIDE)
  )
  results = progress.track(
    extraction.in_order(extract, photographs),
    label="reduction",
    unit="photograph",
    total=len(photographs),
  )
  features = [found.descriptors for _, found in results]
  return reductions.fit(
    np.concatenate(features), options.dim, whiten=options.whiten
  )


def initial_variables(
  config: ConfigDict, network: Delf
) -> dict[str, dict[str, Any]]:
  """Draws the variables, or takes the backbone of another checkpoint.

  Raises:
    InputError: if `config.init_from` holds another network.
  """
  # Outside pmap there is no axis to average statistics over.
  backbone = network.backbone.clone(axis_name=None)
  variables = jax.jit(network.clone(backbone=backbone).init)(
    jax.random.key(config.seed), jnp.zeros((1, 64, 64, 3))
  )
  if config.init_from:
    model = checkpoint.load_model(config.init_from)
    checkpoint.check_same_architecture(network, model.network, config.init_from)
    for collection in ("params", "batch_stats"):
      variables[collection]["backbone"] = model.variables[collection][
        "backbone"
      ]
  return variables


def train(config: ConfigDict, workdir: str) -> Path:
  """Runs every stage of a config and writes the model.

  Args:
    config: as `configs/finetune.py` makes it.
    workdir: receives everything; an earlier run there is continued.

  Returns:
    the directory of the model checkpoint.

  Raises:
    InputError: if data, config or earlier checkpoints are unfit.
  """
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  settings = json.loads(config.to_json_best_effort())
  _keep_config(settings, workdir / "config.json")
  source, num_classes = open_source(config.dataset)
  network = checkpoint.build_network(
    num_classes=num_classes, axis_name="batch", **config.model
  )
  normalise = NORMALISATIONS[config.normalisation]
  variables = initial_variables(config, network)
  seconds = {}
  for stage in config.stages:
    start = time.perf_counter()
    variables = run_stage(
      stage,
      config,
      workdir,
      network=network,
      variables=variables,
      source=source,
      normalise=normalise,
    )
    seconds[stage] = round(time.perf_counter() - start, 1)

  variables = jax.tree.map(np.asarray, variables)
  save = functools.partial(
    checkpoint.save_model,
    workdir / checkpoint.MODEL,
    network=network,
    variables=variables,
    normalisation=normalise,
    extraction=settings["extraction"],
    provenance={"config": settings, "seconds": seconds},
  )
  # The sample for the reduction is extracted by the model as it will be used.
  save(reduction=None)
  learned = learn_reduction(
    config, checkpoint.load_model(workdir / checkpoint.MODEL), source
  )
  if learned is not None:
    save(reduction=learned)
  return workdir / checkpoint.MODEL


def _keep_config(settings: Mapping[str, Any], path: Path) -> None:
  """Writes the config beside the run; refuses to continue another one."""
  if path.exists():
    earlier = json.loads(path.read_text())
    if earlier != settings:
      keys = sorted(
        key
        for key in earlier.keys() | settings.keys()
        if earlier.get(key) != settings.get(key)
      )
      raise InputError(
        f"{path.parent}: holds a run with another config (different: "
        f"{', '.join(keys)}); use another --workdir"
      )
  path.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> int:
  """Trains as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  try:
    config = values.config.copy_and_resolve_references()
  except OSError as error:  # how config_flags reports a file it cannot load
    line = str(error).strip().splitlines()[-1].strip()
    raise InputError(f"--config cannot be read: {line}") from error
  model = train(config, values.workdir)
  print(f"trained in {program.elapsed(start)}; the model is in {model}")
  return 0


if __name__ == "__main__":
  config_flags.DEFINE_config_file(
    "config", None, "a file of configs/, with :variant.", lock_config=True
  )
  flags.DEFINE_string("workdir", None, "directory of the run.", required=True)
  flags.mark_flag_as_required("config")
  program.run(main)
