"""Photographs of every kind that real life brings, made here byte by byte."""

import concurrent.futures
import glob
import io
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from delf_jax.data.photographs import (
  Photograph,
  decode_photograph,
  read_photograph,
  resample_photograph,
)
from delf_jax.errors import InputError

GREY = 128


def picture(height=20, width=32):
  """Returns [height, width, 3] uint8, every pixel different, no symmetry."""
  y, x = np.mgrid[:height, :width]
  return np.stack([y * 7, x * 5, (y * 3 + x * 2) % 256], -1).astype(np.uint8)


def encode(pixels, kind, **options):
  buffer = io.BytesIO()
  image = pixels
  if isinstance(pixels, np.ndarray):
    image = Image.fromarray(pixels)
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def chunk(name, body):
  checksum = zlib.crc32(name + body)
  return (
    struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)
  )


def png(samples, *, depth, colour, extra=b""):
  """Writes a PNG without any library; samples is [h, w, channels]."""
  height, width = samples.shape[:2]
  data = samples.astype(">u2" if depth == 16 else np.uint8)
  rows = b"".join(b"\0" + row.tobytes() for row in data)
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + extra
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def exif(orientation, *, order="<"):
  magic = b"II*\0" if order == "<" else b"MM\0*"
  return magic + struct.pack(
    order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0
  )


# What a viewer must do with the stored pixels, by the EXIF standard: where
# the stored row 0 and column 0 lie in the upright picture.
UPRIGHT = {
  1: lambda stored: stored,
  2: lambda stored: stored[:, ::-1],  # top, right
  3: lambda stored: stored[::-1, ::-1],  # bottom, right
  4: lambda stored: stored[::-1],  # bottom, left
  5: lambda stored: stored.swapaxes(0, 1),  # left, top
  6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # right, top
  7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
  8: lambda stored: stored.swapaxes(0, 1)[::-1],  # left, bottom
}


def refused(data, **options):
  """Returns the one line with which data is refused."""
  with pytest.raises(InputError) as caught:
    decode_photograph(data, name="some/photo.jpg", **options)
  line = str(caught.value)
  assert "some/photo.jpg" in line and line.isprintable()
  return line


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("PNG", {}),
    ("BMP", {}),
    ("PPM", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"big_tiff": True}),
  ],
)
def test_lossless_formats_come_back_exactly(kind, options, tmp_path):
  pixels = picture()
  path = tmp_path / "named.jpg"  # the extension does not matter
  path.write_bytes(encode(pixels, kind, **options))
  photograph = read_photograph(path)
  np.testing.assert_array_equal(photograph.pixels, pixels)
  assert photograph.pixels.dtype == np.uint8
  assert photograph.pixels.flags.writeable
  assert (photograph.height, photograph.width) == (20, 32)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_agrees_with_opencv(progressive):
  data = encode(picture(120, 90), "JPEG", progressive=progressive, quality=95)
  expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  pixels = decode_photograph(data, name="x").pixels
  assert np.abs(pixels.astype(int) - expected[:, :, ::-1]).max() <= 3


def test_one_pixel():
  photograph = decode_photograph(
    encode(np.full((1, 1, 3), 77, np.uint8), "PNG"), name="x", max_side=640
  )
  assert photograph.pixels.tolist() == [[[77, 77, 77]]]


