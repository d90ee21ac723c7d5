"""The search of RANSAC: rounds of hypotheses, leaders, local optimisation.

In a round many samples give a hypothesis each; a part of the correspondences
scores them all, and all correspondences the leaders. A leader that beats those
before it is fitted again and again to what it comes near (local optimisation:
Chum, Matas and Kittler, 2003): it then explains most of what there is to
explain, and fewer samples are needed to believe it.

Work that grows with the number of correspondences runs over blocks of fixed
size: padding changes no bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from delf_jax.geometry import sampling as samples
from delf_jax.geometry import transforms
from delf_jax.geometry.correspondences import Correspondences
from delf_jax.geometry.models import (
  MODELS,
  Bounds,
  plausible,
  squared_residuals,
)

# Hypotheses of a round, and how many of them are scored by more than a subset
# of the correspondences. Easy pairs need one round, so rounds are small.
ROUND = 128
LEADERS = 16

# Correspondences in one step of the count over all of them: enough to amortise
# the step, few enough for the transforms to stay in registers.
STEP = 8

# Samples in other company are looked at so many at a time.
UNROLLED = 4

# "exhaustive" solves for a translation and a scale, which explain a rotation
# only around their own correspondence. So they are scored with this multiple of
# the threshold, and so many of a round are fitted, unless they explain less
# than this share of what the best has explained.
EXHAUSTIVE_WIDENING = 5.0
EXHAUSTIVE_TRIED = 8
EXHAUSTIVE_SHARE = 0.3

# Local optimisation fits so often, at first to correspondences within this
# multiple of the threshold (see _optimise).
REFITS = 3
WIDENING = 2.0

# What a perfect correspondence adds to the quality of a transform. Sums of
# integers have the same bits in any order.
QUALITY_STEPS = 256


class Found(NamedTuple):
  """A transform and what speaks for it.

  Attributes:
    transform: [3, 3] float32.
    score: int32, weighted inliers.
    quality: int32, the same less the better they fit (MSAC).
    support: int32, inliers.
  """

  transform: jax.Array
  score: jax.Array
  quality: jax.Array
  support: jax.Array


def search(
  seed: jax.Array,
  pair: Correspondences,
  subset: Correspondences,
  bounds: Bounds,
  *,
  num_hypotheses: jax.Array,
  confidence: jax.Array,
  model: str,
  error: str,
  scoring: str,
  sampling: str,
  local_optimisation: bool,
) -> Found:
  """Returns the best transform; a score of 0 where there is none.

  Args:
    seed: uint32.
    pair: all correspondences, in ascending order of their ratios for
      sampling "scale".
    subset: those that score all hypotheses.
    bounds: which transforms to refuse.
    num_hypotheses: how many to score at most.
    confidence: see `ransac.ransac`.
    model, error, scoring, sampling, local_optimisation: see `ransac.ransac`.
  """
  goal = MODELS[model]
  exhaustive = sampling == "exhaustive"
  tried = MODELS["translation_scale"] if exhaustive else goal
  widening = EXHAUSTIVE_WIDENING if exhaustive else goal.widening
  widening = widening if local_optimisation else 1.0
  leaders_tried = EXHAUSTIVE_TRIED if exhaustive else 1
  total = pair.count.astype(jnp.float32)
  last = pair.count if exhaustive else num_hypotheses
  pool = samples.Pool(seed, pair.count, jnp.asarray(last, jnp.int32))
  if sampling == "scale":
    start, size = samples.agreeing(pair.ratios, pair.count)
    pool = pool._replace(start=start, size=size)

  def unfinished(state):
    first, drawn, best, _ = state
    more = (pair.count > goal.sample_size) & (first < last)
    if exhaustive:
      return more
    # The probability that each sample drawn had an outlier; log(0) kept out.
    share = jnp.float32(1.0)
    for row in range(goal.sample_size):
      share *= (best.support.astype(jnp.float32) - row) / (total - row)
    missed = jnp.exp(
      drawn.astype(jnp.float32) * jnp.log1p(-jnp.clip(share, 0.0, 0.999))
    )
    return more & (missed >= 1.0 - confidence)

  def play(state):
    first, drawn, best, record = state
    hypotheses, ok, draws = _hypotheses(
      tried, pool, pair, bounds, first=first, sampling=sampling
    )
    leaders, scores = _elect(
      tried,
      pair,
      subset,
      hypotheses,
      ok,
      limit=widening**2 * bounds.limit,
      error=error,
      scoring=scoring,
      number=leaders_tried,
    )

    # One after the other in a loop, for the program to be small.
    def promote(i, best):
      def optimise():
        found = _optimise(
          goal,
          error,
          bounds,
          pair,
          leaders[:, :, i],
          widening,
          local_optimisation,
        )
        better = found.quality > best.quality
        if scoring == "count":
          better &= found.score == best.score
          better |= found.score > best.score
        return jax.tree.map(
          lambda new, old: jnp.where(better, new, old), found, best
        )

      if exhaustive:
        wanted = scores[i] > EXHAUSTIVE_SHARE * record
      else:
        # One that has the threshold of the result has to beat the result, too.
        own = best.score if scoring == "count" else best.quality
        wanted = scores[i] > (
          jnp.maximum(record, own) if widening == 1.0 else record
        )
      return jax.lax.cond(wanted, optimise, lambda: best)

    best = jax.lax.fori_loop(0, leaders_tried, promote, best)
    record = jnp.maximum(record, jnp.max(scores))
    return first + ROUND, drawn + draws, best, record

  zero = jnp.int32(0)
  nothing = Found(jnp.eye(3), zero, zero, zero)
  state = (zero, zero, nothing, zero)
  return jax.lax.while_loop(unfinished, play, state)[2]


def _hypotheses(model, pool, pair, bounds, *, first, sampling):
  """Returns [3, 3, ROUND], whether they are plausible, and samples drawn."""
  rows = samples.draw(
    pool, first, number=ROUND, rows=model.sample_size, sampling=sampling
  )
  columns = pair.points
  if pair.ratios is not None:
    columns = jnp.concatenate([columns, pair.ratios[:, None]], axis=1)
  drawn = jnp.take(columns, rows, axis=0, mode="clip")
  draws = jnp.int32(ROUND)
  # Samples of one scale would not stay so in other company.
  if model.promising is not None and sampling != "scale":
    drawn, draws = _companions(model, bounds, drawn)
  # [k, 4 or 5, ROUND]: one contiguous row of samples for each coordinate of
  # each correspondence.
  drawn = jnp.moveaxis(drawn, -1, 1)

  # [k, 2, ROUND]: without vmap, which would gather the elements of each
  # transform from all over, slower than solving for them.
  def solve(drawn):
    source, target = drawn[:, :2], drawn[:, 2:4]
    ratios = None if pair.ratios is None else drawn[:, 4]
    solved, ok = model.solve(source, target, ratios)
    return solved, ok & jax.vmap(
      lambda transform, points: jnp.all(
        plausible(model, bounds, transform, points)
      ),
      in_axes=-1,
    )(solved, source)

  # Solved once: XLA would solve again for each use.
  solved, ok = jax.lax.optimization_barrier(solve(drawn))
  if sampling == "scale":
    # The transform grows things by about as much as the features say.
    area, _ = transforms.local_stretch(solved, drawn[0, :2].T)
    squared = drawn[0, 4] * drawn[0, 4]
    most = samples.AGREEMENT**4
    ok &= (jnp.abs(area) <= squared * most) & (jnp.abs(area) * most >= squared)
  if sampling == "exhaustive":
    ok &= rows[0] < pair.count
  return solved, ok, draws


def _companions(model, bounds, drawn):
  """Puts the rows of samples into other company until they are promising.

  Sample j of company i consists of the first row of sample j, the second of
  sample j + i, the third of sample j + 2 i and so on: no two samples of a round
  share two rows.

  Args:
    model: whose samples.
    bounds: which transforms are plausible.
    drawn: [k, ROUND, 4 or 5] float32.

  Returns:
    The same with the first company of each sample that is promising, or any
    where none of them is, and how many samples were looked at.
  """
  size, number, _ = drawn.shape
  # Any company is a slice of these.
  twice = jnp.concatenate([drawn, drawn], axis=1)
  twice = jnp.moveaxis(twice[:, :, :4], -1, 1)

  def attempt(block, chosen):
    for step in range(UNROLLED):
      shift = block * UNROLLED + step
      # Vector by vector: XLA would not vectorise what runs over a stack.
      y, x, v, u = (
        [
          jax.lax.dynamic_slice_in_dim(
            twice[row, axis], row * shift % number, number
          )
          for row in range(size)
        ]
        for axis in range(4)
      )
      source = list(zip(y, x, strict=True))
      target = list(zip(v, u, strict=True))
      ok = model.promising(source, target, bounds)
      chosen = jnp.where((chosen == model.companies) & ok, shift, chosen)
    return chosen

  chosen = jax.lax.fori_loop(
    0,
    model.companies // UNROLLED,
    attempt,
    jnp.full(number, model.companies, jnp.int32),
  )
  first = jnp.arange(size)[:, None]
  rows = (
    jnp.arange(number)[None] + first * chosen[None]
  ) % number + first * number
  drawn = jnp.take(drawn.reshape(size * number, -1), rows, axis=0, mode="clip")
  draws = jnp.minimum(chosen + 1, model.companies)
  return drawn, jnp.sum(draws, dtype=jnp.int32)


def _elect(
  model, pair, subset, hypotheses, ok, *, limit, error, scoring, number
):
  """Returns the best hypotheses [3, 3, number] and their scores."""
  add = _adder(model, error, scoring, limit)
  scores = _count(add, hypotheses, subset, len(subset.points))
  leaders = _leaders(jnp.where(ok, scores, -1), LEADERS)
  hypotheses = jnp.take(hypotheses, leaders, axis=2, mode="clip")
  ok = jnp.take(ok, leaders, mode="clip")
  scores = jnp.where(ok, _count(add, hypotheses, pair, pair.count), 0)
  scores, best = jax.lax.top_k(scores, number)
  return jnp.take(hypotheses, best, axis=2), scores


def _count(add, hypotheses, pair, count):
  """Scores hypotheses [3, 3, h] by the first `count` rows: [h] int32."""

  def step(i, scores):
    some = jax.tree.map(
      lambda values: (
        jax.lax.dynamic_slice_in_dim(values, i * STEP, STEP)
        if values.ndim
        else values
      ),
      pair,
    )
    return add(hypotheses, some, scores)

  return jax.lax.fori_loop(
    0,
    (count + STEP - 1) // STEP,
    step,
    jnp.zeros(hypotheses.shape[-1], jnp.int32),
  )


def _adder(model, error, scoring, limit):
  """Returns what adds to scores [h] what a few correspondences contribute.

  Unrolled: XLA then runs over the hypotheses with the points as constants and
  the sums in registers, four times as fast as its reduction of [p, h].
  """
  misses = model.errors[error]
  over = (-1, None, None)
  squared_residuals = jax.vmap(misses.squared_residuals, in_axes=over)
  within = jax.vmap(misses.within, in_axes=(*over, None))

  def add(hypotheses, pair, scores):
    for i, point in enumerate(pair.points):
      if scoring == "count":
        value = within(hypotheses, point[:2], point[2:], limit)
        value = value.astype(jnp.int32)
      else:
        squared = squared_residuals(hypotheses, point[:2], point[2:])
        value = _gain(squared, limit)
      if pair.weights is not None:
        value *= pair.weights[i]
      scores += value
    return scores

  return add


def _gain(squared, limit):
  """What a correspondence adds to the quality, int32 of QUALITY_STEPS."""
  gain = QUALITY_STEPS * (1.0 - squared / limit)
  return jnp.where(squared <= limit, gain, 0.0).astype(jnp.int32)


def _optimise(model, error, bounds, pair, transform, widening, fitted):
  """Re-fits a transform to what it comes near: the best on the way.

  The first re-fit uses the correspondences within WIDENING times the threshold
  of the sample, since a sample of a few extrapolates badly: what it misses by
  little belongs to it.

  The best by truncated squared residuals (MSAC). The mere number of inliers
  would often keep the transform of the sample, which misses all of them by more
  but has caught an outlier.
  """
  source, target = pair.points[:, :2], pair.points[:, 2:]
  limit = bounds.limit

  def judge(transform, widening):
    squared = squared_residuals(model, error, bounds, transform, source, target)
    near = (squared <= widening * widening * limit).astype(jnp.float32)
    gain = _gain(squared, limit)
    inliers = squared <= limit
    counts = inliers.astype(jnp.int32)
    support = score = jnp.sum(counts, dtype=jnp.int32)
    if pair.weights is not None:
      score = jnp.sum(counts * pair.weights, dtype=jnp.int32)
      gain *= pair.weights
    found = Found(transform, score, jnp.sum(gain, dtype=jnp.int32), support)
    return found, near

  def refit(state, next_widening, last):
    best, near = state
    # What the next fit replaces need not be exact.
    transform = model.fit(source, target, near, last.astype(jnp.int32))
    found, near = judge(transform, next_widening)
    better = found.quality >= best.quality
    if not model.projective:
      better &= plausible(model, bounds, transform, source)
    best = jax.tree.map(
      lambda new, old: jnp.where(better, new, old), found, best
    )
    return best, near

  if not fitted:
    return judge(transform, 1.0)[0]
  widest = max(WIDENING, widening)
  state = judge(transform, widest)
  # What was solved for another model is farther away.
  refits = REFITS + 1 if widening > WIDENING else REFITS
  return jax.lax.fori_loop(
    0,
    refits,
    lambda i, state: refit(
      state, jnp.where(i == 0, 0.5 * widest, 1.0), i == refits - 1
    ),
    state,
  )[0]


def _leaders(scores, groups):
  """Returns the best of each of `groups` groups of scores [h]: [groups] rows.

  The best of all is among them and, of equals, the first. Sorting for the true
  leaders takes longer than scoring.
  """
  size = len(scores) // groups
  ranked = scores.reshape(size, groups) * size - jnp.arange(size)[:, None]
  return -jnp.max(ranked, axis=0) % size * groups + jnp.arange(groups)
