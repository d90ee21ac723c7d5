"""The mean of networks that went on from one another.

What one run has learned and the next forgets stays in part: Wortsman et al.,
"Model soups: averaging weights of multiple fine-tuned models", ICML 2022.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from delf_jax.checkpoint.model import Model
from delf_jax.errors import InputError

# They learn on top of the network that they belong to.
HEADS = ("attention", "attention_classifier", "descriptor_classifier")


def average(model: Model, others: Sequence[Model]) -> dict[str, Any]:
  """Averages the parameters and statistics of networks.

  Args:
    model: whose attention and classifiers are kept as they are.
    others: with networks that differ from its in their numbers alone.

  Returns:
    variables: those of `model`, of which all but `HEADS` are the mean.

  Raises:
    InputError: if there is another network or another normalisation.
  """
  shapes = jax.tree.map(np.shape, _body(model.variables))
  for other in others:
    if jax.tree.map(np.shape, _body(other.variables)) != shapes:
      raise InputError(
        "only networks of the same layers can be averaged, each trained on "
        "from another"
      )
    if other.normalisation != model.normalisation:
      raise InputError(
        "networks that see pixels in different normalisations cannot be "
        "averaged"
      )
  mean = jax.tree.map(
    lambda *leaves: np.float32(np.mean(np.stack(leaves), axis=0, dtype=float)),
    _body(model.variables),
    *(_body(other.variables) for other in others),
  )
  return {
    collection: {**tree, **mean[collection]}
    for collection, tree in model.variables.items()
  }


def _body(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves out the heads of every collection."""
  return {
    collection: {
      name: tree for name, tree in modules.items() if name not in HEADS
    }
    for collection, modules in variables.items()
  }
