import gzip
import tarfile

import numpy as np
import pytest

from delf_jax.conversion import protobuf_wire as wire
from delf_jax.conversion.tensor_bundle import OBJECT_GRAPH, write_bundle
from delf_jax.conversion.tf_models import find_tf_weights
from delf_jax.errors import InputError

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SLIM = {
  "resnet_v1_50/conv1/weights": np.ones((7, 7, 3, 4), np.float32),
  "resnet_v1_50/conv1/BatchNorm/gamma": np.arange(4, dtype=np.float32),
  "attention_block/attention/compute/conv2/biases": np.ones(1, np.float32),
}
BESIDE = {
  "global_step": np.int64(7),
  "beta1_power": np.float32(0.9),
  "resnet_v1_50/conv1/weights/Momentum": np.zeros((7, 7, 3, 4), np.float32),
  "resnet_v1_50/conv1/BatchNorm/gamma/Adam_1": np.zeros(4, np.float32),
  "resnet_v1_50/conv1/weights/ExponentialMovingAverage": np.zeros(
    (7, 7, 3, 4), np.float32
  ),
}
CONFIG = """
model_path: "C:\\models\\delf_v1_20171026\\model"
image_scales: .25  # a comment
image_scales: [.3536, 2.0]
delf_local_config {
  use_pca: true
  layer_name: "resnet_v1_50/block3"
  iou_threshold: 1.0
  max_feature_num: 1000
  score_threshold: 454.6
  something_newer { inside: [1, 2] }
  pca_parameters {
    mean_path: "parameters/delf_v1_20171026/pca/mean.datum"
    pca_dim: 40
    use_whitening: false
  }
}
max_image_size: 1024
"""


def write_released(directory):
  """The layout of the released TF1 models; contents of .datum do not matter."""
  (directory / "model" / "variables").mkdir(parents=True)
  (directory / "pca").mkdir()
  (directory / "model" / "saved_model.pb").write_bytes(b"never read")
  write_bundle(directory / "model" / "variables" / "variables", SLIM | BESIDE)
  for name in ("mean", "pca_proj_mat", "pca_vars"):
    (directory / "pca" / f"{name}.datum").write_bytes(name.encode())
  (directory / "delf_config.pbtxt").write_text(CONFIG)
  return directory


def check(found, expected=SLIM, kind="slim"):
  assert found.kind == kind
  assert list(found.tensors) == sorted(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found.tensors[name], value)


SETTINGS = {
  "image_scales": (0.25, 0.3536, 2.0),
  "score_threshold": 454.6,
  "max_feature_num": 1000,
  "iou_threshold": 1.0,
  "use_pca": True,
  "pca_dim": 40,
  "use_whitening": False,
}


@pytest.mark.parametrize(
  "inside",
  [
    "",
    "model",
    "model/variables",
    "model/variables/variables",
    "model/variables/variables.index",
    "model/variables/variables.data-00000-of-00001",
  ],
)
def test_the_released_layout(tmp_path, inside):
  directory = write_released(tmp_path / "delf_v1_20171026")
  found = find_tf_weights(directory / inside)
  check(found)
  assert found.settings == SETTINGS
  assert found.mean == directory / "pca" / "mean.datum"
  assert found.projection == directory / "pca" / "pca_proj_mat.datum"
  assert found.variances == directory / "pca" / "pca_vars.datum"


def test_without_pca_or_settings(tmp_path):
  write_bundle(tmp_path / "model.ckpt-7", SLIM)
  found = find_tf_weights(tmp_path / "model.ckpt-7")
  check(found)
  assert (found.mean, found.projection, found.variances) == (None,) * 3
  assert found.settings == {}


def test_the_latest_of_a_training_directory(tmp_path):
  for step in (5, 10, 15):
    write_bundle(tmp_path / f"ck-{step}", {"x": np.float32(step)})
  with pytest.raises(InputError, match="holds 3 checkpoints .ck-10, ck-15"):
    find_tf_weights(tmp_path)
  # Another computer's directory, and not the one that sorts last.
  (tmp_path / "checkpoint").write_text(
    'model_checkpoint_path: "/home/other/logs/ck-10"\n'
    'all_model_checkpoint_paths: "/home/other/logs/ck-5"\n'
  )
  check(find_tf_weights(tmp_path), {"x": np.float32(10)})
  for name in ("gone", "", "/", "..", "a\0b", "n" * 300):
    state = f'model_checkpoint_path: "{name}"\n'
    (tmp_path / "checkpoint").write_text(state)
    with pytest.raises(InputError, match="holds 3 checkpoints|cannot be read"):
      find_tf_weights(tmp_path)


def test_averages_stand_in_for_what_is_not_there(tmp_path):
  average = "a/w/ExponentialMovingAverage"
  write_bundle(tmp_path / "a", {average: np.float32(1)})
  check(find_tf_weights(tmp_path / "a"), {"a/w": np.float32(1)})
  write_bundle(tmp_path / "b", {average: np.float32(1), "a/w": np.float32(2)})
  check(find_tf_weights(tmp_path / "b"), {"a/w": np.float32(2)})