def test_greyscale_and_bilevel_become_rgb():
  grey = picture()[:, :, 0]
  for kind in ("PNG", "TIFF", "BMP"):
    pixels = decode_photograph(encode(grey, kind), name="x").pixels
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, 2))
  bits = Image.fromarray(grey > 60)
  for kind in ("PNG", "TIFF"):
    pixels = decode_photograph(encode(bits, kind), name="x").pixels
    np.testing.assert_array_equal(pixels[:, :, 0], (grey > 60) * 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_middle_grey(kind):
  pixels = picture()
  alpha = np.zeros((20, 32), np.uint8)
  alpha[:, 10:20] = 100
  alpha[:, 20:] = 255
  options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
  data = encode(np.dstack([pixels, alpha]), kind, **options)
  weight = alpha[..., None] / 255
  expected = pixels * weight + GREY * (1 - weight)
  result = decode_photograph(data, name="x").pixels
  # Nothing of the colours hidden under full transparency may show.
  assert (result[:, :10] == GREY).all()
  np.testing.assert_array_equal(result[:, 20:], pixels[:, 20:])
  assert np.abs(result - expected).max() <= 1


def test_greyscale_with_alpha():
  grey = picture()[:, :, 0]
  alpha = np.where(np.arange(32) < 16, 0, 255)[None].repeat(20, 0)
  data = png(np.dstack([grey, alpha]), depth=8, colour=4)
  pixels = decode_photograph(data, name="x").pixels
  assert (pixels[:, :16] == GREY).all()
  np.testing.assert_array_equal(pixels[:, 16:, 0], grey[:, 16:])


@pytest.mark.parametrize(
  ("transparency", "seen"),
  [(b"\x00", [GREY, 20, 30]), (b"\xff\x00\x80", [10, GREY, 79])],
)
def test_palette_with_transparency(transparency, seen):
  palette = bytes([10] * 3 + [20] * 3 + [30] * 3)
  data = png(
    np.array([[[0], [1], [2]]]),
    depth=8,
    colour=3,
    extra=chunk(b"PLTE", palette) + chunk(b"tRNS", transparency),
  )
  pixels = decode_photograph(data, name="x").pixels
  np.testing.assert_allclose(pixels[0, :, 1], seen, atol=1)


def test_colour_key_of_truecolour():
  pixels = picture()
  key = struct.pack(">HHH", *pixels[3, 4].tolist())
  data = png(pixels, depth=8, colour=2, extra=chunk(b"tRNS", key))
  expected = pixels.copy()
  expected[3, 4] = GREY
  np.testing.assert_array_equal(
    decode_photograph(data, name="x").pixels, expected
  )


def test_cmyk_of_adobe_is_not_inverted():
  inks = np.zeros((16, 64, 4), np.uint8)
  inks[:, 16:32, 0] = 255  # cyan
  inks[:, 32:48, 1] = 255  # magenta
  inks[:, 48:, 3] = 255  # black
  data = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
  assert b"Adobe" in data  # so the file stores 255 - ink
  pixels = decode_photograph(data, name="x").pixels
  seen = pixels[8, [8, 24, 40, 56]].astype(int)
  expected = [[255, 255, 255], [0, 255, 255], [255, 0, 255], [0, 0, 0]]
  assert np.abs(seen - expected).max() <= 3
  tiff = encode(Image.fromarray(inks, "CMYK"), "TIFF")
  pixels = decode_photograph(tiff, name="x").pixels
  np.testing.assert_array_equal(pixels[8, [8, 24, 40, 56]], expected)


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_16_bit_png_is_scaled_not_clipped(colour):
  channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
  values = np.linspace(0, 65535, 20 * 32).astype(np.uint16).reshape(20, 32)
  samples = np.stack([values] * channels, -1)
  if colour in (4, 6):
    samples[..., -1] = 65535
  pixels = decode_photograph(png(samples, depth=16, colour=colour), name="x")
  expected = np.repeat((values >> 8)[..., None], 3, 2)
  np.testing.assert_array_equal(pixels.pixels, expected)
  assert expected.min() == 0 and expected.max() == 255


def test_16_bit_colour_key_is_ignored():
  # Its low byte is the pixels' high byte, and so what is left of them.
  samples = np.full((4, 4, 3), 0x1234)
  key = chunk(b"tRNS", struct.pack(">HHH", *[0x5612] * 3))
  data = png(samples, depth=16, colour=2, extra=key)
  assert (decode_photograph(data, name="x").pixels == 0x12).all()


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    (np.float32([[0, 0.5, 1]]), [0, 128, 255]),
    (np.float32([[0, 100, 255]]), [0, 100, 255]),
    (np.float32([[0, 32768, 65535]]), [0, 128, 255]),
    (np.float32([[0, 1e6, 2e6]]), [0, 128, 255]),
    (np.float32([[-1, 0, 1]]), [0, 128, 255]),
    (np.float32([[np.nan, np.inf, 1]]), [0, 255, 255]),
    (np.float32([[np.nan, np.nan, np.inf]]), [0, 0, 255]),
    (np.float32([[0, 0, 0]]), [0, 0, 0]),
    (np.int32([[0, 100, 255]]), [0, 100, 255]),
    (np.int32([[0, 32768, 65535]]), [0, 128, 255]),
    (np.int32([[0, 2**30, 2**31 - 1]]), [0, 128, 255]),
    (np.uint16([[0, 32768, 65535]]), [0, 128, 255]),
  ],
)
def test_tiff_of_16_and_32_bits(values, expected):
  pixels = decode_photograph(encode(values, "TIFF"), name="x").pixels
  assert pixels[0].tolist() == [[v, v, v] for v in expected]


