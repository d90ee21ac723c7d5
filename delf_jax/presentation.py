"""Search results in words, and as sections of a report with pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from delf_jax import html_report, retrieval
from delf_jax.data.photographs import Photograph, read_photograph
from delf_jax.errors import InputError
from delf_jax.geometry import homography
from delf_jax.pictures import blend_pictures, drawing, match_pictures

PICTURE_SIDE = 1024  # photographs are read no larger than this for drawing
MOST_MATCHES = 10  # shown of one query
MOST_BLENDS = 3  # of these, with both photographs laid over each other

_LEGEND = (
  "Lines join the inliers; their colour is the residual, how far the transform"
  " misses. Thin grey lines join what looks alike and does not fit. The white"
  " outline is the frame of the query, moved by the transform; what lies out of"
  " it is dimmed."
)


def query_sections(
  photo: str | os.PathLike,
  photograph: Photograph,
  matches: Sequence[retrieval.Match],
  photos: str | os.PathLike,
  *,
  min_probability: float = retrieval.MIN_PROBABILITY,
  most: int = MOST_MATCHES,
) -> list[html_report.Section]:
  """Shows a query and its best matches, or the best rejected candidate.

  Args:
    photo: path of the query.
    photograph: the query, decoded.
    matches: from `retrieval.search`.
    photos: folder that the paths of the matches are relative to.
    min_probability: see `retrieval.accept`.
    most: how many matches are drawn.

  Returns:
    A section of level 2, and one of level 3 for each match that is drawn.
  """
  accepted = retrieval.accept(matches, min_probability=min_probability)
  name = os.fspath(photo)
  blocks = [
    html_report.Picture(
      drawing.draw_photograph(photograph.pixels),
      f"The query photograph {name}",
      name="query",
      narrow=True,
    )
  ]
  if not accepted:
    blocks.append(
      html_report.Notice(
        "No match",
        "No photograph that was compared shows the same place with a "
        f"probability of {min_probability:.3g} or more.",
      )
    )
  if matches:
    blocks.append(html_report.Paragraph(_LEGEND))
  counted = _counted(len(accepted), "match", "matches")
  if len(accepted) > most:
    counted += f", the best {most} shown"
  return [
    html_report.Section(
      f"Query {name}", blocks, aside=counted if accepted else "no match"
    ),
    *(
      _match_section(
        f"{rank}. {match.path}",
        "match",
        name,
        photograph,
        match,
        photos,
        blended=rank <= MOST_BLENDS,
      )
      for rank, match in enumerate(accepted[:most], start=1)
    ),
    *(
      _match_section(
        f"Best rejected candidate: {match.path}",
        "rejected",
        name,
        photograph,
        match,
        photos,
      )
      for match in (() if accepted else matches[:1])
    ),
  ]


def describe_match(match: retrieval.Match) -> str:
  """Says how sure a match is and what its transform does."""
  words = f"probability {match.probability:.3f}  inliers {match.inlier_count}"
  if match.via:
    *before, last = match.via
    words += f"  via {drawing.visible(last)}"
    words += f" and {len(before)} before it" if before else ""
  if match.inlier_count:
    words += f"  {html_report.describe_transform(affine_at_centre(match))}"
  return words


def affine_at_centre(match: retrieval.Match) -> np.ndarray:
  """Returns a match's transform as an affine one, [2, 3] of (y, x, 1).

  Itself, unless it is a homography: then what it does to small things in the
  middle of the query.
  """
  centre = np.asarray(match.query_size, np.float32) / 2
  return np.asarray(homography.affine_at(match.transform, centre))[:2]


def _match_section(
  title, name, query, photograph, match, photos, *, blended=False
):
  """Shows one compared photograph; `name` is that of the picture's file."""
  image = _read(Path(photos) / match.path, match.image_size)
  if match.via:
    # Its lines and its transform begin at the last photograph on the way.
    query = match.via[-1]
    photograph = _read(Path(photos) / query, match.query_size)
  note = "found before" if match.via else "query"
  found = match.inlier_count > 0
  counted = _counted(match.inlier_count, "inlier", "inliers")
  picture = match_pictures.draw_matches(
    photograph.pixels,
    image.pixels,
    match.query_locations,
    match.image_locations,
    query_size=(photograph.height, photograph.width),
    image_size=(image.height, image.width),
    inliers=match.inliers,
    residuals=match.residuals,
    max_residual=match.reach,
    transform=match.transform if found else None,
    query_name=query,
    image_name=match.path,
    query_note=note,
  )
  blocks = [
    html_report.Picture(
      picture,
      f"{query} beside {match.path}, {counted} joined by lines"
      if match.via
      else f"The query {query} beside {match.path}, {counted} joined by lines",
      name=name,
    )
  ]
  if blended:
    blend = blend_pictures.animate_blend(
      photograph.pixels,
      image.pixels,
      match.transform,
      query_size=(photograph.height, photograph.width),
      image_size=(image.height, image.width),
      query_name=query,
      image_name=match.path,
      query_note=note,
    )
    if blend is not None:
      blocks.append(
        html_report.Animation(
          blend,
          "Both photographs laid over each other",
          f"{query}, moved by the transform, over {match.path}, a line moving "
          "between them",
          name="blend",
        )
      )
  if found:
    cells = [[f"{value:.4g}" for value in row] for row in match.transform]
    widest = max(len(cell) for row in cells for cell in row)
    blocks.append(
      html_report.Facts(
        [
          ("Probability", f"{match.probability:.3f}"),
          *([("By way of", ", ".join(match.via))] if match.via else []),
          (
            "Transform",
            html_report.describe_transform(affine_at_centre(match)),
          ),
          (
            "(y, x, 1) to (y, x, 1)",
            tuple(
              "  ".join(cell.rjust(widest) for cell in row) for row in cells
            ),
          ),
        ]
      )
    )
  return html_report.Section(title, blocks, aside=counted, level=3)


def _read(path: Path, size: tuple[int, int]) -> Photograph:
  """Reads a photograph; grey, if the index has outlived it."""
  try:
    return read_photograph(path, max_side=PICTURE_SIDE)
  except InputError:
    return Photograph(np.full((240, 320, 3), 128, np.uint8), *size)


def _counted(count: int, one: str, more: str) -> str:
  return f"1 {one}" if count == 1 else f"{count} {more}"
