"""Dense features over an image pyramid, selected by score, in one program.

A photograph is padded to one of a few canvases, so that a folder of any sizes
compiles few programs. Everything that depends on its true size (level sizes,
resize weights, masks) is data and not shape; the padding changes nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.features import keypoints
from delf_jax.features.local_features import LocalFeatures
from delf_jax.features.reduction import Reduction, reduce

Resize = Literal["half_pixel", "legacy", "antialias"]
Score = Literal["l2_norm", "attention", "product"]

# Section 5.2: "0.25-2", a factor of sqrt(2) apart.
SCALES = tuple(2.0 ** (k / 2) for k in range(-4, 3))

# Long sides as a share of the largest, times landscape, portrait and square:
# nine canvases.
LADDER = (0.5, 0.8125, 1.0)
ASPECT = 0.75
GRANULE = 16


@dataclasses.dataclass(frozen=True)
class Network:
  """What the pyramid needs to know of a network.

  Attributes:
    dense: (variables, images [b, h, w, 3], sizes [b, 2]) -> un-normalised
      features [b, h', w', c] and attention scores [b, h', w'], or None
      without an attention head.
    map_size: length of the feature map for an image length (int array).
    normalise: uint8 or float pixels -> what `dense` wants.
    field_size: side of the receptive field in pixels.
    stride: of the receptive field in pixels.
    offset: of the first feature's centre in pixels.
  """

  dense: Callable[
    [Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]
  ]
  map_size: Callable[[jax.Array], jax.Array]
  normalise: Callable[[jax.Array], jax.Array]
  field_size: int
  stride: int
  offset: float = 0.0


def canvases(max_side: int) -> list[tuple[int, int]]:
  """Lists the (height, width) that photographs are padded to, small first.

  Args:
    max_side: the longest side that any photograph has.
  """
  found = set()
  for share in LADDER:
    long = _round_up(max_side * share)
    short = _round_up(long * ASPECT)
    found |= {(short, long), (long, short), (long, long)}
  return sorted(found, key=lambda shape: (shape[0] * shape[1], shape))


def _round_up(length: float) -> int:
  return GRANULE * int(np.ceil(length / GRANULE))


def canvas_for(height: int, width: int, max_side: int) -> tuple[int, int]:
  """Returns the smallest canvas that holds a photograph.

  Raises:
    ValueError: if a side is longer than `max_side`.
  """
  for shape in canvases(max_side):
    if height <= shape[0] and width <= shape[1]:
      return shape
  raise ValueError(f"{height} x {width} is larger than max_side {max_side}")


def level_size(length: int, scale: float) -> int:
  """Length of a pyramid level: round(length * scale), half to even."""
  return round(length * scale)


def resize_level(
  image: jax.Array,
  size: jax.Array,
  new_size: jax.Array,
  shape: tuple[int, int],
  rule: Resize,
) -> jax.Array:
  """Resizes one padded image, for sizes known at run time.

  Args:
    image: [h, w, c] float32.
    size: [2] its true height and width.
    new_size: [2] those of the level.
    shape: height and width that the level is padded to.
    rule: "half_pixel" is bilinear between pixel centres, without antialiasing
      (TensorFlow 2, OpenCV, torch's default); "legacy" is bilinear with corner
      pixels aligned at the origin (TensorFlow 1); "antialias" widens the
      triangle when shrinking (`jax.image.resize`, Pillow).

  Returns:
    [*shape, c]; only the first `new_size` rows and columns mean anything.
  """
  for axis in range(2):
    along = size[axis], new_size[axis], shape[axis]
    if rule == "antialias":
      image = _average(image, *along, axis=axis)
    else:
      image = _interpolate(image, *along, axis=axis, corners=rule == "legacy")
  return image


def _interpolate(image, size, new_size, length, *, axis, corners):
  """Takes the two nearest rows (or columns) for each, by their nearness."""
  step = size / jnp.maximum(new_size, 1)
  target = jnp.arange(length, dtype=jnp.float32)
  centre = target * step if corners else (target + 0.5) * step - 0.5
  last = jnp.maximum(size - 1, 0)
  centre = jnp.clip(centre, 0.0, last.astype(jnp.float32))
  first = jnp.floor(centre).astype(jnp.int32)
  second = jnp.minimum(first + 1, last)
  share = (centre - first).reshape([-1 if i == axis else 1 for i in range(3)])
  one, other = (jnp.take(image, rows, axis=axis) for rows in (first, second))
  return one * (1.0 - share) + other * share


def _average(image, size, new_size, length, *, axis):
  """Averages the rows (or columns) under a triangle as wide as a step."""
  step = size / jnp.maximum(new_size, 1)
  target = jnp.arange(length, dtype=jnp.float32)
  centre = (target + 0.5) * step - 0.5
  source = jnp.arange(image.shape[axis], dtype=jnp.float32)
  distance = jnp.abs(source[None, :] - centre[:, None])
  weights = jnp.maximum(1.0 - distance / jnp.maximum(step, 1.0), 0.0)
  weights = jnp.where(source[None, :] < size, weights, 0.0)
  weights /= jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
  sums = "oh,hwc->owc" if axis == 0 else "ow,hwc->hoc"
  precision = jax.lax.Precision.HIGHEST
  return jnp.einsum(sums, weights, image, precision=precision)


def _scores(features, attention, kind: Score):
  """Scores [b, h, w] of un-normalised features (section 3.3)."""
  if kind == "attention":
    return attention
  norms = jnp.sqrt(jnp.sum(features**2, axis=-1))
  return norms if kind == "l2_norm" else norms * attention


def _level(
  variables, pixels, sizes, level_sizes, scale, shape, *, network, score, resize
):
  """Extracts all features of one pyramid level of a batch, with a mask."""
  level = jax.vmap(functools.partial(resize_level, shape=shape, rule=resize))(
    pixels, sizes, level_sizes
  )
  level = network.normalise(level)
  features, attention = network.dense(variables, level, level_sizes)
  scores = _scores(features, attention, score)
  inside = network.map_size(level_sizes)
  # A level smaller than one step of the network shows nothing but padding.
  enough = jnp.all(level_sizes >= network.stride, axis=-1)
  grid = scores.shape[1:]
  rows = jnp.arange(grid[0])[None, :] < inside[:, :1]
  columns = jnp.arange(grid[1])[None, :] < inside[:, 1:]
  mask = rows[:, :, None] & columns[:, None, :] & enough[:, None, None]
  centres = keypoints.grid_centres(grid, network.stride, network.offset) / scale
  batch = sizes.shape[0]
  return (
    features.reshape(batch, -1, features.shape[-1]),
    scores.reshape(batch, -1),
    mask.reshape(batch, -1),
    jnp.broadcast_to(centres[None], (batch, *centres.shape)),
    jnp.full((batch, centres.shape[0]), 1.0 / scale, jnp.float32),
  )


def make_extractor(
  network: Network,
  *,
  scales: Sequence[float] = SCALES,
  score: Score = "l2_norm",
  score_threshold: float = 0.0,
  iou_threshold: float = 1.0,
  max_features: int = 1000,
  resize: Resize = "half_pixel",
) -> Callable[..., LocalFeatures]:
  """Builds the compiled multi-scale extractor.

  Args:
    network: what computes the features of one level.
    scales: of the image pyramid.
    score: what features are selected by.
    score_threshold: features below it are dropped.
    iou_threshold: see `keypoints.select`; 1 is the paper's choice.
    max_features: rows of the result.
    resize: see `resize_level`.

  Returns:
    extract(variables, reduction, pixels [b, h, w, 3] uint8, sizes [b, 2]) ->
    LocalFeatures with a leading axis; `sizes` are NumPy integers. One program
    is compiled for each shape of `pixels`. Its attribute `uncompiled` is the
    function of arrays inside: (variables, reduction, pixels, sizes,
    level_sizes [b, levels, 2], shapes) -> LocalFeatures, where `shapes` are
    those that the levels are padded to; they may be symbolic.
  """
  scales = tuple(float(scale) for scale in scales)

  def uncompiled(variables, reduction, pixels, sizes, level_sizes, shapes):
    pixels = pixels.astype(jnp.float32)
    levels = [
      _level(
        variables,
        pixels,
        sizes,
        level_sizes[:, k],
        scale,
        shapes[k],
        network=network,
        score=score,
        resize=resize,
      )
      for k, scale in enumerate(scales)
    ]
    features, scores, mask, locations, supports = (
      jnp.concatenate(parts, axis=1) for parts in zip(*levels, strict=True)
    )
    mask &= scores >= score_threshold
    return jax.vmap(functools.partial(_select, reduction))(
      features, scores, mask, locations, supports
    )

  def _select(reduction, features, scores, mask, locations, supports):
    rows, valid = keypoints.select(
      scores,
      mask,
      keypoints.boxes(locations, supports, network.field_size),
      max_features=max_features,
      iou_threshold=iou_threshold,
    )
    descriptors = reduce(reduction, features[rows])
    return LocalFeatures(
      locations=jnp.where(valid[:, None], locations[rows], 0.0),
      scales=jnp.where(valid, supports[rows], 0.0),
      scores=jnp.where(valid, scores[rows], 0.0),
      descriptors=jnp.where(valid[:, None], descriptors, 0.0),
      mask=valid,
    )

  run = jax.jit(uncompiled, static_argnames="shapes")

  def extract(
    variables: Any,
    reduction: Reduction | None,
    pixels: np.ndarray,
    sizes: np.ndarray,
  ) -> LocalFeatures:
    level_sizes = np.array(
      [
        [[level_size(int(n), scale) for n in size] for scale in scales]
        for size in sizes
      ],
      np.int32,
    )
    shapes = tuple(
      tuple(level_size(n, scale) for n in pixels.shape[1:3]) for scale in scales
    )
    return run(
      variables,
      reduction,
      pixels,
      np.asarray(sizes, np.int32),
      level_sizes,
      shapes=shapes,
    )

  extract.num_programs = run._cache_size
  extract.uncompiled = uncompiled
  return extract
