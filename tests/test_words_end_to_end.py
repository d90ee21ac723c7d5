"""Bags of words as a user builds, changes, searches and measures them."""

import json

import numpy as np
import pytest

from delf_jax import (
  build_index,
  database,
  extraction,
  extractors,
  index,
  measurement,
)
from delf_jax import cached_database as cached
from delf_jax.data import retrieval_sets
from delf_jax.errors import InputError
from delf_jax.features import store
from tests.test_build_index import descriptors_of, write_store
from tests.test_programs import easiest_query, run, world  # noqa: F401

KIND = index.BAG_OF_WORDS


def best_for(path, opened, number):
  """The name of the photograph that a photograph's descriptors find."""
  meta = index.read_meta(path)["provenance"]
  searchable = database.connect(
    opened,
    index.open_index(path),
    photographs=meta["photographs"],
    removed=meta["removed"],
  )
  found, cosines = searchable.index.rank(
    *searchable.index.describe(descriptors_of(number))
  )
  assert len(searchable.index) == len(searchable.paths)
  return searchable.paths[found[0]], cosines[0]


def test_a_store_grows_shrinks_and_its_index_follows(tmp_path):
  folder = write_store(tmp_path / "store", 10)
  path = str(tmp_path / "index")
  assert build_index.build(folder, KIND, path, words=60) == 300
  opened = store.open_store(folder)
  assert best_for(path, opened, 3) == ("003.jpg", pytest.approx(1))
  write_store(tmp_path / "store", 14)
  assert build_index.update(folder, path, add=True) == (4, 0)
  opened = store.open_store(folder)
  assert best_for(path, opened, 12) == ("012.jpg", pytest.approx(1))
  gone = ["003.jpg", "000.jpg"]
  assert build_index.update(folder, path, remove=gone) == (0, 2)
  assert build_index.update(folder, path, remove=["007.jpg"]) == (0, 1)
  for number in range(14):
    name, cosine = best_for(path, opened, number)
    if number in (0, 3, 7):
      assert cosine < 0.9
    else:
      assert (name, cosine) == (f"{number:03d}.jpg", pytest.approx(1))
  with pytest.raises(InputError, match="not among the photographs"):
    build_index.update(folder, path, remove=["007.jpg"])


def test_a_vocabulary_of_other_photographs(tmp_path):
  others = write_store(tmp_path / "others", 12)
  words = str(tmp_path / "words")
  build_index.build(others, KIND, words, words=50)
  folder = write_store(tmp_path / "store", 5)
  path = str(tmp_path / "index")
  build_index.build(folder, KIND, path, vocabulary=words)
  built, taken = (index.open_index(one).vocabulary for one in (path, words))
  np.testing.assert_array_equal(
    built.words.descriptors, taken.words.descriptors
  )
  assert best_for(path, store.open_store(folder), 2)[0] == "002.jpg"
  with pytest.raises(InputError, match="'nowhere' is no index"):
    build_index.build(folder, KIND, path, vocabulary="nowhere")


def test_a_photograph_is_looked_up(world, tmp_path):  # noqa: F811
  query = easiest_query(world)
  printed = run(
    "build_index",
    f"--store={world}/store",
    f"--kind={KIND}",
    "--option=words=300",
    f"--output={tmp_path}/index",
  )
  assert "bag_of_words index of " in printed
  photo = world / "data" / "photos" / query["query"]
  arguments = (f"--index={tmp_path}/index", f"--photo={photo}", "--json")
  found = json.loads(run("query", *arguments))
  assert found["matches"][0]["path"] in query["easy"] + query["hard"]
  assert query["query"] not in [match["path"] for match in found["matches"]]
  unverified = json.loads(run("query", *arguments, "--candidates=0"))
  assert unverified["matches"] == []
  assert -1 <= unverified["best_rejected"]["score"] <= 0


def test_it_is_measured_with_and_without_verification(
  world,  # noqa: F811
  tmp_path,
):
  def measured(name, *more):
    run(
      "evaluate",
      f"--photos={world}/data/photos",
      f"--ground_truth={world}/data/ground_truth.json",
      f"--distractors={world}/data/distractors",
      "--features=rootsift",
      f"--kind={KIND}",
      "--option=words=300",
      f"--output={tmp_path}/{name}",
      *more,
    )
    return json.loads((tmp_path / name / "metrics.json").read_text())

  ranked = measured("ranked", "--candidates=0")
  assert ranked["settings"]["index_options"] == {"words": 300}
  verified = measured("verified", "--matching=votes", "--score_by=inliers")
  assert verified["mAP_medium"] > ranked["mAP_medium"] > 20
  rankings = json.loads((tmp_path / "ranked" / "rankings.json").read_text())
  for ranking in rankings["queries"].values():
    assert all(-1 <= score <= 0 for _, score in ranking)


def test_another_vocabulary_in_the_same_place_is_another_index(tmp_path):
  benchmark = retrieval_sets.open_set(
    "synthetic",
    tmp_path / "world",
    num_landmarks=2,
    views=3,
    queries=1,
    clutter=1,
    distractors=1,
  )
  extractor = extractors.open_extractor("rootsift", max_features=100)
  words = tmp_path / "words"

  def measured(seed):
    extraction.extract_folder(
      extractor, benchmark.root, tmp_path / f"store{seed}"
    )
    build_index.build(
      str(tmp_path / f"store{seed}"), KIND, str(words), words=50, seed=seed
    )
    return measurement.evaluate(
      extractor,
      benchmark,
      output=tmp_path / "results",
      cache=tmp_path / "cache",
      kind=KIND,
      index_options={"vocabulary": str(words)},
      candidates=0,
    )

  first, again, other = measured(0), measured(0), measured(1)
  assert again == first and other["depends"] != first["depends"]
  assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 2
  described = cached.described("exact", {"chunk": 3})
  assert described == {"chunk": 3}
