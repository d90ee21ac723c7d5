"""Stores: what goes in comes out, and no accident loses or invents a row."""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pyarrow as pa
import pytest

from delf_jax.errors import InputError
from delf_jax.features import store as module
from delf_jax.features.local_features import LocalFeatures, empty, pad
from delf_jax.features.store import open_store, open_writer

SETTINGS = {"features": "rootsift", "max_features": 1000, "scales": (0.5, 1)}


def make(i, dim=16):
  """Returns photograph i's features: a function of i in any process."""
  rng = np.random.default_rng(i)
  n = i * 7 % 20
  descriptors = rng.normal(size=(n, dim)).astype(np.float32)
  descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
  return LocalFeatures(
    locations=rng.uniform(0, 4000, (n, 2)).astype(np.float32),
    scales=rng.uniform(0.5, 4, n).astype(np.float32),
    scores=rng.uniform(0, 100, n).astype(np.float32),
    descriptors=descriptors,
    mask=np.ones(n, bool),
  )


# What the programs start with that tests run in processes of their own.
COMMON = f"""
import os, sys
import numpy as np
from delf_jax.errors import InputError
from delf_jax.features.local_features import LocalFeatures
from delf_jax.features.store import open_store, open_writer

{inspect.getsource(make)}
"""


def name(i):
  return f"landmark {i % 3}/{i:04d}.jpg"


def fill(directory, numbers, *, finish=True, shard_photographs=4, **options):
  """Writes photographs `numbers` that are not in the store yet."""
  options = {"settings": SETTINGS, **options}
  with open_writer(
    directory, shard_photographs=shard_photographs, **options
  ) as writer:
    for i in numbers:
      if name(i) not in writer.done:
        writer.add(name(i), height=100 + i, width=200 + i, features=make(i))
    if finish:
      writer.finish()
  return directory


def expected_descriptors(descriptors, dtype):
  """Quantises independently of the module, row by row."""
  if dtype == "float16":
    return descriptors.astype(np.float16).astype(np.float32)
  if dtype == "int8":
    rows = []
    for row in descriptors:
      step = np.float32(np.max(np.abs(row)) / np.float32(127))
      steps = step if step else np.float32(1)
      rows.append(np.clip(np.rint(row / steps), -127, 127) * step)
    return np.array(rows, np.float32).reshape(descriptors.shape)
  return descriptors


def check(store, numbers, dtype="float16"):
  """Checks every way to read the store against what was put in."""
  everything = [make(i) for i in numbers]
  assert store.paths == tuple(name(i) for i in numbers)
  assert store.sizes.dtype == np.int32
  assert store.sizes.tolist() == [[100 + i, 200 + i] for i in numbers]
  counts = [len(features.mask) for features in everything]
  assert store.offsets.dtype == np.int64
  assert store.offsets.tolist() == np.cumsum([0, *counts]).tolist()
  for index, features in enumerate(everything):
    read = store.features(index)
    for leaf in ("locations", "scales", "scores"):
      np.testing.assert_array_equal(
        getattr(read, leaf), getattr(features, leaf)
      )
      assert getattr(read, leaf).dtype == np.float32
    np.testing.assert_array_equal(
      read.descriptors, expected_descriptors(features.descriptors, dtype)
    )
    assert read.descriptors.dtype == np.float32
    assert read.mask.all() and read.mask.dtype == bool
    assert len(read.mask) == counts[index]


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_what_goes_in_comes_out(dtype, tmp_path):
  directory = tmp_path / "a" / "store"
  fill(directory, range(11), dtype=dtype)
  store = open_store(directory)
  check(store, range(11), dtype)
  assert (store.dtype, store.dim) == (dtype, 16)
  assert store.settings == {**SETTINGS, "scales": [0.5, 1]}
  assert sorted(os.listdir(directory)) == [
    *("meta.json", "shard-00000.arrow", "shard-00001.arrow"),
    "shard-00002.arrow",
  ]
  check(open_store(os.fsencode(directory), verify=False), range(11), dtype)
  # Written again from what was read, nothing changes any more.
  with open_writer(tmp_path / "b", settings={}, dtype=dtype) as writer:
    for index, path in enumerate(store.paths):
      writer.add(path, height=1, width=1, features=store.features(index))
    writer.finish()
  again = open_store(tmp_path / "b")
  np.testing.assert_allclose(
    again.descriptors(), store.descriptors(), rtol=2e-7
  )


