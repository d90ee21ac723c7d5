import fcntl
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from delf_jax import index
from delf_jax.errors import InputError
from delf_jax.index import directory


def make_arrays(seed=0, n=1000):
  generator = np.random.default_rng(seed)
  return {
    "descriptors": generator.normal(size=(n, 8)).astype(np.float32),
    "first_rows": np.arange(5, dtype=np.int64),
    "nothing": np.zeros((0, 8), np.float32),
  }


def write(path, arrays, **options):
  directory.write(
    path,
    **{
      "kind": "exact",
      "parameters": {"depth": 3, "epsilon": 0.1},
      "provenance": {"store": "caf\udce9/α", "fingerprint": "12"},
      **options,
    },
    arrays=arrays,
  )


def read(path, **options):
  return directory.read(path, kinds=["exact"], **options)


def assert_holds(path, arrays):
  _, found = read(path)
  assert set(found) == set(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, strict=True)


def array_file(path, name="descriptors"):
  (found,) = path.glob(f"{name}-*.npy")
  return found


def flip_bit(path, position):
  content = bytearray(path.read_bytes())
  content[position] ^= 1
  path.write_bytes(content)


def rewrite_meta(path, **changes):
  """Changes what meta.json says, and its checksum to match."""
  meta = json.loads((path / "meta.json").read_text())
  del meta["sha256"]
  meta.update(changes)
  digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
  meta["sha256"] = digest.hexdigest()
  (path / "meta.json").write_text(json.dumps(meta))


def one_line(error):
  return "\n" not in str(error.value) and str(error.value)


def test_what_was_written_is_read(tmp_path):
  arrays = make_arrays()
  write(tmp_path / "a" / "index", arrays)
  assert_holds(tmp_path / "a" / "index", arrays)
  meta, found = read(str(tmp_path / "a" / "index"))
  assert meta["kind"] == "exact"
  assert meta["parameters"] == {"depth": 3, "epsilon": 0.1}
  assert meta["provenance"] == {"store": "caf\udce9/α", "fingerprint": "12"}
  # Mapped, not loaded.
  assert isinstance(found["descriptors"].base, np.memmap)
  assert not any(array.flags.writeable for array in found.values())


