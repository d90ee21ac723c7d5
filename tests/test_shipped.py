"""Checkpoints that come with the package."""

import json

import pytest

from delf_jax import checkpoint, extractors, match_score, query
from delf_jax.data import synthetic


@pytest.fixture(scope="module", params=checkpoint.NAMES)
def name(request):
  return request.param


def test_it_is_small_and_says_what_it_is(name):
  path = checkpoint.find_model(name)
  files = [file for file in path.rglob("*") if file.is_file()]
  assert sum(file.stat().st_size for file in files) < 12e6
  meta = json.loads((path / "meta.json").read_text())
  assert meta["weights"] != "float32"
  card = path.with_name(f"{name}.md").read_text()
  assert meta["fingerprint"][:16] in card


def test_its_name_leads_to_it_from_anywhere(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  extractor = extractors.open_extractor(name)
  assert extractor.source == name
  again = extractors.reopen({**extractor.settings, "features": name})
  assert again.settings == extractor.settings


def test_its_calibration_is_its_own(name):
  own = extractors.calibration_of({"kind": "delf"}, name)
  assert own != match_score.shipped("delf")
  model = checkpoint.load_model(name)
  for one in own.provenance["stores"]:
    assert one["features"] == "delf"
    assert one["dimensions"] == model.network.descriptor_channels


def test_it_brings_a_calibration_for_drawings(name):
  path = checkpoint.find_model(name) / "drawings.json"
  drawings = match_score.read_calibration(path)
  assert drawings != extractors.calibration_of({"kind": "delf"}, name)
  assert len(drawings.provenance["stores"]) > 1


def test_it_finds_a_made_up_place_and_no_other(name, tmp_path):
  paths = []
  for landmark, view in ((1003, 2), (1003, 4), (1006, 1)):
    rendered = synthetic.render_view(0, landmark, view, size=(640, 480))
    paths.append(tmp_path / f"{landmark}_{view}.jpg")
    paths[-1].write_bytes(synthetic.encode_jpeg(rendered.pixels))
  extractor = extractors.open_extractor(name, max_features=300)
  calibration = extractors.calibration_of({}, name)
  same, other = (
    query.compare_photographs(
      extractor, str(paths[0]), str(path), calibration=calibration
    )[1]
    for path in paths[1:]
  )
  assert same.probability > 0.8 > other.probability
