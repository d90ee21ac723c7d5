"""The config of a run: read, kept beside what it made, gone on with."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delf_jax import hosts
from delf_jax.errors import InputError

# What differs between the hosts of a run.
_OF_A_HOST = ("--coordinator", "--num_p", "--process_id")


def read(config: Any) -> Any:
  """Resolves the value of a flag that `config_flags` defined.

  Raises:
    InputError: if its file cannot be read.
  """
  try:
    return config.copy_and_resolve_references()
  except OSError as error:  # how config_flags reports a file it cannot load
    line = str(error).strip().splitlines()[-1].strip()
    raise InputError(f"--config cannot be read: {line}") from error


def say_how_to_resume(program: str, stopped: hosts.Stopped) -> None:
  """Prints the command that goes on with a run that a signal ended.

  Args:
    program: its module in this package.
    stopped: what ended it.
  """
  where = f" after {stopped}" if str(stopped) else ""
  again = [one for one in sys.argv[1:] if not one.startswith(_OF_A_HOST)]
  print(
    f"stopped{where}, all saved; resume with\n"
    f"  python -m delf_jax.{program} {shlex.join(again)}"
  )


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
