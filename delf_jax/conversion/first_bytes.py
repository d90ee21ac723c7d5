"""What a file is that is not what it should be, by its first bytes."""

LENGTH = 512  # how many bytes are looked at


def advice(start: bytes) -> str:
  """Says what a file is and what to do about it.

  Args:
    start: its first `LENGTH` bytes, or all that there are.

  Returns:
    the rest of a sentence that begins with the file's name.
  """
  text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
  if not start:
    return "is empty; download it again"
  if text.startswith(b"<"):
    return "is a web page, not weights; download the file that it links to"
  if text.startswith(b"version https://git-lfs"):
    return "is a pointer of Git LFS, not the file; run git lfs pull"
  if start.startswith(b"\x89HDF\r\n\x1a\n"):
    return "is an HDF5 file, as Keras writes; give another"
  if start.startswith((b"\x80\x02", b"PK\x03\x04")):
    return "is a pickle or a zip archive, as PyTorch writes; give another"
  if start.startswith(b"\x1f\x8b"):
    return "is compressed; unpack it with gunzip"
  if start[257:262] == b"ustar":
    return (
      "is a tar archive; unpack it, or if PyTorch before 0.1.10 wrote it, "
      "load and save it again with PyTorch"
    )
  return (
    f"starts with {start[:8]!r}, as no file of weights does; check it or "
    "download it again"
  )
