"""A checkpoint of our own: small, from scratch, without ImageNet weights.

  python -m delf_jax.train --config configs/delf_small.py:VARIANT \
    --workdir RUN --config.dataset.path=LANDMARKS \
    --config.correspondence.sources.landmarks.path=LANDMARKS \
    --config.correspondence.sources.pool.path=POOL

POOL holds photographs of anything at any depth, LANDMARKS a folder a landmark
(three times as often drawn). First, two views of one place learn to look the
same, without labels: dense correspondence under random homographies. Then
attention learns on LANDMARKS what tells one from another; with
--config.attention.steps=0 features are selected by their L2 norm alone
(--config.extraction.score=l2_norm).

More that helps, each by a path:

  --config.correspondence.sources.verified.path=LANDMARKS
  --config.correspondence.sources.verified.verified=PAIRS.npz
            pairs of photographs of one place, as delf_jax.find_correspondences
            writes them. Photographs in folders of one name, of whatever source
            but the pool, are no examples against each other
  --config.correspondence.family=4
            of four photographs of a batch, three look like the first to the
            network that the stage begins with; for what has learned before
  --config.correspondence.held_out.landmarks.path=LANDMARKS
            with .only=NAMES.txt here and .exclude=NAMES.txt at the sources:
            folders of LANDMARKS to validate on

VARIANT
  small     52,800 pairs at 160 pixels (the default): 50 minutes of one core,
            1.3 s for a step of 24 pairs
  long      480,000 pairs: about an hour and a half of four idle cores
  further   120,000 pairs for what has learned from those,
            --config.init_from=RUN/model: at 192 pixels, of views that overlap
            less and differ more in scale, so that it can tell nothing from
            where in a view it is. 28 minutes of four idle cores. `delf_small`,
            the checkpoint that comes with the package, was made in three runs:
            `long`, `further`, and `further` with pairs that the first had
            found
  distilled 256,000 views: `delf_fast`, which learns what
            --config.distillation.teacher=delf_small extracts, without labels;
            the flags above with `distillation` for `correspondence`, and
            --config.dataset.kind=unlabelled where there are no landmarks. 27
            minutes of four cores
  tiny      seconds; for tests

On CPUs start it with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment
(see tests/benchmarks/training.py).
"""

from ml_collections import ConfigDict

STEPS = {
  "small": 2200,
  "long": 20_000,
  "further": 5000,
  "distilled": 8000,
  "tiny": 4,
}


