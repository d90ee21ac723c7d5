import html.parser
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from delf_jax import journal, training_report
from delf_jax.errors import InputError
from delf_jax.pictures import training_pictures


class Page(html.parser.HTMLParser):
  """The headings, table rows, notices and pictures of a page, as text."""

  def __init__(self, path):
    super().__init__()
    self.text, self.rows, self.images, self._cell = "", [], [], False
    self.feed(path.read_text())
    self.directory = path.parent

  def handle_starttag(self, tag, attributes):
    if tag == "tr":
      self.rows.append([])
    if tag in ("th", "td"):
      self.rows[-1].append("")
    self._cell = tag in ("th", "td")
    if tag == "img":
      self.images.append(dict(attributes))

  def handle_endtag(self, tag):
    self._cell = False

  def handle_data(self, data):
    self.text += data
    if self._cell:
      self.rows[-1][-1] += data

  def pictures(self):
    return [
      np.asarray(Image.open(self.directory / image["src"]))
      for image in self.images
    ]


def training(stage, step, **figures):
  return {"stage": stage, "step": step, "kind": "train", **figures}


def validation(stage, step, **figures):
  return {"stage": stage, "step": step, "kind": "validation", **figures}


def a_run(factor=1.0):
  """Records as a run of two stages leaves them."""
  records = []
  for step in range(10, 101, 10):
    loss = factor * (3.0 - 0.02 * step)
    records.append(
      training(
        "descriptors",
        step,
        loss=loss,
        accuracy=step / 200,
        descriptors_loss=loss,
        descriptors_accuracy=step / 200,
        learning_rate=0.001,
      )
    )
    if step % 50 == 0:
      records.append(
        validation(
          "descriptors", step, loss=loss, accuracy=factor * (1.4 - step / 100)
        )
      )
  for step in (10, 20):
    records.append(
      training(
        "attention",
        step,
        loss=2.0,
        accuracy=0.5,
        images_per_second=123.4,
        data_wait_share=0.02,
      )
    )
  records.append(
    validation(
      "attention",
      20,
      **{"loss": 1.0, "mAP": 0.6, "R@90": 0.25, "attention_auc": 0.9312},
    )
  )
  return records


def score_map(name="a.jpg", side=96, mask=True):
  rng = np.random.default_rng(0)
  return SimpleNamespace(
    name=name,
    pixels=np.full((side, side, 3), rng.integers(0, 256, 3), np.uint8),
    l2_norm=rng.uniform(5, 50, (6, 6)).astype(np.float32),
    attention=rng.exponential(size=(6, 6)).astype(np.float32),
    stride=16,
    mask=np.tri(side, dtype=bool) if mask else None,
  )


def test_a_page_tells_the_figures_of_every_stage(tmp_path):
  path = training_report.write(
    tmp_path, records=a_run(), title="delf_jax: <run>", lead="In short."
  )
  assert path == tmp_path / "report" / "index.html"
  page = Page(path)
  assert "delf_jax: <run>" in page.text and "In short." in page.text
  header = [
    "",
    "training, end",
    "validation, end",
    "validation, best",
    "at step",
  ]
  assert page.rows == [
    header,
    ["Loss", "1.000", "1.000", "1.000", "100"],
    ["Accuracy", "50.0 %", "40.0 %", "90.0 %", "50"],
    ["Learning rate", "0.001", "–", "–", "–"],
    header,
    ["Loss", "2.000", "1.000", "1.000", "20"],
    ["Accuracy", "50.0 %", "–", "–", "–"],
    ["mAP", "–", "60.0 %", "60.0 %", "20"],
    ["R@90", "–", "25.0 %", "25.0 %", "20"],
    ["Attention AUC", "–", "0.931", "0.931", "20"],
    ["Images per second", "123", "–", "–", "–"],
    ["Time waiting for data", "2 %", "–", "–", "–"],
  ]
  assert "100 steps" in page.text and "20 steps" in page.text
  assert [image["src"] for image in page.images] == [
    "01-curves.png",
    "02-running.png",
    "03-curves.png",
    "04-running.png",
  ]
  assert all(picture.std() > 5 for picture in page.pictures())


def test_what_training_ends_with_is_its_running_mean(tmp_path):
  rng = np.random.default_rng(0)
  losses = 1.0 + rng.normal(size=400)
  records = [
    training("descriptors", step, loss=loss) for step, loss in enumerate(losses)
  ]
  page = Page(training_report.write(tmp_path, records=records, title="t"))
  smooth = training_pictures.running_mean(losses)[-1]
  assert page.rows[1][1] == f"{smooth:.3f}" != f"{losses[-1]:.3f}"