def test_any_rows_at_once(tmp_path):
  store = open_store(fill(tmp_path / "store", range(15), shard_photographs=2))
  total = int(store.offsets[-1])
  joined = {
    leaf: np.concatenate([getattr(make(i), leaf) for i in range(15)])
    for leaf in ("locations", "scales", "scores", "descriptors")
  }
  joined["descriptors"] = expected_descriptors(joined["descriptors"], "float16")
  slices = [
    (None, None),
    (0, 1),
    (3, 3),
    (5, 2),
    (7, 60),
    (None, 31),
    (40, None),
  ]
  slices += [(-9, None), (total - 1, total + 50), (total, None)]
  for start, stop in slices:
    for leaf, values in joined.items():
      read = getattr(store, leaf)(start, stop)
      np.testing.assert_array_equal(read, values[start:stop])
      assert read.dtype == np.float32
  with pytest.raises(IndexError):
    store.features(15)
  with pytest.raises(IndexError):
    store.features(-1)


def test_rows_belong_to_photographs(tmp_path):
  # Photographs 0 and 20 have no features at all.
  numbers = [0, 1, 20, 2, 40]
  store = open_store(fill(tmp_path / "store", numbers))
  counts = [len(make(i).mask) for i in numbers]
  assert counts[0] == counts[2] == counts[4] == 0
  expected = np.repeat(np.arange(5), counts)
  images = store.image_of(np.arange(len(expected)))
  np.testing.assert_array_equal(images, expected)
  assert images.dtype == np.int32
  assert store.image_of([[0, -1], [7, 20]]).tolist() == [[1, -1], [3, 3]]
  assert store.image_of(np.zeros((0, 4), int)).shape == (0, 4)
  for row in (len(expected), -2):
    with pytest.raises(ValueError, match="rows beyond"):
      store.image_of([row])


def test_padding_is_not_stored(tmp_path):
  with open_writer(tmp_path / "store", settings={}, dtype="float32") as writer:
    features = pad(make(2), 40)
    poisoned = features.replace(
      descriptors=np.where(features.mask[:, None], features.descriptors, np.nan)
    )
    writer.add("a.jpg", height=1, width=1, features=poisoned)
    writer.finish()
  np.testing.assert_array_equal(
    open_store(tmp_path / "store").features(0).descriptors, make(2).descriptors
  )


def test_stores_without_photographs_or_features(tmp_path):
  with open_writer(tmp_path / "none", settings={}) as writer:
    writer.skip("broken.jpg", "is empty")
    writer.finish()
  store = open_store(tmp_path / "none")
  assert store.paths == () and store.dim == 0
  assert store.descriptors().shape == (0, 0)
  assert store.locations().shape == (0, 2)
  assert store.offsets.tolist() == [0] and store.sizes.shape == (0, 2)
  assert store.image_of([-1]).tolist() == [-1]
  assert store.skipped == (("broken.jpg", "is empty"),)
  for dtype in ("float16", "int8"):
    directory = tmp_path / dtype
    with open_writer(directory, settings={}, dtype=dtype) as writer:
      writer.add("blank.jpg", height=3, width=4, features=empty(40))
      writer.finish()
    store = open_store(directory)
    assert store.paths == ("blank.jpg",) and store.dim == 40
    assert store.descriptors().shape == (0, 40)
    assert store.features(0).locations.shape == (0, 2)


def test_int8_of_zeros_and_of_single_values(tmp_path):
  descriptors = np.float32([[0, 0, 0], [1, 0, -1], [1e-44, 0, 0], [3, 1.5, 0]])
  features = LocalFeatures(
    locations=np.zeros((4, 2)),
    scales=np.ones(4),
    scores=np.ones(4),
    descriptors=descriptors,
    mask=np.ones(4, bool),
  )
  with open_writer(tmp_path / "store", settings={}, dtype="int8") as writer:
    writer.add("a.jpg", height=1, width=1, features=features)
    writer.finish()
  read = open_store(tmp_path / "store").descriptors()
  np.testing.assert_allclose(read, descriptors, atol=3 / 254)
  np.testing.assert_array_equal(read[0], 0)


