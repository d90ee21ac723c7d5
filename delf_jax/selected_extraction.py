"""A detector's many features of a photograph -> those that a score chose."""

from collections.abc import Callable

import jax
import numpy as np

from delf_jax import checkpoint
from delf_jax.data.photographs import Photograph
from delf_jax.features import selection
from delf_jax.features.local_features import LocalFeatures, compact

Extract = Callable[[Photograph], LocalFeatures]


def selecting(
  extract: Extract,
  model: checkpoint.SelectorModel,
  *,
  score: str,
  max_features: int,
) -> Extract:
  """Turns the extraction of many features into one of the best.

  Args:
    extract: photograph -> many features, at most as many as the model was
      trained on.
    model: gives them their scores.
    score: one of `selection.SCORES`.
    max_features: how many to keep at most.

  Raises:
    InputError: if there is no such score.
  """
  selection.check(model.geometry, score)
  attention = scorer(model)

  def extract_selected(photograph: Photograph) -> LocalFeatures:
    found = compact(extract(photograph))
    scores = attention(selection.inputs(found, model.geometry))
    if score == "product":
      scores = scores * found.scores
    return selection.select(found, scores, max_features)

  return extract_selected


def scorer(
  model: checkpoint.SelectorModel,
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns what scores [n, c] inputs, n up to what was detected in training.

  It is compiled for one number of rows, so that a feature's score has the same
  bits whatever comes with it.
  """
  variables = jax.device_put(model.variables)
  score = jax.jit(
    lambda inputs: model.selector.apply(variables, inputs, method="scores")
  )
  shape = (model.features["max_features"], model.selector.channels)

  def scores_of(inputs: np.ndarray) -> np.ndarray:
    padded = np.zeros(shape, np.float32)
    padded[: len(inputs)] = inputs
    return np.asarray(score(padded))[: len(inputs)]

  return scores_of
