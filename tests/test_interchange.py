"""Other systems' feature files: their bytes, coordinates and damage."""

import inspect
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from delf_jax.errors import InputError
from delf_jax.features import handcrafted, interchange
from delf_jax.features.interchange import PhotographFeatures
from delf_jax.features.local_features import LocalFeatures, empty, pad

# Written by the released system's own messages.
ARRAY = "0a040a020203121a0a180000803f0000004000004040000080400000a0400000c040"
FEATURE = (
  "0a2c0a110a030a0102120a0a080000803f000000c0150000a0411d00002041250000003f"
  "2d00000000350000c842"
)


def make(n, dim=8, seed=0):
  rng = np.random.default_rng(seed)
  return LocalFeatures(
    locations=rng.uniform(0, 400, (n, 2)).astype(np.float32),
    scales=rng.uniform(0.5, 4, n).astype(np.float32),
    scores=rng.uniform(0, 100, n).astype(np.float32),
    descriptors=rng.normal(size=(n, dim)).astype(np.float32),
    mask=np.ones(n, bool),
  )


def check_same(found, expected):
  for leaf in ("locations", "scales", "scores", "descriptors", "mask"):
    np.testing.assert_array_equal(getattr(found, leaf), getattr(expected, leaf))
    assert getattr(found, leaf).dtype == getattr(expected, leaf).dtype


def test_the_bytes_of_an_array(tmp_path):
  path = tmp_path / "a.datum"
  array = np.array([[1, 2, 3], [4, 5, 6]])
  interchange.write_datum(path, array)
  assert path.read_bytes().hex() == ARRAY
  found = interchange.read_datum(path)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, array)
  assert os.listdir(tmp_path) == ["a.datum"]


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,), (2, 3, 4)])
def test_arrays_of_any_shape(tmp_path, shape):
  path = tmp_path / "a.datum"
  array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  interchange.write_datum(path, array)
  found = interchange.read_datum(path)
  assert found.shape == shape
  np.testing.assert_array_equal(found, array)


def test_the_bytes_of_a_feature(tmp_path):
  path = tmp_path / "a.delf"
  features = LocalFeatures(
    locations=np.array([[10, 20]], np.float32),
    scales=np.array([0.5], np.float32),
    scores=np.array([100], np.float32),
    descriptors=np.array([[1, -2]], np.float32),
    mask=np.ones(1, bool),
  )
  interchange.write_delf(path, pad(features, 3))
  assert path.read_bytes().hex() == FEATURE
  check_same(interchange.read_delf(path), features)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_features_come_back(tmp_path, n):
  path = tmp_path / "a.delf"
  interchange.write_delf(path, make(n))
  check_same(interchange.read_delf(path), make(n) if n else empty(0))


def varint(value):
  out = b""
  while value > 127:
    out += bytes([value & 127 | 128])
    value >>= 7
  return out + bytes([value])


def message(number, data):
  return varint(number << 3 | 2) + varint(len(data)) + data


def number(field, value):
  return varint(field << 3 | 5) + np.float32(value).tobytes()


def test_unpacked_numbers_in_any_order(tmp_path):
  """Written by hand: old and foreign writers neither pack nor sort."""
  path = tmp_path / "a"
  values = b"".join(number(1, value) for value in (1.5, -2, 0, 7))
  shape = message(1, varint(1 << 3) + varint(2) + varint(1 << 3) + varint(2))
  unknown = message(99, b"later") + varint(98 << 3) + varint(5)
  datum = unknown + message(2, values) + shape
  path.write_bytes(datum)
  np.testing.assert_array_equal(
    interchange.read_datum(path), [[1.5, -2], [0, 7]]
  )
  # Split into two pieces that are to be merged, half of it packed.
  pieces = message(1, np.array([1.5, -2], "<f4").tobytes())
  path.write_bytes(
    message(2, pieces) + shape + message(2, number(1, 0) + number(1, 7))
  )
  np.testing.assert_array_equal(
    interchange.read_datum(path), [[1.5, -2], [0, 7]]
  )
  vector = message(2, number(1, 3) + number(1, 4)) + message(
    1, varint(1 << 3) + varint(2)
  )
  feature = (
    number(6, 9) + number(3, 20) + message(1, vector) + number(2, 30)
  ) + number(4, 2)
  path.write_bytes(message(1, feature) + message(1, feature))
  found = interchange.read_delf(path)
  np.testing.assert_array_equal(found.locations, [[20, 30]] * 2)
  np.testing.assert_array_equal(found.scales, [2, 2])
  np.testing.assert_array_equal(found.scores, [9, 9])
  np.testing.assert_array_equal(found.descriptors, [[3, 4]] * 2)


