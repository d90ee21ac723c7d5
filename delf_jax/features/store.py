"""Features on disk: sharded, resumable, atomic; the only owner of pyarrow.

A store is a directory of `shard-00000.arrow`, `shard-00001.arrow`, ... (Arrow
IPC files of one record batch, one row a photograph) and `meta.json`: format
version, settings of the extraction, descriptor dtype and dimensions, whether
it is complete, every shard with its photographs, features, bytes and sha256,
the photographs that were skipped and why, and a sha256 of all this. A shard
counts from the moment `meta.json` names it, so a killed run leaves whole
shards and at worst a stray file, which the next run removes.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from delf_jax.errors import InputError
from delf_jax.features.local_features import LocalFeatures, compact

FORMAT = "delf_jax features"
VERSION = 1
DTYPES = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8()}

_META = "meta.json"
_LOCK = "writer.lock"
_SHARD = re.compile(r"shard-(\d{5,9})\.arrow")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreWriter:
  """Adds photographs' features to a store; `open_writer` makes it.

  A context manager. However it is left, by an exception or a keyboard
  interrupt too, the photographs added so far are written into a last, smaller
  shard; `finish` also marks the store complete.
  """

  def __init__(
    self,
    directory: str,
    *,
    meta: dict[str, Any],
    done: set[str],
    lock: int,
    shard_photographs: int,
    shard_bytes: int,
    changed: bool,
  ) -> None:
    """Takes over a directory that is locked and clean.

    Args:
      directory: of the store.
      meta: what its `meta.json` says, or should say.
      done: the paths in the shards of `meta`.
      lock: the descriptor of the locked file.
      shard_photographs: how many photographs make a shard.
      shard_bytes: how many bytes of descriptors make one before that.
      changed: whether `meta` is not what lies on the disk.
    """
    self._directory = directory
    self._meta = meta
    self._done = done
    self._lock = lock
    self._shard_photographs = shard_photographs
    self._shard_bytes = shard_bytes
    self._changed = changed
    self._rows = {}
    self._row_bytes = 0
    self._skipped = {}

  @property
  def done(self) -> frozenset[str]:
    """The paths that lie in whole shards already."""
    return frozenset(self._done)

  def add(
    self, path: str, *, height: int, width: int, features: LocalFeatures
  ) -> None:
    """Adds the valid rows of one photograph's features.

    Args:
      path: of the photograph, as in `data.folder.Listing`.
      height: of the upright original photograph, in pixels.
      width: of the upright original photograph, in pixels.
      features: of one photograph, padded or not, of any float dtype.

    Raises:
      InputError: if a valid row holds a number that is not finite (the writer
        goes on without this photograph), or if the disk is full or broken
        (the writer closes; the message says how much is kept).
      ValueError: if the path is in the store, the shapes do not agree with
        each other or with those before, or the writer is closed.
    """
    self._check_open()
    if path in self._done or path in self._rows:
      raise ValueError(f"{path!r} is in the store already")
    row = _row(path, height, width, compact(features), self._meta["dtype"])
    dim = row["descriptors"].shape[1]
    if self._meta["dim"] not in (None, dim):
      raise ValueError(
        f"{path!r} has descriptors of {dim} dimensions, those in the store "
        f"have {self._meta['dim']}"
      )
    self._meta["dim"] = dim
    self._rows[path] = row
    self._skipped.pop(path, None)
    self._changed = True
    self._row_bytes += row["descriptors"].nbytes
    if (
      len(self._rows) >= self._shard_photographs
      or self._row_bytes >= self._shard_bytes
    ):
      self._flush(complete=False)

  def skip(self, path: str, reason: str) -> None:
    """Notes that a photograph could not be used, and why.

    A later run on the same store tries it again.
    """
    self._check_open()
    self._skipped[path] = reason
    self._changed = True

  def finish(self) -> None:
    """Writes what is left and marks the store complete.

    Raises:
      InputError: if the disk is full or broken, as in `add`.
    """
    self._check_open()
    self._flush(complete=True)

  def __enter__(self) -> "StoreWriter":
    return self

  def __exit__(self, *_: object) -> None:
    try:
      if self._lock is not None and self._changed:
        self._flush(complete=False)
    finally:
      self._close()

  def _check_open(self) -> None:
    if self._lock is None:
      raise ValueError(f"the writer of {self._directory!r} is closed")

  def _close(self) -> None:
    if self._lock is not None:
      _unlock(self._directory, self._lock)
      self._lock = None

  def _flush(self, *, complete: bool) -> None:
    """Writes the waiting photographs as a shard, then `meta.json`.

    Nothing of the writer changes before both are on the disk: interrupted
    anywhere, it can flush again, into the same names.
    """
    meta = {
      **self._meta,
      "complete": complete,
      "skipped": sorted(self._skipped.items()),
    }
    try:
      if self._rows:
        numbers = [int(_SHARD.fullmatch(s["name"])[1]) for s in meta["shards"]]
        name = f"shard-{max(numbers, default=-1) + 1:05d}.arrow"
        rows = list(self._rows.values())
        data = _serialise(rows, dtype=meta["dtype"], dim=meta["dim"])
        _write(self._directory, name, data)
        shard = {
          "name": name,
          "photographs": len(rows),
          "features": sum(len(row["scales"]) for row in rows),
          "bytes": len(data),
          "sha256": hashlib.sha256(data).hexdigest(),
        }
        meta["shards"] = [*meta["shards"], shard]
      _write_meta(self._directory, meta)
    except OSError as error:
      self._close()
      room = "free some space and " if error.errno in _FULL else ""
      raise InputError(
        f"cannot write {self._directory!r}: {error.strerror or error}; "
        f"{len(self._done)} photographs are kept, {room}run the same command "
        "again to continue"
      ) from error
    self._done.update(self._rows)
    self._meta, self._rows, self._row_bytes = meta, {}, 0
    self._changed = False


def open_writer(
  directory: str | bytes | os.PathLike,
  *,
  settings: Mapping[str, Any],
  dtype: str = "float16",
  shard_photographs: int = 256,
  shard_bytes: int = 2**28,
) -> StoreWriter:
  """Creates a store, or continues one with the same settings.

  To continue a complete store adds to it. A shard whose file is missing is
  forgotten, and its photographs are no longer `done`.

  Args:
    directory: of the store; made, with its parents, where there is none.
    settings: of the extraction; JSON values. They are compared with those of
      an existing store.
    dtype: of the descriptors: "float16", "float32", or "int8": symmetric,
      with one float32 step a descriptor. Everything else is float32.
    shard_photographs: how many photographs make a shard, and so how many a
      killed run may lose.
    shard_bytes: how many bytes of descriptors make one before that, so that
      many or wide descriptors do not fill the memory.

  Raises:
    InputError: if the directory holds something else, a store with other
      settings, damage, or one that is being written; or cannot be written. It
      is left as it was.
    ValueError: if an argument is no setting, dtype or size.
  """
  if dtype not in DTYPES:
    raise ValueError(f"dtype must be one of {tuple(DTYPES)}, not {dtype!r}")
  if shard_photographs < 1:
    raise ValueError(f"shard_photographs is {shard_photographs}, at least 1")
  directory = os.fsdecode(directory)
  # As they come back from the file: tuples as lists, keys as strings.
  settings = json.loads(json.dumps(dict(settings), allow_nan=False))
  lock = None
  try:
    os.makedirs(directory, exist_ok=True)
    names = set(os.listdir(directory))
    if _META not in names and names - {_LOCK, _META + ".tmp"}:
      raise InputError(
        f"{directory!r} exists and is not a store; choose another --output"
      )
    if _META in names:
      # Before the lock, which would already touch somebody else's folder.
      _read_meta(directory)
    lock = _lock(directory)
    if not os.path.lexists(os.path.join(directory, _META)):
      meta = {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "dtype": dtype,
        "dim": None,
        "settings": settings,
        "shards": [],
        "skipped": [],
      }
      _write_meta(directory, meta)
    else:
      meta = _read_meta(directory)
      _check_same(
        directory,
        {**meta["settings"], "dtype of the descriptors": meta["dtype"]},
        {**settings, "dtype of the descriptors": dtype},
      )
    present = [
      shard
      for shard in meta["shards"]
      if os.path.lexists(os.path.join(directory, shard["name"]))
    ]
    changed = len(present) < len(meta["shards"])
    meta["shards"] = present
    done = {
      path
      for shard in _read_shards(directory, meta, verify=True)
      for path in shard.paths
    }
    _remove_strays(directory, keep={shard["name"] for shard in present})
  except BaseException as error:
    if lock is not None:
      _unlock(directory, lock)
    if isinstance(error, FileExistsError | NotADirectoryError):
      raise InputError(
        f"{directory!r} is not a folder; choose another --output"
      ) from error
    if isinstance(error, OSError):
      raise InputError(
        f"cannot write {directory!r}: {error.strerror or error}; make room "
        "or choose another --output"
      ) from error
    raise
  return StoreWriter(
    directory,
    meta=meta,
    done=done,
    lock=lock,
    shard_photographs=shard_photographs,
    shard_bytes=shard_bytes,
    changed=changed,
  )


class _Shard(NamedTuple):
  """One shard's columns, as views of its mapped file; m rows, f features."""

  paths: tuple[str, ...]
  sizes: np.ndarray  # [m, 2] int32
  counts: np.ndarray  # [m] int64, features a photograph
  locations: np.ndarray  # [f, 2] float32
  scales: np.ndarray  # [f] float32
  scores: np.ndarray  # [f] float32
  descriptors: np.ndarray  # [f, dim]
  steps: np.ndarray | None  # [f] float32, of int8 descriptors


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """The features of many photographs, mapped from the disk.

  Rows are features in the order of the photographs: those of photograph i
  are `offsets[i]` to `offsets[i + 1]`.

  Attributes:
    directory: where the store lies.
    paths: of the n photographs, in the order they were added.
    sizes: [n, 2] int32, (height, width) of the upright originals in pixels.
    offsets: [n + 1] int64.
    settings: of the extraction.
    dim: dimensions of a descriptor; 0 in a store without photographs.
    dtype: of the descriptors on disk: "float16", "float32" or "int8".
    fingerprint: hexadecimal, of the settings and every byte of the shards.
    skipped: (path, reason) of the photographs that could not be used.
  """

  directory: str
  paths: tuple[str, ...]
  sizes: np.ndarray
  offsets: np.ndarray
  settings: dict[str, Any]
  dim: int
  dtype: str
  fingerprint: str
  skipped: tuple[tuple[str, str], ...]
  _shards: tuple[_Shard, ...]
  _starts: np.ndarray  # [shards + 1] int64, the first row of each shard

  def features(self, i: int) -> LocalFeatures:
    """Returns photograph i's features: float32 NumPy arrays, all valid.

    Raises:
      IndexError: if there is no photograph `i`.
    """
    if not 0 <= i < len(self.paths):
      raise IndexError(f"photograph {i} of {len(self.paths)}")
    start, stop = self.offsets[i : i + 2]
    return LocalFeatures(
      locations=self.locations(start, stop),
      scales=self.scales(start, stop),
      scores=self.scores(start, stop),
      descriptors=self.descriptors(start, stop),
      mask=np.ones(stop - start, bool),
    )

  def descriptors(
    self, start: int | None = None, stop: int | None = None
  ) -> np.ndarray:
    """Returns rows start to stop (as in a slice), [rows, dim] float32."""
    return self._gather(start, stop, (self.dim,), _dequantise)

  def locations(
    self, start: int | None = None, stop: int | None = None
  ) -> np.ndarray:
    """Returns (y, x) of rows start to stop, [rows, 2] float32."""
    return self._gather(
      start, stop, (2,), lambda shard, part: shard.locations[part]
    )

  def scales(
    self, start: int | None = None, stop: int | None = None
  ) -> np.ndarray:
    """Returns the scales of rows start to stop, [rows] float32."""
    return self._gather(start, stop, (), lambda shard, part: shard.scales[part])

  def scores(
    self, start: int | None = None, stop: int | None = None
  ) -> np.ndarray:
    """Returns the scores of rows start to stop, [rows] float32."""
    return self._gather(start, stop, (), lambda shard, part: shard.scores[part])

  def image_of(self, rows: np.ndarray) -> np.ndarray:
    """Returns the photographs that rows belong to.

    Args:
      rows: integers of any shape; -1 stands for no row.

    Returns:
      int32 of the same shape; -1 for no row.

    Raises:
      ValueError: if there is no such row.
    """
    rows = np.asarray(rows)
    if rows.size and not -1 <= rows.min() <= rows.max() < self.offsets[-1]:
      raise ValueError(f"rows beyond the {self.offsets[-1]} in the store")
    images = np.searchsorted(self.offsets, rows, side="right") - 1
    return images.astype(np.int32)

  def _gather(
    self,
    start: int | None,
    stop: int | None,
    shape: tuple[int, ...],
    read: Callable[[_Shard, slice], np.ndarray],
  ) -> np.ndarray:
    """Copies rows start to stop out of the shards that hold them."""
    start, stop, _ = slice(start, stop).indices(int(self.offsets[-1]))
    out = np.empty((max(stop - start, 0), *shape), np.float32)
    written = 0
    while written < len(out):
      row = start + written
      index = np.searchsorted(self._starts, row, side="right") - 1
      first, last = self._starts[index : index + 2]
      end = min(stop, last)
      out[written : end - start] = read(
        self._shards[index], slice(row - first, end - first)
      )
      written = end - start
    return out


