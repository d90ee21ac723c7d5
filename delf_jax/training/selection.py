"""The pure training step of a `models.selector.Selector`.

As the paper has it, in two steps by default: what is summed learns to tell
landmarks apart while all features count the same, then attention learns with
that frozen. Nothing here is compiled; the program does that once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from delf_jax.models.selector import Selector
from delf_jax.training import losses

# The parameters that a stage learns; the others are frozen, bit by bit.
STAGES: Mapping[str, tuple[str, ...]] = {
  "words": ("codebook", "classifier"),
  "attention": ("attention1", "attention2", "classifier"),
  "joint": ("codebook", "attention1", "attention2", "classifier"),
}

Batch = Mapping[str, jax.Array]


@flax.struct.dataclass
class SelectionState:
  """All that a stage changes, and the statistics, which it does not.

  Attributes:
    step: int32, steps done in this stage.
    params: of the whole selector.
    statistics: of its inputs.
    opt_state: of the trained parameters alone.
  """

  step: jax.Array
  params: Any
  statistics: Any
  opt_state: Any

  @property
  def variables(self) -> dict[str, Any]:
    """The selector's variables to validate and to keep."""
    return {"params": self.params, "statistics": self.statistics}


def trained(stage: str, params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the parameters that a stage learns."""
  return {name: params[name] for name in STAGES[stage] if name in params}


def initial_state(
  stage: str,
  variables: Mapping[str, Any],
  optimiser: optax.GradientTransformation,
) -> SelectionState:
  """Returns the state before the first step of a stage."""
  return SelectionState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    statistics=variables["statistics"],
    opt_state=optimiser.init(trained(stage, variables["params"])),
  )


def make_train_step(
  selector: Selector,
  optimiser: optax.GradientTransformation,
  *,
  stage: str,
  label_smoothing: float = 0.0,
) -> Callable[[SelectionState, Batch], tuple[SelectionState, dict[str, Any]]]:
  """Builds the step of a stage.

  Args:
    selector: the module.
    optimiser: of the stage.
    stage: a key of `STAGES`; in "words" every feature counts the same.
    label_smoothing: see `losses.classification`.

  Returns:
    step(state, {"inputs": [b, n, c], "mask": [b, n], "labels": [b]}) -> state,
    means over the batch: "loss", "accuracy", and "gradient_norm".
  """

  def loss_of(learned, state, batch):
    variables = {**state.variables, "params": {**state.params, **learned}}
    logits = _logits(selector, stage, variables, batch)
    targets = jax.nn.one_hot(batch["labels"], selector.num_classes)
    loss = losses.classification(
      logits, targets, label_smoothing=label_smoothing
    )
    hits = jnp.argmax(logits, axis=-1) == batch["labels"]
    figures = {"loss": jnp.mean(loss), "accuracy": jnp.mean(1.0 * hits)}
    return figures["loss"], figures

  def train_step(state, batch):
    learned = trained(stage, state.params)
    gradients, figures = jax.grad(loss_of, has_aux=True)(learned, state, batch)
    updates, opt_state = optimiser.update(gradients, state.opt_state, learned)
    learned = optax.apply_updates(learned, updates)
    figures["gradient_norm"] = optax.tree.norm(gradients)
    new_state = state.replace(
      step=state.step + 1,
      params={**state.params, **learned},
      opt_state=opt_state,
    )
    return new_state, figures

  return train_step


def make_evaluation_step(
  selector: Selector, *, stage: str
) -> Callable[[Mapping[str, Any], Batch], dict[str, jax.Array]]:
  """Builds the pure step that validates a stage.

  Returns:
    step(variables, batch as in training) -> [b] "loss" and "correct".
  """

  def evaluation_step(variables, batch):
    logits = _logits(selector, stage, variables, batch)
    targets = jax.nn.one_hot(batch["labels"], selector.num_classes)
    return {
      "loss": losses.classification(logits, targets),
      "correct": jnp.argmax(logits, axis=-1) == batch["labels"],
    }

  return evaluation_step


def _logits(
  selector: Selector, stage: str, variables: Mapping[str, Any], batch: Batch
) -> jax.Array:
  def of_one(inputs, mask):
    if stage == "words":
      return selector.apply(variables, inputs, mask, method="unweighted")
    return selector.apply(variables, inputs, mask)[1]

  return jax.vmap(of_one)(batch["inputs"], batch["mask"])
