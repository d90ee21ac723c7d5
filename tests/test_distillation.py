"""Distillation: its loss beside loops, its step, its beginning, and a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import delf_small
from delf_jax import checkpoint, distillation_stage, journal, train
from delf_jax.errors import InputError
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.training import distillation
from delf_jax.training import step as steps
from delf_jax.training.optimisers import make_optimiser, make_schedule

UNIT = NORMALISATIONS["unit"]
TEACHER = {
  "units": (1, 1, 1),
  "width": (4, 4, 8),
  "layout": "basic",
  "num_classes": 3,
  "attention_hidden": 8,
  "code_dim": 6,
}
STUDENT = {**TEACHER, "width": (2, 4, 8), "num_classes": 0}


def build(settings, seed, axis_name=None):
  network = checkpoint.build_network(**settings, axis_name=axis_name)
  alone = checkpoint.build_network(**settings)
  variables = jax.jit(alone.init)(
    jax.random.key(seed), jnp.zeros((1, 64, 64, 3))
  )
  return checkpoint.Model(
    network=network,
    variables=jax.tree.map(np.asarray, variables),
    normalisation=UNIT,
    reduction=None,
    extraction={"score": "product", "scales": (1.0,), "max_features": 50},
    provenance={},
    fingerprint="",
  )


def save(model, directory):
  checkpoint.save_model(
    directory,
    network=model.network,
    variables=model.variables,
    normalisation=model.normalisation,
    reduction=None,
    extraction=model.extraction,
    provenance={},
  )
  return str(directory)


def maps(seed, b=2):
  generator = np.random.default_rng(seed)
  features = generator.normal(size=(b, 3, 4, 5)).astype(np.float32)
  return features, generator.uniform(0, 2, (b, 3, 4)).astype(np.float32)


def in_words(found, taught):
  """The definition, photograph by photograph and location by location."""
  sums = {"features": 0.0, "scores": 0.0, "correct": 0.0, "count": 0}
  for ours, a, theirs, b in zip(*found, *taught, strict=True):
    sums["features"] += ((ours - theirs) ** 2).sum() / (theirs**2).sum()
    sums["scores"] += ((a - b) ** 2).sum() / (b**2).sum()
    ours, theirs = (
      (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(-1, 5)
      for x in (ours, theirs)
    )
    hits = [
      np.argmax(theirs @ descriptor) == i for i, descriptor in enumerate(ours)
    ]
    sums["correct"] += np.mean(hits)
    sums["count"] += 1
  return sums


def test_the_loss_is_its_definition():
  taught = maps(0)
  # Near enough that some locations are found again and others are not.
  found = tuple(a + 0.7 * b for a, b in zip(taught, maps(1), strict=True))
  expected = in_words(found, taught)
  assert 0 < expected["correct"] < 2
  sums = distillation.compare(found, taught)
  assert set(sums) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(sums[name], value, rtol=1e-5)
  # Without attention there is nothing to say of it.
  assert "scores" not in distillation.compare(
    (found[0], None), (taught[0], None)
  )


def test_what_knows_it_all_has_nothing_to_learn():
  model = build(TEACHER, 0)
  teacher = distillation_stage.make_teacher(model)
  pixels = np.random.default_rng(0).integers(0, 255, (2, 2, 64, 64, 3))
  batch = {"pixels": pixels.astype(np.uint8)}
  evaluate = distillation.make_evaluation_step(
    model.network, teacher=teacher, normalise=UNIT
  )
  sums = evaluate(model.variables, batch)
  assert sums["count"] == sums["correct"] == 4
  assert sums["loss"] < 1e-6


def test_black_photographs_do_not_break_it():
  # Features of length zero, on both sides.
  zeros = (jnp.zeros((1, 3, 4, 5)), jnp.zeros((1, 3, 4)))
  taught = maps(0, b=1)

  def loss(found, taught):
    sums = distillation.compare(found, taught)
    return sums["features"] + sums["scores"]

  for pair in ((zeros, zeros), (zeros, taught)):
    value, gradient = jax.value_and_grad(loss)(*pair)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))

  model = build(TEACHER, 0)
  params = jax.tree.map(jnp.zeros_like, model.variables["params"])
  objective = distillation.make_objective(
    model.network,
    teacher=distillation_stage.make_teacher(model),
    normalise=UNIT,
  )
  black = {"pixels": np.zeros((2, 2, 64, 64, 3), np.uint8)}
  gradients, _ = jax.grad(objective, has_aux=True)(
    params, model.variables["batch_stats"], black, None
  )
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def setup_step(axis_name=None, frozen=()):
  student = build(STUDENT, 1, axis_name)
  optimiser = make_optimiser(make_schedule(learning_rate=3e-3, steps=200))
  objective = distillation.make_objective(
    student.network,
    teacher=distillation_stage.make_teacher(build(TEACHER, 0)),
    normalise=UNIT,
  )
  step = steps.make_train_step(
    student.network,
    optimiser,
    stage="distillation",
    objective=objective,
    normalise=UNIT,
    frozen=frozen,
    axis_name=axis_name,
  )
  state = steps.initial_state(
    "distillation",
    student.variables,
    optimiser,
    jax.random.key(1),
    frozen=frozen,
  )
  return step, state


def views(seed=0, b=4):
  generator = np.random.default_rng(seed)
  return generator.integers(0, 255, (b, 2, 64, 64, 3)).astype(np.uint8)


def test_a_step_learns_all_that_extraction_uses():
  step, state = setup_step()
  step = jax.jit(step)
  batch = {"pixels": views()}
  first = state
  for _ in range(60):
    state, figures = step(state, batch)
    if first.step == state.step - 1:
      before = figures
  assert figures["loss"] < 0.5 * before["loss"]
  assert figures["accuracy"] > before["accuracy"]
  for name, group in first.params.items():
    assert any(
      not np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves(group),
        jax.tree.leaves(state.params[name]),
        strict=True,
      )
    ), name


def test_the_pmapped_step_equals_the_plain_one():
  step, state = setup_step()
  plain, plain_figures = jax.jit(step)(state, {"pixels": views()})
  step, state = setup_step("batch")
  mapped = jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None)
  found, figures = mapped(
    state, {"pixels": views().reshape(2, 2, 2, 64, 64, 3)}
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
    (found.params, found.batch_stats, figures),
    (plain.params, plain.batch_stats, plain_figures),
  )


def test_a_student_begins_with_what_fits():
  teacher, student = build(TEACHER, 0), build(STUDENT, 1)
  begun = distillation_stage.begin(student, teacher)
  backbone = begun.variables["params"]["backbone"]
  theirs = teacher.variables["params"]["backbone"]
  ours = student.variables["params"]["backbone"]

  def kernels(tree):
    return {
      jax.tree_util.keystr(path): leaf
      for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }

  taken = kept = 0
  for name, leaf in kernels(backbone).items():
    before, fits = kernels(ours)[name], kernels(theirs).get(name)
    same = before.shape == np.shape(fits)
    np.testing.assert_array_equal(leaf, fits if same else before)
    taken, kept = taken + same, kept + (not same)
  assert taken and kept
  np.testing.assert_array_equal(
    begun.variables["params"]["autoencoder"]["conv1"]["kernel"],
    teacher.variables["params"]["autoencoder"]["conv1"]["kernel"],
  )
  # Classifiers are of the teacher's landmarks.
  again = distillation_stage.begin(build(TEACHER, 2), teacher)
  assert not np.array_equal(
    again.variables["params"]["attention_classifier"]["kernel"],
    teacher.variables["params"]["attention_classifier"]["kernel"],
  )


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"code_dim": 5}, "of dimension 6 instead of 5"),
    ({"attention_hidden": 0}, "attention True instead of False"),
    ({"units": (1, 1)}, "a stride of 16 instead of 8"),
  ],
)
def test_teachers_of_other_features_are_refused(change, says, tmp_path):
  path = save(build(TEACHER, 0), tmp_path / "teacher")
  settings = {**STUDENT, **change}
  if "units" in change:
    settings |= {"width": (4, 4), "feature_stage": "conv3"}
  network = checkpoint.build_network(**settings)
  with pytest.raises(InputError, match=says):
    distillation_stage.open_teacher(path, network)


def test_no_teacher_and_no_local_features_are_refused(tmp_path):
  network = checkpoint.build_network(**STUDENT)
  with pytest.raises(InputError, match="teacher is not given"):
    distillation_stage.open_teacher("", network)
  path = save(build(TEACHER, 0), tmp_path / "teacher")
  other = checkpoint.build_network(
    units=(1, 1),
    width=8,
    num_classes=0,
    backbone="vgg",
    feature_stage="conv2",
    descriptor={"pooling": "spoc"},
  )
  with pytest.raises(InputError, match="the student has none"):
    distillation_stage.open_teacher(path, other)


def run_config(folder, teacher):
  config = delf_small.get_config("distilled")
  config.dataset.kind = "unlabelled"
  config.dataset.path = folder
  config.model.update(
    {"units": (1, 1, 1), "width": (2, 4, 8), "attention_hidden": 8}
  )
  config.model.code_dim = 6
  config.distillation.update(
    {"teacher": teacher, "crop": 64, "batch_size": 4, "steps": 4}
  )
  config.distillation.sources.pool.path = folder
  config.distillation.held_out.landmarks.path = folder
  config.distillation.schedule.warmup = 1
  config.extraction.update({"max_features": 50, "scales": (1.0,)})
  config.validation.update({"every": 2, "photographs": 8})
  config.log_every, config.save_every = 1, 2
  return config


def test_a_run_without_labels(tmp_path):
  folder = tmp_path / "photographs"
  folder.mkdir()
  generator = np.random.default_rng(0)
  for i in range(8):
    pixels = generator.integers(0, 255, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((144, 108)).save(folder / f"{i}.png")
  teacher = save(build(TEACHER, 0), tmp_path / "teacher")
  config = run_config(str(folder), teacher)
  train.train(config, str(tmp_path / "run"))
  model = checkpoint.load_model(tmp_path / "run")
  assert model.network.descriptor_channels == 6
  records = journal.read(tmp_path / "run")
  assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4]
  judged = [r for r in records if r["kind"] == "validation"]
  assert [r["step"] for r in judged] == [2, 4]
  assert all(0 <= r["accuracy"] <= 1 and r["loss"] > 0 for r in judged)
  for name in ("features_loss", "scores_loss"):
    assert records[0][name] > 0
  # With a model of its own to begin with, it takes nothing of the teacher's.
  config.init_from = str(tmp_path / "run")
  config.distillation.steps = 1
  config.distillation.schedule.learning_rate = 0.0
  train.train(config, str(tmp_path / "further"))
  further = checkpoint.load_model(tmp_path / "further")
  jax.tree.map(
    np.testing.assert_array_equal,
    further.variables["params"],
    model.variables["params"],
  )
