"""One descriptor of a photograph, seen at one or several resolutions.

A photograph is padded to one of a few canvases, and every resolution of it to
one of a few more, so that a folder of any sizes compiles few programs; the
padding changes nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.features import pyramid
from delf_jax.features.pyramid import Resize
from delf_jax.features.reduction import Reduction, l2_normalise, reduce


@dataclasses.dataclass(frozen=True)
class Network:
  """What is needed to know of a network.

  Attributes:
    describe: (variables, images [b, h, w, 3], sizes [b, 2]) -> [b, d]
      descriptors of unit length.
    map_size: length of the feature map for an image length (int array).
    normalise: uint8 or float pixels -> what `describe` wants.
  """

  describe: Callable[[Any, jax.Array, jax.Array], jax.Array]
  map_size: Callable[[jax.Array], jax.Array]
  normalise: Callable[[jax.Array], jax.Array]


def sum_resolutions(
  descriptors: jax.Array, mask: jax.Array, *, power: float = 1.0
) -> jax.Array:
  """Makes one descriptor of those of several resolutions.

  Args:
    descriptors: [s, d] of unit length.
    mask: [s] bool, the resolutions that there are.
    power: 1 is the sum of DIR and siaMAC; with GeM its own may be used, if its
      descriptors are not projected and so not negative.

  Returns:
    [d] of unit length; zeros if there is none.
  """
  kept = jnp.where(mask[:, None], descriptors, 0.0)
  if power != 1.0:
    kept = jnp.maximum(kept, 0.0) ** power
  total = jnp.sum(kept, axis=0)
  if power != 1.0:
    total = total ** (1.0 / power)
  return l2_normalise(total)


def level_sizes(
  size: Sequence[int],
  original: Sequence[int],
  whole: Sequence[int],
  *,
  scales: Sequence[float] = (),
  sides: Sequence[int] = (),
) -> list[tuple[int, int]]:
  """Lists the (height, width) of every resolution.

  Args:
    size: (height, width) of the pixels there are.
    original: the same before they were reduced.
    whole: (height, width) of the photograph that they are a part of, before
      it was reduced.
    scales: of the pixels there are, as in siaMAC.
    sides: longest sides of the whole photograph, which is enlarged if need be,
      as in DIR: a part is seen at the resolution that the whole is.
  """
  if not sides:
    return [
      tuple(pyramid.level_size(n, scale) for n in size) for scale in scales
    ]
  longest = max(whole)
  return [
    tuple(max(1, round(n * side / longest)) for n in original) for side in sides
  ]


def make_describer(
  network: Network,
  *,
  scales: Sequence[float] = (),
  sides: Sequence[int] = (),
  max_side: int = 1024,
  power: float = 1.0,
  resize: Resize = "antialias",
) -> Callable[..., jax.Array]:
  """Builds the compiled description of photographs.

  Args:
    network: what describes one resolution.
    scales: see `level_sizes`; either these or `sides`.
    sides: likewise.
    max_side: longest side of any photograph.
    power: see `sum_resolutions`.
    resize: see `pyramid.resize_level`.

  Returns:
    describe(variables, reduction, pixels [b, h, w, 3] uint8, sizes [b, 2],
    levels [b, s, 2] of `level_sizes`) -> [b, d] of unit length, or zeros where
    no resolution is large enough for the network. `sizes` and `levels` are
    NumPy integers.

  Raises:
    ValueError: unless there are scales or sides, and not both.
  """
  if bool(scales) == bool(sides):
    raise ValueError("give scales or sides, and not both")
  largest = tuple(sides) or tuple(
    math.ceil(max_side * scale) for scale in scales
  )

  @functools.partial(jax.jit, static_argnames="shape")
  def describe_level(variables, pixels, sizes, new_sizes, shape):
    level = jax.vmap(
      functools.partial(pyramid.resize_level, shape=shape, rule=resize)
    )(pixels.astype(jnp.float32), sizes, new_sizes)
    return network.describe(variables, network.normalise(level), new_sizes)

  @jax.jit
  def combine(reduction, descriptors, levels):
    mask = jnp.all(network.map_size(levels) > 0, axis=-1)  # [b, s]
    found = reduce(
      reduction,
      jax.vmap(functools.partial(sum_resolutions, power=power))(
        descriptors, mask
      ),
    )
    return jnp.where(jnp.any(mask, axis=1)[:, None], found, 0.0)

  def describe(
    variables: Any,
    reduction: Reduction | None,
    pixels: np.ndarray,
    sizes: np.ndarray,
    levels: np.ndarray,
  ) -> jax.Array:
    sizes, levels = np.asarray(sizes, np.int32), np.asarray(levels, np.int32)
    found = [
      describe_level(
        variables,
        pixels,
        sizes,
        levels[:, k],
        shape=pyramid.canvas_for(*levels[:, k].max(axis=0), max_side=most),
      )
      for k, most in enumerate(largest)
    ]
    return combine(reduction, jnp.stack(found, axis=1), levels)

  return describe
