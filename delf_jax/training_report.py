"""The page at the end of training: of one run, or of several side by side."""

import dataclasses
import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delf_jax import html_report, progress
from delf_jax.journal import Record
from delf_jax.pictures import training_pictures
from delf_jax.pictures.training_pictures import Curve, Panel

REPORT = "report"  # where a run keeps its page

_WIDE = 1000  # pictures less wide than this stay in the column of the text

_KINDS = {"train": "training", "validation": "validation"}
_TITLES = {
  "attention_auc": "Attention AUC",
  "data_wait_share": "Time waiting for data",
  "l2_norm_auc": "L2 norm AUC",
  "mAP": "mAP",
}
# Plots of several figures: how the names of these end, or begin.
_SHARED = {
  "Retrieval": ("mAP", "mP@", "R@"),
  "Landmark AUC": ("_auc",),
  "Loss by part": ("_loss",),
  "Accuracy by head": ("_accuracy",),
}
# These plots come first, and others follow.
_FIRST = ("Loss", "Accuracy", *_SHARED)
_CURVES = (
  "Thin lines are the figures as they were recorded, thick ones their running"
  " mean over at most a thirtieth of the stage. Validation is on photographs"
  " that are not trained on."
)
_AUC = (
  "AUC is how often a place on a landmark scores higher than a place that is"
  " not on one."
)
_FIGURES = (
  "What training ends with is the running mean. Training sees random crops, so"
  " its accuracy may be below that of validation."
)
_COMPARED = (
  "What each run ended with, of validation where it has one. More is better,"
  " but of a loss less."
)
_SCORES = (
  "Where the features are strong, and which of them attention keeps, as in"
  " Figure 3 of the paper: photographs that were not trained on, at one scale."
  " A score is shown where the receptive field of its feature has its centre,"
  " and interpolated between these places, over the photograph in grey. The"
  " colours of each map run from its smallest score to the one that"
  f" {training_pictures.TOP_PERCENTILE} % of its features do not exceed; both"
  " are written below it. They compare places of one photograph, not"
  " photographs with each other."
)


@dataclasses.dataclass(frozen=True)
class _Series:
  """The values of one figure in one stage.

  Attributes:
    name: of the figure.
    kind: "train" or "validation".
    steps: [n].
    values: [n] float64, nan where they are not known or not finite.
  """

  name: str
  kind: str
  steps: np.ndarray
  values: np.ndarray

  @property
  def noisy(self) -> bool:
    """Whether it is of single batches, so that only its mean says much."""
    return self.kind == "train" and self.name != "learning_rate"

  @property
  def smooth(self) -> np.ndarray:
    return (
      training_pictures.running_mean(self.values) if self.noisy else self.values
    )

  def final(self) -> float:
    """The last known value, smoothed; nan if there is none."""
    known = self.smooth[np.isfinite(self.values)]
    return float(known[-1]) if known.size else math.nan

  def best(self) -> tuple[float, int] | None:
    """The best value and its first step, if one can be better than another."""
    sign = _direction(self.name)
    if not sign or not np.isfinite(self.values).any():
      return None
    place = int(np.nanargmax(sign * self.values))
    return float(self.values[place]), int(self.steps[place])


def write(
  workdir: str | os.PathLike[str],
  *,
  records: Sequence[Record],
  heat_maps: Iterable[Any] = (),
  title: str,
  lead: str = "",
) -> Path:
  """Writes the page of one run, `report/index.html` in its directory.

  Args:
    workdir: directory of the run.
    records: of `journal.read`; stages come in the order of their first record.
    heat_maps: of `validation.score_maps`.
    title: of the page.
    lead: a paragraph under the title.

  Returns:
    path of the page.

  Raises:
    InputError: if a file cannot be written.
  """
  sections = [
    _stage_section(stage, series) for stage, series in _stages(records).items()
  ]
  if not sections:
    sections.append(
      html_report.Section(
        "Figures",
        [html_report.Notice("No figures", "The run has no records to show.")],
      )
    )
  pictures = [_scores(heat_map) for heat_map in heat_maps]
  if pictures:
    counted = f"{len(pictures)} photograph{'s' * (len(pictures) > 1)}"
    sections.append(
      html_report.Section(
        "Where the scores look",
        [html_report.Paragraph(_SCORES), *pictures],
        aside=counted,
      )
    )
  return _write(workdir, title=title, sections=sections, lead=lead)


def write_sweep(
  workdir: str | os.PathLike[str],
  runs: Mapping[str, Sequence[Record]],
  *,
  title: str = "Runs side by side",
  lead: str = "",
) -> Path:
  """Writes a page that compares runs, `report/index.html` in a directory.

  Compared are the figures of validation or, where a stage has none, those of
  training.

  Args:
    workdir: directory of all the runs.
    runs: name -> records, in the order in which they are shown.
    title: of the page.
    lead: a paragraph under the title.

  Returns:
    path of the page.

  Raises:
    InputError: if a file cannot be written.
  """
  stages: dict[str, dict[str, list[_Series]]] = {}
  for run, records in runs.items():
    for stage, series in _stages(records).items():
      stages.setdefault(stage, {})[run] = series
  numbers = {run: number for number, run in enumerate(runs)}
  sections = [
    _sweep_section(stage, numbers, found) for stage, found in stages.items()
  ]
  if not sections:
    sections.append(
      html_report.Section(
        "Figures",
        [html_report.Notice("No figures", "The runs have no records to show.")],
      )
    )
  return _write(workdir, title=title, sections=sections, lead=lead)


