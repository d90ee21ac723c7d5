"""Extracts local features of every photograph under a folder into a store.

  python -m delf_jax.extract --photos DIR --features RUN --output STORE
  python -m delf_jax.extract --photos DIR --features rootsift --output STORE

RUN is what delf_jax.train wrote. These need no training: sift, rootsift, surf,
surf_upright (photographs that stand upright), congas (a re-creation, reduced to
40 dimensions) and congas_raw (its 200). The folder is searched recursively. A
photograph that cannot be used is reported and skipped; --strict makes that an
error in the end. The same command continues a run that was stopped, and adds
photographs that are new.

Then: python -m delf_jax.build_index --store STORE --output INDEX
"""

import time

from absl import flags

from delf_jax import extraction, options, program


def main() -> int:
  """Extracts as the flags say."""
  start = time.perf_counter()
  values = flags.FLAGS
  counts = extraction.extract_folder(
    options.open_extractor(values),
    values.photos,
    values.output,
    dtype=values.dtype,
    workers=values.workers,
  )
  for _, reason in counts.skipped:
    print(f"skipped {reason}")
  earlier = f", {counts.kept} were there" if counts.kept else ""
  print(
    f"{values.output}: {counts.done} photographs done{earlier}, "
    f"{len(counts.skipped)} skipped, {counts.features} features in "
    f"{program.elapsed(start)}"
  )
  return 1 if values.strict and counts.skipped else 0


if __name__ == "__main__":
  flags.DEFINE_string("photos", None, "folder of photographs.", required=True)
  flags.DEFINE_string("output", None, "the store, a directory.", required=True)
  options.define_features()
  options.define_workers()
  flags.adopt_module_key_flags(options)
  flags.DEFINE_enum(
    "dtype", "float16", ["float16", "float32", "int8"], "of descriptors."
  )
  flags.DEFINE_bool("strict", False, "exit with 1 if any was skipped.")
  program.run(main)
