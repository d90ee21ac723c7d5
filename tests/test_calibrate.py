"""Ground truth and pairs -> candidates -> a file that a search takes."""

import dataclasses

import numpy as np
import pytest

from delf_jax import calibrate, database, extractors, match_score
from delf_jax.errors import InputError
from delf_jax.evaluation import protocols
from delf_jax.features import store
from delf_jax.features.local_features import LocalFeatures
from delf_jax.index import exact


def write_pairs(path, *lines):
  path.write_text("\n".join(("path_a,path_b,landmark", *lines)) + "\n")
  return str(path)


def test_pairs_become_ground_truth(tmp_path):
  truth = calibrate.read_pairs(
    write_pairs(tmp_path / "pairs.csv", "a,b,x", "c,b,x", "d,e,y")
  )
  queries = {query.path: query for query in truth.queries}
  assert set(queries) == set("abcde")
  assert queries["a"] == protocols.QueryTruth("a", easy=("b",), junk=("c",))
  assert queries["b"] == protocols.QueryTruth("b", easy=("a", "c"))
  assert queries["e"] == protocols.QueryTruth("e", easy=("d",))


def test_pairs_of_a_folder(tmp_path):
  lines = "x/p/a,x/p/b,p", "x/p/b,x/p/c,p", "y/p/d,x/p/a,p", "x/q/e,x/q/f,q"
  truth = calibrate.read_pairs(
    write_pairs(tmp_path / "pairs.csv", *lines),
    prefix="x/",
    photographs=("p/a", "p/b", "p/c", "p/other", "q/e", "z"),
  )
  queries = {query.path: query for query in truth.queries}
  assert set(queries) == {"p/a", "p/b", "p/c", "q/e", "q/f"}
  assert queries["p/a"].easy == ("p/b",)
  assert queries["p/a"].junk == ("p/c", "p/other")
  assert queries["q/e"].junk == ()


def test_lists_without_pairs_are_refused(tmp_path):
  path = tmp_path / "pairs.csv"
  for lines in ((), ("a,a,x",), ("a,,x",)):
    with pytest.raises(InputError, match="no pairs"):
      calibrate.read_pairs(write_pairs(path, *lines))
  path.write_text("one,two\na,b\n")
  with pytest.raises(InputError, match="path_a"):
    calibrate.read_pairs(str(path))
  with pytest.raises(InputError, match="cannot be read"):
    calibrate.read_pairs(str(tmp_path / "missing.csv"))


def look(generator, landmark):
  """A photograph of a landmark [n, 2 + d] among things seen nowhere else."""
  count, dim = 40, landmark.shape[1] - 2
  descriptors = generator.normal(size=(count + 60, dim))
  descriptors[:count] = landmark[:, 2:] + generator.normal(
    scale=0.02, size=(count, dim)
  )
  descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
  locations = generator.uniform(0, 600, (count + 60, 2))
  locations[:count] = landmark[:, :2] + generator.uniform(-30, 30, 2)
  return LocalFeatures(
    locations=locations.astype(np.float32),
    scales=np.ones(count + 60, np.float32),
    scores=np.ones(count + 60, np.float32),
    descriptors=descriptors.astype(np.float32),
    mask=np.ones(count + 60, bool),
  )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """Five places, three photographs each."""
  generator = np.random.default_rng(0)
  directory = tmp_path_factory.mktemp("places") / "store"
  with store.open_writer(
    directory, settings={"kind": "test", "photos": ""}, dtype="float32"
  ) as writer:
    for number in range(5):
      descriptors = generator.normal(size=(40, 16))
      descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
      landmark = np.column_stack(
        [generator.uniform(50, 550, (40, 2)), descriptors]
      )
      for view in range(3):
        writer.add(
          f"{number}{view}",
          height=600,
          width=600,
          features=look(generator, landmark),
        )
    writer.finish()
  opened = store.open_store(directory)
  return opened, database.connect(opened, exact.build(opened.descriptors()))


