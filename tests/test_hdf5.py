import struct
import zlib

import numpy as np
import pytest

from delf_jax.conversion import hdf5

VALUES = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


@pytest.fixture
def h5py():
  return pytest.importorskip("h5py", reason="writes the files: extra convert")


def read(path):
  return hdf5.File(path.read_bytes()).root


def test_arrays(tmp_path, h5py):
  path = tmp_path / "arrays.h5"
  kinds = [f"{o}{k}{n}" for o in "<>" for k in "iu" for n in (1, 2, 4, 8)]
  arrays = {
    kind: (VALUES * 99).astype(kind)
    for kind in [*kinds, *("<f2", ">f2", "<f4", ">f4", "<f8", ">f8")]
  }
  arrays["scalar"] = np.float32(-0.0)
  arrays["empty"] = np.zeros((0, 3), np.float32)
  arrays["nan"] = np.array([np.nan, np.inf, 1e-45], np.float32)
  options = {
    "gzip": {"compression": "gzip", "chunks": (2, 4, 7)},
    "shuffled": {"compression": 9, "shuffle": True, "chunks": (3, 3, 3)},
    "blocks": {"chunks": (1, 1, 2)},
    "growing": {"maxshape": (None, None, None)},
  }
  with h5py.File(path, "w") as file:
    for name, array in arrays.items():
      file[name] = array
    for name, option in options.items():
      file.create_dataset(name, data=VALUES, **option)
      file.create_dataset(name + " wide", data=VALUES.astype(">f8"), **option)
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((7,))
    kind = h5py.h5t.IEEE_F32LE
    compact = h5py.h5d.create(file.id, b"compact", kind, space, plist)
    compact.write(h5py.h5s.ALL, h5py.h5s.ALL, VALUES[0, 0])
  found = read(path).children
  expected = dict(arrays)
  for name in options:
    expected[name] = VALUES
    expected[name + " wide"] = VALUES.astype(np.float64)
  expected["compact"] = VALUES[0, 0]
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    values = found[name].array()
    assert values.dtype == array.dtype.newbyteorder("=")
    assert values.shape == array.shape
    np.testing.assert_array_equal(values, array)


def test_bfloat16(tmp_path, h5py):
  path = tmp_path / "bfloat16.h5"
  raw = np.array([0x3F80, 0xC049, 0x7F80], "<u2")
  kind = h5py.h5t.IEEE_F16LE.copy()
  kind.set_fields(15, 7, 8, 0, 7)
  kind.set_ebias(127)
  with h5py.File(path, "w") as file:
    opaque = file.create_dataset("opaque", data=raw.view("V2"))
    opaque.attrs["dtype"] = "bfloat16"
    other = file.create_dataset("other", data=raw.view("V2"))
    other.attrs["dtype"] = "something"
    space = h5py.h5s.create_simple((3,))
    number = h5py.h5d.create(file.id, b"number", kind, space)
    number.write(h5py.h5s.ALL, h5py.h5s.ALL, raw, mtype=kind)
  found = read(path).children
  for name in ("opaque", "number"):
    values = found[name].array()
    assert values.dtype == np.float32
    assert values.tolist() == [1, -3.140625, np.inf]
  with pytest.raises(hdf5.UnreadError, match="no numbers"):
    found["other"].array()


def test_groups_and_texts(tmp_path, h5py):
  path = tmp_path / "groups.h5"
  many = [f"name {i}" for i in range(700)]
  with h5py.File(path, "w") as file:
    for name in many:  # more than a leaf of a tree holds
      file.create_group(name)
    deep = file.create_group("a/b/c")
    deep.attrs["variable"] = many
    deep.attrs["fixed"] = [b"ab", "ü".encode()]
    deep.attrs["padded"] = np.array([b"abc", b"d"], "S8")
    deep.attrs["one"] = "text"
    deep.attrs["none"] = []
    deep.attrs["number"] = 3.0
    for i in range(40):  # more than the first part of a header holds
      deep.attrs[f"more {i}"] = f"text {i}"
  root = read(path)
  assert root.children.keys() == {*many, "a"}
  item = root.children["a"].children["b"].children["c"]
  assert item.is_group and item.children == {}
  assert item.texts("variable") == many
  assert item.texts("fixed") == ["ab", "ü"]
  assert item.texts("padded") == ["abc", "d"]
  assert item.texts("one") == ["text"]
  assert item.texts("none") == []
  assert item.texts("missing") is None
  assert item.texts("more 39") == ["text 39"]
  with pytest.raises(hdf5.UnreadError, match="no text"):
    item.texts("number")
  with pytest.raises(ValueError, match="a group where data should be"):
    item.array()


def unread(h5py, directory):
  """Writers of files with parts that are refused."""
  other = directory / "secret.h5"
  with h5py.File(other, "w") as file:
    file["a"] = VALUES
  (directory / "secret.bin").write_bytes(VALUES.tobytes())

  def virtual(file):
    layout = h5py.VirtualLayout(VALUES.shape, "f4")
    layout[:] = h5py.VirtualSource(other, "a", VALUES.shape)
    file.create_virtual_dataset("a", layout)

  def committed(file):
    file["type"] = np.dtype("f4")
    file.create_dataset("a", data=VALUES, dtype=file["type"])

  external = [(str(directory / "secret.bin"), 0, VALUES.nbytes)]
  yield "external link", lambda f: f.update(a=h5py.ExternalLink(other, "a"))
  yield "soft link", lambda f: f.update(a=h5py.SoftLink("/b"), b=VALUES)
  yield "virtual", virtual
  yield (
    "external",
    lambda f: f.create_dataset("a", VALUES.shape, "f4", external=external),
  )
  yield "committed", committed
  yield "ordered", lambda f: f.create_group("a", track_order=True)["a"]
  yield "name", lambda f: f.update({"a": VALUES, "ü": VALUES})
  yield "lzf", lambda f: f.create_dataset("a", data=VALUES, compression="lzf")
  yield (
    "checksum",
    lambda f: f.create_dataset("a", data=VALUES, fletcher32=True),
  )
  yield (
    "reference",
    lambda f: f.create_dataset("a", data=f.ref, dtype=h5py.ref_dtype),
  )
  yield "text", lambda f: f.create_dataset("a", data="text")
  yield "record", lambda f: f.create_dataset("a", data=np.zeros(2, "f4,i4"))
  yield "null", lambda f: f.create_dataset("a", data=h5py.Empty("f4"))


