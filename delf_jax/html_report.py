"""Reports: one HTML page, with its pictures as files beside it.

A page is a list of `Section`s, and a section a list of blocks: `Paragraph`,
`Table`, `Facts`, `Notice`, `Picture`, `Animation`. They hold plain text; what
is given is escaped here, and nothing can be given as HTML. The pages need no
network and no script, follow the reader's light or dark setting, and print.
"""

import dataclasses
import html
import io
import math
import numbers
import os
import string
from collections.abc import Sequence

import numpy as np
from PIL import Image

from delf_jax import whole_files
from delf_jax.errors import InputError
from delf_jax.pictures.drawing import visible

_LETTERS = frozenset(string.ascii_lowercase + string.digits + "-")


@dataclasses.dataclass(frozen=True)
class Paragraph:
  """Running text; line ends in it are spaces."""

  text: str


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows under a header; the first column names the rows.

  Attributes:
    header: [columns] texts.
    rows: each [columns] cells. Text is shown as it is, a whole number in full,
      another number with one decimal, None as a dash.
    caption: below the table.
    mark_best: whether the largest number of each row is set in bold.
  """

  header: Sequence[str]
  rows: Sequence[Sequence[str | float | None]]
  caption: str = ""
  mark_best: bool = False


@dataclasses.dataclass(frozen=True)
class Facts:
  """Names and their values, side by side; a tuple of texts is lines."""

  items: Sequence[tuple[str, str | tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class Notice:
  """One thing that must not be overlooked, and a sentence about it."""

  title: str
  text: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture, which becomes a PNG file.

  Attributes:
    pixels: [h, w, 3] uint8.
    alt: what it shows, for who cannot see it.
    caption: below the picture.
    name: of its file, after a number; small letters, digits and "-".
    narrow: whether it stays in the column of the text, for photographs and
      plots; otherwise it takes the width of the page, for pairs.
  """

  pixels: np.ndarray
  alt: str
  caption: str = ""
  name: str = "picture"
  narrow: bool = False

  def __post_init__(self):
    if not self.name or not _LETTERS.issuperset(self.name):
      raise ValueError(f"{self.name!r} cannot name a picture's file")


@dataclasses.dataclass(frozen=True)
class Animation:
  """A moving picture, which becomes a WebP file; closed until it is asked for.

  Attributes:
    content: of the file.
    title: what opens it.
    alt: what it shows, for who cannot see it.
    name: of its file, as for `Picture`.
  """

  content: bytes
  title: str
  alt: str
  name: str = "animation"

  def __post_init__(self):
    if not self.name or not _LETTERS.issuperset(self.name):
      raise ValueError(f"{self.name!r} cannot name a picture's file")


