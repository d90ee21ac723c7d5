"""Encoded photographs to upright 8-bit RGB: the only module that decodes."""

import io
import logging
import math
import os
import stat
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import (
  BmpImagePlugin,
  GifImagePlugin,
  Image,
  JpegImagePlugin,
  PngImagePlugin,
  PpmImagePlugin,
  TiffImagePlugin,
  WebPImagePlugin,
)

from delf_jax.errors import InputError

# A file beyond this is refused before it is read into memory: 80 megapixels
# of four 32-bit floats are smaller.
MAX_BYTES = 2**31

# Under transparency lies a middle grey: black or white would draw a strong
# outline around every cut-out of the other tone, and grey is what a network
# that reads (x - 128) / 128 takes for nothing.
BACKGROUND = (128, 128, 128, 255)

T = TypeVar("T")

# (height, width) of an upright photograph -> (top, left, bottom, right) of a
# part of it, edges in its pixels, and (height, width) to resize that to.
Plan = Callable[
  [int, int], tuple[tuple[float, float, float, float], tuple[int, int]]
]

# EXIF orientation -> what turns the stored pixels upright.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

# The size is checked here, with one clear message, so Pillow's own warning
# about it says nothing new; nor do its remarks about odd tags in files that
# it then decodes. A filter set around each call would not be thread-safe. The
# handler keeps Pillow's log off the screen unless the user wants a log.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.(Tiff|Png)ImagePlugin")
logging.getLogger("PIL").addHandler(logging.NullHandler())


class Photograph(NamedTuple):
  """A decoded photograph.

  Attributes:
    pixels: [h, w, 3] uint8 RGB, upright.
    height: height in pixels of the upright original; `h` unless reduced.
    width: width in pixels of the upright original; `w` unless reduced.
  """

  pixels: np.ndarray
  height: int
  width: int


class _Jpeg(JpegImagePlugin.JpegImageFile):
  """Pillow's reader without its look for a resolution in the EXIF block.

  That look warns about, or fails on, EXIF blocks that are only slightly
  broken, as many cameras and editors leave them.
  """

  def _read_dpi_from_exif(self) -> None:
    pass


