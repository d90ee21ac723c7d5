"""Pairs of views: their points show the same place, always the same way."""

import io

import numpy as np
import pytest
from PIL import Image

from delf_jax.data import pair_sources, pipeline, view_pairs
from delf_jax.data.augmentation import Augmentation
from delf_jax.data.pair_sources import Pair
from delf_jax.data.views import Views
from delf_jax.errors import InputError

SIDE = 64
MIXED = Augmentation(brightness=0.3, noise=5.0, erasing=0.5, jpeg=0.3)


def encode(pixels):
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "PNG")
  return stream.getvalue()


def ramp(shift=(0, 0), size=(200, 240)):
  """A photograph whose red is y and whose green is x, shifted."""
  pixels = np.zeros((*size, 3), np.uint8)
  pixels[..., 0] = np.arange(size[0])[:, None] + shift[0]
  pixels[..., 1] = np.arange(size[1])[None] + shift[1]
  return pixels


class Pairs(list):
  """Pairs in memory."""


def rows_of(source, **options):
  defaults = {"seed": 0, "side": SIDE, "points": 20, "spacing": 8}
  return view_pairs.ViewPairs(source, **{**defaults, **options})


def filled(rows, position=0, count=1):
  pixels = np.zeros((count, 2, SIDE, SIDE, 3), np.uint8)
  return rows.fill(position, pixels), pixels


def shown(pixels, points):
  """What [n, 2] points show: (y, x) in the photograph, to the pixel."""
  y, x = np.rint(points).astype(int).T
  return pixels[y, x, :2].astype(int)


def test_a_family_is_one_pair_and_its_look_alikes():
  source = Pairs(Pair(encode(ramp()), None, str(i), -1) for i in range(9))
  alike = np.array([[(i + j) % 9 for j in (1, 2, 3, 4)] for i in range(9)])
  rows = rows_of(source, look_alikes=alike, family=3)
  names = [int(example.name) for example in filled(rows, count=27)[0]]
  firsts = names[::3]
  assert sorted(firsts) == list(range(9))
  for first, *others in zip(firsts, names[1::3], names[2::3], strict=True):
    assert len(set(others)) == 2
    assert {(other - first) % 9 for other in others} <= {1, 2, 3, 4}
  # A pure function of the position.
  assert [int(e.name) for e in filled(rows, 7, 5)[0]] == names[7:12]


def test_points_show_the_same_in_both_views():
  rows = rows_of(Pairs([Pair(encode(ramp()), None, "ramp", -1)]))
  examples, pixels = filled(rows, count=30)
  for example, views in zip(examples, pixels, strict=True):
    assert example.points.shape == (2, 20, 2) and example.valid.sum() >= 8
    points = example.points[:, example.valid]
    assert (points[0] % 8 == 0).all()
    assert len(np.unique(points[0], axis=0)) == len(points[0])
    assert (points >= 0).all() and (points <= SIDE - 1).all()
    difference = shown(views[0], points[0]) - shown(views[1], points[1])
    # Half a pixel of a view is up to three of the photograph.
    assert np.abs(difference).max() <= 4
    assert not example.points[:, ~example.valid].any()
  assert len({example.points.tobytes() for example in examples}) == 30


def test_points_of_verified_pairs_lie_near_their_inliers():
  homography = np.array([[1.0, 0, -20], [0, 1, 10], [0, 0, 1]])
  # All that is known: a place of the first photograph, left of its middle.
  inliers = np.array([[y, x] for y in range(60, 140, 8) for x in (70, 80, 90)])
  first, second = ramp(), ramp(shift=(20, -10))
  pair = Pair(
    encode(first), encode(second), "x", 3, homography, inliers.astype(float)
  )
  options = Views(length=(0.4, 0.5), scale=1.2)
  examples, pixels = filled(rows_of(Pairs([pair]), options=options), count=20)
  for example, views in zip(examples, pixels, strict=True):
    assert example.group == 3
    points = example.points[:, example.valid]
    seen = shown(views[0], points[0])
    assert np.abs(seen - shown(views[1], points[1])).max() <= 3
    assert 55 < seen[:, 1].min() and seen[:, 1].max() < 105


def test_unreadable_photographs_are_replaced():
  good = Pair(encode(ramp()), None, "good", -1)
  broken = Pair(b"nothing", None, "broken", -1)
  rows = rows_of(Pairs([good, broken]))
  examples, _ = filled(rows, count=12)
  assert {example.name for example in examples} == {"good"}
  skipped = sum((example.skipped for example in examples), ())
  assert len(skipped) >= 6 and {name for name, _ in skipped} == {"broken"}
  with pytest.raises(InputError, match="no usable pair .*'broken'"):
    filled(rows_of(Pairs([broken])))


def test_views_that_share_nothing_are_drawn_again():
  # The second photograph shows what lies far outside the first's inliers.
  far = np.array([[1.0, 0, 5000], [0, 1, 0], [0, 0, 1]])
  image = encode(ramp())
  pair = Pair(image, image, "far", 0, far, np.array([[100.0, 100]]))
  with pytest.raises(InputError, match="no two views share 8 points"):
    filled(rows_of(Pairs([pair])))


@pytest.fixture
def source(tmp_path):
  for i in range(7):
    small = np.random.default_rng(i).integers(0, 256, (9, 12, 3), np.uint8)
    image = Image.fromarray(small).resize((120, 90), Image.BICUBIC)
    (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
    image.save(tmp_path / f"{i % 2}" / f"{i}.png")
  return pair_sources.open_pairs(
    {"x": {"path": str(tmp_path), "grouped": True, "repeat": 2}}
  )


def batches(source, count, **options):
  defaults = {"seed": 3, "batch_size": 6, "crop": 48, "points": 10}
  options = {"spacing": 8, "augmentation": MIXED, **defaults, **options}
  with pipeline.pair_batches(source, **options) as found:
    return [next(found) for _ in range(count)]


def assert_same(found, expected):
  for a, b in zip(found, expected, strict=True):
    assert a["names"] == b["names"]
    for name in ("pixels", "points", "valid", "groups"):
      np.testing.assert_array_equal(a[name], b[name])


def test_batches_depend_on_their_number_alone(source):
  expected = batches(source, 5, threads=1)
  first = expected[0]
  assert first["pixels"].shape == (6, 2, 48, 48, 3)
  assert first["points"].shape == (6, 2, 10, 2)
  assert first["valid"].shape == (6, 10) and first["groups"].dtype == np.int32
  assert_same(batches(source, 5, threads=3, workers=1), expected)
  assert_same(batches(source, 3, start=2), expected[2:])
  shares = [
    batches(source, 2, process_index=p, process_count=2) for p in range(2)
  ]
  for k in range(2):
    joined = {
      name: np.concatenate([share[k][name] for share in shares])
      for name in ("pixels", "points", "valid", "groups")
    }
    names = sum((share[k]["names"] for share in shares), [])
    assert_same([{**joined, "names": names}], expected[k : k + 1])
  other = batches(source, 1, seed=4)[0]
  assert not np.array_equal(other["pixels"], first["pixels"])


def test_batches_end_where_they_are_told_to(source):
  options = {"seed": 0, "batch_size": 2, "crop": 48, "points": 9, "last": 3}
  assert len(list(pipeline.pair_batches(source, **options))) == 3
  for change, message in [
    ({"points": 0}, "0 points a pair"),
    ({"seed": -1}, "must not be negative"),
    ({"threads": 0}, "cannot decode"),
    ({"process_count": 3}, "does not divide"),
  ]:
    with pytest.raises(InputError, match=message):
      pipeline.pair_batches(source, **{**options, **change})
