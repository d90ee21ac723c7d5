"""Exports beside the ordinary extractor, by themselves, and damaged."""

import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from delf_jax import checkpoint, exported, extractors, stablehlo
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.exported import ExportError
from delf_jax.features.reduction import Reduction
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.models.receptive_field import Layer
from delf_jax.models.resnet import LAYOUTS, layers

MAX_SIDE = 128
SCALES = (0.5, 2.0**-0.5)


@functools.cache
def tiny_model(layout="torchvision", *, reduced=False, **architecture):
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=8,
    layout=layout,
    attention_hidden=16,
    num_classes=3,
    **architecture,
  )
  generator = np.random.default_rng(0)
  basis, _ = np.linalg.qr(generator.normal(size=(128, 12)))
  return checkpoint.Model(
    network=network,
    variables=jax.jit(network.init)(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    ),
    normalisation=NORMALISATIONS["unit"],
    reduction=Reduction(
      mean=generator.normal(size=128).astype(np.float32) / 20,
      components=basis.T.astype(np.float32),
      deviations=np.linspace(1, 2, 12, dtype=np.float32),
    )
    if reduced
    else None,
    extraction={"scales": SCALES, "score": "product", "max_features": 40},
    provenance={"photographs": "none"},
    fingerprint="0123",
  )


def write(directory, model, *, platforms=("cpu", "cuda", "tpu"), **options):
  lowered = stablehlo.lower(
    model, platforms=platforms, max_side=MAX_SIDE, **options
  )
  stablehlo.write(directory, *lowered)
  return directory


