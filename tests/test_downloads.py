"""Downloads from a server on this machine that behaves as badly as it can."""

import dataclasses
import email.utils
import hashlib
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest

from delf_jax.conversion import downloads
from delf_jax.conversion.downloads import fetch, path_of
from delf_jax.conversion.published import PUBLISHED, Published, find
from delf_jax.errors import InputError

CONTENT = np.random.default_rng(0).bytes(3_000_001)
OTHER = np.random.default_rng(1).bytes(3_000_001)


class Server(http.server.ThreadingHTTPServer):
  """Serves one content at every address, with the faults that are set.

  Attributes:
    content: of the file.
    etag: of the file; None for none.
    ranges: whether it can send a part.
    drops: how many of the next answers break off halfway.
    status: the answers' status while `failures` lasts.
    failures: how many of the next answers are that.
    asked: the headers of the requests so far.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.content, self.etag, self.ranges = CONTENT, '"one"', True
    self.drops = self.failures = 0
    self.status = 503
    self.length = True
    self.stall = None
    self.asked = []


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    server = self.server
    server.asked.append(dict(self.headers))
    if server.failures:
      server.failures -= 1
      self.send_error(server.status)
      return
    content, total = server.content, len(server.content)
    start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
    start = int(start[1]) if start else 0
    same = self.headers.get("If-Range") in (server.etag, None)
    if server.ranges and start and same:
      if start >= total:
        self.send_error(416)
        return
      self.send_response(206)
      self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
      content = content[start:]
    else:
      self.send_response(200)
    if server.etag:
      self.send_header("ETag", server.etag)
    if server.length:
      self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    half = len(content) // 2
    try:
      if server.drops:
        server.drops -= 1
        self.wfile.write(content[:half])
        self.connection.shutdown(socket.SHUT_RDWR)
        return
      if server.stall:
        self.wfile.write(content[:half])
        server.stall.wait(20)
      self.wfile.write(content[half if server.stall else 0 :])
    except OSError:
      pass  # the client has left

  def log_message(self, *_):
    pass


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
  monkeypatch.setattr(downloads, "WAIT_SECONDS", 0.01)
  monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
  server = Server()
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


def published(server, **changes):
  port = server if isinstance(server, int) else server.server_port
  values = {
    "name": "net",
    "source": "test",
    "architecture": "none",
    "url": f"http://127.0.0.1:{port}/files/weights.pth?download=1",
    "note": "none",
    "size": len(CONTENT),
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
  }
  return Published(**{**values, **changes})


def files(root):
  return sorted(str(p.relative_to(root)) for p in root.rglob("*.*"))


def ranges(server):
  return [headers.get("Range") for headers in server.asked]


def test_a_file_is_downloaded_once(server, tmp_path):
  path = fetch(published(server), tmp_path / "cache")
  assert path == tmp_path / "cache" / "net" / "weights.pth"
  assert path == path_of(published(server), tmp_path / "cache")
  assert path.read_bytes() == CONTENT
  assert files(tmp_path) == ["cache/net/weights.pth"]
  assert fetch(published(server), tmp_path / "cache") == path
  assert len(server.asked) == 1


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize(
  "known",
  [
    {"size": None, "sha256": ""},
    {"size": None, "sha256": hashlib.sha256(CONTENT).hexdigest()[:8]},
    {"sha256": "", "md5": hashlib.md5(CONTENT).hexdigest()},
  ],
)
def test_what_is_not_known_is_printed(server, tmp_path, capsys, known, length):
  server.length = length
  path = fetch(published(server, **known), tmp_path)
  assert path.read_bytes() == CONTENT
  printed = capsys.readouterr().err
  assert hashlib.sha256(CONTENT).hexdigest() in printed and str(path) in printed


@pytest.mark.parametrize("ranges_there", [True, False])
def test_a_dropped_connection_is_taken_up_again(server, tmp_path, ranges_there):
  server.drops, server.ranges = 2, ranges_there
  assert fetch(published(server), tmp_path).read_bytes() == CONTENT
  first, second, third = ranges(server)
  assert first is None and second.startswith("bytes=")
  assert int(second[6:-1]) > 0
  assert server.asked[1]["If-Range"] == '"one"'
  if ranges_there:
    assert int(third[6:-1]) > int(second[6:-1])
  assert files(tmp_path) == ["net/weights.pth"]


def leave_half(server, tmp_path, monkeypatch):
  """A run that ends halfway, with the server gone for good."""
  with monkeypatch.context() as patch:
    patch.setattr(downloads, "ATTEMPTS", 1)
    server.drops = 1
    # Progress resets the count: the next answer must fail.
    original = downloads._transfer

    def once(*arguments):
      if server.drops == 0:
        raise downloads._UnreachableError("gone")
      original(*arguments)

    patch.setattr(downloads, "_transfer", once)
    with pytest.raises(InputError, match="cannot download"):
      fetch(published(server), tmp_path)
  part = tmp_path / "net" / "weights.pth.part"
  assert 0 < part.stat().st_size < len(CONTENT)
  return part


def test_the_next_run_continues(server, tmp_path, monkeypatch):
  part = leave_half(server, tmp_path, monkeypatch)
  size = part.stat().st_size
  assert fetch(published(server), tmp_path).read_bytes() == CONTENT
  assert ranges(server)[-1] == f"bytes={size}-"
  assert files(tmp_path) == ["net/weights.pth"]


@pytest.mark.parametrize("how", ["etag", "note", "url", "longer", "garbage"])
def test_a_part_of_something_else_is_not_continued(
  server, tmp_path, monkeypatch, how
):
  part = leave_half(server, tmp_path, monkeypatch)
  note = part.with_name(part.name + ".json")
  part.write_bytes(OTHER[: part.stat().st_size])
  if how == "etag":
    server.etag = '"two"'
  elif how == "note":
    note.unlink()
  elif how == "url":
    note.write_text(note.read_text().replace("127.0.0.1", "localhost"))
  elif how == "longer":
    part.write_bytes(OTHER + b"more")
  else:
    note.write_text('["version"]')
  assert fetch(published(server), tmp_path).read_bytes() == CONTENT
  assert files(tmp_path) == ["net/weights.pth"]


def test_a_part_as_long_as_the_file_is_not_asked_for(server, tmp_path):
  part = tmp_path / "net" / "weights.pth.part"
  part.parent.mkdir()
  part.write_bytes(CONTENT)
  assert fetch(published(server), tmp_path).read_bytes() == CONTENT
  assert not server.asked


def test_a_part_that_is_longer_than_the_servers_file(
  server, tmp_path, monkeypatch
):
  part = leave_half(server, tmp_path, monkeypatch)
  part.write_bytes(OTHER + OTHER)
  unknown = published(server, size=None)
  assert fetch(unknown, tmp_path).read_bytes() == CONTENT
  assert len(server.asked) == 3  # the half, 416, everything


@pytest.mark.parametrize(
  "etag, version", [('W/"one"', None), (None, "date"), (None, None)]
)
def test_weak_tags_promise_nothing(
  server, tmp_path, monkeypatch, etag, version
):
  date = email.utils.formatdate(0, usegmt=True)
  original = Handler.end_headers

  def end_headers(self):
    if version:
      self.send_header("Last-Modified", date)
    original(self)

  monkeypatch.setattr(Handler, "end_headers", end_headers)
  server.etag, server.drops = etag, 1
  assert fetch(published(server), tmp_path).read_bytes() == CONTENT
  if version:
    assert server.asked[1]["If-Range"] == date
  else:
    assert ranges(server) == [None, None]


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"sha256": hashlib.sha256(CONTENT).hexdigest()[:8]},
    {"sha256": "", "md5": hashlib.md5(CONTENT).hexdigest()},
  ],
)
def test_wrong_content_is_removed(server, tmp_path, changes):
  server.content = OTHER
  with pytest.raises(InputError, match="not what was published") as caught:
    fetch(published(server, **changes), tmp_path)
  message = str(caught.value)
  assert "\n" not in message and "weights.pth" in message
  assert files(tmp_path) == []


def test_another_size_is_not_even_downloaded(server, tmp_path):
  server.content = b"<html>Please log in</html>"
  with pytest.raises(InputError, match="has 26 bytes, not 3,000,001"):
    fetch(published(server), tmp_path)
  assert files(tmp_path) == []
  # Of an archive that nothing is known of, its kind is.
  url = published(server).url.replace("weights.pth", "delf.tar.gz")
  archive = published(server, url=url, size=None, sha256="")
  with pytest.raises(InputError, match="no gzip archive"):
    fetch(archive, tmp_path)
  assert files(tmp_path) == []


def test_an_endless_answer_ends(server, tmp_path, monkeypatch):
  server.length = False
  monkeypatch.setattr(downloads, "MOST_BYTES", 1_000_000)
  with pytest.raises(InputError, match="more than 1,000,000 bytes"):
    fetch(published(server, size=None, sha256=""), tmp_path)
  with pytest.raises(InputError, match="more than 2,000,000 bytes"):
    fetch(published(server, size=2_000_000, sha256=""), tmp_path / "b")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_no_such_file(server, tmp_path, status):
  server.status, server.failures = status, 99
  with pytest.raises(InputError, match=f"{status}") as caught:
    fetch(published(server), tmp_path)
  check_message(caught.value, published(server), tmp_path)
  assert len(server.asked) == 1


def check_message(error, wanted, cache):
  message = str(error)
  assert "\n" not in message and "--weights" in message
  for text in (
    wanted.file,
    wanted.url,
    wanted.sha256,
    f"{wanted.size:,} bytes",
    str(path_of(wanted, cache)),
  ):
    assert text in message


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
  server.failures = 2
  assert fetch(published(server), tmp_path).read_bytes() == CONTENT
  assert len(server.asked) == 3
  server.failures = 99
  with pytest.raises(InputError, match="503") as caught:
    fetch(published(server), tmp_path / "other")
  check_message(caught.value, published(server), tmp_path / "other")
  assert len(server.asked) == 3 + downloads.ATTEMPTS


def refused():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def test_offline(tmp_path, monkeypatch):
  wanted = published(refused())
  with pytest.raises(InputError, match="refused") as caught:
    fetch(wanted, tmp_path)
  check_message(caught.value, wanted, tmp_path)
  unknown = dataclasses.replace(
    wanted, url="http://nowhere.invalid/weights.pth"
  )
  with pytest.raises(InputError, match="cannot download"):
    fetch(unknown, tmp_path)
  monkeypatch.setenv("no_proxy", "")
  monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{refused()}")
  with pytest.raises(InputError, match="refused"):
    fetch(unknown, tmp_path)
  # Brought by hand, it is taken.
  path_of(wanted, tmp_path).write_bytes(CONTENT)
  assert fetch(wanted, tmp_path).read_bytes() == CONTENT


def test_a_server_that_falls_silent(server, tmp_path, monkeypatch):
  monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.2)
  server.stall = threading.Event()
  with monkeypatch.context() as patch:
    patch.setattr(
      downloads.time, "sleep", lambda _: setattr(server, "stall", None)
    )
    stall = server.stall
    path = fetch(published(server), tmp_path)
  stall.set()
  assert path.read_bytes() == CONTENT
  assert ranges(server)[1].startswith("bytes=")


def test_a_file_that_is_wrong_is_left(tmp_path):
  wanted = published(refused())
  path = path_of(wanted, tmp_path)
  path.parent.mkdir()
  for content in (OTHER, CONTENT[:-1], b""):
    path.write_bytes(content)
    with pytest.raises(InputError, match="remove it"):
      fetch(wanted, tmp_path)
    assert path.read_bytes() == content


def test_places_that_cannot_be_written(server, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="DELF_JAX_CACHE"):
    fetch(published(server), tmp_path / "file" / "cache")
  (tmp_path / "net" / "weights.pth").mkdir(parents=True)
  with pytest.raises(InputError, match="DELF_JAX_CACHE"):
    fetch(published(server), tmp_path)
  monkeypatch.setattr(downloads, "SPARE_BYTES", 2**62)
  with pytest.raises(InputError, match="make room"):
    fetch(published(server), tmp_path / "full")
  with pytest.raises(InputError, match="make room"):
    fetch(published(server, size=None), tmp_path / "full")
  assert len(server.asked) == 1


PROGRAM = """
import sys
from delf_jax.conversion import downloads
from delf_jax.conversion.published import Published
url, size, sha256, cache = sys.argv[1:]
print("begun", flush=True)
try:
  path = downloads.fetch(
    Published("net", "", "", url, "", int(size), sha256), cache
  )
