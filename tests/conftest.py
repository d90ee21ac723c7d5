"""Two virtual CPU devices and strict promotion, before JAX is imported."""

import os
import signal

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

from delf_jax import program  # noqa: E402

# Many tests build the same small network: its programs are compiled once.
program.use_compilation_cache()

# A shell that starts tests in the background makes them, and the programs that
# they start, deaf to the keyboard's interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
