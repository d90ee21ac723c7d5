import re

import numpy as np
import pytest

from delf_jax.conversion import protobuf_wire as wire
from delf_jax.conversion import tensor_bundle
from delf_jax.conversion.sorted_table import read_table, write_table
from delf_jax.conversion.tensor_bundle import (
  OBJECT_GRAPH,
  Variable,
  is_v1,
  read_bundle,
  read_object_graph,
  read_v1,
  write_bundle,
)
from delf_jax.errors import InputError

# Written by TensorFlow 2.21: a/h half, a/i int32, a/w float32, and p, which is
# partitioned along its second axis into ones and twos.
V1 = bytes.fromhex("""
0000660a640a110a03612f68120412020802181322020a000a0b0a03612f691200180322
000a170a03612f7712081202080212020803180122040a000a000a250a01701208120208
0212020803180122080a0210020a021002220a0a0210020a040802100112020801000a14
00612f6800010101807f12120a03612f6812020a001a076a05807c808003030417690001
0012150a03612f6912001a0c3a0afdffffffffffffffff010309297700010102807f807f
12270a03612f7712040a000a001a1a2a18000000000000803f0000004000004040000080
400000a04001092370000101028082808212210a017012080a0210020a0210021a122a10
0000803f0000803f0000803f0000803f08021d8281121b0a0170120a0a0210020a040802
10011a0a2a080000004000000040000000000100000000c0ca9a00000000000100000000
c0f2a1b00001030100b602000000000100000000e86731ecbb0208c8020f000000000000
0000000000000000000000000000000000000000000000000000000057fb808b247547db
""")
INDEX = bytes.fromhex("""
00000608011a020801000a15007000010102808280820801120812020802120208022020
2810352337cbbb08021582810801120812020802120208012030280835dddeb42d00030f
612f680813120412020802280435b0d222e902010d69080312002004280435096c7f5b02
0115770801120812020802120208032008281835c0db3d17000122700801120812020802
120208033a080a0210020a0210023a0a0a0210020a0408021001000000000100000000e3
115967000000000100000000c0f2a1b00001037100b201000000000100000000a15e4f20
b70108c4010f000000000000000000000000000000000000000000000000000000000000
0000000057fb808b247547db
""")
DATA = bytes.fromhex("""
003e00c0fdffffff000000000000803f0000004000004040000080400000a0400000803f
0000803f0000803f0000803f0000004000000040
""")
EXPECTED = {
  "a/h": np.array([1.5, -2], np.float32),
  "a/i": np.array(-3, np.int32),
  "a/w": np.arange(6, dtype=np.float32).reshape(2, 3),
  "p": np.array([[1, 1, 2], [1, 1, 2]], np.float32),
}
# tf.train.Checkpoint(m=module), where module.w is [1, 2] and module.l is [1].
OBJECTS_INDEX = bytes.fromhex("""
00000608011a020801001c0e5f434845434b504f494e5441424c455f4f424a4543545f47
52415048080712002014289b0235c9b380a700200d6d2f6c2f302f2e4154545249425554
45532f5641524941424c455f56414c55450803120020102804351d158265021c11772f2e
415454524942555445532f5641524941424c455f56414c55450801120412020802200828
0835593ce53500270b736176655f636f756e7465722f2e415454524942555445532f5641
524941424c455f56414c5545080912002808350175de410000000001000000006932dfe6
000000000100000000c0f2a1b00001037400d301000000000100000000d8152675d80108
e5010f000000000000000000000000000000000000000000000000000000000000000000
0057fb808b247547db
""")
OBJECTS_DATA = bytes.fromhex("""
01000000000000000000803f00000040010000009502232f228a0a1d0a05080112016d0a
100802120c736176655f636f756e7465722a0208010a120a0508031201770a0508041201
6c2a0208010a4d12470a0e5641524941424c455f56414c5545120c736176655f636f756e
7465721a27736176655f636f756e7465722f2e415454524942555445532f564152494142
4c455f56414c55452a0208010a40123a0a0e5641524941424c455f56414c554512085661
726961626c651a1e6d2f772f2e415454524942555445532f5641524941424c455f56414c
55452a0208010a0b0a0508051201302a0208010a42123c0a0e5641524941424c455f5641
4c554512085661726961626c651a206d2f6c2f302f2e415454524942555445532f564152
4941424c455f56414c55452a020801
""")
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def put(prefix, index=INDEX, data=DATA):
  prefix.with_name(f"{prefix.name}.index").write_bytes(index)
  shard = f"{prefix.name}.data-00000-of-00001"
  prefix.with_name(shard).write_bytes(data)
  return prefix


