"""Published files on this machine: downloaded once, resumed, verified.

NAME/FILE in the cache is whole and verified. FILE.part beside it is what an
unfinished download has brought so far, and FILE.part.json says of which version
of which address, so that a file that changes meanwhile is not glued together.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from delf_jax import progress
from delf_jax.conversion.published import Published
from delf_jax.errors import InputError

TIMEOUT_SECONDS = 30.0
# Attempts in a row that bring nothing, before giving up.
ATTEMPTS = 5
WAIT_SECONDS = 1.0  # before the second attempt, then doubled each time
# The most that is read where nobody says how much there is.
MOST_BYTES = 2**32
# Left free on the disk.
SPARE_BYTES = 2**26

_BLOCK = 2**18
# Answers that may be others a little later.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class _UnreachableError(Exception):
  """There is no getting the file; says why."""


class _InterruptedError(Exception):
  """The transfer broke off; says how. Another attempt continues it."""


class _NoConnectionError(_InterruptedError):
  """It did not even begin."""


def path_of(published: Published, cache: str | os.PathLike) -> Path:
  """Where a published file is kept, or is to be put by hand."""
  return Path(cache) / published.name / published.file


def fetch(published: Published, cache: str | os.PathLike) -> Path:
  """Returns a published file, downloaded if it is not there yet.

  A file that is there already is verified, without any network. Two processes
  that want the same file do not both download it. A download that was stopped
  is continued.

  Args:
    published: see `delf_jax.conversion.published`.
    cache: the folder of all such files, made if need be.

  Raises:
    InputError: if the file cannot be had, or is not what was published; the
      message says which file to bring, and where to.
  """
  target = path_of(published, cache)
  try:
    if not target.exists():
      target.parent.mkdir(parents=True, exist_ok=True)
      with _locked(target):
        # Another process may have brought it in the meantime.
        if not target.exists():
          _download(published, target)
          return target
    problem, _ = _verify(published, target)
  except OSError as error:
    raise InputError(
      f"cannot use {str(target)!r} ({error.strerror or error}); make room, or "
      "choose another folder with DELF_JAX_CACHE"
    ) from error
  if problem:
    raise InputError(
      f"{str(target)!r} is not what was published ({problem}); remove it and "
      "run the same command again"
    )
  return target


def _download(published: Published, target: Path) -> None:
  """Brings the file to `target`, in as many attempts as it takes."""
  part = target.with_name(target.name + ".part")
  if published.size:
    if _size(part) > published.size:
      _discard(part)
    _check_room(part, published.size - _size(part))
  failures = 0
  began = False
  while not (published.size and _size(part) == published.size):
    before = _size(part)
    try:
      _transfer(published, part)
      break
    except _UnreachableError as error:
      raise _offline(published, target, error) from error
    except _InterruptedError as error:
      brought = _size(part) > before
      began |= brought
      failures = 1 if brought else failures + 1
      # Who is offline should not wait; who lost the network halfway may.
      hopeless = isinstance(error, _NoConnectionError) and not began
      if hopeless or failures >= ATTEMPTS:
        raise _offline(published, target, error) from error
      progress.say(f"{published.file}: {error}; trying again")
      time.sleep(WAIT_SECONDS * 2 ** (failures - 1))
  problem, digest = _verify(published, part)
  if problem:
    _discard(part)
    raise InputError(
      f"what came from {published.url} is not what was published ({problem}) "
      f"and was removed; try again later, or bring {_describe(published)} to "
      f"{str(target)!r}"
    )
  with open(part, "rb+") as file:
    os.fsync(file.fileno())
  os.replace(part, target)
  _discard(part)
  if len(published.sha256) < 64:
    progress.say(f"{target}: sha256 {digest}")


def _transfer(published: Published, part: Path) -> None:
  """Makes one request, and appends what it brings to the part.

  Raises:
    _InterruptedError: if another attempt may bring more.
    _UnreachableError: if not.
  """
  version = _read_version(published, part)
  start = _size(part) if version else 0
  headers = {"User-Agent": "delf_jax", "Accept-Encoding": "identity"}
  if start:
    # Whoever has another version by now sends the whole of it.
    headers |= {"Range": f"bytes={start}-", "If-Range": version}
  request = urllib.request.Request(published.url, headers=headers)
  # Not urlopen, which keeps the proxies of its first call.
  opener = urllib.request.build_opener()
  try:
    response = opener.open(request, timeout=TIMEOUT_SECONDS)
  except urllib.error.HTTPError as error:
    error.close()
    answer = f"the server answers {error.code} {error.reason}"
    if error.code == 416:
      # The part is as long as the server's file or longer.
      _discard(part)
    elif error.code not in _PASSING:
      raise _UnreachableError(answer) from error
    raise _InterruptedError(answer) from error
  except urllib.error.URLError as error:
    raise _NoConnectionError(_reason(error.reason)) from error
  except (http.client.HTTPException, OSError) as error:
    raise _InterruptedError(_reason(error)) from error
  with response:
    start, total = _place(response, start)
    if published.size and total not in (None, published.size):
      raise _UnreachableError(
        f"the server's file has {total:,} bytes, not {published.size:,}"
      )
    total = total or published.size
    if total:
      _check_room(part, total - start)
    if not start:
      _discard(part)
      _write_version(published, part, response.headers)
    _receive(published, response, part, start, total)


def _place(
  response: http.client.HTTPResponse, asked: int
) -> tuple[int, int | None]:
  """Reads from an answer which bytes of the file it brings.

  Args:
    response: to a request.
    asked: the first byte that was asked for.

  Returns:
    the number of the first byte, and the size of the whole file or None.
  """
  if response.status != 206:
    # A server without ranges, or a file that has changed.
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"\d{1,15}", length) else None
  found = re.fullmatch(
    r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)",
    response.headers.get("Content-Range", ""),
  )
  if not asked or not found or int(found[1]) != asked:
    raise _UnreachableError("the server sends another part than it was asked")
  return asked, None if found[2] == "*" else int(found[2])


def _receive(
  published: Published,
  response: http.client.HTTPResponse,
  part: Path,
  start: int,
  total: int | None,
) -> None:
  """Appends an answer's bytes to the part, which has `start` of them."""
  most = total or MOST_BYTES
  with (
    open(part, "ab") as file,
    progress.bar(label=published.file, unit="B", total=total) as bar,
  ):
    bar.unit_scale = True
    bar.n = bar.initial = start
    for block in _blocks(response):
      start += len(block)
      if start > most:
        raise _UnreachableError(f"the server sends more than {most:,} bytes")
      file.write(block)
      bar.update(len(block))
  if total and start < total:
    raise _InterruptedError(f"it ended after {start:,} of {total:,} bytes")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
  while True:
    try:
      block = response.read(_BLOCK)
    except (http.client.HTTPException, OSError) as error:
      raise _InterruptedError(_reason(error)) from error
    if not block:
      return
    yield block


