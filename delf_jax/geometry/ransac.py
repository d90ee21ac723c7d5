"""RANSAC in jax.numpy: all hypotheses of a round, all pairs of a batch.

The search of Fischler and Bolles (1981) with what makes it fast and sure here:
samples that cannot give a plausible transform are drawn again before anything
is solved; a part of the correspondences scores all hypotheses and all of them
score the leaders; leaders are fitted to their inliers; rounds end when enough
samples were drawn for the share of inliers found. `geometry.search` has the
rounds, `geometry.models` the transforms, `geometry.sampling` the samples,
`geometry.correspondences` the rows they are drawn from.

Neither padding nor the batch nor the place in it changes a bit of a pair's
result.
"""

import functools
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.geometry import correspondences, models, search
from delf_jax.geometry.models import ErrorName, ModelName
from delf_jax.geometry.sampling import SamplingName

ScoringName = Literal["count", "msac"]

# `verify` pads to this many correspondences or twice, four times as many and so
# on, in batches of this many pairs. Padding costs some time, another shape a
# compilation.
MIN_BUCKET = 128
BATCH = 32


@flax.struct.dataclass
class RansacResult:
  """What RANSAC found for one pair, or for several with a leading axis.

  Attributes:
    transform: [3, 3] float32, maps (y, x, 1) of the source (the query) to
      (y, x, 1) of the target (the index image), up to a factor for a
      homography; the identity where nothing was found.
    inliers: [n] bool, in the order of the correspondences given.
    num_inliers: int32, how many those are; 0 where nothing was found.
    residuals: [n] float32, distance between transformed source and target in
      pixels of the target (for the symmetric error, or that of the transformed
      target in the source if larger); infinite where masked, where nothing was
      found and where a homography is implausible.
  """

  transform: jax.Array
  inliers: jax.Array
  num_inliers: jax.Array
  residuals: jax.Array


class Pair(NamedTuple):
  """The correspondences of a pair, for `verify`.

  Attributes:
    source: [n, 2] float32, (y, x) in pixels of the query.
    target: [n, 2] float32, (y, x) in pixels of the index image.
    source_scales, target_scales: [n] float32 or None, the sizes of the
      features in pixels of their images.
    weights: [n] float32 in (0, 1] or None, what each counts in the score.
  """

  source: np.ndarray
  target: np.ndarray
  source_scales: np.ndarray | None = None
  target_scales: np.ndarray | None = None
  weights: np.ndarray | None = None


