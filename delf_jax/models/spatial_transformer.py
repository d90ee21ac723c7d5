"""Square patches of an image, turned and moved, with gradients to where.

The sampler of Jaderberg et al., "Spatial Transformer Networks", 2015, for
translations, rotations and zooms. Points are (y, x) in pixels, whole numbers
at the centres of pixels; a rotation is (cosine, sine) of the angle from the
image's x axis to the patch's, positive towards the y axis (clockwise as seen).
"""

import jax
import jax.numpy as jnp

# The rotation of a patch that stands upright.
UPRIGHT = (1.0, 0.0)


def turn(vectors: jax.Array, rotation: jax.Array) -> jax.Array:
  """Turns [..., 2] vectors (y, x) of a patch into those of the image.

  Args:
    vectors: [..., 2].
    rotation: [2] of the patch; its conjugate (cosine, -sine) turns back.
  """
  cosine, sine = rotation[0], rotation[1]
  y, x = vectors[..., 0], vectors[..., 1]
  return jnp.stack([cosine * y + sine * x, cosine * x - sine * y], axis=-1)


def grid(
  centre: jax.Array,
  rotation: jax.Array,
  *,
  side: int,
  zoom: jax.Array | float = 1.0,
) -> jax.Array:
  """Returns the [side, side, 2] points of the image that a patch shows.

  Args:
    centre: [2] of the patch, in the image.
    rotation: [2] (cosine, sine).
    side: of the patch in its own pixels.
    zoom: pixels of the image between two pixels of the patch.
  """
  steps = jnp.arange(side, dtype=jnp.float32) - 0.5 * (side - 1)
  own = jnp.stack(jnp.meshgrid(steps, steps, indexing="ij"), axis=-1)
  return centre[None, None, :] + zoom * turn(own, rotation)


def interpolate(
  images: jax.Array,
  points: jax.Array,
  *,
  level: jax.Array | int = 0,
  size: jax.Array | None = None,
) -> jax.Array:
  """Reads one of several images between its pixels, bilinearly.

  Args:
    images: [l, h, w] of which `points` are read in one.
    points: [..., 2]; beyond the image's ends, the ends.
    level: which image.
    size: [2] true height and width of a padded image; None: all of it.

  Returns:
    [...].
  """
  last = (jnp.array(images.shape[1:]) if size is None else size) - 1
  last = last.astype(jnp.float32).reshape((1,) * (points.ndim - 1) + (2,))
  points = jnp.clip(points, 0.0, last)
  low = jnp.minimum(jnp.floor(points), jnp.maximum(last - 1.0, 0.0))
  share = points - low
  y, x = low[..., 0].astype(jnp.int32), low[..., 1].astype(jnp.int32)
  # Of an image of one row, the next row is the same one.
  below = jnp.minimum(y + 1, last[..., 0].astype(jnp.int32))
  right = jnp.minimum(x + 1, last[..., 1].astype(jnp.int32))
  down, across = share[..., 0], share[..., 1]
  top = images[level, y, x] * (1 - across) + images[level, y, right] * across
  bottom = (
    images[level, below, x] * (1 - across)
    + images[level, below, right] * across
  )
  return top * (1 - down) + bottom * down


def crop(
  image: jax.Array,
  centre: jax.Array,
  rotation: jax.Array,
  *,
  side: int,
  zoom: jax.Array | float = 1.0,
) -> jax.Array:
  """Cuts a [side, side] patch out of an image [h, w]; see `grid`."""
  points = grid(centre, rotation, side=side, zoom=zoom)
  return interpolate(image[None], points)
