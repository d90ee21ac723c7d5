"""Which photographs are drawn, and how they are cut."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from delf_jax.data import examples
from delf_jax.data.augmentation import Augmentation
from delf_jax.errors import InputError


def encode(pixels, kind="PNG", **options):
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, kind, **options)
  return stream.getvalue()


def picture(height=90, width=120, seed=0):
  """A photograph-like picture without any symmetry."""
  small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
  image = Image.fromarray(small).resize((width, height), Image.BICUBIC)
  return np.asarray(image)


class Photographs(list):
  """Encoded photographs with labels, in memory."""

  @property
  def labels(self):
    return np.array([example["label"] for example in self], np.int32)


def photographs(pictures):
  return Photographs(
    {"image": encode(pixels), "label": i, "name": f"{i}.png"}
    for i, pixels in enumerate(pictures)
  )


def training(source, **options):
  defaults = {"seed": 0, "batch_size": 8, "resize": 50, "crop": 40}
  return examples.TrainingExamples(source, **{**defaults, **options})


def filled(made, position, side=40):
  pixels = np.zeros((1, side, side, 3), np.uint8)
  (example,) = made.fill(position, pixels)
  return example, pixels[0]


def in_two_steps(pixels, resize, crop, top, left):
  """The paper's words: the central square, resized; then a window of it."""
  height, width = pixels.shape[:2]
  length = min(height, width)
  y, x = (height - length) // 2, (width - length) // 2
  square = Image.fromarray(pixels[y : y + length, x : x + length])
  resized = np.asarray(square.resize((resize, resize), Image.BILINEAR))
  return resized[top : top + crop, left : left + crop]


def order(count=7, sampling="photograph", labels=None, seed=0):
  return examples.Order(count, labels, seed=seed, sampling=sampling)


def test_every_epoch_has_every_photograph_in_an_order_of_its_own():
  draw = order()
  epochs = [[draw(7 * e + i) for i in range(7)] for e in range(20)]
  assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) > 15
  assert [order(seed=1)(i) for i in range(7)] != epochs[0]


@pytest.mark.parametrize("sampling", examples.SAMPLINGS)
def test_the_order_is_a_pure_function_of_the_position(sampling):
  labels = np.array([3, 0, 0, 3, 5, 0, 5])
  ahead = order(sampling=sampling, labels=labels)
  expected = [ahead(position) for position in range(60)]
  behind = order(sampling=sampling, labels=labels)
  found = [behind(position) for position in reversed(range(60))]
  assert found[::-1] == expected


def test_classes_take_turns_whatever_their_size():
  labels = np.array([7] * 20 + [2] + [4] * 3)
  draw = order(24, "class", labels)
  drawn = [draw(position) for position in range(180)]
  rounds = labels[drawn].reshape(60, 3)
  assert (np.sort(rounds, axis=1) == [2, 4, 7]).all()
  assert len({tuple(r) for r in rounds}) == 6
  # Inside a class, its photographs take turns too.
  for label, size in ((7, 20), (4, 3)):
    members = np.array([i for i in drawn if labels[i] == label])
    turns = np.sort(members.reshape(-1, size), axis=1)
    assert (turns == np.nonzero(labels == label)[0]).all()
    assert len({tuple(t) for t in members.reshape(-1, size)}) > 1


def test_substitutes_are_of_the_same_class_first():
  labels = np.repeat(np.arange(10), 5)
  draw = order(50, "class", labels)
  for position in range(5):
    label = labels[draw(position)]
    drawn = [draw(position, attempt) for attempt in range(100)]
    assert (labels[drawn[:10]] == label).all()
    assert len(set(drawn[:10])) > 1
    assert len(set(labels[drawn[10:]])) == 10
  draw = order(50)
  assert len({draw(3, attempt) for attempt in range(100)}) > 30


