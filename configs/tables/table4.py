r"""Table 4 of the paper: the more distractor queries, the lower the recall.

  python -m delf_jax.evaluate --config configs/tables/table4.py:ROW \
    --data DIR --config.checkpoints.NAME=RUN --output RESULTS

DIR holds Oxford5k, Paris6k and Flickr100k. CHECKPOINTS are `lc`, `att_lf`
and `dir`, as in table3.py. Each search is done once: fewer distractor queries
are the first of more. The variant `small` runs the same rows on synthetic
landmarks, `small,ROW` one of them: minutes, and no --data.

R@90%, in percent; K and T as swept: --sweep, with training landmarks as --data.
"""

from ml_collections import ConfigDict

COLUMNS = tuple(
  (
    f"{label}*, {count}",
    "R@90",
    {"dataset.name": name, "dataset.distractors": count},
  )
  for label, name in (("Oxf105k", "oxford105k"), ("Par106k", "paris106k"))
  for count in (0, 400, 800, 1600)
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

SMALL = tuple(
  (
    f"synthetic*, {count}",
    "R@90",
    {**_SYNTHETIC, "dataset.distractors": count},
  )
  for count in (0, 40, 80, 160)
)


def _delf(checkpoint: str, score: str) -> dict:
  return {"features.checkpoint": f"@{checkpoint}", "features.score": score}


# Global descriptors, of which every photograph has one.
_DIR = {
  "features.kind": "global",
  "features.checkpoint": "@dir",
  "features.pca": -1,
  "index.kind": "exact",
}

# Name, what the table calls it, what differs, and the paper's numbers.
ROWS = (
  (
    "dir",
    "DIR",
    _DIR,
    (63.02, 10.40, 5.24, 2.91, 51.61, 40.48, 32.84, 19.62),
  ),
  (
    "delf_l2",
    "DELF+FT, L2",
    _delf("lc", "l2_norm"),
    (55.57, 22.79, 10.90, 6.92, 45.17, 38.32, 35.75, 30.89),
  ),
  (
    "delf_att",
    "DELF+FT, Att",
    _delf("att_lf", "attention"),
    (51.41, 24.57, 12.02, 6.73, 43.84, 35.91, 33.94, 28.04),
  ),
  (
    "delf_l2_att",
    "DELF+FT, L2 + Att",
    _delf("att_lf", "product"),
    (55.67, 24.12, 13.31, 6.09, 44.78, 36.57, 35.44, 28.06),
  ),
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "table4",
      "title": "Table 4: number of distractor queries (R@90%)",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "checkpoints": {
        "lc": "",
        "att_lf": "",
        "dir": "",
      },
      "dataset": {},
      "features": {"pca": 40},
      "index": {},
      "verification": {},
      "expansion": {},
      "sweep": {},
    }
  )
