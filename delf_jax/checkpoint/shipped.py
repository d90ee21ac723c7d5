"""Checkpoints that come with the package, under names of their own."""

from pathlib import Path

_DIRECTORY = Path(__file__).parent.parent / "checkpoints"
DEFAULT = "delf_small"
NAMES = (DEFAULT, "delf_fast")


def shipped(name: str) -> Path | None:
  """Returns where the checkpoint of that name is; None if there is none.

  A directory that is called the same is meant by "./NAME".
  """
  return _DIRECTORY / name if name in NAMES else None