Block = Paragraph | Table | Facts | Notice | Picture | Animation


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and what is under it.

  Attributes:
    title: the heading.
    blocks: in order.
    aside: a short text at the end of the heading's line, such as a count.
    level: 2 for a part of the page, 3 for a part of that.
  """

  title: str
  blocks: Sequence[Block]
  aside: str = ""
  level: int = 2


def describe_transform(transform: np.ndarray) -> str:
  """Says in words what an affine transform ([2, 3], of (y, x)) does.

  The scale is the square root of the change of area, the stretch the largest
  over the smallest change of length, and the turn that of the nearest rotation,
  as seen in the photographs.
  """
  if not np.isfinite(transform).all():
    return "not finite"
  linear = np.asarray(transform, np.float64)[:, :2]
  largest, smallest = np.linalg.svd(linear, compute_uv=False)
  if smallest <= 1e-6 * largest:
    return "collapses the photograph"
  scale, stretch = math.sqrt(largest * smallest), largest / smallest
  if np.linalg.det(linear) < 0:
    return f"scale {scale:.2f}, stretch {stretch:.2f}, mirrored"
  turn = math.degrees(
    math.atan2(linear[0, 1] - linear[1, 0], linear[0, 0] + linear[1, 1])
  )
  way = "clockwise" if turn >= 0 else "anticlockwise"
  return (
    f"scale {scale:.2f}, stretch {stretch:.2f}, turned {abs(turn):.1f}° {way}"
  )


def write_report(
  directory: str | os.PathLike[str],
  *,
  title: str,
  sections: Sequence[Section],
  lead: str = "",
) -> str:
  """Writes `index.html` and its pictures, `01-query.png` and so on.

  The directory is made if need be, and what else is in it stays. Each file is
  written whole or not at all; the page comes last.

  Args:
    directory: where to write.
    title: of the page.
    sections: in order.
    lead: a paragraph under the title.

  Returns:
    The path of the page.

  Raises:
    InputError: if a file cannot be written.
  """
  directory = os.fspath(directory)
  try:
    os.makedirs(directory, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"report directory {directory!r} cannot be made:"
      f" {error.strerror or error}; choose another"
    ) from error
  pictures: dict[str, np.ndarray | bytes] = {}
  page = _page(title, lead, sections, pictures)
  for name, picture in pictures.items():
    write = whole_files.write_file if isinstance(picture, bytes) else write_png
    write(os.path.join(directory, name), picture)
  path = os.path.join(directory, "index.html")
  whole_files.write_file(path, page.encode("utf-8"))
  return path


def write_png(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
  """Writes a picture ([h, w, 3] uint8) as PNG, whole or not at all.

  Raises:
    InputError: if it cannot be written.
  """
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  whole_files.write_file(path, buffer.getvalue())


def _page(
  title: str,
  lead: str,
  sections: Sequence[Section],
  pictures: dict[str, np.ndarray | bytes],
) -> str:
  """Returns the page, and puts its pictures under their file names."""
  parts = [
    "<!doctype html>",
    '<html lang="en">',
    "<head>",
    '<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f"<title>{_text(title)}</title>",
    f"<style>{_STYLE}</style>",
    "</head>",
    "<body>",
    "<main>",
    "<header>",
    f"<h1>{_text(title)}</h1>",
    f'<p class="lead">{_prose(lead)}</p>' if lead else "",
    "</header>",
  ]
  for section in sections:
    heading = f"h{section.level}"
    aside = f'<span class="aside">{_text(section.aside)}</span>'
    parts += [
      f'<section class="level-{section.level}">',
      '<div class="heading">',
      f"<{heading}>{_text(section.title)}</{heading}>",
      aside if section.aside else "",
      "</div>",
      *(_block(block, pictures) for block in section.blocks),
      "</section>",
    ]
  parts += ["</main>", "</body>", "</html>"]
  return "\n".join(part for part in parts if part) + "\n"


def _block(block: Block, pictures: dict[str, np.ndarray | bytes]) -> str:
  """Returns the HTML of one block, and adds its picture, if it has one."""
  match block:
    case Paragraph(text):
      return f"<p>{_prose(text)}</p>"
    case Notice(title, text):
      return (
        f'<div class="notice"><strong>{_text(title)}</strong>'
        f"<p>{_prose(text)}</p></div>"
      )
    case Facts(items):
      return _facts(items)
    case Table():
      return _table(block)
    case Picture():
      name = f"{len(pictures) + 1:02d}-{block.name}.png"
      pictures[name] = block.pixels
      height, width = block.pixels.shape[:2]
      width_class = "narrow" if block.narrow else "wide"
      caption = f"<figcaption>{_prose(block.caption)}</figcaption>"
      return (
        f'<figure class="{width_class}">'
        f'<a href="{name}"><img src="{name}" width="{width}"'
        f' height="{height}" alt="{_text(block.alt)}"></a>'
        f"{caption if block.caption else ''}</figure>"
      )
    case Animation():
      name = f"{len(pictures) + 1:02d}-{block.name}.webp"
      pictures[name] = block.content
      return (
        f"<details><summary>{_prose(block.title)}</summary>"
        f'<figure class="narrow"><img src="{name}" loading="lazy"'
        f' alt="{_text(block.alt)}"></figure></details>'
      )
  raise ValueError(f"not a block: {block!r}")


def _facts(items: Sequence[tuple[str, str | tuple[str, ...]]]) -> str:
  rows = []
  for name, value in items:
    if isinstance(value, tuple):
      shown = "<pre>" + "\n".join(_text(line) for line in value) + "</pre>"
    else:
      shown = _text(value)
    rows.append(f"<dt>{_text(name)}</dt><dd>{shown}</dd>")
  return "<dl>" + "".join(rows) + "</dl>"


def _table(table: Table) -> str:
  """Returns the HTML of a table, which scrolls where the page is narrow."""
  header = "".join(
    f'<th scope="col">{_text(name)}</th>' for name in table.header
  )
  rows = []
  for first, *cells in table.rows:
    values = [float(c) for c in cells if _is_number(c)]
    best = max(values, default=None) if len(set(values)) > 1 else None
    columns = []
    for cell in cells:
      shown = _text(_cell(cell))
      if table.mark_best and _is_number(cell) and cell == best:
        shown = f"<strong>{shown}</strong>"
      columns.append(f"<td>{shown}</td>")
    rows.append(
      f'<tr><th scope="row">{_text(_cell(first))}</th>{"".join(columns)}</tr>'
    )
  caption = f"<caption>{_prose(table.caption)}</caption>"
  return (
    f'<div class="scroll"><table>{caption if table.caption else ""}'
    f"<thead><tr>{header}</tr></thead>"
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def _is_number(cell: str | float | None) -> bool:
  return isinstance(cell, numbers.Real) and math.isfinite(cell)


def _cell(cell: str | float | None) -> str:
  if isinstance(cell, str):
    return cell
  if not _is_number(cell):
    return "–"
  return f"{cell}" if isinstance(cell, numbers.Integral) else f"{cell:.1f}"


def _text(text: str) -> str:
  """Escapes text for an element or a quoted attribute; nothing hides in it."""
  return html.escape(visible(text))


def _prose(text: str) -> str:
  return _text(" ".join(text.split()))


_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfbf9; --text: #1c1f24; --muted: #666d78;
  --line: #e2e4e7; --accent: #0b6b86; --notice: #fff6e3; --notice-line: #e0a733;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #111317; --text: #e7e9ec; --muted: #979eaa;
    --line: #2a2e35; --accent: #62cbe4; --notice: #2a2415;
    --notice-line: #b98a2c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1120px; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1, h2, h3 { margin: 0; line-height: 1.25; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; font-weight: 650; letter-spacing: -0.015em; }
h2 { font-size: 1.3rem; font-weight: 620; }
h3 { font-size: 1.02rem; font-weight: 600; }
p { max-width: 46rem; margin: 0 0 1rem; }
.lead { margin-top: 0.75rem; color: var(--muted); font-size: 1.08rem; }
section.level-2 {
  margin-top: 3rem; padding-top: 1.5rem; border-top: 1px solid var(--line);
}
section.level-3 { margin-top: 2.25rem; }
.heading {
  display: flex; justify-content: space-between; align-items: baseline;
  gap: 1.5rem; margin-bottom: 1rem;
}
.aside {
  flex: none; color: var(--accent); font-weight: 600; white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
figure { margin: 0 0 1.25rem; }
figure.narrow { max-width: 46rem; }
figure.narrow img { width: auto; max-height: 26rem; }
img {
  display: block; width: 100%; max-width: 100%; height: auto;
  border-radius: 8px; background: var(--line);
}
details { margin: 0 0 1.25rem; }
summary { cursor: pointer; color: var(--accent); font-size: 0.94rem; }
details figure { margin-top: 0.8rem; }
figcaption, caption {
  padding-top: 0.6rem; color: var(--muted); font-size: 0.9rem; text-align: left;
}
caption { caption-side: bottom; }
.scroll { overflow-x: auto; margin-bottom: 1.25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 0 0.5rem 2.5rem; text-align: right; }
th:first-child { padding-left: 0; text-align: left; }
thead th { color: var(--muted); font-size: 0.9rem; font-weight: 500; }
thead th { border-bottom: 1px solid var(--text); vertical-align: bottom; }
tbody th { font-weight: 450; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
td strong { color: var(--accent); font-weight: 650; }
dl {
  display: grid; grid-template-columns: max-content minmax(0, 1fr);
  gap: 0.3rem 1.5rem; margin: 0 0 1.25rem; font-size: 0.94rem;
}
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
pre {
  margin: 0; overflow-x: auto;
  font: 0.88rem/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
.notice {
  max-width: 46rem; margin: 0 0 1.25rem; padding: 0.9rem 1.1rem;
  background: var(--notice); border-left: 4px solid var(--notice-line);
  border-radius: 4px;
}
.notice p { margin: 0.2rem 0 0; }
@media (max-width: 40rem) {
  main { padding: 1.75rem 1rem 3rem; }
  .heading { flex-wrap: wrap; gap: 0.2rem 1rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 0.6rem; }
  th, td { padding-left: 1.25rem; }
}
@media print {
  section.level-3, figure { break-inside: avoid; }
}
"""
