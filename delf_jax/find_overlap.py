r"""Finds training classes that show what an evaluation set shows.

  python -m delf_jax.find_overlap --photos TRAIN_DIR --evaluation EVAL_DIR \
    --output classes.txt

A network that was trained on the landmarks of its evaluation measures too well.
This searches the evaluation photographs, indexed with RootSIFT, for every
training photograph, until each class has a geometrically verified match or no
photograph left. The classes with a match are written to --output, one a line
with its evidence; the option `exclude` of a training data set takes the file:
--config.dataset.exclude=classes.txt. Look at the evidence: a match may be a
logo or a frame that both photographs wear.

TRAIN_DIR is a folder with one folder a landmark, or any other data set:

  --dataset table --option table=manifest.csv --option 'label_columns=["place"]'

where a value is JSON, or else taken as text. classes.txt.work holds the index
and the progress, so that the same command continues a search that was stopped;
it may be removed afterwards.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from delf_jax import (
  database,
  extraction,
  extractors,
  index,
  options,
  program,
  progress,
  retrieval,
  whole_files,
)
from delf_jax.data import class_selection, landmarks
from delf_jax.data.photographs import decode_photograph
from delf_jax.errors import InputError
from delf_jax.features import store
from delf_jax.pictures import drawing

# With more descriptors than this, a graph is worth its building.
MOST_EXACT = 500_000
# Photographs that are verified: what shows the same place gets many votes.
CANDIDATES = 20
# Stricter than a query: of the thousands of photographs of a class, one match
# is enough to leave the class out.
MIN_PROBABILITY = 0.95


@dataclasses.dataclass(frozen=True)
class Overlap:
  """A training class that shows a place of the evaluation set.

  Attributes:
    name: of the class.
    photo: the training photograph.
    evaluation: the evaluation photograph that it matches.
    inliers: of the match.
  """

  name: str
  photo: str
  evaluation: str
  inliers: int


@dataclasses.dataclass(frozen=True)
class Found:
  """What a search came to.

  Attributes:
    overlaps: at most one a class, sorted by its name.
    searched: how many training photographs were searched for.
    problems: (photograph, reason) of those that could not be used.
  """

  overlaps: tuple[Overlap, ...]
  searched: int
  problems: tuple[tuple[str, str], ...]


def find_overlap(
  dataset: landmarks.Dataset,
  evaluation: str | os.PathLike[str],
  work: str | os.PathLike[str],
  *,
  per_class: int = 0,
  max_side: int = extractors.MAX_SIDE,
  min_probability: float = MIN_PROBABILITY,
  workers: int | None = None,
) -> Found:
  """Searches an evaluation set for the photographs of a training set.

  Args:
    dataset: the training set; its validation photographs are searched for too.
    evaluation: a folder of photographs.
    work: a directory for the index and the progress; a search that was stopped
      continues there.
    per_class: photographs that are tried of a class; 0 for all. A class that
      has a match is not tried further.
    max_side: photographs are reduced to this longest side first.
    min_probability: less probable ones are no match.
    workers: photographs extracted at a time; see `extraction.in_order`.

  Raises:
    InputError: if `evaluation` holds no photograph, or `work` another search.
  """
  work = Path(work)
  extractor = extractors.open_extractor("rootsift", max_side=max_side)
  places = _index(extractor, evaluation, work, workers)
  labels = np.concatenate([dataset.train.labels, dataset.validation.labels])
  log = work / "searched.jsonl"
  entries = _continue(
    log,
    {
      "classes": _fingerprint(dataset, labels),
      "evaluation": index.read_meta(work / "index")["provenance"],
      "max_side": max_side,
      "min_probability": min_probability,
    },
  )
  done = {entry["position"] for entry in entries}
  found = {
    int(labels[entry["position"]]) for entry in entries if entry.get("match")
  }
  turns = _in_turns(labels, per_class)

  def pending(bar):
    for position in turns.tolist():
      if position in done or int(labels[position]) in found:
        bar.update()
      else:
        yield position

  def extract(position):
    split, i = dataset.train, position
    if i >= len(split):
      split, i = dataset.validation, i - len(split)
    example = split[i]
    name = example["name"]
    try:
      photograph = decode_photograph(
        example["image"], name=name, max_side=max_side
      )
    except InputError as error:
      return name, None, str(error)
    return name, photograph, extractor.extract(photograph)

  with (
    open(log, "a", encoding="utf-8") as file,
    progress.bar(label="search", unit="photograph", total=len(turns)) as bar,
  ):
    for position, (name, photograph, result) in extraction.in_order(
      extract, pending(bar), workers
    ):
      bar.update()
      label = int(labels[position])
      if label in found:
        continue
      entry = {"position": position, "photo": name}
      if photograph is None:
        entry["problem"] = result
      else:
        matches = retrieval.search(
          result,
          (photograph.height, photograph.width),
          places,
          candidates=CANDIDATES,
        )
        accepted = retrieval.accept(matches, min_probability=min_probability)
        if accepted:
          found.add(label)
          entry["match"] = [accepted[0].path, accepted[0].inlier_count]
      entries.append(entry)
      file.write(json.dumps(entry) + "\n")
      file.flush()
  overlaps = [
    Overlap(
      dataset.names[labels[entry["position"]]], entry["photo"], *entry["match"]
    )
    for entry in entries
    if "match" in entry
  ]
  return Found(
    overlaps=tuple(sorted(overlaps, key=lambda overlap: overlap.name)),
    searched=len(entries),
    problems=tuple(
      (entry["photo"], entry["problem"])
      for entry in entries
      if "problem" in entry
    ),
  )


def write_classes(
  path: str | os.PathLike[str], overlaps: tuple[Overlap, ...], *, title: str
) -> None:
  """Writes classes as `class_selection.read_class_names` reads them.

  Raises:
    InputError: if the file cannot be written.
  """
  lines = [f"# {drawing.visible(title)}"]
  for overlap in overlaps:
    evidence = (
      f"{overlap.photo} shows what {overlap.evaluation} shows: "
      f"{overlap.inliers} inliers"
    )
    lines.append(
      class_selection.class_line(overlap.name, drawing.visible(evidence))
    )
  whole_files.write_file(path, ("\n".join(lines) + "\n").encode())


def _index(
  extractor: extractors.Extractor,
  evaluation: str | os.PathLike[str],
  work: Path,
  workers: int | None,
) -> retrieval.Database:
  """Extracts and indexes the evaluation photographs, or opens what is there."""
  extraction.extract_folder(
    extractor, evaluation, work / "features", workers=workers
  )
  opened = store.open_store(work / "features")
  provenance = database.provenance(opened)
  built = None
  if (work / "index").exists():
    if index.read_meta(work / "index")["provenance"] == provenance:
      built = index.open_index(work / "index")
  if built is None:
    descriptors = opened.descriptors()
    if not len(descriptors):
      raise InputError(
        f"the photographs under {os.fspath(evaluation)!r} have no features; "
        "give the photographs of the evaluation"
      )
    kind = "exact" if len(descriptors) <= MOST_EXACT else "graph"
    built = index.build_index(kind, descriptors)
    built.save(work / "index", provenance=provenance)
  return database.connect(opened, built)


def _fingerprint(dataset: landmarks.Dataset, labels: np.ndarray) -> str:
  """Tells one training set from another."""
  text = json.dumps([len(dataset.train), *dataset.names]).encode()
  return hashlib.sha256(text + labels.tobytes()).hexdigest()


def _in_turns(labels: np.ndarray, per_class: int) -> np.ndarray:
  """Orders photographs so that all classes get a turn before any a second."""
  order = np.argsort(labels, kind="stable")
  ordered = labels[order]
  ranks = np.empty(len(labels), np.int64)
  ranks[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
  turns = np.lexsort([labels, ranks])
  return turns[ranks[turns] < per_class] if per_class else turns


def _continue(log: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns what an earlier run wrote into its log, or begins one.

  Raises:
    InputError: if it is the log of another search.
  """
  header = json.dumps(settings)
  if not log.exists():
    whole_files.write_file(log, (header + "\n").encode())
    return []
  first, *lines = log.read_text(encoding="utf-8").split("\n")
  if first != header:
    raise InputError(
      f"{os.fspath(log.parent)!r} holds a search of other photographs or with "
      "other options; remove it or choose another --output"
    )
  # A run that was killed may have left half a line; it is cut off.
  whole, half = lines[:-1], lines[-1:]
  if half != [""]:
    whole_files.write_file(
      log, "".join(f"{x}\n" for x in (first, *whole)).encode()
    )
  return [json.loads(line) for line in whole]


