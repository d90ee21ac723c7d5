r"""Table 7 of the paper: threshold of selection, on the large-scale dataset.

  python -m delf_jax.evaluate --config configs/tables/table7.py:ROW \
    --data DIR --config.checkpoints.NAME=RUN --output RESULTS

DIR is a collection of your own with positions: the paper's is private
(1,060,709 photographs of 12,894 landmarks, 111,036 queries). A match is right
within 25 km; TP@P counts the right ones at a precision of P. CHECKPOINTS are
`lc` and `att_lf`, as in table3.py. Scores of another network lie in another
range: set --config.features.score_threshold to a quantile of its own. One
extraction serves the rows of one score. The variant `small` runs the same rows
on synthetic landmarks, `small,ROW` one of them: minutes, and no --data.
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

_METHODS = (
  ("l2", "DELF+FT, L2", "lc", "l2_norm"),
  ("att", "DELF+FT, Att", "att_lf", "attention"),
  ("l2_att", "DELF+FT, L2 + Att", "att_lf", "product"),
)
_NUMBERS = {
  ("l2", 0.0): (19.67, 21.36, 23.02),
  ("l2", 0.01): (22.23, 27.38, 32.09),
  ("l2", 0.1): (15.41, 16.84, 18.22),
  ("att", 0.0): (22.14, 35.98, 41.47),
  ("att", 0.01): (61.87, 92.61, 108.5),
  ("att", 0.1): (43.45, 48.52, 101.61),
  ("l2_att", 0.0): (34.41, 35.84, 46.29),
  ("l2_att", 0.01): (42.59, 49.42, 59.75),
  ("l2_att", 0.1): (26.37, 44.79, 58.54),
}

# Name, what the table calls it, what differs, and the paper's numbers.
ROWS = tuple(
  (
    f"{name}_beta{threshold:g}".replace(".", ""),
    f"{title}, β = {threshold:g}",
    {
      "features.checkpoint": f"@{checkpoint}",
      "features.score": score,
      "features.score_threshold": threshold,
    },
    _NUMBERS[name, threshold],
  )
  for name, title, checkpoint, score in _METHODS
  for threshold in (0.0, 0.01, 0.1)
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "table7",
      "title": "Table 7: threshold of selection, on the large-scale dataset",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "checkpoints": {
        "lc": "",
        "att_lf": "",
      },
      "dataset": {},
      "features": {"pca": 40, "max_features": 500},
      "index": {"kind": "inverted_file"},
      "verification": {},
      "expansion": {},
      "sweep": {},
    }
  )
