import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from delf_jax.evaluation.metrics import (
  PrecisionCounts,
  PrecisionRecall,
  precision_recall,
)
from delf_jax.pictures import precision_plots

HOSTILE = 'a b\n"<é>\t' + "北京\u202e\udcff" + "x" * 300 + ".jpg"
BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def pixels_of(picture, colour):
  return (picture == np.asarray(colour, np.uint8)).all(axis=-1)


def test_plots_curves():
  curves = {
    "RootSIFT": precision_recall(
      [9, 8, 7, 6, 5], [True, True, True, False, True], 8
    ),
    "_$x^2$ " + HOSTILE[:20]: precision_recall([3, 2], [True, False], 4),
    "silent": precision_recall([], [], 2),
  }
  picture, svg = precision_plots.plot(curves, title="a $b_c$", width=700)
  assert picture.dtype == np.uint8
  assert picture.shape[1:] == (700, 3) and picture.shape[0] > 300
  assert (picture[0] == 255).all() and (picture[-1] == 255).all()
  for colour in (BLUE, VERMILION):
    assert pixels_of(picture, colour).sum() > 50
  again, same = precision_plots.plot(curves, title="a $b_c$", width=700)
  np.testing.assert_array_equal(picture, again)
  assert svg == same
  text = " ".join(ElementTree.fromstring(svg).itertext())
  assert "RootSIFT   ● R@90 37.5 %   ○ R@95 37.5 %" in text
  assert "silent   ● R@90 0.0 %" in text and "a $b_c$" in text
  assert precision_plots.plot({})[0].shape[1] == 1400


def test_counts_of_true_positives_take_the_place_of_recall():
  curve = PrecisionCounts(
    np.arange(4.0)[::-1], np.asarray([1, 0.96, 0.92, 0.5]), np.arange(4) * 10
  )
  _, svg = precision_plots.plot({"mine": curve}, width=700)
  text = " ".join(ElementTree.fromstring(svg).itertext())
  assert "mine   ● TP@90 20   ○ TP@95 10" in text
  assert "True positives" in text and "Recall" not in text


@pytest.mark.parametrize("kind", ["recall", "counts"])
def test_a_better_curve_is_further_right(kind):
  def centre(found):
    thresholds, precision = np.arange(3.0)[::-1], np.asarray([1.0, 0.9, 0.5])
    if kind == "recall":
      curve = PrecisionRecall(thresholds, precision, np.asarray(found) / 10)
      curves = {"a": curve}
    else:
      curve = PrecisionCounts(thresholds, precision, np.asarray(found))
      # Sets how far the axis goes.
      widest = PrecisionCounts(thresholds, precision, np.arange(3) * 5)
      curves = {"a": curve, "widest": widest}
    picture, _ = precision_plots.plot(curves, width=700)
    rows, columns = np.nonzero(pixels_of(picture, BLUE))
    return columns[rows < 0.8 * len(picture)].mean()

  assert centre([2, 8, 9]) > centre([1, 2, 3]) + 100


def test_matplotlib_is_imported_late_and_pyplot_never():
  program = """
import sys
from delf_jax.evaluation import metrics
from delf_jax.pictures import precision_plots
assert "matplotlib" not in sys.modules
precision_plots.plot({"a": metrics.precision_recall([1], [True], 1)})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", program], check=True)