def test_candidates_are_told_apart(places):
  opened, searchable = places
  truth = protocols.GroundTruth(
    (
      protocols.QueryTruth("00", easy=("01",), hard=("02",)),
      protocols.QueryTruth("10", easy=("11",), junk=("12",)),
      protocols.QueryTruth("01", easy=("02",), junk=("00",)),
      protocols.QueryTruth("not there", easy=("20",)),
    )
  )

  def gather(**options):
    return calibrate.gather(
      opened, truth, searchable=searchable, neighbours=8, **options
    )

  found = gather()
  assert found.evidence.shape == (len(found.positive), len(match_score.NAMES))
  whole = found.conditions == calibrate.WHOLE
  assert found.positive[whole].sum() == 4
  for condition in (calibrate.SMALL, calibrate.PAIR):
    assert found.positive[found.conditions == condition].sum() >= 2
    assert (found.conditions == condition).sum() > 4
  # 00 and 01 are of one place, 10 of another.
  assert set(found.places) == {"00", "10"}
  inliers = np.expm1(found.evidence[whole, 0])
  positive = found.positive[whole]
  assert inliers[positive].min() > inliers[~positive].max()
  again = gather()
  for field in dataclasses.fields(found):
    np.testing.assert_array_equal(
      getattr(found, field.name), getattr(again, field.name)
    )
  more = gather(distractors=opened, most_queries=2)
  of_distractors = more.conditions == calibrate.DISTRACTOR
  assert of_distractors.any() and not more.positive[of_distractors].any()


def test_queries_of_another_folder_are_refused(places):
  opened, searchable = places
  truth = protocols.GroundTruth((protocols.QueryTruth("x", easy=("y",)),))
  with pytest.raises(InputError, match="relative to the same folder"):
    calibrate.gather(opened, truth, searchable=searchable)


def candidates(n=2_000, seed=0):
  """Evidence of which the inliers alone say something."""
  generator = np.random.default_rng(seed)
  evidence = generator.normal(2.0, 0.5, (n, len(match_score.NAMES)))
  odds = np.exp(6 * (evidence[:, 0] - 2.5))
  return calibrate.Candidates(
    evidence,
    generator.uniform(size=n) < odds / (1 + odds),
    generator.integers(0, 9, n).astype(str),
    generator.choice([calibrate.WHOLE, calibrate.PAIR], n),
  )


def test_candidates_are_kept(tmp_path):
  path = tmp_path / "kept.npz"
  found = candidates(50)
  calibrate.write_candidates(found, {"features": "test"}, path)
  again, described = calibrate.read_candidates(path)
  assert described == {"features": "test"}
  for field in dataclasses.fields(found):
    np.testing.assert_array_equal(
      getattr(found, field.name), getattr(again, field.name)
    )


def test_what_is_not_kept_is_refused(tmp_path, monkeypatch):
  path = tmp_path / "kept.npz"
  with pytest.raises(InputError, match="cannot be read"):
    calibrate.read_candidates(path)
  path.write_text("nothing")
  with pytest.raises(InputError, match="cannot be read"):
    calibrate.read_candidates(path)
  with pytest.raises(InputError, match="cannot be written"):
    calibrate.write_candidates(candidates(9), {}, tmp_path)
  calibrate.write_candidates(candidates(9), {}, path)
  monkeypatch.setattr(match_score, "NAMES", ("inliers",))
  with pytest.raises(InputError, match="gather it again"):
    calibrate.read_candidates(path)


def test_stores_weigh_the_same(capsys):
  parts = [
    (candidates(4_000), {"features": "many", "positives": 1}),
    (candidates(2_000, seed=1), {"features": "few", "positives": 2}),
  ]
  fitted = calibrate.fit(parts)
  assert fitted.provenance["stores"] == [described for _, described in parts]
  printed = capsys.readouterr().out
  for number, name in ((1, "many"), (2, "few")):
    for condition in (calibrate.WHOLE, calibrate.PAIR):
      assert f"{name} {number}, {condition}, held out:" in printed
  again = calibrate.fit([parts[1], parts[0]])
  np.testing.assert_allclose(again.bias, fitted.bias, rtol=1e-2)


def test_a_checkpoint_may_carry_its_own(tmp_path):
  run = tmp_path / "run"
  (run / "model").mkdir(parents=True)
  settings = {"kind": "delf", "features": str(run)}
  shipped = match_score.shipped
  assert extractors.calibration_of(settings) == shipped("delf")
  own = dataclasses.replace(shipped("delf"), bias=0.25)
  match_score.write_calibration(own, run / "model" / "calibration.json")
  assert extractors.calibration_of(settings) == own
  assert extractors.calibration_of(settings, str(run / "model")) == own
  assert extractors.calibration_of({"kind": "delf"}, str(run)) == own
  for kind in ("rootsift", "imported"):
    other = {"kind": kind, "features": kind}
    assert extractors.calibration_of(other) == shipped(kind)
  (run / "model" / "calibration.json").write_text("{}")
  with pytest.raises(InputError, match="no calibration"):
    extractors.calibration_of(settings)


def test_a_store_brings_its_calibration(places):
  _, searchable = places
  assert searchable.calibration == match_score.shipped("test")
