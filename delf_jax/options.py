"""Flags that several programs share, and their values as keyword arguments."""

import json
from collections.abc import Sequence
from typing import Any, get_args

from absl import flags

from delf_jax import (
  checkpoint,
  extraction,
  extractors,
  match_chains,
  match_score,
  retrieval,
)
from delf_jax.errors import InputError
from delf_jax.geometry.models import ErrorName, ModelName
from delf_jax.geometry.sampling import SamplingName

# Of `define_features`, what tunes a kind of feature.
FEATURE_OPTIONS = (
  "max_features",
  "score",
  "scales",
  "score_threshold",
  "iou_threshold",
  "sides",
)
# Of `define_search` and of `define_expansion`.
SEARCH_OPTIONS = (
  "neighbours",
  "candidates",
  "votes",
  "matching",
  "model",
  "error",
  "sampling",
  "num_hypotheses",
  "counting",
  "transforms",
  "threshold",
  "score_by",
  "calibration",
  "seed",
)
# The first means something to local features, too.
EXPANSION_OPTIONS = ("expansion", "alpha", "database_expansion")


def define_features() -> None:
  """Defines the flags that choose and tune a kind of feature."""
  flags.DEFINE_string(
    "features",
    None,
    f"a training run, or one of "
    f"{', '.join((*checkpoint.NAMES, *extractors.HANDCRAFTED))} "
    f"({checkpoint.DEFAULT}).",
  )
  flags.DEFINE_integer(
    "max_side",
    extractors.MAX_SIDE,
    "photographs are reduced to this longest side, in pixels, first.",
    lower_bound=64,
  )
  flags.DEFINE_integer(
    "max_features",
    None,
    "features a photograph (1000, or as the checkpoint says).",
    lower_bound=1,
  )
  flags.DEFINE_enum(
    "score",
    None,
    ["l2_norm", "attention", "product"],
    "what features are selected by (as the checkpoint says).",
  )
  flags.DEFINE_list(
    "scales", None, "image pyramid, such as 0.5,1 (as the checkpoint says)."
  )
  flags.DEFINE_float(
    "score_threshold", None, "features that score less are dropped (0)."
  )
  flags.DEFINE_float(
    "iou_threshold",
    None,
    "of non-maximum suppression; 1 suppresses nothing (1).",
    lower_bound=0.0,
    upper_bound=1.0,
  )
  flags.DEFINE_list(
    "sides",
    None,
    "of global descriptors: longest sides that a photograph is seen at, such "
    "as 550,800,1050 (as the checkpoint says).",
  )


def define_workers() -> None:
  """Defines the flag of how many photographs are extracted side by side."""
  flags.DEFINE_integer(
    "workers",
    None,
    "photographs at a time (one a core, up to 8).",
    lower_bound=1,
  )


def open_extractor(values: flags.FlagValues) -> extractors.Extractor:
  """Opens the kind of feature that the flags of `define_features` ask for.

  Raises:
    InputError: if there is none, or a flag does not apply to it.
  """
  given = {
    name: values[name].value
    for name in FEATURE_OPTIONS
    if values[name].value is not None
  }
  if "scales" in given:
    try:
      given["scales"] = [float(scale) for scale in given["scales"]]
    except ValueError as error:
      raise InputError(f"--scales: {error}; expected e.g. 0.5,1") from error
    if not given["scales"] or not all(0 < s <= 4 for s in given["scales"]):
      raise InputError("--scales: every scale must lie above 0 and up to 4")
  if "sides" in given:
    if not given["sides"] or not all(s.isdecimal() for s in given["sides"]):
      raise InputError("--sides: expected pixels, e.g. 550,800,1050")
    given["sides"] = [int(side) for side in given["sides"]]
    if min(given["sides"]) < extraction.MIN_SIDE:
      raise InputError(f"--sides: give {extraction.MIN_SIDE} pixels or more")
  return extractors.open_extractor(
    values.features or checkpoint.DEFAULT, max_side=values.max_side, **given
  )