def test_parts_of_a_loss_are_shown_if_there_are_several(tmp_path):
  records = [
    training(
      "joint",
      1,
      loss=3.0,
      descriptors_loss=1.0,
      attention_loss=2.0,
      accuracy=0.5,
      descriptors_accuracy=0.4,
      attention_accuracy=0.5,
    )
  ]
  page = Page(training_report.write(tmp_path, records=records, title="t"))
  assert [row[0] for row in page.rows[1:]] == [
    "Loss",
    "Accuracy",
    "Descriptors loss",
    "Attention loss",
    "Descriptors accuracy",
    "Attention accuracy",
  ]


def test_gaps_are_told(tmp_path):
  records = [
    training("descriptors", 1, loss=None, accuracy=0.5),
    training("descriptors", 2, loss=math.nan, accuracy=0.5),
    validation("descriptors", 2, loss=math.inf, mAP=None),
  ]
  page = Page(training_report.write(tmp_path, records=records, title="t"))
  assert (
    "loss of training, 2 times, first at step 1;"
    " loss of validation, once at step 2; mAP of validation, once at step 2."
  ) in page.text
  assert page.rows[1:] == [
    ["Loss", "–", "–", "–", "–"],
    ["Accuracy", "50.0 %", "–", "–", "–"],
    ["mAP", "–", "–", "–", "–"],
  ]


@pytest.mark.parametrize(
  "records",
  [
    [],
    [training("descriptors", 0)],
    [training("descriptors", 1, loss=None)],
    [training("descriptors", 1, loss=1.0)],
    [validation("descriptors", 1, accuracy=1.0)],
    [training("<b>\n$x_", 1, **{"_$x^": 1.0, "note": "text", "": True})],
    [{"stage": "attention", "step": 1, "kind": "test", "loss": 1.0}],
  ],
)
def test_any_records_make_pages(tmp_path, records):
  page = Page(training_report.write(tmp_path, records=records, title="t"))
  assert ("No figures" in page.text) == (not records)
  page = Page(training_report.write_sweep(tmp_path, {"a": records, "b": []}))
  assert all(picture.size for picture in page.pictures())


@pytest.mark.parametrize("count", [1, 30])
def test_every_photograph_has_its_row(tmp_path, count):
  maps = [score_map(f"<{i}>.jpg", mask=i % 2 == 0) for i in range(count)]
  page = Page(
    training_report.write(tmp_path, records=[], heat_maps=maps, title="t")
  )
  counted = "1 photograph" if count == 1 else f"{count} photographs"
  assert f"{counted}<" not in page.text and counted in page.text
  assert "98 %" in page.text
  assert [image["alt"].split(":")[0] for image in page.images] == [
    f"<{i}>.jpg" for i in range(count)
  ]
  first = page.pictures()[0]
  drawn = training_pictures.draw_scores(
    maps[0].pixels,
    maps[0].l2_norm,
    maps[0].attention,
    stride=16,
    mask=maps[0].mask,
    name="<0>.jpg",
  )
  assert (first == drawn).all()


def test_the_same_run_gives_the_same_files(tmp_path):
  for name in ("one", "other"):
    training_report.write(
      tmp_path / name, records=a_run(), heat_maps=[score_map()], title="t"
    )
  files = sorted((tmp_path / "one" / "report").iterdir())
  assert len(files) == 6
  for path in files:
    other = tmp_path / "other" / "report" / path.name
    assert path.read_bytes() == other.read_bytes()


def test_a_journal_becomes_a_page(tmp_path):
  with journal.Journal(tmp_path) as written:
    written.resume("descriptors", 0)
    written.write("descriptors", 1, {"loss": math.nan, "accuracy": 0.25})
    written.write("descriptors", 1, {"accuracy": 0.75}, kind="validation")
  path = training_report.write(
    tmp_path, records=journal.read(tmp_path), title="t"
  )
  assert ["Accuracy", "25.0 %", "75.0 %", "75.0 %", "1"] in Page(path).rows


def test_runs_are_compared_by_what_they_ended_with(tmp_path):
  only_training = [
    training("descriptors", 10, loss=9.0, accuracy=0.1, learning_rate=0.1)
  ]
  path = training_report.write_sweep(
    tmp_path,
    {
      "SD": [r for r in a_run() if r["stage"] == "descriptors"],
      "Att <LC>": a_run(0.5),
      "short": only_training,
    },
  )
  page = Page(path)
  assert page.rows == [
    ["", "Loss", "Accuracy"],
    ["SD", "1.000", "40.0 %"],
    ["Att <LC>", "0.500", "20.0 %"],
    ["short", "9.000", "10.0 %"],
    ["", "Loss", "mAP", "R@90", "Attention AUC"],
    ["Att <LC>", "1.000", "60.0 %", "25.0 %", "0.931"],
  ]
  assert [image["src"][3:] for image in page.images] == [
    "final.png",
    "curves.png",
  ] * 2


def test_a_page_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / "report").touch()
  with pytest.raises(InputError, match="report"):
    training_report.write(tmp_path, records=a_run(), title="t")