def test_odd_paths_survive(tmp_path):
  paths = [
    "with space.jpg",
    "new\nline.jpg",
    "Αθήνα/東京.jpg",
    os.fsdecode(b"caf\xe9/\xff.jpg"),
  ]
  skipped = os.fsdecode(b"\xfe\n.jpg")
  directory = tmp_path / os.fsdecode(b"st\xf6re \n")
  with open_writer(directory, settings={"photos": paths[-1]}) as writer:
    for path in paths:
      writer.add(path, height=1, width=1, features=make(1))
    writer.skip(skipped, "is odd")
    writer.finish()
  store = open_store(directory)
  assert store.paths == tuple(paths)
  assert store.skipped == ((skipped, "is odd"),)
  assert store.settings == {"photos": paths[-1]}
  with open_writer(directory, settings={"photos": paths[-1]}) as writer:
    assert writer.done == set(paths)
  os.unlink(directory / "shard-00000.arrow")
  with pytest.raises(InputError, match="missing") as caught:
    open_store(directory)
  assert str(caught.value).isprintable()


@pytest.mark.parametrize("leaf", ["locations", "scales", "scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(leaf, value, tmp_path):
  with open_writer(tmp_path / "store", settings={}) as writer:
    bad = make(1)
    getattr(bad, leaf)[3] = value
    with pytest.raises(InputError, match=f"'odd.jpg' has {leaf}"):
      writer.add("odd.jpg", height=1, width=1, features=bad)
    writer.add("good.jpg", height=1, width=1, features=make(2))
    writer.finish()
  assert open_store(tmp_path / "store").paths == ("good.jpg",)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e38])
def test_descriptors_that_the_dtype_cannot_hold(dtype, value, tmp_path):
  bad = make(1)
  bad.descriptors[2, 5] = value
  with open_writer(tmp_path / "store", settings={}, dtype=dtype) as writer:
    if value == 1e38 and dtype != "float16":
      writer.add("odd.jpg", height=1, width=1, features=bad)
    else:
      with pytest.raises(InputError, match="'odd.jpg' has descriptors"):
        writer.add("odd.jpg", height=1, width=1, features=bad)


def test_programming_mistakes(tmp_path):
  with pytest.raises(ValueError, match="dtype"):
    open_writer(tmp_path / "store", settings={}, dtype="float64")
  with pytest.raises(ValueError, match="at least 1"):
    open_writer(tmp_path / "store", settings={}, shard_photographs=0)
  with pytest.raises(TypeError):
    open_writer(tmp_path / "store", settings={"a": object()})
  assert not (tmp_path / "store").exists()
  with open_writer(tmp_path / "store", settings={}) as writer:
    writer.add("a.jpg", height=1, width=1, features=make(1))
    with pytest.raises(ValueError, match="already"):
      writer.add("a.jpg", height=1, width=1, features=make(1))
    with pytest.raises(ValueError, match="8 dimensions"):
      writer.add("b.jpg", height=1, width=1, features=make(1, dim=8))
    with pytest.raises(ValueError, match="shapes"):
      writer.add(
        "c.jpg",
        height=1,
        width=1,
        features=make(1).replace(locations=np.zeros((7, 3))),
      )
    writer.finish()
  with pytest.raises(ValueError, match="closed"):
    writer.add("d.jpg", height=1, width=1, features=make(1))


def test_a_store_goes_on_where_it_stopped(tmp_path):
  directory = fill(tmp_path / "store", range(6), finish=False)
  with pytest.raises(InputError, match=r"incomplete \(6 photographs so far"):
    open_store(directory)
  with open_writer(directory, settings=SETTINGS) as writer:
    assert writer.done == {name(i) for i in range(6)}
  fill(directory, range(11))
  check(open_store(directory), range(11))
  # A complete store grows, and is incomplete until it is finished again.
  fingerprint = open_store(directory).fingerprint
  fill(directory, range(11))
  assert open_store(directory).fingerprint == fingerprint
  fill(directory, range(13), finish=False)
  with pytest.raises(InputError, match="incomplete"):
    open_store(directory)
  fill(directory, range(13))
  check(open_store(directory), range(13))
  assert open_store(directory).fingerprint != fingerprint


