"""Search results as sections of a report, with the matches drawn."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from delf_jax import drawing, html_report, retrieval
from delf_jax.data.photographs import Photograph, read_photograph
from delf_jax.errors import InputError

PICTURE_SIDE = 1024  # photographs are read no larger than this for drawing
MOST_MATCHES = 10  # shown of one query


def query_sections(
  photo: str | os.PathLike,
  photograph: Photograph,
  matches: Sequence[retrieval.Match],
  photos: str | os.PathLike,
  *,
  min_inliers: int,
  most: int = MOST_MATCHES,
) -> list[html_report.Section]:
  """Shows a query and its best matches, or the best rejected candidate.

  Args:
    photo: path of the query.
    photograph: the query, decoded.
    matches: from `retrieval.search`.
    photos: folder that the paths of the matches are relative to.
    min_inliers: fewer are no match.
    most: how many matches are drawn.
  """
  accepted = retrieval.accept(matches, min_inliers=min_inliers)
  shown = [
    _draw(photo, photograph, match, photos)
    for match in (accepted or matches[:1])[:most]
  ]
  return html_report.query_sections(
    os.fspath(photo),
    drawing.draw_photograph(photograph.pixels),
    shown if accepted else [],
    min_inliers=min_inliers,
    found=len(accepted),
    rejected=None if accepted or not shown else shown[0],
  )


def _draw(photo, photograph, match, photos) -> html_report.Match:
  path = Path(photos) / match.path
  try:
    image = read_photograph(path, max_side=PICTURE_SIDE)
  except InputError:
    # The index outlives the photographs it was made from.
    image = Photograph(np.full((240, 320, 3), 128, np.uint8), 240, 320)
  picture = drawing.draw_matches(
    photograph.pixels,
    image.pixels,
    match.query_locations[match.inliers],
    match.image_locations[match.inliers],
    query_size=(photograph.height, photograph.width),
    image_size=(image.height, image.width),
    residuals=match.residuals[match.inliers],
    max_residual=match.reach,
    transform=match.transform if match.score else None,
    query_name=os.fspath(photo),
    image_name=match.path,
  )
  return html_report.Match(
    path=match.path,
    inliers=match.score,
    transform=match.transform if match.score else None,
    picture=picture,
  )