def test_same_input_gives_the_same_bytes(tmp_path):
  for name in ["a", "b"]:
    write(tmp_path / name, make_arrays())
  a, b = (
    {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
    for name in ["a", "b"]
  )
  assert a == b


def test_provenance_needs_no_arrays(tmp_path):
  write(tmp_path / "index", make_arrays())
  array_file(tmp_path / "index").unlink()
  assert index.read_meta(tmp_path / "index")["provenance"]["fingerprint"] == (
    "12"
  )


def test_replacing_leaves_nothing_of_the_old_and_readers_unharmed(tmp_path):
  old, new = make_arrays(0), make_arrays(1, n=500)
  write(tmp_path / "index", old)
  _, mapped = read(tmp_path / "index")
  write(tmp_path / "index", new)
  assert_holds(tmp_path / "index", new)
  assert len(list((tmp_path / "index").iterdir())) == len(new) + 1
  np.testing.assert_array_equal(mapped["descriptors"], old["descriptors"])


def test_readers_beside_a_writer_see_one_index_or_the_other(tmp_path):
  versions = [make_arrays(0, n=300), make_arrays(1, n=200)]
  write(tmp_path / "index", versions[0])
  done = threading.Event()

  def replace():
    for i in range(60):
      write(tmp_path / "index", versions[i % 2])
    done.set()

  writer = threading.Thread(target=replace)
  writer.start()
  reads = 0
  while not done.is_set():
    _, found = read(tmp_path / "index")
    wanted = versions[len(found["descriptors"]) == 200]
    for name, array in wanted.items():
      np.testing.assert_array_equal(found[name], array)
    reads += 1
  writer.join()
  assert reads


def truncate(path):
  os.truncate(array_file(path), 1000)


def lengthen(path):
  with open(array_file(path), "ab") as file:
    file.write(b"more")


def garble_meta(path):
  (path / "meta.json").write_text('{"format": "delf_j')


def change_a_digit(path):
  text = (path / "meta.json").read_text()
  (path / "meta.json").write_text(text.replace("0.1", "0.2"))


def pickle_an_array(path):
  file = array_file(path, "first_rows")
  np.save(file, np.array([{}], object), allow_pickle=True)
  files = directory.read_meta(path)["files"]
  content = file.read_bytes()
  files["first_rows"]["bytes"] = len(content)
  files["first_rows"]["sha256"] = hashlib.sha256(content).hexdigest()
  rewrite_meta(path, files=files)


def lead_outside(path):
  files = directory.read_meta(path)["files"]
  files["../../secret"] = files.pop("first_rows")
  rewrite_meta(path, files=files)


def reshape(path):
  files = directory.read_meta(path)["files"]
  files["descriptors"]["shape"] = [8, 1000]
  rewrite_meta(path, files=files)


@pytest.mark.parametrize(
  "damage, complaint",
  [
    (truncate, "descriptors-1.npy' is damaged (1000 bytes"),
    (lengthen, "descriptors-1.npy' is damaged"),
    (lambda p: flip_bit(array_file(p), 7), "descriptors-1.npy' is damaged"),
    (lambda p: flip_bit(array_file(p), 9000), "its checksum is another"),
    (lambda p: array_file(p).unlink(), "descriptors-1.npy' is missing"),
    (lambda p: (p / "meta.json").unlink(), "is no index"),
    (lambda p: (p / "meta.json").write_text("[]"), "is no index"),
    (garble_meta, "meta.json' is damaged"),
    (change_a_digit, "meta.json' is damaged"),
    (lead_outside, "meta.json' is damaged"),
    (reshape, "its dtype or shape is another"),
    (pickle_an_array, "first_rows-1.npy' is damaged"),
    (lambda p: rewrite_meta(p, version="1"), "meta.json' is damaged"),
    (lambda p: rewrite_meta(p, version=2), "newer than the 1"),
    (lambda p: rewrite_meta(p, kind="ivf"), "unknown kind 'ivf'"),
    (lambda p: rewrite_meta(p, format="delf_jax store"), "is no index"),
  ],
)
def test_damage_is_refused_in_one_line(tmp_path, damage, complaint):
  write(tmp_path / "index", make_arrays())
  damage(tmp_path / "index")
  with pytest.raises(InputError) as error:
    read(tmp_path / "index")
  assert complaint in one_line(error)
  assert "delf_jax.build_index" in one_line(error)


def test_without_verifying_only_sizes_count(tmp_path):
  write(tmp_path / "index", make_arrays())
  flip_bit(array_file(tmp_path / "index"), 9000)
  read(tmp_path / "index", verify=False)
  truncate(tmp_path / "index")
  with pytest.raises(InputError, match="1000 bytes"):
    read(tmp_path / "index", verify=False)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_no_directory_is_no_index(tmp_path, name):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="is no index"):
    index.open_index(tmp_path / name)


def test_what_is_no_index_is_not_replaced(tmp_path):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "a.jpg").write_text("dear to somebody")
  (tmp_path / "store").mkdir()
  (tmp_path / "store" / "meta.json").write_text('{"format": "delf_jax store"}')
  (tmp_path / "arrays").mkdir()
  (tmp_path / "arrays" / "holiday.npy").write_text("")
  before = sorted(tmp_path.rglob("*"))
  for name in ["photos", "store", "arrays"]:
    with pytest.raises(InputError, match="is no index"):
      write(tmp_path / name, make_arrays())
  with pytest.raises(InputError, match="is a file"):
    write(tmp_path / "photos" / "a.jpg", make_arrays())
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", [truncate, garble_meta, lead_outside])
def test_a_damaged_index_is_replaced(tmp_path, damage):
  write(tmp_path / "index", make_arrays(0))
  damage(tmp_path / "index")
  write(tmp_path / "index", make_arrays(1))
  assert_holds(tmp_path / "index", make_arrays(1))
  assert len(list((tmp_path / "index").iterdir())) == 4


