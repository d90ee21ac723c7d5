"""Folders of photographs, good and bad, into stores."""

import io
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from delf_jax import checkpoint, extraction, extractors
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.items import Item
from delf_jax.models.normalisation import NORMALISATIONS


def textured(height, width, seed=0):
  generator = np.random.default_rng(seed)
  blocks = generator.integers(0, 255, (height // 6 + 1, width // 6 + 1, 3))
  large = np.kron(blocks, np.ones((6, 6, 1)))[:height, :width]
  return large.astype(np.uint8)


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def save_tiny(directory, *, extraction, **changes):
  network = checkpoint.build_network(
    **{
      "units": (1, 1, 1),
      "width": 4,
      "attention_hidden": 8,
      "num_classes": 2,
      **changes,
    }
  )
  checkpoint.save_model(
    directory,
    network=network,
    variables=jax.jit(network.init)(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    ),
    normalisation=NORMALISATIONS["unit"],
    reduction=None,
    extraction={"scales": [0.5, 1.0], "max_features": 60, **extraction},
    provenance={},
  )
  return str(directory)


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
  directory = tmp_path_factory.mktemp("tiny") / "model"
  return save_tiny(directory, extraction={"score": "product"})


@pytest.fixture
def photos(tmp_path):
  root = tmp_path / "photos"
  write(root / "one.png", textured(80, 100, 1))
  write(root / "deep" / 'two "quoted"\nlines é.png', textured(90, 70, 2))
  write(root / "deep" / "three.png", textured(60, 60, 3))
  write(root / "dot.png", textured(1, 1, 4))
  (root / "cut.png").write_bytes((root / "one.png").read_bytes()[:200])
  (root / "empty.jpg").touch()
  (root / "text.jpg").write_text("not an image")
  (root / "gone.jpg").symlink_to("nowhere.jpg")
  (root / "loop").symlink_to(".")
  return root


GOOD = {"one.png", 'deep/two "quoted"\nlines é.png', "deep/three.png"}
BAD = {"dot.png", "cut.png", "empty.jpg", "text.jpg", "gone.jpg"}


@pytest.mark.parametrize("kind", ["rootsift", "sift", "surf", "congas", "delf"])
def test_the_good_are_extracted_and_the_bad_reported(
  photos, tmp_path, tiny_checkpoint, kind
):
  features = tiny_checkpoint if kind == "delf" else kind
  extractor = extractors.open_extractor(features, max_side=128)
  counts = extraction.extract_folder(extractor, photos, tmp_path / "store")
  assert counts.done == len(GOOD) and counts.kept == 0
  assert {path for path, _ in counts.skipped} == BAD
  for _, reason in counts.skipped:
    assert "\n" not in reason
  opened = store.open_store(tmp_path / "store")
  assert set(opened.paths) == GOOD
  assert {path for path, _ in opened.skipped} == BAD
  assert counts.features == opened.offsets[-1] > 0
  for i, size in enumerate(opened.sizes):
    found = opened.features(i)
    assert (found.locations < np.asarray(size)[None, :] + 64).all()
    np.testing.assert_allclose(
      np.linalg.norm(found.descriptors, axis=1), 1, atol=2e-3
    )


def test_the_store_does_not_depend_on_workers_or_company(
  photos, tmp_path, tiny_checkpoint
):
  extractor = extractors.open_extractor(tiny_checkpoint, max_side=128)
  for name, workers in [("one", 1), ("many", 5)]:
    extraction.extract_folder(
      extractor, photos, tmp_path / name, workers=workers
    )
  one, many = (store.open_store(tmp_path / name) for name in ("one", "many"))
  assert one.fingerprint == many.fingerprint
  shutil.copytree(photos / "deep", tmp_path / "few")
  extraction.extract_folder(extractor, tmp_path / "few", tmp_path / "alone")
  alone = store.open_store(tmp_path / "alone")
  number = one.paths.index("deep/three.png")
  jax.tree.map(
    np.testing.assert_array_equal,
    alone.features(alone.paths.index("three.png")),
    one.features(number),
  )


def test_a_second_run_keeps_what_is_there_and_adds_what_is_new(
  photos, tmp_path
):
  extractor = extractors.open_extractor("rootsift")
  first = extraction.extract_folder(extractor, photos, tmp_path / "store")
  write(photos / "new.png", textured(70, 70, 9))
  second = extraction.extract_folder(extractor, photos, tmp_path / "store")
  assert (second.done, second.kept) == (1, first.done)
  assert set(store.open_store(tmp_path / "store").paths) == GOOD | {"new.png"}
  other = extractors.open_extractor("sift")
  with pytest.raises(InputError, match="kind"):
    extraction.extract_folder(other, photos, tmp_path / "store")


def test_nothing_is_lost_when_the_keyboard_interrupts(photos, tmp_path):
  real = extractors.open_extractor("rootsift")
  calls = []

  def interrupted(photograph):
    calls.append(photograph)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real.extract(photograph)

  extractor = extractors.Extractor(
    extract=interrupted,
    settings=real.settings,
    source=real.source,
    max_side=real.max_side,
  )
  with pytest.raises(KeyboardInterrupt):
    extraction.extract_folder(extractor, photos, tmp_path / "store", workers=1)
  with pytest.raises(InputError, match="incomplete"):
    store.open_store(tmp_path / "store")
  counts = extraction.extract_folder(real, photos, tmp_path / "store")
  assert (counts.kept, counts.done) == (2, 1)


def test_locations_are_in_pixels_of_the_original(tmp_path, tiny_checkpoint):
  pixels = np.full((400, 600, 3), 128, np.uint8)
  pixels[300:360, 420:480] = textured(60, 60)
  write(tmp_path / "large.png", pixels)
  for features in ("rootsift", tiny_checkpoint):
    extractor = extractors.open_extractor(
      features, max_side=200, max_features=5
    )
    _, found = extraction.extract_file(extractor, tmp_path / "large.png")
    centre = np.median(found.locations, axis=0)
    assert np.abs(centre - [330, 450]).max() < 60


def test_options_override_what_the_checkpoint_recommends(tiny_checkpoint):
  photograph = Photograph(textured(100, 100), 100, 100)
  usual = extractors.open_extractor(tiny_checkpoint, max_side=128)
  changed = extractors.open_extractor(
    tiny_checkpoint, max_side=128, max_features=7, score="l2_norm"
  )
  assert len(usual.extract(photograph).mask) > 7
  assert len(changed.extract(photograph).mask) == 7
  assert changed.settings["score"] == "l2_norm"
  with pytest.raises(InputError, match="score: not an option of rootsift"):
    extractors.open_extractor("rootsift", score="l2_norm")


def test_a_moved_or_changed_checkpoint_is_noticed(tmp_path, tiny_checkpoint):
  settings = {
    **extractors.open_extractor(tiny_checkpoint, max_side=128).settings,
    "features": str(tmp_path / "gone"),
  }
  with pytest.raises(InputError, match="no such checkpoint"):
    extractors.reopen(settings)
  again = extractors.reopen(settings, features=tiny_checkpoint)
  assert again.settings["fingerprint"] == settings["fingerprint"]
  settings["fingerprint"] = "another"
  with pytest.raises(InputError, match="give that checkpoint with --features"):
    extractors.reopen(settings, features=tiny_checkpoint)


def test_imported_features_cannot_be_extracted_of_a_query():
  with pytest.raises(InputError, match="were imported from 'features.h5'"):
    extractors.reopen({"kind": "imported", "features": "features.h5"})


@pytest.mark.parametrize(
  "changes",
  [
    {"attention_hidden": 0, "num_classes": 0},
    {
      "backbone": "vgg",
      "units": (1, 1, 1, 1, 1),
      "feature_stage": "conv5",
      "attention_hidden": 0,
      "num_classes": 0,
    },
  ],
  ids=["resnet", "vgg"],
)
def test_a_backbone_without_attention(tmp_path, changes):
  path = save_tiny(tmp_path / "model", extraction={}, **changes)
  photograph = Photograph(textured(80, 100, 1), 80, 100)
  found = extractors.open_extractor(path, max_side=128).extract(photograph)
  assert found.mask.all() and len(found.mask) > 10
  for score in ("attention", "product"):
    with pytest.raises(InputError, match="no attention head"):
      extractors.open_extractor(path, score=score)


@pytest.mark.parametrize("kind", ["rootsift", "delf"])
@pytest.mark.parametrize("max_side", [64, 512])
def test_features_of_a_part_are_those_of_a_file_that_shows_it_alone(
  tmp_path, tiny_checkpoint, kind, max_side
):
  pixels = textured(150, 220, 5)
  write(tmp_path / "photos/whole.png", pixels)
  box = (20.4, 60.0, 120, 200.6)
  write(tmp_path / "alone/part.png", pixels[20:120, 60:201])
  extractor = extractors.open_extractor(
    tiny_checkpoint if kind == "delf" else kind, max_side=max_side
  )
  counts = extraction.extract_items(
    extractor,
    tmp_path / "photos",
    ["whole.png", ("whole.png", box)],
    tmp_path / "store",
  )
  assert counts.done == 2 and counts.skipped == ()
  opened = store.open_store(tmp_path / "store")
  assert opened.paths == ("whole.png", "whole.png#20.4,60,120,200.6")
  # Sizes and locations are of the whole photograph.
  assert opened.sizes.tolist() == [[150, 220]] * 2
  extraction.extract_folder(extractor, tmp_path / "alone", tmp_path / "other")
  alone = store.open_store(tmp_path / "other").features(0)
  part = opened.features(1)
  assert len(part.mask) > 10
  jax.tree.map(
    np.testing.assert_array_equal,
    part,
    alone.replace(locations=alone.locations + np.float32([20, 60])),
  )
  # Not those features of the whole photograph that lie in the box.
  whole = opened.features(0)
  assert len(part.mask) != len(whole.mask) or not np.array_equal(
    part.descriptors, whole.descriptors
  )


def test_a_box_is_of_the_upright_photograph(tmp_path):
  pixels = textured(90, 160, 6)
  image = Image.fromarray(np.rot90(pixels))
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by a quarter, clockwise
  path = tmp_path / "lying.png"
  image.save(path, exif=exif)
  write(tmp_path / "upright.png", pixels)
  extractor = extractors.open_extractor("rootsift")
  item = Item("lying.png", (10, 20, 80, 140))
  size, lying = extraction.extract_item(extractor, tmp_path, item)
  _, upright = extraction.extract_item(
    extractor, tmp_path, item._replace(path="upright.png")
  )
  assert size == (90, 160)
  jax.tree.map(np.testing.assert_array_equal, lying, upright)


def test_items_that_cannot_be_used_are_named(photos, tmp_path):
  extractor = extractors.open_extractor("rootsift")
  items = [
    ("one.png", (10, 10, 70, 90)),
    ("one.png", (200, 10, 270, 90)),
    ("one.png", (10, 10, 20, 90)),
    ("cut.png", (0, 0, 50, 50)),
    ("nowhere.png", None),
    "deep/three.png",
  ]
  counts = extraction.extract_items(extractor, photos, items, tmp_path / "out")
  assert counts.done == 2
  names = [name for name, _ in counts.skipped]
  assert names == [
    "one.png#200,10,270,90",
    "one.png#10,10,20,90",
    "cut.png#0,0,50,50",
    "nowhere.png",
  ]
  for message, (_, reason) in zip(
    ("lies outside", "80 x 10 pixels are too small", "damaged", "not exist"),
    counts.skipped,
    strict=True,
  ):
    assert message in reason
  for number in (1, 2, 3, 4):
    with pytest.raises(InputError, match=r"one\.png|cut\.png|nowhere\.png"):
      extraction.extract_items(
        extractor,
        photos,
        [items[number]],
        tmp_path / f"strict{number}",
        strict=True,
      )
  again = extraction.extract_items(extractor, photos, items, tmp_path / "out")
  assert (again.done, again.kept) == (0, 2)
  more = extraction.extract_items(
    extractor, photos, [*items[:1], ("one.png", None)], tmp_path / "out"
  )
  assert (more.done, more.kept) == (1, 1)
  with pytest.raises(ValueError, match="listed twice"):
    extraction.extract_items(
      extractor, photos, ["one.png", ("one.png", None)], tmp_path / "out"
    )


def test_an_empty_folder_and_an_unreadable_one(tmp_path):
  extractor = extractors.open_extractor("rootsift")
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="no photographs under"):
    extraction.extract_folder(extractor, tmp_path / "empty", tmp_path / "out")
  with pytest.raises(InputError, match="nowhere"):
    extraction.extract_folder(extractor, tmp_path / "nowhere", tmp_path / "out")
  assert not os.path.exists(tmp_path / "out")


def test_a_reduction_is_learned_on_a_bounded_sample(
  tiny_checkpoint, monkeypatch
):
  model = checkpoint.load_model(tiny_checkpoint)
  source = []
  for seed in range(3):
    stream = io.BytesIO()
    Image.fromarray(textured(96, 128, seed)).save(stream, "PNG")
    source.append({"image": stream.getvalue()})
  source.append({"image": b"nothing"})
  seen = []
  fit = extraction.reduction.fit

  def watch(features, dim, **options):
    seen.append(features)
    return fit(features, dim, **options)

  monkeypatch.setattr(extraction.reduction, "fit", watch)
  whole = extraction.learn_reduction(model, source, dim=4)
  monkeypatch.setattr(extraction, "MOST_TO_LEARN_FROM", 30)
  part = extraction.learn_reduction(model, source, dim=4)
  assert len(seen[0]) > len(seen[1]) == 30
  assert whole.components.shape == part.components.shape
  rows = {row.tobytes() for row in seen[0]}
  assert all(row.tobytes() in rows for row in seen[1])
  assert extraction.learn_reduction(model, source, dim=0) is None
  with pytest.raises(InputError, match="none of the training photographs"):
    extraction.learn_reduction(model, source[3:], dim=4)