def ransac(
  key: jax.Array,
  source: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  *,
  threshold: float | jax.Array,
  model: ModelName = "affine",
  error: ErrorName = "one_way",
  scoring: ScoringName = "count",
  sampling: SamplingName = "uniform",
  source_scales: jax.Array | None = None,
  target_scales: jax.Array | None = None,
  weights: jax.Array | None = None,
  num_hypotheses: int | jax.Array = 3000,
  confidence: float | jax.Array = 0.999,
  local_optimisation: bool = True,
  min_span: float | jax.Array = 4.0,
  max_stretch: float | jax.Array = 4.0,
  mirrored: bool | jax.Array = False,
) -> RansacResult:
  """Finds the transform that most correspondences of a pair agree on.

  Pure: jit it, map it. The same key, correspondences and options give the same
  bits. Rows that are masked or not finite count for nothing. As few
  correspondences as determine a transform have no inliers: three for an affine
  one, as in the re-ranking of the released DELF.

  `model`, `error`, `scoring`, `sampling` and `local_optimisation` choose a
  program (static under jit); all other options are numbers in it.

  Args:
    key: a random key.
    source: [n, 2] float32, (y, x) in pixels of the query.
    target: [n, 2] float32, (y, x) in pixels of the index image.
    mask: [n] bool, True for real rows, which may lie anywhere.
    threshold: largest distance of an inlier, pixels of the target.
    model: "similarity", "affine", "homography", or "translation_scale".
    error: "one_way" measures distances in the target alone; "symmetric" in the
      source too, and the larger counts.
    scoring: "count" looks for the most inliers, "msac" for those that fit best
      (Torr and Zisserman, 2000).
    sampling: "uniform"; "prosac" takes the rows to come best first and tries
      the first ones first; "scale" draws samples whose features grow by about
      as much and refuses transforms that grow by much else; "exhaustive" tries
      the translation and scale of each correspondence in turn, regardless of
      key and `num_hypotheses`, and fits the model to what it comes near.
    source_scales: [n] float32, the sizes of the query's features; needed by
      sampling "scale" and "exhaustive" and by the model "translation_scale".
      Rows without a positive size are masked then.
    target_scales: [n] float32, the same of the index image.
    weights: [n] float32 in (0, 1], what each correspondence counts in the
      score, in steps of 1/64; rows of no weight are masked. The inliers are
      counted, and fits made, without.
    num_hypotheses: how many transforms to score at most, rounded up to a
      multiple of search.ROUND. Each is the first promising one of 8 samples,
      for a homography of 32. With the default, one of ten correspondences is
      enough; pairs with more inliers end long before.
    confidence: end when a sample of inliers alone has been drawn with this
      probability, given the share of inliers found; 1.0 never ends early.
    local_optimisation: fit transforms to their inliers. Otherwise the result
      is that of a sample.
    min_span: a transform is refused that shrinks the extent of the source
      points to less than this many thresholds: where many rows share a target,
      a collapse onto it would collect them all. 0 refuses none. With the
      symmetric error the same holds for the way back.
    max_stretch: a transform is refused that stretches one direction more than
      this many times as much as another. Infinity refuses none. A homography
      stretches differently from point to point: both bounds hold at each of
      its inliers.
    mirrored: whether mirror images are allowed.

  Returns:
    The transform and its inliers.

  Raises:
    ValueError: if a name is none of those, or scales are needed and missing.
  """
  bits = jax.random.bits(key, (2,), jnp.uint32)
  return _ransac(
    bits,
    Pair(source, target, source_scales, target_scales, weights),
    mask,
    threshold=threshold,
    model=model,
    error=error,
    scoring=scoring,
    sampling=sampling,
    num_hypotheses=num_hypotheses,
    confidence=confidence,
    local_optimisation=local_optimisation,
    min_span=min_span,
    max_stretch=max_stretch,
    mirrored=mirrored,
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    "model",
    "error",
    "scoring",
    "sampling",
    "local_optimisation",
  ),
)
def verify_pairs(
  seeds: jax.Array,
  source: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  *,
  threshold: float | jax.Array,
  source_scales: jax.Array | None = None,
  target_scales: jax.Array | None = None,
  weights: jax.Array | None = None,
  **options: Any,
) -> RansacResult:
  """Runs `ransac` on a batch of padded pairs in one compiled program.

  A pair's result depends on its seed and its valid rows alone: not on the
  padding, on the other pairs or on its place among them.

  Args:
    seeds: [b] uint32.
    source: [b, n, 2] float32, (y, x) in pixels of the query.
    target: [b, n, 2] float32, (y, x) in pixels of the index image.
    mask: [b, n] bool, True for real rows.
    threshold: largest distance of an inlier, pixels of the target.
    source_scales, target_scales: [b, n] float32, sizes of features.
    weights: [b, n] float32, what correspondences count.
    **options: the other options of `ransac`. Other numbers do not compile
      anew.

  Returns:
    RansacResult with a leading axis of b.
  """

  def one(item):
    seed, pair, mask = item
    source, target, source_scales, target_scales, weights = pair
    return ransac(
      jax.random.key(seed),
      source,
      target,
      mask,
      threshold=threshold,
      source_scales=source_scales,
      target_scales=target_scales,
      weights=weights,
      **options,
    )

  items = (
    seeds,
    Pair(source, target, source_scales, target_scales, weights),
    mask,
  )
  # One pair fills the vector units of a CPU, and in a sequence each pair ends
  # as early as it can. An accelerator wants them side by side.
  if jax.default_backend() == "cpu":
    return jax.lax.map(one, items)
  return jax.vmap(one)(items)


def verify(
  pairs: Sequence[Pair | tuple[np.ndarray, ...] | Mapping[str, np.ndarray]],
  *,
  threshold: float,
  seed: int = 0,
  **options: Any,
) -> list[RansacResult]:
  """Runs RANSAC on pairs with any numbers of correspondences.

  Pads them into batches of few shapes and runs the batches on all cores. A
  pair's samples are seeded by its own correspondences: its result is the same
  in any company and any order.

  Args:
    pairs: each a `Pair`, or its fields as a tuple, of which the last may be
      left out, or as a mapping. Scales and weights have all pairs or none.
    threshold: largest distance of an inlier, pixels of the target.
    seed: another seed draws other samples.
    **options: the other options of `ransac`.

  Returns:
    One RansacResult of NumPy arrays for each pair, its rows as given.

  Raises:
    ValueError: if a pair's arrays do not have one length or are not [n, 2] and
      [n], if only some pairs have scales or weights, if the threshold is not
      positive, or as `ransac` raises.
  """
  if not threshold > 0:
    raise ValueError(f"the threshold must be positive, got {threshold}")
  pairs = [_checked(pair) for pair in pairs]
  given = {tuple(values is not None for values in pair) for pair in pairs}
  if len(given) > 1:
    raise ValueError(
      "some pairs have scales or weights and others have not: give them for "
      "all pairs or for none"
    )
  buckets = {}
  for position, pair in enumerate(pairs):
    buckets.setdefault(_bucket(len(pair.source)), []).append(position)
  batches = [
    (size, positions[start : start + BATCH])
    for size, positions in sorted(buckets.items())
    for start in range(0, len(positions), BATCH)
  ]
  results = [None] * len(pairs)

  def run(batch):
    size, positions = batch
    seeds = np.zeros(BATCH, np.uint32)
    mask = np.zeros((BATCH, size), bool)
    padded = Pair(
      *(
        None
        if values is None
        else np.zeros((BATCH, size, *values.shape[1:]), np.float32)
        for values in pairs[positions[0]]
      )
    )
    for row, position in enumerate(positions):
      pair = pairs[position]
      n = len(pair.source)
      seeds[row] = _content_seed(pair, seed)
      mask[row, :n] = True
      for to, values in zip(padded, pair, strict=True):
        if values is not None:
          to[row, :n] = values
    source, target, source_scales, target_scales, weights = padded
    found = jax.device_get(
      verify_pairs(
        seeds,
        source,
        target,
        mask,
        threshold=threshold,
        source_scales=source_scales,
        target_scales=target_scales,
        weights=weights,
        **options,
      )
    )
    for row, position in enumerate(positions):
      n = len(pairs[position].source)
      results[position] = RansacResult(
        transform=found.transform[row],
        inliers=found.inliers[row, :n],
        num_inliers=found.num_inliers[row],
        residuals=found.residuals[row, :n],
      )

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(run, batches))
  return results