def open_store(
  directory: str | bytes | os.PathLike, *, verify: bool = True
) -> Store:
  """Opens a complete store for reading; its shards are mapped, not read.

  Args:
    directory: of the store.
    verify: whether to compare every shard with its sha256, which reads them
      once. Their sizes and structure are checked in any case.

  Raises:
    InputError: if this is no store, one of a newer version, an incomplete or
      a damaged one.
  """
  directory = os.fsdecode(directory)
  try:
    meta = _read_meta(directory)
    photographs = sum(shard["photographs"] for shard in meta["shards"])
    if not meta["complete"]:
      raise InputError(
        f"the store {directory!r} is incomplete ({photographs} photographs so "
        "far); run the same extraction again to finish it"
      )
    shards = _read_shards(directory, meta, verify=verify)
  except OSError as error:
    raise InputError(
      f"cannot read the store {directory!r}: {error.strerror or error}; check "
      "its permissions and the disk"
    ) from error
  counts = [np.zeros(1, np.int64), *(shard.counts for shard in shards)]
  sizes = [np.zeros((0, 2), np.int32), *(shard.sizes for shard in shards)]
  features = [shard["features"] for shard in meta["shards"]]
  identity = (
    meta["settings"],
    meta["dtype"],
    meta["dim"],
    [shard["sha256"] for shard in meta["shards"]],
  )
  return Store(
    directory=directory,
    paths=tuple(path for shard in shards for path in shard.paths),
    sizes=np.concatenate(sizes),
    offsets=np.cumsum(np.concatenate(counts)),
    settings=meta["settings"],
    dim=meta["dim"] or 0,
    dtype=meta["dtype"],
    fingerprint=hashlib.sha256(_canonical(identity)).hexdigest(),
    skipped=tuple((path, reason) for path, reason in meta["skipped"]),
    _shards=tuple(shards),
    _starts=np.cumsum([0, *features], dtype=np.int64),
  )


