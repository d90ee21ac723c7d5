import re

import pytest

from delf_jax.conversion import first_bytes


@pytest.mark.parametrize(
  ("start", "expected"),
  [
    (b"", "is empty"),
    (b"\n<!DOCTYPE html><html><body>Quota exceeded", "is a web page"),
    (b"\xef\xbb\xbf<html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
    (b"\x89HDF\r\n\x1a\n\0", "is an HDF5 file"),
    (b"\x80\x02\x8a\nl\xfc", "is a pickle or a zip archive"),
    (b"PK\x03\x04\x14", "is a pickle or a zip archive"),
    (b"\x1f\x8b\x08", "is compressed"),
    (bytes(257) + b"ustar", "is a tar archive.*before 0.1.10"),
    (b"weights\nof something", r"starts with b'weights\\n'"),
  ],
)
def test_advice(start, expected):
  advice = first_bytes.advice(start)
  assert re.search(expected, advice)
  assert advice.isprintable()
