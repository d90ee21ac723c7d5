r"""Table 6 of the paper: number of features, on the large-scale dataset.

  python -m delf_jax.evaluate --config configs/tables/table6.py:ROW \
    --data DIR --config.checkpoints.lc=RUN --output RESULTS

DIR is a collection of your own with positions: the paper's is private
(1,060,709 photographs of 12,894 landmarks, 111,036 queries). A match is right
within 25 km; TP@P counts the right ones at a precision of P. The checkpoint is
`lc` of table3.py. One extraction serves all rows: the features are stored best
first. The variant `small` runs the same rows on synthetic landmarks,
`small,ROW` one of them: minutes, and no --data.
"""

from ml_collections import ConfigDict

COLUMNS = tuple(
  (f"TP@{precision}%", f"TP@{precision}", {"dataset.name": "gps"})
  for precision in (95, 90, 85)
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

# Too few descriptors for 8,000 words.
SMALL = tuple(
  (
    f"synthetic*, R@{precision}",
    f"R@{precision}",
    {**_SYNTHETIC, "index.options": ("words=0", "visit=0")},
  )
  for precision in (95, 90)
)

# Name, what the table calls it, what differs, and the paper's numbers.
ROWS = tuple(
  (
    f"l2_{count}",
    f"DELF+FT, L2, {count} features",
    {"features.max_features": count},
    numbers,
  )
  for count, numbers in (
    (400, (24.89, 29.44, 33.99)),
    (500, (19.67, 21.36, 23.02)),
    (600, (17.26, 19.54, 21.81)),
    (1000, (15.13, 17.27, 19.42)),
  )
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "table6",
      "title": "Table 6: number of features, on the large-scale dataset",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "checkpoints": {
        "lc": "",
      },
      "dataset": {},
      "features": {"checkpoint": "@lc", "score": "l2_norm", "pca": 40},
      "index": {"kind": "inverted_file"},
      "verification": {},
      "expansion": {},
      "sweep": {},
    }
  )