except KeyboardInterrupt:
  sys.exit(130)
print(path.stat().st_size)
"""


def start(wanted, cache):
  process = subprocess.Popen(
    [
      *(sys.executable, "-c", PROGRAM, wanted.url),
      *(str(wanted.size), wanted.sha256, cache),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "begun\n"
  return process


def until(condition):
  for _ in range(1000):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError("waited too long")


def test_stopped_by_the_keyboard_and_by_force(server, tmp_path):
  part = tmp_path / "net" / "weights.pth.part"

  def begun():
    return len(server.asked) and part.exists() and part.stat().st_size > 1e6

  for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
    server.asked.clear()
    server.stall = threading.Event()
    process = start(published(server), tmp_path)
    until(begun)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == status
    server.stall.set()
    assert part.stat().st_size > 1_000_000
  server.stall = None
  kept = part.stat().st_size
  assert fetch(published(server), tmp_path).read_bytes() == CONTENT
  assert ranges(server)[-1] == f"bytes={kept}-"


def test_two_processes_download_it_once(server, tmp_path):
  server.stall = threading.Event()
  processes = [start(published(server), tmp_path) for _ in range(2)]
  until(lambda: server.asked)
  time.sleep(0.3)
  server.stall.set()
  for process in processes:
    printed, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert printed == f"{len(CONTENT)}\n"
  assert len(server.asked) == 1
  assert files(tmp_path) == ["net/weights.pth"]


def test_the_table():
  assert len(PUBLISHED) == 13
  places = set()
  for name, entry in PUBLISHED.items():
    assert name == entry.name and find(name) is entry
    assert re.fullmatch(r"[a-z0-9_]+", name)
    assert urlsplit(entry.url).scheme == "https"
    assert re.fullmatch(r"[\w.-]+\.(pth|h5|safetensors|tar\.gz)", entry.file)
    assert re.fullmatch(r"([0-9a-f]{8,64})?", entry.sha256)
    assert re.fullmatch(r"([0-9a-f]{32})?", entry.md5)
    assert entry.size is None or 5e7 < entry.size < 1e9
    # PyTorch's names end with the beginning of the sum.
    stem = re.search(r"-([0-9a-f]{8})\.pth$", entry.file)
    assert not stem or entry.sha256.startswith(stem[1])
    assert entry.note and entry.architecture
    places.add(path_of(entry, "cache"))
  assert len(places) == len(PUBLISHED)
  with pytest.raises(InputError, match="delf_gld"):
    find("alexnet")


def test_nothing_is_downloaded_by_importing():
  done = subprocess.run(
    [
      *(sys.executable, "-c"),
      "import sys, delf_jax.conversion.downloads as d;"
      "assert 'jax' not in sys.modules and 'h5py' not in sys.modules",
    ],
    env={**os.environ, "http_proxy": "http://127.0.0.1:1"},
    check=False,
  )
  assert done.returncode == 0