def test_an_empty_directory_is_filled(tmp_path):
  (tmp_path / "index").mkdir()
  write(tmp_path / "index", make_arrays())
  assert_holds(tmp_path / "index", make_arrays())


def test_one_writer_at_a_time(tmp_path):
  write(tmp_path / "index", make_arrays())
  other = os.open(tmp_path / "index", os.O_RDONLY)
  fcntl.flock(other, fcntl.LOCK_EX)
  with pytest.raises(InputError, match="another process is writing"):
    write(tmp_path / "index", make_arrays(1))
  os.close(other)
  assert_holds(tmp_path / "index", make_arrays())


def run(code, *arguments):
  """Runs code in a fresh process, with this module's functions at hand."""
  return subprocess.run(
    [
      sys.executable,
      "-c",
      f"from {pathlib.Path(__file__).stem} import *\n{code}",
      *map(str, arguments),
    ],
    cwd=pathlib.Path(__file__).parent,
    env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    capture_output=True,
    text=True,
  )


KILLED = """
calls = 0
real = getattr(os, sys.argv[2])
def fatal(*arguments):
  global calls
  calls += 1
  if calls == int(sys.argv[3]):
    os.kill(os.getpid(), signal.SIGKILL)
  return real(*arguments)
setattr(os, sys.argv[2], fatal)
write(sys.argv[1], make_arrays(1))
"""


@pytest.mark.parametrize(
  "call, count, survivor",
  [
    ("fsync", 1, 0),  # in the first array
    ("fsync", 3, 0),
    ("fsync", 4, 0),  # in meta.json, under its temporary name
    ("replace", 1, 0),
    ("fsync", 6, 1),  # after the switch
    ("unlink", 1, 1),  # before the old is gone
  ],
)
def test_a_killed_save_leaves_the_old_or_the_new(
  tmp_path, call, count, survivor
):
  write(tmp_path / "index", make_arrays(0))
  done = run(KILLED, tmp_path / "index", call, count)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert_holds(tmp_path / "index", make_arrays(survivor))
  # And the next one removes what was left.
  write(tmp_path / "index", make_arrays(2))
  assert_holds(tmp_path / "index", make_arrays(2))
  assert len(list((tmp_path / "index").iterdir())) == 4


def test_a_killed_first_save_is_no_index_and_in_nobodys_way(tmp_path):
  done = run(KILLED, tmp_path / "index", "replace", 1)
  assert done.returncode == -signal.SIGKILL, done.stderr
  with pytest.raises(InputError, match="is no index"):
    read(tmp_path / "index")
  write(tmp_path / "index", make_arrays())
  assert_holds(tmp_path / "index", make_arrays())


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
  write(sys.argv[1], make_arrays(1))
except InputError as error:
  print(error)
"""


def test_a_full_disk_leaves_nothing_half(tmp_path):
  write(tmp_path / "index", make_arrays(0))
  before = sorted(tmp_path.rglob("*"))
  for name in ["index", "new"]:
    done = run(FULL, tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert f"{name}' cannot be written (File too large)" in done.stdout
  assert sorted(tmp_path.rglob("*")) == before
  assert_holds(tmp_path / "index", make_arrays(0))


def test_only_plain_arrays_are_saved(tmp_path):
  for name, array in [
    ("things", np.array([{}], object)),
    ("../away", np.zeros(1)),
  ]:
    with pytest.raises(ValueError, match="cannot be saved"):
      write(tmp_path / "index", {name: array})
  assert not (tmp_path / "index").exists()


def test_an_unknown_kind_is_not_built():
  with pytest.raises(InputError, match="expected one of exact, "):
    index.build_index("magic", np.zeros((1, 8), np.float32))


def test_importing_is_light():
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      "import delf_jax.index, sys; print(*sys.modules)",
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  heavy = {"jax", "numba", "pynndescent"}
  assert not heavy & set(done.stdout.split())
