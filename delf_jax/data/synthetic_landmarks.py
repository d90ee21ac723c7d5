"""Synthetic landmarks as training data: made on demand, or kept by TFDS.

Importing this module imports tensorflow_datasets, which takes a while.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from delf_jax.data import records, synthetic


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

  def sources(self) -> dict[str, "RenderedSource"]:
    """Returns the photographs of both splits, each made when asked for."""
    middle = self.train_views
    last = middle + self.validation_views
    return {
      split: RenderedSource(self.seed, self.num_landmarks, views, self.size)
      for split, views in (
        ("train", range(middle)),
        ("validation", range(middle, last)),
      )
    }


class RenderedSource:
  """Photographs of synthetic landmarks, made at every access.

  View by view, so that the first of them show many landmarks.

  Attributes:
    labels: [n] int32.
  """

  def __init__(
    self, seed: int, num_landmarks: int, views: range, size: tuple[int, int]
  ) -> None:
    """Takes the arguments of `synthetic.render_view`."""
    self._seed = seed
    self._size = size
    self._views = views
    self._names = class_names(num_landmarks)
    self.labels = np.tile(np.arange(num_landmarks, dtype=np.int32), len(views))

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, i: int) -> dict[str, Any]:
    landmark = int(self.labels[i])
    view = self._views[range(len(self))[i] // len(self._names)]
    picture = synthetic.render_view(self._seed, landmark, view, size=self._size)
    return {
      "image": synthetic.encode_jpeg(picture.pixels),
      "mask": synthetic.encode_mask(picture.mask),
      "label": landmark,
      "name": f"{self._names[landmark]}/view_{view:03d}",
      "landmark": landmark,
      "view": view,
      "homography": picture.homography.astype(np.float32),
    }


class SyntheticLandmarks(tfds.core.DatasetBuilder):
  """Procedurally made landmarks: photographs, masks and homographies."""

  # Raise this whenever other pictures come out: prepared data is reused.
  VERSION = tfds.core.Version("2.0.0")
  BUILDER_CONFIGS = [SyntheticConfig()]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": records.encoded(),
          "mask": records.encoded(),
          "label": tfds.features.Scalar(np.int64),
          "name": records.encoded(),
          "landmark": tfds.features.Scalar(np.int64),
          "view": tfds.features.Scalar(np.int64),
          "homography": tfds.features.Tensor(shape=(3, 3), dtype=np.float32),
        }
      ),
    )

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    del dl_manager, download_config  # nothing is downloaded
    records.write_splits(
      self,
      {
        split: (len(source), _rendered(source))
        for split, source in self.builder_config.sources().items()
      },
    )

  def _as_dataset(self, *args: Any, **kwargs: Any):
    raise NotImplementedError("array_record files are read by as_data_source")


def class_names(num_landmarks: int) -> tuple[str, ...]:
  """Names the landmarks so that their order is the order of their names."""
  width = max(2, len(str(num_landmarks - 1)))
  return tuple(f"landmark_{i:0{width}d}" for i in range(num_landmarks))


def open_synthetic(
  data_dir: str | os.PathLike[str] = "",
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
    data_dir: folder of all such collections, each with a folder inside; "":
      nothing is kept, and each photograph is made whenever it is asked for.
    seed: of the collection.
    num_landmarks: landmarks 0 to `num_landmarks` - 1.
    train_views: views 0 to `train_views` - 1 of each are for training.
    validation_views: as many views after those are for validation.
    size: longer and shorter side of the photographs in pixels.

  Returns:
    split ("train", "validation") -> a source (`data.sources`) whose examples
    also have "mask" (bytes of a PNG, 255 where the landmark is visible),
    "landmark" (the label), "view", and "homography" [3, 3] float32 from
    (y, x, 1) in the landmark's plane to the photograph.

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
  sources = config.sources()
  if not data_dir:
    return sources
  builder = records.prepare(SyntheticLandmarks, config, data_dir, {})
  return records.record_sources(
    builder, {split: source.labels for split, source in sources.items()}
  )


def _rendered(source: RenderedSource) -> Iterator[dict[str, Any]]:
  """Yields the examples of a source; all cores draw, a few in advance."""
  ahead = 4 * (os.cpu_count() or 1)
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(source), ahead):
      stop = min(start + ahead, len(source))
      for example in pool.map(source.__getitem__, range(start, stop)):
        yield {**example, "name": os.fsencode(example["name"])}
