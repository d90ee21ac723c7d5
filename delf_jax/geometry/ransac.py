"""RANSAC in jax.numpy: all hypotheses of a round, all pairs of a batch.

The search of Fischler and Bolles (1981) with what makes it fast and sure here:
samples that give an implausible transform are drawn again before anything is
scored; a part of the correspondences scores all hypotheses and all of them
score the leaders; rounds end when enough samples were drawn for the share of
inliers found; the winner is re-fitted to its inliers (local optimisation: Chum,
Matas and Kittler, 2003).

Work that grows with the number of correspondences runs over blocks of fixed
size: neither padding nor the batch nor the place in it changes a bit of a
pair's result.
"""

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.geometry import transforms

# Hypotheses of one round, correspondences that score all of them, and how many
# hypotheses are then scored by all correspondences.
ROUND = 512
SUBSET = 64
LEADERS = 64

# Samples drawn at most for one hypothesis. Six of seven samples of random
# outliers give no plausible transform, and scoring costs more than solving.
DRAWS = 4

# Correspondences in one step of the count over all of them: enough to amortise
# the step, few enough for the transforms to stay in registers.
STEP = 8

# Re-fits use the correspondences within these multiples of the threshold. A
# sample of three extrapolates badly: what it misses by little belongs to it.
WIDENING = (2.0, 1.0, 1.0)

# What a perfect correspondence adds to the quality of a transform.
QUALITY_STEPS = 1024

# `verify` pads to this many correspondences or twice, four times as many and so
# on, in batches of this many pairs. Padding costs some time, another shape a
# compilation.
MIN_BUCKET = 128
BATCH = 32


@flax.struct.dataclass
class RansacResult:
  """What RANSAC found for one pair, or for several with a leading axis.

  Attributes:
    transform: [2, 3] float32, maps (y, x, 1) of the source (the query) to
      (y, x) of the target (the index image); the identity where nothing was
      found.
    inliers: [n] bool, in the order of the correspondences given.
    num_inliers: int32, how many those are; 0 where nothing was found.
    residuals: [n] float32, distance between transformed source and target in
      pixels of the target; infinite where masked and where nothing was found.
  """

  transform: jax.Array
  inliers: jax.Array
  num_inliers: jax.Array
  residuals: jax.Array


def ransac(
  key: jax.Array,
  source: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  *,
  threshold: float | jax.Array,
  num_hypotheses: int | jax.Array = 1000,
  confidence: float | jax.Array = 0.999,
  min_span: float | jax.Array = 4.0,
  max_stretch: float | jax.Array = 4.0,
  mirrored: bool | jax.Array = False,
) -> RansacResult:
  """Finds the affine transform that most correspondences of a pair agree on.

  Pure: jit it, map it. The same key, correspondences and options give the same
  bits. Rows that are masked or not finite count for nothing. Three or fewer
  correspondences have no inliers, as in the re-ranking of the released DELF.

  Args:
    key: a random key.
    source: [n, 2] float32, (y, x) in pixels of the query.
    target: [n, 2] float32, (y, x) in pixels of the index image.
    mask: [n] bool, True for real rows, which may lie anywhere.
    threshold: largest distance of an inlier, pixels of the target.
    num_hypotheses: how many transforms to score at most, rounded up to a
      multiple of ROUND. A sample of three whose transform is refused (see
      below) is replaced before it is scored, up to DRAWS - 1 times.
    confidence: end when a sample of inliers alone has been drawn with this
      probability, given the share of inliers found; 1.0 never ends early.
    min_span: a transform is refused that shrinks the extent of the source
      points to less than this many thresholds: where many rows share a target,
      a collapse onto it would collect them all. 0 refuses none.
    max_stretch: a transform is refused that stretches one direction more than
      this many times as much as another. Infinity refuses none.
    mirrored: whether mirror images are allowed.

  Returns:
    The transform and its inliers.
  """
  valid = (
    mask & jnp.isfinite(source).all(axis=1) & jnp.isfinite(target).all(axis=1)
  )
  count = jnp.sum(valid, dtype=jnp.int32)
  limit = jnp.square(jnp.asarray(threshold, jnp.float32))
  points = _compact(source, target, valid, count)

  bits = jax.random.bits(key, (2,), jnp.uint32)
  subset = _subset(bits[0], points, count)
  on_subset = subset[:, 2] < jnp.inf
  extent = jnp.max(
    jnp.max(jnp.where(on_subset[:, None], subset[:, :2], -jnp.inf), axis=0)
    - jnp.min(jnp.where(on_subset[:, None], subset[:, :2], jnp.inf), axis=0)
  )

  def plausible(transform):
    area, lengths = transforms.stretch(transform)
    area = jnp.where(mirrored, jnp.abs(area), area)
    return (
      (area > 0)
      & (area * extent**2 >= min_span**2 * limit)
      & (lengths <= (max_stretch + 1.0 / max_stretch) * area)
    )

  transform, score = _search(
    bits[1],
    points,
    subset,
    count,
    limit=limit,
    num_hypotheses=num_hypotheses,
    confidence=confidence,
    plausible=plausible,
  )
  found = score > 0
  transform = _refine(transform, points, limit=limit, plausible=plausible)
  transform = jnp.where(found, transform, jnp.eye(2, 3))
  squared = transforms.squared_residuals(transform, source, target)
  squared = jnp.where(valid & found, squared, jnp.inf)
  inliers = squared <= limit
  return RansacResult(
    transform=transform,
    inliers=inliers,
    num_inliers=jnp.sum(inliers, dtype=jnp.int32),
    residuals=jnp.sqrt(squared),
  )


