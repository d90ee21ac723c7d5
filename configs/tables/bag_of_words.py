r"""Bags of visual words, which the DELF paper's local features compete with.

  python -m delf_jax.evaluate --config configs/tables/bag_of_words.py:ROW \
    --data DIR --output RESULTS

Philbin et al., "Object retrieval with large vocabularies and fast spatial
matching" (CVPR 2007) and "Lost in quantization" (CVPR 2008), with at most 1000
SIFT features a photograph like all local competitors; their own took every
feature. DIR holds Oxford5k, Paris6k and Flickr100k. The words are learned on
the photographs that are searched, as theirs were on Oxford's; with those of
others: --config.index.options=vocabulary=INDEX, of what
`delf_jax.build_index --kind bag_of_words` made of a store of theirs.

ROWS
  words         ranked by the cosine of tf-idf vectors
  verified      the first 100 verified: features with the same word, affine
  soft          a descriptor has its three nearest words
  soft_verified both

Columns without a star have no distractor queries (mAP), those with one have 800
(R@90%). The variant `small` runs the same rows on synthetic landmarks,
`small,ROW` one of them, in a minute or two and with no --data.

In percent.
"""

from ml_collections import ConfigDict

COLUMNS = tuple(
  (
    label + ("*" if starred else ""),
    "R@90" if starred else "mAP",
    {"dataset.name": name, "dataset.distractors": 800 if starred else 0},
  )
  for label, name in (("Oxf5k", "oxford5k"), ("Oxf105k", "oxford105k"))
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
  "features.max_side": 320,
}

SMALL = (
  ("synthetic", "mAP", {**_SYNTHETIC, "dataset.distractors": 0}),
  ("synthetic*", "R@90", {**_SYNTHETIC, "dataset.distractors": 160}),
)

_RANKED = {"candidates": 0}
_SOFT = {"index.options": ("soft=3",)}

# Name, what the table calls it, what differs, and the paper's numbers.
ROWS = (
  ("words", "words", _RANKED, (None, None, None, None)),
  ("verified", "words, verified", {}, (64.7, None, 54.1, None)),
  ("soft", "words, soft", {**_RANKED, **_SOFT}, (None, None, None, None)),
  ("soft_verified", "words, soft, verified", _SOFT, (None, None, None, None)),
)


def get_config(variant: str = "all") -> ConfigDict:
  """Returns the table; the variant is all, a row, small, or small,ROW."""
  return ConfigDict(
    {
      "table": "bag_of_words",
      "title": "Bags of words, with (*) and without distractors",
      "variant": variant,
      "rows": ROWS,
      "columns": COLUMNS,
      "small": SMALL,
      "dataset": {},
      "features": {"kind": "sift"},
      "index": {"kind": "bag_of_words"},
      "verification": {"counting": "one_to_one", "transforms": "plausible"},
      "expansion": {},
      "sweep": {},
    }
  )
