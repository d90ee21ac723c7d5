"""Pictures of two photographs and the matches between them.

Arrays in, pictures out, as in `delf_jax.pictures.drawing`: [h, w, 3] uint8 RGB.
"""

import numpy as np
from PIL import Image, ImageDraw

from delf_jax.pictures import drawing

_REJECTED = (205, 208, 214)

# Polygons are clipped so many pixels outside a picture: the edges that clipping
# adds are not seen.
BEYOND = 9.0


def draw_matches(
  query_pixels: np.ndarray,
  image_pixels: np.ndarray,
  query_locations: np.ndarray,
  image_locations: np.ndarray,
  *,
  query_size: tuple[int, int] | None = None,
  image_size: tuple[int, int] | None = None,
  inliers: np.ndarray | None = None,
  residuals: np.ndarray | None = None,
  max_residual: float | None = None,
  transform: np.ndarray | None = None,
  query_name: str = "",
  image_name: str = "",
  query_note: str = "query",
  height: int = 540,
) -> np.ndarray:
  """Draws two photographs side by side and the matches between them.

  A line joins the two ends of each inlier, coloured by its residual, the best
  on top; what is no inlier is a thin grey line below them. The frame of the
  query, mapped by the transform, is outlined in the other photograph, and what
  is outside of it dimmed. A strip below names both and counts the lines.

  Args:
    query_pixels: [h, w, 3] uint8 RGB, upright.
    image_pixels: [h', w', 3] uint8 RGB, upright.
    query_locations: [n, 2] (y, x) in pixels of the original query photograph.
    image_locations: [n, 2] (y, x), the same in the other photograph.
    query_size: (height, width) of the original query photograph, where
      `query_pixels` is a reduced copy of it; that of the pixels otherwise.
    image_size: the same for the other photograph.
    inliers: [n] bool, which matches are inliers; all without it.
    residuals: [n] in pixels of the other photograph; one colour without them.
      Those of what is no inlier may be anything.
    max_residual: the residual at the far end of the colours, such as the
      threshold of RANSAC; the largest of an inlier otherwise.
    transform: [3, 3], maps (y, x, 1) of the query to (y, x, 1) of the other, up
      to a factor; a homography may be.
    query_name: what the strip calls the query.
    image_name: what the strip calls the other photograph.
    query_note: what the strip says of the query below its name.
    height: of both photographs in the picture, in pixels.

  Returns:
    A picture a little higher than `height`, as wide as the photographs need.

  Raises:
    ValueError: for shapes that disagree, or a `max_residual` that is not
      positive.
  """
  query_locations = np.asarray(query_locations, np.float64)
  image_locations = np.asarray(image_locations, np.float64)
  n = len(query_locations)
  if query_locations.shape != (n, 2) or image_locations.shape != (n, 2):
    raise ValueError(
      f"locations {query_locations.shape} and {image_locations.shape} must both"
      " be [n, 2]"
    )
  for name, values in (("inliers", inliers), ("residuals", residuals)):
    if values is not None and np.shape(values) != (n,):
      raise ValueError(f"{name} {np.shape(values)} must be [{n}]")
  if transform is not None and np.shape(transform) != (3, 3):
    raise ValueError(f"transform {np.shape(transform)} must be [3, 3]")
  if max_residual is not None and not max_residual > 0:
    raise ValueError(f"max_residual must be positive, not {max_residual}")
  query_size = query_size or query_pixels.shape[:2]
  image_size = image_size or image_pixels.shape[:2]
  kept = np.ones(n, bool) if inliers is None else np.asarray(inliers, bool)
  rejected = query_locations[~kept], image_locations[~kept]
  starts, ends = query_locations[kept], image_locations[kept]
  colours = np.tile(drawing.ramp_colours(np.zeros(())), (len(starts), 1))
  if residuals is not None:
    residuals = np.asarray(residuals, np.float64)[kept]
    worst_first = np.argsort(-residuals, kind="stable")
    residuals = residuals[worst_first]
    starts, ends = starts[worst_first], ends[worst_first]
    if max_residual is None:
      max_residual = float(np.max(residuals, initial=1.0))
    colours = drawing.ramp_colours(residuals / max_residual)

  margin = max(4, height // 32)
  photos = [
    drawing.fit_photograph(pixels, height)
    for pixels in (query_pixels, image_pixels)
  ]
  corners = (
    (margin, margin + (height - photos[0].height) // 2),
    (
      2 * margin + photos[0].width,
      margin + (height - photos[1].height) // 2,
    ),
  )
  strip_top = margin + height
  strip_height = round(0.15 * height)
  canvas = Image.new(
    "RGB",
    (3 * margin + photos[0].width + photos[1].width, strip_top + strip_height),
    drawing.BACKGROUND,
  )
  for photo, corner in zip(photos, corners, strict=True):
    canvas.paste(photo, corner)
  if transform is not None:
    outline = outline_frame(
      query_size,
      transform,
      drawing.placement(image_size, photos[1].size),
      photos[1].size,
      near=starts,
    )
    if outline is not None:
      unit = canvas.height / 640
      draw_outline(canvas, outline, corners[1], photos[1].size, unit=unit)

  def place(queries, images):
    return (
      drawing.place_points(queries, query_size, photos[0].size) + corners[0],
      drawing.place_points(images, image_size, photos[1].size) + corners[1],
    )

  _draw_lines(canvas, *place(starts, ends), colours, place(*rejected))
  counted = "1 line" if len(starts) == 1 else f"{len(starts)} lines"
  if not kept.all():
    counted += f", {n - len(starts)} in grey rejected"
  _draw_strip(
    canvas,
    top=strip_top,
    columns=tuple(corner[0] for corner in corners),
    margin=margin,
    names=(query_name, image_name),
    note=query_note,
    counted=counted,
    max_residual=None if residuals is None else max_residual,
  )
  return np.array(canvas)


def outline_frame(
  size: tuple[int, int],
  transform: np.ndarray,
  placement: np.ndarray,
  drawn: tuple[int, int],
  *,
  near: np.ndarray = (),
  beyond: float = BEYOND,
) -> np.ndarray | None:
  """Maps the frame of a photograph into a drawing of another one.

  A transform may throw a corner further than a picture can hold, and a
  homography throws what is behind its horizon to the other side of the picture;
  so the frame is clipped before its corners are divided (Blinn and Newell,
  "Clipping using homogeneous coordinates", SIGGRAPH 1978).

  Args:
    size: (height, width) of the photograph with the frame.
    transform: [3, 3], maps (y, x, 1) of it to (y, x, 1) of the other, up to a
      factor.
    placement: [3, 3], maps (y, x, 1) of the other to (x, y, 1) of the drawing.
    drawn: (width, height) of the drawing.
    near: [n, 2] (y, x) of places in the photograph that are on the right side
      of the horizon; its centre without them.
    beyond: how far outside the drawing it is clipped, in pixels.

  Returns:
    [k, 2] (x, y) corners of a convex polygon, none where the frame is outside;
    None where the transform has no meaning.
  """
  if not np.isfinite(transform).all() or not np.any(transform):
    return None
  transform = np.asarray(transform, np.float64)
  matrix = placement @ (transform / np.abs(transform).max())
  bottom, right = size[0] - 0.5, size[1] - 0.5
  corners = np.asarray(
    [(-0.5, -0.5, 1), (-0.5, right, 1), (bottom, right, 1), (bottom, -0.5, 1)]
  )
  places = np.reshape(near, (-1, 2)) if len(near) else corners[[0, 2], :2]
  if places.mean(axis=0) @ matrix[2, :2] + matrix[2, 2] < 0:
    matrix = -matrix
  polygon = corners @ matrix.T
  for axis in (0, 1):
    for sign, limit in ((1, -beyond), (-1, drawn[axis] + beyond)):
      polygon = _clip(polygon, axis, sign, limit)
  polygon = polygon[polygon[:, 2] > 0]
  return polygon[:, :2] / polygon[:, 2:]


def _clip(
  polygon: np.ndarray, axis: int, sign: int, limit: float
) -> np.ndarray:
  """Clips a convex polygon, [n, 3] homogeneous, at one line of the picture."""
  inside = sign * (polygon[:, axis] - limit * polygon[:, 2])
  kept = []
  for number, start in enumerate(polygon):
    after = (number + 1) % len(polygon)
    here, there = inside[number], inside[after]
    if here >= 0:
      kept.append(start)
    if (here >= 0) != (there >= 0):
      crossing = start + (polygon[after] - start) * (here / (here - there))
      crossing[axis] = limit * crossing[2]
      kept.append(crossing)
  return np.reshape(kept, (-1, 3))


def draw_outline(
  canvas: Image.Image,
  outline: np.ndarray,
  corner: tuple[int, int],
  size: tuple[int, int],
  *,
  unit: float,
) -> None:
  """Outlines a polygon ([n, 2] x, y) in a photograph and dims the rest of it.

  Args:
    canvas: changed in place.
    outline: in the drawing of the photograph; outside of it is not seen.
    corner: (x, y) of the photograph on the canvas.
    size: (width, height) of the photograph on the canvas.
    unit: half the width of the line, in pixels.
  """
  s = drawing.SUPERSAMPLING
  overlay = Image.new("RGBA", (s * size[0], s * size[1]), (*drawing.CASING, 85))
  if len(outline) > 1:
    outline = s * outline
    draw = ImageDraw.Draw(overlay)
    draw.polygon([tuple(point) for point in outline], fill=(*drawing.CASING, 0))
    # Closed past its first corner, so that this one is rounded as well.
    path = [tuple(point) for point in outline[[*range(len(outline)), 0, 1]]]
    for colour, width in (
      ((*drawing.CASING, 150), 4.5 * s * unit),
      ((255, 255, 255, 255), 2 * s * unit),
    ):
      draw.line(path, fill=colour, width=round(width), joint="curve")
  overlay = overlay.reduce(s)
  canvas.paste(overlay, corner, overlay)


def _draw_lines(
  canvas: Image.Image,
  starts: np.ndarray,
  ends: np.ndarray,
  colours: np.ndarray,
  rejected: tuple[np.ndarray, np.ndarray],
) -> None:
  """Draws lines ([n, 2] x, y to [n, 2] x, y), the last on top, in place."""
  n = len(starts)
  s = drawing.SUPERSAMPLING
  # Few lines may be bold; many must leave the photographs to be seen.
  crowd = min(1.0, (40 / max(n, 1)) ** 0.5)
  unit = s * canvas.height / 640
  alpha = round(255 * max(0.2, 0.85 * crowd))
  thickness = max(1, round(unit * (0.8 + 0.7 * crowd)))
  radius = unit * (1.7 + 2.0 * crowd)
  lines = Image.new("RGBA", (s * canvas.width, s * canvas.height))
  draw = ImageDraw.Draw(lines)
  faint = round(255 * min(0.6, 6.0 / max(len(rejected[0]), 1) ** 0.5))
  for segment in np.hstack(rejected) * s:
    draw.line(
      tuple(segment), fill=(*_REJECTED, faint), width=max(1, round(0.7 * unit))
    )
    for point in (segment[:2], segment[2:]):
      draw.circle(tuple(point), 1.4 * unit, fill=(*_REJECTED, faint))
  segments = [
    (*start, *end) for start, end in zip(s * starts, s * ends, strict=True)
  ]
  if crowd > 0.5:
    for segment in segments:
      draw.line(
        segment, fill=(*drawing.CASING, 110), width=thickness + round(unit)
      )
  for segment, colour in zip(segments, colours, strict=True):
    draw.line(segment, fill=(*colour, alpha), width=thickness)
  for segment, colour in zip(segments, colours, strict=True):
    for point in (segment[:2], segment[2:]):
      draw.circle(point, radius + unit, fill=(*drawing.CASING, 220))
      draw.circle(point, radius, fill=(*colour, 255))
  lines = lines.reduce(s)
  canvas.paste(lines, (0, 0), lines)


def _draw_strip(
  canvas: Image.Image,
  *,
  top: int,
  columns: tuple[int, int],
  margin: int,
  names: tuple[str, str],
  note: str,
  counted: str,
  max_residual: float | None,
) -> None:
  """Draws what is below the photographs: names, inliers, the colours."""
  draw = ImageDraw.Draw(canvas)
  height = canvas.height - top
  large, small = (drawing.load_font(round(x * height)) for x in (0.25, 0.2))
  rows = top + round(0.36 * height), top + round(0.72 * height)
  rights = columns[1] - margin, canvas.width - margin
  notes = note, counted
  for column, right, name, below in zip(
    columns, rights, names, notes, strict=True
  ):
    name = drawing.shorten(drawing.printable(name), large, right - column)
    draw.text((column, rows[0]), name, drawing.TEXT, large, anchor="lm")
    draw.text((column, rows[1]), below, drawing.MUTED, small, anchor="lm")
  if max_residual is None:
    return
  texts = "residual  0", f"{max_residual:.3g} px"
  widths = [round(small.getlength(text)) for text in texts]
  gap = round(0.12 * height)
  bar = Image.fromarray(
    np.tile(drawing.ramp_colours(np.linspace(0, 1, 2 * height)), (gap, 1, 1))
  )
  # Below the match, or where that is narrow, below the query.
  for place in (1, 0):
    right = rights[place]
    left = right - sum(widths) - bar.width - 2 * gap
    if left < columns[place] + small.getlength(notes[place]) + 2 * gap:
      continue
    draw.text((left, rows[1]), texts[0], drawing.MUTED, small, anchor="lm")
    canvas.paste(bar, (left + widths[0] + gap, rows[1] - gap // 2))
    draw.text((right, rows[1]), texts[1], drawing.MUTED, small, anchor="rm")
    return
