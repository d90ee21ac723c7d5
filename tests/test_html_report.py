import html.parser
import os
import re

import numpy as np
import pytest
from PIL import Image

from delf_jax import html_report
from delf_jax.errors import InputError
from delf_jax.html_report import (
  Animation,
  Facts,
  Notice,
  Paragraph,
  Picture,
  Section,
  Table,
)

HOSTILE = '<b>"it\'s"</b> & é 北\n\t\u202e\udcff.jpg'
SHOWN = '<b>"it\'s"</b> & é 北\\n\\t\\u202e\\udcff.jpg'
VOID = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
  """Reads a page back, and insists that its elements are closed in order."""

  def __init__(self, text):
    super().__init__()
    self.text, self.images, self.links, self.tags = [], [], [], []
    self.rows, self.best, self._open = [], [], []
    self.feed(text)
    self.close()
    assert not self._open

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.append(tag)
    if tag == "img":
      self.images.append(attributes)
    self.links += [v for k, v in attributes.items() if k in ("src", "href")]
    if tag not in VOID:
      self._open.append(tag)
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if "style" in self._open:
      return
    self.text.append(data)
    if "td" in self._open or "th" in self._open:
      self.rows[-1][-1] += data
    if "strong" in self._open:
      self.best.append(data)


def picture(value=90):
  return np.full((30, 40, 3), value, np.uint8)


def write(directory, *sections, **options):
  options = {"title": "A title", **options}
  path = html_report.write_report(directory, sections=sections, **options)
  with open(path, encoding="utf-8") as file:
    return Page(file.read())


def test_a_page_with_every_block(tmp_path):
  page = write(
    tmp_path / "new" / "report",
    Section(
      "One",
      [
        Paragraph("Some\n  words."),
        Table(["", "a"], [["mAP", 1.25]], caption="A caption"),
        Facts([("Name", "value"), ("Lines", ("first", "second"))]),
        Notice("Look", "here"),
        Picture(picture(10), "first picture", name="query"),
      ],
      aside="3 things",
    ),
    Section("Two", [Picture(picture(20), "second picture", "Below")], level=3),
    lead="What this is.",
  )
  for text in (
    "A title",
    "What this is.",
    "One",
    "3 things",
    "Some words.",
    "A caption",
    "first\nsecond",
    "Look",
    "Below",
  ):
    assert text in page.text
  assert page.tags.count("h2") == page.tags.count("h3") == 1
  assert [image["src"] for image in page.images] == [
    "01-query.png",
    "02-picture.png",
  ]
  for image, value in zip(page.images, (10, 20), strict=True):
    with Image.open(tmp_path / "new" / "report" / image["src"]) as file:
      np.testing.assert_array_equal(np.asarray(file), picture(value))
      assert file.size == (int(image["width"]), int(image["height"]))
    assert image["alt"].endswith("picture")


def test_whatever_is_given_is_text(tmp_path):
  page = write(
    tmp_path,
    Section(
      HOSTILE,
      [
        Paragraph(HOSTILE),
        Notice(HOSTILE, HOSTILE),
        Facts([(HOSTILE, HOSTILE), (HOSTILE, (HOSTILE,))]),
        Table([HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], caption=HOSTILE),
        Picture(picture(), HOSTILE, HOSTILE),
      ],
      aside=HOSTILE,
    ),
    title=HOSTILE,
    lead=HOSTILE,
  )
  assert "b" not in page.tags
  assert page.images[0]["alt"] == SHOWN
  shown = "".join(page.text)
  # Title twice, heading, aside, notice, two facts of two, four cells; and
  # lead, paragraph, notice, two captions, where white space is one space.
  assert shown.count(SHOWN) == 13
  assert shown.count("<b>") == shown.count("</b>") == 18


def test_a_page_stands_alone(tmp_path):
  write(tmp_path, Section("One", [Picture(picture(), "alt")]))
  text = (tmp_path / "index.html").read_text(encoding="utf-8")
  assert set(Page(text).links) == {"01-picture.png"}
  assert not re.search(r"https?:|//|url\(|@import|<script", text)
  assert "prefers-color-scheme: dark" in text


