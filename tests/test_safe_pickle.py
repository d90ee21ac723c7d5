import collections
import itertools
import os
import pickle
import pickletools
import subprocess

import numpy as np
import pytest

from delf_jax.data import safe_pickle
from delf_jax.errors import InputError

PLAIN = {
  "list": [1, -2.5, "ü", None, True, (b"\xff", b"")],
  "set": {1, frozenset({2})},
  "ordered": collections.OrderedDict(a=1),
  "empty": {},
}
ARRAYS = {
  "int": np.arange(5),
  "bool": np.array([[True], [False]]),
  "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  "big": np.arange(3, dtype=">u2"),
  "text": np.array(["ab", "c"]),
  "bytes": np.array([b"ab", b"c"]),
  "none": np.empty(0, np.float32),
  "objects": np.array(["a", [1, 2], np.int64(3)], object),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(tmp_path, protocol):
  path = tmp_path / "plain.pkl"
  scalars = [np.int64(-3), np.float32(2.5), np.bool_(True), np.str_("x")]
  everything = {"plain": PLAIN, "arrays": ARRAYS, "scalars": scalars}
  path.write_bytes(pickle.dumps(everything, protocol=protocol))
  found = safe_pickle.load(path)
  assert found["plain"] == PLAIN
  assert found["scalars"] == [-3, 2.5, True, "x"]
  for name, array in ARRAYS.items():
    assert found["arrays"][name].dtype == array.dtype
    np.testing.assert_array_equal(found["arrays"][name], array)


def test_a_pickle_of_python_2(tmp_path):
  # Written by Python 2: {"cids": ["a\xe9"], "cluster": numpy.array([1, 513])}.
  path = tmp_path / "two.pkl"
  path.write_bytes(
    b"\x80\x02}q\x00(U\x04cidsq\x01]q\x02U\x02a\xe9q\x03aU\x07clusterq\x04"
    b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85"
    b"U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01"
    b"<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x01\x00\x01\x02tbu."
  )
  found = safe_pickle.load(path)
  assert found["cids"] == ["aé"]
  assert found["cluster"].tolist() == [1, 513]


class Runs:
  """Pickles as a call of `function`."""

  def __init__(self, function, *arguments):
    self._call = function, arguments

  def __reduce__(self):
    return self._call


def hostile(path):
  yield os.system, f"touch {path}"
  yield subprocess.run, ["touch", path]
  yield eval, f"open({path!r}, 'w')"
  yield open, path, "w"
  yield getattr, str, "join"
  yield np.load, path
  yield np.dtype, "i4,O"
  yield np.dtype, {"names": ["a"], "formats": ["O"]}


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_no_code_is_run(tmp_path, protocol):
  trace, path = tmp_path / "trace", tmp_path / "hostile.pkl"
  for function, *arguments in hostile(str(trace)):
    payload = {"train": [1, Runs(function, *arguments)]}
    path.write_bytes(pickle.dumps(payload, protocol=protocol))
    with pytest.raises(InputError, match="hostile.pkl.*was not run") as caught:
      safe_pickle.load(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
  # NumPy's records and objects of other classes are no plain data either.
  for value in (np.zeros(2, "i4,f4"), np.zeros(1, "M8[s]"), pytest):
    try:
      path.write_bytes(pickle.dumps([value], protocol=protocol))
    except (TypeError, pickle.PicklingError):
      continue
    with pytest.raises(InputError):
      safe_pickle.load(path)


def test_a_small_file_cannot_fill_the_memory(tmp_path):
  path = tmp_path / "bomb.pkl"
  call = b"\x80\x02cbuiltins\n"
  copies = b"".join(b"h\x00h\x01\x85R" for _ in range(1000))
  for payload, reason in (
    (b"\x80\x02K\x01r\xff\xff\xff\xff.", "memo entry 4294967295"),
    (b"\x80\x02K\x01p4000000000\n.", "memo entry 4000000000"),
    (call + b"bytearray\nJ\xff\xff\xff\x7f\x85R.", "2147483647 zeros"),
    (call + b"bytes\nJ\xff\xff\xff\x7f\x85R.", "2147483647 zeros"),
    # A thousand copies of 64 KiB.
    (
      call
      + b"bytearray\nq\x00B\x00\x00\x01\x00"
      + bytes(2**16)
      + b"q\x01]("
      + copies
      + b"e.",
      "again and again",
    ),
    (
      pickle.dumps(np.empty(1, object), 2).replace(b"K\x01\x85", b"K\x09\x85"),
      r"1 values for the shape \(9,\)",
    ),
    # A shape whose product is a list, repeated.
    (
      pickle.dumps(np.arange(1), 2).replace(
        b"K\x01\x85", b"J\xff\xff\xff\x7f(K\x00t\x86"
      ),
      "no whole numbers",
    ),
  ):
    path.write_bytes(payload)
    with pytest.raises(InputError, match=f"bomb.pkl.*{reason}") as caught:
      safe_pickle.load(path)
    assert "\n" not in str(caught.value)
  # Two references to the same list, sixty times over.
  tree = ["leaf"]
  for _ in range(60):
    tree = [tree, tree]
  path.write_bytes(pickle.dumps(tree))
  found = safe_pickle.load(path)
  while found != ["leaf"]:
    assert found[0] is found[1]
    found = found[0]


def test_a_pickle_cannot_change_this_program(tmp_path):
  path = tmp_path / "changes.pkl"
  # The state of a function is its attributes; of a second kind, its slots.
  for name, state in itertools.product(
    (b"numpy\ndtype", b"collections\nOrderedDict", b"_codecs\nencode"),
    (b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x01\x00\x00\x00aK\x01s\x86"),
  ):
    path.write_bytes(b"\x80\x02c" + name + b"\n" + state + b"b.")
    with pytest.raises(InputError, match="changes.pkl.*a changed .*not run"):
      safe_pickle.load(path)
    path.write_bytes(b"\x80\x02]c" + name + b"\na.")
    with pytest.raises(InputError, match="itself"):
      safe_pickle.load(path)
  text = b"\x80\x04\x8c\x05a\n\x1b[1\x8c\x01b\x93."
  path.write_bytes(text)
  with pytest.raises(InputError, match=r"asks for a\?\?\[1\.b"):
    safe_pickle.load(path)


def test_damage_is_one_line(tmp_path):
  path = tmp_path / "damaged.pkl"
  whole = pickle.dumps({"plain": PLAIN, "arrays": ARRAYS})
  for cut in range(0, len(whole), 7):
    path.write_bytes(whole[:cut])
    with pytest.raises(InputError, match="damaged.pkl") as caught:
      safe_pickle.load(path)
    assert "\n" not in str(caught.value)
  # An array whose bytes do not fit its shape.
  data = pickletools.optimize(pickle.dumps(np.arange(4), protocol=2))
  for bad in (data.replace(b"K\x04\x85", b"K\x05\x85"), b"", b"\x00\n\xff"):
    path.write_bytes(bad)
    with pytest.raises(InputError, match="damaged.pkl"):
      safe_pickle.load(path)
  with pytest.raises(InputError, match="cannot read"):
    safe_pickle.load(tmp_path / "none.pkl")
