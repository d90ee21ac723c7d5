"""Global descriptors as a user runs them: a process a program."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax import checkpoint
from delf_jax.data import retrieval_sets
from delf_jax.models.normalisation import NORMALISATIONS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A checkpoint with random weights."""
  directory = tmp_path_factory.mktemp("run") / "model"
  network = checkpoint.build_network(
    units=(1, 1, 1),
    width=8,
    num_classes=0,
    backbone="vgg",
    feature_stage="conv3",
    descriptor={"pooling": "gem"},
  )
  checkpoint.save_model(
    directory,
    network=network,
    variables=network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))),
    normalisation=NORMALISATIONS["imagenet"],
    reduction=None,
    extraction={"sides": (96,)},
    provenance={},
  )
  return directory


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
  return retrieval_sets.open_set(
    "synthetic",
    tmp_path_factory.mktemp("world"),
    num_landmarks=3,
    views=3,
    queries=1,
    clutter=2,
    distractors=2,
  )


def program(name, *arguments, status=0):
  done = subprocess.run(
    [sys.executable, "-m", f"delf_jax.{name}", *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == status, done.stderr
  return done.stderr if status else done.stdout


def test_a_user_measures_them(run, benchmark, tmp_path):
  truth = {
    "queries": [
      {"query": query.path, "easy": sorted(query.easy), "hard": [], "junk": []}
      for query in benchmark.truth.queries
    ]
  }
  (tmp_path / "truth.json").write_text(json.dumps(truth))
  arguments = [
    f"--photos={benchmark.root}",
    f"--ground_truth={tmp_path}/truth.json",
    f"--features={run}",
    f"--output={tmp_path}/results",
    "--sides=64,96",
  ]
  printed = program("evaluate", *arguments, "--expansion=2", "--alpha=3")
  assert "mAP_medium" in printed and "0 distractor queries" in printed
  result = json.loads((tmp_path / "results" / "metrics.json").read_text())
  settings = result["settings"]
  assert (settings["expansion"], settings["alpha"]) == (2, 3.0)
  assert settings["sides"] == [64, 96]
  wrong = program("evaluate", *arguments, "--candidates=5", status=1)
  assert "--candidates is of local features" in wrong
  arguments[2] = "--features=sift"
  wrong = program("evaluate", *arguments[:4], "--alpha=1", status=1)
  assert "--alpha is of global descriptors" in wrong
  wrong = program(
    "evaluate",
    *arguments[:4],
    "--expansion=1",
    "--score_by=inliers",
    status=1,
  )
  assert "not by --score_by=inliers" in wrong


@pytest.mark.slow
def test_a_user_looks_a_photograph_up(run, benchmark, tmp_path):
  program(
    "extract",
    f"--photos={benchmark.root}",
    f"--features={run}",
    f"--output={tmp_path}/store",
    "--dtype=float32",
  )
  program(
    "build_index",
    f"--store={tmp_path}/store",
    "--kind=exact",
    f"--output={tmp_path}/index",
  )
  photo = f"{benchmark.root}/{benchmark.database[0]}"
  arguments = [f"--index={tmp_path}/index", f"--photo={photo}"]
  lines = program("query", *arguments, "--most=3").splitlines()
  assert len(lines) == 3
  found = [line.split("  similarity ") for line in lines]
  paths = [path for path, _ in found]
  assert benchmark.database[0] not in paths
  similar = [float(similarity) for _, similarity in found]
  assert similar == sorted(similar, reverse=True)
  other = f"{benchmark.root}/{paths[0]}"
  pair = [f"--photo={photo}", f"--against={other}", f"--features={run}"]
  (one,) = program("query", *pair).splitlines()
  np.testing.assert_allclose(float(one.split()[-1]), similar[0], atol=2e-4)
  asked = program("query", *arguments, "--json", "--expansion=1")
  assert json.loads(asked)["similar"][0]["path"] == paths[0]
  wrong = program("query", *arguments, f"--report={tmp_path}/r", status=1)
  assert "--report does not apply to global descriptors" in wrong
