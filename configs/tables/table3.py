r"""Table 3 of the paper: DELF and others, with and without distractor queries.

  python -m delf_jax.evaluate --config configs/tables/table3.py:ROW \
    --data DIR --config.checkpoints.NAME=RUN --output RESULTS

DIR holds Oxford5k, Paris6k and Flickr100k, each photograph of which is added to
the databases of the larger versions. CHECKPOINTS:
  lc      fine-tuned on clean landmarks, with a PCA of 40 dimensions
  att_lf  attention on these descriptors, learned on all landmarks with random
          scales
  lift    what delf_jax.train_patches made
  selected
          what delf_jax.train_selection made: the 1000 of many hand-crafted
          features that attention scores highest
  dir, siamac
          global descriptors; rows with QE average a query with the first
          photograph it finds and ask again
RootSIFT, SURF and selected features are rows of our own, without numbers of the
paper.
Columns without a star have no distractor queries (mAP), those with one have 800
(R@90%). The variant `small` runs the same rows on synthetic landmarks,
`small,ROW` one of them: minutes, and no --data.

In percent; K and T as swept: --sweep, with training landmarks as --data.
"""

from ml_collections import ConfigDict

COLUMNS = tuple(
  (
    label + ("*" if starred else ""),
    "R@90" if starred else "mAP",
    {"dataset.name": name, "dataset.distractors": 800 if starred else 0},
  )
  for label, name in (
    ("Oxf5k", "oxford5k"),
    ("Oxf105k", "oxford105k"),
    ("Par6k", "paris6k"),
    ("Par106k", "paris106k"),
  )
  for starred in (False, True)
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

SMALL = (
  ("synthetic", "mAP", {**_SYNTHETIC, "dataset.distractors": 0}),
  ("synthetic*", "R@90", {**_SYNTHETIC, "dataset.distractors": 160}),
)


def _global(checkpoint: str, **changes: int) -> dict:
  return {
    "features.kind": "global",
    "features.checkpoint": f"@{checkpoint}",
    "features.pca": -1,
    "index.kind": "exact",
    **{f"expansion.{name}": value for name, value in changes.items()},
  }


def _delf(checkpoint: str, score: str) -> dict:
  return {"features.checkpoint": f"@{checkpoint}", "features.score": score}


# Name, what the table calls it, what differs, and the paper's numbers.
ROWS = (
  (
    "dir",
    "DIR",
    _global("dir"),
    (86.07, 51.43, 82.75, 5.24, 94.53, 56.73, 90.56, 32.84),
  ),
  (
    "dir_qe",
    "DIR+QE",
    _global("dir", neighbours=1),
    (87.08, 10.93, 85.30, 0.44, 95.23, 7.87, 91.83, 0.52),
  ),
  (
    "siamac",
    "siaMAC",
    _global("siamac"),
    (77.14, 23.23, 69.46, 2.65, 83.94, 27.19, 76.27, 0.52),
  ),
  (
    "siamac_qe",
    "siaMAC+QE",
    _global("siamac", neighbours=1),
    (81.73, 3.21, 76.64, 0.60, 86.24, 0.91, 79.77, 0.38),
  ),
  (
    "congas",
    "CONGAS",
    {"features.kind": "congas"},
    (70.80, 42.39, 61.10, 12.47, 67.12, 35.29, 56.80, 25.13),
  ),
  (
    "lift",
    "LIFT",
    {"features.kind": "lift", "features.checkpoint": "@lift"},
    (53.96, 21.98, None, None, 53.62, 16.64, None, None),
  ),
  (
    "rootsift",
    "RootSIFT",
    {"features.kind": "rootsift"},
    (None,) * len(COLUMNS),
  ),
  (
    "surf",
    "SURF",
    {"features.kind": "surf"},
    (None,) * len(COLUMNS),
  ),
  (
    "selected",
    "selected by attention",
    {"features.kind": "selected", "features.checkpoint": "@selected"},
    (None,) * len(COLUMNS),
  ),
  (
    "delf_l2",
    "DELF+FT, L2",
    _delf("lc", "l2_norm"),
    (84.44, 43.86, 83.47, 10.90, 85.34, 40.34, 81.42, 35.75),
  ),
  (
    "delf_att",
    "DELF+FT, Att",
    _delf("att_lf", "attention"),
    (83.79, 40.49, 82.62, 12.02, 85.04, 37.09, 81.65, 33.94),
  ),
  (
    "delf_l2_att",
    "DELF+FT, L2 + Att",
    _delf("att_lf", "product"),
    (84.05, 44.77, 83.57, 13.31, 84.77, 38.24, 81.27, 35.44),
  ),
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "table3",
      "title": "Table 3: DELF and others, with (*) and without distractors",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "checkpoints": {
        "lc": "",
        "att_lf": "",
        "lift": "",
        "selected": "",
        "dir": "",
        "siamac": "",
      },
      "dataset": {},
      "features": {"pca": 40},
      "index": {},
      "verification": {},
      "expansion": {},
      "sweep": {},
    }
  )