def test_the_fingerprint_tells_stores_apart(tmp_path):
  def fingerprint(place, numbers, **options):
    return open_store(fill(tmp_path / place, numbers, **options)).fingerprint

  one = fingerprint("1", range(5))
  assert one == fingerprint("2", range(5))
  assert int(one, 16) > 0
  others = [
    fingerprint("3", range(6)),
    fingerprint("4", range(5), settings={**SETTINGS, "max_features": 5}),
    fingerprint("5", range(5), dtype="int8"),
    fingerprint("6", [4, 3, 2, 1, 0]),
  ]
  assert len({one, *others}) == 5


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_loses_nothing(interruption, tmp_path):
  directory = tmp_path / "store"
  with pytest.raises(interruption):
    with open_writer(
      directory, settings=SETTINGS, shard_photographs=4
    ) as writer:
      for i in range(6):
        writer.add(name(i), height=100 + i, width=200 + i, features=make(i))
      raise interruption
  with open_writer(directory, settings=SETTINGS) as writer:
    assert writer.done == {name(i) for i in range(6)}
  fill(directory, range(9))
  check(open_store(directory), range(9))


def test_skipped_photographs_are_tried_again(tmp_path):
  directory = tmp_path / "store"
  with open_writer(directory, settings={}) as writer:
    writer.skip("b.jpg", "is empty")
    writer.skip("a.jpg", "is truncated")
  with open_writer(directory, settings={}) as writer:
    assert writer.done == frozenset()
    writer.skip("a.jpg", "is truncated")
    writer.skip("c.jpg", "was locked")
    writer.add("b.jpg", height=1, width=1, features=make(1))
    writer.add("c.jpg", height=1, width=1, features=make(2))
    writer.finish()
  store = open_store(directory)
  assert store.paths == ("b.jpg", "c.jpg")
  assert store.skipped == (("a.jpg", "is truncated"),)


def test_other_settings_are_refused_and_listed(tmp_path):
  directory = fill(tmp_path / "store", range(3))
  before = snapshot(directory)
  other = {"features": "sift", "max_features": 1000, "side": 640}
  with pytest.raises(InputError) as caught:
    open_writer(directory, settings=other, dtype="int8")
  line = str(caught.value)
  assert '"rootsift" there, "sift" now' in line
  assert "side (unset there, 640 now)" in line
  assert "scales ([0.5, 1] there, unset now)" in line
  assert '"float16" there, "int8" now' in line
  assert "max_features" not in line
  assert "choose another --output or remove it" in line
  assert snapshot(directory) == before
  # The order of a mapping is no setting.
  nested = {"a": {"x": 1, "y": 2}}
  fill(tmp_path / "nested", range(2), settings=nested)
  fill(tmp_path / "nested", range(3), settings={"a": {"y": 2, "x": 1}})


def snapshot(directory):
  return {
    entry: (directory / entry).read_bytes()
    for entry in sorted(os.listdir(directory))
  }


def test_directories_that_are_no_stores(tmp_path):
  other = tmp_path / "photos"
  other.mkdir()
  (other / "a.jpg").write_bytes(b"a")
  index = tmp_path / "index"
  index.mkdir()
  (index / "meta.json").write_text('{"format": "an index", "version": 1}')
  for directory, words in ((other, "exists and is not"), (index, "not a st")):
    before = snapshot(directory)
    changed = os.stat(directory).st_mtime_ns
    with pytest.raises(InputError, match=words):
      open_writer(directory, settings={})
    with pytest.raises(InputError, match="not a store"):
      open_store(directory)
    assert snapshot(directory) == before
    assert os.stat(directory).st_mtime_ns == changed
  file = tmp_path / "file"
  file.write_bytes(b"")
  for directory in (file, file / "below"):
    with pytest.raises(InputError, match="not a folder"):
      open_writer(directory, settings={})
    with pytest.raises(InputError, match="not a store"):
      open_store(directory)
  with pytest.raises(InputError, match="not a store"):
    open_store(tmp_path / "none")
  # An empty folder, and what a writer killed at once leaves, will do.
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "writer.lock").write_text("1")
  (tmp_path / "empty" / "meta.json.tmp").write_text("{")
  fill(tmp_path / "empty", range(2))
  check(open_store(tmp_path / "empty"), range(2))


