"""Photographs that look alike to a network."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import delf_small
from delf_jax import initialisation, look_alikes
from delf_jax.data import pair_sources
from delf_jax.errors import InputError

COLOURS = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Three places of each colour in folders, and photographs of the colours."""
  folder = tmp_path_factory.mktemp("photographs")
  generator = np.random.default_rng(0)
  for name, colour in COLOURS.items():
    for place in range(3):
      for view in range(2):
        noise = generator.integers(-20, 20, (80, 90, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        path = folder / f"{name}_{place}" / f"{name}{place}{view}.png"
        path.parent.mkdir(exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        path.write_bytes(stream.getvalue())
  (folder / "red_0" / "broken.png").write_bytes(b"\x89PNG")
  return folder


@pytest.fixture(scope="module")
def model():
  config = delf_small.get_config("tiny").to_dict()
  return initialisation.initial_model(config, 0)


def names_of(source, rows):
  return [source[int(row)].name for row in rows]


def test_they_look_alike_and_show_other_places(root, model, monkeypatch):
  # One colour is more alike than photographs of two places ever are.
  monkeypatch.setattr(look_alikes, "MOST_ALIKE", 1.1)
  source = pair_sources.open_pairs(
    {
      "some": {"path": str(root), "grouped": True, "repeat": 2},
      "again": {"path": str(root)},
    }
  )
  found = look_alikes.find(source, model, side=64, neighbours=3)
  assert found.shape == (len(source), 3) == (3 * 19, 3)
  for position, row in enumerate(found):
    name = source[position].name
    if "broken" in name:
      continue
    for other in names_of(source, row):
      assert other.partition("_")[0] == name.partition("_")[0]
      assert other != name
  # Those of one place are not among each other's, where that is known.
  for position in range(19):
    place = source[position].name.partition("/")[0]
    grouped = [row for row in found[position] if row < 38]
    assert all(not n.startswith(place) for n in names_of(source, grouped))
  # The second time a photograph comes it has the same.
  np.testing.assert_array_equal(found[:19], found[19:38])


def test_those_too_much_alike_may_show_the_same(root, model, monkeypatch):
  monkeypatch.setattr(look_alikes, "MOST_ALIKE", 0.5)
  source = pair_sources.open_pairs({"all": {"path": str(root)}})
  found = look_alikes.find(source, model, side=64, neighbours=6)
  for position, row in enumerate(found):
    name = source[position].name
    if "broken" in name:
      continue
    colour = name.partition("_")[0]
    others = names_of(source, row)
    assert all(
      "broken" in other or not other.startswith(colour) for other in others
    )


def test_one_photograph_has_none(root, model, tmp_path):
  shutil.copy(root / "red_0" / "red00.png", tmp_path)
  source = pair_sources.open_pairs({"one": {"path": str(tmp_path)}})
  with pytest.raises(InputError, match="one photograph alone"):
    look_alikes.find(source, model, side=64)


def test_they_are_found_once_a_run(root, model, tmp_path, monkeypatch):
  source = pair_sources.open_pairs({"all": {"path": str(root)}})
  first = look_alikes.found_before(tmp_path, source, model, side=64)
  assert first.shape == (19, 18)
  monkeypatch.setattr(look_alikes, "find", None)
  again = look_alikes.found_before(tmp_path, source, model, side=64)
  np.testing.assert_array_equal(first, again)


def test_the_batch_they_are_described_in_does_not_matter(
  root, model, monkeypatch
):
  source = pair_sources.open_pairs({"all": {"path": str(root)}})
  once = look_alikes.find(source, model, side=64, neighbours=4)
  monkeypatch.setattr(look_alikes, "_ROWS", 5)
  np.testing.assert_array_equal(
    once, look_alikes.find(source, model, side=64, neighbours=4)
  )