def _row(
  path: str, height: int, width: int, features: LocalFeatures, dtype: str
) -> dict[str, Any]:
  """Returns one photograph's row of a shard, checked and quantised."""
  row = {
    "locations": np.asarray(features.locations, np.float32),
    "scales": np.asarray(features.scales, np.float32),
    "scores": np.asarray(features.scores, np.float32),
    "descriptors": np.asarray(features.descriptors, np.float32),
  }
  n = len(features.mask)
  shapes = [values.shape for values in row.values()]
  dim = shapes[3][-1]
  if shapes != [(n, 2), (n,), (n,), (n, dim)] or dim == 0:
    raise ValueError(f"{path!r} has features of the shapes {shapes}")
  if dtype == "int8":
    largest = np.abs(row["descriptors"]).max(axis=1, initial=0)
    row["steps"] = largest / np.float32(127)
  elif dtype == "float16":
    with np.errstate(over="ignore"):
      row["descriptors"] = row["descriptors"].astype(np.float16)
  for name, values in row.items():
    if not np.isfinite(values).all():
      raise InputError(
        f"{path!r} has {name} that are not finite; leave this photograph out, "
        "and if others fail too, check the network"
      )
  if dtype == "int8":
    steps = np.where(row["steps"] > 0, row["steps"], 1)[:, None]
    row["descriptors"] = np.rint(row["descriptors"] / steps).astype(np.int8)
  return {"path": os.fsencode(path), "height": height, "width": width, **row}


