"""Photographs -> features on disk, by whichever kind of feature is asked for.

The one place that knows what `--features` may name: a checkpoint, the name of
one that comes with the package, "rootsift" or "sift".
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from delf_jax import checkpoint, global_extraction, match_score, progress
from delf_jax.data import folder
from delf_jax.data.cropping import crop
from delf_jax.data.photographs import (
  Photograph,
  decode_photograph,
  read_photograph,
)
from delf_jax.errors import InputError
from delf_jax.features import (
  handcrafted,
  local_features,
  pyramid,
  reduction,
  store,
)
from delf_jax.features.local_features import LocalFeatures
from delf_jax.items import Box, Item, pixel_box
from delf_jax.models import resnet
from delf_jax.models.delf import folded
from delf_jax.models.global_descriptor import GlobalDescriptor

HANDCRAFTED = ("rootsift", "sift")
MAX_SIDE = 1024
MIN_SIDE = 16
# What a checkpoint's directory may hold: the calibration of its own matches.
CALIBRATION = "calibration.json"
# A large photograph takes a gigabyte while ResNet-50 looks at it.
MOST_WORKERS = 8
# Features of all photographs together that a reduction is learned on.
MOST_TO_LEARN_FROM = 100_000
# Keyword arguments of `pyramid.make_extractor` that users may change.
OPTIONS = (
  "scales",
  "score",
  "score_threshold",
  "iou_threshold",
  "max_features",
  "resize",
)

Extract = Callable[[Photograph], LocalFeatures]


@dataclasses.dataclass(frozen=True)
class Extractor:
  """One kind of feature, ready to run.

  Attributes:
    extract: photograph -> its features, with locations in the pixels of the
      upright original; may be called from several threads.
    settings: all that the result depends on, as JSON.
    source: what `--features` named, to open the same extractor again.
    max_side: photographs are reduced to this longest side first.
    describe: of global descriptors, `extract` of a part of a photograph, which
      is seen at the resolution that the whole is seen at.
  """

  extract: Extract
  settings: Mapping[str, Any]
  source: str
  max_side: int
  describe: global_extraction.Describe | None = None


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of a folder.

  Attributes:
    done: photographs extracted by this run.
    kept: photographs that an earlier run had extracted.
    features: stored by this run.
    skipped: (path, reason) of those that could not be used.
  """

  done: int
  kept: int
  features: int
  skipped: tuple[tuple[str, str], ...]


def open_extractor(
  features: str, *, max_side: int = MAX_SIDE, **options: Any
) -> Extractor:
  """Opens what `--features` names.

  Args:
    features: "rootsift", "sift", a checkpoint that `delf_jax.train` wrote, or
      one of `checkpoint.NAMES`.
    max_side: photographs are reduced to this longest side first.
    options: override what the checkpoint recommends (keyword arguments of
      `pyramid.make_extractor`); of handcrafted features, only `max_features`.

  Raises:
    InputError: if there is no such thing or an option does not apply.
  """
  if features in HANDCRAFTED:
    unknown = sorted(options.keys() - {"max_features"})
    if unknown:
      raise InputError(
        f"{', '.join(unknown)}: not an option of {features}; it applies to "
        f"checkpoints alone"
      )
    count = options.get("max_features", 1000)
    settings = {"kind": features, "max_features": count, "max_side": max_side}
    return Extractor(
      extract=lambda photograph: handcrafted.extract(
        photograph.pixels,
        kind=features,
        max_features=count,
        size=(photograph.height, photograph.width),
      ),
      settings=settings,
      source=features,
      max_side=max_side,
    )
  model = checkpoint.load_model(features)
  if isinstance(model.network, GlobalDescriptor):
    return global_extractor(model, features, max_side=max_side, **options)
  unknown = sorted(options.keys() - set(OPTIONS))
  if unknown:
    raise InputError(
      f"{', '.join(unknown)}: no option of local features, of which "
      f"{features!r} is a checkpoint"
    )
  extraction = {**model.extraction, **options}
  settings = {
    "kind": "delf",
    "fingerprint": model.fingerprint,
    "max_side": max_side,
    **extraction,
  }
  return Extractor(
    extract=delf_extractor(model, max_side=max_side, **options),
    settings=settings,
    source=source_of(features),
    max_side=max_side,
  )


def global_extractor(
  model: checkpoint.Model,
  source: str | os.PathLike,
  *,
  max_side: int = MAX_SIDE,
  **options: Any,
) -> Extractor:
  """Opens a model that gives every photograph one descriptor.

  Args: see `open_extractor` and `global_extraction.settle`.
  """
  settled, max_side = global_extraction.settle(model, options, max_side)
  describe = global_extraction.describer(model, max_side=max_side, **settled)
  return Extractor(
    extract=lambda photograph: describe(
      photograph, (photograph.height, photograph.width)
    ),
    settings={
      "kind": "global",
      "fingerprint": model.fingerprint,
      "max_side": max_side,
      **settled,
    },
    source=source_of(os.fspath(source)),
    max_side=max_side,
    describe=describe,
  )


