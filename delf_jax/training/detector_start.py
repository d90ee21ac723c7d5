"""Filters that LIFT's detector may begin with: a measure of blobs.

Yi et al. begin with chance, and train for days. Ours begins with what the best
hand-made detectors look for: of the eigenvalues a and b of the Hessian at a
scale, |a + b| - |a - b|, which is large in the middle of blobs and at corners
and not above zero along edges. That is a sum of maxima as it is,

  max(L, -L) - max(D, -D, M, -M),  L = xx + yy, D = xx - yy, M = 2 xy,

where the second is |a - b| or up to 1 / sqrt(2) of it, with the direction.
"""

import numpy as np

# Of the Gaussian, in pixels: a patch is 24 of it wide.
SIGMA = 64 / 24
# So that what stands out in photographs scores about one.
GAIN = 2.0


def blob_filters(
  side: int, hinges: tuple[int, int], *, sigma: float = SIGMA
) -> np.ndarray:
  """Builds the filters.

  Args:
    side: of a filter, odd.
    hinges: (sums, maxima) of the detector; what is left over is zero.
    sigma: of the Gaussian.

  Returns:
    [side, side, sums * maxima] float32; each sums to zero.
  """
  steps = np.arange(side) - (side - 1) / 2
  y, x = steps[:, None] / sigma, steps[None, :] / sigma
  bell = np.exp(-(y**2 + x**2) / 2)
  bell /= bell.sum()
  xx, yy, xy = (x**2 - 1) * bell, (y**2 - 1) * bell, x * y * bell
  groups = ((xx + yy, -xx - yy), (xx - yy, yy - xx, 2 * xy, -2 * xy))
  sums, maxima = hinges
  filters = np.zeros((sums, maxima, side, side))
  for k, group in enumerate(groups[:sums]):
    for i, one in enumerate(group[:maxima]):
      filters[k, i] = GAIN * (one - one.mean())
  return np.moveaxis(filters.reshape(-1, side, side), 0, -1).astype(np.float32)