def textured(height, width, seed=0):
  generator = np.random.default_rng(seed)
  blocks = generator.integers(0, 255, (height // 6 + 1, width // 6 + 1, 3))
  large = np.kron(blocks, np.ones((6, 6, 1)))[:height, :width]
  return large.astype(np.uint8)


def assert_same(found, expected):
  """Equal features; near-equal scores may stand in another order."""
  orders = [
    np.lexsort(np.column_stack([f.scales, f.locations]).T)
    for f in (found, expected)
  ]
  for name in exported.Features._fields:
    ours, theirs = (
      getattr(f, name)[order]
      for f, order in zip((found, expected), orders, strict=True)
    )
    if name in ("scores", "descriptors"):
      np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    else:
      np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A sound export of a reduced model; tests that break it take a copy."""
  directory = tmp_path_factory.mktemp("export") / "whole"
  return write(directory, tiny_model(reduced=True))


@pytest.mark.parametrize(
  ("architecture", "reduced", "options"),
  [
    ({"layout": "torchvision"}, False, {"score": "l2_norm"}),
    ({"layout": "slim"}, True, {"iou_threshold": 0.4, "scales": [1.0]}),
    (
      {"layout": "keras"},
      True,
      {"score": "attention", "score_threshold": 0.5, "resize": "antialias"},
    ),
    ({"end_stride": 2, "code_dim": 12}, False, {"scales": [1.0]}),
  ],
  ids=["torchvision", "slim", "keras", "codes"],
)
def test_features_equal_those_of_the_ordinary_extractor(
  tmp_path, architecture, reduced, options
):
  model = tiny_model(reduced=reduced, **architecture)
  extractor = exported.load(write(tmp_path / "export", model, **options))
  ordinary = extractors.delf_extractor(model, max_side=MAX_SIDE, **options)
  dim = 12 if reduced or "code_dim" in architecture else 128
  for size in [(95, 128), (96, 113), (78, 121)]:  # of one canvas
    pixels = textured(*size)
    found = extractor(pixels)
    assert_same(found, ordinary(Photograph(pixels, *size)))
    assert found.mask.all() and isinstance(found.scores, np.ndarray)
    assert found.descriptors.shape == (len(found.mask), dim)
    assert len(found.mask) > 3


def test_a_batch_equals_its_photographs_alone(whole):
  extractor = exported.load(whole)
  photographs = [textured(61, 96, 1), textured(83, 50, 2)]
  pixels = np.full((2, 110, 120, 3), 7, np.uint8)
  for row, photograph in zip(pixels, photographs, strict=True):
    row[: photograph.shape[0], : photograph.shape[1]] = photograph
  sizes = np.array([photograph.shape[:2] for photograph in photographs])
  batch = extractor.batch(pixels, sizes)
  assert batch.locations.shape == (2, 40, 2)
  for i, photograph in enumerate(photographs):
    assert not batch.descriptors[i][~batch.mask[i]].any()
    row = exported.Features(*(leaf[i][batch.mask[i]] for leaf in batch))
    assert_same(row, extractor(photograph))
  assert len(extractor(textured(9, 30)).mask) == 0  # too small for a feature


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("end_stride", [1, 2])
def test_level_lengths_stay_polynomials_behind_all_layers(layout, end_stride):
  path = layers((3, 4, 6), layout=layout, end_stride=end_stride)
  stride = 16 * end_stride
  granule, rest = stablehlo.level_rule(path, stride)
  assert granule == stride
  for n in range(1, 5):
    length, slope = granule * n + rest, granule
    for layer in path:
      length, slope = layer.output_size(length), slope // layer.stride
      assert length >= slope * n and (length - slope * n) < slope + 8
  with pytest.raises(ValueError, match="no rest"):
    stablehlo.level_rule([Layer(99, 1, "valid")], 16)


def test_the_description_and_what_is_left_out(whole):
  meta = exported.load(whole).meta
  assert meta["fingerprint"] == "0123"
  assert meta["settings"]["score"] == "product"
  assert meta["settings"]["iou_threshold"] == 1.0
  assert meta["normalisation"]["mean"] == [128.0] * 3
  assert meta["receptive_field"]["stride"] == 16
  assert meta["reduction_dim"] == meta["descriptor_dim"] == 12
  assert meta["provenance"] == {"photographs": "none"}
  assert meta["program"]["platforms"] == ["cpu", "cuda", "tpu"]
  assert not any("classifier" in name for name in meta["program"]["weights"])
  # Neither weights nor the paths of the machine that made it.
  program = (whole / exported.PROGRAM).read_bytes()
  assert len(program) < 150_000 and b".py" not in program
  safetensors = pytest.importorskip("safetensors.numpy")
  weights = safetensors.load_file(whole / exported.WEIGHTS)
  assert set(weights) == set(meta["program"]["weights"])
  np.testing.assert_array_equal(
    weights["reduction.components"],
    tiny_model(reduced=True).reduction.components,
  )


ALONE = """
import sys
import numpy as np
from loader import load

directory, pixels, found = sys.argv[1:]
np.savez(found, **load(directory)(np.load(pixels))._asdict())
"""


def test_the_directory_and_jax_are_enough(whole, tmp_path):
  # What JAX needs and nothing else of what is installed.
  (tmp_path / "site").mkdir()
  for name in ("jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy"):
    package = pathlib.Path(importlib.util.find_spec(name).origin).parent
    (tmp_path / "site" / name).symlink_to(package)
  shutil.copytree(whole, tmp_path / "moved")
  pixels = textured(80, 120)
  np.save(tmp_path / "pixels.npy", pixels)
  subprocess.run(
    [
      *(sys.executable, "-S", "-c", ALONE),
      *(tmp_path / name for name in ("moved", "pixels.npy", "found.npz")),
    ],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": f"{tmp_path}/site:{tmp_path}/moved"},
    check=True,
  )
  ordinary = extractors.delf_extractor(
    tiny_model(reduced=True), max_side=MAX_SIDE
  )
  with np.load(tmp_path / "found.npz") as found:
    assert_same(
      exported.Features(**found), ordinary(Photograph(pixels, 80, 120))
    )


def test_the_program_replaces_an_older_export(tmp_path):
  model = tiny_model()
  fields = {
    name: getattr(model, name)
    for name in ("network", "variables", "normalisation", "reduction")
  }
  checkpoint.save_model(
    tmp_path / "model", extraction=model.extraction, provenance={}, **fields
  )

  write(tmp_path / "export", model, scales=[1.0])
  done = subprocess.run(
    [
      *(sys.executable, "-m", "delf_jax.export"),
      f"--features={tmp_path}/model",
      f"--output={tmp_path}/export",
      *("--platforms=cpu", "--scales=0.5", "--score=l2_norm"),
      *("--max_features=7", "--max_side=96"),
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "for cpu" in done.stdout
  assert sorted(os.listdir(tmp_path)) == ["export", "model"]
  extractor = exported.load(tmp_path / "export")
  assert extractor.meta["settings"]["scales"] == [0.5]
  assert extractor.meta["settings"]["score"] == "l2_norm"
  assert len(extractor(textured(90, 96)).mask) == 7
  with pytest.raises(ExportError, match="97 x 90 pixels.*up to 96"):
    extractor(textured(90, 97))


def test_what_is_no_export_is_not_replaced(tmp_path):
  write(tmp_path / "empty", tiny_model(), scales=[1.0])
  (tmp_path / "empty").rename(tmp_path / "other")
  (tmp_path / "other" / exported.META).write_text('{"format": "mine"}')
  (tmp_path / "file").write_text("mine")
  for name in ("other", "file"):
    with pytest.raises(InputError, match="exists and is no export"):
      stablehlo.write(tmp_path / name, b"", {}, {})
  assert (tmp_path / "file").read_text() == "mine"
  (tmp_path / "folder").mkdir()
  stablehlo.write(tmp_path / "folder", b"", {}, {})
  with pytest.raises(InputError, match="platforms"):
    write(tmp_path / "new", tiny_model(), platforms=["cpu", "abacus"])
  with pytest.raises(InputError, match="max_side"):
    stablehlo.lower(tiny_model(), platforms=["cpu"], max_side=100_000)


def test_another_platform_is_named(tmp_path):
  directory = write(
    tmp_path / "export", tiny_model(), platforms=["tpu"], scales=[1.0]
  )
  with pytest.raises(ExportError, match="for tpu and JAX runs on cpu.*tpu,cpu"):
    exported.load(directory)


@pytest.mark.parametrize(
  ("pixels", "sizes", "message"),
  [
    (np.zeros((1, 64, 64, 3)), [[64, 64]], "dtype float64"),
    (np.zeros((64, 64, 3), np.uint8), [[64, 64]], "shape"),
    (np.zeros((1, 64, 64, 1), np.uint8), [[64, 64]], "shape"),
    (np.zeros((0, 64, 64, 3), np.uint8), np.zeros((0, 2), int), "shape"),
    (np.zeros((1, 64, 64, 3), np.uint8), [[64, 65]], "do not fit"),
    (np.zeros((1, 64, 64, 3), np.uint8), [[0, 64]], "do not fit"),
    (np.zeros((1, 64, 64, 3), np.uint8), [[64.0, 64.0]], "integers"),
    (np.zeros((1, 64, 64, 3), np.uint8), [64, 64], "integers"),
    (np.zeros((1, 200, 64, 3), np.uint8), [[200, 64]], "64 x 200.*up to 128"),
  ],
)
def test_photographs_that_do_not_fit(whole, pixels, sizes, message):
  extractor = exported.load(whole)
  with pytest.raises(ExportError, match=message):
    extractor.batch(pixels, np.asarray(sizes))
  with pytest.raises(ExportError, match="photograph is"):
    extractor(np.zeros((64, 64), np.uint8))


def sign(directory, **changes):
  """Writes a `meta.json` that vouches for what lies there."""
  meta = json.loads((directory / exported.META).read_text())
  for key, value in changes.items():
    meta[key] = {**meta[key], **value} if isinstance(value, dict) else value
  for name in meta["files"]:
    data = (directory / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    meta["files"][name] = {"bytes": len(data), "sha256": digest}
  del meta["sha256"]
  meta["sha256"] = exported.checksum(meta)
  (directory / exported.META).write_text(json.dumps(meta))


@pytest.mark.parametrize(
  "name", [exported.META, exported.PROGRAM, exported.WEIGHTS]
)
def test_every_damaged_file_is_named(whole, tmp_path, name):
  directory = shutil.copytree(whole, tmp_path / "export")
  path = directory / name
  data = path.read_bytes()
  middle = len(data) // 2
  other = bytes([data[middle] ^ 1])
  for damaged in (
    b"",
    data[:middle],
    data + b"1",
    data[:middle] + other + data[middle + 1 :],
  ):
    path.write_bytes(damaged)
    with pytest.raises(ExportError, match=f"{name}.* is damaged"):
      exported.load(directory)
  path.unlink()
  message = "is no export" if name == exported.META else f"{name}.* is missing"
  with pytest.raises(ExportError, match=message):
    exported.load(directory)
  with pytest.raises(ExportError, match="is no export"):
    exported.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"format": "another"}, "is no export"),
    ({"version": 2}, "format 2, newer"),
    ({"canvases": [[1 << 15, 1 << 15]]}, "damaged"),
    ({"canvases": []}, "damaged"),
    ({"descriptor_dim": 1 << 40}, "damaged"),
    ({"descriptor_dim": 13}, "not the program of these weights"),
    ({"settings": {"scales": [1e9, 1.0]}}, "damaged"),
    ({"program": {"granule": 0}}, "damaged"),
    ({"program": {"weights": ["nothing"]}}, "damaged"),
    ({"program": {"calling_convention_version": 99}}, "cannot call it"),
  ],
)
def test_a_false_description_is_refused(whole, tmp_path, changes, message):
  directory = shutil.copytree(whole, tmp_path / "export")
  sign(directory, **changes)
  with pytest.raises(ExportError, match=message):
    exported.load(directory)


def test_false_weights_are_refused(whole, tmp_path):
  directory = shutil.copytree(whole, tmp_path / "export")
  path = directory / exported.WEIGHTS
  data = path.read_bytes()
  start = 8 + int.from_bytes(data[:8], "little")
  header = json.loads(data[8:start])
  name = "reduction.mean"
  for change in (
    {"shape": [1 << 50], "data_offsets": [0, 4 << 50]},
    {"data_offsets": [len(data), len(data) + 512]},
    {"data_offsets": [-512, 0]},
    {"dtype": "F64"},
    {"shape": ["a"]},
  ):
    text = json.dumps({**header, name: {**header[name], **change}}).encode()
    length = len(text).to_bytes(8, "little")
    path.write_bytes(length + text + data[start:])
    sign(directory)
    with pytest.raises(ExportError, match="safetensors.* is damaged"):
      exported.load(directory)
  path.write_bytes(b"\xff" * 8 + data[8:])
  sign(directory)
  with pytest.raises(ExportError, match="safetensors.* is damaged"):
    exported.load(directory)


@pytest.mark.parametrize(
  ("function", "message"),
  [
    (jnp.linalg.qr, "calls what lies outside of it .*lapack"),
    (jnp.sin, "not the program of these weights"),
    (None, "cannot be read by JAX"),
  ],
  ids=["calling", "another", "nonsense"],
)
def test_a_false_program_is_refused(whole, tmp_path, function, message):
  directory = shutil.copytree(whole, tmp_path / "export")
  data = b"ML\xefRnonsense"
  if function is not None:
    stranger = export.export(jax.jit(function), platforms=["cpu"])
    data = bytes(stranger(jnp.ones((3, 3))).mlir_module_serialized)
  (directory / exported.PROGRAM).write_bytes(data)
  sign(directory)
  with pytest.raises(ExportError, match=message):
    exported.load(directory)