# The readers are called directly, not through Image.open: that would check
# the size by global settings, and try formats that are no photographs.
_READERS = (
  (b"\xff\xd8\xff", _Jpeg),
  (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
  (b"RIFF", WebPImagePlugin.WebPImageFile),
  (b"II*\0", TiffImagePlugin.TiffImageFile),
  (b"MM\0*", TiffImagePlugin.TiffImageFile),
  (b"II+\0", TiffImagePlugin.TiffImageFile),
  (b"MM\0+", TiffImagePlugin.TiffImageFile),
  (b"GIF8", GifImagePlugin.GifImageFile),
  (b"BM", BmpImagePlugin.BmpImageFile),
  *((b"P%d" % kind, PpmImagePlugin.PpmImageFile) for kind in range(1, 7)),
)


def read_photograph(
  path: str | bytes | os.PathLike,
  *,
  max_side: int | None = None,
  max_pixels: int = 80_000_000,
) -> Photograph:
  """Reads a photograph from a file; see `decode_photograph`.

  Args:
    path: the file; its extension does not matter.
    max_side: as in `decode_photograph`.
    max_pixels: as in `decode_photograph`.

  Raises:
    InputError: if the file cannot be read or decoded, and nothing else
      whatever the file holds. The message is one line that names the file.
  """
  name = os.fsdecode(path)
  try:
    status = os.stat(path)
    # Opening a pipe would wait for a writer, reading a device never end.
    if stat.S_ISDIR(status.st_mode):
      raise InputError(f"{name!r} is a folder; a photograph is expected")
    if not stat.S_ISREG(status.st_mode):
      raise InputError(f"{name!r} is no regular file; give a photograph")
    if status.st_size > MAX_BYTES:
      raise InputError(
        f"{name!r} has {status.st_size / 2**30:.1f} GiB, more than any "
        f"photograph ({MAX_BYTES / 2**30:.0f} GiB); remove or convert it"
      )
    with open(path, "rb") as file:
      data = file.read()
  except FileNotFoundError as error:
    raise InputError(f"{name!r} does not exist; check the path") from error
  except PermissionError as error:
    raise InputError(
      f"no permission to read {name!r}; change its mode or its owner"
    ) from error
  except (OSError, ValueError, MemoryError) as error:
    # ValueError: a path with a null character.
    raise InputError(
      f"cannot read {name!r} ({_reason(error)}); check the path and the disk"
    ) from error
  return decode_photograph(
    data, name=name, max_side=max_side, max_pixels=max_pixels
  )


def decode_photograph(
  data: bytes,
  *,
  name: str,
  max_side: int | None = None,
  max_pixels: int = 80_000_000,
) -> Photograph:
  """Decodes an encoded photograph to upright RGB.

  JPEG, PNG, WebP, BMP, TIFF, GIF and PPM are recognised by their content. An
  EXIF orientation is applied. Of animations and pages the first is taken.
  Transparency is laid on a middle grey. 16 bits become 8 by their high
  byte; 32-bit values by the smallest of 1 (floats), 255, 65,535 and their
  own maximum that holds them all, taken as white. CMYK becomes RGB by the
  plain formula, and colour profiles are ignored: local features hardly see
  the difference, and a profile could be broken.

  Any number of threads may decode at once.

  Args:
    data: the whole file.
    name: what messages call the photograph: its path.
    max_side: reduces the photograph to this longest side in pixels, with a
      Lanczos filter; never enlarges. A JPEG is decoded in full all the same:
      decoding it at a half or a quarter is twice as fast but moved one SIFT
      keypoint in 25.
    max_pixels: refuses a photograph of more pixels by the size in its
      header, before decoding.

  Raises:
    InputError: if there is no decodable photograph in the data, and nothing
      else whatever they are. The message is one line with the name.
  """
  if max_side is not None and max_side < 1:
    raise ValueError(f"max_side must be at least 1, not {max_side}")
  return _decode(
    data, name, max_pixels, lambda image: _upright(image, data, max_side)
  )


def resample_photograph(
  data: bytes, *, name: str, plan: Plan, max_pixels: int = 80_000_000
) -> np.ndarray:
  """Decodes a part of a photograph, resized, as training wants it: fast.

  The result is that of `decode_photograph`, cut and resized by a bilinear
  filter (antialiased where it shrinks), with one exception: a JPEG is decoded
  at 1/2, 1/4 or 1/8 where that still has all the pixels that are asked for.

  Args:
    data: the whole file.
    name: what messages call the photograph: its path.
    plan: chooses the part, which must lie in the photograph, and the size.
    max_pixels: as in `decode_photograph`.

  Returns:
    [h, w, 3] uint8 RGB, upright, read-only.

  Raises:
    InputError: as in `decode_photograph`.
  """
  return _decode(
    data, name, max_pixels, lambda image: _resample(image, data, plan)
  )


def _decode(
  data: bytes, name: str, max_pixels: int, finish: Callable[[Image.Image], T]
) -> T:
  """Opens an encoded photograph and does the rest, all errors made one."""
  if not data:
    raise InputError(
      f"{name!r} is empty (0 bytes); copy or download it again, or remove it"
    )
  reader = next((r for magic, r in _READERS if data.startswith(magic)), None)
  if reader is None:
    raise InputError(
      f"{name!r} is not a JPEG, PNG, WebP, BMP, TIFF, GIF or PPM file; "
      "convert it to one of them, or remove it"
    )
  try:
    image = reader(io.BytesIO(data))
    if image.width * image.height > max_pixels:
      raise InputError(
        f"{name!r} has {image.width} x {image.height} pixels, more than the "
        f"{max_pixels} allowed; reduce or remove it"
      )
    return finish(image)
  except InputError:
    raise
  except Image.DecompressionBombError as error:
    # Frames that reach beyond their header's size, and huge WebP canvases,
    # meet Pillow's limit before they can meet `max_pixels`.
    raise InputError(
      f"{name!r} has too many pixels ({_reason(error)}); reduce or remove it"
    ) from error
  except MemoryError as error:
    raise InputError(
      f"not enough memory to decode {name!r}; free some, or remove it"
    ) from error
  except Exception as error:
    # Pillow promises no exception types: SyntaxError, struct.error, OSError,
    # ValueError, OverflowError, AssertionError and more were all seen.
    raise InputError(
      f"{name!r} is damaged, truncated or of an unknown variant "
      f"({_reason(error)}); copy or download it again, or remove it"
    ) from error


def _reason(error: Exception) -> str:
  """Returns an exception's own words, on one line of bounded length."""
  words = getattr(error, "strerror", None) or str(error)
  words = " ".join(words.split())[:120]
  printable = "".join(c if c.isprintable() else "?" for c in words)
  return printable or type(error).__name__


def _upright(
  image: Image.Image, data: bytes, max_side: int | None
) -> Photograph:
  """Decodes an opened image; the rest of `decode_photograph`."""
  image = _load(image, data)
  width, height = image.size
  # Of a TIFF there is no block: its reader has turned the image already.
  orientation = _orientation(image.info.get("exif", b""))
  image = _to_rgb(image)
  if max_side is not None and max(width, height) > max_side:
    ratio = max_side / max(width, height)
    image = image.resize(
      (max(1, round(width * ratio)), max(1, round(height * ratio))),
      Image.Resampling.LANCZOS,
    )
  if orientation in _TURNS:
    image = image.transpose(_TURNS[orientation])
  if orientation >= 5:
    width, height = height, width
  return Photograph(pixels=np.array(image), height=height, width=width)


def _resample(image: Image.Image, data: bytes, plan: Plan) -> np.ndarray:
  """Decodes, cuts and resizes an opened image."""
  if image.format != "JPEG":
    # The orientation and the size may come with the pixels.
    image = _load(image, data)
  orientation = _orientation(image.info.get("exif", b""))
  width, height = image.size
  box, size = plan(*((width, height) if orientation >= 5 else (height, width)))
  ratio = 1.0
  if image.format == "JPEG":
    spare = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    divisor = 2 ** int(np.clip(math.log2(spare), 0, 3))
    drafted = image.draft(None, (width // divisor, height // divisor))
    if drafted is not None:
      ratio = drafted[1][2] / width
    image = _load(image, data)
  image = _to_rgb(image)
  if orientation in _TURNS:
    image = image.transpose(_TURNS[orientation])
  edges = np.array(box) * ratio
  top, left, bottom, right = np.clip(edges, 0, 2 * image.size[::-1]).tolist()
  return np.asarray(
    image.resize(
      (size[1], size[0]),
      Image.Resampling.BILINEAR,
      box=(left, top, right, bottom),
    )
  )


def _load(image: Image.Image, data: bytes) -> Image.Image:
  """Decodes an opened image."""
  image.load()
  if image.format == "PNG" and data[24] == 16:
    # One transparent colour among 65,536 levels cannot be told from its
    # neighbours once there are 256.
    image.info.pop("transparency", None)
  return image


def _to_rgb(image: Image.Image) -> Image.Image:
  """Returns a decoded image of any mode as RGB."""
  if image.mode.startswith(("I", "F")):
    image = Image.fromarray(
      _eight_bits(np.asarray(image), to_65535=image.format == "PPM")
    )
  elif (
    image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
    or "transparency" in image.info
  ):
    background = Image.new("RGBA", image.size, BACKGROUND)
    image = Image.alpha_composite(background, image.convert("RGBA"))
  # Asked for the mode that it has, Pillow would copy it.
  return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: np.ndarray, *, to_65535: bool) -> np.ndarray:
  """Scales grey values of 16 or 32 bits to 8.

  Args:
    values: [h, w] unsigned 16-bit, or 32-bit integers or floats.
    to_65535: 32-bit integers are known to go to 65,535.

  Returns:
    [h, w] uint8.
  """
  if values.dtype.itemsize == 2:
    return (values >> 8).astype(np.uint8)
  floating = values.dtype.kind == "f"
  values = values.astype(np.float64)
  finite = values[np.isfinite(values)]
  low = min(finite.min(initial=0.0), 0.0)
  high = finite.max(initial=0.0)
  whites = [65535.0] if to_65535 else [1.0] * floating + [255.0, 65535.0]
  white = next((w for w in whites if high <= w), high)
  values = np.nan_to_num(values, nan=low, posinf=white, neginf=low)
  return ((values - low) * (255 / (white - low)) + 0.5).astype(np.uint8)


def _orientation(exif: bytes) -> int:
  """Returns the orientation, 1 to 8, in an EXIF block; 1 where it has none.

  Only the first directory's tag is looked for, so that whatever else is
  broken in the block does not matter.
  """
  block = exif.removeprefix(b"Exif\0\0")
  order = {b"II*\0": "little", b"MM\0*": "big"}.get(block[:4])
  if order is None:
    return 1
  start = int.from_bytes(block[4:8], order)
  count = int.from_bytes(block[start : start + 2], order)
  for entry in range(start + 2, start + 2 + 12 * count, 12):
    field = block[entry : entry + 10]
    if len(field) < 10:
      break
    if int.from_bytes(field[:2], order) == 0x0112:
      # A short, left-justified in its four bytes.
      value = int.from_bytes(field[8:10], order)
      return value if 1 <= value <= 8 else 1
  return 1