def check(found, expected=EXPECTED):
  assert list(found) == sorted(expected)
  for name, value in expected.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value)


def test_what_tensorflow_wrote(tmp_path):
  prefix = put(tmp_path / "v2.ckpt-7")
  check(read_bundle(prefix))
  check(read_bundle(str(prefix), select="p".__eq__), {"p": EXPECTED["p"]})
  assert read_object_graph(prefix) == {}
  assert not is_v1(f"{prefix}.index")
  assert not is_v1(prefix)
  path = tmp_path / "v1.ckpt"
  path.write_bytes(V1)
  assert is_v1(path)
  check(read_v1(path))
  check(read_v1(path, select="p".__eq__), {"p": EXPECTED["p"]})


def test_objects(tmp_path):
  prefix = put(tmp_path / "ck-1", OBJECTS_INDEX, OBJECTS_DATA)
  found = read_bundle(prefix)
  assert found["m/w" + VALUE].tolist() == [1.0, 2.0]
  assert found["m/l/0" + VALUE] == 1
  assert found["save_counter" + VALUE] == 1
  assert len(found) == 3
  assert read_object_graph(prefix) == {
    "m/w" + VALUE: Variable("m/w", "Variable"),
    "m/l/0" + VALUE: Variable("m/l/0", "Variable"),
    "save_counter" + VALUE: Variable("save_counter", "save_counter"),
  }


def test_what_is_written_are_tensorflows_bytes(tmp_path):
  tensors = {
    "m/w" + VALUE: np.array([1, 2], np.float32),
    "m/l/0" + VALUE: np.array(1, np.int32),
    "save_counter" + VALUE: np.array(1, np.int64),
  }
  prefix = put(tmp_path / "theirs", OBJECTS_INDEX, OBJECTS_DATA)
  graph = OBJECTS_DATA[-277:]  # after its length and a checksum
  write_bundle(tmp_path / "ours", {**tensors, OBJECT_GRAPH: graph})
  check(read_bundle(tmp_path / "ours"), tensors)
  assert read_object_graph(tmp_path / "ours") == read_object_graph(prefix)
  # TensorFlow keeps these in another order; sizes and checksums are the same.
  theirs = dict(read_table(memoryview(OBJECTS_INDEX)))
  ours = dict(read_table(memoryview((tmp_path / "ours.index").read_bytes())))
  assert list(ours) == list(theirs)
  for key in ours:
    without_offset = [
      {number: value for number, _, value in wire.fields(entry) if number != 4}
      for entry in (ours[key], theirs[key])
    ]
    assert without_offset[0] == without_offset[1]


