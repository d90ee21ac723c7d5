"""Checkpoints: of a training run, and of a model that is ready to extract.

This package alone knows Orbax. `python -m delf_jax.checkpoint PATH` prints
what a checkpoint says of itself.
"""

from delf_jax.checkpoint.architecture import (
  abstract_variables,
  build_network,
  check_same_architecture,
)
from delf_jax.checkpoint.compression import WEIGHTS
from delf_jax.checkpoint.model import (
  MODEL,
  Model,
  find_model,
  load_model,
  save_model,
)
from delf_jax.checkpoint.run import RunCheckpoints
from delf_jax.checkpoint.shipped import DEFAULT, NAMES, shipped

__all__ = [
  "DEFAULT",
  "MODEL",
  "NAMES",
  "WEIGHTS",
  "Model",
  "RunCheckpoints",
  "abstract_variables",
  "build_network",
  "check_same_architecture",
  "find_model",
  "load_model",
  "save_model",
  "shipped",
]
