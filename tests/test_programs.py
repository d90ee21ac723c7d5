"""The programs as a user runs them: one process each, RootSIFT for speed."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from delf_jax import checkpoint
from delf_jax.data import synthetic_folder


def run(program, *arguments, status=0):
  """Runs a program; returns what it printed, on stderr if it failed."""
  done = subprocess.run(
    [sys.executable, "-m", f"delf_jax.{program}", *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == status, done.stderr
  return done.stderr if status else done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Synthetic photographs, their RootSIFT store and an exact index."""
  root = tmp_path_factory.mktemp("world")
  synthetic_folder.write_folder(
    root / "data", num_landmarks=4, views=4, clutter=3, distractors=3
  )
  broken = root / "data" / "photos" / "broken.jpg"
  broken.write_bytes(b"\xff\xd8\xff nothing")
  extracted = run(
    "extract",
    f"--photos={root}/data/photos",
    "--features=rootsift",
    f"--output={root}/store",
  )
  assert "19 photographs done, 1 skipped" in extracted
  assert str(broken) in extracted
  run(
    "build_index",
    f"--store={root}/store",
    "--kind=exact",
    f"--output={root}/index",
  )
  return root


def easiest_query(world):
  truth = json.loads((world / "data" / "ground_truth.json").read_text())
  return max(truth["queries"], key=lambda query: len(query["easy"]))


def test_query_finds_other_views_and_writes_a_report(world, tmp_path):
  query = easiest_query(world)
  photo = world / "data" / "photos" / query["query"]
  printed = run(
    "query",
    f"--index={world}/index",
    f"--photo={photo}",
    f"--report={tmp_path}/report",
  )
  first = printed.splitlines()[0]
  assert first.split()[0] in query["easy"] + query["hard"]
  assert "inliers" in first and "probability" in first
  assert query["query"] not in first
  page = (tmp_path / "report" / "index.html").read_text()
  assert first.split()[0] in page
  assert len(list((tmp_path / "report").glob("*.png"))) >= 2


def test_query_as_json_and_silence(world):
  photo = world / "data" / "photos" / easiest_query(world)["query"]
  arguments = [f"--index={world}/index", f"--photo={photo}", "--json"]
  found = json.loads(run("query", *arguments))
  best = found["matches"][0]
  assert best["inliers"] > 2 * best["expected_by_chance"] > 0
  assert best["via"] == []
  assert 0 < best["probability"] <= 1
  assert np.shape(best["transform"]) == (3, 3)
  silent = json.loads(run("query", *arguments, "--min_probability=1"))
  assert silent["matches"] == [] and silent["best_rejected"]["inliers"] > 0
  distractor = next((world / "data" / "distractors").glob("clutter*"))
  arguments = [f"--index={world}/index", f"--photo={distractor}"]
  assert run("query", *arguments, "--min_probability=1") == "no match\n"


def test_two_photographs_without_an_index(world, tmp_path):
  query = easiest_query(world)
  photos = world / "data" / "photos"
  one, other = photos / query["query"], photos / query["easy"][0]
  arguments = (f"--photo={one}", f"--against={other}", "--features=rootsift")
  printed = run("query", *arguments, f"--report={tmp_path}/report")
  assert printed.startswith(f"{other}  probability ")
  assert other.name in (tmp_path / "report" / "index.html").read_text()
  found = json.loads(run("query", *arguments, "--json", "--model=homography"))
  assert found["matches"][0]["path"] == str(other)
  clutter = next((world / "data" / "distractors").glob("clutter*"))
  arguments = (f"--photo={one}", f"--against={clutter}", "--features=rootsift")
  other = json.loads(run("query", *arguments, "--json"))["best_rejected"]
  assert other["probability"] < found["matches"][0]["probability"]