def _write(workdir, *, title, sections, lead) -> Path:
  return Path(
    html_report.write_report(
      Path(workdir) / REPORT, title=title, sections=sections, lead=lead
    )
  )


def _stages(records: Iterable[Record]) -> dict[str, list[_Series]]:
  """Sorts records by stage and figure; repeated figures are left out."""
  points: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
  for record in records:
    stage = points.setdefault(record["stage"], {})
    for name, value in record.items():
      if name in ("stage", "step", "kind"):
        continue
      known = isinstance(value, numbers.Real) and math.isfinite(value)
      stage.setdefault((name, record["kind"]), {})[record["step"]] = (
        float(value) if known else math.nan
      )
  return {
    stage: [
      _Series(
        name,
        kind,
        steps=np.asarray(sorted(values)),
        values=np.asarray([values[step] for step in sorted(values)]),
      )
      for (name, kind), values in figures.items()
      if not _repeats(name, kind, figures)
    ]
    for stage, figures in points.items()
  }


def _repeats(
  name: str, kind: str, figures: Mapping[tuple[str, str], dict[int, float]]
) -> bool:
  """Says whether a figure is of the one head, and so that of the whole."""
  for whole in ("loss", "accuracy"):
    if name.endswith(f"_{whole}"):
      parts = [n for n, k in figures if n.endswith(f"_{whole}") and k == kind]
      return parts == [name] and (
        figures[name, kind] == figures.get((whole, kind))
      )
  return False


def _direction(name: str) -> int:
  """1 if more of a figure is better, -1 if less, 0 if neither."""
  if name.endswith("loss"):
    return -1
  better = progress.is_fraction(name) and name != "data_wait_share"
  return int(better or name.endswith("auc"))


def _words(name: str) -> str:
  words = name.replace("_", " ")
  return _TITLES.get(name) or words[:1].upper() + words[1:]


def _plot_title(name: str) -> str:
  """Returns the title of the plot that a figure is in."""
  for title, marks in _SHARED.items():
    if name.startswith(marks) or name.endswith(marks):
      return title
  return _words(name)


def _label(name: str) -> str:
  """Returns what a figure is called in a plot of several."""
  for mark in ("_auc", "_loss", "_accuracy"):
    name = name.removesuffix(mark)
  return {"l2_norm": "L2 norm"}.get(name, name.replace("_", " "))


def _plots(series: Iterable[_Series]) -> dict[str, list[_Series]]:
  """Sorts series by the plot that they are in, in order."""
  plots: dict[str, list[_Series]] = {title: [] for title in _FIRST}
  for one in series:
    plots.setdefault(_plot_title(one.name), []).append(one)
  return {title: found for title, found in plots.items() if found}


def _stage_section(
  stage: str, series: Sequence[_Series]
) -> html_report.Section:
  """Shows the curves and the figures of one stage."""
  panels = [_panel(title, found) for title, found in _plots(series).items()]
  panels = [panel for panel in panels if panel.curves]
  learning = [panel for panel in panels if panel.curves[0].name]
  running = [panel for panel in panels if not panel.curves[0].name]
  clutter = any(one.name.endswith("_auc") for one in series)
  title = _words(stage)
  blocks: list[html_report.Block] = []
  if learning:
    blocks.append(
      html_report.Picture(
        training_pictures.plot_curves(
          learning, columns=3 if len(learning) == 3 else 2
        ),
        f"{title}: curves of {_listed(learning)} over the steps",
        caption=f"{_CURVES} {_AUC}" if clutter else _CURVES,
        name="curves",
        narrow=len(learning) == 1,
      )
    )
  blocks += _unknown(series)
  blocks.append(_table(series))
  if running:
    blocks.append(
      html_report.Picture(
        training_pictures.plot_curves(running, columns=4),
        f"{title}: curves of {_listed(running)} over the steps",
        name="running",
        narrow=len(running) == 1,
      )
    )
  last = max(int(one.steps[-1]) for one in series) if series else 0
  return html_report.Section(title, blocks, aside=f"{last:,} steps")


def _panel(title: str, series: Sequence[_Series]) -> Panel:
  """Draws training in the first colour, validation in the second."""
  series = [one for one in series if np.isfinite(one.values).any()]
  names = {one.name for one in series}
  kinds = {one.kind for one in series}
  curves = []
  for one in series:
    label = _KINDS.get(one.kind, one.kind)
    if title in _SHARED or len(names) > 1:
      label = _label(one.name) + f", {label}" * (len(kinds) > 1)
    elif title not in _FIRST and kinds == {"train"}:
      label = ""
    colour = int("train" not in kinds) + len(curves)
    curves.append(_curve(one, label, colour))
  percent = all(progress.is_fraction(one.name) for one in series)
  return Panel(title, curves, percent=percent)


