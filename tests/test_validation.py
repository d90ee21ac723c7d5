"""Validation: averages, score maps against known masks, small benchmarks."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from delf_jax import checkpoint, validation
from delf_jax.data import landmarks
from delf_jax.data.sources import FileSource
from delf_jax.errors import InputError
from delf_jax.models.normalisation import NORMALISATIONS


def test_batches_are_averaged_by_what_counts():
  devices = jax.local_device_count()

  def step(variables, batch):
    assert batch["pixels"].shape == (devices, 2, 4, 4, 3)
    weights = batch["weights"]
    return {
      "loss": (weights * batch["labels"]).sum(),
      "correct": (weights * (batch["labels"] > 2)).sum(),
      "count": weights.sum(),
    }

  n = 2 * devices
  batch = {
    "pixels": np.zeros((n, 4, 4, 3), np.uint8),
    "labels": np.arange(n, dtype=np.int32),
    "weights": np.array([1.0] * (n - 1) + [0.0], np.float32),
    "names": ["x"] * n,
  }
  found = validation.classification(step, {}, [batch, batch])
  assert found["loss"] == pytest.approx(np.arange(n - 1).mean())
  assert found["accuracy"] == pytest.approx((np.arange(n - 1) > 2).mean())
  assert validation.classification(step, {}, []) == {}


def score_map(attention, norm, mask):
  return validation.ScoreMap(
    name="x",
    pixels=np.zeros((64, 64, 3), np.uint8),
    l2_norm=norm,
    attention=attention,
    stride=16,
    mask=mask,
  )


def test_scores_are_judged_where_their_features_look():
  mask = np.zeros((64, 64), bool)
  mask[:40, :] = True
  rows = np.arange(4)[:, None] * np.ones((1, 4))
  # Features look at rows 0, 16, 32 and 48: three of four see the landmark.
  found = validation.separation([score_map(-rows, rows, mask)])
  assert found == {"attention_auc": 1.0, "l2_norm_auc": 0.0}
  level = score_map(np.ones((4, 4)), rows, mask)
  assert validation.separation([level])["attention_auc"] == 0.5


def test_without_masks_or_clutter_there_is_nothing_to_judge():
  ones = np.ones((4, 4))
  assert validation.separation([]) == {}
  assert validation.separation([score_map(ones, ones, None)]) == {}
  full = np.ones((64, 64), bool)
  assert validation.separation([score_map(ones, ones, full)]) == {}


def test_score_maps_show_the_central_square():
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=4,
    layout="torchvision",
    num_classes=2,
    attention_hidden=4,
  )
  variables = jax.jit(network.init)(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  pixels = np.zeros((40, 80, 3), np.uint8)
  pixels[:, 20:60] = 200
  files = []
  for array in (pixels, pixels[..., 0]):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    files.append(stream.getvalue())
  good = {"image": files[0], "mask": files[1], "name": "good"}
  normalise = NORMALISATIONS["unit"]
  maps = validation.score_maps(
    validation.make_scorer(network, normalise),
    variables,
    [good, {"image": b"nothing", "name": "broken"}],
    count=5,
    side=64,
    stride=16,
  )
  assert [one.name for one in maps] == ["good"]
  # At its very edge the square is interpolated with what lies beside it.
  assert (maps[0].pixels[:, 1:-1] == 200).all() and maps[0].mask.all()
  features, attention = network.apply(
    variables, normalise(maps[0].pixels[None]), method="dense"
  )
  np.testing.assert_allclose(
    maps[0].l2_norm, jnp.linalg.norm(features[0], axis=-1), rtol=1e-5
  )
  np.testing.assert_allclose(maps[0].attention, attention[0], rtol=1e-5)


@pytest.fixture
def labelled(tmp_path):
  for landmark in range(5):
    folder = tmp_path / "photographs" / f"{landmark}"
    folder.mkdir(parents=True)
    for view in range(3):
      Image.new("RGB", (20, 20), (50 * landmark, 60 * view, 0)).save(
        folder / f"{view}.png"
      )
    (folder / "broken.png").write_bytes(b"nothing")
  return landmarks.open_dataset(
    "folder", str(tmp_path / "photographs"), validation_share=0.0
  ).train


def test_held_out_photographs_become_a_benchmark(labelled, tmp_path):
  directory = tmp_path / "benchmark"
  made = validation.open_retrieval_set("held_out", labelled, directory)
  # A quarter of five landmarks, rounded down, is one.
  assert len(made.truth.queries) == 4 and len(made.distractors) == 3
  assert all(len(query.easy) == 2 for query in made.truth.queries)
  photos = {p.parent.name for p in (directory / "photos").rglob("*.jpg")}
  apart = {p.parent.name for p in (directory / "distractors").rglob("*.jpg")}
  assert len(photos) == 4 and len(apart) == 1 and not photos & apart
  before = json.loads((directory / "ground_truth.json").read_text())
  assert validation.open_retrieval_set("held_out", labelled, directory) == made
  assert json.loads((directory / "ground_truth.json").read_text()) == before


def test_too_little_to_hold_out(labelled, tmp_path):
  few = FileSource(
    str(tmp_path / "photographs"), ["0/0.png", "0/1.png"], np.zeros(2, np.int32)
  )
  with pytest.raises(InputError, match="four landmarks or more"):
    validation.open_retrieval_set("held_out", few, tmp_path / "benchmark")
  assert validation.open_retrieval_set("", few, tmp_path) is None
  with pytest.raises(InputError, match="photos=DIR"):
    validation.open_retrieval_set("folder", few, tmp_path, photos="x")
