"""SURF and CONGAS as kinds of feature: canvases, units and errors."""

import cv2
import numpy as np
import pytest

from delf_jax import extractors, match_score
from delf_jax.data import synthetic
from delf_jax.data.photographs import Photograph
from delf_jax.errors import InputError
from delf_jax.evaluation import keypoint_measures
from delf_jax.features import congas, detectors, surf

DIMS = {
  "surf": surf.DIM,
  "surf_upright": surf.DIM,
  "congas": 40,
  "congas_raw": congas.DIM,
}


def scene(height=160, width=200, seed=0):
  """Returns [height, width, 3] uint8 with blobs of many sizes."""
  rng = np.random.default_rng(seed)
  image = np.full((height, width, 3), 120, np.uint8)
  for _ in range(60):
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    colour = rng.integers(256, size=3).tolist()
    cv2.circle(image, centre, int(rng.integers(2, 14)), colour, -1)
  return cv2.GaussianBlur(image, (0, 0), 1)


def extract(pixels, kind, **options):
  return detectors.extract(
    pixels, kind=kind, max_side=256, max_features=200, **options
  )


@pytest.mark.parametrize("kind", detectors.KINDS)
def test_features_are_as_the_store_wants_them(kind):
  features = extract(scene(), kind)
  n = len(features.mask)
  assert 30 < n <= 200 and features.mask.all()
  assert features.locations.shape == (n, 2)
  assert features.descriptors.shape == (n, DIMS[kind])
  for leaf in (features.locations, features.scales, features.descriptors):
    assert leaf.dtype == np.float32
  assert (np.diff(features.scores) <= 0).all() and (features.scales > 0).all()
  np.testing.assert_allclose(
    np.linalg.norm(features.descriptors, axis=1), 1, rtol=1e-5
  )


@pytest.mark.parametrize("kind", ["surf", "congas"])
def test_a_reduced_photograph_gives_the_originals_coordinates(kind):
  pixels = scene()
  plain = extract(pixels, kind)
  mapped = extract(pixels, kind, size=(320, 400))
  np.testing.assert_allclose(
    mapped.locations, plain.locations * 2 + 0.5, rtol=1e-5
  )
  np.testing.assert_allclose(mapped.scales, plain.scales * 2, rtol=1e-5)
  np.testing.assert_array_equal(mapped.descriptors, plain.descriptors)


@pytest.mark.parametrize("kind", detectors.KINDS)
def test_it_is_what_open_extractor_opens(kind):
  extractor = extractors.open_extractor(kind, max_side=256, max_features=200)
  pixels = scene()
  found = extractor.extract(Photograph(pixels, 160, 200))
  np.testing.assert_array_equal(
    found.descriptors, extract(pixels, kind).descriptors
  )
  assert extractor.settings["kind"] == kind
  again = extractors.reopen({**extractor.settings, "features": kind})
  assert again.settings == extractor.settings


def test_what_nobody_knows_is_told_what_there_is():
  with pytest.raises(
    InputError, match="delf_small, delf_fast, rootsift, sift, surf"
  ):
    extractors.open_extractor("surff")


@pytest.mark.parametrize("kind", extractors.HANDCRAFTED)
def test_matches_of_what_is_handcrafted_have_its_calibration(kind):
  found = extractors.calibration_of({"kind": kind})
  assert found == match_score.shipped("sift") != match_score.shipped()


