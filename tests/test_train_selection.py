"""Selection learned on a detector's features: from stores to `--features`."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import selection as config_file
from delf_jax import (
  checkpoint,
  extraction,
  extractors,
  journal,
  labelled_features,
  match_score,
  selected_extraction,
  train_selection,
)
from delf_jax.data.photographs import read_photograph
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.features.local_features import LocalFeatures
from delf_jax.tables import table_config, table_inputs

DIM = 8
CLASSES = ("arch", "bridge", "castle", "dome")
SETTINGS = {
  "kind": "rootsift",
  "max_features": 60,
  "max_side": 1024,
  "features": "rootsift",
  "photos": "",
}


def directions(seed, count):
  found = np.random.default_rng(seed).normal(size=(count, DIM))
  return found / np.linalg.norm(found, axis=1, keepdims=True)


OWN = directions(1, len(CLASSES))  # one a landmark
CLUTTER = directions(2, 5)  # the same on all photographs


def planted(generator, label, *, own=8, clutter=40):
  """Features of which the first `own` alone tell a landmark."""
  centres = np.concatenate(
    [
      np.repeat(OWN[label][None], own, 0),
      CLUTTER[generator.integers(5, size=clutter)],
    ]
  )
  found = centres + generator.normal(0, 0.05, centres.shape)
  found /= np.linalg.norm(found, axis=1, keepdims=True)
  n = own + clutter
  return LocalFeatures(
    locations=generator.uniform(0, 100, (n, 2)).astype(np.float32),
    scales=generator.uniform(1, 4, n).astype(np.float32),
    scores=generator.uniform(0.02, 0.1, n).astype(np.float32),
    descriptors=found.astype(np.float32),
    mask=np.ones(n, bool),
  )


def write_store(directory, *, views=8, settings=SETTINGS, seed=0, order=1):
  generator = np.random.default_rng(seed)
  rows = [
    (f"{name}/{view}.jpg", planted(generator, label))
    for label, name in enumerate(CLASSES)
    for view in range(views)
  ]
  with store.open_writer(str(directory), settings=settings) as writer:
    for path, features in rows[::order]:
      writer.add(path, height=100, width=100, features=features)
    writer.finish()
  return str(directory)


def small_config(*stores):
  config = config_file.get_config("tiny")
  config.data.stores = tuple(stores)
  config.data.geometry = ("log_scale",)
  return config


@pytest.fixture(scope="module")
def planted_store(tmp_path_factory):
  return write_store(tmp_path_factory.mktemp("planted") / "store")


@pytest.fixture(scope="module")
def run(planted_store, tmp_path_factory):
  """A run long enough to learn what was planted."""
  workdir = tmp_path_factory.mktemp("run")
  config = small_config(planted_store)
  for stage in (config.words, config.attention):
    stage.update({"steps": 120, "batch_size": 16})
    stage.schedule.learning_rate = 1e-2
  train_selection.train(config, str(workdir))
  return workdir


def test_what_tells_landmarks_apart_scores_above_clutter(run):
  model = checkpoint.load_selector(run)
  score = selected_extraction.scorer(model)
  generator = np.random.default_rng(99)  # photographs that nobody has seen
  for label in range(len(CLASSES)):
    features = planted(generator, label)
    scores = score(
      np.concatenate(
        [features.descriptors, np.log(features.scales)[:, None]], axis=1
      )
    )
    assert scores.shape == (48,) and (scores >= 0).all()
    # Every one of the planted, not only most.
    assert scores[:8].min() > scores[8:].max()


def test_a_run_leaves_its_figures(run):
  records = journal.read(run)
  for stage in ("words", "attention"):
    judged = [
      r for r in records if r["stage"] == stage and r["kind"] == "validation"
    ]
    assert judged[-1]["step"] == 120 and judged[-1]["accuracy"] == 1.0
  words, attention = (
    [r for r in records if r["stage"] == s and r["kind"] == "validation"][-1]
    for s in ("words", "attention")
  )
  assert attention["loss"] < words["loss"]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def short_run(planted_store, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("short")
  train_selection.train(small_config(planted_store), str(workdir))
  return workdir


def test_a_resumed_run_equals_an_uninterrupted_one(
  short_run, planted_store, tmp_path
):
  # As if killed in the second stage, after its first checkpoint.
  shutil.copytree(short_run / "checkpoints", tmp_path / "checkpoints")
  shutil.rmtree(tmp_path / "checkpoints" / "attention" / "4")
  train_selection.train(small_config(planted_store), str(tmp_path))
  expected, resumed = (
    checkpoint.load_selector(path) for path in (short_run, tmp_path)
  )
  assert_equal(resumed.variables, expected.variables)
  assert resumed.fingerprint == expected.fingerprint


def test_the_stages_learn_what_they_should(short_run, planted_store, tmp_path):
  config = small_config(planted_store)
  config.attention.steps = 0
  train_selection.train(config, str(tmp_path))
  before, after = (
    checkpoint.load_selector(path).variables["params"]
    for path in (tmp_path, short_run)
  )
  assert_equal(before["codebook"], after["codebook"])
  for name in ("attention1", "attention2", "classifier"):
    assert (before[name]["kernel"] != after[name]["kernel"]).any()


def test_the_order_of_a_store_changes_nothing(
  short_run, planted_store, tmp_path
):
  turned = write_store(tmp_path / "turned", order=-1)
  train_selection.train(small_config(turned), str(tmp_path / "run"))
  assert_equal(
    checkpoint.load_selector(tmp_path / "run").variables,
    checkpoint.load_selector(short_run).variables,
  )


def test_a_batch_depends_on_seed_and_number_alone(planted_store):
  data = labelled_features.open_labelled([planted_store], geometry=())
  options = {"seed": 3, "batch_size": 8, "features": 20}
  one = labelled_features.training_batch(data, 5, **options)
  labelled_features.training_batch(data, 4, **options)
  again = labelled_features.training_batch(data, 5, **options)
  other = labelled_features.training_batch(data, 6, **options)
  assert_equal(one, again)
  assert (one["labels"] != other["labels"]).any()
  assert one["inputs"].shape == (8, 20, DIM) and one["mask"].all()


def test_padding_and_company_change_no_logit(run, planted_store):
  model = checkpoint.load_selector(run)
  features = planted(np.random.default_rng(5), 2)
  inputs = np.concatenate(
    [features.descriptors, np.log(features.scales)[:, None]], axis=1
  )
  apply = jax.jit(model.selector.apply)
  _, expected = apply(model.variables, inputs, np.ones(48, bool))
  padded = np.full((60, DIM + 1), np.nan, np.float32)
  padded[:48] = inputs
  scores, logits = apply(model.variables, padded, np.arange(60) < 48)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
  # The mask weighs nothing: what it hides may even score.
  assert np.isfinite(scores).all()


def test_scores_do_not_depend_on_what_else_is_there(run):
  score = selected_extraction.scorer(checkpoint.load_selector(run))
  inputs = np.random.default_rng(0).normal(size=(50, DIM + 1))
  inputs = inputs.astype(np.float32)
  np.testing.assert_array_equal(score(inputs)[10:20], score(inputs[10:20]))
  assert score(inputs[:0]).shape == (0,)


def test_held_out_photographs_are_not_trained_on(planted_store, tmp_path):
  exclude = tmp_path / "exclude.txt"
  exclude.write_text("dome\n")
  data = labelled_features.open_labelled(
    [planted_store], geometry=(), validation_share=0.25, exclude=str(exclude)
  )
  assert data.names == ("arch", "bridge", "castle")
  train, held_out = (
    {tuple(place) for place in part.places.tolist()}
    for part in (data.train, data.validation)
  )
  assert len(train) == 18 and len(held_out) == 6 and not train & held_out
  for part in (data.train, data.validation):
    for (_, i), label in zip(part.places, part.labels, strict=True):
      name = data.stores[0].paths[i].partition("/")[0]
      assert name == data.names[label]


@pytest.mark.parametrize(
  "settings, message",
  [
    ({**SETTINGS, "max_features": 50}, "another max_features than"),
    ({**SETTINGS, "kind": "sift"}, "another kind than"),
  ],
)
def test_stores_that_differ_are_refused(
  planted_store, tmp_path, settings, message
):
  other = write_store(tmp_path / "other", settings=settings, seed=1)
  with pytest.raises(InputError, match=message):
    labelled_features.open_labelled([planted_store, other])


def test_stores_are_learned_on_together(planted_store, tmp_path):
  # The same paths, of other photographs.
  other = write_store(tmp_path / "other", seed=1)
  data = labelled_features.open_labelled([planted_store, other])
  assert len(data.train.labels) + len(data.validation.labels) == 64
  assert set(data.train.places[:, 0]) == {0, 1}


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"extraction.score": "l2_norm"}, "expected attention or product"),
    ({"data.geometry": ("size",)}, "unknown geometry 'size'"),
    ({"data.stores": ()}, "--config.data.stores=STORE"),
    ({"stages": ("words", "sentences")}, "unknown stage 'sentences'"),
    ({"words.sampling": "none"}, "config.words.sampling 'none'"),
  ],
)
def test_an_unfit_config_is_refused(planted_store, tmp_path, changes, message):
  config = small_config(planted_store)
  config.update_from_flattened_dict(changes)
  with pytest.raises(InputError, match=message):
    train_selection.train(config, str(tmp_path / "run"))


def test_features_with_an_attention_of_their_own_are_refused(tmp_path):
  delf = write_store(tmp_path / "store", settings={**SETTINGS, "kind": "delf"})
  with pytest.raises(InputError, match="attention of its own"):
    train_selection.train(small_config(delf), str(tmp_path / "run"))


def test_photographs_in_no_folder_are_refused(tmp_path):
  with store.open_writer(str(tmp_path / "s"), settings=SETTINGS) as writer:
    features = planted(np.random.default_rng(0), 0)
    writer.add("one.jpg", height=9, width=9, features=features)
    writer.finish()
  with pytest.raises(InputError, match="lies in no folder"):
    labelled_features.open_labelled([str(tmp_path / "s")])


def test_another_config_does_not_continue_a_run(short_run, planted_store):
  config = small_config(planted_store)
  config.seed = 5
  with pytest.raises(InputError, match=r"different: seed.*--workdir"):
    train_selection.train(config, str(short_run))


# As a user has it: photographs, their RootSIFT, and what is extracted later.


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  root = tmp_path_factory.mktemp("photographs")
  generator = np.random.default_rng(0)
  for name in ("a", "b"):
    (root / name).mkdir()
    for view in range(4):
      blocks = generator.integers(0, 255, (20, 24, 3))
      pixels = np.kron(blocks, np.ones((6, 6, 1))).astype(np.uint8)
      Image.fromarray(pixels).save(root / name / f"{view}.png")
  return root


@pytest.fixture(scope="module")
def real_run(photographs, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("real")
  extraction.extract_folder(
    extractors.open_extractor("rootsift", max_features=200),
    photographs,
    workdir / "store",
  )
  config = small_config(str(workdir / "store"))
  train_selection.train(config, str(workdir / "run"))
  return workdir / "run"


def test_the_best_of_many_are_kept(real_run, photographs):
  photograph = read_photograph(photographs / "a" / "0.png")
  every = extractors.open_extractor("rootsift", max_features=200)
  every = every.extract(photograph)
  assert len(every.mask) > 60
  model = checkpoint.load_selector(real_run)
  inputs = np.concatenate(
    [every.descriptors, np.log(every.scales)[:, None]], axis=1
  )
  attention = selected_extraction.scorer(model)(inputs)
  for score, expected in [
    ("attention", attention),
    ("product", attention * every.scores),
  ]:
    extractor = extractors.open_extractor(str(real_run), score=score)
    found = extractor.extract(photograph)
    best = np.argsort(-expected, kind="stable")[:50]
    np.testing.assert_array_equal(found.descriptors, every.descriptors[best])
    np.testing.assert_array_equal(found.locations, every.locations[best])
    np.testing.assert_array_equal(found.scores, expected[best])
    assert (np.diff(found.scores) <= 0).all()


def test_a_blank_photograph_has_no_features(real_run, tmp_path):
  Image.new("RGB", (64, 64), "grey").save(tmp_path / "blank.png")
  extractor = extractors.open_extractor(str(real_run))
  _, found = extraction.extract_file(extractor, tmp_path / "blank.png")
  assert found.descriptors.shape == (0, 128)


def test_a_store_of_selected_features_is_opened_again(
  real_run, photographs, tmp_path
):
  extractor = extractors.open_extractor(str(real_run), max_features=20)
  extraction.extract_folder(extractor, photographs, tmp_path / "store")
  opened = store.open_store(tmp_path / "store")
  assert np.diff(opened.offsets).max() == 20
  again = extractors.reopen(opened.settings)
  assert again.settings == extractor.settings
  # One that learned something else is not what the store was made with.
  other = shutil.copytree(real_run, tmp_path / "other")
  model = checkpoint.load_selector(other)
  model.variables["params"]["attention2"]["bias"] += 1.0
  checkpoint.save_selector(other / "model", model)
  with pytest.raises(InputError, match="is not what the photographs"):
    extractors.reopen(opened.settings, features=str(other))


def test_selected_features_are_calibrated_as_their_kind(real_run):
  extractor = extractors.open_extractor(str(real_run))
  assert extractors.kind_of(str(real_run)) == "rootsift"
  assert extractor.settings["kind"] == "rootsift"
  calibration = extractors.calibration_of(extractor.settings, str(real_run))
  assert calibration == match_score.shipped("rootsift")


@pytest.mark.parametrize(
  "options, message",
  [
    ({"max_features": 201}, "selects from 200"),
    ({"scales": [1.0]}, "scales: not an option of selected rootsift"),
    ({"score": "l2_norm"}, "expected attention or product"),
  ],
)
def test_options_that_do_not_apply_are_refused(real_run, options, message):
  with pytest.raises(InputError, match=message):
    extractors.open_extractor(str(real_run), **options)


def test_a_row_of_a_table_takes_a_selection(real_run, tmp_path):
  settings = {
    **table_config.DEFAULTS,
    "features.kind": "selected",
    "features.checkpoint": "@selected",
    "features.max_features": 40,
    "checkpoints.selected": str(real_run),
  }
  table_inputs.check(settings)
  found, selection = table_inputs.open_features(settings, tmp_path)
  named = extractors.open_extractor(str(real_run), max_features=40)
  assert found.settings == named.settings and selection.max_features == 40
  settings["checkpoints.selected"] = "delf_small"
  with pytest.raises(InputError, match="delf_small: no finished selection"):
    table_inputs.check(settings)


def test_a_selector_is_no_network(real_run):
  with pytest.raises(InputError, match="delf_jax selector, which holds no net"):
    checkpoint.load_model(real_run)
  assert checkpoint.find_selector(real_run / "nowhere") is None
  with pytest.raises(InputError, match="no selection that was learned"):
    checkpoint.load_selector(real_run / "nowhere")


def test_the_programs_say_what_they_did(real_run, tmp_path):
  def run(*arguments, status=0):
    done = subprocess.run(
      [sys.executable, "-m", *arguments],
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr

  stores = f"('{real_run.parent / 'store'}',)"
  said = run(
    "delf_jax.train_selection",
    "--config=configs/selection.py:tiny",
    f"--config.data.stores={stores}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert "rootsift features of 2 landmarks" in said
  assert f"the model is in {tmp_path / 'run' / 'model'}" in said
  described = run("delf_jax.checkpoint", str(tmp_path / "run"))
  assert "log_scale, log_score" in described
  assert "attention1" in described
  assert "no features to learn on" in run(
    "delf_jax.train_selection",
    "--config=configs/selection.py:tiny",
    f"--workdir={tmp_path / 'other'}",
    status=1,
  )


def test_damage_is_found(real_run, tmp_path):
  def copy(name):
    return shutil.copytree(real_run / "model", tmp_path / name)

  def edit(directory, **changes):
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps({**meta, **changes}))

  edit(copy("edited"), geometry=[])
  with pytest.raises(InputError, match="damaged, or edited by hand"):
    checkpoint.load_selector(tmp_path / "edited")
  edit(copy("newer"), format_version=2)
  with pytest.raises(InputError, match="newer delf_jax"):
    checkpoint.load_selector(tmp_path / "newer")
  edit(copy("strange"), architecture={"depth": 3})
  with pytest.raises(InputError, match="not a checkpoint description"):
    checkpoint.load_selector(tmp_path / "strange")
  arrays = copy("cut") / "arrays.npz"
  arrays.write_bytes(arrays.read_bytes()[:300])
  with pytest.raises(InputError, match="cannot be read"):
    checkpoint.load_selector(tmp_path / "cut")


def test_other_files_are_not_replaced(real_run, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="holds other files"):
    checkpoint.save_selector(tmp_path, checkpoint.load_selector(real_run))
  assert (tmp_path / "notes.txt").read_text() == "mine"
