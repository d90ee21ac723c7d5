"""The config of a training run, kept beside what it made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delf_jax import hosts
from delf_jax.errors import InputError


def keep(settings: Mapping[str, Any], workdir: Path) -> None:
  """Writes the config beside the run; refuses to continue another one.

  Args:
    settings: a config as plain values.
    workdir: of the run.

  Raises:
    InputError: naming what differs.
  """
  path = workdir / "config.json"
  if path.exists():
    earlier = json.loads(path.read_text())
    if earlier != settings:
      keys = sorted(
        key
        for key in earlier.keys() | settings.keys()
        if earlier.get(key) != settings.get(key)
      )
      raise InputError(
        f"{workdir}: holds a run with another config (different: "
        f"{', '.join(keys)}); use another --workdir"
      )
  elif hosts.is_primary():
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")
