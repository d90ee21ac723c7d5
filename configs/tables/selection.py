r"""What selects the features of the shipped network, and how many of them.

  python -m delf_jax.evaluate --config configs/tables/selection.py:ROW \
    --data DIR --output RESULTS

DIR holds photos/, ground_truth.json and distractors/ of your own. Every row
differs from the first in one thing. One extraction serves the rows that differ
in their number or PCA alone. The PCA is learned on what the checkpoint was
trained on, or on --config.features.pca_photographs. Another checkpoint is
measured with --config.checkpoints.network=RUN. The variant `small` runs the
same rows on synthetic landmarks, `small,ROW` one of them: minutes, and no
--data.
"""

from ml_collections import ConfigDict

METRICS = (
  ("mAP, easy and hard", "mAP_medium"),
  ("mAP, hard", "mAP_hard"),
  ("R@90%", "R@90"),
  ("R@95%", "R@95"),
)

COLUMNS = tuple(
  (label, metric, {"dataset.name": "json"}) for label, metric in METRICS
)

# Landmarks that nothing here trains on, and as much clutter.
_SYNTHETIC = {
  "dataset.name": "synthetic",
  "dataset.options": (
    "num_landmarks=20",
    "views=6",
    "clutter=40",
    "distractors=160",
    "first_landmark=2000",
    "first_clutter=5000",
  ),
  "dataset.distractors": 160,
  "features.max_side": 320,
}

SMALL = tuple((label, metric, _SYNTHETIC) for label, metric in METRICS)

FIVE = (0.3536, 0.5, 0.7071, 1.0, 1.4142)
SEVEN = tuple(2.0 ** (k / 2) for k in range(-4, 3))

# Name, what the table calls it, and what differs from the first row.
_DIFFERENT = (
  ("default", "L2 norm, scales 0.35-1.41, 128 dimensions, 1000", {}),
  ("attention", "selected by attention", {"features.score": "attention"}),
  ("product", "by L2 norm x attention", {"features.score": "product"}),
  ("one_scale", "scale 1", {"features.scales": (1.0,)}),
  ("seven_scales", "scales 0.25-2", {"features.scales": SEVEN}),
  ("pca128", "PCA 128", {"features.pca": 128}),
  ("pca40", "PCA 40", {"features.pca": 40}),
  ("500", "500 features", {"features.max_features": 500}),
  (
    "500_pca40",
    "500 features, PCA 40",
    {"features.max_features": 500, "features.pca": 40},
  ),
  (
    "product_expanded",
    "by L2 norm x attention, 30 photographs found asked again",
    {"features.score": "product", "expansion.neighbours": 30},
  ),
)

# The paper has no such table.
ROWS = tuple(
  (name, title, changes, (None,) * len(METRICS))
  for name, title, changes in _DIFFERENT
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "selection",
      "title": "Selection, scales, dimensions and number of features",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "checkpoints": {"network": "delf_small"},
      "dataset": {},
      "features": {
        "checkpoint": "@network",
        "scales": FIVE,
        "pca": 0,
      },
      "index": {"kind": "exact"},
      # The system as `evaluate` without a config has it.
      "neighbours": 32,
      "verification": {
        "votes": "distance_bursts",
        "matching": "mutual",
        "counting": "one_to_one",
        "transforms": "plausible",
        "score": "probability",
      },
      "expansion": {},
      "sweep": {},
    }
  )
