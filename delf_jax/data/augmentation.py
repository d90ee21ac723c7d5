"""Random changes to training photographs: where they are cut, how they look.

Every function is pure: photographs are [h, w, 3] uint8 RGB and never written
to, and all chance comes from a NumPy generator that is handed in. Parts of
photographs are (top, left, bottom, right), corners (y, x); both count edges in
pixels, so that the centre of the first pixel is at 0.5.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from delf_jax.errors import InputError

Box = tuple[float, float, float, float]

LUMA = np.array([0.299, 0.587, 0.114])

# Luma and two axes of colour (NTSC). The rows of the axes sum to zero, so that
# turning them changes no grey.
_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

# Beyond this a corner could cross the line between its neighbours.
MAX_HOMOGRAPHY = 0.25

_ERASED_ASPECT = (0.3, 1 / 0.3)  # width / height, of Random Erasing

_PROBABILITIES = ("flip", "greyscale", "blur", "jpeg", "erasing")
_RANGES = {
  "crop_area": (0.0, 1.0),
  "crop_aspect": (0.0, math.inf),
  "blur_sigma": (0.0, math.inf),
  "jpeg_quality": (0.0, 100.0),
  "erasing_area": (0.0, 1.0),
}
_STRENGTHS = {
  "homography": MAX_HOMOGRAPHY,
  "brightness": 1.0,
  "contrast": 1.0,
  "saturation": 1.0,
  "hue": 0.5,
  "noise": 255.0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
  """What may happen to a photograph; by default nothing.

  Attributes:
    crop_area: smallest and largest share of the photograph that is cut out, in
      place of a window of the central square; None leaves the window.
    crop_aspect: narrowest and widest width / height of that part.
    homography: how far each corner of the part moves, along both axes, at most,
      as a share of its sides; below 0.25.
    flip: probability of a mirror image.
    brightness: at x, pixels are multiplied by a factor from [1 - x, 1 + x].
    contrast: the same for differences from the photograph's mean.
    saturation: the same for differences from grey.
    hue: turns by at most this share of the colour circle, either way.
    greyscale: probability of losing all colour.
    blur: probability of a Gaussian blur.
    blur_sigma: its least and largest standard deviation in pixels.
    noise: largest standard deviation of Gaussian noise, in levels of 255.
    jpeg: probability of being compressed as a JPEG.
    jpeg_quality: least and largest quality of that, up to 100.
    erasing: probability that noise covers a rectangle.
    erasing_area: least and largest share of the pixels that it covers.

  Raises:
    InputError: if a value is out of its range.
  """

  crop_area: tuple[float, float] | None = None
  crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
  homography: float = 0.0
  flip: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  greyscale: float = 0.0
  blur: float = 0.0
  blur_sigma: tuple[float, float] = (0.1, 2.0)
  noise: float = 0.0
  jpeg: float = 0.0
  jpeg_quality: tuple[float, float] = (30, 95)
  erasing: float = 0.0
  erasing_area: tuple[float, float] = (0.02, 0.2)

  def __post_init__(self) -> None:
    for name in _PROBABILITIES:
      value = _number(name, getattr(self, name))
      if not 0 <= value <= 1:
        raise _silly(name, value, "a probability from 0 to 1")
    for name, most in _STRENGTHS.items():
      value = _number(name, getattr(self, name))
      if not 0 <= value <= most or (name == "homography" and value == most):
        raise _silly(name, value, f"a strength from 0 to {most:g}")
    for name, (least, most) in _RANGES.items():
      value = getattr(self, name)
      if name == "crop_area" and value is None:
        continue
      try:
        low, high = (_number(name, end) for end in value)
      except (TypeError, ValueError) as error:
        raise _silly(name, value, "two numbers") from error
      if not least < low <= high <= most or math.isinf(high):
        raise _silly(
          name, value, f"two growing numbers above {least:g}, up to {most:g}"
        )
      # A config may hold a list, which would not be hashable.
      object.__setattr__(self, name, (low, high))

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> "Augmentation":
    """Builds it from a mapping of some attributes to their values.

    Raises:
      InputError: if a name is unknown or a value out of its range.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for name in config:
      if name not in known:
        raise InputError(
          f"unknown augmentation {name!r}; expected {', '.join(known)}"
        )
    return cls(**config)

  def change(
    self, pixels: np.ndarray, generator: np.random.Generator
  ) -> np.ndarray:
    """Applies all but the choice of the part: [h, w, 3] -> [h, w, 3]."""
    if self.flip and generator.random() < self.flip:
      pixels = cv2.flip(pixels, 1)
    pixels = jitter_colour(
      pixels,
      generator,
      brightness=self.brightness,
      contrast=self.contrast,
      saturation=self.saturation,
      hue=self.hue,
      greyscale=self.greyscale,
    )
    if self.blur and generator.random() < self.blur:
      pixels = blur(pixels, sigma=generator.uniform(*self.blur_sigma))
    if self.noise:
      deviation = generator.uniform(0, self.noise)
      pixels = add_noise(pixels, generator, deviation=deviation)
    if self.jpeg and generator.random() < self.jpeg:
      quality = round(generator.uniform(*self.jpeg_quality))
      pixels = recompress(pixels, quality=quality)
    if self.erasing and generator.random() < self.erasing:
      pixels = erase(pixels, generator, area=self.erasing_area)
    return pixels


