r"""Table 2 of the paper: non-maximum suppression.

  python -m delf_jax.evaluate --config configs/tables/table2.py:ROW \
    --data DIR --config.checkpoints.imagenet=RUN --output RESULTS

DIR holds Oxford5k and Paris6k; the checkpoint is ResNet-50 as ImageNet left it.
A threshold of 1 suppresses nothing, and here that is best. The variant `small`
runs the same rows on synthetic landmarks, `small,ROW` one of them: minutes, and
no --data.

R@90%, in percent; K and T as swept: --sweep, with training landmarks as --data.
"""

from ml_collections import ConfigDict

COLUMNS = (
  (
    "Oxf5k*",
    "R@90",
    {"dataset.name": "oxford5k", "dataset.distractors": 400},
  ),
  (
    "Par6k*",
    "R@90",
    {"dataset.name": "paris6k", "dataset.distractors": 400},
  ),
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

SMALL = (("synthetic*", "R@90", _SYNTHETIC),)

_NUMBERS = {
  (400, 0.5): (12.61, 5.62),
  (400, 0.7): (27.87, 21.63),
  (400, 1.0): (30.66, 26.68),
  (1000, 0.5): (15.91, 6.60),
  (1000, 0.7): (27.88, 20.15),
  (1000, 1.0): (33.91, 30.35),
}

# Name, what the table calls it, what differs, and the paper's numbers.
ROWS = tuple(
  (
    f"{count}_iou{100 * overlap:.0f}",
    f"{count} features, IoU {overlap}",
    {"features.max_features": count, "features.iou_threshold": overlap},
    numbers,
  )
  for (count, overlap), numbers in _NUMBERS.items()
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "table2",
      "title": "Table 2: threshold of non-maximum suppression (R@90%)",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "checkpoints": {
        "imagenet": "",
      },
      "dataset": {},
      "features": {"checkpoint": "@imagenet", "pca": 0},
      "index": {},
      "verification": {},
      "expansion": {},
      "sweep": {},
    }
  )