def test_round_trip(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {
    f"net/{letters}": (rng.standard_normal((3, 4, 5)) * 9).astype(letters)
    for letters in "f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 c8 c16 ?".split()
  }
  tensors |= {
    "scalar": np.float32(2.5),
    "empty": np.empty((0, 3), np.float32),
    "ümlaut": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "half": np.array([0.5], np.float16),
  }
  write_bundle(tmp_path / "a", {**tensors, "text": b"x" * 1000})
  found = read_bundle(tmp_path / "a")
  assert found.keys() == tensors.keys()
  for name, value in tensors.items():
    value = np.asarray(value)
    wide = value.astype("f4" if name == "half" else value.dtype.newbyteorder())
    assert found[name].dtype.newbyteorder("=") == found[name].dtype
    np.testing.assert_array_equal(found[name], wide)
  write_bundle(tmp_path / "b", {"text": b"x" * 1000, **tensors})
  for ending in (".index", ".data-00000-of-00001"):
    pair = [tmp_path / f"{name}{ending}" for name in "ab"]
    assert pair[0].read_bytes() == pair[1].read_bytes()
  assert len(list(tmp_path.iterdir())) == 4
  with pytest.raises(ValueError, match="'t'"):
    write_bundle(tmp_path / "a", {"t": np.array(["text"])})
  check(read_bundle(tmp_path / "a"), found)  # still whole
  with pytest.raises(InputError, match="cannot write"):
    write_bundle(tmp_path / "none" / "a", tensors)


def failing(read, path):
  """Returns the message of an InputError, or None after a clean read."""
  try:
    read(path)
  except InputError as error:
    assert "\n" not in str(error)
    assert path.name in str(error)
    return str(error)
  return None


def test_every_truncation_and_flip_is_noticed(tmp_path):
  prefix, path = tmp_path / "ck", tmp_path / "v1.ckpt"
  for cut in range(0, len(INDEX), 5):
    assert failing(read_bundle, put(prefix, INDEX[:cut]))
  for cut in range(0, len(DATA), 5):
    assert failing(read_bundle, put(prefix, INDEX, DATA[:cut]))
  for cut in range(0, len(V1), 7):
    path.write_bytes(V1[:cut])
    assert failing(read_v1, path)
  rng = np.random.default_rng(0)

  def flipped(data):
    data = bytearray(data)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(data)

  for _ in range(len(DATA)):
    assert failing(read_bundle, put(prefix, INDEX, flipped(DATA)))
  for _ in range(300):
    # The footer's padding and the empty block mean nothing.
    failing(read_bundle, put(prefix, flipped(INDEX)))
    path.write_bytes(flipped(V1))
    failing(read_v1, path)


def test_hostile_messages(tmp_path):
  """Damage under sound checksums: the parsers themselves must hold."""
  rng = np.random.default_rng(0)

  def mutated(table):
    entries = {k: bytearray(v) for k, v in read_table(memoryview(table))}
    keys = list(entries)
    for _ in range(rng.integers(1, 4)):
      value = entries[keys[rng.integers(len(keys))]]
      if len(value):
        value[rng.integers(len(value))] = rng.integers(256)
    return write_table({key: bytes(value) for key, value in entries.items()})

  prefix, path = tmp_path / "ck", tmp_path / "v1.ckpt"
  messages = set()
  for _ in range(250):
    messages.add(failing(read_bundle, put(prefix, mutated(INDEX))))
    path.write_bytes(mutated(V1))
    messages.add(failing(read_v1, path))
  graph = OBJECTS_DATA[-277:]
  for _ in range(250):
    bad = bytearray(graph)
    bad[rng.integers(len(bad))] = rng.integers(256)
    write_bundle(prefix, {OBJECT_GRAPH: bytes(bad)})
    messages.add(failing(read_object_graph, prefix))
  assert len(messages) > 10


def entry(*, dtype=1, dims=(2,), offset=0, size=8, shard=0, crc=0):
  shape = b"".join(wire.field(2, wire.field(1, dim)) for dim in dims)
  numbers = ((1, dtype), (3, shard), (4, offset), (5, size))
  message = b"".join(wire.field(*number) for number in numbers)
  return message + wire.field(2, shape) + wire.fixed32_field(6, crc)


HEADER = wire.field(1, 1)


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ({b"": HEADER, b"x": entry(dims=(2**40,))}, "another size"),
    ({b"": HEADER, b"x": entry(dims=(2**40,), size=2**42)}, "bytes and"),
    ({b"": HEADER, b"x": entry(dims=(2**63,) * 9, size=0)}, "the shape"),
    ({b"": HEADER, b"x": entry(dims=(0,) * 40, size=0)}, "the shape"),
    ({b"": HEADER, b"x": entry(offset=2**62)}, "outside"),
    ({b"": HEADER, b"x": entry(offset=2**64 - 8)}, "outside"),
    ({b"": HEADER, b"x": entry(size=2**64 - 8)}, "less than no"),
    ({b"": HEADER, b"x": entry(shard=1)}, "shard 1 of 1"),
    ({b"": HEADER, b"x": entry(shard=2**64 - 1)}, "shard -1 of 1"),
    ({b"": wire.field(1, 2), b"x": entry()}, "cannot read.*00000-of-00002"),
    ({b"": HEADER + wire.field(2, 1)}, "big-endian"),
    ({b"": HEADER, b"x": entry(dtype=20)}, "'x' has TensorFlow's type 20"),
    ({b"": HEADER, b"x": entry()}, "checksum of 'x'"),
    ({b"": HEADER, b"\xff": entry()}, "utf-8"),
    ({b"x": entry()}, "no header"),
    # Tensors that lie on each other: 1000 of the same 56 bytes.
    (
      {b"": HEADER} | {b"%d" % i: entry(dims=(14,), size=56) for i in range(9)},
      "504 bytes and.*has 56",
    ),
  ],
)
def test_claims(tmp_path, entries, message):
  prefix = put(tmp_path / "ck", write_table(entries))
  assert re.search(message, failing(read_bundle, prefix))