def _dequantise(shard: _Shard, part: slice) -> np.ndarray:
  """Returns a shard's descriptors as numbers that float32 holds."""
  if shard.steps is None:
    return shard.descriptors[part]
  return shard.descriptors[part] * shard.steps[part, None]


def _schema(*, dtype: str, dim: int) -> pa.Schema:
  fields = {
    "path": pa.binary(),
    "height": pa.int32(),
    "width": pa.int32(),
    "locations": pa.list_(pa.list_(pa.float32(), 2)),
    "scales": pa.list_(pa.float32()),
    "scores": pa.list_(pa.float32()),
    "descriptors": pa.list_(pa.list_(DTYPES[dtype], dim)),
  }
  if dtype == "int8":
    fields["steps"] = pa.list_(pa.float32())
  return pa.schema(fields)


def _serialise(
  rows: list[dict[str, Any]], *, dtype: str, dim: int
) -> memoryview:
  """Returns rows as the bytes of an Arrow file."""
  schema = _schema(dtype=dtype, dim=dim)
  ends = np.cumsum([len(row["scales"]) for row in rows])
  offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
  columns = []
  for field in schema:
    values = [row[field.name] for row in rows]
    if not pa.types.is_list(field.type):
      columns.append(pa.array(values, field.type))
      continue
    values = np.concatenate(values)
    flat = pa.array(values.reshape(-1))
    if values.ndim == 2:
      flat = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    columns.append(pa.ListArray.from_arrays(offsets, flat))
  sink = pa.BufferOutputStream()
  with pa.ipc.new_file(sink, schema) as writer:
    writer.write_batch(pa.record_batch(columns, schema=schema))
  return memoryview(sink.getvalue())


