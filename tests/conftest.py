"""Two virtual CPU devices and strict promotion, before JAX is imported."""

import gc
import os
import pathlib
import signal

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

from delf_jax import program  # noqa: E402

# Many tests build the same small network: its programs are compiled once.
program.use_compilation_cache()

# Of a process; see `few_programs`.
MOST_MAPS = 20_000

# A shell that starts tests in the background makes them, and the programs that
# they start, deaf to the keyboard's interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
  """Lets go of compiled programs before a process runs out of memory maps.

  Linux gives it 65,530, of which every program takes some; then compiling
  crashes.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
    jax.clear_caches()
    gc.collect()