def _number(name: str, value: Any) -> float:
  try:
    value = float(value)
  except (TypeError, ValueError) as error:
    raise _silly(name, value, "a number") from error
  if math.isnan(value):
    raise _silly(name, value, "a number")
  return value


def _silly(name: str, value: Any, wanted: str) -> InputError:
  return InputError(f"augmentation {name} is {value!r}; give {wanted}")


def random_part(
  height: float,
  width: float,
  generator: np.random.Generator,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> Box:
  """Chooses a part of a photograph, as ImageNet's training does.

  A part that would be longer than the photograph is cut to it.

  Args:
    height: of the photograph.
    width: of the photograph.
    generator: of chance.
    area: least and largest share of the photograph.
    aspect: least and largest width / height, drawn by the logarithm.

  Returns:
    the part.
  """
  pixels = generator.uniform(*area) * height * width
  ratio = math.exp(generator.uniform(*np.log(aspect)))
  part_height = min(math.sqrt(pixels / ratio), height)
  part_width = min(math.sqrt(pixels * ratio), width)
  top = generator.uniform(0, height - part_height)
  left = generator.uniform(0, width - part_width)
  return top, left, top + part_height, left + part_width


def displaced_corners(
  box: Box,
  height: float,
  width: float,
  generator: np.random.Generator,
  *,
  strength: float,
) -> np.ndarray:
  """Moves the corners of a part, never out of the photograph.

  Args:
    box: the part.
    height: of the photograph.
    width: of the photograph.
    generator: of chance.
    strength: largest displacement along each axis, as a share of the sides.

  Returns:
    [4, 2] corners (y, x): top left, top right, bottom right, bottom left.
  """
  top, left, bottom, right = box
  corners = np.array(
    [[top, left], [top, right], [bottom, right], [bottom, left]], np.float64
  )
  shift = generator.uniform(-strength, strength, (4, 2))
  corners += shift * (bottom - top, right - left)
  return np.clip(corners, 0, (height, width))


def unwarp(pixels: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
  """Maps a quadrilateral of a photograph to a square.

  It does not blur before it shrinks: resize first where it would.

  Args:
    pixels: [h, w, 3] uint8.
    corners: [4, 2], as `displaced_corners` returns them.
    side: of the square.

  Returns:
    [side, side, 3] uint8.
  """
  ends = np.array([[0, 0], [side, 0], [side, side], [0, side]])
  # OpenCV wants (x, y), and 0 at the centre of the first pixel.
  homography = cv2.getPerspectiveTransform(
    np.float32(corners[:, ::-1] - 0.5), np.float32(ends - 0.5)
  )
  return cv2.warpPerspective(
    pixels,
    homography,
    (side, side),
    flags=cv2.INTER_LINEAR,
    borderMode=cv2.BORDER_REPLICATE,
  )


def warp(pixels: np.ndarray, transform: np.ndarray, side: int) -> np.ndarray:
  """Looks at a photograph through a homography; what lies beyond mirrors it.

  It does not blur before it shrinks: resize first where it would.

  Args:
    pixels: [h, w, 3] uint8.
    transform: [3, 3], maps points (y, x, 1) of the result, homogeneously, to
      those of the photograph; whole numbers are centres of pixels.
    side: of the result.

  Returns:
    [side, side, 3] uint8.
  """
  swap = [1, 0, 2]  # OpenCV wants (x, y)
  return cv2.warpPerspective(
    pixels,
    transform[np.ix_(swap, swap)],
    (side, side),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REFLECT_101,
  )


def colour_matrix(
  mean: float,
  *,
  brightness: float = 1.0,
  contrast: float = 1.0,
  saturation: float = 1.0,
  hue: float = 0.0,
) -> np.ndarray:
  """Composes changes of colour to one affine map.

  Nothing is clipped between them, so their order does not matter.

  Args:
    mean: luma around which contrast changes.
    brightness: factor of all.
    contrast: factor of differences from the mean.
    saturation: factor of differences from the grey of the same luma.
    hue: turn of colour around grey, as a share of the circle.

  Returns:
    [3, 4]: RGB is multiplied by the first columns; then the last is added.
  """
  sine, cosine = math.sin(2 * math.pi * hue), math.cos(2 * math.pi * hue)
  turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
  turn[1:] *= saturation
  linear = brightness * contrast * (np.linalg.inv(_YIQ) @ turn @ _YIQ)
  return np.c_[linear, np.full(3, brightness * (1 - contrast) * mean)]


def jitter_colour(
  pixels: np.ndarray,
  generator: np.random.Generator,
  *,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  greyscale: float = 0.0,
) -> np.ndarray:
  """Changes colours at random; see `Augmentation` for the strengths."""

  def factor(strength):
    return generator.uniform(1 - strength, 1 + strength) if strength else 1.0

  chosen = {
    "brightness": factor(brightness),
    "contrast": factor(contrast),
    "saturation": factor(saturation),
    "hue": generator.uniform(-hue, hue) if hue else 0.0,
  }
  if greyscale and generator.random() < greyscale:
    chosen["saturation"] = 0.0
  elif not (brightness or contrast or saturation or hue):
    return pixels
  mean = float(LUMA @ cv2.mean(pixels)[:3])
  return cv2.transform(pixels, colour_matrix(mean, **chosen))


def blur(pixels: np.ndarray, *, sigma: float) -> np.ndarray:
  """Blurs by a Gaussian of so many pixels; edges are mirrored."""
  return cv2.GaussianBlur(pixels, (0, 0), sigma)


def add_noise(
  pixels: np.ndarray, generator: np.random.Generator, *, deviation: float
) -> np.ndarray:
  """Adds Gaussian noise of so many levels, the same to all channels."""
  noise = generator.standard_normal((*pixels.shape[:2], 1), np.float32)
  changed = np.rint(pixels + np.float32(deviation) * noise)
  return np.clip(changed, 0, 255).astype(np.uint8)


def recompress(pixels: np.ndarray, *, quality: int) -> np.ndarray:
  """Compresses as a JPEG and decodes that."""
  bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
  _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
  return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def erase(
  pixels: np.ndarray,
  generator: np.random.Generator,
  *,
  area: tuple[float, float],
) -> np.ndarray:
  """Covers a rectangle with noise (Random Erasing, Zhong et al. 2017)."""
  height, width = pixels.shape[:2]
  top, left, bottom, right = (
    round(edge)
    for edge in random_part(
      height, width, generator, area=area, aspect=_ERASED_ASPECT
    )
  )
  pixels = pixels.copy()
  covered = pixels[top:bottom, left:right]
  covered[:] = generator.integers(0, 256, covered.shape, np.uint8)
  return pixels