def get_config(variant: str = "small") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant not in STEPS:
    raise ValueError(
      f"unknown variant {variant!r}; expected {', '.join(STEPS)}"
    )
  steps = STEPS[variant]
  config = ConfigDict()
  config.seed = 0
  config.dataset = {
    "kind": "folder",
    "path": "",
    "data_dir": "",
    "exclude": "",
    "options": (),
    "min_photographs": 3,
    "validation_share": 0.1,
  }
  config.loader = {"workers": 0, "threads": 2}
  config.init_from = ""
  config.reset_head = False
  config.normalisation = "unit"
  # Few channels where the map is large, many where it is small: on a CPU this
  # trains twice as fast as ResNet-18's 64, 128, 256 with (2, 2, 2) units.
  config.model = {
    "units": (1, 2, 3),
    "width": (32, 64, 256),
    "layout": "basic",
    "attention_hidden": 256,
    "pool_normalised": True,
    "code_dim": 128,
    "batch_norm": "synchronised",
    "dtype": "float32",
  }
  config.loss = {"kind": "softmax", "label_smoothing": 0.1}
  config.stages = ("correspondence", "attention")
  source = {"path": "", "repeat": 1, "exclude": "", "only": ""}
  config.correspondence = {
    "sources": {
      "pool": {**source},
      "landmarks": {**source, "repeat": 3, "grouped": True},
      "weak": {**source, "grouped": True},
      "verified": {**source, "verified": ""},
    },
    "held_out": {"landmarks": {**source}},
    "crop": 160,
    "batch_size": 24,
    "steps": steps,
    "points": 64,
    "family": 1,
    "views": {
      "length": (0.25, 1.0),
      "zoom": 1.5,
      "scale": 1.6,
      "rotation": 13.0,
      "shift": 0.15,
      "perspective": 0.1,
    },
    "augmentation": {
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.4,
      "hue": 0.04,
      "greyscale": 0.1,
      "blur": 0.2,
      "noise": 8.0,
      "jpeg": 0.2,
      "erasing": 0.2,
    },
    "loss": {"temperature": 0.07, "radius": 24.0},
    "schedule": {
      "learning_rate": 2e-3,
      "warmup": min(200, steps // 4),
      "decay": "cosine",
    },
    "optimiser": {"kind": "adamw", "weight_decay": 0.02, "clip": 10.0},
    "accumulate": 1,
    "ema_decay": 0.999,
    "reconstruction_weight": 1.0,
    "frozen": (),
  }
  config.attention = {
    "resize": 288,
    "crop": 256,
    "batch_size": 16,
    "steps": 600,
    "schedule": {"learning_rate": 2e-3, "warmup": 50, "decay": "cosine"},
    "optimiser": {"kind": "adamw", "weight_decay": 0.02, "clip": 10.0},
    "scales": (0.5, 0.7071, 1.0),
    "sampling": "class",
    "augmentation": {
      "brightness": 0.3,
      "contrast": 0.3,
      "saturation": 0.3,
      "greyscale": 0.1,
    },
    # The codes are what correspondences have taught.
    "frozen": ("autoencoder",),
  }
  config.reduction = {"dim": 0, "whiten": False, "photographs": 300}
  config.extraction = {
    "score": "product",
    "max_features": 1000,
    "scales": (0.3536, 0.5, 0.7071, 1.0, 1.4142),
  }
  config.validation = {
    "every": 1000,
    "photographs": 480,
    "retrieval": {
      "kind": "",
      "photos": "",
      "ground_truth": "",
      "distractors": "",
    },
    "retrieval_every": 5,
    "max_side": 512,
    "select": "last",
  }
  config.log_every = 20
  config.save_every = 500
  config.keep = 2
  if variant == "further":
    config.reset_head = True
    config.correspondence.crop = 192
    config.correspondence.views.update(
      {"scale": 2.0, "rotation": 15.0, "shift": 0.35}
    )
    config.correspondence.schedule.learning_rate = 1e-3
  if variant == "distilled":
    _distil(config)
  if variant == "tiny":
    _shrink(config)
  return config


def _distil(config: ConfigDict) -> None:
  """Makes a stage of distillation of the one of correspondences.

  Half the channels where the map is largest, and fewer units.
  """
  config.model.units = (1, 1, 2)
  config.model.width = (16, 64, 256)
  config.stages = ("distillation",)
  options = config.correspondence
  for name in ("points", "family", "loss", "reconstruction_weight"):
    del options[name]
  options.teacher = "delf_small"
  options.crop = 192
  options.batch_size = 16
  del options.sources.verified
  config.distillation = options
  del config.correspondence
  del config.attention


def _shrink(config: ConfigDict) -> None:
  """Makes everything small enough for tests."""
  config.model.update(
    {"units": (1, 1, 1), "width": (4, 4, 8), "attention_hidden": 8}
  )
  config.model.code_dim = 8
  config.correspondence.update(
    {"crop": 64, "batch_size": 4, "points": 16, "family": 2}
  )
  config.attention.update(
    {"resize": 72, "crop": 64, "batch_size": 4, "steps": 4, "scales": (1.0,)}
  )
  config.attention.schedule.warmup = 1
  config.extraction.update({"max_features": 100, "scales": (0.5, 1.0)})
  config.validation.update({"every": 2, "photographs": 8})
  config.log_every, config.save_every = 1, 2
