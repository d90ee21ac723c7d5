"""The pure training step: (state, batch) -> (state, metrics).

Nothing here is compiled or mapped; `delf_jax.train` does that once, at the
edge. With `axis_name`, gradients, metrics and statistics are averaged over
that mapped axis, and nothing else of it is used.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from delf_jax.models.delf import Delf
from delf_jax.models.global_descriptor import GlobalDescriptor
from delf_jax.models.normalisation import Normalisation
from delf_jax.training import correspondence, losses, ranking

# The parameters that a stage learns; the others are frozen, bit by bit.
STAGES: Mapping[str, tuple[str, ...]] = {
  "correspondence": ("backbone", "autoencoder"),
  "distillation": ("backbone", "autoencoder", "attention"),
  "ranking": ("backbone", "power", "regional", "whitening"),
  "descriptors": ("backbone", "descriptor_classifier"),
  "attention": ("attention", "attention_classifier", "autoencoder"),
  "joint": (
    "backbone",
    "descriptor_classifier",
    "attention",
    "attention_classifier",
    "autoencoder",
  ),
  # Those of `training.lift`.
  "descriptor": ("descriptor",),
  "orientation": ("orientation",),
  "detector": ("detector",),
}


@flax.struct.dataclass
class TrainState:
  """All that a stage changes.

  Attributes:
    step: int32, steps done in this stage.
    key: [2] uint32 data of the stage's random key; it never changes, steps
      fold their number into it.
    params: of the whole network.
    batch_stats: running statistics of the whole network.
    opt_state: of the trained parameters alone.
    ema: running means of the trained parameters; None without.
  """

  step: jax.Array
  key: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any

  @property
  def variables(self) -> dict[str, Any]:
    """The network's variables to validate and to keep."""
    return {
      "params": {**self.params, **(self.ema or {})},
      "batch_stats": self.batch_stats,
    }


Batch = Mapping[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]
# (params, batch_stats, batch, key) -> loss, (statistics, figures)
Objective = Callable[..., tuple[jax.Array, tuple[dict, dict]]]


