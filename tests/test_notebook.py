import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from configs.synthetic import get_config
from delf_jax import extractors, initialisation, notebook, retrieval
from delf_jax.data import synthetic
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.evaluation.metrics import precision_recall

HOSTILE = 'a b\n"<é>\t' + "北京\u202e\udcff" + "x" * 300 + ".jpg"


@pytest.fixture(scope="module")
def pair():
  """Two views of a landmark, the query reduced, and how they match."""
  query, image = (
    synthetic.render_view(0, 3, view, clutter=False).pixels for view in (0, 1)
  )
  extractor = extractors.open_extractor("rootsift")
  photographs = [Photograph(p, *p.shape[:2]) for p in (query, image)]
  features = [extractor.extract(one) for one in photographs]
  sizes = [(one.height, one.width) for one in photographs]
  match = retrieval.compare(features[0], sizes[0], features[1], sizes[1])
  assert match.inliers.sum() > 20
  less = np.asarray(Image.fromarray(query).reduce(2))
  return Photograph(less, *query.shape[:2]), photographs[1], features[0], match


def shown(figure):
  """The picture that a notebook shows."""
  with Image.open(io.BytesIO(figure._repr_png_())) as image:
    return np.asarray(image.convert("RGB"))


def test_a_match(pair):
  query, image, _, match = pair
  with_grey = shown(notebook.figure_of_match(query, image, match, height=240))
  without = shown(
    notebook.figure_of_match(query, image, match, rejected=False, height=240)
  )
  assert with_grey.shape == without.shape
  assert not match.inliers.all() and (with_grey != without).any()


def test_a_blend(pair, tmp_path):
  query, image, _, match = pair
  names = (HOSTILE, HOSTILE)
  moving = notebook.figure_of_blend(query, image, match, names=names, side=160)
  page = moving._repr_html_()
  encoded = re.search(r"data:image/webp;base64,([\w+/=]+)\"", page)[1]
  assert base64.b64decode(encoded) == moving.content
  moving.save(tmp_path / "blend.webp")
  with Image.open(tmp_path / "blend.webp") as written:
    assert written.n_frames > 30
  with pytest.raises(InputError, match="cannot be written"):
    moving.save(tmp_path / "nowhere" / "blend.webp")


def test_nothing_to_blend_stands_still(pair):
  query, image, features, _ = pair
  nothing = retrieval.compare(
    features, (query.height, query.width), features, (10**6, 10**6)
  )
  nothing.transform[:] = np.diag([0.0, 0, 1])
  figure = notebook.figure_of_blend(query, image, nothing)
  assert shown(figure).shape[2] == 3


def test_features(pair):
  query, _, features, _ = pair
  few, many = (
    shown(notebook.figure_of_features(query, features, most=most, height=200))
    for most in (5, 100)
  )
  assert few.shape == many.shape and (few != many).any()


def test_scores(pair):
  query, image, _, _ = pair
  config = get_config("tiny")
  model = initialisation.initial_model(config.to_dict(), 3)
  figure = notebook.figure_of_scores(model, image, width=600)
  assert figure.width <= 600
  with_mask = notebook.figure_of_scores(
    model, image.pixels, mask=np.ones(image.pixels.shape[:2], bool), width=600
  )
  assert figure.width < with_mask.width <= 600


def test_photographs(pair):
  query, image, _, _ = pair
  sheet = shown(
    notebook.figure_of_photographs(
      [query, image.pixels, image], columns=2, width=300
    )
  )
  assert sheet.shape[1] == 300 and 250 < sheet.shape[0] < 320


def test_precision_and_recall():
  curve = precision_recall([3, 2, 1], [True, False, True], 3)
  figure = notebook.figure_of_precision_recall({HOSTILE[:20]: curve}, width=500)
  assert shown(figure).shape[1] == 500
