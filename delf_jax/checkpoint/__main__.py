"""Prints what a checkpoint says of itself: layers, shapes, provenance.

  python -m delf_jax.checkpoint CHECKPOINT

CHECKPOINT is a model or a training run. All of it is read, and its
fingerprint checked.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from delf_jax import checkpoint, program
from delf_jax.checkpoint.architecture import architecture
from delf_jax.checkpoint.arrays import named


def main(path: str) -> None:
  """Prints the description of the checkpoint at `path`."""
  if checkpoint.find_selector(path) is not None:
    lines = describe_selector(checkpoint.load_selector(path))
  else:
    lines = describe(checkpoint.load_model(checkpoint.find_model(path)))
  for line in lines:
    print(line)


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
  program.run(main, argument="CHECKPOINT")
