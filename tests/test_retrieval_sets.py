"""Made-up archives in the layouts that the real ones have."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delf_jax import extraction, extractors
from delf_jax.data import retrieval_sets
from delf_jax.data.retrieval_sets import cities, oxford_paris
from delf_jax.errors import InputError
from delf_jax.evaluation import protocols
from delf_jax.features import store


def photo(path, *, size=(40, 30), seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  generator = np.random.default_rng(seed)
  blocks = generator.integers(0, 255, (size[1] // 5 + 1, size[0] // 5 + 1, 3))
  pixels = np.kron(blocks, np.ones((5, 5, 1)))[: size[1], : size[0]]
  Image.fromarray(pixels.astype(np.uint8)).save(path)


def touch(root, *paths):
  """Files that are listed and never opened."""
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()


def text(root, **files):
  root.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (root / f"{name}.txt").write_text(content)


@pytest.fixture
def downloads(tmp_path):
  """Both cities with ground truth, and Flickr100k."""
  touch(
    tmp_path,
    *(f"oxford5k/images/keble_{i:06d}.jpg" for i in range(6)),
    *(f"oxford5k/images/oxford_{i:06d}.jpg" for i in range(4)),
    *(
      f"paris6k/paris/louvre/paris_louvre_{i:06d}.jpg" for i in range(130, 140)
    ),
    *(f"paris6k/paris/general/paris_general_{i:06d}.jpg" for i in range(20)),
    *(f"flickr100k/oxc1_100k/{tag}/1.jpg" for tag in ("sky", "tree")),
  )
  text(
    tmp_path / "oxford5k/gt_files_170407",
    keble_1_query="oxc1_keble_000002 136.5 34.1 648.5 955.7",
    keble_1_good="keble_000000\nkeble_000002\nkeble_000000\n",
    keble_1_ok="keble_000001\n",
    keble_1_junk="oxford_000003\n",
    keble_2_query="oxc1_keble_000002 10 20 30 40\n",
    keble_2_good="keble_000002\n",
    keble_2_ok="",
    keble_2_junk="",
  )
  text(
    tmp_path / "paris6k/paris_120310",
    louvre_1_query="paris_louvre_000131 1 2 30.25 40",
    louvre_1_good="paris_louvre_000131\nparis_louvre_000136\n",
    louvre_1_ok="",
    louvre_1_junk="paris_general_000001\n",
  )
  return tmp_path


KEBLE = "oxford5k/images/keble_00000{}.jpg"


def test_oxford_as_published(downloads):
  opened = retrieval_sets.open_set("oxford5k", downloads, complete=False)
  assert opened.name == "oxford5k" and opened.protocol == "classic"
  assert opened.root == str(downloads) and len(opened.database) == 10
  first, second = opened.truth.queries
  assert first.path == second.path == KEBLE.format(2)
  # x1 y1 x2 y2 in the file; top, left, bottom, right here.
  assert first.box == (34.1, 136.5, 955.7, 648.5)
  assert first.easy == (KEBLE.format(0), KEBLE.format(2))
  assert first.hard == (KEBLE.format(1),)
  assert first.junk == ("oxford5k/images/oxford_000003.jpg",)
  # The query's own photograph stays and is a positive, as in compute_ap.
  assert opened.truth.keeps_queries
  assert opened.left_out(first) is None
  assert first.path in opened.database and first.path in first.easy


def test_the_same_photograph_may_be_two_queries(downloads):
  opened = retrieval_sets.open_set("oxford5k", downloads, complete=False)
  ids = [query.id for query in opened.truth.queries]
  assert ids == [
    f"{KEBLE.format(2)}#34.1,136.5,955.7,648.5",
    f"{KEBLE.format(2)}#20,10,40,30",
  ]
  assert [item.name for item in opened.query_items] == ids


def test_queries_come_with_boxes_unless_one_asks_otherwise(downloads):
  for name in ("oxford5k", "paris6k"):
    opened = retrieval_sets.open_set(name, downloads, complete=False)
    assert all(item.box is not None for item in opened.query_items)
    whole = retrieval_sets.open_set(
      name, downloads, complete=False, crop_queries=False
    )
    assert all(item.box is None for item in whole.query_items)
    assert whole.name == f"{name} (uncropped)"
    assert whole.fingerprint != opened.fingerprint


def test_paris_without_what_is_corrupt(downloads):
  opened = retrieval_sets.open_set("paris6k", downloads, complete=False)
  corrupt = "paris6k/paris/louvre/paris_louvre_000136.jpg"
  assert (downloads / corrupt).exists() and corrupt not in opened.database
  assert len(opened.database) == 29
  (query,) = opened.truth.queries
  assert query.easy == ("paris6k/paris/louvre/paris_louvre_000131.jpg",)
  assert query.box == (2, 1, 40, 30.25)
  assert len(cities.CORRUPT) == len(set(cities.CORRUPT)) == 20


def test_flickr_is_added_to_the_database(downloads):
  for name, count in (("oxford105k", 12), ("paris106k", 31)):
    opened = retrieval_sets.open_set(name, downloads, complete=False)
    assert opened.name == name and len(opened.database) == count
    assert "flickr100k/oxc1_100k/sky/1.jpg" in opened.database
    assert opened.database == tuple(sorted(opened.database))


def test_distractors_come_from_the_other_city(downloads):
  def choose(count, seed=0):
    opened = retrieval_sets.open_set(
      "oxford5k", downloads, complete=False, distractors=count, seed=seed
    )
    return [query.id for query in opened.distractors]

  assert choose(0) == []
  few, many = choose(8), choose(16)
  assert many[:8] == few and len(set(many)) == 16
  assert all(path.startswith("paris6k/") for path in many)
  assert not any("louvre_000136" in path for path in choose(29))
  assert choose(8) == few and choose(8, seed=1) != few
  opened = retrieval_sets.open_set(
    "paris6k", downloads, complete=False, distractors=3
  )
  assert opened.name == "paris6k* (3)"
  assert all("oxford5k" in query.path for query in opened.distractors)
  with pytest.raises(InputError, match="29 photographs can be that"):
    choose(30)


def test_landmarks_of_both_sets_are_no_distractors():
  names = ["paris_louvre_1", "paris_keble_1", "paris_louvre_2", "same_1"]
  chosen = oxford_paris.choose(
    names, count=2, seed=0, against=["keble_7", "same_1"]
  )
  assert set(chosen) == {"paris_louvre_1", "paris_louvre_2"}


def test_the_choice_of_distractors_is_for_ever():
  names = [f"paris_louvre_{i}" for i in range(100)]
  assert oxford_paris.choose(names, count=3, seed=0) == FOR_EVER


# sha256 of "0:paris_louvre_N", sorted; computed apart with sha256sum.
FOR_EVER = ["paris_louvre_39", "paris_louvre_97", "paris_louvre_43"]


@pytest.mark.parametrize(
  "layout",
  [
    "oxbuild_images/{}.jpg",
    "Oxford/deep/er/{}.JPG",
    "{}.jpg",
    "roxford5k/jpg/{}.jpg",
  ],
)
def test_usual_layouts(tmp_path, layout):
  touch(tmp_path, *(layout.format(f"keble_{i:06d}") for i in range(3)))
  touch(tmp_path, "notes.jpg", ".hidden/keble_000009.jpg")
  text(
    tmp_path / "gt_files",
    keble_1_query="oxc1_keble_000000 1 2 3 4",
    keble_1_good="keble_000000",
    keble_1_ok="",
    keble_1_junk="",
  )
  opened = retrieval_sets.open_set("oxford5k", tmp_path, complete=False)
  assert [Path(path).stem for path in opened.database] == [
    f"keble_{i:06d}" for i in range(3)
  ]
  assert len(opened.truth.queries) == 1


def test_both_ground_truths_unpacked_into_one_folder(downloads):
  flat = downloads / "all"
  flat.mkdir()
  for folder in ("oxford5k/gt_files_170407", "paris6k/paris_120310"):
    for file in list((downloads / folder).iterdir()):
      file.rename(flat / file.name)
  oxford = retrieval_sets.open_set("oxford5k", downloads, complete=False)
  paris = retrieval_sets.open_set("paris6k", downloads, complete=False)
  assert len(oxford.truth.queries) == 2 and len(paris.truth.queries) == 1


def test_what_is_positive_and_junk_counts_as_junk(downloads):
  truth = downloads / "oxford5k/gt_files_170407"
  (truth / "keble_1_junk.txt").write_text("keble_000001\r\nkeble_000000.jpg\n")
  opened = retrieval_sets.open_set("oxford5k", downloads, complete=False)
  query = opened.truth.queries[0]
  assert query.easy == (KEBLE.format(2),) and query.hard == ()
  assert query.junk == (KEBLE.format(0), KEBLE.format(1))
  ((file, reason),) = opened.problems
  assert file.endswith("keble_1_junk.txt") and "2 photographs" in reason


def test_the_fingerprint_does_not_depend_on_the_layout(downloads, tmp_path):
  one = retrieval_sets.open_set("oxford5k", downloads, complete=False)
  (downloads / "oxford5k/images").rename(downloads / "oxford5k/jpg")
  two = retrieval_sets.open_set("oxford5k", downloads, complete=False)
  assert one.fingerprint == two.fingerprint
  assert one.database != two.database
  (downloads / "oxford5k/jpg/keble_000004.jpg").unlink()
  less = retrieval_sets.open_set("oxford5k", downloads, complete=False)
  assert less.fingerprint != one.fingerprint


def refuse(name, directory, message, **options):
  with pytest.raises(InputError, match=message) as raised:
    retrieval_sets.open_set(name, directory, **options)
  assert "\n" not in str(raised.value)


def test_what_is_missing_is_told(downloads, tmp_path_factory):
  empty = tmp_path_factory.mktemp("empty")
  refuse("oxford5k", empty, "fetch oxbuild_images.tgz .* into '.*oxford5k'")
  refuse("paris6k", empty, "fetch paris_1.tgz")
  refuse("oxford5k", empty / "nowhere", "cannot read the folder")
  refuse("oxford5k", downloads, "10 photographs of Oxford5k .* 5,062")
  refuse("paris6k", downloads, "29 photographs of Paris6k .* 6,392")
  refuse("nonsense", downloads, "no retrieval set 'nonsense'; there are json")
  (downloads / "flickr100k").rename(downloads / "elsewhere")
  refuse("oxford105k", downloads, "fetch oxc1_100k.part01.rar", complete=False)
  (downloads / "oxford5k/images/keble_000001.jpg").unlink()
  refuse("oxford5k", downloads, "names 'keble_000001', which", complete=False)
  truth = downloads / "oxford5k/gt_files_170407"
  (truth / "keble_1_query.txt").write_text("oxc1_keble_000002 1 2 3")
  refuse("oxford5k", downloads, "expected a name and x1 y1", complete=False)
  (truth / "keble_1_query.txt").write_text("oxc1_keble_000002 5 2 3 4")
  refuse("oxford5k", downloads, "expected a name and x1 y1", complete=False)
  for file in truth.iterdir():
    file.unlink()
  refuse("oxford5k", downloads, "no ground truth of Oxford5k", complete=False)


def test_a_photograph_that_is_there_twice(downloads):
  touch(downloads, "oxford5k/copy/keble_000001.jpg")
  refuse("oxford5k", downloads, "'keble_000001' is there twice", complete=False)


def write_revisited(path, **changes):
  content = {
    "imlist": [f"keble_{i:06d}" for i in (0, 1, 3, 4)] + ["oxford_000000"],
    "qimlist": ["keble_000002", "keble_000005"],
    "gnd": [
      {
        "bbx": [136.5, 34.1, 648.5, 955.7],
        "easy": [0, 1],
        "hard": np.array([2]),
        "junk": [4],
      },
      {"bbx": np.float32([1, 2, 3, 4]), "easy": [], "hard": [3], "junk": []},
    ],
    **changes,
  }
  path.write_bytes(pickle.dumps(content, protocol=2))


def test_revisited(downloads):
  write_revisited(downloads / "gnd_roxford5k.pkl")
  opened = retrieval_sets.open_set("roxford5k", downloads, complete=False)
  assert opened.name == "roxford5k" and opened.protocol == "revisited"
  assert len(opened.database) == 5
  first, second = opened.truth.queries
  assert first.path == KEBLE.format(2)
  assert first.box == (34.1, 136.5, 955.7, 648.5)
  assert first.easy == (KEBLE.format(0), KEBLE.format(1))
  assert first.hard == (KEBLE.format(3),)
  assert first.junk == ("oxford5k/images/oxford_000000.jpg",)
  assert second.hard == (KEBLE.format(4),) and second.box == (2, 1, 4, 3)
  # Queries are no part of the database.
  assert not opened.truth.keeps_queries
  assert not {first.path, second.path} & set(opened.database)
  refuse("roxford5k", downloads, "5 photographs and 2 queries, published are")
  touch(downloads, "revisitop1m/jpg/a/1.jpg", "revisitop1m/jpg/b/1.jpg")
  more = retrieval_sets.open_set("roxford5k+1m", downloads, complete=False)
  assert len(more.database) == 7 and more.truth == opened.truth


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"gnd": []}, "not the revisited ground truth"),
    ({"imlist": ["keble_000000"]}, "not the revisited ground truth"),
    ({"imlist": [3]}, "not the revisited ground truth"),
    ({"qimlist": ["keble_000002", "keble_999999"]}, "'keble_999999', which"),
    ({"gnd": [{"bbx": [1, 2, 3]}] * 2}, "not the revisited ground truth"),
  ],
)
def test_a_revisited_file_that_is_unfit(downloads, changes, message):
  write_revisited(downloads / "gnd_roxford5k.pkl", **changes)
  refuse("roxford5k", downloads, message, complete=False)


class Attack:
  def __reduce__(self):
    return print, ("run",)


def test_a_pickle_cannot_run_anything(downloads, capsys):
  refuse("roxford5k", downloads, "no file gnd_roxford5k.pkl", complete=False)
  path = downloads / "gnd_roxford5k.pkl"
  path.write_bytes(pickle.dumps({"imlist": Attack()}))
  refuse("roxford5k", downloads, "it was not run", complete=False)
  assert capsys.readouterr().out == ""


def own(root, **entry):
  for number, name in enumerate(("a", "b", "c")):
    photo(root / "photos" / f"{name}.png", size=(120, 90), seed=number)
  photo(root / "distractors/x.png")
  photo(root / "distractors/y.png")
  query = {"query": "a.png", "easy": ["b.png"], "hard": [], "junk": [], **entry}
  (root / "truth.json").write_text(json.dumps({"queries": [query]}))


def test_own_photographs(tmp_path):
  own(tmp_path)
  opened = retrieval_sets.open_set(
    "json",
    tmp_path / "photos",
    ground_truth=tmp_path / "truth.json",
    distractors=tmp_path / "distractors",
  )
  assert opened.database == ("a.png", "b.png", "c.png")
  (query,) = opened.truth.queries
  assert query.id == "a.png" and opened.left_out(query) == "a.png"
  assert [item.path for item in opened.distractor_items] == [
    "../distractors/x.png",
    "../distractors/y.png",
  ]
  assert opened.protocol == "revisited"
  fewer = retrieval_sets.open_set(
    "json",
    tmp_path / "photos",
    ground_truth=tmp_path / "truth.json",
    distractors=tmp_path / "distractors",
    num_distractors=1,
  )
  assert fewer.distractors == opened.distractors[:1]
  options = {"ground_truth": tmp_path / "truth.json"}
  refuse(
    "json",
    tmp_path / "photos",
    "3 distractor queries wanted, 2",
    distractors=tmp_path / "distractors",
    num_distractors=3,
    **options,
  )
  refuse(
    "json", tmp_path / "photos", "of no folder", num_distractors=1, **options
  )
  refuse(
    "json", tmp_path / "photos", "overlap", distractors=tmp_path, **options
  )


def test_distractors_are_found_beside_a_link(tmp_path):
  own(tmp_path / "far" / "away")
  (tmp_path / "photos").symlink_to(tmp_path / "far" / "away" / "photos")
  (tmp_path / "strangers").symlink_to(tmp_path / "far" / "away" / "distractors")
  opened = retrieval_sets.open_set(
    "json",
    tmp_path / "photos",
    ground_truth=tmp_path / "far" / "away" / "truth.json",
    distractors=tmp_path / "strangers",
  )
  assert opened.distractors
  for query in opened.distractors:
    assert os.path.isfile(os.path.join(opened.root, query.path))


def test_clutter_is_in_the_database_and_answers_no_query(tmp_path):
  own(tmp_path)
  for number, name in enumerate(("one/a", "one/d", "two/e")):
    photo(tmp_path / "clutter" / f"{name}.png", seed=number)
  options = {
    "ground_truth": tmp_path / "truth.json",
    "distractors": tmp_path / "distractors",
  }
  clutter = [tmp_path / "clutter" / name for name in ("two", "one")]
  bare = retrieval_sets.open_set("json", tmp_path / "photos", **options)
  opened = retrieval_sets.open_set(
    "json", tmp_path / "photos", clutter=clutter, **options
  )
  assert opened.database == (
    "../clutter/one/a.png",
    "../clutter/one/d.png",
    "../clutter/two/e.png",
    *("a.png", "b.png", "c.png"),
  )
  assert opened.truth == bare.truth and opened.distractors == bare.distractors
  for places in (
    [tmp_path / "photos"],
    [tmp_path / "distractors"],
    [tmp_path / "clutter", *clutter],
    clutter[:1] * 2,
  ):
    refuse("json", tmp_path / "photos", "overlap", clutter=places, **options)


def test_own_boxes_are_cut_out_and_names_keep_the_two_apart(tmp_path):
  own(tmp_path, box=[10, 20, 80, 110])
  options = {"ground_truth": tmp_path / "truth.json"}
  opened = retrieval_sets.open_set("json", tmp_path / "photos", **options)
  assert [item.name for item in opened.query_items] == ["a.png#10,20,80,110"]
  extractor = extractors.open_extractor("rootsift")
  extraction.extract_items(
    extractor,
    opened.root,
    [*opened.database, *opened.query_items],
    tmp_path / "store",
  )
  made = store.open_store(tmp_path / "store")
  assert set(made.paths) == {*opened.database, "a.png#10,20,80,110"}
  # Whoever searches with the whole photograph has no such query.
  (query,) = opened.truth.queries
  with pytest.raises(ValueError, match="exactly the ground truth's queries"):
    protocols.evaluate(opened.truth, {query.path: []}, {})
  whole = retrieval_sets.open_set(
    "json", tmp_path / "photos", crop_queries=False, **options
  )
  assert whole.query_items == (("a.png", None),)
  assert whole.name == "json (uncropped)"


@pytest.mark.parametrize(
  "box", [[1, 2, 3], [3, 2, 1, 4], "1234", [1, 2, True, 4], [1, 2, 1e999, 4]]
)
def test_an_own_box_that_is_unfit(tmp_path, box):
  own(tmp_path, box=box)
  refuse(
    "json",
    tmp_path / "photos",
    "'box' must be",
    ground_truth=tmp_path / "truth.json",
  )


def test_synthetic_is_written_once(tmp_path):
  options = {"num_landmarks": 2, "views": 3, "queries": 1, "clutter": 2}
  opened = retrieval_sets.open_set(
    "synthetic", tmp_path, distractors=4, **options
  )
  assert len(opened.database) == 8 and len(opened.distractors) == 4
  assert len(opened.truth.queries) == 2
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
  again = retrieval_sets.open_set(
    "synthetic", tmp_path, distractors=2, **options
  )
  assert again.distractors == opened.distractors[:2]
  assert again.truth == opened.truth
  assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpg")}
  none = retrieval_sets.open_set("synthetic", tmp_path, distractors=0)
  assert none.distractors == () and none.database == opened.database
  refuse("synthetic", tmp_path, "4 photographs are under", distractors=5)
  refuse("synthetic", tmp_path, "was written with views=3, not 4", views=4)
  with pytest.raises(TypeError, match="unknown options of synthetic: colour"):
    retrieval_sets.open_set("synthetic", tmp_path, colour=1)


def test_holidays(tmp_path):
  names = ["100000", "100001", "100002", "100100", "100101", "149900", "149901"]
  touch(tmp_path, *(f"jpg/{name}.jpg" for name in names), "jpg/readme.jpg")
  opened = retrieval_sets.open_set("holidays", tmp_path, complete=False)
  assert opened.protocol == "classic" and len(opened.database) == 7
  assert [
    (query.path, query.easy, query.hard, query.junk, query.box)
    for query in opened.truth.queries
  ] == [
    ("jpg/100000.jpg", ("jpg/100001.jpg", "jpg/100002.jpg"), (), (), None),
    ("jpg/100100.jpg", ("jpg/100101.jpg",), (), (), None),
    ("jpg/149900.jpg", ("jpg/149901.jpg",), (), (), None),
  ]
  # In the database, and left out of their own rankings.
  assert "jpg/100000.jpg" in opened.database
  assert opened.left_out(opened.truth.queries[0]) == "jpg/100000.jpg"
  refuse("holidays", tmp_path, "7 photographs of Holidays .* 1,491; fetch jpg1")
  (tmp_path / "jpg/100100.jpg").unlink()
  refuse("holidays", tmp_path, "100100 is the query", complete=False)


def gps_table(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = ["path,lat,lon", *(",".join(map(str, row)) for row in rows)]
  path.write_text("\n".join(lines) + "\n")


def test_gps(tmp_path):
  touch(tmp_path, "d/a.jpg", "d/b.jpg", "q/c.jpg")
  gps_table(
    tmp_path / "database.csv", ("d/b.jpg", 48.8, 2.3), ("d/a.jpg", -90, 180)
  )
  gps_table(tmp_path / "queries.csv", ("q/c.jpg", 1, 2), ("d/b.jpg", 48.8, 2.3))
  opened = retrieval_sets.open_set("gps", tmp_path)
  assert opened.protocol == "gps" and opened.database == ("d/a.jpg", "d/b.jpg")
  assert [query.id for query in opened.truth.queries] == ["q/c.jpg", "d/b.jpg"]
  assert opened.positions["d/a.jpg"] == (-90, 180)
  assert opened.positions["q/c.jpg"] == (1, 2)
  for row, message in (
    (("q/c.jpg", 91, 2), "row 1: 'q/c.jpg' is at"),
    (("q/c.jpg", "", 2), "row 1: 'q/c.jpg' is at"),
    (("q/c.jpg", "nan", 2), "row 1: 'q/c.jpg' is at"),
    (("q/d.jpg", 1, 2), "1 of 1 photographs are not under"),
    (("d/b.jpg", 1, 2), "'d/b.jpg' is at .* correct one"),
    (("q/c.jpg", 1, 2, 3), "1 rows have not 3 fields"),
  ):
    gps_table(tmp_path / "queries.csv", row)
    refuse("gps", tmp_path, message)
  gps_table(tmp_path / "queries.csv", ("q/c.jpg", 1, 2), ("q/c.jpg", 1, 2))
  refuse("gps", tmp_path, "twice")
  gps_table(tmp_path / "queries.csv")
  refuse("gps", tmp_path, "has no photographs")
  refuse("gps", tmp_path, "no file", queries="none.csv")


@pytest.fixture
def google(tmp_path):
  touch(
    tmp_path,
    "index/a/a/a/aaa1.jpg",
    "index/a/a/b/aab2.jpg",
    "test/q/1/2/q12.jpg",
    "test/q/1/3/q13.jpg",
    "test/q/1/4/q14.jpg",
    "test/q/1/5/q15.jpg",
    "train/t/1/1/t11.jpg",
    "train/t/1/2/t12.jpg",
  )
  for name, content in {
    "metadata/index.csv": "id,url\naaa1,http://x\naab2,http://y\n",
    "ground_truth/retrieval_solution_v2.1.csv": (
      "id,images,Usage\nq12,aaa1 aab2,Private\nq13,aab2,Public\n"
      "q14,None,Ignored\n"
    ),
    "ground_truth/recognition_solution_v2.1.csv": (
      "id,landmarks,Usage\nq12,7 8,Private\nq13,,Private\nq14,9,Public\n"
      "q15,,Ignored\n"
    ),
    "train.csv": "id,url,landmark_id\nt11,http://x,7\nt12,http://y,9\n",
    "train/train_clean.csv": "landmark_id,images\n7,t11\n",
  }.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
  return tmp_path


def test_google_landmarks_retrieval(google):
  opened = retrieval_sets.open_set("gldv2_retrieval", google, complete=False)
  both = ("index/a/a/a/aaa1.jpg", "index/a/a/b/aab2.jpg")
  assert opened.protocol == "retrieval" and opened.database == both
  assert opened.truth.queries == (
    protocols.QueryTruth("test/q/1/2/q12.jpg", both),
  )
  for usage, count in (("public", 1), ("both", 2)):
    opened = retrieval_sets.open_set(
      "gldv2_retrieval", google, complete=False, usage=usage
    )
    assert len(opened.truth.queries) == count
  refuse("gldv2_retrieval", google, "index.csv lists 2 .* 761,757")
  refuse("gldv2_retrieval", google, "expected private", usage="x")
  (google / both[1]).unlink()
  less = retrieval_sets.open_set("gldv2_retrieval", google, complete=False)
  assert less.database == both[:1] and less.truth.queries[0].easy == both
  assert "1 of 2 photographs are missing" in less.problems[0][1]


def test_google_landmarks_recognition(google):
  opened = retrieval_sets.open_set("gldv2_recognition", google, complete=False)
  assert opened.protocol == "recognition"
  assert opened.database == ("train/t/1/1/t11.jpg",)
  assert [query.path for query in opened.truth.queries] == [
    "test/q/1/2/q12.jpg",
    "test/q/1/3/q13.jpg",
  ]
  assert opened.labels == {
    "train/t/1/1/t11.jpg": ("7",),
    "test/q/1/2/q12.jpg": ("7", "8"),
    "test/q/1/3/q13.jpg": (),
  }
  whole = retrieval_sets.open_set(
    "gldv2_recognition", google, complete=False, clean=False, usage="both"
  )
  assert len(whole.database) == 2 and len(whole.truth.queries) == 3
  refuse("gldv2_recognition", google, "published are 1,580,470")
  (google / "train.csv").unlink()
  refuse("gldv2_recognition", google, "no file train.csv in", clean=False)
  solution = google / "ground_truth/recognition_solution_v2.1.csv"
  solution.write_text("id,landmarks,Usage\nq12,7,Secret\n")
  refuse("gldv2_recognition", google, "has the usage 'secret'", complete=False)
