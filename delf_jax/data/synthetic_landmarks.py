"""Synthetic landmarks as a TensorFlow Datasets builder, without TensorFlow.

Importing this module imports tensorflow_datasets, which takes a while.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from delf_jax import progress
from delf_jax.data import synthetic
from delf_jax.errors import InputError


@dataclasses.dataclass(eq=False)
class SyntheticConfig(tfds.core.BuilderConfig):
  """Which landmarks, and how many photographs of them.

  Attributes:
    seed: of the collection.
    num_landmarks: landmarks 0 to `num_landmarks` - 1.
    train_views: views 0 to `train_views` - 1 of each are for training.
    validation_views: as many views after those are for validation; later
      views are unseen by both.
    size: longer and shorter side of the photographs in pixels.
  """

  name: str = ""
  seed: int = 0
  num_landmarks: int = 20
  train_views: int = 60
  validation_views: int = 5
  size: tuple[int, int] = synthetic.SIZE

  def __post_init__(self):
    # The name is a folder: other options must not find these files.
    self.size = (int(max(self.size)), int(min(self.size)))
    self.name = (
      f"seed{self.seed}-landmarks{self.num_landmarks}"
      f"-train{self.train_views}-validation{self.validation_views}"
      f"-{self.size[0]}x{self.size[1]}"
    )


class SyntheticLandmarks(tfds.core.GeneratorBasedBuilder):
  """Procedurally made landmarks: photographs, masks and homographies."""

  # Raise this whenever other pictures come out: prepared data is reused.
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [SyntheticConfig()]

  def _info(self) -> tfds.core.DatasetInfo:
    encoded = tfds.features.Tensor(shape=(), dtype=np.object_)
    return self.dataset_info_from_configs(
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": encoded,
          "mask": encoded,
          "label": tfds.features.Scalar(np.int64),
          "landmark": tfds.features.Scalar(np.int64),
          "view": tfds.features.Scalar(np.int64),
          "homography": tfds.features.Tensor(shape=(3, 3), dtype=np.float32),
        }
      ),
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # nothing is downloaded
    config = self.builder_config
    middle = config.train_views
    last = middle + config.validation_views
    return {
      "train": self._generate_examples(range(middle)),
      "validation": self._generate_examples(range(middle, last)),
    }

  def _generate_examples(
    self, views: range
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    config = self.builder_config

    def example(landmark, view):
      picture = synthetic.render_view(
        config.seed, landmark, view, size=config.size
      )
      return f"{landmark}-{view}", {
        "image": synthetic.encode_jpeg(picture.pixels),
        "mask": synthetic.encode_mask(picture.mask),
        "label": landmark,
        "landmark": landmark,
        "view": view,
        "homography": picture.homography.astype(np.float32),
      }

    def examples():
      with ThreadPoolExecutor(os.cpu_count()) as pool:
        for landmark in range(config.num_landmarks):
          yield from pool.map(example, [landmark] * len(views), views)

    yield from progress.track(
      examples(),
      label="synthetic landmarks",
      unit="photograph",
      total=config.num_landmarks * len(views),
    )


def open_synthetic(
  data_dir: str | os.PathLike[str],
  *,
  seed: int = 0,
  num_landmarks: int = 20,
  train_views: int = 60,
  validation_views: int = 5,
  size: tuple[int, int] = synthetic.SIZE,
) -> Mapping[str, Any]:
  """Opens synthetic landmarks, making them first if they are not there.

  Making them takes about 6 ms a photograph on 2 cores, shows the progress
  and touches no network; what was begun and not finished is begun again.

  Args:
    data_dir: folder of all such collections; each has a folder inside.
    seed: of the collection.
    num_landmarks: landmarks 0 to `num_landmarks` - 1.
    train_views: views 0 to `train_views` - 1 of each are for training.
    validation_views: as many views after those are for validation.
    size: longer and shorter side of the photographs in pixels.

  Returns:
    split ("train", "validation") -> random access by number to a dict of
    "image" (bytes of a JPEG), "mask" (bytes of a PNG, 255 where the landmark is
    visible), "label" and "landmark" (the same here), "view", and "homography"
    [3, 3] float32 from (y, x, 1) in the landmark's plane to the photograph. The
    order is shuffled, and always the same.

  Raises:
    InputError: if `data_dir` cannot be written or read.
  """
  config = SyntheticConfig(
    seed=seed,
    num_landmarks=num_landmarks,
    train_views=train_views,
    validation_views=validation_views,
    size=size,
  )
  known = SyntheticLandmarks.builder_configs
  try:
    with _quiet():
      builder = SyntheticLandmarks(
        data_dir=data_dir, config=known.get(config.name, config)
      )
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        file_format="array_record",
      )
      return builder.as_data_source()
  except (OSError, RuntimeError) as error:  # array_record knows no OSError
    reason = str(error).strip().splitlines()[0]
    raise InputError(
      f"cannot keep synthetic landmarks in {os.fspath(data_dir)}: {reason}; "
      "choose another folder or make room"
    ) from error


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
