"""What every program does around its work: errors, compilation cache."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from delf_jax.errors import InputError

CACHE_VARIABLE = "DELF_JAX_CACHE"


def cache_directory() -> Path:
  """Where compiled programs are kept: $DELF_JAX_CACHE or ~/.cache/delf_jax."""
  default = Path("~/.cache/delf_jax").expanduser()
  return Path(os.environ.get(CACHE_VARIABLE) or default)


def use_compilation_cache() -> None:
  """Makes JAX keep compiled programs between runs."""
  directory = cache_directory() / "xla"
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # a read-only home: compile every time
  jax.config.update("jax_compilation_cache_dir", str(directory))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def run(main: Callable[..., int | None], *, argument: str = "") -> None:
  """Runs a program: parses flags, turns known errors into one line each.

  Args:
    main: does the work after flags are parsed; returns the exit status.
    argument: what the one argument that is no flag is called, if the program
      takes one; `main` is given its value.
  """

  def guarded(argv: Sequence[str]) -> int:
    given = argv[1:]
    if argument and len(given) != 1:
      return _fail(f"expected one {argument}, got {len(given)}", 2)
    if given and not argument:
      return _fail(
        f"unexpected argument {argv[1]!r}; every option is a --flag, and "
        f"--help lists them"
      )
    logging.set_verbosity(logging.ERROR)
    # A cluster's "terminate" ends a program as the keyboard does: in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", module="(jax|flax|orbax|grain|etils).*")
    use_compilation_cache()
    try:
      return main(*given) or 0
    except InputError as error:
      return _fail(str(error))
    except OSError as error:
      if error.errno is None:
        raise
      where = f"{error.filename}: " if error.filename else ""
      return _fail(f"{where}{error.strerror}")
    except KeyboardInterrupt:
      return _fail("stopped; the same command continues where it can", 130)

  app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags; a bad or missing one is an error of one line."""
  if {"--help", "-help", "-h", "--helpshort"}.intersection(argv[1:]):
    app.usage(shorthelp=True, writeto_stdout=True)
    sys.exit(0)  # absl's own --help calls this a failure
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # Of a config's own error, its last line without the traceback.
    line = str(error).strip().splitlines()[-1]
    sys.exit(_fail(f"{line} (--help lists the flags)", 2))
  except (AttributeError, KeyError) as error:
    line = " ".join(str(error).strip("\"'").split())
    sys.exit(_fail(f"--config has no value {line}", 2))


def _fail(message: str, status: int = 1) -> int:
  print(f"error: {message}", file=sys.stderr)
  return status


def elapsed(since: float) -> str:
  """Writes the seconds since `time.perf_counter()` gave `since`."""
  seconds = time.perf_counter() - since
  if seconds < 60:
    return f"{seconds:.1f} s"
  return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
