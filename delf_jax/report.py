"""Lays measured rows beside the paper's numbers.

  python -m delf_jax.evaluate --config configs/tables/table1.py:small \
    --output RESULTS
  python -m delf_jax.report --results RESULTS --output REPORT

REPORT/index.html and REPORT/report.md hold a table for each of the paper's that
was begun: every row, with its 95 % interval and the paper's number, or a dash
where it was not measured. The curves behind them, of precision against recall
or against true positives (figure 4), are beside as PNG and SVG files.
"""

from pathlib import Path

from absl import flags

from delf_jax import html_report, program, whole_files
from delf_jax.pictures import precision_plots
from delf_jax.tables import results_table


def write(results: str, output: str) -> str:
  """Writes the report of a directory of results.

  Args:
    results: what `delf_jax.evaluate --config` wrote.
    output: directory of the report.

  Returns:
    the path of the page.

  Raises:
    InputError: if there are no results, or the report cannot be written.
  """
  directory = Path(output)
  directory.mkdir(parents=True, exist_ok=True)
  sections = []
  lines = ["# Our numbers beside the paper's", "", _LEAD, ""]
  for table in results_table.read(results):
    blocks: list[html_report.Block] = []
    lines += [f"## {table.described['title']}", ""]
    for grid in results_table.grids(table):
      blocks.append(
        html_report.Table(
          header=grid.header, rows=grid.rows, caption=grid.title
        )
      )
      lines += [f"{grid.title}:", "", results_table.markdown(grid), ""]
    for place, curves in table.curves.items():
      name = f"{table.name}-{place}"
      title = f"{table.described['title'].partition(':')[0]}, {place}"
      pixels, svg = precision_plots.plot(curves, title=title)
      html_report.write_png(directory / f"{name}.png", pixels)
      whole_files.write_file(directory / f"{name}.svg", svg)
      blocks.append(
        html_report.Picture(
          pixels,
          f"Precision of every row on {place}",
          caption=f"Also {name}.svg.",
          name="curves",
          narrow=True,
        )
      )
      lines += [f"![{place}]({name}.svg)", ""]
    sections.append(html_report.Section(table.described["title"], blocks))
  whole_files.write_file(directory / "report.md", "\n".join(lines).encode())
  return html_report.write_report(
    directory,
    title="delf_jax: our numbers beside the paper's",
    sections=sections,
    lead=_LEAD,
  )


_LEAD = (
  "In percent, but for TP@P, which counts. In brackets 95 % intervals, from "
  "drawing the queries again. A dash: not measured."
)


def main() -> int:
  """Reports as the flags say."""
  values = flags.FLAGS
  print(write(values.results, values.output))
  return 0


if __name__ == "__main__":
  flags.DEFINE_string(
    "results", "results", "what delf_jax.evaluate --config wrote."
  )
  flags.DEFINE_string("output", "report", "directory of the report.")
  program.run(main)