def _read_shards(
  directory: str, meta: dict[str, Any], *, verify: bool
) -> list[_Shard]:
  """Maps the shards that `meta` names, in its order.

  Raises:
    InputError: for the first that is missing or damaged.
  """

  def read(entry: dict[str, Any]) -> _Shard:
    path = os.path.join(directory, entry["name"])
    try:
      with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != entry["bytes"]:
          raise ValueError("truncated or grown")
        if verify:
          digest = hashlib.file_digest(file, "sha256").hexdigest()
          if digest != entry["sha256"]:
            raise ValueError("its bytes have changed")
        # Not pyarrow's own mapping, which takes no paths but UTF-8.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      try:
        return _parse(mapped, entry, dtype=meta["dtype"], dim=meta["dim"])
      except OSError as error:
        # Arrow's, about the contents; the disk's are no damage.
        raise ValueError(str(error)) from error
    except FileNotFoundError as error:
      raise InputError(
        f"{path!r} is missing; run the same extraction again, which makes "
        "this shard anew"
      ) from error
    except (ValueError, KeyError, pa.ArrowException) as error:
      raise InputError(
        f"{path!r} is damaged ({str(error)[:120]!r}); delete this file and run "
        "the same extraction again, which makes it anew"
      ) from error

  # Hashing runs outside the interpreter's lock, so shards share the cores.
  with concurrent.futures.ThreadPoolExecutor(
    min(8, os.cpu_count() or 1)
  ) as pool:
    return list(pool.map(read, meta["shards"]))


def _parse(
  mapped: mmap.mmap, entry: dict[str, Any], *, dtype: str, dim: int
) -> _Shard:
  """Views one shard; ValueError or ArrowException if not as declared."""
  reader = pa.ipc.open_file(pa.py_buffer(mapped))
  if reader.schema != _schema(dtype=dtype, dim=dim):
    raise ValueError("other columns than meta.json says")
  if reader.num_record_batches != 1:
    raise ValueError("another number of batches than one")
  batch = reader.get_batch(0)
  batch.validate(full=True)
  counts = np.diff(batch["scales"].offsets.to_numpy().astype(np.int64))
  if (len(counts), counts.sum()) != (entry["photographs"], entry["features"]):
    raise ValueError("another number of features than meta.json says")

  def flat(name: str, width: int = 1) -> np.ndarray:
    values = batch[name].values
    if pa.types.is_fixed_size_list(values.type):
      values = values.values
    if len(values) != width * entry["features"]:
      raise ValueError(f"another number of {name} than meta.json says")
    return values.to_numpy(zero_copy_only=True)

  return _Shard(
    paths=tuple(os.fsdecode(p) for p in batch["path"].to_pylist()),
    sizes=np.stack(
      [batch["height"].to_numpy(), batch["width"].to_numpy()], axis=1
    ),
    counts=counts,
    locations=flat("locations", 2).reshape(-1, 2),
    scales=flat("scales"),
    scores=flat("scores"),
    descriptors=flat("descriptors", dim).reshape(-1, dim),
    steps=flat("steps") if dtype == "int8" else None,
  )