def test_what_is_not_read(tmp_path, h5py):
  path = tmp_path / "unread.h5"
  for name, write in unread(h5py, tmp_path):
    with h5py.File(path, "w") as file:
      try:
        write(file)
      except KeyError:
        assert name == "ordered"
    with pytest.raises(hdf5.UnreadError) as caught:
      read(path).children["a"].array()
    assert str(caught.value).isprintable(), name
  with h5py.File(path, "w", libver="latest") as file:
    file["a"] = VALUES
  with pytest.raises(hdf5.UnreadError, match="newer layout"):
    read(path)
  with h5py.File(path, "w", userblock_size=512) as file:
    file["a"] = VALUES
  with pytest.raises(ValueError, match="no signature"):
    read(path)


def test_claims_are_checked(tmp_path, h5py):
  path = tmp_path / "claims.h5"

  def patched(old, new):
    whole = path.read_bytes()
    assert whole.count(old) >= 1
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(ValueError) as caught:
      read(path).children["a"].array()
    return str(caught.value)

  dims = struct.pack("<3Q", *VALUES.shape)
  for huge in ((2**62, 6, 7), (5, 6, 8), (2**33, 2**33, 2**33), (5, 6, 6)):
    with h5py.File(path, "w") as file:
      file["a"] = VALUES
    message = patched(dims, struct.pack("<3Q", *huge))
    assert "of which 840 are there" in message or "much larger" in message
    with h5py.File(path, "w") as file:
      options = {"chunks": (5, 6, 7), "compression": "gzip"}
      file.create_dataset("a", data=VALUES, **options)
    if huge != (5, 6, 6):  # a part of a block is what it should be
      message = patched(dims, struct.pack("<3Q", *huge))
      assert "1 blocks of" in message or "much larger" in message
  # Shapes that were never filled.
  for options in ({}, {"chunks": (1, 10**6)}, {"chunks": True}):
    with h5py.File(path, "w") as file:
      file.create_dataset("a", (10**6, 10**6), "f4", **options)
    with pytest.raises(ValueError, match="are there|0 blocks|much larger"):
      read(path).children["a"].array()
  # A block of zeros that grows a thousandfold, and one past its promise.
  with h5py.File(path, "w") as file:
    options = {"chunks": (10**7,), "compression": 9}
    file.create_dataset("a", data=np.zeros(10**7, "f8"), **options)
  with pytest.raises(ValueError, match="much larger than the file"):
    read(path).children["a"].array()
  with h5py.File(path, "w") as file:
    data = file.create_dataset("a", (4,), "f4", chunks=(4,), compression=9)
    data.id.write_direct_chunk((0,), zlib.compress(bytes(10**6)))
  with pytest.raises(ValueError, match="a block of 17 bytes instead of 16"):
    read(path).children["a"].array()


def test_circles(tmp_path, h5py):
  path = tmp_path / "circle.h5"
  with h5py.File(path, "w") as file:
    group = file.create_group("a")
    group["b"] = file["/"]
  root = read(path)
  inner = root.children["a"].children["b"]
  assert inner.address == root.address
  with pytest.raises(ValueError, match="lie over each other"):
    while True:
      inner = inner.children["a"].children["b"]


def walk(item, depth=0):
  """Reads all there is."""
  for name in ("text", "list"):
    item.texts(name)
  if not item.is_group:
    return item.array().size
  if depth > 5:
    return 0
  return sum(walk(child, depth + 1) for child in item.children.values())


def test_damage(tmp_path, h5py):
  path = tmp_path / "damaged.h5"
  with h5py.File(path, "w") as file:
    for name in "ab":
      group = file.create_group(name)
      group.attrs["list"] = ["x", "y"]
      group.attrs["text"] = b"z"
      group["plain"] = VALUES[0, 0]
      group.create_dataset(
        "packed", data=VALUES[0], chunks=(2, 7), compression=1
      )
  whole = path.read_bytes()
  assert walk(hdf5.File(whole).root) == 2 * (7 + 42)
  for cut in range(0, len(whole), 37):
    with pytest.raises((ValueError, struct.error)):
      walk(hdf5.File(whole[:cut]).root)
  generator = np.random.default_rng(0)
  used = np.flatnonzero(np.frombuffer(whole, np.uint8))
  refused = 0
  for _ in range(1000):
    damaged = bytearray(whole)
    for place in generator.choice(used, generator.integers(1, 4)):
      damaged[place] ^= generator.choice([1, 2, 128, 255])
    try:
      walk(hdf5.File(bytes(damaged)).root)
    except (ValueError, struct.error, KeyError, hdf5.UnreadError):
      refused += 1
    except Exception as error:
      assert type(error).__module__ == "zlib", repr(error)
      refused += 1
  assert 100 < refused < 1000
