"""The four models of RANSAC, each as a few functions, and what bounds them.

translation_scale  3 unknowns: what one correspondence of two features says,
                   which have a size
similarity         4: shift, scale and rotation
affine             6: the paper's, and the released system's
homography         8: the view of one plane from two places
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from delf_jax.geometry import homography, transforms

ModelName = Literal["translation_scale", "similarity", "affine", "homography"]
ErrorName = Literal["one_way", "symmetric"]


class Bounds(NamedTuple):
  """Which transforms are plausible.

  Attributes:
    limit: squared threshold.
    extent: of the source points, pixels.
    target_extent: of the target points; None where a collapse of the target
      does not matter.
    min_span, max_stretch, mirrored: as in `ransac.ransac`.
  """

  limit: jax.Array
  extent: jax.Array
  target_extent: jax.Array | None
  min_span: jax.Array
  max_stretch: jax.Array
  mirrored: jax.Array

  def allow(self, area: jax.Array, lengths: jax.Array) -> jax.Array:
    """Judges what `transforms.stretch` returns."""
    area = jnp.where(self.mirrored, jnp.abs(area), area)
    least = self.min_span**2 * self.limit
    ok = (
      (area > 0)
      & (area * self.extent**2 >= least)
      & (lengths <= (self.max_stretch + 1.0 / self.max_stretch) * area)
    )
    if self.target_extent is not None:
      ok &= self.target_extent**2 >= least * area
    return ok


class Error(NamedTuple):
  """How far a transform misses, in two ways that agree.

  Attributes:
    squared_residuals: (transform [3, 3], source [..., 2], target [..., 2]) ->
      [...] pixels^2; NaN or infinite where a point is.
    within: (transform, source, target, limit) -> [...] bool, whether they are
      at most `limit`.
  """

  squared_residuals: Callable[..., jax.Array]
  within: Callable[..., jax.Array]


class Model(NamedTuple):
  """A family of transforms: how to find one, and how far it misses.

  Attributes:
    sample_size: correspondences that determine a transform.
    solve: (source [k, 2, h], target [k, 2, h], ratios [k, h]) -> (transforms
      [3, 3, h], ok [h]), for h samples of k = sample_size. The ratios of the
      sizes of the features may be None for all but translation_scale.
    fit: (source [n, 2], target [n, 2], weights [n], steps) -> transform [3, 3]
      of least squares; rows of weight zero may hold anything. What cannot be
      solved at once is improved in so many steps.
    errors: by name. "one_way" is the distance in the target; "symmetric" the
      larger of those in the target and, the other way, in the source.
    projective: whether scale and stretch differ from point to point.
    promising: (source, target, bounds: Bounds) -> [h] bool, a test that is
      cheaper than solving, for k points of 2 coordinates [h] each; None where
      most samples pass.
    companies: how many samples to look at until one is promising.
    widening: in search, inliers lie within this multiple of the threshold of
      the transform of a sample, which extrapolates the noise of its points.
  """

  sample_size: int
  solve: Callable[..., tuple[jax.Array, jax.Array]]
  fit: Callable[..., jax.Array]
  errors: dict[str, Error]
  projective: bool = False
  promising: Callable[..., jax.Array] | None = None
  companies: int = 1
  widening: float = 1.0


def plausible(
  model: Model, bounds: Bounds, transform: jax.Array, points: jax.Array
) -> jax.Array:
  """Whether a transform is plausible, where that depends on where: at points.

  Returns:
    [...] bool for points [..., 2] of a projective model, else a single one.
  """
  if model.projective:
    return bounds.allow(*transforms.local_stretch(transform, points))
  return bounds.allow(*transforms.stretch(transform))


def squared_residuals(
  model: Model,
  error: str,
  bounds: Bounds,
  transform: jax.Array,
  source: jax.Array,
  target: jax.Array,
) -> jax.Array:
  """Residuals [...]; infinite where a projective model is implausible there."""
  squared = model.errors[error].squared_residuals(transform, source, target)
  if model.projective:
    squared = jnp.where(
      plausible(model, bounds, transform, source), squared, jnp.inf
    )
  return squared


def _without_ratios(solve):
  def solve_sample(source, target, ratios):
    del ratios
    return solve(source, target)

  return solve_sample


def _at_once(fit):
  def fit_in_steps(source, target, weights, steps):
    del steps
    return fit(source, target, weights)

  return fit_in_steps


def _fit_homography(source, target, weights, steps):
  return homography.fit(source, target, weights, steps=steps)


def _promising_affine(source, target, bounds):
  return bounds.allow(*transforms.stretch_from_three(source, target))


def _promising_homography(source, target, bounds):
  return homography.promising(source, target, mirrored=bounds.mirrored)


def _solve_homographies(source, target, ratios):
  del ratios
  samples = (jnp.moveaxis(points, -1, 0) for points in (source, target))
  solved, ok = jax.vmap(homography.from_four)(*samples)
  return jnp.moveaxis(solved, 0, -1), ok


def _limited(squared_residuals):
  def within(transform, source, target, limit):
    return squared_residuals(transform, source, target) <= limit

  return Error(squared_residuals, within)


def _either_way(transform, source, target):
  return jnp.maximum(
    homography.squared_residuals(transform, source, target),
    homography.squared_residuals(homography.inverse(transform), target, source),
  )


def _within_either_way(transform, source, target, limit):
  back = homography.inverse(transform)
  return homography.within(transform, source, target, limit) & (
    homography.within(back, target, source, limit)
  )


_AFFINE_ERRORS = {
  "one_way": _limited(transforms.squared_residuals),
  "symmetric": _limited(transforms.symmetric_squared_residuals),
}

# Of random samples of outliers, one of seven has a plausible affine transform,
# and one of fifty may be a view of a plane.
MODELS = {
  "translation_scale": Model(
    1,
    transforms.translation_scale_from_one,
    _at_once(transforms.fit_translation_scale),
    _AFFINE_ERRORS,
  ),
  "similarity": Model(
    2,
    _without_ratios(transforms.similarity_from_two),
    _at_once(transforms.fit_similarity),
    _AFFINE_ERRORS,
  ),
  "affine": Model(
    3,
    _without_ratios(transforms.affine_from_three),
    _at_once(transforms.fit_affine),
    _AFFINE_ERRORS,
    promising=_promising_affine,
    companies=8,
  ),
  "homography": Model(
    4,
    _solve_homographies,
    _fit_homography,
    {
      "one_way": Error(homography.squared_residuals, homography.within),
      "symmetric": Error(_either_way, _within_either_way),
    },
    projective=True,
    promising=_promising_homography,
    companies=32,
    widening=1.5,
  ),
}
