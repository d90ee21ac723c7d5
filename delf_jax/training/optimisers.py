"""Learning rates and update rules, from plain values."""

from collections.abc import Mapping

import jax
import optax

from delf_jax.errors import InputError

RULES = ("sgd", "adamw")
DECAYS = ("cosine", "linear", "halving", "constant")


def make_schedule(
  *,
  learning_rate: float,
  steps: int,
  warmup: int = 0,
  decay: str = "cosine",
  halve_every: int = 0,
  factor: float = 0.5,
) -> optax.Schedule:
  """Builds the learning rate as a function of the step.

  Args:
    learning_rate: the peak.
    steps: of the whole stage.
    warmup: steps of the linear rise from zero.
    decay: "cosine" or "linear" to zero at `steps`, "halving" every
      `halve_every` steps, or "constant".
    halve_every: steps, for "halving".
    factor: what is left each time, where that is not half.

  Raises:
    InputError: if `decay` is unknown or the numbers do not fit.
  """
  if decay not in DECAYS:
    raise InputError(
      f"unknown decay {decay!r} of the learning rate; expected one of "
      f"{', '.join(DECAYS)}"
    )
  if decay == "halving" and halve_every < 1:
    raise InputError(
      "the decay 'halving' of the learning rate needs halve_every, in steps"
    )
  warmup = min(warmup, steps)
  rest = max(steps - warmup, 1)
  falls = {
    "cosine": lambda: optax.cosine_decay_schedule(learning_rate, rest),
    "linear": lambda: optax.linear_schedule(learning_rate, 0.0, rest),
    "halving": lambda: optax.exponential_decay(
      learning_rate, halve_every, factor, staircase=True
    ),
    "constant": lambda: optax.constant_schedule(learning_rate),
  }
  if not warmup:
    return falls[decay]()
  rise = optax.linear_schedule(0.0, learning_rate, warmup)
  return optax.join_schedules([rise, falls[decay]()], [warmup])


def make_optimiser(
  schedule: optax.Schedule,
  *,
  kind: str = "sgd",
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float | Mapping[str, float] = 0.0,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """Builds the update rule of a stage.

  Args:
    schedule: see `make_schedule`.
    kind: one of `RULES`.
    momentum: of "sgd".
    nesterov: of "sgd".
    weight_decay: one rate, or a rate for each top-level group of parameters
      ("backbone", "attention", ...; others decay by "default", or not).
      Kernels decay; biases and BatchNorm, which have one axis, do not. For
      "sgd" it joins the gradient before momentum, for "adamw" it is decoupled.
    clip: largest global norm of the gradient; 0 clips nothing.

  Raises:
    InputError: if `kind` is unknown.
  """
  if kind not in RULES:
    raise InputError(
      f"unknown optimiser {kind!r}; expected {' or '.join(RULES)}"
    )
  decays = [
    optax.add_decayed_weights(rate, _kernels(group))
    for group, rate in _rates(weight_decay).items()
    if rate
  ]
  if kind == "sgd":
    rule = [*decays, optax.trace(momentum, nesterov=nesterov)]
  else:
    rule = [optax.scale_by_adam(), *decays]
  clipping = [optax.clip_by_global_norm(clip)] if clip else []
  return optax.chain(*clipping, *rule, optax.scale_by_learning_rate(schedule))


def _rates(weight_decay: float | Mapping[str, float]) -> dict:
  """Returns group -> rate, where a tuple is "all but these groups"."""
  if not isinstance(weight_decay, Mapping):
    return {(): weight_decay}
  named = {k: v for k, v in weight_decay.items() if k != "default"}
  return {**named, tuple(named): weight_decay.get("default", 0.0)}


def _kernels(group: str | tuple[str, ...]):
  """Returns the mask of a group's parameters that have more than one axis."""

  def mask(params):
    def decays(path, leaf):
      top = path[0].key
      inside = top == group if isinstance(group, str) else top not in group
      return inside and leaf.ndim > 1

    return jax.tree.map_with_path(decays, params)

  return mask
