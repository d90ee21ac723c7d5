"""Shows the whole system at work and leaves a report to look at.

  python -m delf_jax.demo
  python -m delf_jax.demo --photos DIR
  python -m delf_jax.demo --train

Without --photos: makes synthetic landmarks, and lets the network that comes
with the package and RootSIFT find them among clutter and with distractor
queries. With --photos: indexes your folder with both and searches with a few
of its photographs, each left out of its own search. --train also trains a
network, from scratch, on other synthetic landmarks, as a third. Every step is a
program of its own, printed as you would type it.
"""

import json
import os
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from delf_jax import (
  checkpoint,
  database,
  extractors,
  html_report,
  match_score,
  presentation,
  program,
  retrieval,
)
from delf_jax.data import folder, synthetic, synthetic_folder
from delf_jax.errors import InputError
from delf_jax.evaluation import protocols
from delf_jax.pictures import drawing, precision_plots

CONFIG = Path(__file__).parent.parent / "configs" / "synthetic.py"
VARIANT = "small"
SYSTEMS = {checkpoint.DEFAULT: checkpoint.DEFAULT, "RootSIFT": "rootsift"}
# Drawings are no photographs: the network that comes with the package has a
# calibration of its own for them.
DRAWINGS = {
  checkpoint.DEFAULT: checkpoint.find_model(checkpoint.DEFAULT)
  / "drawings.json"
}
# What --train makes, and the directory of its run.
TRAINED, RUN = "trained now", "run"
# None of these landmarks is among the first twenty, which are trained on.
FIRST_UNSEEN = 1000
UNSEEN, VIEWS, CLUTTER, DISTRACTORS = 15, 6, 30, 30
FIGURES = {
  "mAP_medium": "mAP, easy and hard",
  "mAP_hard": "mAP, hard",
  "mP@1": "mean precision at 1",
  "R@90": "recall at 90 % precision",
  "R@95": "recall at 95 % precision",
}


def run_program(name: str, **values: object) -> None:
  """Runs `python -m delf_jax.NAME` with flags, and shows the command.

  Raises:
    InputError: if it fails; it has said why.
  """
  arguments = [f"--{flag}={value}" for flag, value in values.items()]
  print(f"\n$ python -m delf_jax.{name} {shlex.join(arguments)}", flush=True)
  status = subprocess.run(
    [sys.executable, "-m", f"delf_jax.{name}", *arguments], check=False
  ).returncode
  if status:
    raise InputError(f"the demo stopped: delf_jax.{name} ended with {status}")


def build_databases(
  systems: Mapping[str, str], photos: str, output: Path, max_side: int
) -> None:
  """Extracts and indexes a folder with every system."""
  for name, features in systems.items():
    directory = output / name.replace(" ", "_")
    run_program(
      "extract",
      photos=photos,
      features=features,
      max_side=max_side,
      output=directory / "features",
    )
    run_program(
      "build_index",
      store=directory / "features",
      kind="exact" if features in extractors.HANDCRAFTED else "graph",
      output=directory / "index",
    )


def measure(
  systems: Mapping[str, str], output: Path, data: Path
) -> list[html_report.Section]:
  """Evaluates every system; returns the table and the curves."""
  results, curves = {}, {}
  truth = protocols.read_ground_truth(data / "ground_truth.json")
  for name, features in systems.items():
    directory = output / name.replace(" ", "_")
    fitted = {"calibration": DRAWINGS[name]} if name in DRAWINGS else {}
    run_program(
      "evaluate",
      photos=data / "photos",
      ground_truth=data / "ground_truth.json",
      distractors=data / "distractors",
      features=features,
      max_side=max(synthetic.SIZE),
      output=directory,
      **fitted,
    )
    results[name] = json.loads((directory / "metrics.json").read_text())
    rankings = json.loads((directory / "rankings.json").read_text())
    curves[name] = protocols.evaluate(
      truth, rankings["queries"], rankings["distractors"]
    )["curve"]
  without = {
    name: found["without_expansion"] for name, found in results.items()
  }
  rows = [
    [f"{label}{also}", *(numbers[name][key] for name in systems)]
    for numbers, also in ((results, ""), (without, ", no expansion"))
    for key, label in FIGURES.items()
  ]
  print(f"\n{'':40}" + "".join(f"{name:>12}" for name in systems))
  for label, *figures in rows:
    print(f"{label:40}" + "".join(f"{figure:12.1f}" for figure in figures))
  counts = next(iter(results.values()))
  table = html_report.Table(
    header=["in percent", *systems],
    rows=rows,
    caption=f"{counts['num_queries']} queries and "
    f"{counts['num_distractors']} distractor queries over "
    f"{counts['settings']['photographs']} photographs. With expansion, what "
    "a query finds is asked again.",
    mark_best=True,
  )
  plot = html_report.Picture(
    precision_plots.plot(curves)[0],
    "Precision against recall of both systems",
    name="precision-recall",
    narrow=True,
  )
  return [html_report.Section("How well they find", [table, plot])]