def test_16_bit_ppm_of_a_dark_photograph_stays_dark():
  values = np.array([[0, 200, 255]], ">u2")
  data = b"P5\n3 1\n65535\n" + values.tobytes()
  assert decode_photograph(data, name="x").pixels.max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "MPO"])
def test_exif_rotation_is_undone(kind, orientation):
  stored = picture(24, 40)
  tags = Image.Exif()
  tags[0x0112] = orientation
  options = {"lossless": True} if kind == "WEBP" else {}
  data = encode(stored, kind, exif=tags, **options)
  photograph = decode_photograph(data, name="x")
  expected = UPRIGHT[orientation](stored)
  assert photograph.pixels.shape == expected.shape
  assert (photograph.height, photograph.width) == expected.shape[:2]
  difference = np.abs(photograph.pixels.astype(int) - expected)
  assert difference.mean() <= (8 if kind in ("JPEG", "MPO") else 0)
  reduced = decode_photograph(data, name="x", max_side=20)
  assert max(reduced.pixels.shape) == 20
  assert (reduced.height, reduced.width) == expected.shape[:2]
  assert (reduced.pixels.shape[0] == 20) == (expected.shape[0] == 40)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_either_byte_order_and_after_the_pixels(order):
  stored = picture()
  block = chunk(b"eXIf", exif(8, order=order))
  data = png(stored, depth=8, colour=2)
  for place in (len(data) - 12, 33):
    turned = decode_photograph(data[:place] + block + data[place:], name="x")
    np.testing.assert_array_equal(turned.pixels, UPRIGHT[8](stored))


@pytest.mark.parametrize(
  "block",
  [
    b"",
    b"II",
    b"II*\0\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08\xff\xff",
    exif(0),
    exif(9),
    exif(6)[:-8],
    exif(6).replace(b"\x12\x01", b"\x13\x01"),
    b"garbage" * 9,
  ],
)
def test_a_broken_exif_block_costs_nothing(block):
  stored = picture()
  data = encode(stored, "JPEG", exif=b"Exif\0\0" + block)
  photograph = decode_photograph(data, name="x")
  assert photograph.pixels.shape == (20, 32, 3)