def source_of(features: str) -> str:
  """Returns what names the same features from any directory."""
  if features in HANDCRAFTED or checkpoint.shipped(features):
    return features
  return os.path.abspath(features)


def reopen(
  settings: Mapping[str, Any], *, features: str | None = None
) -> Extractor:
  """Opens the extractor that a store was made with.

  Args:
    settings: of the store.
    features: the checkpoint, if it is no longer where it was.

  Raises:
    InputError: if it is not the same any more.
  """
  if settings["kind"] == "imported":
    raise InputError(
      f"the features of the index were imported from {settings['features']!r}, "
      f"and nothing here can extract their like from a photograph; search with "
      f"delf_jax.retrieval and features imported too"
    )
  names = (*OPTIONS, "max_side")
  if settings["kind"] == "global":
    names = (*global_extraction.OPTIONS, "max_side")
  extractor = open_extractor(
    features or settings["features"],
    **{name: settings[name] for name in names if name in settings},
  )
  for key in ("kind", "fingerprint"):
    if extractor.settings.get(key) != settings.get(key):
      raise InputError(
        f"{extractor.source!r} is not what the photographs of the index were "
        f"extracted with; give that checkpoint with --features, or extract "
        f"and index again"
      )
  return extractor


def calibration_of(
  settings: Mapping[str, Any], features: str | None = None
) -> match_score.Calibration:
  """Chooses the calibration for matches of a kind of feature.

  Args:
    settings: of a store or an extractor.
    features: the checkpoint; by default where the settings say it was.

  Returns:
    the checkpoint's own, `CALIBRATION` in its directory, if it has one; else
    what is shipped for features of its kind.

  Raises:
    InputError: if the checkpoint's own cannot be read.
  """
  kind = settings.get("kind", "")
  if kind not in HANDCRAFTED:
    named = features or settings.get("features") or ""
    source = checkpoint.shipped(named) or Path(named)
    for directory in (source, source / "model"):
      if source.name and (directory / CALIBRATION).is_file():
        return match_score.read_calibration(directory / CALIBRATION)
  return match_score.shipped(kind)


def delf_extractor(
  model: checkpoint.Model, *, max_side: int = MAX_SIDE, **options: Any
) -> Extract:
  """Builds the extraction of one photograph by a model.

  Args:
    model: a loaded checkpoint.
    max_side: longest side of any photograph it will be given.
    options: override `model.extraction`.

  Raises:
    InputError: if features are to be selected by an attention head that the
      model does not have.
  """
  options = {**model.extraction, **options}
  score = options.get("score", "l2_norm")
  if score != "l2_norm" and not model.network.attention_hidden:
    raise InputError(
      f"this checkpoint has no attention head, so features cannot be selected "
      f"by {score!r}; use l2_norm"
    )
  network, variables = pyramid_network(model)
  extract = pyramid.make_extractor(network, **options)
  variables = jax.device_put(variables)
  learned = jax.device_put(model.reduction)

  def extract_one(photograph: Photograph) -> LocalFeatures:
    size = photograph.pixels.shape[:2]
    canvas = np.zeros(
      (1, *pyramid.canvas_for(*size, max_side=max_side), 3), np.uint8
    )
    canvas[0, : size[0], : size[1]] = photograph.pixels
    features = extract(variables, learned, canvas, np.array([size]))
    features = jax.tree.map(lambda leaf: leaf[0], jax.device_get(features))
    return _in_original_pixels(local_features.compact(features), photograph)

  return extract_one


def pyramid_network(
  model: checkpoint.Model,
) -> tuple[pyramid.Network, dict[str, Any]]:
  """Returns what the pyramid needs to know of a model, and its variables."""
  network, variables = folded(model.network, model.variables)
  field = network.receptive_field
  return (
    pyramid.Network(
      dense=lambda variables, images, sizes: network.apply(
        variables, images, sizes, method="dense"
      ),
      map_size=lambda size: resnet.map_size(size, network.feature_layers),
      normalise=model.normalisation,
      field_size=field.size,
      stride=field.stride,
      offset=field.offset,
    ),
    variables,
  )