def test_partitions_must_fit(tmp_path):
  entries = {k: bytes(v) for k, v in read_table(memoryview(INDEX))}
  slices = [k for k in entries if k.startswith(b"\0")]
  for changed, message in (
    ({slices[0]: None}, "part of 'p' is missing"),
    ({slices[0]: entries[slices[1]]}, "do not make its shape"),
    (
      {b"p": entries[b"p"].replace(b"\x08\x02\x10\x01", b"\x08\x01\x10\x01")},
      "",
    ),
    (
      {b"p": entries[b"p"].replace(b"\x12\x02\x08\x03", b"\x12\x02\x08\x04")},
      "",
    ),
  ):
    table = {k: v for k, v in (entries | changed).items() if v is not None}
    text = failing(read_bundle, put(tmp_path / "ck", write_table(table)))
    assert text and message in text


def test_a_graph_with_cycles_lists_and_orphans(tmp_path):
  def node(*children, variable=None):
    message = b"".join(
      wire.field(1, wire.field(1, number) + wire.field(2, name))
      for number, name in children
    )
    if variable:
      names = (b"VARIABLE_VALUE", variable[0], variable[1])
      attribute = b"".join(wire.field(i, t) for i, t in enumerate(names, 1))
      message += wire.field(2, attribute)
    return wire.field(1, message)

  graph = (
    node((1, b"variables"), (2, b"model"), (0, b"self"))
    + node((3, b"0"), (4, b"1"))
    + node((0, b"parent"), (3, b"kernel"), (2, b"again"))
    + node(variable=(b"m/k:0", b"variables/0"))
    + node(variable=(b"lost:0", b"variables/1"))
  )
  write_bundle(tmp_path / "ck", {OBJECT_GRAPH: graph})
  assert read_object_graph(tmp_path / "ck") == {
    "variables/0": Variable("model/kernel", "m/k:0"),
    "variables/1": Variable(None, "lost:0"),
  }
  write_bundle(tmp_path / "ck", {OBJECT_GRAPH: node((7, b"x"))})
  assert "not there" in failing(read_object_graph, tmp_path / "ck")
  deep = b"".join(node((i + 1, b"x")) for i in range(500))
  deep += node(variable=(b"v", b"k"))
  write_bundle(tmp_path / "ck", {OBJECT_GRAPH: deep})
  assert read_object_graph(tmp_path / "ck") == {"k": Variable(None, "v")}


def test_missing(tmp_path):
  for read in (read_bundle, read_object_graph, read_v1):
    assert "cannot read" in failing(read, tmp_path / "none")
  prefix = put(tmp_path / "ck")
  (tmp_path / "ck.data-00000-of-00001").unlink()
  assert "every PREFIX.data" in failing(read_bundle, prefix)
  assert not is_v1(tmp_path)
  assert not is_v1(tmp_path / "none")


def test_strings_with_long_texts(tmp_path):
  texts = {"a": b"", "b": b"\0" * 200, "c": bytes(range(256)) * 300}
  write_bundle(tmp_path / "ck", texts)
  bundle = tensor_bundle._Bundle(tmp_path / "ck")
  for name, text in texts.items():
    assert [bytes(found) for found in bundle.read_strings(name)] == [text]
