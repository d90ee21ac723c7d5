"""Files that are written whole or not at all."""

import os

import pytest

from delf_jax import whole_files
from delf_jax.errors import InputError


def test_a_file_is_written_and_replaced(tmp_path):
  path = tmp_path / "page.html"
  for content in (b"first, and longer", b"second"):
    whole_files.write_file(path, content)
    assert path.read_bytes() == content
  assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.skipif(
  not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has"
)
def test_a_full_disk_is_one_clear_line(tmp_path):
  (tmp_path / f"page.html.{os.getpid()}.tmp").symlink_to("/dev/full")
  with pytest.raises(InputError, match="No space left on device; make room"):
    whole_files.write_file(tmp_path / "page.html", b"content")
  assert not os.listdir(tmp_path)


def test_what_was_there_is_kept(tmp_path):
  path = tmp_path / "page.html"
  path.write_bytes(b"before")
  (tmp_path / f"page.html.{os.getpid()}.tmp").mkdir()
  with pytest.raises(InputError, match=r"page\.html' cannot be written"):
    whole_files.write_file(path, b"after")
  assert path.read_bytes() == b"before"