def _in_original_pixels(
  features: LocalFeatures, photograph: Photograph
) -> LocalFeatures:
  """Undoes the reduction to `max_side` in locations and scales."""
  height, width = photograph.pixels.shape[:2]
  ratio = np.array(
    [photograph.height / height, photograph.width / width], np.float32
  )
  if np.all(ratio == 1):
    return features
  return features.replace(
    locations=features.locations * ratio[None, :],
    scales=features.scales * ratio.max(),
  )


def learn_reduction(
  model: checkpoint.Model,
  source: Sequence[Mapping[str, Any]],
  *,
  dim: int,
  whiten: bool = False,
  photographs: int = 500,
  seed: int = 0,
) -> reduction.Reduction | None:
  """Learns L2 -> PCA -> L2 on the selected features of a seeded sample.

  Args:
    model: extracts the features; its own reduction is left aside.
    source: random access to {"image": encoded bytes, ...}.
    dim: of the result; 0 for no reduction.
    whiten: see `reduction.fit`.
    photographs: how many; those that cannot be decoded are replaced.
    seed: of the sample.

  Raises:
    InputError: if there are too few features.
  """
  if not dim:
    return None
  sample = _sample(source, photographs, seed)
  largest = max(max(photograph.pixels.shape) for photograph in sample)
  extract = delf_extractor(
    dataclasses.replace(model, reduction=None),
    max_side=max(largest, MIN_SIDE),
  )
  results = progress.track(
    in_order(extract, sample),
    label="reduction",
    unit="photograph",
    total=len(sample),
  )
  # More of each would fill the memory and teach the projection nothing.
  most = -(-MOST_TO_LEARN_FROM // len(sample))
  generator = np.random.default_rng(seed)
  features = [
    found.descriptors[
      np.sort(generator.permutation(len(found.descriptors))[:most])
    ]
    for _, found in results
  ]
  try:
    return reduction.fit(np.concatenate(features), dim, whiten=whiten)
  except ValueError as error:
    raise InputError(
      f"{error}; give more photographs or a smaller reduction"
    ) from error


def _sample(source, count: int, seed: int) -> list[Photograph]:
  """Decodes a seeded sample of photographs.

  Raises:
    InputError: if none can be decoded.
  """
  found = []
  for i in np.random.default_rng(seed).permutation(len(source)):
    if len(found) == count:
      break
    try:
      found.append(
        decode_photograph(
          source[int(i)]["image"], name=f"{i}", max_side=MAX_SIDE
        )
      )
    except InputError:
      continue
  if not found:
    raise InputError("none of the training photographs can be decoded")
  return found


def extract_file(extractor: Extractor, path: str | os.PathLike):
  """Reads one photograph and extracts it.

  Returns:
    the photograph and its features.

  Raises:
    InputError: if it cannot be read or is too small for any feature.
  """
  photograph = read_photograph(path, max_side=extractor.max_side)
  _check_size(photograph, os.fspath(path))
  return photograph, extractor.extract(photograph)


def extract_item(
  extractor: Extractor, root: str | os.PathLike, item: Item
) -> tuple[tuple[int, int], LocalFeatures]:
  """Reads one photograph, or a part of it, and extracts it.

  A part is cut out before anything else is done, so that its features are
  those of a photograph that shows nothing else: what the protocols of Oxford5k
  and its successors ask for. (Features of the whole photograph that lie in the
  box have seen what is around it, which costs or earns several points.)

  Args:
    extractor: the kind of feature.
    root: what the item's path is relative to.
    item: the photograph or its part.

  Returns:
    (height, width) of the upright original photograph, and the features, with
    locations in its pixels also for a part.

  Raises:
    InputError: if it cannot be read, the box lies outside, or it is too small
      for any feature.
  """
  path = Path(root) / item.path
  if item.box is None:
    photograph, features = extract_file(extractor, path)
    return (photograph.height, photograph.width), features
  whole = read_photograph(path)
  size = whole.height, whole.width
  max_side = extractor.max_side
  if extractor.describe is not None:
    top, left, bottom, right = pixel_box(
      item.box, height=size[0], width=size[1]
    )
    share = max(bottom - top, right - left) / max(size)
    max_side = max(1, round(share * max_side))
    if max(size) <= extractor.max_side:
      max_side = None
  part, corner = crop(whole, item, max_side=max_side)
  _check_size(part, f"{os.fspath(path)}{item.name.removeprefix(item.path)}")
  if extractor.describe is not None:
    features = extractor.describe(part, size)
  else:
    features = extractor.extract(part)
  moved = features.locations + np.array([corner], np.float32)
  return (whole.height, whole.width), features.replace(locations=moved)


def _check_size(photograph: Photograph, name: str) -> None:
  if min(photograph.height, photograph.width) < MIN_SIDE:
    raise InputError(
      f"{name!r}: {photograph.width} x {photograph.height} pixels "
      f"are too small for a feature; {MIN_SIDE} x {MIN_SIDE} is the least"
    )


def extract_folder(
  extractor: Extractor,
  photos: str | os.PathLike,
  output: str | os.PathLike,
  *,
  dtype: str = "float16",
  workers: int | None = None,
) -> Counts:
  """Extracts every photograph under a folder into a store.

  A store that an earlier run left unfinished is continued, and photographs
  that are new in the folder are added to a finished one. A photograph that
  cannot be used is skipped and reported.

  Args:
    extractor: the kind of feature.
    photos: folder, searched recursively.
    output: the store's directory.
    dtype: of descriptors on disk: "float16", "float32" or "int8".
    workers: photographs at a time; see `in_order`.

  Raises:
    InputError: if the folder holds no photograph, the store is of other
      settings, or the disk is full.
  """
  listing = folder.list_photographs(photos)
  return _extract(
    extractor,
    photos,
    [Item(path) for path in listing.paths],
    output,
    problems=listing.problems,
    dtype=dtype,
    workers=workers,
    strict=False,
  )


def extract_items(
  extractor: Extractor,
  root: str | os.PathLike,
  items: Iterable[str | tuple[str, Box | None]],
  directory: str | os.PathLike,
  *,
  dtype: str = "float16",
  workers: int | None = None,
  strict: bool = False,
) -> Counts:
  """Extracts a list of photographs, or parts of them, into a store.

  As `extract_folder` does, but of the list alone: a store is continued, and
  what cannot be used is skipped and reported. In the store an item goes by
  `Item.name`: its path, with the box behind a "#" if it has one; sizes are of
  the whole photographs, and locations in their pixels.

  Args:
    extractor: the kind of feature.
    root: folder that the paths are relative to.
    items: paths, or (path, box) with edges (top, left, bottom, right) in
      pixels of the upright original, or None for all of it.
    directory: of the store.
    dtype: of descriptors on disk: "float16", "float32" or "int8".
    workers: photographs at a time; see `in_order`.
    strict: whether an item that cannot be used is an error.

  Returns:
    what became of them, in the order of the list.

  Raises:
    InputError: if the store is of other settings, the disk is full, or
      `strict` and an item cannot be used.
    ValueError: if an item is listed twice.
  """
  items = [Item(i) if isinstance(i, str) else Item(*i) for i in items]
  return _extract(
    extractor,
    root,
    items,
    directory,
    problems=(),
    dtype=dtype,
    workers=workers,
    strict=strict,
  )


def _extract(
  extractor: Extractor,
  root: str | os.PathLike,
  items: Sequence[Item],
  directory: str | os.PathLike,
  *,
  problems: Iterable[tuple[str, str]],
  dtype: str,
  workers: int | None,
  strict: bool,
) -> Counts:
  """Extracts items into a store; `problems` are reported besides."""
  names = frozenset(item.name for item in items)
  if len(names) < len(items):
    raise ValueError("an item is listed twice")
  settings = {
    **extractor.settings,
    "features": extractor.source,
    "photos": os.path.abspath(root),
  }
  skipped = list(problems)
  done = count = 0
  with store.open_writer(directory, settings=settings, dtype=dtype) as writer:
    kept = len(names & writer.done)
    todo = [item for item in items if item.name not in writer.done]
    for path, reason in skipped:
      writer.skip(path, reason)

    def work(item):
      try:
        return extract_item(extractor, root, item)
      except InputError as error:
        return error

    results = in_order(work, todo, workers)
    for item, result in progress.track(
      results, label="extract", unit="photograph", total=len(todo)
    ):
      if isinstance(result, InputError):
        if strict:
          raise result
        writer.skip(item.name, str(result))
        skipped.append((item.name, str(result)))
        continue
      (height, width), features = result
      writer.add(item.name, height=height, width=width, features=features)
      done += 1
      count += len(features.mask)
    writer.finish()
  return Counts(done=done, kept=kept, features=count, skipped=tuple(skipped))


def in_order(
  work: Callable[[Any], Any], items: Sequence[Any], workers: int | None = None
) -> Iterator[tuple[Any, Any]]:
  """Yields (item, work(item)) in order, a few in advance on threads.

  Compiled programs leave Python's lock, so photographs run side by side.

  Args:
    work: what to do with an item.
    items: in order.
    workers: threads; by default one a core, up to `MOST_WORKERS`.
  """
  workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
  ahead = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    try:
      for item in items:
        ahead.append((item, pool.submit(work, item)))
        if len(ahead) > 2 * workers:
          first, future = ahead.popleft()
          yield first, future.result()
      while ahead:
        first, future = ahead.popleft()
        yield first, future.result()
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