def test_congas_is_reduced_by_what_it_was_indexed_with(tmp_path, monkeypatch):
  before = extractors.open_extractor("congas").settings
  assert "fingerprint" not in extractors.open_extractor("congas_raw").settings
  pixels = scene()
  raw, reduced = (extract(pixels, kind) for kind in ("congas_raw", "congas"))
  np.testing.assert_array_equal(raw.locations, reduced.locations)
  with np.load(detectors.CONGAS_REDUCTION) as arrays:
    mean, components = arrays["mean"], arrays["components"]
    assert (arrays["deviations"] == 1).all()
  assert components.shape == (40, congas.DIM)
  np.testing.assert_allclose(components @ components.T, np.eye(40), atol=1e-5)
  projected = (raw.descriptors - mean) @ components.T
  projected /= np.linalg.norm(projected, axis=1, keepdims=True)
  np.testing.assert_allclose(reduced.descriptors, projected, atol=1e-5)
  other = tmp_path / "other.npz"
  np.savez(other, mean=0 * mean, components=components, deviations=np.ones(40))
  monkeypatch.setattr(detectors, "CONGAS_REDUCTION", other)
  with pytest.raises(InputError, match="is not what the photographs"):
    extractors.reopen({**before, "features": "congas"})


def views_of_photograph(angle, zoom, slant):
  """A made-up photograph, warped, and the homography from (y, x, 1)."""
  pixels = synthetic.render_view(0, 3, 0, size=(400, 300)).pixels
  turned = cv2.getRotationMatrix2D((199.5, 149.5), angle, zoom)
  warp = np.vstack([turned, [slant, 0.5 * slant, 1.0]])
  warped = cv2.warpPerspective(pixels, warp, (400, 300), flags=cv2.INTER_AREA)
  whole = np.full((300, 400), 255, np.uint8)
  shown = cv2.warpPerspective(whole, warp, (400, 300)) == 255
  return pixels, warped, shown, warp[[1, 0, 2]][:, [1, 0, 2]]


def opencvs_sift(pixels):
  sift = cv2.SIFT_create(nfeatures=500)
  found, descriptors = sift.detectAndCompute(
    cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None
  )
  return (
    np.array([k.pt[::-1] for k in found]),
    np.array([k.size for k in found]),
    descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
  )


def agreement(function, angle, zoom, slant):
  *both, shown, homography = views_of_photograph(angle, zoom, slant)
  (one, sizes, first), (other, others, second) = map(function, both)
  alike = first @ second.T
  rows = np.flatnonzero(
    alike.argmax(0)[alike.argmax(1)] == np.arange(len(alike))
  )
  return keypoint_measures.compare(
    keypoint_measures.Side(one, sizes, np.ones_like(shown)),
    keypoint_measures.Side(other, others, shown),
    (rows, alike.argmax(1)[rows]),
    homography,
  )


@pytest.mark.parametrize(
  "angle, zoom, slant", [(40, 1.0, 0.0), (0, 1.6, 0.0), (5, 0.9, 6e-4)]
)
def test_features_come_again_as_opencvs_sift_does(angle, zoom, slant):
  peer = agreement(opencvs_sift, angle, zoom, slant)
  assert peer.repeatability > 0.3
  for kind in ("surf", "congas"):

    def ours(pixels, kind=kind):
      found = detectors.extract(
        pixels, kind=kind, max_side=400, max_features=500
      )
      return found.locations, found.scales, found.descriptors

    found = agreement(ours, angle, zoom, slant)
    # On photographs they are ahead of it; here edges are sharp lines.
    assert found.repeatability > 0.8 * peer.repeatability, (kind, found, peer)
    assert found.matching_score > 0.6 * peer.matching_score, (kind, found, peer)


def test_few_programs_for_many_sizes():
  before = detectors.run._cache_size()
  for width in range(130, 200, 7):
    extract(scene(120, width), "surf_upright")
  assert detectors.run._cache_size() - before <= 2


def test_arguments_that_make_no_sense():
  with pytest.raises(ValueError, match="kind"):
    extract(scene(), "sift")
  with pytest.raises(ValueError, match="max_features"):
    detectors.extract(scene(), kind="surf", max_side=256, max_features=0)
  with pytest.raises(ValueError, match="uint8"):
    extract(scene() / 255, "surf")
  with pytest.raises(ValueError, match="larger than max_side"):
    extract(scene(300, 200), "surf")