def test_one_writer_at_a_time(tmp_path):
  directory = tmp_path / "store"
  with open_writer(directory, settings=SETTINGS):
    with pytest.raises(InputError, match=f"by process {os.getpid()}; wait"):
      open_writer(directory, settings=SETTINGS)
    code = """
    try:
      open_writer(sys.argv[1], settings={})
    except InputError as error:
      print(error)
    """
    assert f"process {os.getpid()}" in run(code, directory).stdout
  fill(directory, range(2))


def run(code, *arguments, **options):
  """Runs code after COMMON in a process of its own."""
  return subprocess.run(
    [
      sys.executable,
      "-c",
      COMMON + textwrap.dedent(code),
      *map(str, arguments),
    ],
    **{"capture_output": True, "text": True, **options},
  )


WRITE = """
with open_writer(
  sys.argv[1], settings={"features": "rootsift"}, shard_photographs=4
) as writer:
  for i in range(10_000):
    path = f"landmark {i % 3}/{i:04d}.jpg"
    if path not in writer.done:
      writer.add(path, height=100 + i, width=200 + i, features=make(i))
      print(i, flush=True)
"""


def test_a_killed_writer_loses_at_most_its_last_shard(tmp_path):
  directory = tmp_path / "store"
  settings = {"features": "rootsift"}
  stored = 0
  for lines in (1, 23, 62):
    with subprocess.Popen(
      [sys.executable, "-c", COMMON + WRITE, directory], stdout=subprocess.PIPE
    ) as process:
      # Killed wherever it is by then, mostly in the middle of a shard.
      for _ in range(lines):
        last = int(process.stdout.readline())
      process.send_signal(signal.SIGKILL)
      last = max([last, *map(int, process.stdout.read().split())])
    with pytest.raises(InputError, match="incomplete"):
      open_store(directory)
    with open_writer(directory, settings=settings) as writer:
      done = len(writer.done)
      assert writer.done == {name(i) for i in range(done)}
    assert done >= stored and last + 1 - 4 <= done <= last + 2
    stored = done
  # Strays of a kill between the shard and meta.json, and in the middle.
  (directory / f"shard-{stored:05d}.arrow").write_bytes(b"whole but unnamed")
  (directory / "shard-00000.arrow.tmp").write_bytes(b"half")
  (directory / "meta.json.tmp").write_bytes(b"{")
  (directory / "notes.txt").write_bytes(b"mine")
  numbers = range(stored + 5)
  fill(directory, numbers, settings=settings)
  check(open_store(directory), numbers)
  assert "notes.txt" in os.listdir(directory)
  assert not [f for f in os.listdir(directory) if f.endswith((".tmp", ".lock"))]
  assert not (directory / f"shard-{stored:05d}.arrow").exists()


def test_a_file_size_limit_keeps_what_was_written(tmp_path):
  code = """
  import resource
  resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
  try:
    with open_writer(
      sys.argv[1], settings={}, shard_photographs=4, dtype="float32"
    ) as writer:
      for i in range(9):
        # The third shard is larger than the limit.
        features = make(i, dim=16)
        if i == 8:
          features = features.replace(
            **{
              leaf: np.repeat(getattr(features, leaf), 100, axis=0)
              for leaf in (
                "locations", "scales", "scores", "descriptors", "mask"
              )
            }
          )
        writer.add(f"{i}.jpg", height=1, width=1, features=features)
  except InputError as error:
    print(error)
  """
  directory = tmp_path / "store"
  done = run(code, directory)
  assert done.stderr == ""
  assert os.strerror(errno.EFBIG) in done.stdout
  assert "8 photographs are kept, free some space and run" in done.stdout
  assert done.stdout.count("\n") == 1
  assert sorted(os.listdir(directory)) == [
    *("meta.json", "shard-00000.arrow", "shard-00001.arrow")
  ]
  with open_writer(directory, settings={}, dtype="float32") as writer:
    assert len(writer.done) == 8
    writer.finish()
  store = open_store(directory)
  np.testing.assert_array_equal(store.features(7).scores, make(7).scores)


