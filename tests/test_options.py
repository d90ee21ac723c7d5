"""Options that are given as name=value."""

import pytest

from delf_jax.errors import InputError
from delf_jax.options import parse_options


def test_options_are_json_or_text():
  options = parse_options(
    ["table=a b.csv", 'rows={"x": [1]}', "seed=3", "photos=", "lists=a=b"]
  )
  assert options == {
    "table": "a b.csv",
    "rows": {"x": [1]},
    "seed": 3,
    "photos": "",
    "lists": "a=b",
  }
  with pytest.raises(InputError, match="'table': expected"):
    parse_options(["table"])
