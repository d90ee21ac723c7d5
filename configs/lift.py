r"""LIFT, trained stage by stage on patches of any photographs.

  python -m delf_jax.train_patches --config configs/lift.py:VARIANT \
    --workdir RUN --config.data.sources.pool.path=PHOTOGRAPHS

PHOTOGRAPHS holds photographs of anything at any depth; two views of each,
through random homographies, stand for the two photographs of a reconstruction.
Real changes of viewpoint and light come from pairs of photographs:

  --config.data.sources.verified.path=LANDMARKS
  --config.data.sources.verified.verified=PAIRS.npz
            as delf_jax.find_correspondences writes them
  --config.data.held_out.pool.path=OTHERS
            to validate on

VARIANT
  paper     the networks, margin, weight and mining of Yi et al. (ECCV 2016);
            days of one accelerator; never run
  small     fewer channels and patches (the default): the descriptor and the
            orientation are learned, the detector stays the measure of blobs
            that it begins with. Half an hour of two cores that twenty other
            programs used; then 99.5 % of held-out patches find their
            counterpart among 48, and 84 % where each is turned by chance and
            stood upright by the orientation
  detector  small, and the detector learns too, for five minutes more: in so
            short a time it finds fewer places again than it began with
  tiny      seconds; for tests
"""

from ml_collections import ConfigDict

STEPS = {
  "paper": (400_000, 100_000, 100_000),
  "small": (300, 150, 0),
  "detector": (300, 150, 60),
  "tiny": (4, 2, 4),
}


def get_config(variant: str = "small") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant not in STEPS:
    raise ValueError(
      f"unknown variant {variant!r}; expected one of {', '.join(STEPS)}"
    )
  paper = variant == "paper"
  config = ConfigDict()
  config.seed = 0
  # Of the detector: "blobs" or "random"; see training/detector_start.py.
  config.start = "random" if paper else "blobs"
  config.loader = {"workers": 0, "threads": 2}
  config.normalisation = "imagenet"
  config.model = {
    "kernel": 25,
    "hinges": (4, 4),
    "orientation_channels": (10, 20, 50),
    "orientation_hidden": 100,
    "descriptor_layers": (32, 64, 128) if paper else (16, 32, 128),
  }
  single = {"path": "", "exclude": "", "only": ""}
  config.data = {
    "sources": {
      "pool": {**single, "repeat": 1},
      "verified": {**single, "repeat": 1, "verified": ""},
    },
    "held_out": {
      "pool": dict(single),
      "verified": {**single, "verified": ""},
    },
  }
  # Points to choose from are so many pixels apart.
  config.spacing = 4
  steps = dict(
    zip(("descriptor", "orientation", "detector"), STEPS[variant], strict=True)
  )
  config.stages = tuple(stage for stage in steps if steps[stage])
  side = 128 if paper else 96
  for stage, number in steps.items():
    # The detector's convolution is the most work, and begins with something.
    last = stage == "detector"
    pairs = 6 if last else 12
    config[stage] = {
      "crop": 2 * side,
      "batch_size": 32 if paper else pairs,
      "steps": number,
      "schedule": {
        "learning_rate": 1e-4 if last and not paper else 1e-3,
        "warmup": 0 if variant == "tiny" else 20,
        "decay": "halving" if paper else "cosine",
        "halve_every": 50_000,
      },
      "optimiser": {"kind": "sgd", "momentum": 0.9}
      if paper
      else {"kind": "adamw", "clip": 10.0},
      "points": 400,
      "views": {"length": (0.3, 1.0), "rotation": 15.0, "perspective": 0.08},
      "augmentation": {"brightness": 0.2, "contrast": 0.2},
      "cutting": {
        "side": side,
        "count": 4,
        # Else the detector unlearns to find what is turned.
        "turn": 0.0 if stage == "descriptor" or (last and paper) else 180.0,
        # 4.8 sigma of a patch that is 24 sigma wide
        "shift": 0.2 if last else 0.0,
        "zoom": 1.2,
      },
      "loss": {},
    }
  config.descriptor.loss = {
    "margin": 4.0,
    "mine_every": 5000 if paper else 100,
    "mine_most": 8 if paper else 4,
  }
  config.detector.loss = {
    "class_weight": 1e-5 if paper else 1e-2,
    # Descriptors of patches that do not overlap yet are no guide.
    "overlap_steps": steps["detector"] // (2 if paper else 1),
  }
  # L2 - PCA - L2 of the descriptors, on so many batches.
  config.reduction = {"dim": 128, "batches": 40}
  config.extraction = {
    "scales": tuple(2.0 ** (k / 2) for k in range(-4, 3)),
    "max_features": 1000,
  }
  config.validation = {"every": 5000 if paper else 100, "pairs": 96}
  config.log_every = 100 if paper else 20
  config.save_every = 1000 if paper else 50
  config.keep = 2
  if variant == "tiny":
    _shrink(config)
  return config


def _shrink(config: ConfigDict) -> None:
  config.model = {
    "kernel": 9,
    "hinges": (2, 2),
    "orientation_channels": (2, 3, 4),
    "orientation_hidden": 6,
    "descriptor_layers": (4, 4, 8),
  }
  for stage in config.stages:
    config[stage].crop = 112
    config[stage].batch_size = 4
    config[stage].points = 64
    config[stage].cutting.side = 72
    config[stage].cutting.count = 2
  config.reduction = {"dim": 8, "batches": 6}
  config.descriptor.loss.mine_every = 2
  config.extraction = {"scales": (0.5, 1.0), "max_features": 50}
  config.validation = {"every": 2, "pairs": 4}
  config.log_every = 1
  config.save_every = 2