def graph(paths):
  """A TrackableObjectGraph: checkpoint key -> (attributes, full name)."""
  nodes, messages = {(): 0}, [b""]
  for key, (path, full_name) in paths.items():
    parts = tuple(path.split("/"))
    for depth in range(1, len(parts) + 1):
      if parts[:depth] not in nodes:
        nodes[parts[:depth]] = len(messages)
        messages.append(b"")
        child = wire.field(1, len(messages) - 1)
        child += wire.field(2, parts[depth - 1].encode())
        messages[nodes[parts[: depth - 1]]] += wire.field(1, child)
    texts = ("VARIABLE_VALUE", full_name, key)
    attribute = b"".join(
      wire.field(i, text.encode()) for i, text in enumerate(texts, 1)
    )
    messages[nodes[parts]] += wire.field(2, attribute)
  return b"".join(wire.field(1, message) for message in messages)


def write_objects(prefix, paths):
  """Writes every variable with its place in `paths` as its value."""
  paths = {key + VALUE: value for key, value in paths.items()}
  tensors = {key: np.float32(i) for i, key in enumerate(paths)}
  write_bundle(prefix, {**tensors, OBJECT_GRAPH: graph(paths)})


def test_objects_are_named_by_their_attributes(tmp_path):
  write_objects(
    tmp_path / "ck",
    {
      "_model/variables/0": ("_model/backbone/conv1/_kernel", "DELF/kernel"),
      "_model/variables/1": ("_model/backbone/conv1/bias", "DELF/bias"),
      "optimizer/iterations": ("optimizer/_iterations", "SGD/iter"),
      "a/.OPTIMIZER_SLOT/optimizer/m": ("optimizer/momentums/0", "SGD/a/m"),
      "save_counter": ("save_counter", "save_counter"),
    },
  )
  expected = {
    "_model/backbone/conv1/kernel": np.float32(0),
    "_model/backbone/conv1/bias": np.float32(1),
  }
  check(find_tf_weights(tmp_path / "ck"), expected, "object_graph")


def test_functional_models_are_named_by_their_layers(tmp_path):
  write_objects(
    tmp_path / "ck",
    {
      "layer_with_weights-0/kernel": (
        "layer_with_weights-0/kernel",
        "conv1_conv/kernel",
      ),
      "model/_operations/3/gamma": (
        "model/_operations/3/gamma",
        "conv1_bn/gamma",
      ),
    },
  )
  expected = {"conv1_conv/kernel": 0, "conv1_bn/gamma": 1}
  check(find_tf_weights(tmp_path / "ck"), expected, "object_graph")


def test_lists_of_an_export_are_read_once(tmp_path):
  write_objects(
    tmp_path / "ck",
    {
      "variables/0": ("variables/0", "conv1_conv/kernel"),
      "_all_variables/0": ("_all_variables/0", "conv1_conv/kernel"),
    },
  )
  expected = {"conv1_conv/kernel": 0}
  check(find_tf_weights(tmp_path / "ck"), expected, "object_graph")


def test_ambiguous_names_stay_as_they_are(tmp_path):
  write_objects(
    tmp_path / "ck",
    {"layer-0/kernel": ("layer-0/kernel", "k"), "k": ("k", "k")},
  )
  expected = {"layer-0/kernel": 0, "k": 1}
  check(find_tf_weights(tmp_path / "ck"), expected, "object_graph")


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
def test_tarballs(tmp_path, ending):
  directory = write_released(tmp_path / "delf_gld_20190411")
  path = tmp_path / f"delf.{ending}"
  with tarfile.open(path, "w" if ending == "tar" else "w:gz") as archive:
    archive.add(directory, arcname=directory.name)
    junk = tarfile.TarInfo("delf_gld_20190411/._mean.datum")
    archive.addfile(junk)
  found = find_tf_weights(path)
  check(found)
  assert found.settings == SETTINGS
  assert found.projection.read_bytes() == b"pca_proj_mat"
  place = found.mean
  del found
  assert not place.exists()  # with all else that was extracted


def member(name, **fields):
  """A member as the archive's bytes: what its header claims, one byte."""
  header = tarfile.TarInfo(name)
  header.size = 0 if "linkname" in fields else 1
  for field, value in fields.items():
    setattr(header, field, value)
  return header.tobuf() + (b"x".ljust(512, b"\0") if header.size else b"")


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("../evil.index", {}, "leads out"),
    ("a/../../evil.index", {}, "leads out"),
    ("/tmp/delf_jax_evil.index", {}, "leads out"),
    (
      "ck.index",
      {"type": tarfile.SYMTYPE, "linkname": "/etc/hostname"},
      "plain",
    ),
    ("ck.index", {"type": tarfile.LNKTYPE, "linkname": "../evil"}, "plain"),
    ("ck.index", {"type": tarfile.FIFOTYPE}, "plain"),
    ("ck.index", {"type": tarfile.CHRTYPE}, "plain"),
    ("ck.index", {"size": 2**40}, "too much"),
    ("other", {"size": 2**40}, "too much"),
    ("ck.index", {"size": 2**20}, "not a whole tarball"),
  ],
)
def test_hostile_tarballs(tmp_path, name, fields, message):
  path = tmp_path / "sub" / "hostile.tar"
  path.parent.mkdir()
  path.write_bytes(member(name, **fields) + bytes(1024))
  with pytest.raises(InputError, match=message) as caught:
    find_tf_weights(path)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)
  assert [entry.name for entry in tmp_path.rglob("*")] == ["sub", "hostile.tar"]