def _canonical(value: Any) -> bytes:
  """Returns JSON that is equal for equal values."""
  return json.dumps(value, sort_keys=True).encode("ascii")


def _read_meta(directory: str) -> dict[str, Any]:
  """Reads and checks `meta.json`."""
  path = os.path.join(directory, _META)
  damaged = InputError(
    f"{path!r} is damaged; remove {directory!r} and extract again"
  )
  try:
    with open(path, "rb") as file:
      meta = json.loads(file.read())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(
      f"{directory!r} is not a store of features (it has no {_META}); give "
      "another directory, or extract into it first"
    ) from error
  except (ValueError, RecursionError) as error:
    raise damaged from error
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise InputError(
      f"{directory!r} is not a store of features; give another directory"
    )
  version = meta.get("version")
  if not isinstance(version, int):
    raise damaged
  if version > VERSION:
    raise InputError(
      f"the store {directory!r} has format {version}, newer than the "
      f"{VERSION} that is read here; update delf_jax"
    )
  digest = meta.pop("sha256", None)
  if digest != hashlib.sha256(_canonical(meta)).hexdigest():
    raise damaged
  # The sum holds for what this module wrote; the rest is checked because a
  # file made to deceive could lead out of the directory.
  try:
    sound = (
      meta["dtype"] in DTYPES
      and isinstance(meta["complete"], bool)
      and isinstance(meta["settings"], dict)
      and (isinstance(meta["dim"], int) or not meta["shards"])
      and all(
        _SHARD.fullmatch(shard["name"])
        and min(shard["photographs"], shard["features"], shard["bytes"]) >= 0
        and isinstance(shard["sha256"], str)
        for shard in meta["shards"]
      )
      and all(len(skipped) == 2 for skipped in meta["skipped"])
    )
  except (KeyError, TypeError):
    sound = False
  if not sound:
    raise damaged
  return meta


def _write_meta(directory: str, meta: dict[str, Any]) -> None:
  digest = hashlib.sha256(_canonical(meta)).hexdigest()
  text = json.dumps({**meta, "sha256": digest}, indent=1) + "\n"
  _write(directory, _META, text.encode("ascii"))


def _write(directory: str, name: str, data: bytes | memoryview) -> None:
  """Replaces a file by data, whole and on the disk, or leaves all as it was."""
  path = os.path.join(directory, name)
  temporary = path + ".tmp"
  try:
    with open(temporary, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise
  # The rename itself must outlive a power cut too.
  folder = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)


def _remove_strays(directory: str, *, keep: set[str]) -> None:
  """Removes what a killed writer may have left."""
  for name in os.listdir(directory):
    stem = name.removesuffix(".tmp")
    ours = stem == _META or _SHARD.fullmatch(stem)
    if ours and name not in keep and name != _META:
      os.unlink(os.path.join(directory, name))


def _check_same(
  directory: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
  """Raises InputError that lists the settings in which a store differs."""

  def show(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
      return "unset"
    return json.dumps(settings[name], sort_keys=True)

  differ = [
    f"{name} ({show(old, name)} there, {show(new, name)} now)"
    for name in sorted({*old, *new})
    if show(old, name) != show(new, name)
  ]
  if differ:
    raise InputError(
      f"the store {directory!r} was made with other settings: "
      f"{', '.join(differ)}; choose another --output or remove it"
    )


def _lock(directory: str) -> int:
  """Takes the writer's lock, which ends with this process at the latest."""
  path = os.path.join(directory, _LOCK)
  while True:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # The one who held it may have removed the file since it was opened.
      if os.path.samestat(os.fstat(lock), os.stat(path)):
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())
        return lock
    except BlockingIOError as error:
      pid = os.read(lock, 20).decode("ascii", "replace").strip() or "unknown"
      os.close(lock)
      raise InputError(
        f"{directory!r} is being written by process {pid}; wait for it or "
        "choose another --output"
      ) from error
    except FileNotFoundError:
      pass
    except BaseException:
      os.close(lock)
      raise
    os.close(lock)


def _unlock(directory: str, lock: int) -> None:
  """Removes the lock file while it is still held, then lets go of it."""
  with contextlib.suppress(OSError):
    os.unlink(os.path.join(directory, _LOCK))
  os.close(lock)
