"""SIFT and RootSIFT through OpenCV, in place of a network's features."""

import cv2
import numpy as np

from delf_jax.features.local_features import LocalFeatures, empty

KINDS = ("rootsift", "sift")
DIM = 128

# The diameter (two sigmas) of SIFT's base scale, sigma 1.6, in pixels: what
# a feature of scale 1 is measured by.
BASE_DIAMETER = 2 * 1.6


def extract(
  pixels: np.ndarray,
  *,
  kind: str = "rootsift",
  max_features: int = 1000,
  size: tuple[int, int] | None = None,
) -> LocalFeatures:
  """Extracts SIFT features with OpenCV's default parameters.

  RootSIFT is the square root of the descriptor divided by its sum (Arandjelović
  and Zisserman, "Three things everyone should know to improve object
  retrieval", 2012); plain SIFT is divided by its Euclidean norm. Both have
  unit length. The features neither depend on OpenCV's threads nor on the
  order in which it finds them.

  Args:
    pixels: [h, w, 3] uint8 RGB, upright.
    kind: "rootsift" or "sift".
    max_features: the most to keep, by response; equal responses by size, then
      position, then angle.
    size: (height, width) of the upright original where `pixels` is a reduced
      copy of it (`data.photographs.Photograph`); locations and scales are
      given in its pixels. None means that `pixels` is the original.

  Returns:
    NumPy features, all valid, in descending order of score: locations are
    keypoint centres, a pixel's centre at whole numbers; scales are diameters
    divided by `BASE_DIAMETER`; scores are OpenCV's responses. A photograph
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
  height, width = pixels.shape[:2]
  grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
  # A detector for each call: one object is not safe in several threads.
  sift = cv2.SIFT_create(nfeatures=max_features)
  keypoints, descriptors = sift.detectAndCompute(grey, None)
  if not keypoints:
    return empty(DIM)
  y, x, diameter, angle, response = np.array(
    [(k.pt[1], k.pt[0], k.size, k.angle, k.response) for k in keypoints],
    np.float32,
  ).T
  order = np.lexsort((angle, x, y, -diameter, -response))
  # OpenCV keeps every keypoint that ties with the last one; and a descriptor
  # of nothing but zeros could not be given unit length.
  order = order[descriptors[order].any(axis=1)][:max_features]
  descriptors = descriptors[order]
  if kind == "rootsift":
    descriptors = np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))
  else:
    descriptors = descriptors / np.linalg.norm(
      descriptors, axis=1, keepdims=True
    )
  ratio = np.array(size or (height, width)) / (height, width)
  # Pixel centres, not corners, are at whole numbers: hence the halves.
  locations = (np.stack([y, x], axis=1)[order] + 0.5) * ratio - 0.5
  scales = diameter[order] / BASE_DIAMETER * np.sqrt(ratio.prod())
  return LocalFeatures(
    locations=locations.astype(np.float32),
    scales=scales.astype(np.float32),
    scores=response[order],
    descriptors=descriptors,
    mask=np.ones(len(order), bool),
  )
