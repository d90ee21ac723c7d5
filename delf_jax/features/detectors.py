"""SURF and CONGAS of a photograph, in place of a network's features."""

import functools
import hashlib
from pathlib import Path

import jax
import numpy as np

from delf_jax.features import canvas, congas, surf
from delf_jax.features.local_features import LocalFeatures, compact
from delf_jax.features.reduction import Reduction

KINDS = ("surf", "surf_upright", "congas", "congas_raw")

# Of the descriptors of "congas": learned on photographs of landmarks by
# tests/benchmarks/congas_reduction.py, which says how.
CONGAS_REDUCTION = Path(__file__).parent / "congas_reduction.npz"

# The sigma, in pixels, that a feature of scale 1 is measured by: as for SIFT.
BASE_SIGMA = 1.6


@functools.cache
def reduction_of(kind: str) -> Reduction | None:
  """Returns L2 -> PCA -> L2 of a kind's descriptors, or None."""
  if kind != "congas":
    return None
  with np.load(CONGAS_REDUCTION) as arrays:
    return Reduction(**arrays)


def fingerprint_of(kind: str) -> str:
  """Returns a digest of what a kind has learned; "" if that is nothing."""
  if reduction_of(kind) is None:
    return ""
  return hashlib.sha256(CONGAS_REDUCTION.read_bytes()).hexdigest()[:16]


@functools.partial(jax.jit, static_argnames=("kind", "max_features"))
def run(reduction, pixels, size, *, kind, max_features):
  if kind.startswith("congas"):
    return congas.extract(reduction, pixels, size, max_features=max_features)[0]
  return surf.extract(
    pixels, size, max_features=max_features, upright=kind == "surf_upright"
  )[0]


def extract(
  pixels: np.ndarray,
  *,
  kind: str,
  max_side: int,
  max_features: int = 1000,
  size: tuple[int, int] | None = None,
) -> LocalFeatures:
  """Extracts the features of one photograph.

  It is padded to one of the few canvases of `pyramid.canvases`, which changes
  nothing, so that a folder of any sizes compiles few programs.

  Args:
    pixels: [h, w, 3] uint8 RGB, upright.
    kind: "surf"; "surf_upright", which takes photographs to be upright;
      "congas", a re-creation, reduced to 40 dimensions as in the DELF paper; or
      "congas_raw", not reduced.
    max_side: the longest side of any photograph.
    max_features: the most to keep, by response.
    size: (height, width) of the upright original where `pixels` is a reduced
      copy of it (`data.photographs.Photograph`); locations and scales are
      given in its pixels. None means that `pixels` is the original.

  Returns:
    NumPy features, all valid, in descending order of score: locations are
    keypoint centres, a pixel's centre at whole numbers; scales are sigmas
    divided by `BASE_SIGMA`; scores are the detector's responses. A photograph
    that is blank or too small for a keypoint gives none.

  Raises:
    ValueError: if the pixels, the kind or the number is none.
  """
  if kind not in KINDS:
    raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
  if max_features < 1:
    raise ValueError(f"max_features must be at least 1, not {max_features}")
  if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
    raise ValueError(
      f"pixels must be [h, w, 3] uint8, not {pixels.shape} {pixels.dtype}"
    )
  padded, shape = canvas.on_canvas(pixels, max_side=max_side)
  features = run(
    reduction_of(kind), padded, shape, kind=kind, max_features=max_features
  )
  features = compact(jax.device_get(features))
  features = features.replace(scales=features.scales / BASE_SIGMA)
  return canvas.in_original(features, pixels.shape[:2], size)
