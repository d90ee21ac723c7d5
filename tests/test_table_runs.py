"""Rows are run, swept and reported, with RootSIFT in place of networks."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from delf_jax import report
from delf_jax.data import synthetic_folder
from delf_jax.errors import InputError
from delf_jax.tables import results_table, table_config, table_runs

SIZES = ("num_landmarks=3", "views=3", "queries=1", "clutter=1")
GIVEN = {
  "features.kind": "rootsift",
  "features.max_features": 150,
  "candidates": 5,
  "index.kind": "kd_tree",
  "dataset.options": (*SIZES, "distractors=4"),
}
CONFIG = {
  "table": "table9",
  "title": "Table 9: a table | with a bar",
  "rows": (
    ("plain", "the plain row", {"neighbours": 2}, (12.5, None)),
    ("more", "more neighbours", {"neighbours": 5}, (25.0, 1.25)),
    ("lift", "LIFT", {"features.kind": "lift"}, (50.0, 2.5)),
  ),
  "columns": (
    ("Oxf5k*", "R@90", {"dataset.name": "oxford5k"}),
    ("Par6k", "mAP", {"dataset.name": "paris6k"}),
  ),
  "small": (
    ("synthetic", "mAP", {"dataset.name": "synthetic"}),
    (
      "synthetic*",
      "R@90",
      {"dataset.name": "synthetic", "dataset.distractors": 2},
    ),
  ),
}


def table_of(variant, **given):
  values = {key: value for key, value in GIVEN.items()}
  if variant.endswith("lift"):
    del values["features.kind"]
  return table_config.read_table(
    {**CONFIG, "variant": variant}, {**values, **given}
  )


@pytest.fixture(scope="module")
def output(tmp_path_factory):
  """Results of two rows in small; nobody has built the third."""
  output = tmp_path_factory.mktemp("output")
  for row in ("plain", "more"):
    table = table_of(f"small,{row}")
    table_runs.write_table(table, output)
    for one in table.measurements:
      table_runs.run(table, one, data="", output=output)
  return output


def test_rows_are_measured_and_share_their_features(output):
  places = {path.parent.name for path in output.rglob("metrics.json")}
  assert places == {"synthetic-all", "synthetic-2"}
  assert len(list(output.rglob("metrics.json"))) == 4
  assert len(list((output / "cache" / "features").glob("*.json"))) == 1
  assert len(list((output / "cache" / "indexes").iterdir())) == 1
  # The columns share what their queries found; K tells the rows apart.
  assert len(list((output / "cache" / "rankings").iterdir())) == 2


def test_a_sweep_chooses_and_the_row_takes_it(tmp_path):
  training = tmp_path / "training"
  synthetic_folder.write_folder(
    training,
    num_landmarks=2,
    views=3,
    queries=1,
    clutter=1,
    distractors=1,
    first_landmark=50,
  )
  grid = {"sweep.neighbours": (3, 1), "sweep.leaves": (1, 50)}
  table = table_of(
    "small,plain",
    **{"dataset.name": "json", "dataset.options": (), **grid},
  )
  one = table.measurements[0]
  chosen = table_runs.sweep(
    table, one, data=str(training), output=tmp_path / "results"
  )
  assert len(chosen["tried"]) == 4
  best = max(entry["value"] for entry in chosen["tried"])
  # Among equals the cheapest: they are tried in that order.
  first = next(e for e in chosen["tried"] if e["value"] == best)
  assert chosen["chosen"].items() <= first.items()
  with pytest.raises(InputError, match="these very photographs"):
    table_runs.run(table, one, data=str(training), output=tmp_path / "results")
  table = table_of("small,plain")
  table_runs.write_table(table, tmp_path / "results")
  one = table.measurements[0]
  result = table_runs.run(table, one, data="", output=tmp_path / "results")
  assert result["settings"]["neighbours"] == chosen["chosen"]["neighbours"]
  assert (
    result["settings"]["index_options"]["leaves"]
    == chosen["chosen"]["index.leaves"]
  )
  (table_results,) = results_table.read(tmp_path / "results")
  how = dict(
    zip(results_table.SETTINGS, table_results.settings[0], strict=True)
  )
  assert how["index"].endswith("; swept on json, by R@90")
  # What the command line says counts more.
  table = table_of("small,plain", neighbours=4)
  result = table_runs.run(
    table, table.measurements[0], data="", output=tmp_path / "results"
  )
  assert result["settings"]["neighbours"] == 4


def test_a_report_lays_ours_beside_the_papers(output, tmp_path):
  page = report.write(str(output), str(tmp_path))
  text = (tmp_path / "report.md").read_text()
  lines = text.splitlines()
  # Nothing was measured on the paper's photographs, so they have no grid.
  small = [line for line in lines if line.startswith("| more neighbours |")][0]
  cells = [cell.strip() for cell in small.strip("|").split("|")]
  assert cells[3:] == ["25", "1.25"]
  number = r"\d+\.\d"
  for cell in cells[1:3]:
    assert re.fullmatch(rf"{number} \[{number}, {number}\]", cell)
  assert "| the plain row | " in text and "| 12.5 |  |" in text
  assert "| LIFT | – | – | 50 | 2.5 |" in lines
  how = next(line for line in lines if line.startswith("| the plain row, syn"))
  assert "synthetic, 2 distractor queries | rootsift, 1024 pixels" in how
  assert how.endswith("| kd_tree, T = 5000, K = 2 |")
  assert "all of them: photographs 10; features of one 150;" in text
  assert "affine, votes, plain counts, any transforms, 20 pixels" in text
  metrics = json.loads(
    (output / "table9/more/synthetic-2/metrics.json").read_text()
  )
  assert cells[2].startswith(f"{metrics['R@90']:.1f} [")
  for place in ("synthetic-all", "synthetic-2"):
    assert (tmp_path / f"table9-{place}.png").stat().st_size > 1000
    svg = (tmp_path / f"table9-{place}.svg").read_text()
    assert "more neighbours" in svg
    xml.etree.ElementTree.fromstring(svg)
  written = pathlib.Path(page).read_text()
  html.parser.HTMLParser().feed(written)
  assert "more neighbours" in written
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  report.write(str(output), str(tmp_path))
  assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_report_of_the_papers_photographs(output, tmp_path):
  """Results are moved to where those of Oxford5k would lie."""
  home = tmp_path / "results" / "table9"
  shutil.copytree(output / "table9", home)
  for row in ("plain", "more"):
    for place in ("synthetic-all", "synthetic-2"):
      (home / row / place).rename(home / row / place.replace("synthetic", "x"))
  (home / "plain" / "x-2").rename(home / "plain" / "oxford5k-all")
  report.write(str(tmp_path / "results"), str(tmp_path / "report"))
  lines = (tmp_path / "report" / "report.md").read_text().splitlines()
  number = r"\d+\.\d"
  measured = rf"{number} \[{number}, {number}\] \(12\.5\)"
  assert any(
    re.fullmatch(rf"\| the plain row \| {measured} \| – \(–\) \|", line)
    for line in lines
  )
  assert "| more neighbours | – (25) | – (1.25) |" in lines
  assert "| LIFT | – (50) | – (2.5) |" in lines
  header = next(line for line in lines if "| x, 2: R@90 | x, 2: mAP |" in line)
  assert header.index("x, 2") < header.index("x, all")


def test_a_report_of_nothing(tmp_path):
  with pytest.raises(InputError, match="no results of a table"):
    report.write(str(tmp_path), str(tmp_path / "report"))


def program(name, *arguments):
  done = subprocess.run(
    [sys.executable, "-m", f"delf_jax.{name}", *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


def test_a_row_from_the_command_line(tmp_path):
  arguments = [
    "--config=configs/tables/table3.py:small",
    f"--output={tmp_path}/results",
    "--config.features.max_features=150",
    "--config.candidates=5",
    "--config.index.kind=exact",
    "--config.dataset.distractors=2",
    f"--config.dataset.options={(*SIZES, 'distractors=2')}",
  ]
  status, printed, wrong = program(
    "evaluate",
    *arguments,
    "--config.features.kind=rootsift",
    "--config.expansion.neighbours=0",
  )
  assert status == 0, wrong
  assert "delf_l2 (synthetic-2): R@90" in printed
  assert "12 of 12 measurements" in printed
  status, printed, wrong = program(
    "evaluate", *arguments, "--config.features.kind=delf"
  )
  assert status == 1
  assert "lift (synthetic-2) skipped: needs the checkpoint 'lift'" in printed
  assert "congas (synthetic-2) skipped: give a training run" in printed
  assert "selected (synthetic-2) skipped: needs the checkpoint" in printed
  assert "dir (synthetic-2) skipped: needs the checkpoint 'dir'" in printed
  assert "delf_l2 (synthetic-2) skipped: needs the checkpoint 'lc'" in printed
  assert printed.count("skipped: needs the checkpoint 'lc'") == 1
  assert "5 more skipped for the same reasons" in printed
  assert "0 of 12 measurements" in printed
  status, _, wrong = program(
    "report", f"--results={tmp_path}/results", f"--output={tmp_path}/report"
  )
  assert status == 0, wrong
  assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["table3.py:lift"], "needs the checkpoint 'lift'"),
    (["table9.py:all"], "table9.py"),
    (["table1.py:pca40", "--config.index.colour=red"], "index.kind"),
    (["table1.py:pca40", "--photos=x"], "--photos is not for --config"),
  ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path):
  status, _, wrong = program(
    "evaluate",
    f"--config=configs/tables/{arguments[0]}",
    *arguments[1:],
    f"--output={tmp_path}",
  )
  assert status == 1
  assert wrong.startswith("error: ") and wrong.count("\n") == 1
  assert message in wrong


def test_flags_of_the_other_form(tmp_path):
  status, _, wrong = program("evaluate", "--sweep", f"--output={tmp_path}")
  assert status == 1 and "--sweep needs --config" in wrong
  status, _, wrong = program("evaluate", "--photos=x")
  assert status == 1
  assert "--ground_truth must be given" in wrong