def define_search() -> None:
  """Defines the flags of voting and verification."""
  flags.DEFINE_integer(
    "neighbours",
    retrieval.NEIGHBOURS,
    "nearest index descriptors of a query descriptor.",
    lower_bound=1,
  )
  flags.DEFINE_integer(
    "candidates",
    100,
    "photographs that are verified; a bag of words takes 0.",
    lower_bound=0,
  )
  flags.DEFINE_enum(
    "votes",
    "distance_bursts",
    ["count", "distance", "bursts", "distance_bursts"],
    "what a vote weighs: one, more for nearer descriptors, less for one of "
    "many that share a place.",
  )
  flags.DEFINE_enum(
    "matching",
    retrieval.MATCHING,
    get_args(retrieval.Matching),
    "what is verified: the votes (of a bag of words, the features with the "
    "same word), the mutually nearest features of both photographs, or those "
    "that are clearly nearer than the next.",
  )
  flags.DEFINE_enum(
    "model",
    "affine",
    get_args(ModelName),
    "of the transform.",
  )
  flags.DEFINE_enum(
    "error",
    "one_way",
    get_args(ErrorName),
    "residuals in the photograph, or in the query too.",
  )
  flags.DEFINE_enum(
    "sampling",
    "uniform",
    get_args(SamplingName),
    "hypotheses from any matches, the nearest first, those of consistent "
    "scales, or each match alone.",
  )
  flags.DEFINE_integer(
    "num_hypotheses",
    3000,
    "transforms that are tried for a photograph, at most.",
    lower_bound=1,
  )
  flags.DEFINE_enum(
    "counting",
    "one_to_one",
    ["one_to_one", "plain"],
    "inliers: one match a place, or every match.",
  )
  flags.DEFINE_enum(
    "transforms",
    "plausible",
    ["plausible", "any"],
    "refuse collapses, mirror images and extreme stretches, or nothing.",
  )
  flags.DEFINE_float(
    "threshold",
    retrieval.THRESHOLD,
    "largest residual of an inlier, in pixels of photographs reduced to "
    f"{retrieval.REFERENCE_SIDE}.",
    lower_bound=0.0,
  )
  flags.DEFINE_enum(
    "score_by",
    retrieval.SCORE,
    get_args(retrieval.Score),
    "what photographs are sorted by: the probability of a match, the inliers, "
    "or the inliers weighted by how near their descriptors are.",
  )
  flags.DEFINE_string(
    "calibration",
    None,
    "of the probability; what delf_jax.calibrate wrote (the checkpoint's, or "
    "that of hand-crafted or of learned features).",
  )
  flags.DEFINE_integer("seed", 0, "of the hypotheses.", lower_bound=0)


def search_options(values: flags.FlagValues) -> dict[str, Any]:
  """Returns the flags of `define_search` as `retrieval.search` takes them.

  Raises:
    InputError: if the file of --calibration cannot be read, or a flag does
      not apply.
  """
  if values.sampling == "exhaustive":
    refuse(
      values,
      ("num_hypotheses", "seed"),
      "does not apply: --sampling=exhaustive tries every match and draws none",
    )
  names = (
    "neighbours",
    "candidates",
    "votes",
    "matching",
    "model",
    "error",
    "sampling",
    "num_hypotheses",
    "counting",
    "transforms",
    "threshold",
    "seed",
  )
  found = {name: values[name].value for name in names}
  found["score"] = values["score_by"].value
  if values.calibration is not None:
    found["calibration"] = match_score.read_calibration(values.calibration)
  elif "features" in values:
    named = values.features
    if not named and not ("index" in values and values.index):
      named = checkpoint.DEFAULT
    if named:
      found["calibration"] = extractors.calibration_of(
        {"kind": extractors.kind_of(named)}, named
      )
  return found


def define_expansion() -> None:
  """Defines the flags that say what is made of what a query finds."""
  flags.DEFINE_integer(
    "expansion",
    None,
    "of the photographs that a query finds, so many are asked again, and what "
    f"they find is found ({match_chains.MOST}, where matches have "
    "probabilities; the paper has 0); of global descriptors, so many are "
    "averaged with the query (0; the paper had 1 for its rows with QE).",
    lower_bound=0,
  )
  flags.DEFINE_float(
    "alpha",
    0.0,
    "of global descriptors: the power of their similarity that these are "
    "weighted by; 0 weights all by one.",
    lower_bound=0.0,
  )
  flags.DEFINE_integer(
    "database_expansion",
    0,
    "of global descriptors: photographs that each of the database is averaged "
    "with.",
    lower_bound=0,
  )


def expansion_options(values: flags.FlagValues) -> dict[str, Any]:
  """Returns the flags of `define_expansion` as `measurement.evaluate` does.

  Raises:
    InputError: if a flag of the search by local features was given.
  """
  refuse(
    values,
    SEARCH_OPTIONS,
    "is of local features; the search by global descriptors has "
    "--expansion, --alpha and --database_expansion",
  )
  return {
    "expansion": values.expansion or 0,
    "alpha": values.alpha,
    "database_neighbours": values.database_expansion,
    "database_alpha": values.alpha,
  }


def local_expansion(values: flags.FlagValues) -> int:
  """Returns how many photographs found are asked again, of local features.

  Raises:
    InputError: if a flag was given that is of global descriptors, or one that
      --score_by does not allow.
  """
  refuse(
    values,
    [name for name in EXPANSION_OPTIONS if name != "expansion"],
    "is of global descriptors, and these features are local",
  )
  if values["score_by"].value == "probability":
    return match_chains.MOST if values.expansion is None else values.expansion
  if values.expansion:
    raise InputError(
      f"--expansion asks again by the probability of matches, not by "
      f"--score_by={values['score_by'].value}"
    )
  return 0


def refuse(values: flags.FlagValues, names: Sequence[str], reason: str) -> None:
  """Refuses flags that were given and do not apply.

  Args:
    values: of all flags.
    names: of the flags that must not be given.
    reason: the end of the sentence that begins with the flag's name.

  Raises:
    InputError: naming the first one that was given.
  """
  for name in names:
    if values[name].present:
      raise InputError(f"--{name} {reason}")


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
  """Reads name=value options; a value is JSON, or else text.

  Raises:
    InputError: if one has no "=".
  """
  options = {}
  for text in texts:
    name, equals, value = text.partition("=")
    if not equals:
      raise InputError(f"option {text!r}: expected name=value")
    try:
      options[name] = json.loads(value)
    except ValueError:
      options[name] = value
  return options
