r"""Table 5 of the paper: true positives on the large-scale dataset.

  python -m delf_jax.evaluate --config configs/tables/table5.py:ROW \
    --data DIR --config.checkpoints.NAME=RUN --output RESULTS

DIR is a collection of your own with positions: the paper's is private
(1,060,709 photographs of 12,894 landmarks, 111,036 queries). A match is right
within 25 km; TP@P counts the right ones at a precision of P. CHECKPOINTS are
`lc`, `att_lf` and `dir`, and of rows of our own `siamac` and `selected`, as in
table3.py. 500 features a photograph, none of DELF's that scores below 0.01, in
an inverted file of 8,000 words. The variant `small` runs the same rows on
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


def _global(checkpoint: str) -> dict:
  """Global descriptors, of which every photograph has one."""
  return {
    "features.kind": "global",
    "features.checkpoint": f"@{checkpoint}",
    "features.pca": -1,
    "index.kind": "exact",
  }


# Their scores have other units than those of a DELF.
_HANDCRAFTED = {"features.score_threshold": 0.0}
_NO_NUMBERS = (None,) * len(COLUMNS)

# Name, what the table calls it, what differs, and the paper's numbers.
ROWS = (
  ("dir", "DIR", _global("dir"), (9.29, 9.59, 9.89)),
  ("siamac", "siaMAC", _global("siamac"), _NO_NUMBERS),
  (
    "congas",
    "CONGAS",
    {"features.kind": "congas", **_HANDCRAFTED},
    (17.44, 28.44, 35.59),
  ),
  (
    "rootsift",
    "RootSIFT",
    {"features.kind": "rootsift", **_HANDCRAFTED},
    _NO_NUMBERS,
  ),
  ("surf", "SURF", {"features.kind": "surf", **_HANDCRAFTED}, _NO_NUMBERS),
  (
    "selected",
    "selected by attention",
    {
      "features.kind": "selected",
      "features.checkpoint": "@selected",
      **_HANDCRAFTED,
    },
    _NO_NUMBERS,
  ),
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
      "table": "table5",
      "title": "Table 5: true positives on the large-scale dataset",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "checkpoints": {
        "lc": "",
        "att_lf": "",
        "dir": "",
        "siamac": "",
        "selected": "",
      },
      "dataset": {},
      "features": {"pca": 40, "max_features": 500, "score_threshold": 0.01},
      "index": {"kind": "inverted_file"},
      "verification": {},
      "expansion": {},
      "sweep": {},
    }
  )