def test_a_window_equals_the_papers_two_steps():
  for height, width in ((90, 120), (121, 83), (60, 60), (30, 35)):
    pixels = picture(height, width)
    made = training(photographs([pixels]))
    windows = [
      in_two_steps(pixels, 50, 40, top, left).astype(int)
      for top in range(11)
      for left in range(11)
    ]
    seen = set()
    for position in range(40):
      _, result = filled(made, position)
      differences = [np.abs(window - result) for window in windows]
      best = int(np.argmin([d.mean() for d in differences]))
      # Pillow rounds twice or once. The pixels at the edges may differ by more:
      # the photograph goes on where the square ends.
      assert differences[best].mean() < 0.2
      assert differences[best][1:-1, 1:-1].max() <= 3
      seen.add(best)
    assert len(seen) > 20


def test_a_jpeg_decoded_at_a_fraction_looks_the_same():
  pixels = picture(600, 800)
  whole = training(photographs([pixels]))
  jpeg = [{"image": encode(pixels, "JPEG", quality=95), "label": 0, "name": ""}]
  fast = training(jpeg)
  for position in range(5):
    _, expected = filled(whole, position)
    _, result = filled(fast, position)
    assert np.abs(result.astype(int) - expected).mean() < 1.5


def test_the_scale_shrinks_the_window_and_is_one_for_a_batch():
  pixels = picture()
  source = photographs([pixels])
  made = training(source, scales=(0.5, 0.7071, 1.0))
  sides = [made.shape(batch)[0] for batch in range(100)]
  assert set(sides) == {20, 28, 40}
  assert sides == [
    training(source, scales=(0.5, 0.7071, 1.0)).shape(batch)[0]
    for batch in range(100)
  ]
  _, large = filled(made, 3, side=40)
  _, small = filled(made, 3, side=20)
  halved = np.asarray(Image.fromarray(large).resize((20, 20), Image.BOX))
  assert np.abs(halved.astype(int) - small).mean() < 2


def test_every_position_has_chance_of_its_own():
  made = training(photographs([picture()]), augmentation=Augmentation(flip=0.5))
  results = [filled(made, position)[1] for position in range(8)]
  assert len({result.tobytes() for result in results}) == 8
  again = [filled(made, position)[1] for position in range(8)]
  np.testing.assert_array_equal(results, again)
  other = training(photographs([picture()]), seed=1)
  assert not np.array_equal(filled(other, 0)[1], results[0])


def test_a_part_of_everything_is_the_photograph_resized():
  pixels = picture()
  options = Augmentation(crop_area=(1, 1), crop_aspect=(4 / 3, 4 / 3))
  _, result = filled(training(photographs([pixels]), augmentation=options), 0)
  expected = np.asarray(
    Image.fromarray(pixels).resize((40, 40), Image.BILINEAR)
  )
  assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("side", [250, 500, 60])
def test_homographies_move_corners_by_no_more_than_they_say(side):
  # The colour of a pixel is its place, in units of a 250th of the side.
  y, x = np.mgrid[:side, :side] + 0.5
  places = np.stack([250 * y / side, 250 * x / side, 0 * x], 2)
  source = photographs([places.astype(np.uint8)])
  still = training(source)
  bent = training(source, augmentation=Augmentation(homography=0.1))
  ends = np.ix_([0, -1], [0, -1], [0, 1])
  moved = []
  for position in range(50):
    before = filled(still, position)[1][ends].astype(float)
    after = filled(bent, position)[1][ends].astype(float)
    assert after.min() > 0 and after.max() < 250
    moved.append(after - before)
  # The window's side is 200; 2 are for rounding, 3 for the turn of a pixel.
  assert 15 < np.max(moved) < 25 and -25 < np.min(moved) < -15
  assert np.std(moved, axis=0).min() > 5


def test_no_wedge_comes_in_from_outside():
  source = photographs([np.full((70, 50, 3), 200, np.uint8)])
  options = Augmentation(
    crop_area=(0.5, 1), homography=0.24, flip=0.5, blur=0.5, jpeg=0.5
  )
  made = training(source, augmentation=options)
  for position in range(50):
    _, result = filled(made, position)
    assert np.abs(result.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (3, 5)])
