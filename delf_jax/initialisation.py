"""The network that a run starts with: new, or from another checkpoint."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax import checkpoint
from delf_jax.errors import InputError
from delf_jax.models.delf import Delf
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.training import losses

BATCH_NORMS = ("synchronised", "local", "frozen")


def initial_model(
  settings: Mapping[str, Any], num_classes: int
) -> checkpoint.Model:
  """Builds the network, with new variables or those of another checkpoint.

  Args:
    settings: a config as plain values.
    num_classes: landmarks to tell apart.

  Returns:
    the model, without a reduction.

  Raises:
    InputError: if the config is unfit, or `init_from` holds another network.
  """
  loss = settings.get("loss", {})
  losses.check_loss(**loss)
  options = dict(settings["model"])
  batch_norm = options.pop("batch_norm", "synchronised")
  if batch_norm not in BATCH_NORMS:
    raise InputError(
      f"unknown config.model.batch_norm {batch_norm!r}; expected one of "
      f"{', '.join(BATCH_NORMS)}"
    )
  network = checkpoint.build_network(
    num_classes=num_classes,
    cosine_classifier=loss.get("kind") == "arcface",
    frozen_norm=batch_norm == "frozen",
    axis_name="batch" if batch_norm == "synchronised" else None,
    **options,
  )
  # Outside pmap there is no axis to average statistics over.
  alone = network.clone(backbone=network.backbone.clone(axis_name=None))
  variables = jax.jit(alone.init)(
    jax.random.key(settings["seed"]), jnp.zeros((1, 64, 64, 3))
  )
  normalisation = NORMALISATIONS[settings["normalisation"]]
  if settings["init_from"]:
    model = checkpoint.load_model(settings["init_from"])
    variables = _take_over(
      variables,
      network,
      model,
      settings["init_from"],
      reset_head=settings.get("reset_head", False),
    )
    if model.normalisation != normalisation and jax.process_index() == 0:
      # The released TF2 recipe means it so; anybody else probably does not.
      print(
        f"note: {settings['init_from']} was trained on other pixels than "
        f"--config.normalisation={settings['normalisation']}"
      )
  return checkpoint.Model(
    network=network,
    variables=jax.tree.map(np.asarray, variables),
    normalisation=normalisation,
    reduction=None,
    extraction=settings["extraction"],
    provenance={"config": settings},
    fingerprint="",
  )


def _take_over(
  variables: Mapping[str, Any],
  network: Delf,
  model: checkpoint.Model,
  source: str,
  *,
  reset_head: bool,
) -> dict[str, dict[str, Any]]:
  """Replaces new variables by those of a checkpoint.

  Raises:
    InputError: if its backbone is another one, or it has heads that tell
      another number of landmarks apart and `reset_head` does not allow new
      ones.
  """
  checkpoint.check_same_architecture(network, model.network, source)
  theirs, ours = model.network.num_classes, network.num_classes
  if theirs not in (0, ours) and not reset_head:
    raise InputError(
      f"{source}: its classifiers tell {theirs} landmarks apart and the data "
      f"have {ours}; --config.reset_head=True begins with new classifiers and "
      f"keeps everything else"
    )
  taken = {}
  for collection, groups in variables.items():
    taken[collection] = dict(groups)
    for name, group in groups.items():
      found = model.variables[collection].get(name)
      if name.endswith("classifier") and (reset_head or found is None):
        continue
      if found is not None and _shapes(found) == _shapes(group):
        taken[collection][name] = found
  return taken


def _shapes(tree: Any) -> Any:
  return jax.tree.map(np.shape, tree)
