"""Training classes that show what an evaluation set shows, by RootSIFT."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from delf_jax import find_overlap
from delf_jax.data import class_selection, landmarks, synthetic
from delf_jax.errors import InputError


def write(root, name, landmark, views):
  folder = root / name
  folder.mkdir(parents=True)
  for view in views:
    picture = synthetic.render_view(0, landmark, view, clutter=False)
    data = synthetic.encode_jpeg(picture.pixels)
    (folder / f"view_{view}.jpg").write_bytes(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Classes of four landmarks, two of which the evaluation shows as well."""
  root = tmp_path_factory.mktemp("world")
  for landmark, name in enumerate(["arch", "bridge", "Köln, Dom", "tower"]):
    write(root / "train", name, landmark, range(3))
  write(root / "evaluation", "seen", 1, range(10, 13))
  write(root / "evaluation", "seen too", 2, range(10, 13))
  write(root / "evaluation", "new", 30, range(3))
  Image.new("RGB", (8, 8)).save(root / "train" / "arch" / "blank.png")
  (root / "train" / "arch" / "a broken.jpg").write_bytes(b"\xff\xd8\xff")
  (root / "evaluation" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
  return root


def run(world, output, *arguments, status=0):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "delf_jax.find_overlap"),
      *(f"--photos={world}/train", f"--evaluation={world}/evaluation"),
      *(f"--output={output}", *arguments),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == status, done.stderr
  return done.stderr if status else done.stdout


@pytest.fixture(scope="module")
def searched(world):
  output = world / "classes.txt"
  return output, run(world, output)


def test_the_classes_that_both_show_are_found(world, searched):
  output, printed = searched
  assert class_selection.read_class_names(output) == ["Köln, Dom", "bridge"]
  assert "2 of 4 classes overlap" in printed
  assert "skipped 'arch/a broken.jpg'" in printed and "1 skipped" in printed
  for line, train, evaluation in zip(
    output.read_text().splitlines()[1:],
    ["Köln, Dom/view", "bridge/view"],
    ["seen too/view", "seen/view"],
    strict=True,
  ):
    evidence = line.partition("\t# ")[2]
    assert evidence.startswith(train) and evaluation in evidence
    assert evidence.endswith("inliers")
  dataset = landmarks.open_dataset(
    "folder", world / "train", exclude=str(output)
  )
  assert dataset.names == ("arch", "tower")


def test_a_stopped_search_continues(world, searched, tmp_path):
  output, _ = searched
  log = world / "classes.txt.work" / "searched.jsonl"
  whole = log.read_text()
  first, second, third, *_ = whole.splitlines()
  # Killed in the middle of the third line; of the two before, the evidence of
  # the first is changed, to see that it is not searched for again.
  entry = {**json.loads(second), "match": ["seen/changed.jpg", 99]}
  log.write_text("\n".join([first, json.dumps(entry), third[:9]]))
  dataset = landmarks.open_dataset(
    "folder", world / "train", min_photographs=1, validation_share=0
  )
  found = find_overlap.find_overlap(
    dataset, world / "evaluation", log.parent, workers=1
  )
  names = [overlap.name for overlap in found.overlaps]
  changed = [o for o in found.overlaps if o.evaluation == "seen/changed.jpg"]
  assert len(changed) == 1 and changed[0].inliers == 99
  assert sorted({*names, "Köln, Dom", "bridge"}) == sorted(names)
  log.write_text(whole)
  again = find_overlap.find_overlap(dataset, world / "evaluation", log.parent)
  find_overlap.write_classes(
    tmp_path / "again.txt", again.overlaps, title="other"
  )
  assert (tmp_path / "again.txt").read_text().splitlines()[1:] == (
    output.read_text().splitlines()[1:]
  )
  assert log.read_text() == whole
  fewer = dataclasses.replace(dataset, names=("a", "b", "c", "d"))
  with pytest.raises(InputError, match="other photographs or .* --output"):
    find_overlap.find_overlap(fewer, world / "evaluation", log.parent)


def test_some_photographs_of_a_table(world, tmp_path):
  table = tmp_path / "list.csv"
  table.write_text(
    "path,place,cluster\n"
    "arch/view_0.jpg,old,0\n"
    "bridge/view_0.jpg,new,0\n"
    "bridge/view_1.jpg,new,0\n"
    "bridge/view_2.jpg,new,0\n"
  )
  output = tmp_path / "classes.txt"
  printed = run(
    world,
    output,
    "--dataset=table",
    f"--option=table={table}",
    '--option=label_columns=["place", "cluster"]',
    "--per_class=1",
  )
  assert "2 photographs searched for" in printed
  assert set(class_selection.read_class_names(output)) <= {"new/0"}


def test_all_classes_take_turns():
  labels = np.array([1, 1, 0, 1, 2, 0])
  assert find_overlap._in_turns(labels, 0).tolist() == [2, 0, 4, 5, 1, 3]
  assert find_overlap._in_turns(labels, 2).tolist() == [2, 0, 4, 5, 1]


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--option=table"], "option 'table': expected name=value"),
    (["--evaluation=/nowhere"], "/nowhere"),
  ],
)
def test_a_mistake_is_one_line(world, tmp_path, arguments, message):
  printed = run(world, tmp_path / "x.txt", *arguments, status=1)
  assert printed.startswith("error: ") and message in printed
  assert printed.count("\n") == 1