def test_links_that_nobody_needs_are_left_out(tmp_path):
  write_bundle(tmp_path / "ck", {"x": np.float32(1)})
  path = tmp_path / "model.tgz"
  with tarfile.open(path, "w:gz") as archive:
    link = tarfile.TarInfo("README")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive.addfile(link)
    for ending in (".index", ".data-00000-of-00001"):
      archive.add(tmp_path / f"ck{ending}", arcname=f"ck{ending}")
  check(find_tf_weights(path), {"x": np.float32(1)})


def test_headers_that_fill_the_memory(tmp_path):
  """A name of a gigabyte of zeros, which gzip makes small."""
  header = tarfile.TarInfo("././@LongLink")
  header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**30
  path = tmp_path / "bomb.tar.gz"
  with gzip.open(path, "wb", 1) as file:
    file.write(header.tobuf(tarfile.GNU_FORMAT))
    file.write(bytes(2**22))
  with pytest.raises(InputError, match="a header is too long"):
    find_tf_weights(path)
  many = tarfile.TarInfo("././@LongLink")
  many.type, many.size = tarfile.GNUTYPE_LONGNAME, 1
  path.write_bytes((many.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 3000)
  path.rename(tmp_path / "bomb.tar")
  with pytest.raises(InputError, match="bomb.tar: not a whole tarball"):
    find_tf_weights(tmp_path / "bomb.tar")


def test_damaged_tarballs(tmp_path):
  directory = write_released(tmp_path / "delf")
  whole = tmp_path / "whole.tar.gz"
  with tarfile.open(whole, "w:gz") as archive:
    archive.add(directory, arcname="delf")
  data = whole.read_bytes()
  path = tmp_path / "damaged.tar.gz"
  rng = np.random.default_rng(0)
  for i in range(60):
    damaged = bytearray(data)
    if i % 2:
      damaged = damaged[: rng.integers(len(data))]
    else:
      damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
      found = find_tf_weights(path)
    except InputError as error:
      assert "\n" not in str(error) and str(path) in str(error)
      assert "delf_jax-" not in str(error)  # the temporary directory
    else:
      check(found)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("image_scales: x", "not a DelfConfig"),
    ("image_scales: 0", "image_scales"),
    ("image_scales: nan", "image_scales"),
    ("delf_local_config { max_feature_num: -1 }", "max_feature_num"),
    ("delf_local_config { score_threshold: inf }", "score_threshold"),
    ("delf_local_config {", "not a DelfConfig"),
    ("delf_local_config " + "{ a " * 9000, "not a DelfConfig"),
    ("image_scales: 1\n" + "a { " * 9000, "not a DelfConfig"),
  ],
)
def test_bad_settings(tmp_path, text, message):
  write_bundle(tmp_path / "ck", SLIM)
  (tmp_path / "config.pbtxt").write_text(text)
  with pytest.raises(InputError, match=message) as caught:
    find_tf_weights(tmp_path)
  assert "\n" not in str(caught.value) and "config.pbtxt" in str(caught.value)


def test_other_settings_are_not_ours(tmp_path):
  write_bundle(tmp_path / "ck", SLIM)
  (tmp_path / "graph.pbtxt").write_text("node { name: 'x' }")
  (tmp_path / "large.pbtxt").write_text("image_scales: x\n" * 10_000)
  assert find_tf_weights(tmp_path).settings == {}
  for name in ("one.pbtxt", "two.pbtxt"):
    (tmp_path / name).write_text("image_scales: 1")
  with pytest.raises(InputError, match="2 DelfConfigs .one.pbtxt, two.pbtxt"):
    find_tf_weights(tmp_path)


def test_what_is_no_model(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "text.txt").write_text("text")
  (tmp_path / "deep" / "/".join("d" * 300)).mkdir(parents=True)
  with pytest.raises(InputError, match="cannot be read"):
    find_tf_weights(tmp_path / ("n" * 300))
  for name in ("none", "empty", "text.txt", "deep"):
    with pytest.raises(InputError, match=f"{name}: no .*expected") as caught:
      find_tf_weights(tmp_path / name)
    assert "\n" not in str(caught.value)
  (tmp_path / "no.tar.gz").write_bytes(gzip.compress(b"text" * 1000))
  with pytest.raises(InputError, match="no.tar.gz: not a whole tarball"):
    find_tf_weights(tmp_path / "no.tar.gz")
  (tmp_path / "ck.index").write_bytes(b"")
  with pytest.raises(InputError, match="ck.index"):
    find_tf_weights(tmp_path / "ck")