@pytest.mark.parametrize(
  ("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_the_first_frame_of_an_animation(kind, options):
  first = np.zeros((20, 32, 3), np.uint8)
  first[5:, 8:] = (255, 0, 0)
  rest = [Image.fromarray(255 - first), Image.fromarray(first // 2)]
  data = encode(
    first, kind, save_all=True, append_images=rest, duration=100, **options
  )
  assert Image.open(io.BytesIO(data)).n_frames == 3
  np.testing.assert_array_equal(decode_photograph(data, name="x").pixels, first)


def test_reduction_never_enlarges_and_does_not_alias():
  y, x = np.mgrid[:300, :400]
  checks = np.where((y + x) % 2, 255, 0).astype(np.uint8)[..., None]
  data = encode(np.repeat(checks, 3, 2), "PNG")
  same = decode_photograph(data, name="x", max_side=400)
  assert same.pixels.shape == (300, 400, 3)
  small = decode_photograph(data, name="x", max_side=100)
  assert small.pixels.shape == (75, 100, 3)
  assert (small.height, small.width) == (300, 400)
  assert np.abs(small.pixels.astype(int) - 127).max() <= 2
  line = decode_photograph(
    encode(picture(1, 400), "PNG"), name="x", max_side=10
  )
  assert line.pixels.shape == (1, 10, 3)


def header(kind, width, height):
  """Returns a file that declares a size and holds next to no pixels."""
  if kind == "PNG":
    fields = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", fields) + chunk(b"IDAT", b"\x78\x9c")
    return b"\x89PNG\r\n\x1a\n" + body
  if kind == "BMP":
    return (
      b"BM"
      + struct.pack("<IHHI", 54, 0, 0, 54)
      + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)
    )
  if kind == "PPM":
    return b"P6 %d %d 255\n" % (width, height)
  data = bytearray(encode(picture(32, 48), kind))
  if kind == "JPEG":
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
  if kind == "GIF":
    data[6:10] = struct.pack("<HH", width, height)
  if kind == "TIFF":
    for tag, value in ((256, width), (257, height)):
      at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
      data[at : at + 4] = struct.pack("<I", value)
  return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "JPEG", "GIF", "TIFF"])
def test_a_bomb_is_refused_by_the_size_in_its_header(kind):
  started = time.monotonic()
  line = refused(header(kind, 30_000, 30_000))
  assert "30000 x 30000" in line and "80000000" in line
  assert time.monotonic() - started < 1
  # The same files fail differently where so many pixels are allowed.
  if kind in ("PNG", "BMP", "PPM"):
    small = refused(header(kind, 300, 300))
    assert "damaged" in small


def test_a_webp_larger_than_any_may_be():
  size = (29_999).to_bytes(3, "little")
  data = encode(picture(), "WEBP", exif=exif(1))
  # A newer Pillow refuses it by its size, an older one by what is missing.
  refused(data[:24] + size + size + data[30:])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_max_pixels_is_the_most_allowed(kind):
  data = encode(picture(20, 32), kind)
  assert decode_photograph(data, name="x", max_pixels=640).height == 20
  assert "32 x 20" in refused(data, max_pixels=639)


@pytest.mark.parametrize(
  "kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"]
)
def test_truncated_anywhere(kind):
  noise = np.random.default_rng(0).integers(256, size=(20, 32, 3))
  data = encode(noise.astype(np.uint8), kind)
  # The ends of some formats are padding that a decoder may do without.
  for length in range(1, len(data) * 9 // 10, max(1, len(data) // 50)):
    line = refused(data[:length])
    assert "remove it" in line


@pytest.mark.parametrize(
  ("data", "words"),
  [
    (b"", "empty"),
    (b"\n", "is not a JPEG, PNG"),
    (b"<html>404 not found</html>", "is not a JPEG, PNG"),
    (bytes(1000), "is not a JPEG, PNG"),
    (b"RIFF\x24\0\0\0WAVEfmt ", "damaged"),
    (b"\xff\xd8\xff", "damaged"),
    (b"P6 -4 4 255\n", "damaged"),
  ],
)
def test_what_is_no_photograph(data, words):
  assert words in refused(data)


def test_arguments_that_make_no_sense():
  with pytest.raises(ValueError, match="max_side"):
    decode_photograph(encode(picture(), "PNG"), name="x", max_side=0)


def seeds():
  tags = Image.Exif()
  tags[0x0112] = 6
  tags[0x010F] = "maker" * 5
  tags[282] = 72.0
  image = Image.fromarray(picture(48, 64))
  frames = {"save_all": True, "append_images": [image.rotate(90)]}
  return [
    encode(image, "JPEG", exif=tags),
    encode(image, "JPEG", progressive=True),
    encode(image.convert("CMYK"), "JPEG"),
    encode(image, "MPO", **frames),
    encode(image, "PNG", exif=tags),
    encode(image.quantize(40), "PNG", transparency=bytes(range(40))),
    encode(np.uint16(picture()[:, :, 0]) * 257, "PNG"),
    encode(image, "PNG", **frames),
    encode(image, "WEBP", exif=tags),
    encode(image, "WEBP", lossless=True, **frames),
    encode(image, "BMP"),
    encode(image.quantize(20), "BMP"),
    encode(image, "GIF", **frames),
    encode(image, "PPM"),
    encode(image, "TIFF", exif=tags),
    encode(image, "TIFF", compression="tiff_lzw"),
    encode(image, "TIFF", compression="jpeg"),
    encode(np.float32(picture()[:, :, 0]), "TIFF"),
  ]


def test_fuzzed_files_decode_or_are_refused():
  rng = np.random.default_rng(0)
  outcomes = {Photograph: 0, InputError: 0}
  for seed in seeds():
    for _ in range(40):
      data = bytearray(seed)
      kind = rng.integers(4)
      if kind == 0:
        del data[rng.integers(len(data)) :]
      elif kind == 1:
        for at in rng.integers(len(data), size=rng.integers(1, 6)):
          data[at] = rng.integers(256)
      elif kind == 2:
        for at in rng.integers(min(len(data), 200), size=rng.integers(1, 4)):
          data[at] = rng.choice([0, 127, 128, 255])
      else:
        start, stop = sorted(rng.integers(len(data), size=2))
        del data[start:stop]
      try:
        result = decode_photograph(bytes(data), name="odd\nname")
        assert result.pixels.shape[2] == 3
        outcomes[Photograph] += 1
      except InputError as error:
        assert str(error).isprintable() and "'odd\\nname'" in str(error)
        outcomes[InputError] += 1
  assert min(outcomes.values()) > 50


def test_no_stray_warning_in_a_fresh_process(tmp_path):
  """Pillow's warnings must not reach the screen, with nobody to filter."""
  files = [
    header("GIF", 30_000, 30_000),
    header("TIFF", 10_000, 9_500),  # beyond Pillow's limit for a warning
    encode(picture(), "JPEG", exif=b"Exif\0\0" + exif(6) * 2),
    encode(picture(), "JPEG", exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\x20\0"),
    encode(picture(), "TIFF").replace(  # two values where one is expected
      struct.pack("<HHI", 257, 4, 1), struct.pack("<HHI", 257, 3, 2)
    ),
    encode(picture(), "TIFF")[:-60],
    encode(picture(), "TIFF").replace(  # more samples than Pillow takes
      struct.pack("<HHIH", 277, 3, 1, 3), struct.pack("<HHIH", 277, 3, 1, 99)
    ),
  ]
  for index, data in enumerate(files):
    (tmp_path / f"{index}.jpg").write_bytes(data)
  code = """
import sys
from delf_jax.data.photographs import read_photograph
from delf_jax.errors import InputError
for path in sys.argv[1:]:
  try:
    read_photograph(path, max_pixels=100_000_000)
    print("read")
  except InputError:
    print("refused")
"""
  paths = sorted(glob.glob(f"{tmp_path}/*.jpg"))
  done = subprocess.run(
    [sys.executable, "-c", code, *paths], capture_output=True, text=True
  )
  assert done.stderr == ""
  assert done.stdout.split() == [
    *("refused", "refused", "read", "read", "read", "refused", "refused")
  ]


def test_many_threads_decode_the_same():
  files = seeds() * 4
  alone = [decode_photograph(data, name="x") for data in files]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    together = list(
      pool.map(lambda data: decode_photograph(data, name="x"), files)
    )
  for one, other in zip(alone, together, strict=True):
    np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize(
  "name",
  [
    "with space.png",
    "quote\"s and 'such'.png",
    "new\nline\r.png",
    "Αθήνα 東京.png",
    os.fsdecode(b"caf\xe9 \xff.png"),
    "\u202eright to left.png",
  ],
)
def test_odd_names_are_read_and_named_on_one_line(name, tmp_path):
  path = os.path.join(tmp_path, name)
  with open(path, "wb") as file:
    file.write(encode(picture(), "PNG"))
  np.testing.assert_array_equal(read_photograph(path).pixels, picture())
  np.testing.assert_array_equal(
    read_photograph(os.fsencode(path)).pixels, picture()
  )
  with open(path, "wb"):
    pass
  with pytest.raises(InputError, match="empty") as caught:
    read_photograph(path)
  line = str(caught.value)
  assert line.isprintable()
  line.encode("utf-8")
  assert repr(os.fspath(path)) in line


def test_files_that_cannot_be_read(tmp_path):
  pipe = tmp_path / "pipe.jpg"
  os.mkfifo(pipe)
  loop = tmp_path / "loop.jpg"
  loop.symlink_to(loop)
  for path, words in (
    (tmp_path, "folder"),
    (tmp_path / "none.jpg", "does not exist"),
    (tmp_path / "none" / "none.jpg", "does not exist"),
    (pipe, "no regular file"),
    (loop, "symbolic links"),
    ("/dev/zero", "no regular file"),
    (tmp_path / ("x" * 300), "too long"),
    ("nul\0l.jpg", "null"),
  ):
    with pytest.raises(InputError, match=words) as caught:
      read_photograph(path)
    assert str(caught.value).isprintable()


def test_a_file_larger_than_any_photograph(tmp_path):
  path = tmp_path / "sparse.tif"
  with open(path, "wb") as file:
    file.truncate(3 * 2**30)
  with pytest.raises(InputError, match=r"3\.0 GiB"):
    read_photograph(path)


def test_no_permission():
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    path = os.path.join(folder, "locked.png")
    with open(path, "wb") as file:
      file.write(encode(picture(), "PNG"))
    os.chmod(path, 0)
    user = os.geteuid()
    if user == 0:
      os.seteuid(65534)
    try:
      with pytest.raises(InputError, match="no permission"):
        read_photograph(path)
    finally:
      os.seteuid(user)


def test_real_photographs_agree_with_opencv():
  folder = os.environ.get("DELF_JAX_PHOTOS")
  if not folder:
    pytest.skip("DELF_JAX_PHOTOS does not name a folder of photographs")
  paths = sorted(glob.glob(f"{folder}/**/*.jpg", recursive=True))[::20]
  assert paths
  for path in paths:
    photograph = read_photograph(path)
    expected = cv2.imread(path, cv2.IMREAD_COLOR)[:, :, ::-1]
    assert photograph.pixels.shape == expected.shape
    difference = np.abs(photograph.pixels.astype(int) - expected)
    assert difference.mean() < 1


def cut(data, box, size):
  return resample_photograph(data, name="x", plan=lambda *_: (box, size))


def test_a_part_is_cut_and_resized_at_once():
  pixels = picture(90, 120)
  data = encode(pixels, "PNG")
  same = cut(data, (10, 20, 60, 100), (50, 80))
  np.testing.assert_array_equal(same, pixels[10:60, 20:100])
  half = cut(data, (10, 20, 60, 100), (25, 40))
  expected = Image.fromarray(pixels).resize((60, 45), Image.BILINEAR)
  error = np.abs(half.astype(int) - np.asarray(expected)[5:30, 10:50]).max()
  assert error <= 1
  grown = cut(data, (0, 0, 90, 120), (180, 240))
  expected = Image.fromarray(pixels).resize((240, 180), Image.BILINEAR)
  np.testing.assert_array_equal(grown, np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_part_is_one_of_the_upright_photograph(kind, orientation):
  stored = np.asarray(
    Image.fromarray(picture(6, 9)).resize((361, 281), Image.BICUBIC)
  )
  options = {
    "JPEG": {"exif": b"Exif\0\0" + exif(orientation)},
    "TIFF": {"tiffinfo": {0x0112: orientation}},
  }.get(kind, {"exif": exif(orientation)})
  data = encode(stored, kind, quality=95, **options)
  upright = UPRIGHT[orientation](stored)
  sizes = []

  def plan(height, width):
    sizes.append((height, width))
    return (20, 30, 220, 190), (50, 40)

  result = resample_photograph(data, name="x", plan=plan)
  assert sizes == [upright.shape[:2]]
  part = Image.fromarray(np.ascontiguousarray(upright[20:220, 30:190]))
  expected = np.asarray(part.resize((40, 50), Image.BILINEAR)).astype(int)
  error = np.abs(result - expected)[1:-1, 1:-1]
  assert error.mean() < 1.5


@pytest.mark.parametrize(
  ("box", "size", "whole"),
  [
    ((0, 0, 640, 960), (640, 960), True),
    ((0, 0, 640, 960), (1280, 1920), True),
    ((0, 0, 640, 960), (100, 481), True),
    ((0, 0, 640, 960), (320, 480), False),
    ((0, 0, 320, 480), (161, 240), True),
    ((0, 0, 320, 480), (160, 240), False),
    ((0, 0, 640, 960), (3, 5), False),
  ],
)
def test_a_jpeg_is_decoded_no_smaller_than_asked_for(box, size, whole):
  smooth = Image.fromarray(picture(8, 12)).resize((960, 640), Image.BICUBIC)
  data = encode(smooth, "JPEG", quality=90)
  decoded = encode(decode_photograph(data, name="x").pixels, "PNG")
  expected = cut(decoded, box, size)
  result = cut(data, box, size)
  assert result.shape == (*size, 3)
  assert np.array_equal(result, expected) == whole
  assert np.abs(result.astype(int) - expected).mean() < 1


def test_a_damaged_photograph_has_no_part():
  for data in (b"", b"text", encode(picture(), "JPEG")[:200]):
    with pytest.raises(InputError, match="'x'"):
      cut(data, (0, 0, 5, 5), (5, 5))
  with pytest.raises(InputError, match="more than the 10 allowed"):
    resample_photograph(
      encode(picture(), "PNG"),
      name="x",
      plan=lambda *_: ((0, 0, 1, 1), (1, 1)),
      max_pixels=10,
    )
