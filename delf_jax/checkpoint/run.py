"""The checkpoints of a training run, from which it goes on after a stop."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from delf_jax.checkpoint.arrays import (
  check_room,
  differences,
  named,
  path_name,
  writing,
)
from delf_jax.errors import InputError


class RunCheckpoints:
  """The checkpoints of one training stage, newest last.

  Saving happens in the background; a killed run leaves whole checkpoints. Of
  several processes all call every method; the first writes, and all read.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int = 2,
    best_by: str | None = None,
  ):
    """Opens or makes `directory`.

    Args:
      directory: of the stage.
      keep: how many of the newest checkpoints stay.
      best_by: the figure whose highest value among the saved `figures` marks
        a checkpoint that stays as well.
    """
    policies = ocp.training.preservation_policies
    preserved = [policies.LatestN(keep)]
    if best_by is not None:
      preserved.append(
        policies.BestN(
          get_metric_fn=lambda figures: figures[best_by],
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._best_by = best_by
    self._directory = Path(directory).absolute()
    with writing(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
    self._checkpointer = ocp.training.Checkpointer(
      self._directory,
      preservation_policy=policies.AnyPreservationPolicy(preserved),
      cleanup_tmp_directories=True,
    )

  def save(
    self,
    step: int,
    state,
    *,
    batches: int,
    figures: Mapping[str, float] | None = None,
  ) -> None:
    """Begins to save what a run needs to go on after `step`.

    Args:
      step: of the stage.
      state: tree of arrays, the same on every process.
      batches: taken from the data so far: the state of its iterator.
      figures: of the validation at this step, if there was one.

    Raises:
      InputError: if this one, or the one before, cannot be written.
    """
    arrays = _as_arrays(state)
    if figures is None or self._best_by not in figures:
      figures = None
    with writing(self._directory):
      self._checkpointer.wait()
      check_room(self._directory, arrays)
      self._checkpointer.save_async(
        step,
        arrays,
        metrics=None if figures is None else dict(figures),
        custom_metadata={"batches": batches},
        force=True,
      )

  @property
  def steps(self) -> tuple[int, ...]:
    """The steps that have a checkpoint, ascending."""
    return tuple(info.step for info in self._checkpointer.checkpoints)

  def best(self) -> int | None:
    """Returns the step with the highest figure; None before a validation."""
    scored = [
      (info.metrics[self._best_by], info.step)
      for info in self._checkpointer.checkpoints
      if info.metrics
    ]
    return max(scored)[1] if scored else None

  def restore(self, state, step: int | None = None) -> tuple[Any, int]:
    """Returns a saved state and how many batches it had taken.

    Args:
      state: of the same shapes; returned, with 0, if nothing was saved.
      step: which checkpoint; the newest by default.

    Raises:
      InputError: if the checkpoint is damaged or of another network.
    """
    infos = {info.step: info for info in self._checkpointer.checkpoints}
    if not infos:
      return state, 0
    step = max(infos) if step is None else step
    arrays = _as_arrays(state)
    where = f"{self._directory}/{step}"
    try:
      metadata = self._checkpointer.metadata(infos[step])
      found = {
        name: tuple(leaf.shape)
        for name, leaf in named(metadata.metadata).items()
      }
      batches = metadata.custom_metadata["batches"]
      if not found:  # what Orbax makes of a damaged description
        raise ValueError("its description is damaged")
    except Exception as error:
      raise self._unreadable(step, error) from error
    problems = differences(named(arrays), found)
    if problems:
      raise InputError(
        f"{where}: a checkpoint of another network or optimiser: {problems}; "
        f"use another --workdir or the config it was started with"
      )
    try:
      loaded = self._checkpointer.load(infos[step], arrays)
    except Exception as error:
      raise self._unreadable(step, error) from error
    return (
      jax.tree.map_with_path(lambda path, _: loaded[path_name(path)], state),
      batches,
    )

  def _unreadable(self, step: int, error: Exception) -> InputError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    others = [other for other in self.steps if other != step]
    way = (
      f"remove it to go on from step {others[-1]}"
      if others
      else ("remove it to begin the stage anew")
    )
    return InputError(
      f"{self._directory}/{step}: cannot be read as a checkpoint "
      f"({reason[0][:160]}); {way}"
    )

  def close(self) -> None:
    """Waits for a save in progress.

    Raises:
      InputError: if it could not be written.
    """
    with writing(self._directory):
      self._checkpointer.close()


def _as_arrays(state) -> dict[str, np.ndarray]:
  """Flattens any tree into NumPy arrays, named by their place in it."""
  return {
    path_name(path): np.asarray(leaf)
    for path, leaf in jax.tree.leaves_with_path(state)
  }