def main() -> int:
  """Searches as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  # Every class counts, however small, and every photograph of it.
  described = {
    "min_photographs": 1,
    "validation_share": 0,
    **options.parse_options(values.option),
  }
  dataset = landmarks.open_dataset(values.dataset, values.photos, **described)
  print(dataset.summary())
  found = find_overlap(
    dataset,
    values.evaluation,
    f"{values.output}.work",
    per_class=values.per_class,
    max_side=values.max_side,
    min_probability=values.min_probability,
    workers=values.workers,
  )
  for _, reason in found.problems:
    print(f"skipped {reason}")
  write_classes(
    values.output,
    found.overlaps,
    title=f"classes of {dataset.title} that overlap {values.evaluation}",
  )
  print(
    f"{values.output}: {len(found.overlaps)} of {len(dataset.names)} classes "
    f"overlap; {found.searched} photographs searched for, "
    f"{len(found.problems)} skipped in {program.elapsed(start)}"
  )
  return 0


if __name__ == "__main__":
  flags.DEFINE_string(
    "photos", None, "the training photographs, a folder.", required=True
  )
  flags.DEFINE_string(
    "evaluation", None, "the evaluation photographs, a folder.", required=True
  )
  flags.DEFINE_string("output", None, "the file of classes.", required=True)
  flags.DEFINE_enum(
    "dataset",
    "folder",
    [kind for kind in landmarks.KINDS if kind != "synthetic"],
    "kind of training data set.",
  )
  flags.DEFINE_multi_string(
    "option", [], "name=value, of the kind of data set; may be repeated."
  )
  flags.DEFINE_integer(
    "per_class", 0, "photographs tried of each class; 0: all.", lower_bound=0
  )
  flags.DEFINE_integer(
    "max_side",
    extractors.MAX_SIDE,
    "photographs are reduced to this longest side, in pixels, first.",
    lower_bound=64,
  )
  flags.DEFINE_float(
    "min_probability",
    MIN_PROBABILITY,
    "less probable matches are none.",
    lower_bound=0.0,
    upper_bound=1.0,
  )
  options.define_workers()
  flags.adopt_module_key_flags(options)
  program.run(main)