def _verify(published: Published, path: Path) -> tuple[str | None, str]:
  """Compares a file with all that is known of it.

  Returns:
    what differs, if anything does, and the file's SHA-256.
  """
  sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
  size, first = 0, b""
  with open(path, "rb") as file:
    while block := file.read(_BLOCK):
      first = first or block[:2]
      size += len(block)
      sha256.update(block)
      if published.md5:
        md5.update(block)
  digest = sha256.hexdigest()
  problem = None
  if published.size and size != published.size:
    problem = f"{size:,} bytes, not {published.size:,}"
  elif not digest.startswith(published.sha256):
    problem = f"sha256 {digest}, not {published.sha256}"
  elif published.md5 and md5.hexdigest() != published.md5:
    problem = f"md5 {md5.hexdigest()}, not {published.md5}"
  elif published.file.endswith(".gz") and first != b"\x1f\x8b":
    # Such as the page of a network that asks for a login.
    problem = "no gzip archive"
  return problem, digest


def _describe(published: Published) -> str:
  known = [
    f"{published.size:,} bytes" if published.size else "",
    f"sha256 {published.sha256}" if published.sha256 else "",
    f"md5 {published.md5}" if published.md5 else "",
  ]
  return f"{published.url} ({', '.join(filter(None, known)) or 'any size'})"


def _offline(
  published: Published, target: Path, error: Exception
) -> InputError:
  return InputError(
    f"cannot download {published.file} ({error}); bring {_describe(published)} "
    f"to {str(target)!r}, or give the file with --weights"
  )


def _reason(error: object) -> str:
  """Writes an error of the network in one line."""
  text = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return " ".join(text.split())[:120]


def _check_room(part: Path, needed: int) -> None:
  free = shutil.disk_usage(part.parent).free
  if free < needed + SPARE_BYTES:
    raise InputError(
      f"{str(part.parent)!r} needs {needed / 1e6:,.0f} MB more, and the disk "
      f"has {free / 1e6:,.0f} MB; make room, or choose another folder with "
      "DELF_JAX_CACHE"
    )


def _size(path: Path) -> int:
  try:
    return path.stat().st_size
  except FileNotFoundError:
    return 0


def _version_file(part: Path) -> Path:
  return part.with_name(part.name + ".json")


def _discard(part: Path) -> None:
  part.unlink(missing_ok=True)
  _version_file(part).unlink(missing_ok=True)


def _write_version(
  published: Published, part: Path, headers: http.client.HTTPMessage
) -> None:
  """Notes what If-Range needs to continue the part that is now begun."""
  etag = headers.get("ETag", "")
  # A weak tag does not promise the same bytes.
  version = etag if etag.startswith('"') else headers.get("Last-Modified", "")
  if version:
    note = json.dumps({"url": published.url, "version": version})
    _version_file(part).write_text(note, encoding="utf-8")


def _read_version(published: Published, part: Path) -> str:
  """Returns what `_write_version` noted of this part, or ""."""
  try:
    note = json.loads(_version_file(part).read_text(encoding="utf-8"))
    url, version = str(note["url"]), str(note["version"])
  except (OSError, ValueError, KeyError, TypeError):
    return ""
  is_header = version.isascii() and version.isprintable()
  return version if url == published.url and is_header else ""


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
  """Lets one process at a time download a file; the others wait."""
  path = target.with_name(target.name + ".lock")
  while True:
    with open(path, "a") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        progress.say(f"{target.name}: another process downloads it; waiting")
        fcntl.flock(file, fcntl.LOCK_EX)
      # The one who held it may have removed the file since it was opened.
      is_there = False
      with contextlib.suppress(FileNotFoundError):
        is_there = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
      if is_there:
        try:
          yield
        finally:
          path.unlink(missing_ok=True)
        return
