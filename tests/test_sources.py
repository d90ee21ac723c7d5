import os
import pickle

import numpy as np
import pytest

from delf_jax.data.sources import FileSource, PackedStrings

NAMES = ["a/b.jpg", "", "with space, comma.jpg", "Αθήνα/東京.jpg", "a\nb"]


def test_packed_strings_are_the_strings():
  names = [*NAMES, os.fsdecode(b"caf\xe9/\xff.jpg")]
  packed = PackedStrings(iter(names))
  assert list(packed) == names and len(packed) == 6
  assert packed[-1] == names[-1] and packed[np.int64(2)] == names[2]
  assert list(pickle.loads(pickle.dumps(packed))) == names
  for i in (6, -7):
    with pytest.raises(IndexError):
      packed[i]
  assert list(PackedStrings([])) == []


def test_files_and_their_labels(tmp_path):
  for i, name in enumerate(("x.jpg", "deep/y z,.png", "gone.jpg")):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(bytes([i]) * 3)
  names = ["x.jpg", "deep/y z,.png", "gone.jpg"]
  source = FileSource(str(tmp_path), names, np.array([1, 0, 1]))
  (tmp_path / "gone.jpg").unlink()
  expected = [
    {"image": b"\0\0\0", "label": 1, "name": "x.jpg"},
    {"image": b"\1\1\1", "label": 0, "name": "deep/y z,.png"},
    {"image": b"", "label": 1, "name": "gone.jpg"},
  ]
  assert [source[i] for i in range(3)] == expected
  assert pickle.loads(pickle.dumps(source))[-2] == expected[1]
  assert source.labels.dtype == np.int32 and len(source) == 3
  with pytest.raises(IndexError):
    source[3]
  with pytest.raises(ValueError, match="2 labels"):
    FileSource("", names, np.zeros(2))
