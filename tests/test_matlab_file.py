import struct
import zlib

import numpy as np
import pytest
from published_lists import MAT_CIDS, MAT_FILE

from delf_jax.data import matlab_file
from delf_jax.errors import InputError


def uncompressed(data):
  """The same file as save -v6 writes it."""
  opened, at = data[:128], 128
  while at < len(data):
    _, size = struct.unpack_from("<II", data, at)
    opened += zlib.decompress(data[at + 8 : at + 8 + size])
    at += 8 + size
  return opened


@pytest.fixture(params=["compressed", "plain"])
def path(request, tmp_path):
  data = MAT_FILE if request.param == "compressed" else uncompressed(MAT_FILE)
  (tmp_path / "list.mat").write_bytes(data)
  return tmp_path / "list.mat"


def test_variables(path):
  found = matlab_file.load(path)
  assert sorted(found) == ["cids", "cluster", "matrix", "name"]
  assert found["cids"] == MAT_CIDS and found["name"] == "tower"
  assert found["cluster"].dtype == np.uint16
  np.testing.assert_array_equal(found["cluster"], [[1, 7, 300]])
  np.testing.assert_array_equal(found["matrix"], [[0, 1, 2], [3, 4, 5]])


def test_big_endian(tmp_path):
  def element(kind, content):
    padded = content + bytes(-len(content) % 8)
    return struct.pack(">II", kind, len(content)) + padded

  matrix = element(6, struct.pack(">II", 13, 0))  # of uint32 values
  matrix += element(5, struct.pack(">ii", 1, 2)) + element(1, b"n")
  matrix += element(4, struct.pack(">HH", 1, 513))  # stored as uint16
  path = tmp_path / "big.mat"
  header = b"MATLAB 5.0".ljust(124) + b"\1\0MI"
  path.write_bytes(header + element(14, matrix))
  np.testing.assert_array_equal(matlab_file.load(path)["n"], [[1, 513]])


def test_damage_is_one_line(path):
  data = path.read_bytes()
  for cut in (135, 180, len(data) - 9):
    path.write_bytes(data[:cut])
    with pytest.raises(
      InputError, match="list.mat.*download it again"
    ) as caught:
      matlab_file.load(path)
    assert "\n" not in str(caught.value)
  for other in (b"", b"MATLAB 7.3 MAT-file".ljust(600), b"\x89HDF" * 100):
    path.write_bytes(other)
    with pytest.raises(InputError, match="no MAT file of version 5"):
      matlab_file.load(path)
  with pytest.raises(InputError, match="cannot read"):
    matlab_file.load(path.with_name("none.mat"))