def test_a_full_disk_keeps_what_was_written(tmp_path):
  """On a file system of 200 kB that only the child process sees."""
  code = """
  os.chdir(sys.argv[1])
  with open("ballast", "wb") as file:
    file.write(bytes(100_000))

  def extract():
    with open_writer(
      "store", settings={}, shard_photographs=10, dtype="float32"
    ) as writer:
      for i in range(200):
        if f"{i}.jpg" not in writer.done:
          writer.add(f"{i}.jpg", height=1, width=1, features=make(i))
      writer.finish()
      return len(writer.done)

  try:
    extract()
  except InputError as error:
    print(error)
  kept = os.listdir("store")
  print([n for n in kept if n.endswith((".tmp", ".lock"))], len(kept) > 2)
  os.unlink("ballast")
  print(extract())
  store = open_store("store")
  print(all(
    np.array_equal(store.features(i).descriptors, make(i).descriptors)
    for i in range(200)
  ))
  """
  done = run_on_small_disk(code, tmp_path, size="300k")
  first, rest, total, same = done.stdout.splitlines()
  assert os.strerror(errno.ENOSPC) in first
  assert "photographs are kept, free some space and run" in first
  assert (rest, total, same) == ("[] True", "200", "True")


def run_on_small_disk(code, folder, *, size):
  mount = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
  done = subprocess.run(
    [
      *("unshare", "--map-root-user", "--mount", "sh", "-c", mount, folder),
      *(sys.executable, "-c", COMMON + textwrap.dedent(code), folder),
    ],
    capture_output=True,
    text=True,
  )
  if done.stderr and not done.stdout:
    pytest.skip(f"no private file system here: {done.stderr.strip()[:200]}")
  return done


def test_a_folder_that_cannot_be_written():
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    fill(os.path.join(folder, "store"), range(2))
    os.chmod(os.path.join(folder, "store"), 0o755)
    user = os.geteuid()
    os.chmod(folder, 0o555)
    if user == 0:
      os.seteuid(65534)
    try:
      check(open_store(os.path.join(folder, "store")), range(2))
      with pytest.raises(InputError, match="Permission denied"):
        open_writer(os.path.join(folder, "new"), settings={})
      if user == 0:
        with pytest.raises(InputError, match="Permission denied"):
          open_writer(os.path.join(folder, "store"), settings=SETTINGS)
    finally:
      os.seteuid(user)
      os.chmod(folder, 0o755)
    os.chmod(os.path.join(folder, "store", "shard-00000.arrow"), 0)
    if user == 0:
      os.seteuid(65534)
    try:
      with pytest.raises(InputError, match="Permission denied"):
        open_store(os.path.join(folder, "store"))
    finally:
      os.seteuid(user)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_grown_or_missing_shard(verify, tmp_path):
  directory = fill(tmp_path / "store", range(11))
  shard = directory / "shard-00001.arrow"
  whole = shard.read_bytes()
  for data in (b"", whole[:100], whole[:-1], whole + b"\0"):
    shard.write_bytes(data)
    for attempt in (
      lambda: open_store(directory, verify=verify),
      lambda: open_writer(directory, settings=SETTINGS),
    ):
      with pytest.raises(InputError, match="shard-00001.arrow") as caught:
        attempt()
      assert "delete this file and run" in str(caught.value)
      assert str(caught.value).isprintable()
  # What the message says: delete it and extract again.
  shard.unlink()
  with pytest.raises(InputError, match="missing; run the same"):
    open_store(directory, verify=verify)
  fill(directory, range(11))
  order = [*range(4), *range(8, 11), *range(4, 8)]
  check(open_store(directory), order)


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
  directory = fill(tmp_path / "store", range(5))
  rng = np.random.default_rng(0)
  for file in ("meta.json", "shard-00000.arrow", "shard-00001.arrow"):
    whole = (directory / file).read_bytes()
    fingerprint = open_store(directory).fingerprint
    for _ in range(60):
      at, bit = int(rng.integers(len(whole))), int(rng.integers(8))
      flipped = bytearray(whole)
      flipped[at] ^= 1 << bit
      (directory / file).write_bytes(flipped)
      try:
        store = open_store(directory)
      except InputError as error:
        assert str(error).isprintable() and str(directory) in str(error)
      else:
        # White space between the values of meta.json.
        assert file == "meta.json" and whole[at : at + 1].isspace()
        assert store.fingerprint == fingerprint
    (directory / file).write_bytes(whole)
  check(open_store(directory), range(5))