def show_queries(
  systems: Mapping[str, str],
  output: Path,
  photos: Sequence[str | os.PathLike],
  calibrations: Mapping[str, Path],
) -> list[html_report.Section]:
  """Searches with a few photographs and draws what every system finds."""
  sections = []
  for name in systems:
    opened = database.open_database(output / name.replace(" ", "_") / "index")
    options = {}
    if name in calibrations:
      options["calibration"] = match_score.read_calibration(calibrations[name])
    print(f"\n{name}:")
    sections.append(html_report.Section(f"What {name} finds", []))
    for photo in photos:
      try:
        photograph, matches = opened.search(photo, **options)
      except InputError as error:
        print(f"skipped {error}")
        continue
      accepted = retrieval.accept(matches)
      shown = drawing.visible(os.path.relpath(photo))
      found = "no match"
      if accepted:
        best = accepted[0]
        found = (
          f"{drawing.visible(best.path)}, {best.inlier_count} inliers, "
          f"probability {best.probability:.3f}"
        )
      print(f"  {shown} -> {found}")
      sections += presentation.query_sections(
        os.path.relpath(photo, output),
        photograph,
        matches,
        opened.photos,
        most=2,
      )
  return sections


def pick_queries(photos: str, count: int = 5) -> list[Path]:
  """Picks photographs spread evenly over a folder."""
  paths = folder.list_photographs(photos).paths
  picks = np.linspace(0, len(paths) - 1, min(count, len(paths)))
  return [Path(photos) / paths[round(pick)] for pick in picks]


def main() -> int:
  """Runs the demo."""
  start = time.perf_counter()
  values = flags.FLAGS
  output = Path(values.output)
  own = values.photos
  if own:
    folder.list_photographs(own)  # says now what would fail in minutes
  data, run = output / "data", output / RUN
  systems = dict(SYSTEMS)
  if values.train:
    run_program(
      "train",
      config=f"{os.path.relpath(CONFIG)}:{VARIANT}",
      **{"config.dataset.path": output / "training_data"},
      workdir=run,
    )
    systems[TRAINED] = os.fspath(run)
  if own:
    # A place for each folder, beside what was made of others.
    output /= f"own-{zlib.crc32(os.fsencode(os.path.abspath(own))):08x}"
    build_databases(systems, own, output, extractors.MAX_SIDE)
    measured = []
    queries = pick_queries(own)
  else:
    print("making landmarks that were not trained on ...", flush=True)
    synthetic_folder.write_folder(
      data,
      seed=0,
      num_landmarks=UNSEEN,
      views=VIEWS,
      first_landmark=FIRST_UNSEEN,
      clutter=CLUTTER,
      distractors=DISTRACTORS,
    )
    build_databases(systems, str(data / "photos"), output, max(synthetic.SIZE))
    measured = measure(systems, output, data)
    truth = protocols.read_ground_truth(data / "ground_truth.json")
    queries = [data / "photos" / query.path for query in truth.queries[:30:10]]
    queries += pick_queries(str(data / "distractors"), 1)
  page = html_report.write_report(
    output / "report",
    title="delf_jax: what it finds",
    lead="Each query is compared with every other photograph. Lines join local "
    "features that one affine transform brings into place.",
    sections=measured
    + show_queries(systems, output, queries, {} if own else DRAWINGS),
  )
  print(f"\ndone in {program.elapsed(start)}; look at {page}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("photos", None, "search a folder of your own.")
  flags.DEFINE_boolean("train", False, "train a network as well.")
  flags.DEFINE_string("output", "demo_output", "directory of all results.")
  program.run(main)
