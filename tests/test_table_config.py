"""The paper's tables as configs: every row, every number, every override."""

import importlib.util
import pathlib

import pytest

from delf_jax import extractors
from delf_jax.errors import InputError
from delf_jax.tables import table_config

TABLES = pathlib.Path(__file__).parents[1] / "configs" / "tables"
# Rows (three of Table 3 and four of Table 5 are ours) and numbers of the paper,
# counted in its tables by hand; four of Table 3 are dashes.
COUNTS = {
  "table1": (16, 32),
  "table2": (6, 12),
  "table3": (12, 68),
  "table4": (4, 32),
  "table5": (9, 15),
  "table6": (4, 12),
  "table7": (9, 27),
  "figure4": (5, 15),
  # No table of the paper: its competitor's numbers.
  "bag_of_words": (4, 2),
}
# Tables that the paper has not.
OWN = ["selection"]
# Of each table one number, by row and column, looked up in the paper.
NUMBERS = {
  "table1": ("l2_att_lf_rs", "Oxf5k*", 46.72),
  "table2": ("1000_iou70", "Par6k*", 20.15),
  "table3": ("delf_l2_att", "Oxf105k*", 13.31),
  "table4": ("delf_l2", "Par106k*, 1600", 30.89),
  "table5": ("delf_att", "TP@90%", 92.61),
  "table6": ("l2_400", "TP@95%", 24.89),
  "table7": ("att_beta001", "TP@85%", 108.5),
  "figure4": ("congas", "TP@90%", 28.44),
  "bag_of_words": ("verified", "Oxf105k", 54.1),
}


def config_of(name, variant="all"):
  spec = importlib.util.spec_from_file_location(name, TABLES / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant).to_dict()


def test_every_table_of_the_paper_is_there():
  found = {path.stem for path in TABLES.glob("*.py")}
  assert found == {*COUNTS, *OWN}


@pytest.mark.parametrize("name", COUNTS)
def test_a_table_is_whole(name):
  config = config_of(name)
  rows, numbers = COUNTS[name]
  assert config["table"] == name
  assert len({row[0] for row in config["rows"]}) == rows == len(config["rows"])
  for row in config["rows"]:
    assert len(row[3]) == len(config["columns"])
  paper = [number for row in config["rows"] for number in row[3]]
  assert sum(number is not None for number in paper) == numbers
  row, column, number = NUMBERS[name]
  labels = [label for label, *_ in config["columns"]]
  found = next(one for one in config["rows"] if one[0] == row)
  assert found[3][labels.index(column)] == number


@pytest.mark.parametrize("name", OWN)
def test_a_table_of_our_own_has_no_numbers_of_the_paper(name):
  config = config_of(name)
  for row in config["rows"]:
    assert row[3] == (None,) * len(config["columns"])


@pytest.mark.parametrize("name", [*COUNTS, *OWN])
@pytest.mark.parametrize("variant", ["all", "small"])
def test_every_row_resolves(name, variant):
  table = table_config.read_table(config_of(name, variant), {})
  assert {one.row for one in table.measurements} == {
    row for row, *_ in table.described["rows"]
  }
  assert not table.single
  for one in table.measurements:
    if variant == "small":
      assert one.settings["dataset.name"] == "synthetic"
    kind, checkpoint = (
      one.settings[f"features.{key}"] for key in ("kind", "checkpoint")
    )
    assert (
      kind in extractors.HANDCRAFTED
      or f"checkpoints.{checkpoint[1:]}" in one.settings
    )
  single = table_config.read_table(
    config_of(name, table.measurements[-1].row), {}
  )
  assert single.single
  assert {one.row for one in single.measurements} == {
    table.measurements[-1].row
  }


def test_columns_of_one_dataset_are_one_measurement():
  table = table_config.read_table(config_of("table5", "delf_att"), {})
  (one,) = table.measurements
  assert [column.metric for column in one.columns] == [
    "TP@95",
    "TP@90",
    "TP@85",
  ]
  # On one's own photographs the two columns of Table 1 are the same.
  table = table_config.read_table(
    config_of("table1", "pca40"),
    {"dataset.name": "json", "dataset.distractors": 7},
  )
  (one,) = table.measurements
  assert one.place == "json-7" and len(one.columns) == 2
  # Options of the synthetic landmarks mean nothing to them.
  table = table_config.read_table(
    config_of("table1", "small,pca40"), {"dataset.name": "json"}
  )
  assert table.measurements[0].settings["dataset.options"] == ()


def test_the_command_line_counts_most():
  given = {
    "index.kind": "exact",
    "features.pca": 128,
    "verification.model": "similarity",
    "features.scales": 1.0,
    "verification.threshold": 10,
  }
  table = table_config.read_table(config_of("table1", "pca40"), given)
  for one in table.measurements:
    assert one.settings["index.kind"] == "exact"
    assert one.settings["features.pca"] == 128
    assert one.settings["features.scales"] == (1.0,)
    assert one.settings["verification.threshold"] == 10.0
    # The others are the row's and the paper's.
    assert one.settings["features.checkpoint"] == "@imagenet"
    assert one.settings["verification.counting"] == "plain"


def test_small_rows_by_name():
  table = table_config.read_table(config_of("table4", "small,delf_l2"), {})
  assert table.single and len(table.measurements) == 4
  counts = [one.settings["dataset.distractors"] for one in table.measurements]
  assert counts == [0, 40, 80, 160]


@pytest.mark.parametrize(
  ("variant", "given", "message"),
  [
    ("pca41", {}, r"no row 'pca41'.*small,ROW"),
    ("all", {"index.knd": "exact"}, r"no value 'index\.knd'.*index\.kind"),
    ("all", {"colour": 3}, r"no value 'colour'.*neighbours"),
    ("all", {"checkpoints.x": "run"}, r"checkpoints\.imagenet"),
    ("all", {"neighbours": "many"}, r"neighbours must be int, not 'many'"),
    ("all", {"features.max_side": 10.5}, r"must be int"),
    ("all", {"rows": ("pca40",)}, r"config\.rows is what table1.*small,ROW"),
  ],
)
def test_what_does_not_exist_is_refused(variant, given, message):
  with pytest.raises(InputError, match=message):
    table_config.read_table(config_of("table1", variant), given)
