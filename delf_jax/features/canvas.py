"""Photographs on canvases of few sizes, and features back in the original.

For features whose locations are centres of pixels at whole numbers. What lies
beyond the photograph on its canvas changes no feature.
"""

import numpy as np

from delf_jax.features import pyramid
from delf_jax.features.local_features import LocalFeatures


def on_canvas(
  pixels: np.ndarray, *, max_side: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads a photograph to one of `pyramid.canvases`.

  Args:
    pixels: [h, w, 3] uint8 RGB.
    max_side: the longest side of any photograph.

  Returns:
    the canvas, [h', w', 3], and [2] int32 height and width of what is real.

  Raises:
    ValueError: if a side is longer than `max_side`.
  """
  height, width = pixels.shape[:2]
  canvas = np.zeros((*pyramid.canvas_for(height, width, max_side), 3), np.uint8)
  canvas[:height, :width] = pixels
  return canvas, np.array([height, width], np.int32)


def in_original(
  features: LocalFeatures,
  shape: tuple[int, int],
  size: tuple[int, int] | None,
) -> LocalFeatures:
  """Gives locations and scales in pixels of the original photograph.

  Args:
    features: of one photograph.
    shape: (height, width) of the pixels that were looked at.
    size: (height, width) of the original; None: the same.
  """
  ratio = np.array(size or shape) / shape
  # Pixel centres, not corners, are at whole numbers: hence the halves.
  locations = (features.locations + 0.5) * ratio - 0.5
  scales = features.scales * np.sqrt(ratio.prod())
  return features.replace(
    locations=locations.astype(np.float32), scales=scales.astype(np.float32)
  )
