"""Prints what a checkpoint says of itself: layers, shapes, provenance.

  python -m delf_jax.checkpoint CHECKPOINT

CHECKPOINT is a model or a training run, or the name of one that comes with the
package. All of it is read, and its fingerprint checked.

  python -m delf_jax.checkpoint CHECKPOINT --save_as DIR --weights int8 \
      --option score=attention --calibration calibration.json

writes it again, to be handed on: smaller, with other settings of extraction,
and with the calibration of its matches. Of the paths that it was trained with
the last names alone are kept. --average CHECKPOINT2, of a run that this one
went on from or that went on from it, makes the network the mean of both;
attention remains that of CHECKPOINT.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax
from absl import flags

from delf_jax import checkpoint, extractors, match_score, program
from delf_jax.checkpoint.architecture import architecture
from delf_jax.checkpoint.arrays import named
from delf_jax.checkpoint.averaging import average
from delf_jax.errors import InputError
from delf_jax.options import parse_options


def main(path: str) -> None:
  """Prints the description of the checkpoint at `path`, or writes it again."""
  values = flags.FLAGS
  if values.save_as is None:
    for flag in ("average", "weights", "option", "calibration"):
      if values[flag].present:
        raise InputError(f"--{flag} needs --save_as: a checkpoint stays as is")
    if checkpoint.find_selector(path) is not None:
      lines = describe_selector(checkpoint.load_selector(path))
    else:
      lines = describe(checkpoint.load_model(path))
    for line in lines:
      print(line)
    return
  save_as(
    checkpoint.find_model(path),
    Path(values.save_as),
    others=[checkpoint.find_model(other) for other in values.average],
    weights=values.weights,
    settings=parse_options(values.option),
    calibration=values.calibration,
  )


def save_as(
  source: Path,
  directory: Path,
  *,
  others: Sequence[Path] = (),
  weights: str = "float32",
  settings: Mapping[str, Any] | None = None,
  calibration: str | None = None,
) -> None:
  """Writes a checkpoint again, with changes.

  Args:
    source: a model's directory.
    directory: to be written; an earlier checkpoint there is replaced.
    others: directories of models that it is averaged with.
    weights: see `checkpoint.save_model`.
    settings: of extraction, that differ.
    calibration: of its matches, a file; by default the one it has.

  Raises:
    InputError: if a setting is unknown, the calibration cannot be read, the
      networks cannot be averaged, or the checkpoint cannot be written.
  """
  model = checkpoint.load_model(source)
  unknown = sorted((settings or {}).keys() - set(extractors.OPTIONS))
  if unknown:
    raise InputError(
      f"--option {unknown[0]}: extraction has no such setting; it has "
      f"{', '.join(extractors.OPTIONS)}"
    )
  given = Path(calibration) if calibration else source / extractors.CALIBRATION
  kept = None
  if calibration or given.is_file():
    match_score.read_calibration(given)
    kept = given.read_bytes()
  variables, provenance = model.variables, dict(model.provenance)
  if others:
    loaded = [checkpoint.load_model(other) for other in others]
    variables = average(model, loaded)
    provenance["averaged"] = [one.fingerprint for one in (model, *loaded)]
  changed = {**model.extraction, **(settings or {})}
  # Refuses settings that the network cannot be extracted with.
  extractors.delf_extractor(model, **changed)
  checkpoint.save_model(
    directory,
    network=model.network,
    variables=variables,
    normalisation=model.normalisation,
    reduction=model.reduction,
    extraction=changed,
    provenance=_without_directories(provenance),
    weights=weights,
  )
  # Orbax leaves a file that says where it was written, and looks at its name
  # alone.
  for path in directory.rglob("commit_success.txt"):
    path.write_text("written\n")
  if kept is not None:
    (directory / extractors.CALIBRATION).write_bytes(kept)
  files = [path for path in directory.rglob("*") if path.is_file()]
  size = sum(path.stat().st_size for path in files) / 2**20
  print(f"{directory}: {weights}, {size:.1f} MiB")


def _without_directories(tree: Any) -> Any:
  """Leaves the last name of every absolute path."""
  if isinstance(tree, Mapping):
    return {key: _without_directories(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_without_directories(value) for value in tree]
  if isinstance(tree, str) and PurePath(tree).is_absolute():
    return PurePath(tree).name
  return tree


def describe(model: checkpoint.Model) -> Iterable[str]:
  """Yields the lines that describe a model."""
  network = model.network
  field = network.receptive_field
  norm = model.normalisation
  yield "network"
  yield from _table(architecture(network))
  yield "features"
  yield from _table(
    {
      "channels": network.descriptor_channels,
      "receptive field": f"{field.size} pixels, stride {field.stride}, "
      f"padding {field.padding}, first centre at {field.offset:g}",
      "pixels": f"({''.join('RGB'[i] for i in norm.order)} - "
      f"{_numbers(norm.mean)}) / {_numbers(norm.scale)}",
      "reduction": "none"
      if model.reduction is None
      else f"PCA to {len(model.reduction.components)} dimensions"
      + ("" if (model.reduction.deviations == 1).all() else ", whitened"),
      "descriptors": len(model.reduction.components)
      if model.reduction is not None
      else network.descriptor_channels,
    }
  )
  yield "extraction"
  yield from _table(model.extraction)
  yield "provenance"
  yield from _table(_flat(model.provenance))
  yield from _table({"fingerprint": model.fingerprint})
  yield "layers"
  yield from _layers(model.variables)


def describe_selector(model: checkpoint.SelectorModel) -> Iterable[str]:
  """Yields the lines that describe a learned selection."""
  yield "selects from"
  yield from _table(model.features)
  yield "sees a descriptor and"
  yield f"  {', '.join(model.geometry) or 'nothing else'}"
  yield "extraction"
  yield from _table(model.extraction)
  yield "provenance"
  yield from _table(_flat(model.provenance))
  yield from _table({"fingerprint": model.fingerprint})
  yield "layers"
  yield from _layers(model.variables)


def _layers(variables: Mapping[str, Any]) -> Iterable[str]:
  """Yields a line a module with parameters, and the sums."""
  modules: dict[str, dict[str, Any]] = {}
  for name, leaf in named(variables).items():
    _, _, rest = name.partition(".")
    module, _, variable = rest.rpartition(".")
    modules.setdefault(module, {})[variable] = leaf
  width = max(len(module) for module in modules)
  for module, leaves in modules.items():
    count = sum(leaf.size for leaf in leaves.values())
    shapes = ", ".join(
      f"{name} {'x'.join(map(str, leaf.shape))}"
      for name, leaf in sorted(leaves.items(), key=lambda item: -item[1].ndim)
    )
    yield f"  {module:{width}} {count:>11,}  {shapes}"
  for collection, tree in variables.items():
    leaves = jax.tree.leaves(tree)
    count = sum(leaf.size for leaf in leaves)
    size = sum(leaf.nbytes for leaf in leaves) / 2**20
    yield f"  {collection}: {count:,} numbers, {size:.1f} MiB"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      found |= _flat(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = value
  return found


def _table(rows: Mapping[str, Any]) -> Iterable[str]:
  width = max((len(key) for key in rows), default=0)
  for key, value in rows.items():
    shown = value if isinstance(value, str) else json.dumps(value)
    yield f"  {key:{width}}  {shown}"


def _numbers(values: Iterable[float]) -> str:
  values = tuple(values)
  shown = [f"{value:g}" for value in values]
  return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"


if __name__ == "__main__":
  flags.DEFINE_string("save_as", None, "the checkpoint is written again here.")
  flags.DEFINE_multi_string(
    "average", [], "checkpoint to average it with; may be repeated."
  )
  flags.DEFINE_enum(
    "weights", "float32", checkpoint.WEIGHTS, "what weights are kept as."
  )
  flags.DEFINE_multi_string(
    "option", [], "NAME=VALUE, a setting of extraction; may be repeated."
  )
  flags.DEFINE_string(
    "calibration", None, "what delf_jax.calibrate wrote for it."
  )
  program.run(main, argument="CHECKPOINT")