def test_the_network_of_the_package_is_the_default(world):
  query = easiest_query(world)
  photos = world / "data" / "photos"
  arguments = (
    f"--photo={photos / query['query']}",
    f"--against={photos / query['easy'][0]}",
    "--json",
  )
  found = run("query", *arguments)
  assert found == run("query", *arguments, f"--features={checkpoint.DEFAULT}")
  assert len(json.loads(found)["matches"]) == 1


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--photo=a.jpg"], "give either --index"),
    (["--photo=a.jpg", "--index=i", "--against=b.jpg"], "give either --index"),
    (["--photo=a.jpg", "--against=b.jpg"], "'a.jpg'"),
    (
      ["--photo=a.jpg", "--against=b.jpg", "--store=s"],
      "--store is an option of a search",
    ),
    (
      ["--photo=a.jpg", "--index=i", "--max_features=3"],
      "--max_features does not apply",
    ),
    (
      ["--photo=a.jpg", "--index=i", "--sampling=exhaustive", "--seed=3"],
      "--seed does not apply",
    ),
    (
      ["--photo=a.jpg", "--index=i", "--calibration=/nowhere"],
      "calibration '/nowhere' cannot be read",
    ),
  ],
)
def test_an_option_that_does_not_apply_is_refused(arguments, message):
  printed = run("query", *arguments, status=1)
  assert printed.startswith("error: ") and message in printed
  assert printed.count("\n") == 1


def test_evaluate_writes_what_it_promises(world, tmp_path):
  printed = run(
    "evaluate",
    f"--photos={world}/data/photos",
    f"--ground_truth={world}/data/ground_truth.json",
    f"--distractors={world}/data/distractors",
    "--features=rootsift",
    f"--output={tmp_path}",
  )
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  for key in ("mAP_medium", "mAP_hard", "mP@1", "mP@5", "mP@10", "R@90"):
    assert metrics[key] is None or 0 <= metrics[key] <= 100
  assert metrics["mAP_medium"] > 20
  assert (metrics["num_queries"], metrics["num_distractors"]) == (8, 3)
  assert metrics["settings"]["counting"] == "one_to_one"
  assert (tmp_path / "precision_recall.png").stat().st_size > 1000
  assert "mAP_medium" in printed and "broken.jpg" in printed


def test_strict_makes_a_skip_an_error(world, tmp_path):
  run(
    "extract",
    f"--photos={world}/data/photos",
    "--features=rootsift",
    f"--output={tmp_path}/store",
    "--strict",
    status=1,
  )


@pytest.mark.parametrize(
  ("program", "arguments", "message"),
  [
    ("extract", ["--photos=/nowhere"], "--output"),
    (
      "build_index",
      ["stray", "--store=/nowhere", "--output=/tmp/none"],
      "unexpected argument 'stray'",
    ),
    ("extract", ["--photos=x", "--output=y", "--features=z"], "z: no such"),
    ("build_index", ["--store=/nowhere", "--output=/tmp/none"], "/nowhere"),
    ("query", ["--index=/nowhere", "--photo=x.jpg"], "/nowhere"),
    ("train", ["--workdir=/tmp/none"], "config"),
  ],
)
def test_a_mistake_is_one_line(program, arguments, message):
  status = 2 if message in ("--output", "config") else 1
  printed = run(program, *arguments, status=status)
  assert printed.startswith("error: ") and message in printed
  assert printed.count("\n") == 1


def test_an_index_and_a_store_that_do_not_belong_together(world, tmp_path):
  photos = tmp_path / "photos"
  shutil.copytree(world / "data" / "distractors", photos)
  run(
    "extract",
    f"--photos={photos}",
    "--features=rootsift",
    f"--output={tmp_path}/store",
  )
  photo = next(photos.iterdir())
  arguments = [f"--index={world}/index", f"--photo={photo}"]
  printed = run("query", *arguments, f"--store={tmp_path}/store", status=1)
  assert "was not built from the store" in printed
  printed = run("query", *arguments, "--store=/nowhere", status=1)
  assert "say where it is with --store" in printed


@pytest.mark.parametrize(
  "program", ["train", "extract", "build_index", "query", "evaluate", "demo"]
)
def test_help_teaches(program):
  printed = run(program, "--help")
  assert f"python -m delf_jax.{program}" in printed
  needed = {"extract": "--features", "query": "--neighbours"}
  assert needed.get(program, "--") in printed
