"""Checkpoints: a round trip, damage, other networks."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax import checkpoint
from delf_jax.checkpoint import compression
from delf_jax.errors import InputError
from delf_jax.features.reduction import Reduction
from delf_jax.models.normalisation import NORMALISATIONS


def tiny_network(**changes):
  options = {
    "units": (1, 1, 1),
    "width": 4,
    "layout": "torchvision",
    "attention_hidden": 8,
    "num_classes": 3,
  }
  return checkpoint.build_network(**{**options, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  network = tiny_network()
  variables = jax.jit(network.init)(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  reduction = Reduction(
    mean=np.full((64,), 0.5, np.float32),
    components=np.eye(64, dtype=np.float32)[:5],
    deviations=np.ones((5,), np.float32),
  )
  directory = tmp_path_factory.mktemp("run") / "model"
  fingerprint = checkpoint.save_model(
    directory,
    network=network,
    variables=variables,
    normalisation=NORMALISATIONS["unit"],
    reduction=reduction,
    extraction={"score": "product", "scales": [0.5, 1.0]},
    provenance={"config": "a test"},
  )
  return directory, variables, reduction, fingerprint


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / "model")
  return tmp_path / "model"


def edit_meta(directory, **changes):
  path = directory / "meta.json"
  meta = json.loads(path.read_text())
  path.write_text(json.dumps({**meta, **changes}))
  return meta


def test_a_model_comes_back_as_it_was(saved):
  directory, variables, reduction, fingerprint = saved
  for path in (directory, directory.parent):
    model = checkpoint.load_model(path)
    assert model.fingerprint == fingerprint
    assert model.network == tiny_network()
    assert model.normalisation == NORMALISATIONS["unit"]
    assert model.extraction == {"score": "product", "scales": [0.5, 1.0]}
    jax.tree.map(np.testing.assert_array_equal, model.variables, variables)
    jax.tree.map(np.testing.assert_array_equal, model.reduction, reduction)


def test_a_directory_of_something_else_is_not_replaced(saved, tmp_path):
  model = checkpoint.load_model(saved[0])
  described = {
    field: getattr(model, field)
    for field in (
      "network",
      "variables",
      "normalisation",
      "reduction",
      "extraction",
      "provenance",
    )
  }
  kept = tmp_path / "photos" / "one.jpg"
  kept.parent.mkdir()
  kept.write_bytes(b"precious")
  with pytest.raises(InputError, match="holds other files"):
    checkpoint.save_model(kept.parent, **described)
  assert kept.read_bytes() == b"precious"
  kept.unlink()
  for _ in range(2):  # an empty directory, then a checkpoint
    checkpoint.save_model(kept.parent, **described)
  assert checkpoint.load_model(kept.parent).fingerprint == model.fingerprint


def test_what_a_checkpoint_says_of_itself(saved):
  meta = json.loads((saved[0] / "meta.json").read_text())
  assert meta["receptive_field"] == {"size": 43, "stride": 16, "padding": 21}
  assert meta["architecture"]["layout"] == "torchvision"
  assert meta["provenance"] == {"config": "a test"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"format_version": 99}, "newer delf_jax"),
    ({"normalisation": {"order": [0, 1, 2]}}, "not a checkpoint description"),
    ({"extraction": {"score": "l2_norm"}}, "edited by hand"),
    ({"reduction_dim": 6}, "reduction.components is"),
    ({"reduction_dim": None}, "unexpected reduction.components"),
  ],
)
def test_an_edited_description_is_refused(copy, changes, message):
  edit_meta(copy, **changes)
  with pytest.raises(InputError, match=message) as caught:
    checkpoint.load_model(copy)
  assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"layout": "keras"}, "missing variables.params.backbone.conv1.bias"),
    ({"width": 8}, "is .*, not"),
    ({"layout": "resnext"}, "unknown weight layout"),
  ],
)
def test_a_checkpoint_of_another_layout_is_refused(copy, change, message):
  meta = edit_meta(copy)
  edit_meta(copy, architecture={**meta["architecture"], **change})
  with pytest.raises(InputError, match=message):
    checkpoint.load_model(copy)


def test_damage_is_one_clear_line(copy):
  for path in sorted((copy / "arrays").rglob("*")):
    if path.is_file() and path.stat().st_size > 1000:
      path.write_bytes(path.read_bytes()[:500])
  with pytest.raises(InputError, match="truncated") as caught:
    checkpoint.load_model(copy)
  assert "\n" not in str(caught.value)
  shutil.rmtree(copy / "arrays")
  with pytest.raises(InputError, match="cannot be read as a checkpoint"):
    checkpoint.load_model(copy)
  (copy / "meta.json").write_text("{")
  with pytest.raises(InputError, match="not a readable checkpoint"):
    checkpoint.load_model(copy)
  (copy / "meta.json").unlink()
  with pytest.raises(InputError, match="holds no finished model"):
    checkpoint.load_model(copy)
  with pytest.raises(InputError, match="no such checkpoint"):
    checkpoint.load_model(copy / "nowhere")


def test_weights_of_another_network_are_not_taken():
  with pytest.raises(InputError, match="layout slim instead of torchvision"):
    checkpoint.check_same_architecture(
      tiny_network(), tiny_network(layout="slim"), "pretrained"
    )
  checkpoint.check_same_architecture(
    tiny_network(), tiny_network(num_classes=9), "pretrained"
  )


def test_training_checkpoints_continue_from_the_newest(tmp_path):
  state = {"weights": jnp.arange(4.0), "step": jnp.array(0)}
  checkpoints = checkpoint.RunCheckpoints(tmp_path / "run", keep=2)
  assert checkpoints.restore(state) == (state, 0)
  for step in (10, 20, 30):
    checkpoints.save(
      step,
      {"weights": state["weights"] + step, "step": jnp.array(step)},
      batches=step,
    )
  checkpoints.close()
  again = checkpoint.RunCheckpoints(tmp_path / "run")
  restored, batches = again.restore(state)
  assert batches == 30 and restored["step"] == 30
  np.testing.assert_array_equal(restored["weights"], np.arange(4.0) + 30)
  assert again.steps == (20, 30)
  assert len(list((tmp_path / "run").iterdir())) == 2
  with pytest.raises(InputError, match="weights is .*another --workdir"):
    again.restore({"weights": jnp.zeros(5), "step": jnp.array(0)})
  again.close()


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path):
  directory = tmp_path / "run"
  checkpoints = checkpoint.RunCheckpoints(directory, keep=1, best_by="mAP")
  assert checkpoints.best() is None
  for step, score in [(1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, None)]:
    figures = None if score is None else {"mAP": score, "loss": -score}
    checkpoints.save(
      step, {"weights": np.full(3, step)}, batches=step, figures=figures
    )
  checkpoints.close()
  again = checkpoint.RunCheckpoints(directory, keep=1, best_by="mAP")
  assert again.steps == (2, 5) and again.best() == 2
  best, batches = again.restore({"weights": np.zeros(3)}, again.best())
  assert batches == 2 and (best["weights"] == 2).all()
  again.close()


def test_a_damaged_training_checkpoint_names_the_one_before(tmp_path):
  state = {"weights": np.arange(5000.0)}
  checkpoints = checkpoint.RunCheckpoints(tmp_path / "run")
  for step in (1, 2):
    checkpoints.save(step, state, batches=step)
  checkpoints.close()
  for path in (tmp_path / "run" / "2").rglob("*"):
    if path.is_file() and path.stat().st_size > 1000:
      path.write_bytes(path.read_bytes()[:200])
  again = checkpoint.RunCheckpoints(tmp_path / "run")
  with pytest.raises(
    InputError, match="remove it to go on from step 1"
  ) as told:
    again.restore(state)
  assert "\n" not in str(told.value)
  restored, _ = again.restore(state, 1)
  np.testing.assert_array_equal(restored["weights"], state["weights"])
  again.close()


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(tmp_path):
  room = shutil.disk_usage(tmp_path).free
  checkpoints = checkpoint.RunCheckpoints(tmp_path / "run")
  small = {"weights": np.ones(8, np.float32)}
  checkpoints.save(1, small, batches=1)
  # More than the disk holds, without taking that much memory.
  large = np.broadcast_to(np.float32(1), (room // 4 + 2**20,))
  with pytest.raises(InputError, match="MiB are free") as caught:
    checkpoints.save(2, {"weights": large}, batches=2)
  assert "\n" not in str(caught.value)
  restored, _ = checkpoints.restore(small)
  np.testing.assert_array_equal(restored["weights"], small["weights"])
  checkpoints.close()


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_a_smaller_checkpoint_is_read_as_it_was_written(
  saved, tmp_path, weights
):
  model = checkpoint.load_model(saved[0])
  fields = {
    name: getattr(model, name)
    for name in (
      "network",
      "variables",
      "normalisation",
      "reduction",
      "extraction",
      "provenance",
    )
  }
  fingerprint = checkpoint.save_model(tmp_path / "m", **fields, weights=weights)
  again = checkpoint.load_model(tmp_path / "m")
  assert again.fingerprint == fingerprint != model.fingerprint
  expected = compression.expand(compression.compress(model.variables, weights))
  jax.tree.map(np.testing.assert_array_equal, again.variables, expected)
  jax.tree.map(np.testing.assert_array_equal, again.reduction, model.reduction)
  if weights == "int8":
    edit_meta(tmp_path / "m", weights="float32")
    with pytest.raises(InputError, match="are of another network"):
      checkpoint.load_model(tmp_path / "m")
  edit_meta(tmp_path / "m", weights="int3")
  with pytest.raises(InputError, match="cannot be kept as 'int3'"):
    checkpoint.load_model(tmp_path / "m")
