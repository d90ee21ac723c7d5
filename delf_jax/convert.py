"""Converts other people's weights to our checkpoints, and ours to theirs.

  python -m delf_jax.convert --from SOURCE --weights FILE --output CHECKPOINT
  python -m delf_jax.convert --to TARGET --checkpoint RUN --output FILE

SOURCE, and what FILE then is:
  torchvision   ResNet-50 or -101, a state dict (.pth or .safetensors)
  timm          the same of timm
  vgg16         VGG-16 of torchvision, a state dict
  keras         ResNet-50 or -101 (.h5, .weights.h5, .keras)
  tf_delf       the released DELF: its archive (.tar.gz) or directory, a
                SavedModel, or a checkpoint of TensorFlow 1
  tf_delf2      a checkpoint of the released TensorFlow 2 training code
  delf_pytorch  a .pth.tar of the best-known port of DELF to PyTorch
Without --weights the published file is fetched (--published lists which).

TARGET is torch_state_dict (.pth or .safetensors, torchvision's names) or
delf_tf1 (a directory as the released programs read it).

No file's code is run, and neither PyTorch nor TensorFlow is needed. The
checkpoint remembers layout, pixel normalisation, receptive field, reduction and
score threshold: delf_jax.extract then needs no further flag.

Then: python -m delf_jax.checkpoint CHECKPOINT
"""

import os
from pathlib import Path

from absl import flags

from delf_jax import checkpoint, program
from delf_jax.conversion import downloads, published, sources, targets
from delf_jax.conversion.recipe import Options
from delf_jax.errors import InputError
from delf_jax.models.delf import Delf
from delf_jax.models.normalisation import NORMALISATIONS
from delf_jax.models.resnet import ResNet


def convert_from(
  source: str,
  weights: str | os.PathLike,
  output: str | os.PathLike,
  options: Options | None = None,
) -> sources.Converted:
  """Converts a weight file and writes the checkpoint.

  Raises:
    InputError: see `sources.convert`; nothing is written then.
  """
  converted = sources.convert(source, weights, options)
  checkpoint.save_model(
    output,
    network=converted.network,
    variables=converted.variables,
    normalisation=NORMALISATIONS[converted.normalisation],
    reduction=converted.reduction,
    extraction=converted.extraction,
    provenance=converted.provenance,
  )
  return converted


def main() -> None:
  """Converts as the flags say."""
  values = flags.FLAGS
  if (values["from"].value is None) == (values.to is None):
    raise InputError("give either --from SOURCE or --to TARGET")
  if values.to is not None:
    if values.checkpoint is None:
      raise InputError("--to needs --checkpoint, what is to be written")
    model = checkpoint.load_model(values.checkpoint)
    if not isinstance(model.network, Delf):
      raise InputError(
        f"--checkpoint: {values.checkpoint!r} is a checkpoint of "
        f"{type(model.network).__name__}, which no other format has"
      )
    notes = targets.write(values.to, model, values.output)
    print(f"{values.output}: {values.to} of {values.checkpoint}")
  else:
    source = values["from"].value
    options = _options(values)
    converted = convert_from(
      source, _weights(source, values), values.output, options
    )
    notes = converted.notes
    field = converted.network.receptive_field
    print(
      f"{values.output}: {source} weights {converted.provenance['weights']}, "
      f"layout {_layout(converted)}, pixels {converted.normalisation!r}, "
      f"receptive field {field.size} / {field.stride}, selected by "
      f"{converted.extraction['score']}"
    )
  for note in notes:
    print(f"note: {note}")


def _layout(converted: sources.Converted) -> str:
  backbone = converted.network.backbone
  return backbone.layout if isinstance(backbone, ResNet) else "vgg"


def _weights(source: str, values: flags.FlagValues) -> Path:
  """Returns the file that --weights names, or fetches a published one."""
  if values.weights is not None:
    return Path(values.weights)
  known = [
    one.name for one in published.PUBLISHED.values() if one.source == source
  ]
  if not known:
    raise InputError(f"nobody publishes weights of {source}: give --weights")
  name = values.published or known[0]
  one = published.find(name)
  if one.source != source:
    raise InputError(
      f"--published={name} goes with --from {one.source}; of {source} there "
      f"are {', '.join(known)}"
    )
  return downloads.fetch(one, program.cache_directory() / "weights")


def _options(values: flags.FlagValues) -> Options:
  extraction = {
    name: values[name].value
    for name in ("score_threshold", "max_features", "score")
    if values[name].value is not None
  }
  return Options(
    layout=values.layout,
    stride=int(values.stride),
    feature_stage=values.feature_stage,
    pca=values.pca,
    pca_dim=values.pca_dim,
    whiten=values.whiten,
    extraction=extraction,
  )


if __name__ == "__main__":
  flags.DEFINE_enum("from", None, list(sources.SOURCES), "whose weights.")
  flags.DEFINE_string("weights", None, "the file or directory to read.")
  flags.DEFINE_string(
    "published",
    None,
    f"which weights to fetch: {', '.join(published.PUBLISHED)}.",
  )
  flags.DEFINE_enum("to", None, list(targets.TARGETS), "what to write.")
  flags.DEFINE_string("checkpoint", None, "of --to: a checkpoint or run.")
  flags.DEFINE_string("output", None, "what is written.", required=True)
  flags.DEFINE_enum(
    "layout",
    None,
    ["keras", "keras_applications"],
    "of Keras weights, where their names do not say what is meant.",
  )
  flags.DEFINE_enum(
    "stride",
    "32",
    ["16", "32"],
    "between the features of tf_delf and tf_delf2; 32 as released.",
  )
  flags.DEFINE_enum(
    "feature_stage",
    None,
    [f"conv{s}" for s in range(2, 6)],
    "whose output the features are (conv4; conv5 of vgg16).",
  )
  flags.DEFINE_string("pca", None, "of delf_pytorch: its pca.h5.")
  flags.DEFINE_integer(
    "pca_dim", None, "dimensions kept of a PCA.", lower_bound=1
  )
  flags.DEFINE_bool("whiten", None, "whiten them (as the weights say).")
  flags.DEFINE_float(
    "score_threshold", None, "features that score less are dropped."
  )
  flags.DEFINE_integer(
    "max_features", None, "features a photograph.", lower_bound=1
  )
  flags.DEFINE_enum(
    "score",
    None,
    ["l2_norm", "attention", "product"],
    "what features are selected by (as the weights say).",
  )
  program.run(main)
