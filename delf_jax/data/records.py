"""Labelled photographs as TFDS data sets of array_record files.

Importing this module imports tensorflow_datasets, which takes a while.
TensorFlow is not needed: shards are written here, one photograph after the
other. TFDS's own writer sorts everything first, in memory up to 1 GB and with
TensorFlow beyond.
"""

import base64
import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter

from delf_jax import progress
from delf_jax.data.sources import FileSource, RecordSource
from delf_jax.errors import InputError

PER_SHARD = 4096  # photographs a file; with web photographs about 1 GB
_AHEAD = 256  # photographs that are read before they are written
_READERS = 8


class LandmarkPhotographs(tfds.core.DatasetBuilder):
  """Photographs of landmarks: encoded, with class and path."""

  VERSION = tfds.core.Version("1.0.0")

  # Set before preparing: () -> {split: source}, what else to keep as JSON.
  collect: Callable[[], tuple[Mapping[str, Any], dict[str, Any]]]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": encoded(),
          "label": tfds.features.Scalar(np.int64),
          "name": encoded(),
        }
      ),
      metadata=tfds.core.MetadataDict(),
    )

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    del dl_manager, download_config  # nothing is downloaded
    sources, kept = self.collect()
    write_splits(
      self,
      {
        split: (len(source), _read_ahead(source))
        for split, source in sources.items()
      },
    )
    # As text in the metadata, the labels need not be gathered from the records.
    labels = {
      split: base64.b64encode(source.labels.astype("<i4")).decode()
      for split, source in sources.items()
    }
    self.info.metadata.update(kept, labels=labels)

  def _as_dataset(self, *args: Any, **kwargs: Any):
    raise NotImplementedError("array_record files are read by as_data_source")


def open_prepared(
  data_dir: str | os.PathLike,
  name: str,
  collect: Callable[[], tuple[Mapping[str, Any], dict[str, Any]]],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Opens prepared photographs, preparing them first if they are not there.

  What was begun and not finished is begun again. What is there is taken as it
  is, and `collect` is not called.

  Args:
    data_dir: the folder of all prepared data.
    name: of these photographs, different for whatever else is different.
    collect: returns split -> source, and a dict of JSON to keep beside them.

  Returns:
    split -> source, and what was kept.

  Raises:
    InputError: if `data_dir` cannot be written or read.
  """
  config = tfds.core.BuilderConfig(name=name)
  builder = prepare(LandmarkPhotographs, config, data_dir, {"collect": collect})
  kept = dict(builder.info.metadata)
  labels = {
    split: np.frombuffer(base64.b64decode(text), "<i4")
    for split, text in kept.pop("labels").items()
  }
  return record_sources(builder, labels), kept


def encoded() -> tfds.features.Tensor:
  """The feature of bytes that are stored as they are."""
  return tfds.features.Tensor(shape=(), dtype=np.object_)


def prepare(
  builder_class: type[tfds.core.DatasetBuilder],
  config: tfds.core.BuilderConfig,
  data_dir: str | os.PathLike,
  attributes: Mapping[str, Any],
) -> tfds.core.DatasetBuilder:
  """Makes a builder whose data is prepared.

  Args:
    builder_class: the builder.
    config: its configuration.
    data_dir: the folder of all prepared data.
    attributes: what the builder is given before it prepares.

  Raises:
    InputError: if `data_dir` cannot be written or read.
  """
  try:
    with _quiet():
      config = builder_class.builder_configs.get(config.name, config)
      builder = builder_class(data_dir=data_dir, config=config)
      for name, value in attributes.items():
        setattr(builder, name, value)
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        file_format="array_record",
      )
      return builder
  except (OSError, RuntimeError) as error:  # array_record knows no OSError
    reason = str(error).strip().splitlines()[0]
    raise InputError(
      f"cannot keep prepared photographs in {os.fspath(data_dir)}: {reason}; "
      "choose another folder or make room"
    ) from error


def write_splits(
  builder: tfds.core.DatasetBuilder,
  splits: Mapping[str, tuple[int, Iterable[Mapping[str, Any]]]],
) -> None:
  """Writes the examples of a builder in the order in which they come.

  Args:
    builder: one that prepares at this moment.
    splits: name -> number of examples and the examples; empty ones are not
      written.
  """
  features = builder.info.features
  written = []
  for split, (count, examples) in splits.items():
    if not count:
      continue
    template = tfds.core.ShardedFileTemplate(
      dataset_name=builder.name,
      data_dir=builder.data_path,
      split=split,
      filetype_suffix="array_record",
    )
    shards = -(-count // PER_SHARD)
    lengths, size = [], 0
    tracked = progress.track(
      examples, label=f"prepare {split}", unit="photograph", total=count
    )
    for shard in range(shards):
      path = template.sharded_filepath(shard_index=shard, num_shards=shards)
      writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
      length = min(PER_SHARD, count - shard * PER_SHARD)
      for _ in range(length):
        record = features.serialize_example(
          features.encode_example(next(tracked))
        )
        writer.write(record)
        size += len(record)
      writer.close()
      lengths.append(length)
    written.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=size,
        filename_template=template,
      )
    )
  builder.info.set_splits(tfds.core.SplitDict(written))


def record_sources(
  builder: tfds.core.DatasetBuilder, labels: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Returns the source of every split.

  Args:
    builder: a prepared one.
    labels: split -> [n] of its examples; a split of none may be unwritten.
  """
  # Of TFDS's own source only the parts are kept: sent to a worker process, the
  # whole takes its builder along, which makes itself heard there.
  with _quiet():
    return {
      split: RecordSource(
        builder.as_data_source(split).data_source, builder.info.features, of
      )
      if len(of)
      else FileSource("", (), of)
      for split, of in labels.items()
    }


def _read_ahead(source: Sequence[Mapping[str, Any]]) -> Iterator[dict]:
  """Yields the examples of a source; several threads wait for the disk."""
  with ThreadPoolExecutor(_READERS) as pool:
    for start in range(0, len(source), _AHEAD):
      stop = min(start + _AHEAD, len(source))
      for example in pool.map(source.__getitem__, range(start, stop)):
        yield {**example, "name": os.fsencode(example["name"])}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences TFDS: it prints, warns of any configuration, and shows bars."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.display_progress_bar(enable=False)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.display_progress_bar(enable=True)
    logging.set_verbosity(verbosity)
