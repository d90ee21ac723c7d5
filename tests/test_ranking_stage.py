"""The ranking stage: options, what is mined, kept and gone on from."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from delf_jax import checkpoint
from delf_jax.data.landmarks import Dataset
from delf_jax.errors import InputError
from delf_jax.global_descriptors import mined_batches, ranking_stage
from delf_jax.global_descriptors.ranking_stage import RankingOptions
from delf_jax.models.normalisation import NORMALISATIONS


class Photographs:
  """Four views of each of seven places, in memory."""

  def __init__(self, views=4):
    self.labels = np.repeat(np.arange(7), views).astype(np.int32)
    colours = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3))
    self._pixels = colours[self.labels].repeat(8, 1).repeat(8, 2)

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    noise = np.random.default_rng(int(i)).normal(0, 40, self._pixels[i].shape)
    pixels = np.clip(self._pixels[i] + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = b"nothing" if i == 9 else file.getvalue()
    return {"image": image, "label": self.labels[i], "name": f"{i}.png"}


DATA = Dataset(
  train=Photographs(),
  validation=Photographs(),
  names=tuple("abcdefg"),
  problems=(),
  title="",
  split="",
)


@pytest.fixture(scope="module")
def model():
  network = checkpoint.build_network(
    units=(1, 1),
    width=8,
    num_classes=0,
    backbone="vgg",
    feature_stage="conv2",
    descriptor={"pooling": "spoc"},
  )
  return checkpoint.Model(
    network=network,
    variables=network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))),
    normalisation=NORMALISATIONS["imagenet"],
    reduction=None,
    extraction={"sides": (32,)},
    provenance={},
    fingerprint="",
  )


def options_of(kind, **changes):
  return RankingOptions(
    **{
      "crop": 32,
      "batch_size": 4,
      "steps": 4,
      "schedule": {},
      "optimiser": {},
      "loss": {"kind": kind},
      "mine_every": 2,
      "negatives": 3,
      **changes,
    }
  )


def open_batches(model, options, directory, start=0):
  return mined_batches.MinedBatches(
    options,
    DATA,
    model=model,
    seed=5,
    start=start,
    directory=directory,
    loader={"threads": 1},
  )


def take(batches, model, count):
  found = []
  for _ in range(count):
    batches.mine(model.variables)
    found.append(next(batches))
  batches.close()
  return found


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
  "kind", ["contrastive", "triplet", "average_precision"]
)
def test_a_stopped_stage_sees_the_same_batches(model, tmp_path, kind):
  options = options_of(kind)
  everything = take(open_batches(model, options, tmp_path / "a"), model, 4)
  assert len(everything[0]["names"]) == 4
  take(open_batches(model, options, tmp_path / "b"), model, 1)
  later = open_batches(model, options, tmp_path / "b", start=1)
  for one, other in zip(everything[1:], take(later, model, 3), strict=True):
    assert_same(one, other)
  assert (tmp_path / "b" / "000001.npz").exists()
  (tmp_path / "b" / "000000.npz").unlink()
  with pytest.raises(InputError, match=r"000000\.npz is missing"):
    take(open_batches(model, options, tmp_path / "b", start=1), model, 1)


def test_negatives_are_of_clusters_of_their_own(model, tmp_path):
  batches = open_batches(model, options_of("contrastive"), tmp_path)
  found = take(batches, model, 4)
  labels = np.concatenate([batch["labels"] for batch in found])
  mask = np.concatenate([batch["mask"] for batch in found])
  assert labels.shape == (16, 5)
  assert (labels[:, 0] == labels[:, 1]).all()
  for row in labels:
    assert len({row[0], *row[2:]}) == 4
  # The broken photograph is nobody's negative, and a gap where it is drawn.
  assert mask[:, 2:].all()
  assert "9.png" in batches.skipped


def test_negatives_are_the_nearest(model, tmp_path):
  take(open_batches(model, options_of("contrastive"), tmp_path), model, 1)
  with np.load(tmp_path / "000000.npz") as file:
    rows = file["rows"]
  pixels = np.stack(
    [
      np.asarray(Image.open(io.BytesIO(DATA.train[i]["image"])))
      if i != 9
      else np.zeros((32, 32, 3), np.uint8)
      for i in range(28)
    ]
  )
  found = np.asarray(
    model.network.apply(model.variables, model.normalisation(pixels))
  )
  labels = DATA.train.labels
  for row in rows:
    similar = found @ found[row[0]]
    similar[(labels == labels[row[0]]) | (np.arange(28) == 9)] = -1
    assert row[2] == np.argmax(similar)


def test_a_pool_is_a_sample_that_changes(model, tmp_path):
  options = options_of(
    "triplet", pool=12, loss={"kind": "triplet", "margin": 3}
  )
  take(open_batches(model, options, tmp_path), model, 4)
  seen = []
  for segment in range(2):
    with np.load(tmp_path / f"{segment:06d}.npz") as file:
      assert file["mask"].all()
      seen.append(set(file["rows"].ravel().tolist()))
  assert all(len(one) <= 12 for one in seen) and seen[0] != seen[1]


def test_validation_compares_what_is_not_trained_on():
  options = options_of("contrastive")
  make = mined_batches.validation_batches(options, DATA, count=0)
  (batch,) = make()
  assert batch["labels"].shape == (4, 5)
  assert (batch["labels"][:, 0] == batch["labels"][:, 1]).all()
  assert (batch["labels"][:, :1] != batch["labels"][:, 2:]).all()
  assert_same(batch, next(iter(make())))
  few = Dataset(**{**vars(DATA), "validation": Photographs(views=1)})
  assert not list(mined_batches.validation_batches(options, few, count=0)())


def test_small_classes_leave_gaps(model, tmp_path):
  options = options_of("average_precision", per_class=6)
  (batch,) = take(open_batches(model, options, tmp_path), model, 1)
  assert batch["labels"].shape == (4, 6)
  assert (batch["mask"].sum(axis=1) <= 4).all()
  assert len(set(batch["labels"][:, 0].tolist())) == 4


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mine_every": 0}, r"ranking\.mine_every must be 1"),
    ({"per_class": 1}, r"ranking\.per_class must be 2"),
    ({"augmentation": {"crop_area": (0.2, 1)}}, "crop_area is of windows"),
    ({"frozen_norm": False}, "statistics of padding"),
  ],
)
def test_unfit_options(model, changes, message):
  with pytest.raises(InputError, match=message):
    ranking_stage.check(options_of("triplet", **changes), model.network)


def test_local_networks_do_not_rank():
  network = checkpoint.build_network(units=(1, 1, 1), width=8, num_classes=0)
  with pytest.raises(InputError, match=r"give config\.model\.descriptor"):
    ranking_stage.check(options_of("triplet"), network)
