"""Exports a checkpoint's extractor as StableHLO, to run with JAX alone.

  python -m delf_jax.export --features RUN --output DIR

RUN is a checkpoint or what delf_jax.train wrote. DIR then holds the program,
the weights, a description, and loader.py, which needs neither delf_jax nor
Flax:

  from loader import load
  features = load("DIR")(pixels)  # [h, w, 3] uint8, RGB

One DIR serves photographs of all sizes up to --max_side, in batches of any
size, on every one of --platforms; none of them is needed to export.
"""

import time

from absl import flags

from delf_jax import checkpoint, options, program, stablehlo
from delf_jax.errors import InputError


def main() -> int:
  """Exports as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  stablehlo.check_replaceable(values.output)
  extractor = options.open_extractor(values)
  settings = dict(extractor.settings)
  if settings.pop("kind") != "delf":
    raise InputError(
      f"--features: {extractor.source!r} has no network that can be exported; "
      f"give what delf_jax.train wrote"
    )
  del settings["fingerprint"]
  code, weights, meta = stablehlo.lower(
    checkpoint.load_model(extractor.source),
    platforms=values.platforms,
    **settings,
  )
  stablehlo.write(values.output, code, weights, meta)
  size = sum(array.nbytes for array in weights.values())
  print(
    f"{values.output}: a program of {len(code) / 2**20:.1f} MiB for "
    f"{', '.join(values.platforms)} and weights of {size / 2**20:.1f} MiB in "
    f"{program.elapsed(start)}"
  )
  return 0


if __name__ == "__main__":
  options.define_features()
  flags.adopt_module_key_flags(options)
  flags.DEFINE_string("output", None, "the export, a directory.", required=True)
  flags.DEFINE_list(
    "platforms",
    ["cpu", "cuda", "tpu"],
    f"that it is to run on, of {', '.join(stablehlo.PLATFORMS)}.",
  )
  program.run(main)
