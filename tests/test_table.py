import os

import pytest

from delf_jax.data.table import Table
from delf_jax.errors import InputError


def test_rows_of_the_wanted_columns(tmp_path):
  path = tmp_path / "list.csv"
  path.write_bytes(
    "\ufeffid, url,landmark\r\n"
    '1,"a, ""b""\nc",Ü\r\n'
    "\r\n"
    "2,x,y,z\r\n"
    "3,x\r\n"
    "4,,\r\n".encode()
    + b"5,\xff,caf\xe9\r\n"
  )
  table = Table(path, ["landmark", "url"], origin="")
  expected = [("Ü", 'a, "b"\nc'), ("", ""), (os.fsdecode(b"caf\xe9"), "\udcff")]
  for _ in range(2):
    table.problems.clear()
    assert list(table) == expected
    ((where, reason),) = table.problems
    assert where == str(path)
    assert reason.startswith("2 rows have not 3 fields")


@pytest.mark.parametrize(
  "content, words",
  [
    (None, "no file .*list.csv.*; expected the index"),
    (b"", "no column 'url'; its columns are none. Expected: the index"),
    (b"id,link\n1,2\n", "no column 'url'; its columns are id, link"),
    (b"id,url\n" + b"x" * 200_000 + b",y\n", "no CSV file.*field"),
  ],
)
def test_an_unfit_file_is_one_line(tmp_path, content, words):
  path = tmp_path / "list.csv"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match=words) as caught:
    list(Table(path, ["url", "id"], origin="the index"))
  assert "\n" not in str(caught.value)


def test_a_folder_is_no_table(tmp_path):
  with pytest.raises(InputError, match="cannot read.*directory"):
    Table(tmp_path, ["a", "b"], origin="")
