import numpy as np

from delf_jax.pictures import drawing


def test_a_place_is_the_same_part_of_a_drawing():
  """The centres of the corners' pixels, and the middle, at half the size."""
  points = np.asarray([(0.0, 0.0), (89.0, 119.0), (44.5, 59.5)])
  placed = drawing.place_points(points, (90, 120), (60, 45))
  np.testing.assert_allclose(placed, [(0.25, 0.25), (59.75, 44.75), (30, 22.5)])
  ones = np.column_stack([points, np.ones(3)])
  mapped = ones @ drawing.placement((90, 120), (60, 45)).T
  np.testing.assert_allclose(mapped, np.column_stack([placed, np.ones(3)]))


def test_a_panorama_is_shown_lower():
  wide, high = (
    drawing.draw_photograph(np.zeros((*size, 3), np.uint8), height=100)
    for size in ((50, 400), (400, 50))
  )
  assert wide.shape == (25, 200, 3) and high.shape == (100, 12, 3)


def test_nothing_hides_in_a_name():
  assert drawing.visible("a b.jpg, é, 北京, \\") == "a b.jpg, é, 北京, \\"
  assert drawing.visible("\n\t\x1b\u202e\udcff") == r"\n\t\x1b\u202e\udcff"
  assert drawing.printable("a北") == "a\N{REPLACEMENT CHARACTER}"