def test_visual_words_of_the_released_system(tmp_path):
  # uint32_list, as its aggregation writes.
  path = tmp_path / "a.datum"
  packed = message(1, varint(5) + varint(2**32 - 1))
  path.write_bytes(message(1, message(1, varint(2))) + message(3, packed))
  found = interchange.read_datum(path)
  assert found.dtype == np.uint32
  np.testing.assert_array_equal(found, [5, 2**32 - 1])


def test_a_package_of_the_same_messages_does_not_matter():
  file = descriptor_pb2.FileDescriptorProto(
    name="delf/protos/datum.proto", package="delf.protos"
  )
  file.message_type.add(name="DatumProto")
  pool = descriptor_pool.Default()
  pool.Add(file)
  message_factory.GetMessageClass(
    pool.FindMessageTypeByName("delf.protos.DatumProto")
  )


DAMAGED = {
  "too few numbers": message(1, message(1, varint(3)))
  + message(2, message(1, np.ones(2, "<f4").tobytes())),
  "a huge shape": message(1, message(1, varint(2**40) + varint(2**23)))
  + message(2, b""),
  "a shape beyond NumPy": message(1, message(1, varint(0) + varint(2**62) * 9)),
  "a negative shape": message(
    1, message(1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" * 2)
  )
  + message(2, message(1, np.ones(1, "<f4").tobytes())),
  "too many axes": message(1, message(1, varint(1) * 100))
  + message(2, message(1, np.ones(1, "<f4").tobytes())),
  "nothing": b"",
  "text": b"<html>404</html>",
  "a length beyond the file": b"\x12\xff\xff\xff\xff\x07",
  "deep": b"".join(message(1, b"")[:1] + b"\x7f" for _ in range(500)),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_arrays_are_one_line(tmp_path, kind):
  path = tmp_path / "damaged.datum"
  path.write_bytes(DAMAGED[kind])
  with pytest.raises(InputError, match="damaged.datum") as caught:
    interchange.read_datum(path)
  assert "\n" not in str(caught.value)


def test_damaged_features_are_one_line(tmp_path):
  path = tmp_path / "damaged.delf"
  interchange.write_delf(path, make(3, dim=4))
  whole = path.read_bytes()
  end = len(whole) // 3
  wrong = [whole[:cut] for cut in range(1, end)]
  wrong += [whole[: 2 * end + 5], b"\xff" * 40, b"not features at all"]
  descriptor = bytes.fromhex(ARRAY)
  wrong += [
    message(1, number(2, 1)),  # no descriptor
    message(1, message(1, descriptor)),  # one of two axes
    whole + bytes.fromhex(FEATURE),  # descriptors of other lengths
    message(9, whole),  # something else
  ]
  for value in (np.nan, np.inf):
    wrong.append(
      bytes.fromhex(FEATURE).replace(
        np.float32(20).tobytes(), np.float32(value).tobytes()
      )
    )
  for data in wrong:
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged.delf") as caught:
      interchange.read_delf(path)
    assert "\n" not in str(caught.value)
  rng = np.random.default_rng(0)
  for _ in range(300):
    flipped = bytearray(whole)
    flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    path.write_bytes(flipped)
    try:
      interchange.read_delf(path)
    except InputError:
      pass


def test_what_is_no_file(tmp_path, monkeypatch):
  with pytest.raises(InputError, match="none"):
    interchange.read_delf(tmp_path / "none")
  os.mkfifo(tmp_path / "pipe")
  for path in (tmp_path, tmp_path / "pipe"):
    with pytest.raises(InputError, match=str(path)):
      interchange.read_datum(path)
  with pytest.raises(InputError, match="cannot be written"):
    interchange.write_datum(tmp_path / "no" / "a.datum", np.zeros(1))
  monkeypatch.setattr(interchange, "MOST_BYTES", 33)
  (tmp_path / "large").write_bytes(bytes.fromhex(ARRAY))
  with pytest.raises(InputError, match="too many"):
    interchange.read_datum(tmp_path / "large")


@pytest.fixture
def h5py():
  return pytest.importorskip("h5py", reason="the extra [convert]")


def write_as_hloc(h5py, path, name, half=True, **arrays):
  """Writes a photograph in the way of hloc's extract_features."""
  with h5py.File(path, "a", libver="latest") as file:
    group = file.create_group(name)
    for key, values in arrays.items():
      values = np.asarray(values)
      if half and values.dtype == np.float32:
        values = values.astype(np.float16)
      group.create_dataset(key, data=values)
    group["keypoints"].attrs["uncertainty"] = 1.0


def test_hloc_files_are_read(h5py, tmp_path):
  path = tmp_path / "features.h5"
  features = make(7, dim=16)
  for name, half in (("db/ü/1.jpg", True), ("query.png", False)):
    write_as_hloc(
      h5py,
      path,
      name,
      half=half,
      keypoints=features.locations[:, ::-1],
      descriptors=features.descriptors.T,
      scores=features.scores,
      image_size=np.array([640, 480]),
    )
  expected = features.replace(scales=np.ones(7, np.float32))
  with interchange.read_hloc(path) as images:
    assert list(images) == ["db/ü/1.jpg", "query.png"] and len(images) == 2
    assert "db" not in images and "query.png" in images
    found, height, width = images["query.png"]
    assert (height, width) == (480, 640)
    check_same(found, expected)
    half = images["db/ü/1.jpg"].features
    np.testing.assert_allclose(half.locations, expected.locations, rtol=1e-3)
    np.testing.assert_array_equal(
      half.descriptors, expected.descriptors.astype(np.float16)
    )
    with pytest.raises(KeyError):
      images["db"]


def test_hloc_counts_pixels_as_we_do(h5py, tmp_path):
  """A reduced photograph's keypoints, brought back by hloc's own formula."""
  rng = np.random.default_rng(0)
  grey = np.full((300, 400), 120, np.uint8)
  for _ in range(60):
    centre = int(rng.integers(400)), int(rng.integers(300))
    radius, tone = int(rng.integers(3, 20)), int(rng.integers(256))
    cv2.circle(grey, centre, radius, tone, -1)
  reduced = cv2.resize(grey, (200, 150), interpolation=cv2.INTER_AREA)
  keypoints, descriptors = cv2.SIFT_create().detectAndCompute(reduced, None)
  points = np.array([k.pt for k in keypoints], np.float32)
  scale = np.array([400 / 200, 300 / 150], np.float32)
  path = tmp_path / "features.h5"
  write_as_hloc(
    h5py,
    path,
    "a.jpg",
    half=False,
    keypoints=(points + 0.5) * scale[None] - 0.5,
    descriptors=descriptors.T,
    scores=np.array([k.response for k in keypoints], np.float32),
    image_size=np.array([400, 300]),
  )
  ours = handcrafted.extract(
    np.repeat(reduced[..., None], 3, 2), size=(300, 400), max_features=10_000
  )
  with interchange.read_hloc(path) as images:
    theirs = images["a.jpg"].features
  assert len(theirs.mask) == len(ours.mask) > 50
  np.testing.assert_allclose(
    sorted(theirs.locations.tolist()),
    sorted(ours.locations.tolist()),
    atol=1e-3,
  )


def test_hloc_files_are_written(h5py, tmp_path):
  path = tmp_path / "features.h5"
  features = make(5, dim=4)
  photographs = {
    "b/two.jpg": PhotographFeatures(features, 300, 400),
    "a.jpg": PhotographFeatures(empty(4), 10, 20),
    "b/two": PhotographFeatures(make(3, dim=4, seed=1), 50, 60),
  }
  interchange.write_hloc(path, photographs.items())
  with h5py.File(path) as file:
    # As hloc lists names: the parents of all datasets.
    names = set()
    file.visititems(
      lambda _, node: (
        names.add(node.parent.name.strip("/"))
        if isinstance(node, h5py.Dataset)
        else None
      )
    )
    assert names == photographs.keys()
    group = file["b/two.jpg"]
    np.testing.assert_array_equal(
      group["keypoints"][()], features.locations[:, [1, 0]]
    )
    np.testing.assert_array_equal(
      group["descriptors"][()], features.descriptors.T
    )
    np.testing.assert_array_equal(group["scores"][()], features.scores)
    assert group["image_size"][()].tolist() == [400, 300]
    assert {group[key].dtype.str for key in group} == {"<f4", "<i8"}
  with interchange.read_hloc(path) as images:
    assert list(images) == sorted(photographs)
    for name, expected in photographs.items():
      check_same(images[name].features, expected.features)
      assert images[name][1:] == expected[1:]
  interchange.write_hloc(path, photographs.items(), dtype="float16")
  with h5py.File(path) as file:
    assert file["a.jpg/descriptors"].shape == (4, 0)
    assert file["b/two.jpg/descriptors"].dtype == np.float16
    assert file["b/two.jpg/keypoints"].dtype == np.float32
  assert os.listdir(tmp_path) == ["features.h5"]


@pytest.mark.parametrize(
  "name", ["../a", "/a", "a//b", "a/./b", "", "a\0b", "b\udcff", "x/keypoints"]
)
def test_names_that_hloc_cannot_have(h5py, tmp_path, name):
  photograph = PhotographFeatures(make(2), 10, 10)
  path = tmp_path / "features.h5"
  path.write_bytes(b"old")
  with pytest.raises(InputError, match="rename"):
    interchange.write_hloc(path, [("x", photograph), (name, photograph)])
  assert path.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["features.h5"]


def test_one_damaged_photograph_leaves_the_others(h5py, tmp_path):
  path = tmp_path / "features.h5"
  good = {
    "keypoints": np.zeros((3, 2), np.float32),
    "descriptors": np.zeros((4, 3), np.float32),
    "scores": np.zeros(3, np.float32),
    "image_size": np.array([40, 30]),
  }
  bad = {
    "shape": {"keypoints": np.zeros((3, 4), np.float32)},
    "transposed": {"descriptors": np.zeros((3, 4), np.float32)},
    "count": {"scores": np.zeros(2, np.float32)},
    "size": {"image_size": np.array([0, 30])},
    "sizes": {"image_size": np.array([1, 2, 3])},
    "nan": {"keypoints": np.full((3, 2), np.nan, np.float32)},
    "double": {"descriptors": np.full((4, 3), 1e300)},
    "text": {"descriptors": np.full((4, 3), b"a")},
  }
  write_as_hloc(h5py, path, "good", **good)
  for name, changed in bad.items():
    write_as_hloc(h5py, path, name, **{**good, **changed})
  (tmp_path / "secret").write_bytes(bytes(96))
  with h5py.File(path, "a") as file:
    for name in ("no size", "bomb", "outside", "virtual", "linked"):
      group = file.create_group(name)
      for key, values in good.items():
        group[key] = values
    del file["no size"]["image_size"]
    for name in ("bomb", "outside", "virtual", "linked"):
      del file[name]["descriptors"]
    # Nothing is stored of a chunked dataset until it is written.
    file["bomb"].create_dataset(
      "descriptors", (2**40, 3), np.float32, chunks=(1024, 3)
    )
    file["outside"].create_dataset(
      "descriptors",
      (4, 3),
      np.float32,
      external=[(str(tmp_path / "secret"), 0, 48)],
    )
    layout = h5py.VirtualLayout((4, 3), np.float32)
    layout[:] = h5py.VirtualSource(str(path), "good/descriptors", (4, 3))
    file["virtual"].create_virtual_dataset("descriptors", layout)
    file["linked"]["descriptors"] = h5py.ExternalLink(
      str(tmp_path / "other.h5"), "/a"
    )
    file["good/again"] = file["good"]
    file["good/around"] = h5py.SoftLink("/")
  with interchange.read_hloc(path) as images:
    # A link in the place of a dataset makes a photograph of it no more.
    assert set(images) == {"good", "no size", *bad} | {
      *("bomb", "outside", "virtual")
    }
    for name in images:
      if name == "good":
        assert len(images[name].features.mask) == 3
        continue
      with pytest.raises(InputError, match=f"features.h5.*{name}") as caught:
        images[name]
      assert "\n" not in str(caught.value)


def test_what_is_no_file_of_hloc(h5py, tmp_path):
  path = tmp_path / "features.h5"
  interchange.write_hloc(path, [("a.jpg", PhotographFeatures(make(9), 9, 9))])
  whole = path.read_bytes()
  for data in (b"", b"text", whole[:8], whole[:600], whole[:-200]):
    path.write_bytes(data)
    with pytest.raises(InputError, match="features.h5") as caught:
      interchange.read_hloc(path)
    assert "\n" not in str(caught.value)
  for missing in (tmp_path / "none.h5", tmp_path):
    with pytest.raises(InputError, match=str(missing)):
      interchange.read_hloc(missing)
  with h5py.File(path, "w") as file:
    file["a.jpg/global_descriptor"] = np.zeros(4)
  with pytest.raises(InputError, match="global_descriptor"):
    interchange.read_hloc(path)
  # Hard links that lead in a circle.
  with h5py.File(path, "w") as file:
    file["a/b"] = file.create_group("a")
    file["a/b/c"] = file["/"]
  with pytest.raises(InputError, match="no local features"):
    interchange.read_hloc(path)


def test_flipped_bits_never_surprise(h5py, tmp_path):
  path = tmp_path / "features.h5"
  photographs = [
    (f"{i}.jpg", PhotographFeatures(make(4, seed=i), 9, 9)) for i in range(3)
  ]
  interchange.write_hloc(path, photographs)
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  for _ in range(200):
    flipped = bytearray(whole)
    flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    path.write_bytes(flipped)
    try:
      with interchange.read_hloc(path) as images:
        for name in images:
          try:
            images[name]
          except InputError:
            pass
    except InputError:
      pass


FULL = f"""
import resource, signal, sys
import numpy as np
from delf_jax.errors import InputError
from delf_jax.features import interchange
from delf_jax.features.local_features import LocalFeatures

{inspect.getsource(make)}
path, bytes, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, bytes))
photograph = interchange.PhotographFeatures(make(n), 9, 9)
try:
  interchange.write_hloc(path, ((f"{{i}}.jpg", photograph) for i in range(20)))
except InputError as error:
  sys.exit(str(error))
"""


# From the first byte to the last: within data, within HDF5's own tables.
@pytest.mark.parametrize("size", [0, 500, 3000, 20_000])
def test_a_full_disk_is_one_line(h5py, tmp_path, size):
  path = tmp_path / "features.h5"
  path.write_bytes(b"old")
  done = subprocess.run(
    [sys.executable, "-c", FULL, path, str(size), "50"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert "cannot be written: File too large" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert path.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["features.h5"]


def test_without_h5py_the_message_says_so(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "h5py", None)
  with pytest.raises(InputError, match="pip install 'delf_jax\\[convert\\]'"):
    interchange.read_hloc(tmp_path / "a.h5")
