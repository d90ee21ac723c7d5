import numpy as np
import pytest

from delf_jax.data.cropping import crop
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.items import Item, is_box, pixel_box


def test_names_keep_a_photograph_and_its_parts_apart():
  assert Item("a#b.jpg").name == "a#b.jpg"
  assert Item("a.jpg", (34.1, 136.5, 955.7, 648.5)).name == (
    "a.jpg#34.1,136.5,955.7,648.5"
  )
  assert Item("a.jpg", (0.0, 0, 10, 20)).name == "a.jpg#0,0,10,20"
  boxes = [(0, 0, 10, 20), (0, 0, 10, 20.5), (0, 0, 10, 20.500001), None]
  assert len({Item("a.jpg", box).name for box in boxes}) == 4


def test_boxes_are_rounded_and_stay_inside():
  inside = dict(height=100, width=200)
  assert pixel_box((34.1, 136.5, 95.7, 148.5), **inside) == (34, 136, 96, 148)
  assert pixel_box((-5, -0.4, 300, 200.4), **inside) == (0, 0, 100, 200)
  assert pixel_box((120, 10, 130, 20), **inside)[0] == 100


def test_what_is_a_box():
  assert is_box((1, 2, 3, 4)) and is_box([1.5, 2, 3, 4])
  for value in (None, 3, (1, 2, 3), (3, 2, 1, 4), (1, 4, 3, 4), "1234"):
    assert not is_box(value)
  assert not is_box((0, 0, float("nan"), 1))


def test_a_crop_is_the_pixels_and_their_corner():
  pixels = np.arange(60 * 80 * 3).reshape(60, 80, 3).astype(np.uint8)
  photograph = Photograph(pixels, 60, 80)
  item = Item("a.jpg", (9.6, 20, 40, 90))
  part, corner = crop(photograph, item, max_side=None)
  assert corner == (10, 20) and (part.height, part.width) == (30, 60)
  np.testing.assert_array_equal(part.pixels, pixels[10:40, 20:80])
  part, corner = crop(photograph, item, max_side=30)
  assert part.pixels.shape == (15, 30, 3) and corner == (10, 20)
  assert (part.height, part.width) == (30, 60)
  with pytest.raises(InputError, match="lies outside the photograph of 80 x"):
    crop(photograph, Item("a.jpg", (70, 0, 90, 20)), max_side=None)