@jax.jit
def verify_pairs(
  seeds: jax.Array,
  source: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  *,
  threshold: float | jax.Array,
  **options: float | jax.Array,
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
    **options: the other options of `ransac`. Other values of any of them do
      not compile anew.

  Returns:
    RansacResult with a leading axis of b.
  """

  def one(pair):
    seed, source, target, mask = pair
    return ransac(
      jax.random.key(seed),
      source,
      target,
      mask,
      threshold=threshold,
      **options,
    )

  pairs = (seeds, source, target, mask)
  # One pair fills the vector units of a CPU, and in a sequence each pair ends
  # as early as it can. An accelerator wants them side by side.
  if jax.default_backend() == "cpu":
    return jax.lax.map(one, pairs)
  return jax.vmap(one)(pairs)


def verify(
  pairs: Sequence[tuple[np.ndarray, np.ndarray]],
  *,
  threshold: float,
  seed: int = 0,
  **options: float,
) -> list[RansacResult]:
  """Runs RANSAC on pairs with any numbers of correspondences.

  Pads them into batches of few shapes and runs the batches on all cores. A
  pair's samples are seeded by its own correspondences: its result is the same
  in any company and any order.

  Args:
    pairs: source [n, 2] and target [n, 2] float32 of each pair, (y, x).
    threshold: largest distance of an inlier, pixels of the target.
    seed: another seed draws other samples.
    **options: the other options of `ransac`.

  Returns:
    One RansacResult of NumPy arrays for each pair, its rows as given.

  Raises:
    ValueError: if a pair's arrays are not [n, 2] and [n, 2], or the threshold
      is not positive.
  """
  if not threshold > 0:
    raise ValueError(f"the threshold must be positive, got {threshold}")
  pairs = [_checked(*pair) for pair in pairs]
  buckets = {}
  for position, (source, _) in enumerate(pairs):
    buckets.setdefault(_bucket(len(source)), []).append(position)
  batches = [
    (size, positions[start : start + BATCH])
    for size, positions in sorted(buckets.items())
    for start in range(0, len(positions), BATCH)
  ]
  results = [None] * len(pairs)

  def run(batch):
    size, positions = batch
    seeds = np.zeros(BATCH, np.uint32)
    points = np.zeros((2, BATCH, size, 2), np.float32)
    mask = np.zeros((BATCH, size), bool)
    for row, position in enumerate(positions):
      source, target = pairs[position]
      n = len(source)
      seeds[row] = _content_seed(source, target, seed)
      points[0, row, :n] = source
      points[1, row, :n] = target
      mask[row, :n] = True
    batch = jax.device_get(
      verify_pairs(seeds, *points, mask, threshold=threshold, **options)
    )
    for row, position in enumerate(positions):
      n = len(pairs[position][0])
      results[position] = RansacResult(
        transform=batch.transform[row],
        inliers=batch.inliers[row, :n],
        num_inliers=batch.num_inliers[row],
        residuals=batch.residuals[row, :n],
      )

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(run, batches))
  return results


def _compact(source, target, valid, count):
  """Moves the valid rows to the front: [m, 4] of source and target.

  m is n rounded up to a multiple of SUBSET. The rows behind `count` have a
  target at infinity, which no transform reaches.
  """
  pad = -len(valid) % SUBSET
  valid = jnp.pad(valid, (0, pad))
  points = jnp.pad(
    jnp.concatenate([source, target], axis=1), ((0, pad), (0, 0))
  )
  real = jnp.arange(len(valid)) < count
  # Sorting takes longer than everything else and there is mostly nothing to
  # sort: `verify` pads at the end.
  points = jax.lax.cond(
    jnp.all(valid == real),
    lambda: points,
    lambda: points[jnp.argsort(~valid, stable=True)],
  )
  nowhere = jnp.array([0.0, 0.0, jnp.inf, jnp.inf], jnp.float32)
  return jnp.where(real[:, None], points, nowhere)


def _subset(seed, points, count):
  """Draws SUBSET rows, one from each of as many equal stretches: [SUBSET, 4].

  All rows, and rows at infinity, where there are not as many.
  """
  rows = jnp.arange(SUBSET)
  jitter = _uniform(seed, rows.astype(jnp.uint32))
  spread = (rows.astype(jnp.float32) + jitter) * (
    count.astype(jnp.float32) / SUBSET
  )
  # The last jitter may round up to the row behind the last.
  spread = jnp.minimum(spread.astype(jnp.int32), count - 1)
  rows = jnp.where(count > SUBSET, spread, rows)
  return jnp.take(points, rows, axis=0, mode="clip")


def _search(
  seed,
  points,
  subset,
  count,
  *,
  limit,
  num_hypotheses,
  confidence,
  plausible,
):
  """Returns the best transform [2, 3] of three rows and its inlier count."""
  total = count.astype(jnp.float32)
  rounds = -(-num_hypotheses // ROUND)

  def unfinished(state):
    number, drawn, _, score = state
    score = score.astype(jnp.float32)
    share = score * (score - 1) * (score - 2)
    share /= total * (total - 1) * (total - 2)
    # The probability that each sample drawn had an outlier; log(0) kept out.
    missed = jnp.exp(
      drawn.astype(jnp.float32) * jnp.log1p(-jnp.minimum(share, 0.999))
    )
    return (count > 3) & (number < rounds) & (missed >= 1.0 - confidence)

  def solve(samples):
    hypotheses, ok = jax.vmap(
      transforms.affine_from_three, in_axes=1, out_axes=-1
    )(samples[..., :2], samples[..., 2:])
    return hypotheses, ok & jax.vmap(plausible, in_axes=-1)(hypotheses)

  def draw(state):
    number, drawn, best, best_score = state
    start = (number * (3 * ROUND)).astype(jnp.uint32)
    counter = start + jnp.arange(3 * ROUND, dtype=jnp.uint32)
    # A row that is drawn twice makes a sample without area, which is void.
    rows = (_uniform(seed, counter) * total).astype(jnp.int32)
    samples = jnp.take(points, rows.reshape(3, ROUND), axis=0, mode="clip")
    hypotheses, ok = solve(samples)
    draws = jnp.ones(ROUND, jnp.int32)
    for shift in range(1, DRAWS):
      # The same rows in other company: no two samples share two rows.
      others = jnp.stack(
        [jnp.roll(some, -i * shift, axis=0) for i, some in enumerate(samples)]
      )
      again, also_ok = solve(others)
      hypotheses = jnp.where(ok, hypotheses, again)
      draws += (~ok).astype(jnp.int32)
      ok |= also_ok

    scores = _count(hypotheses, subset, limit, jnp.zeros(ROUND, jnp.int32))
    leaders = _leaders(jnp.where(ok, scores, -1), LEADERS)
    hypotheses = jnp.take(hypotheses, leaders, axis=2, mode="clip")
    ok = jnp.take(ok, leaders, mode="clip")

    def step(i, scores):
      some = jax.lax.dynamic_slice_in_dim(points, i * STEP, STEP)
      return _count(hypotheses, some, limit, scores)

    scores = jax.lax.fori_loop(
      0, (count + STEP - 1) // STEP, step, jnp.zeros(LEADERS, jnp.int32)
    )
    scores = jnp.where(ok, scores, 0)
    leader = _leaders(scores, 1)[0]
    better = scores[leader] > best_score
    return (
      number + 1,
      drawn + jnp.sum(draws, dtype=jnp.int32),
      jnp.where(better, hypotheses[:, :, leader], best),
      jnp.where(better, scores[leader], best_score),
    )

  state = (jnp.int32(0), jnp.int32(0), jnp.eye(2, 3), jnp.int32(0))
  _, _, best, score = jax.lax.while_loop(unfinished, draw, state)
  return best, score


def _refine(transform, points, *, limit, plausible):
  """Re-fits a transform to its inliers and returns the best on the way.

  The best by truncated squared residuals (MSAC). The mere number of inliers
  would often keep the transform of the sample, which misses all of them by more
  but has caught an outlier.
  """
  source, target = points[:, :2], points[:, 2:]

  def judge(transform, factor):
    squared = transforms.squared_residuals(transform, source, target)
    weights = (squared <= factor * factor * limit).astype(jnp.float32)
    scores = QUALITY_STEPS * (1.0 - squared / limit)
    scores = jnp.where(squared <= limit, scores, 0.0)
    # A sum of integers has the same bits in any order.
    return jnp.sum(scores.astype(jnp.int32)), weights

  def refit(state, next_factor):
    best, best_quality, weights = state
    transform = transforms.fit_affine(source, target, weights)
    quality, weights = judge(transform, next_factor)
    better = plausible(transform) & (quality >= best_quality)
    best = jnp.where(better, transform, best)
    return (best, jnp.where(better, quality, best_quality), weights), None

  quality, weights = judge(transform, WIDENING[0])
  (best, _, _), _ = jax.lax.scan(
    refit, (transform, quality, weights), jnp.array((*WIDENING[1:], 1.0))
  )
  return best


def _count(hypotheses, points, limit, counts):
  """Adds to `counts` [h] which of a few points [p, 4] each transform fits.

  Unrolled: XLA then runs over the hypotheses with the points as constants and
  the sums in registers, four times as fast as its reduction of [p, h].
  """
  residuals = jax.vmap(transforms.squared_residuals, in_axes=(-1, None, None))
  for point in points:
    fits = residuals(hypotheses, point[:2], point[2:]) <= limit
    counts += fits.astype(jnp.int32)
  return counts


def _leaders(scores, groups):
  """Returns the best of each of `groups` groups of scores [h]: [groups] rows.

  The best of all is among them and, of equals, the first. Sorting for the true
  leaders takes longer than scoring.
  """
  size = len(scores) // groups
  ranked = scores.reshape(size, groups) * size - jnp.arange(size)[:, None]
  return -jnp.max(ranked, axis=0) % size * groups + jnp.arange(groups)


def _uniform(seed, counter):
  """Maps counters [...] and a seed to floats in [0, 1), as good as random.

  A 32-bit mixer (the finaliser of MurmurHash3 with the constants of Wellons'
  lowbias32). For the samples of a pair JAX's own generator would take longer
  than everything else together; it makes the seed.
  """
  x = counter * jnp.uint32(0x9E3779B9) + seed
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  x = x ^ (x >> 16)
  return (x >> 8).astype(jnp.float32) * 2.0**-24


def _checked(source, target):
  source = np.ascontiguousarray(source, np.float32)
  target = np.ascontiguousarray(target, np.float32)
  if source.shape != target.shape or source.shape[1:] != (2,):
    raise ValueError(
      f"expected two arrays [n, 2], got {source.shape} and {target.shape}"
    )
  return source, target


def _bucket(n):
  size = MIN_BUCKET
  while size < n:
    size *= 2
  return size


def _content_seed(source, target, seed):
  start = zlib.crc32(np.int64(seed).tobytes())
  return zlib.crc32(target, zlib.crc32(source, start))