def _ransac(
  bits,
  pair,
  mask,
  *,
  threshold,
  model,
  error,
  scoring,
  sampling,
  num_hypotheses,
  confidence,
  local_optimisation,
  min_span,
  max_stretch,
  mirrored,
):
  """`ransac` with two random words instead of a key."""
  _check_names(
    model=(model, ModelName),
    error=(error, ErrorName),
    scoring=(scoring, ScoringName),
    sampling=(sampling, SamplingName),
  )
  source, target = pair.source, pair.target
  valid = (
    mask & jnp.isfinite(source).all(axis=1) & jnp.isfinite(target).all(axis=1)
  )
  ratios, counts = None, None
  if sampling in ("scale", "exhaustive") or model == "translation_scale":
    if pair.source_scales is None or pair.target_scales is None:
      raise ValueError(
        f"sampling {sampling!r} of model {model!r} needs the sizes of the "
        "features: give source_scales and target_scales"
      )
    ratios = pair.target_scales / pair.source_scales
    valid &= (ratios > 0) & (pair.source_scales > 0) & jnp.isfinite(ratios)
  if pair.weights is not None:
    valid &= pair.weights > 0
    counts = jnp.ceil(
      correspondences.WEIGHT_STEPS * jnp.minimum(pair.weights, 1.0)
    )
    counts = jnp.where(valid, counts, 0.0).astype(jnp.int32)
  rows = correspondences.compact(
    correspondences.Correspondences(
      jnp.concatenate([source, target], axis=1),
      jnp.sum(valid, dtype=jnp.int32),
      ratios,
      counts,
    ),
    valid,
    by_ratio=sampling == "scale",
  )
  limit = jnp.square(jnp.asarray(threshold, jnp.float32))
  subset = correspondences.subset(
    jnp.uint32(0) if sampling == "exhaustive" else bits[0], rows
  )
  real = subset.points[:, 2:3] < jnp.inf

  def extent(points):
    return jnp.max(
      jnp.max(jnp.where(real, points, -jnp.inf), axis=0)
      - jnp.min(jnp.where(real, points, jnp.inf), axis=0)
    )

  bounds = models.Bounds(
    limit=limit,
    extent=extent(subset.points[:, :2]),
    target_extent=(
      extent(subset.points[:, 2:]) if error == "symmetric" else None
    ),
    min_span=jnp.asarray(min_span, jnp.float32),
    max_stretch=jnp.asarray(max_stretch, jnp.float32),
    mirrored=jnp.asarray(mirrored),
  )
  best = search.search(
    bits[1],
    rows,
    subset,
    bounds,
    num_hypotheses=num_hypotheses,
    confidence=confidence,
    model=model,
    error=error,
    scoring=scoring,
    sampling=sampling,
    local_optimisation=local_optimisation,
  )
  found = best.score > 0
  transform = jnp.where(found, best.transform, jnp.eye(3))
  squared = models.squared_residuals(
    models.MODELS[model], error, bounds, transform, source, target
  )
  squared = jnp.where(valid & found, squared, jnp.inf)
  inliers = squared <= limit
  return RansacResult(
    transform=transform,
    inliers=inliers,
    num_inliers=jnp.sum(inliers, dtype=jnp.int32),
    residuals=jnp.sqrt(squared),
  )


def _check_names(**names):
  for option, (value, allowed) in names.items():
    if value not in get_args(allowed):
      raise ValueError(
        f"{option} must be one of {', '.join(get_args(allowed))}; got {value!r}"
      )


def _checked(pair):
  pair = Pair(**pair) if isinstance(pair, Mapping) else Pair(*pair)
  pair = Pair(
    *(
      None if values is None else np.ascontiguousarray(values, np.float32)
      for values in pair
    )
  )
  shape = pair.source.shape
  if pair.target.shape != shape or shape[1:] != (2,):
    raise ValueError(
      f"expected two arrays [n, 2], got {shape} and {pair.target.shape}"
    )
  for name, values in zip(pair._fields[2:], pair[2:], strict=True):
    if values is not None and values.shape != shape[:1]:
      raise ValueError(f"expected {name} [{shape[0]}], got {values.shape}")
  return pair


def _bucket(n):
  size = MIN_BUCKET
  while size < n:
    size *= 2
  return size


def _content_seed(pair, seed):
  start = zlib.crc32(np.int64(seed).tobytes())
  return zlib.crc32(pair.target, zlib.crc32(pair.source, start))
