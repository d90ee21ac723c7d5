import collections
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