def _curve(series: _Series, name: str, colour: int) -> Curve:
  return Curve(
    name,
    series.steps,
    _drawn(series.name, series.values),
    colour=colour,
    noisy=series.noisy,
    marked=series.kind == "validation",
  )


def _listed(panels: Sequence[Panel]) -> str:
  return ", ".join(panel.title.lower() for panel in panels)


def _unknown(series: Iterable[_Series]) -> list[html_report.Block]:
  """Says which figures were not finite, if any."""
  found = []
  for one in series:
    steps = one.steps[~np.isfinite(one.values)]
    if len(steps):
      times = "once" if len(steps) == 1 else f"{len(steps):,} times, first"
      kind = _KINDS.get(one.kind, one.kind)
      found.append(f"{one.name} of {kind}, {times} at step {steps[0]:,}")
  if not found:
    return []
  return [
    html_report.Notice("Gaps", f"Not finite, or not known: {'; '.join(found)}.")
  ]


def _table(series: Sequence[_Series]) -> html_report.Table:
  """Tells what a stage ended with, and how well it ever did."""
  rows = []
  for found in _plots(series).values():
    for name in dict.fromkeys(one.name for one in found):
      of_kind = {one.kind: one for one in found if one.name == name}
      final = {kind: _shown(name, one.final()) for kind, one in of_kind.items()}
      best = "validation" in of_kind and of_kind["validation"].best()
      rows.append(
        (
          _words(name),
          final.get("train"),
          final.get("validation"),
          progress.show_figure(name, best[0]) if best else None,
          f"{best[1]:,}" if best else None,
        )
      )
  return html_report.Table(
    ("", "training, end", "validation, end", "validation, best", "at step"),
    rows,
    caption=_FIGURES,
  )


def _drawn(name: str, values: Sequence[float]) -> np.ndarray:
  """Returns values as plots have them, fractions in percent."""
  return np.asarray(values) * (100 if progress.is_fraction(name) else 1)


def _shown(name: str, value: float) -> str:
  return progress.show_figure(name, value if math.isfinite(value) else None)


def _scores(heat_map: Any) -> html_report.Picture:
  pixels = training_pictures.draw_scores(
    heat_map.pixels,
    heat_map.l2_norm,
    heat_map.attention,
    stride=heat_map.stride,
    mask=heat_map.mask,
    name=heat_map.name,
  )
  return html_report.Picture(
    pixels,
    f"{heat_map.name}: the photograph, the L2 norm of its features and the"
    " attention they get",
    name="scores",
    narrow=pixels.shape[1] < _WIDE,
  )


def _sweep_section(
  stage: str, runs: Mapping[str, int], found: Mapping[str, Sequence[_Series]]
) -> html_report.Section:
  """Compares the runs that have a stage; `runs` numbers their colours."""
  runs = {run: number for run, number in runs.items() if run in found}
  compared: dict[str, dict[str, _Series]] = {}
  for run in runs:
    validated = any(one.kind == "validation" for one in found[run])
    for of_plot in _plots(found[run]).values():
      for one in of_plot:
        if (one.kind == "validation") == validated and _direction(one.name):
          compared.setdefault(one.name, {})[run] = one
  if not compared:
    nothing = html_report.Notice("No figures", "There is nothing to compare.")
    return html_report.Section(_words(stage), [nothing])
  finals = {
    name: [of_runs[run].final() if run in of_runs else math.nan for run in runs]
    for name, of_runs in compared.items()
  }
  titles = {name: _words(name) for name in compared}
  listed = ", ".join(title.lower() for title in titles.values())
  dots = {
    titles[name]: (_drawn(name, values), progress.is_fraction(name))
    for name, values in finals.items()
  }
  rows = [
    (run, *(_shown(name, values[row]) for name, values in finals.items()))
    for row, run in enumerate(runs)
  ]
  panels = [
    Panel(
      titles[name],
      [_curve(one, run, runs[run]) for run, one in of_runs.items()],
      percent=progress.is_fraction(name),
    )
    for name, of_runs in compared.items()
  ]
  blocks = [
    html_report.Picture(
      training_pictures.plot_final(runs, dots),
      f"{_words(stage)}: a dot for each run, by {listed}",
      name="final",
      narrow=len(dots) == 1,
    ),
    html_report.Table(("", *titles.values()), rows, caption=_COMPARED),
    html_report.Picture(
      training_pictures.plot_curves(panels, shared_legend=True),
      f"{_words(stage)}: curves of {listed}, one for each run",
      name="curves",
      narrow=len(panels) == 1,
    ),
  ]
  return html_report.Section(_words(stage), blocks)
