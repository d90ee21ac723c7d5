"""Fits the probability of a match to candidates whose truth is known."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from delf_jax import match_score
from delf_jax.errors import InputError

# Fewer examples of either kind than these leave the weights to chance.
MIN_POSITIVES = 50
MIN_NEGATIVES = 200

# What evidence may say: more of it may never make a match less probable (1),
# or never more (-1). Without this, evidence that always comes together gets
# weights of opposite signs, which are wrong wherever it does not.
SIGNS: Mapping[str, int] = {
  name: -1 if name in ("chance", "turn", "stretch") else 1
  for name in match_score.NAMES
}

# The inverse strength of the penalty on squared weights, for evidence of unit
# variance. With thousands of candidates a hundred times more or less changes
# little; with hundreds it keeps the weights apart from noise.
INVERSE_PENALTY = 0.1

# Edges of the rows of a reliability table.
EDGES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)


@dataclasses.dataclass(frozen=True)
class Bin:
  """Candidates of about equal probability.

  Attributes:
    count: how many there are.
    predicted: their mean probability.
    observed: how many of them are matches, as a fraction.
  """

  count: int
  predicted: float
  observed: float


def fit(
  evidence: np.ndarray,
  positive: np.ndarray,
  *,
  sample_weights: np.ndarray | None = None,
  provenance: Mapping[str, Any] | None = None,
) -> match_score.Calibration:
  """Fits a logistic regression whose weights have the signs of `SIGNS`.

  Evidence that gets the wrong sign is left out, the most wrong first, and the
  rest is fitted again.

  Args:
    evidence: [n, f] of `match_score.evidence`.
    positive: [n] bool, whether both photographs show the same place.
    sample_weights: [n] what a candidate counts, positive; by default 1.
    provenance: what to remember of the data.

  Raises:
    InputError: if there are too few positives or negatives.
  """
  evidence = np.asarray(evidence, np.float64)
  positive = np.asarray(positive, bool)
  _check_counts(positive)
  signs = np.array([SIGNS[name] for name in match_score.NAMES])
  mean, scale = evidence.mean(axis=0), evidence.std(axis=0)
  scale = np.where(scale > 1e-9, scale, 1.0)
  unit = (evidence - mean) / scale
  used = np.arange(len(signs))
  while True:
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=2000)
    with warnings.catch_warnings():
      # Two thousand steps are enough for what a table can show.
      warnings.simplefilter("ignore", ConvergenceWarning)
      model.fit(unit[:, used], positive, sample_weight=sample_weights)
    agreement = model.coef_[0] * signs[used]
    if agreement.min() >= 0 or len(used) == 1:
      break
    used = np.delete(used, np.argmin(agreement))
  weights = np.zeros(len(signs))
  weights[used] = np.where(agreement >= 0, model.coef_[0], 0.0)
  return match_score.Calibration(
    mean=tuple(mean.tolist()),
    scale=tuple(scale.tolist()),
    weights=tuple(weights.tolist()),
    bias=float(model.intercept_[0]),
    provenance=dict(provenance or {}),
  )


def cross_validate(
  evidence: np.ndarray,
  positive: np.ndarray,
  groups: np.ndarray,
  *,
  sample_weights: np.ndarray | None = None,
  folds: int = 5,
) -> np.ndarray:
  """Returns probabilities [n] of a fit to the other groups.

  Args:
    evidence: [n, f].
    positive: [n] bool.
    groups: [n] integers: candidates of one place are held out together.
    sample_weights: see `fit`.
    folds: how many fits, at most one a group.

  Raises:
    InputError: if all is of one group, or a fold leaves too little to fit.
  """
  folds = min(folds, len(np.unique(groups)))
  if folds < 2:
    raise InputError(
      "all queries show one place, so nothing can be held out; a calibration "
      "needs queries of several places"
    )
  held_out = np.zeros(len(positive))
  splits = GroupKFold(folds).split(evidence, positive, groups)
  for fitted, tested in splits:
    weights = None if sample_weights is None else sample_weights[fitted]
    calibration = fit(
      evidence[fitted], np.asarray(positive)[fitted], sample_weights=weights
    )
    held_out[tested] = match_score.probability(evidence[tested], calibration)
  return held_out


def reliability(
  probabilities: np.ndarray,
  positive: np.ndarray,
  *,
  edges: Sequence[float] = EDGES,
) -> list[Bin]:
  """Compares probabilities with what they promise, row by row of a table.

  Args:
    probabilities: [n] from 0 to 1.
    positive: [n] bool.
    edges: ascending; a bin is closed below, the last one above as well.

  Returns:
    the bins that are not empty.
  """
  probabilities = np.asarray(probabilities, np.float64)
  positive = np.asarray(positive, bool)
  places = np.searchsorted(edges, probabilities, side="right") - 1
  places = np.minimum(places, len(edges) - 2)
  return [
    Bin(
      count=int(inside.sum()),
      predicted=float(probabilities[inside].mean()),
      observed=float(positive[inside].mean()),
    )
    for inside in (places == i for i in range(len(edges) - 1))
    if inside.any()
  ]


def log_loss(probabilities: np.ndarray, positive: np.ndarray) -> float:
  """The mean negative logarithm of what was given to the truth, in nats."""
  given = np.where(positive, probabilities, 1 - np.asarray(probabilities))
  return float(-np.log(np.maximum(given, 1e-6)).mean())


def _check_counts(positive: np.ndarray) -> None:
  """Refuses too few examples."""
  above = int(positive.sum())
  below = len(positive) - above
  if above < MIN_POSITIVES or below < MIN_NEGATIVES:
    raise InputError(
      f"{above} candidates of the same place and {below} of other places are "
      f"too few to fit a probability: it takes {MIN_POSITIVES} and "
      f"{MIN_NEGATIVES}; give more queries, or keep the default"
    )