def test_meta_that_cannot_be_trusted(tmp_path):
  directory = fill(tmp_path / "store", range(5))
  meta = json.loads((directory / "meta.json").read_text())

  def refuse(words, text):
    (directory / "meta.json").write_text(text)
    for attempt in (
      lambda: open_store(directory),
      lambda: open_writer(directory, settings=SETTINGS),
    ):
      with pytest.raises(InputError, match=words) as caught:
        attempt()
      assert str(caught.value).isprintable()

  refuse("newer", json.dumps({**meta, "version": 2, "sha256": "x"}))
  refuse("damaged", json.dumps({**meta, "complete": 1}))
  refuse("damaged", json.dumps({**meta, "version": None}))
  refuse("damaged", "")
  refuse("damaged", json.dumps(meta)[:-30])
  refuse("damaged", "[" * 100_000)
  refuse("not a store", "[]")
  refuse("not a store", "{}")


def test_somebody_elses_store_cannot_lead_out_of_its_directory(tmp_path):
  directory = fill(tmp_path / "store", range(5))
  meta = json.loads((directory / "meta.json").read_text())
  del meta["sha256"]
  good = meta["shards"][0]
  for broken in (
    {"shards": [{**good, "name": "../store/shard-00000.arrow"}]},
    {"shards": [{**good, "bytes": "many"}]},
    {"shards": [good["name"]]},
    {"shards": None},
    {"dim": None},
    {"dtype": "object"},
    {"settings": 3},
    {"skipped": [1]},
  ):
    module._write_meta(str(directory), {**meta, **broken})
    with pytest.raises(InputError, match="meta.json' is damaged"):
      open_store(directory)


def test_a_shard_of_another_store_is_refused(tmp_path):
  directory = fill(tmp_path / "store", range(5), dtype="float32")
  meta = json.loads((directory / "meta.json").read_text())
  del meta["sha256"]
  for change in ({"dim": 8}, {"dtype": "float16"}):
    module._write_meta(str(directory), {**meta, **change})
    with pytest.raises(InputError, match="other columns"):
      open_store(directory)
  first = dict(meta["shards"][0])
  for change in ({"features": 1}, {"photographs": 1}):
    shards = [{**first, **change}, *meta["shards"][1:]]
    module._write_meta(str(directory), {**meta, "shards": shards})
    with pytest.raises(InputError, match="another number of features"):
      open_store(directory)


def test_the_shards_are_plain_arrow(tmp_path):
  """The format is a contract: anybody's Arrow reads it without this code."""
  directory = fill(tmp_path / "store", range(3), dtype="float32")
  with pa.memory_map(str(directory / "shard-00000.arrow")) as source:
    rows = pa.ipc.open_file(source).read_all().to_pylist()
  assert [row["path"] for row in rows] == [name(i).encode() for i in range(3)]
  np.testing.assert_array_equal(
    np.float32(rows[2]["descriptors"]), make(2).descriptors
  )
  np.testing.assert_array_equal(
    np.float32(rows[2]["locations"]), make(2).locations
  )


def test_large_shards_are_closed_early(tmp_path):
  directory = fill(
    tmp_path / "store", range(12), shard_photographs=100, shard_bytes=1000
  )
  meta = json.loads((directory / "meta.json").read_text())
  assert 3 <= len(meta["shards"]) < 12
  check(open_store(directory), range(12))
