"""What a config of `configs/tables` asks for.

A table is rows and columns. A row says what differs from `DEFAULTS`, which are
the paper's small-scale system (section 5.1), and a column what its dataset is.
What the command line says counts more than either, so that an ablation needs no
new config.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from delf_jax import extractors, retrieval
from delf_jax.errors import InputError
from delf_jax.features import pyramid

# Every value that a config may set, and what it is where none does.
DEFAULTS: Mapping[str, Any] = {
  # See `data.retrieval_sets`; -1 takes all distractor queries there are.
  "dataset.name": "",
  "dataset.distractors": -1,
  "dataset.seed": 0,
  "dataset.options": (),
  # "delf", "lift", "global", "selected" (by `delf_jax.train_selection`, which
  # says by what score) or one of `extractors.HANDCRAFTED`.
  "features.kind": "delf",
  # A training run, or the name of one of config.checkpoints after an "@".
  "features.checkpoint": "",
  "features.scales": pyramid.SCALES,
  "features.max_features": 1000,
  "features.score": "l2_norm",
  "features.score_threshold": 0.0,
  "features.iou_threshold": 1.0,
  # Dimensions; 0 for no PCA, -1 for that of the checkpoint as it is.
  "features.pca": -1,
  # What a PCA of more dimensions than the checkpoint's is learned on: a folder,
  # or by default the photographs that the checkpoint was trained on.
  "features.pca_photographs": "",
  "features.max_side": extractors.MAX_SIDE,
  # Of global descriptors: longest sides that photographs are brought to; by
  # default what the checkpoint recommends.
  "features.sides": (),
  # Photographs found that are asked again. Of global descriptors: photographs a
  # query is averaged with, the power of their similarity they are weighted by,
  # and photographs of the database that each of it is averaged with.
  "expansion.neighbours": 0,
  "expansion.alpha": 0.0,
  "expansion.database": 0,
  "index.kind": "kd_tree",
  # That a search in the KD-tree visits (T); other kinds have none.
  "index.leaves": 5000,
  # name=value of the kind's `build`.
  "index.options": (),
  # K nearest neighbours of a query descriptor, and photographs verified.
  "neighbours": 32,
  "candidates": 100,
  "verification.votes": "count",
  "verification.matching": "votes",
  "verification.model": "affine",
  "verification.threshold": retrieval.THRESHOLD,
  "verification.num_hypotheses": 3000,
  "verification.sampling": "uniform",
  "verification.error": "one_way",
  "verification.counting": "plain",
  "verification.transforms": "any",
  "verification.score": "inliers",
  "verification.calibration": "",
  "verification.seed": 0,
  # What is tried on training landmarks, and what the best is by.
  "sweep.neighbours": (8, 16, 32, 64, 128),
  "sweep.leaves": (1280, 5000, 10000, 15000),
  "sweep.threshold": (retrieval.THRESHOLD,),
  "sweep.metric": "R@90",
}


@dataclasses.dataclass(frozen=True)
class Column:
  """What one column of a table shows.

  Attributes:
    label: as the paper has it.
    metric: a key of metrics.json; "mAP" is the mean average precision,
      whatever the protocol calls it.
    place: folder of the measurement, within that of the row.
  """

  label: str
  metric: str
  place: str


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A row of a table on one dataset.

  Attributes:
    row: its name.
    title: what the table calls it.
    place: see `Column`.
    columns: that it fills.
    settings: every value of `DEFAULTS` as it is here.
  """

  row: str
  title: str
  place: str
  columns: tuple[Column, ...]
  settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
  """What a config asks for.

  Attributes:
    name: of the table; its results lie in a folder of that name.
    single: whether one row was asked for by name.
    measurements: in order.
    described: all of the table for whoever reads the results, as JSON.
    given: paths of the values that the command line set.
  """

  name: str
  single: bool
  measurements: tuple[Measurement, ...]
  described: Mapping[str, Any]
  given: frozenset[str]


