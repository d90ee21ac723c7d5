"""Parts of photographs, cut out as if they were all that was photographed."""

import io

import numpy as np

from delf_jax.data.photographs import Photograph, decode_photograph
from delf_jax.errors import InputError
from delf_jax.items import Item, pixel_box


def crop(
  photograph: Photograph, item: Item, *, max_side: int | None
) -> tuple[Photograph, tuple[int, int]]:
  """Cuts an item out of its photograph, then reduces it.

  The result is what a file that holds only these pixels would be read as.

  Args:
    photograph: all of it, not reduced.
    item: what to cut; its box must be given.
    max_side: the part is reduced to this longest side in pixels.

  Returns:
    the part, and the (y, x) of its corner in the photograph.

  Raises:
    InputError: if the box is outside the photograph.
  """
  top, left, bottom, right = pixel_box(
    item.box, height=photograph.height, width=photograph.width
  )
  if top >= bottom or left >= right:
    raise InputError(
      f"{item.name!r}: the box lies outside the photograph of "
      f"{photograph.width} x {photograph.height} pixels; its edges must be "
      "top, left, bottom, right, in pixels"
    )
  part = np.ascontiguousarray(photograph.pixels[top:bottom, left:right])
  if max_side is None or max(part.shape) <= max_side:
    return Photograph(part, bottom - top, right - left), (top, left)
  # Through the one decoder, so that a part is reduced as any photograph is.
  file = io.BytesIO()
  file.write(b"P6\n%d %d\n255\n" % (right - left, bottom - top))
  file.write(part.tobytes())
  return (
    decode_photograph(file.getvalue(), name=item.name, max_side=max_side),
    (top, left),
  )