def test_cells_of_a_table(tmp_path):
  page = write(
    tmp_path,
    Section(
      "Results",
      [
        Table(
          ["", "DELF", "RootSIFT"],
          [
            ["mAP", 81.44, np.float32(67.5)],
            ["R@90", None, float("nan")],
            ["same", 5.0, 5.0],
            ["one", 3.0, None],
            ["queries", 37, np.int64(38)],
            ["kind", "graph", "exact"],
          ],
          mark_best=True,
        )
      ],
    ),
  )
  assert page.rows == [
    ["", "DELF", "RootSIFT"],
    ["mAP", "81.4", "67.5"],
    ["R@90", "–", "–"],
    ["same", "5.0", "5.0"],
    ["one", "3.0", "–"],
    ["queries", "37", "38"],
    ["kind", "graph", "exact"],
  ]
  assert page.best == ["81.4", "38"]


def test_an_animation_is_closed_until_it_is_asked_for(tmp_path):
  film = Animation(b"RIFF: a film", "Look <b>here</b>", HOSTILE, name="blend")
  page = write(
    tmp_path, Section("One", [Picture(picture(), "a picture"), film])
  )
  assert page.images[-1]["src"] == "02-blend.webp"
  assert page.images[-1]["loading"] == "lazy"
  assert page.images[-1]["alt"] == SHOWN
  assert {"details", "summary"} <= set(page.tags) and "b" not in page.tags
  assert "Look <b>here</b>" in page.text
  assert (tmp_path / "02-blend.webp").read_bytes() == b"RIFF: a film"


def rotation(degrees, scale=1.0):
  """Turns (x, y) with y down, so clockwise as seen; returned for (y, x)."""
  angle = np.radians(degrees)
  turn = scale * np.asarray(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )
  return np.concatenate([turn[::-1, ::-1], [[5.0], [7.0]]], axis=1)


@pytest.mark.parametrize(
  ("transform", "words"),
  [
    (rotation(30, 2), "scale 2.00, stretch 1.00, turned 30.0° clockwise"),
    (rotation(-90), "scale 1.00, stretch 1.00, turned 90.0° anticlockwise"),
    ([[4, 0, 0], [0, 1, 0]], "scale 2.00, stretch 4.00, turned 0.0° clockwise"),
    ([[-1, 0, 9], [0, 1, 0]], "scale 1.00, stretch 1.00, mirrored"),
    ([[1, 1, 0], [1, 1, 0]], "collapses the photograph"),
    (np.zeros((2, 3)), "collapses the photograph"),
    (np.full((2, 3), np.nan), "not finite"),
  ],
)
def test_transforms_in_words(transform, words):
  assert html_report.describe_transform(np.asarray(transform)) == words


def test_a_report_is_written_over_an_old_one(tmp_path):
  (tmp_path / "mine.txt").write_text("stays")
  write(tmp_path, Section("Old", [Picture(picture(1), "old")]))
  page = write(tmp_path, Section("New", [Picture(picture(2), "new")]))
  assert "New" in page.text and "Old" not in page.text
  assert sorted(os.listdir(tmp_path)) == [
    "01-picture.png",
    "index.html",
    "mine.txt",
  ]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
  """A directory in the temporary file's place stops the writing."""
  path = tmp_path / "picture.png"
  html_report.write_png(path, picture(1))
  before = path.read_bytes()
  (tmp_path / f"picture.png.{os.getpid()}.tmp").mkdir()
  with pytest.raises(InputError, match=r"picture\.png' cannot be written"):
    html_report.write_png(path, picture(2))
  assert path.read_bytes() == before


def test_a_directory_that_cannot_be_made(tmp_path):
  (tmp_path / "file\n").write_text("in the way")
  with pytest.raises(InputError, match=r"file\\n/report' cannot be made"):
    write(tmp_path / "file\n" / "report")


def test_a_bad_name_of_a_picture_is_a_mistake():
  for name in ("", "../up", "Query", "a b"):
    with pytest.raises(ValueError):
      Picture(picture(), "alt", name=name)
    with pytest.raises(ValueError):
      Animation(b"", "title", "alt", name=name)
