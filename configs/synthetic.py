"""Small networks on synthetic landmarks: minutes on a laptop's CPU.

  python -m delf_jax.train --config configs/synthetic.py:VARIANT --workdir RUN

VARIANT
  small     a network of 1.15 million parameters learns 20 landmarks from
            scratch (the default; `make demo` runs it)
  ablation  five runs, one after the other: the descriptors of `small` trained
            longer, attention on them without and with random scales, joint
            training, and joint training with an autoencoder
  tiny      seconds; for tests
"""

from ml_collections import ConfigDict


def get_config(variant: str = "small") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant == "small":
    return _small()
  if variant == "ablation":
    return _ablation()
  if variant == "tiny":
    return _tiny()
  raise ValueError(
    f"unknown variant {variant!r}; expected small, ablation or tiny"
  )


def _small() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.dataset = {
    "kind": "synthetic",
    "path": "synthetic_data",
    "seed": 0,
    "num_landmarks": 20,
    "train_views": 60,
    "validation_views": 5,
  }
  config.loader = {"workers": 0, "threads": 2}
  config.init_from = ""
  config.reset_head = False
  config.normalisation = "unit"
  config.model = {
    "units": (2, 2, 2),
    "width": 32,
    "layout": "torchvision",
    "attention_hidden": 512,
    "pool_normalised": True,
    "code_dim": 0,
    "batch_norm": "synchronised",
    "dtype": "float32",
  }
  config.loss = {"kind": "softmax", "label_smoothing": 0.0}
  config.stages = ("descriptors", "attention")
  # On a CPU, many small steps learn more in two minutes than few large ones.
  config.descriptors = _stage(resize=128, crop=112, batch_size=16, steps=800)
  config.attention = _stage(resize=208, crop=192, batch_size=32, steps=120)
  config.reduction = {"dim": 40, "whiten": False, "photographs": 60}
  config.extraction = {"score": "product", "max_features": 1000}
  config.validation = {
    "every": 200,
    "photographs": 100,
    "score_maps": 40,
    "retrieval": {"kind": ""},
    "retrieval_every": 1,
    "select": "last",
  }
  config.log_every = 20
  config.save_every = 100
  config.keep = 2
  return config


def _stage(
  *, resize: int, crop: int, batch_size: int, steps: int
) -> ConfigDict:
  return ConfigDict(
    {
      "resize": resize,
      "crop": crop,
      "batch_size": batch_size,
      "steps": steps,
      "schedule": {"learning_rate": 2e-3, "warmup": 50, "decay": "cosine"},
      "optimiser": {"kind": "adamw", "weight_decay": 1e-4, "clip": 10.0},
      "scales": (1.0,),
      "sampling": "photograph",
      "augmentation": {},
      "mixup": 0.0,
      "accumulate": 1,
      "ema_decay": 0.0,
    }
  )


def _ablation() -> ConfigDict:
  config = _small()
  config.descriptors.steps = 1600
  config.joint = config.descriptors.copy_and_resolve_references()
  # Attention sees whole landmarks, as in the second of two steps.
  config.joint.resize, config.joint.crop = 208, 192
  config.joint.steps = 500
  config.validation.retrieval.kind = "synthetic"
  config.validation.every = 600
  attention = {"stages": ("attention",), "init_from": "@descriptors"}
  config.sweep = (
    (
      "descriptors",
      {"stages": ("descriptors",), "extraction": {"score": "l2_norm"}},
    ),
    ("attention", attention),
    (
      "attention_rs",
      {**attention, "attention": {"scales": (0.3536, 0.5, 0.7071, 1.0)}},
    ),
    ("joint", {"stages": ("joint",)}),
    (
      "autoencoder",
      {
        "stages": ("joint",),
        "model": {"code_dim": 40},
        "reduction": {"dim": 0},
      },
    ),
  )
  return config


def _tiny() -> ConfigDict:
  config = _small()
  config.dataset.num_landmarks = 3
  config.dataset.train_views = 6
  config.dataset.validation_views = 1
  config.model.units = (1, 1, 1)
  config.model.width = 8
  config.model.attention_hidden = 16
  for stage in (config.descriptors, config.attention):
    stage.resize, stage.crop = 72, 64
    stage.batch_size, stage.steps = 4, 4
    stage.schedule.warmup = 1
  config.reduction = {"dim": 8, "whiten": False, "photographs": 4}
  config.extraction.max_features = 100
  config.extraction.scales = (0.5, 1.0)
  config.validation.every = 2
  config.validation.photographs = 6
  config.log_every = 1
  config.save_every = 2
  return config