def test_tiny_and_thin_photographs_work(size):
  source = photographs([np.full((*size, 3), 90, np.uint8)])
  options = Augmentation(crop_area=(0.1, 1), homography=0.2, blur=1, erasing=1)
  for made in (training(source), training(source, augmentation=options)):
    for position in range(5):
      example, _ = filled(made, position)
      assert example.skipped == ()
  _, result = filled(training(source), 0)
  assert (result == 90).all()


def test_a_broken_photograph_is_replaced_and_named():
  source = photographs([picture(seed=i) for i in range(6)])
  source[2]["image"] = source[2]["image"][:60]
  source[4]["image"] = b""
  made = training(source)
  labels, skipped = [], {}
  for position in range(60):
    example, _ = filled(made, position)
    labels.append(example.label)
    skipped.update(example.skipped)
  assert set(labels) == {0, 1, 3, 5}
  assert set(skipped) == {"2.png", "4.png"}
  assert "truncated" in skipped["2.png"] and "0 bytes" in skipped["4.png"]
  # The others keep their place.
  whole = training(photographs([picture(seed=i) for i in range(6)]))
  for position, label in enumerate(labels):
    expected = filled(whole, position)[0].label
    assert label == expected or expected in (2, 4)


class Unsteady(Photographs):
  """Fails to read its first photograph, in one way or another."""

  error = OSError("disk gone")

  def __getitem__(self, i):
    if i == 0:
      raise self.error
    return super().__getitem__(i)


@pytest.mark.parametrize(
  "error", [OSError("disk gone"), RuntimeError("crc"), InputError("unfit")]
)
def test_a_source_that_cannot_read_is_no_reason_to_stop(error):
  source = Unsteady(photographs([picture()] * 2))
  source.error = error
  made = training(source)
  found = [filled(made, position)[0] for position in range(4)]
  assert {example.label for example in found} == {1}
  assert ("photograph 0", str(error)) in sum((e.skipped for e in found), ())


def test_a_mistake_in_a_source_is_not_hidden():
  source = Unsteady(photographs([picture()] * 2))
  source.error = TypeError("a bug")
  with pytest.raises(TypeError, match="a bug"):
    for position in range(4):
      filled(training(source), position)


def test_nothing_readable_at_all():
  source = photographs([picture()] * 3)
  for example in source:
    example["image"] = b"no photograph"
  with pytest.raises(InputError, match="no readable training .* '.\\.png' is"):
    filled(training(source, sampling="class"), 0)


def test_evaluation_cuts_the_centre_and_pads():
  source = photographs([picture(seed=i) for i in range(3)])
  source[1]["image"] = b"broken"
  made = examples.EvaluationExamples(source, resize=50, crop=40)
  assert len(made) == 3 and made.shape(0) == (40, 40, 3)
  pixels = np.full((4, 40, 40, 3), 99, np.uint8)
  found = made.fill(0, pixels)
  assert [e.weight for e in found] == [1, 0, 1, 0]
  assert [e.name for e in found] == ["0.png", "1.png", "2.png", ""]
  assert [len(e.skipped) for e in found] == [0, 1, 0, 0]
  expected = in_two_steps(picture(seed=2), 50, 40, 5, 5)
  assert np.abs(pixels[2].astype(int) - expected).max() <= 1
  assert not pixels[[1, 3]].any()
  limited = examples.EvaluationExamples(source, resize=50, crop=40, limit=2)
  assert [e.name for e in limited.fill(1, pixels[:2])] == ["1.png", ""]


def test_examples_can_be_pickled_before_they_are_made():
  source = photographs([picture()] * 2)
  arguments = pickle.loads(pickle.dumps((source, Augmentation(flip=0.5))))
  again = training(arguments[0], augmentation=arguments[1])
  first = training(source, augmentation=Augmentation(flip=0.5))
  np.testing.assert_array_equal(filled(again, 5)[1], filled(first, 5)[1])