def read_table(
  config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Table:
  """Lists what a config asks for.

  Args:
    config: "table", "title", "variant", "rows" (name, title, what differs, the
      paper's numbers), "columns" and "small" (label, metric, what differs), and
      values of `DEFAULTS`, nested. The variant is "all", "small" or a row, or
      "small," and a row.
    overrides: path -> value, of the command line.

  Raises:
    InputError: if there is no such variant or value.
  """
  structure = ("table", "title", "variant", "rows", "columns", "small")
  changed = sorted({path.partition(".")[0] for path in overrides})
  changed = [name for name in changed if name in structure]
  if changed:
    raise InputError(
      f"config.{changed[0]} is what {config['table']} consists of and stays as "
      f"it is; a row is chosen behind the colon: --config FILE:small,ROW"
    )
  variant = config["variant"]
  small = variant.split(",")[0] == "small"
  wanted = variant.removeprefix("small").removeprefix(",") or "all"
  rows = list(config["rows"])
  names = [name for name, *_ in rows]
  if wanted not in ("all", *names):
    raise InputError(
      f"{config['table']} has no row {variant!r}; expected all, small (on "
      f"synthetic landmarks), one of {', '.join(names)}, or small,ROW"
    )
  base = flatten(
    {key: value for key, value in config.items() if key not in structure}
  )
  known = {**DEFAULTS, **{key: "" for key in base if _is_checkpoint(key)}}

  def measurements(columns) -> list[Measurement]:
    found = []
    for name, title, changes, _ in rows:
      if wanted not in ("all", name):
        continue
      places: dict[str, Measurement] = {}
      for label, metric, dataset in columns:
        if "dataset.name" in overrides:
          # They are of the set that is not used.
          dataset = {**dataset, "dataset.options": ()}
        settings = resolve(known, base, changes, dataset, overrides)
        place = _place(settings)
        earlier = places.get(place)
        before = earlier.columns if earlier else ()
        places[place] = Measurement(
          row=name,
          title=title,
          place=place,
          columns=(*before, Column(label, metric, place)),
          settings=settings,
        )
      found += places.values()
    return found

  def places(columns) -> list[list[str]]:
    return [
      [label, metric, _place(resolve(known, base, dataset, {}))]
      for label, metric, dataset in columns
    ]

  return Table(
    name=config["table"],
    single=wanted != "all",
    measurements=tuple(
      measurements(config["small"] if small else config["columns"])
    ),
    described={
      "title": config["title"],
      "columns": places(config["columns"]),
      "small": places(config["small"]),
      "rows": [[name, title, paper] for name, title, _, paper in rows],
    },
    given=frozenset(overrides),
  )


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
  """Turns {"index": {"kind": "exact"}} into {"index.kind": "exact"}."""
  flat = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      flat |= {f"{key}.{name}": one for name, one in flatten(value).items()}
    else:
      flat[key] = value
  return flat


def resolve(
  known: Mapping[str, Any], *layers: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the known values with those of layers in their place, in order.

  Raises:
    InputError: if a layer sets what does not exist, or to another type.
  """
  settings = dict(known)
  for layer in layers:
    for path, value in flatten(layer).items():
      if path not in known:
        group = path.rpartition(".")[0]
        near = [key for key in known if key.rpartition(".")[0] == group]
        raise InputError(
          f"config has no value {path!r}; there are "
          f"{', '.join(sorted(near or known))}"
        )
      settings[path] = _as_type_of(known[path], value, path)
  return settings


def _as_type_of(default: Any, value: Any, path: str) -> Any:
  if isinstance(default, tuple):
    return tuple(value) if isinstance(value, list | tuple) else (value,)
  if isinstance(default, float) and isinstance(value, int | float):
    return float(value)
  if isinstance(default, str) and isinstance(value, str | int | float):
    return str(value)
  if type(value) is type(default):
    return value
  raise InputError(
    f"config.{path} must be {type(default).__name__}, not {value!r}"
  )


def _is_checkpoint(path: str) -> bool:
  return path.startswith("checkpoints.")


def _place(settings: Mapping[str, Any]) -> str:
  count = settings["dataset.distractors"]
  name = settings["dataset.name"] or "unnamed"
  return f"{name}-{'all' if count < 0 else count}"
