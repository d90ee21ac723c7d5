"""Queries and their positives: drawn from labels, read from files."""

import collections
import pickle

import numpy as np
import pytest

from delf_jax.data.matching_pairs import MatchingPairs, read_pairs
from delf_jax.data.pair_sources import write_verified
from delf_jax.data.sources import FileSource
from delf_jax.errors import InputError

LABELS = np.array([7, 3, 7, 5, 3, 7])


def test_every_query_once_an_epoch_with_a_positive_of_its_label():
  pairs = MatchingPairs(LABELS, None, seed=1)
  assert len(pairs) == 5  # the only one of label 5 matches nothing
  drawn = [pairs(i) for i in range(500)]
  for start in range(0, 500, 5):
    queries = sorted(query for query, _ in drawn[start : start + 5])
    assert queries == [0, 1, 2, 4, 5]
  assert all(q != p and LABELS[q] == LABELS[p] for q, p in drawn)
  of_the_first = collections.Counter(p for q, p in drawn if q == 0)
  assert set(of_the_first) == {2, 5} and min(of_the_first.values()) > 30
  again = MatchingPairs(LABELS, None, seed=1)
  assert [again(i) for i in (7, 3)] == [drawn[7], drawn[3]]
  other = MatchingPairs(LABELS, None, seed=2)
  assert [other(i) for i in range(50)] != drawn[:50]


def test_pairs_that_are_given():
  given = np.array([[0, 2], [4, 1], [3, 5]])
  pairs = MatchingPairs(LABELS, given, seed=0)
  assert sorted(pairs(i) for i in range(3)) == sorted(
    map(tuple, given.tolist())
  )


def test_nothing_matches():
  with pytest.raises(InputError, match="no two photographs"):
    MatchingPairs(np.arange(4), None, seed=0)


def source_of(*names):
  return FileSource("", names, np.zeros(len(names)))


def test_verified_pairs_count_both_ways(tmp_path):
  write_verified(
    tmp_path / "pairs.npz",
    paths=["a/1.jpg", "a/2.jpg", "b/1.jpg"],
    pairs=np.array([[0, 1], [0, 1], [1, 2]]),
    homographies=np.tile(np.eye(3), (3, 1, 1)),
    inliers=[np.zeros((4, 2))] * 3,
  )
  source = source_of("b/1.jpg", "a/2.jpg", "c/1.jpg")
  found = read_pairs(tmp_path / "pairs.npz", source)
  assert found.tolist() == [[0, 1], [1, 0]]
  with pytest.raises(InputError, match="none of its 6 pairs"):
    read_pairs(tmp_path / "pairs.npz", source_of("c/1.jpg"))


def test_published_queries_and_positives(tmp_path):
  content = {
    "train": {
      "cids": ["aaaaaa1", "bbbbbb2", "cccccc3"],
      "cluster": [0, 0, 1],
      "qidxs": [0, 1, 2],
      "pidxs": [1, 0, 1],
    }
  }
  path = tmp_path / "retrieval-SfM-120k.pkl"
  path.write_bytes(pickle.dumps(content))
  source = source_of("ims/b2/bb/bb/bbbbbb2", "ims/a1/aa/aa/aaaaaa1")
  assert read_pairs(path, source).tolist() == [[0, 1], [1, 0]]
  content["train"]["pidxs"][0] = 9
  path.write_bytes(pickle.dumps(content))
  with pytest.raises(InputError, match="no lists cids, qidxs and pidxs"):
    read_pairs(path, source)


def test_other_files(tmp_path):
  with pytest.raises(InputError, match=r"expected retrieval-SfM-120k\.pkl"):
    read_pairs("pairs.csv", source_of("a"))
  (tmp_path / "broken.npz").write_bytes(b"nothing")
  with pytest.raises(InputError, match="write it with"):
    read_pairs(tmp_path / "broken.npz", source_of("a"))
  with pytest.raises(InputError, match="data_dir"):
    read_pairs("pairs.npz", [])