def trained(
  stage: str, params: Mapping[str, Any], *, frozen: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns the parameters that a stage learns, without those of `frozen`."""
  names = [name for name in STAGES[stage] if name not in frozen]
  return {name: params[name] for name in names if name in params}


def initial_state(
  stage: str,
  variables: Mapping[str, Any],
  optimiser: optax.GradientTransformation,
  key: jax.Array,
  *,
  ema: bool = False,
  frozen: Sequence[str] = (),
) -> TrainState:
  """Returns the state before the first step of a stage."""
  learned = trained(stage, variables["params"], frozen=frozen)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    key=jax.random.key_data(key),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=optimiser.init(learned),
    # A copy: two leaves of a donated state must not be one array.
    ema=jax.tree.map(jnp.copy, learned) if ema else None,
  )


def make_train_step(
  network: nn.Module,
  optimiser: optax.GradientTransformation,
  *,
  stage: str,
  normalise: Normalisation,
  objective: Objective | None = None,
  loss: Mapping[str, Any] | None = None,
  mixup: float = 0.0,
  accumulate: int = 1,
  ema_decay: float = 0.0,
  reconstruction_weight: float = 10.0,
  frozen: Sequence[str] = (),
  axis_name: str | None = None,
) -> TrainStep:
  """Builds the step of a stage.

  Args:
    network: the module.
    optimiser: of the stage.
    stage: a key of `STAGES`.
    normalise: of pixels.
    objective: what the step differentiates, if the stage has none of its own
      (the distillation stage's is `distillation.make_objective`) or another is
      wanted; the options of that, such as `loss`, are then unused.
    loss: keyword arguments of `losses.classification`, or in the
      correspondence stage of `correspondence.contrast`, in the ranking stage of
      `ranking.make_objective`.
    mixup: alpha of `losses.mix`; 0 mixes nothing.
    accumulate: parts that a batch is split into, one after the other, to save
      memory; the step is that of the whole batch, but for BatchNorm, whose
      statistics are those of a part.
    ema_decay: of the running means of the parameters; 0 keeps none.
    reconstruction_weight: of the autoencoder's error.
    frozen: groups of parameters that the stage leaves alone all the same.
    axis_name: mapped axis to average over, or None.

  Returns:
    step(state, {"pixels": [b, h, w, 3] uint8, "labels": [b]}), in the
    correspondence stage a batch of `correspondence.make_objective`, in the
    ranking stage one of `ranking.make_objective`, with an `objective` one of
    that, -> state, means over the batch: "loss", "accuracy", "gradient_norm",
    and in a stage of several losses each by its name.
  """

  updated = [
    name
    for name in STAGES[stage]
    if not (name == "backbone" and network.frozen_norm) and name not in frozen
  ]
  if objective is not None:
    pass
  elif stage == "correspondence":
    objective = correspondence.make_objective(
      network,
      normalise=normalise,
      loss=loss,
      reconstruction_weight=reconstruction_weight,
      axis_name=axis_name,
    )
  elif stage == "ranking":
    objective = ranking.make_objective(
      network, normalise=normalise, loss=loss, axis_name=axis_name
    )
  else:
    objective = _classification(
      network,
      stage=stage,
      normalise=normalise,
      loss=loss,
      mixup=mixup,
      reconstruction_weight=reconstruction_weight,
    )

  def mean(tree):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  def loss_of(learned, state, batch_stats, batch, key):
    params = {**state.params, **learned}
    return objective(params, batch_stats, batch, key)

  def gradients_of(learned, state, batch):
    """Returns gradients, statistics and figures of one device's batch."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

    def part(batch_stats, part):
      gradients, (updates, figures) = jax.grad(loss_of, has_aux=True)(
        learned, state, batch_stats, part, key
      )
      return {**batch_stats, **updates}, (gradients, figures)

    if accumulate == 1:
      statistics, found = part(state.batch_stats, batch)
      return statistics, *found
    parts = jax.tree.map(
      lambda x: x.reshape(accumulate, -1, *x.shape[1:]), dict(batch)
    )

    def body(carry, piece):
      statistics, sums = carry
      statistics, found = part(statistics, piece)
      return (statistics, jax.tree.map(jnp.add, sums, found)), None

    shapes = jax.eval_shape(
      part, state.batch_stats, jax.tree.map(lambda x: x[0], parts)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1])
    (statistics, sums), _ = jax.lax.scan(
      body, (state.batch_stats, zeros), parts
    )
    return statistics, *jax.tree.map(lambda x: x / accumulate, sums)

  def train_step(state, batch):
    learned = trained(stage, state.params, frozen=frozen)
    statistics, gradients, figures = gradients_of(learned, state, batch)
    gradients = mean(gradients)
    updates, opt_state = optimiser.update(gradients, state.opt_state, learned)
    learned = optax.apply_updates(learned, updates)
    ema = state.ema
    if ema_decay:
      # The first means would otherwise be those of the random beginning.
      decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
      ema = optax.incremental_update(learned, ema, 1.0 - decay)
    moving = {name: statistics[name] for name in updated if name in statistics}
    new_state = state.replace(
      step=state.step + 1,
      params={**state.params, **learned},
      batch_stats={**state.batch_stats, **mean(moving)},
      opt_state=opt_state,
      ema=ema,
    )
    figures = mean(figures)
    return new_state, {
      **figures,
      "gradient_norm": optax.tree.norm(gradients),
    }

  return train_step


def _classification(
  network: Delf | GlobalDescriptor,
  *,
  stage: str,
  normalise: Normalisation,
  loss: Mapping[str, Any] | None,
  mixup: float,
  reconstruction_weight: float,
) -> Callable[..., tuple[jax.Array, tuple[dict, dict]]]:
  """Builds what a step of a classifying stage differentiates.

  Returns:
    objective(params, batch_stats, batch, key) -> loss, (batch statistics,
    figures).
  """

  def objective(params, batch_stats, batch, key):
    pixels = normalise(batch["pixels"])
    targets = jax.nn.one_hot(batch["labels"], network.num_classes)
    if mixup:
      pixels, targets = losses.mix(pixels, targets, key, mixup)
    outputs, updates = network.apply(
      {"params": params, "batch_stats": batch_stats},
      pixels,
      stage=stage,
      train=True,
      method="outputs",
      mutable=["batch_stats"],
    )
    total, figures = 0.0, {}
    for head in ("descriptors", "attention"):
      logits = getattr(outputs, head)
      if logits is None:
        continue
      value = jnp.mean(losses.classification(logits, targets, **(loss or {})))
      hits = jnp.argmax(logits, axis=-1) == batch["labels"]
      total += value
      figures[f"{head}_loss"] = value
      figures[f"{head}_accuracy"] = jnp.mean(hits.astype(jnp.float32))
    if outputs.reconstruction is not None:
      value = jnp.mean(outputs.reconstruction)
      total += reconstruction_weight * value
      figures["reconstruction_loss"] = value
    # Of a stage with both heads, extraction uses what attention has learned.
    head = "descriptors" if outputs.attention is None else "attention"
    accuracy = figures[f"{head}_accuracy"]
    if len(figures) == 2:
      figures = {}
    figures = {"loss": total, "accuracy": accuracy, **figures}
    return total, (updates["batch_stats"], figures)

  return objective


def make_evaluation_step(
  network: Delf | GlobalDescriptor,
  *,
  stage: str,
  normalise: Normalisation,
  loss: Mapping[str, Any] | None = None,
  axis_name: str | None = None,
) -> Callable[[Mapping[str, Any], Batch], dict[str, jax.Array]]:
  """Builds the pure step that validates a stage's last head.

  The correspondence, distillation and ranking stages have their own, in their
  modules.

  Returns:
    step(variables, {"pixels", "labels", "weights" [b]}) -> sums over the batch:
    "loss", "correct" and "count", in which an example counts by its weight.
  """

  def evaluation_step(variables, batch):
    outputs = network.apply(
      variables, normalise(batch["pixels"]), stage=stage, method="outputs"
    )
    logits = outputs.attention
    if logits is None:
      logits = outputs.descriptors
    targets = jax.nn.one_hot(batch["labels"], network.num_classes)
    found = {
      "loss": losses.classification(logits, targets, **(loss or {})),
      "correct": (jnp.argmax(logits, axis=-1) == batch["labels"]).astype(
        jnp.float32
      ),
      "count": jnp.ones_like(batch["weights"]),
    }
    # A photograph that is padding may be anything, also not a number.
    sums = {
      name: jnp.sum(jnp.where(batch["weights"] > 0, value, 0.0))
      for name, value in found.items()
    }
    if axis_name is None:
      return sums
    return jax.lax.psum(sums, axis_name)

  return evaluation_step
