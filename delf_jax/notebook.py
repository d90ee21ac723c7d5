"""What a notebook shows: figures of photographs, features, matches and curves.

Each function returns something that Jupyter and Colab show when it is the last
value of a cell: a Pillow image, or a `Moving` picture. Both have `save(path)`.
"""

import base64
import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from delf_jax import checkpoint, retrieval, validation, whole_files
from delf_jax.data.photographs import Photograph
from delf_jax.features.local_features import LocalFeatures
from delf_jax.pictures import (
  blend_pictures,
  drawing,
  feature_pictures,
  match_pictures,
  precision_plots,
  training_pictures,
)


@dataclasses.dataclass(frozen=True)
class Moving:
  """An animated picture.

  Attributes:
    content: of a WebP file.
    alt: what it shows, for who cannot see it.
  """

  content: bytes
  alt: str

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the WebP file; an `InputError` says why it could not."""
    whole_files.write_file(path, self.content)

  def _repr_html_(self) -> str:
    # Notebooks know no picture type of this format, and browsers do.
    encoded = base64.b64encode(self.content).decode("ascii")
    return (
      f'<img alt="{self.alt}" style="max-width: 100%"'
      f' src="data:image/webp;base64,{encoded}">'
    )


def figure_of_photographs(
  photographs: Sequence[Photograph | np.ndarray],
  *,
  columns: int = 5,
  width: int = 1000,
) -> Image.Image:
  """Shows photographs in rows, each as large as its place allows.

  Args:
    photographs: or their pixels, [h, w, 3] uint8; at least one.
    columns: of them.
    width: of the figure, in pixels.
  """
  gap = 6
  rows = -(-len(photographs) // columns)
  # Places as high as they are wide, for photographs of both orientations.
  side = (width - gap * (columns + 1)) // columns
  sheet = Image.new(
    "RGB", (width, gap + rows * (side + gap)), drawing.BACKGROUND
  )
  for number, photograph in enumerate(photographs):
    one = Image.fromarray(getattr(photograph, "pixels", photograph))
    one.thumbnail((side, side), Image.Resampling.LANCZOS)
    row, column = divmod(number, columns)
    sheet.paste(
      one,
      (
        gap + column * (side + gap) + (side - one.width) // 2,
        gap + row * (side + gap) + (side - one.height) // 2,
      ),
    )
  return sheet


def figure_of_match(
  query: Photograph,
  image: Photograph,
  match: retrieval.Match,
  *,
  names: tuple[str, str] | None = None,
  rejected: bool = True,
  height: int = 400,
) -> Image.Image:
  """Shows two photographs side by side and their matches.

  Args:
    query: as it was searched with; may be reduced.
    image: the photograph that was found; may be reduced.
    match: from `retrieval.search` or `retrieval.compare`.
    names: of both; the second is the path of the match otherwise.
    rejected: whether matches that are no inliers are drawn, thin and grey.
    height: of both photographs, in pixels.
  """
  shown = slice(None) if rejected else match.inliers
  names = names or ("", match.path)
  return Image.fromarray(
    match_pictures.draw_matches(
      query.pixels,
      image.pixels,
      match.query_locations[shown],
      match.image_locations[shown],
      query_size=(query.height, query.width),
      image_size=(image.height, image.width),
      inliers=match.inliers[shown],
      residuals=match.residuals[shown],
      max_residual=match.reach,
      transform=match.transform if match.inliers.any() else None,
      query_name=names[0],
      image_name=names[1],
      height=height,
    )
  )


def figure_of_blend(
  query: Photograph,
  image: Photograph,
  match: retrieval.Match,
  *,
  names: tuple[str, str] | None = None,
  side: int = 640,
) -> Moving | Image.Image:
  """Shows the query, warped onto the match, and a seam that moves between them.

  Args:
    query: as for `figure_of_match`, like the rest.
    image: the same.
    match: the same.
    names: the same.
    side: the longer side of the picture, in pixels.

  Returns:
    a moving picture; both photographs standing, side by side, where the
    transform leaves nothing to blend.
  """
  names = names or ("", match.path)
  content = blend_pictures.animate_blend(
    query.pixels,
    image.pixels,
    match.transform,
    query_size=(query.height, query.width),
    image_size=(image.height, image.width),
    query_name=names[0],
    image_name=names[1],
    side=side,
  )
  if content is None:
    return figure_of_match(query, image, match, names=names)
  return Moving(content, "The query, moved by the transform, over the match")


def figure_of_features(
  photograph: Photograph,
  features: LocalFeatures,
  *,
  most: int = 300,
  name: str = "",
  height: int = 400,
) -> Image.Image:
  """Shows where features are: circles sized by scale, coloured by score.

  Args:
    photograph: may be reduced.
    features: of it, compact, in pixels of the original.
    most: how many are drawn, the best.
    name: of the photograph.
    height: of the photograph, in pixels.
  """
  return Image.fromarray(
    feature_pictures.draw_features(
      photograph.pixels,
      features.locations,
      features.scales,
      features.scores,
      size=(photograph.height, photograph.width),
      most=most,
      name=name,
      height=height,
    )
  )


def figure_of_scores(
  model: checkpoint.Model,
  photograph: Photograph | np.ndarray,
  *,
  mask: np.ndarray | None = None,
  name: str = "",
  width: int = 1000,
) -> Image.Image:
  """Shows where a network's features are strong, and what it attends to.

  The maps are those of one scale, the photograph's own.

  Args:
    model: a checkpoint with attention.
    photograph: or its pixels, [h, w, 3] uint8.
    mask: [h, w] bool, where the landmark is, if that is known.
    name: of the photograph.
    width: of the picture at most, in pixels.

  Raises:
    ValueError: if the photograph is too small for a feature.
  """
  pixels = getattr(photograph, "pixels", photograph)
  scorer = validation.make_scorer(model.network, model.normalisation)
  norms, attention = scorer(model.variables, pixels)
  return Image.fromarray(
    training_pictures.draw_scores(
      pixels,
      np.asarray(norms),
      np.asarray(attention),
      stride=model.network.receptive_field.stride,
      mask=mask,
      name=name,
      width=width,
    )
  )


def figure_of_precision_recall(
  curves: Mapping[str, precision_plots.Curve],
  *,
  title: str = "",
  width: int = 900,
) -> Image.Image:
  """Shows precision against recall; see `precision_plots.plot`."""
  pixels, _ = precision_plots.plot(curves, title=title, width=width)
  return Image.fromarray(pixels)
