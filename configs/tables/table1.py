r"""Table 1 of the paper: what each part of DELF is worth.

  python -m delf_jax.evaluate --config configs/tables/table1.py:ROW \
    --data DIR --config.checkpoints.NAME=RUN --output RESULTS

DIR holds Oxford5k and Paris6k, each of which lends the other 400 distractor
queries. CHECKPOINTS are training runs:
  imagenet    ResNet-50 as ImageNet left it (delf_jax.convert)
  sd, lf, lc  fine-tuned on structure-from-motion landmarks, on the full and on
              the clean landmarks (configs/finetune.py)
  att_lc, att_lc_rs, att_lf_rs
              attention on the descriptors of lc, learned on clean landmarks, on
              these with random scales, and on all landmarks with random scales
Every row is a variant, and `all` runs them one after the other. One extraction
serves the rows that differ in their PCA alone. The variant `small` runs the
same rows on synthetic landmarks, `small,ROW` one of them: minutes, and no
--data.

R@90%, in percent; K and T as swept: --sweep, with training landmarks as --data.
"""

from ml_collections import ConfigDict

# The first of the seven scales that every other row has.
FIVE = tuple(2.0 ** (k / 2) for k in range(-4, 1))
# More than a photograph of 1024 x 768 pixels has at five scales.
EVERY = 6000

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

_PRETRAINED = {"features.checkpoint": "@imagenet"}
_PLAIN = {**_PRETRAINED, "features.pca": 0}


def _tuned(checkpoint: str, score: str = "l2_norm") -> dict:
  return {
    "features.checkpoint": f"@{checkpoint}",
    "features.score": score,
    "features.pca": 40,
  }


# Name, what the table calls it, what differs, and the paper's numbers.
ROWS = (
  (
    "one_scale",
    "scale 1, every feature",
    {**_PLAIN, "features.scales": (1.0,), "features.max_features": EVERY},
    (6.27, 4.08),
  ),
  (
    "five_scales",
    "scales 0.25-1, every feature",
    {**_PLAIN, "features.scales": FIVE, "features.max_features": EVERY},
    (18.78, 13.98),
  ),
  (
    "five_scales_l2",
    "scales 0.25-1, 1000 by L2 norm",
    {**_PLAIN, "features.scales": FIVE},
    (22.32, 12.49),
  ),
  ("seven_scales_l2", "scales 0.25-2, 1000 by L2 norm", _PLAIN, (33.91, 30.35)),
  (
    "pca512",
    "the same, PCA 512",
    {**_PRETRAINED, "features.pca": 512},
    (35.78, 32.79),
  ),
  (
    "pca128",
    "the same, PCA 128",
    {**_PRETRAINED, "features.pca": 128},
    (38.71, 34.82),
  ),
  (
    "pca40",
    "the same, PCA 40",
    {**_PRETRAINED, "features.pca": 40},
    (41.23, 35.26),
  ),
  ("finetuned_sd", "PCA 40, fine-tuned on SD", _tuned("sd"), (40.66, 36.91)),
  ("finetuned_lf", "PCA 40, fine-tuned on LF", _tuned("lf"), (43.64, 40.39)),
  ("finetuned_lc", "PCA 40, fine-tuned on LC", _tuned("lc"), (45.70, 42.17)),
  ("att_lc", "LC, Att-LC", _tuned("att_lc", "attention"), (43.08, 41.77)),
  (
    "att_lc_rs",
    "LC, Att-LC+RS",
    _tuned("att_lc_rs", "attention"),
    (42.63, 39.68),
  ),
  (
    "att_lf_rs",
    "LC, Att-LF+RS",
    _tuned("att_lf_rs", "attention"),
    (43.58, 39.33),
  ),
  ("l2_att_lc", "LC, L2 + Att-LC", _tuned("att_lc", "product"), (46.07, 40.86)),
  (
    "l2_att_lc_rs",
    "LC, L2 + Att-LC+RS",
    _tuned("att_lc_rs", "product"),
    (45.14, 40.56),
  ),
  (
    "l2_att_lf_rs",
    "LC, L2 + Att-LF+RS",
    _tuned("att_lf_rs", "product"),
    (46.72, 41.09),
  ),
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "table1",
      "title": "Table 1: variations of DELF (R@90%)",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "checkpoints": {
        "imagenet": "",
        "sd": "",
        "lf": "",
        "lc": "",
        "att_lc": "",
        "att_lc_rs": "",
        "att_lf_rs": "",
      },
      "dataset": {},
      "features": {},
      "index": {},
      "verification": {},
      "expansion": {},
      "sweep": {},
    }
  )
