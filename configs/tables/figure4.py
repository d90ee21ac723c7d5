r"""Figure 4 of the paper: precision against true positives, large scale.

  python -m delf_jax.evaluate --config configs/tables/figure4.py:ROW \
    --data DIR --config.checkpoints.NAME=RUN --output RESULTS

DIR is a collection of your own with positions: the paper's is private
(1,060,709 photographs of 12,894 landmarks, 111,036 queries). A match is right
within 25 km; TP@P counts the right ones at a precision of P. The rows are those
of Table 5, whose numbers stand beside them; the curves are what `python -m
delf_jax.report` draws. CHECKPOINTS are `lc`, `att_lf` and `dir`, as in
table3.py. 500 features a photograph, none that scores below 0.01, in an
inverted file of 8,000 words. The variant `small` runs the same rows on
synthetic landmarks, `small,ROW` one of them: minutes, and no --data.
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
  ("dir", "DIR", _DIR, (9.29, 9.59, 9.89)),
  ("congas", "CONGAS", {"features.kind": "congas"}, (17.44, 28.44, 35.59)),
  ("delf_l2", "DELF+FT, L2", _delf("lc", "l2_norm"), (22.23, 27.38, 32.09)),
  (
    "delf_att",
    "DELF+FT, Att",
    _delf("att_lf", "attention"),
    (61.87, 92.61, 108.5),
  ),
  (
    "delf_l2_att",
    "DELF+FT, L2 + Att",
    _delf("att_lf", "product"),
    (42.59, 49.42, 59.75),
  ),
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "figure4",
      "title": "Figure 4: precision against true positives, large scale",
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
      "features": {"pca": 40, "max_features": 500, "score_threshold": 0.01},
      "index": {"kind": "inverted_file"},
      "verification": {},
      "expansion": {},
      "sweep": {},
    }
  )
