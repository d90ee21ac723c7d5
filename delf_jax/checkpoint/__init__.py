"""Checkpoints: of a training run, and of a model that is ready to extract.

This package alone knows Orbax. `python -m delf_jax.checkpoint PATH` prints
what a checkpoint says of itself.
"""

from delf_jax.checkpoint.architecture import (
  abstract_variables,
  build_lift,
  build_network,
  check_same_architecture,
)
from delf_jax.checkpoint.compression import WEIGHTS
from delf_jax.checkpoint.model import (
  MODEL,
  Model,
  find_model,
  load_model,
  read_kind,
  save_model,
)
from delf_jax.checkpoint.run import RunCheckpoints
from delf_jax.checkpoint.selector import (
  SelectorModel,
  find_selector,
  load_selector,
  save_selector,
)
from delf_jax.checkpoint.shipped import DEFAULT, NAMES, shipped

__all__ = [
  "DEFAULT",
  "MODEL",
  "NAMES",
  "WEIGHTS",
  "Model",
  "RunCheckpoints",
  "SelectorModel",
  "abstract_variables",
  "build_lift",
  "build_network",
  "check_same_architecture",
  "find_model",
  "find_selector",
  "load_model",
  "load_selector",
  "read_kind",
  "save_model",
  "save_selector",
  "shipped",
]
