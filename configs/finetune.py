"""Descriptor fine-tuning, then attention: the paper's two steps.

  python -m delf_jax.train --config configs/finetune.py:VARIANT --workdir RUN

VARIANT
  (none)           ResNet-50 on your own photographs, sizes as in the paper:
                   give --config.dataset.path=DIR with DIR/landmark/*.jpg and
                   --config.init_from=CHECKPOINT to start from trained weights.
                   Meant for an accelerator; not run here.
  synthetic_small  a network of 1.15 million parameters learns 20 synthetic
                   landmarks from scratch: 2 min 50 s on two cores, with making
                   the photographs and learning the reduction; on landmarks it
                   has not seen `make demo` then prints mAP 62.6, R@90 35.3.
  tiny             seconds; for tests.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant == "":
    return _paper()
  if variant == "synthetic_small":
    return _synthetic_small()
  if variant == "tiny":
    return _tiny()
  raise ValueError(
    f"unknown variant {variant!r}; expected synthetic_small, tiny or none"
  )


def _paper() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.dataset = {"kind": "folder", "path": ""}
  config.init_from = ""
  config.normalisation = "imagenet"
  config.model = {
    "units": (3, 4, 6, 3),
    "width": 64,
    "layout": "torchvision",
    "attention_hidden": 512,
    "pool_normalised": True,
    "dtype": "float32",
  }
  config.stages = ("descriptors", "attention")
  config.descriptors = _stage(resize=250, crop=224, steps=50_000)
  config.attention = _stage(resize=900, crop=720, steps=20_000)
  config.reduction = {"dim": 40, "whiten": False, "photographs": 500}
  config.extraction = {"score": "product", "max_features": 1000}
  config.log_every = 20
  config.save_every = 1000
  return config


def _stage(*, resize: int, crop: int, steps: int) -> dict:
  return {
    "resize": resize,
    "crop": crop,
    "batch_size": 32,
    "steps": steps,
    "optimiser": {
      "kind": "sgd",
      "learning_rate": 0.01,
      "warmup": 500,
      "weight_decay": 1e-4,
    },
  }


def _synthetic_small() -> ConfigDict:
  config = _paper()
  config.dataset = {
    "kind": "synthetic",
    "path": "synthetic_data",
    "seed": 0,
    "num_landmarks": 20,
    "train_views": 60,
    "validation_views": 5,
  }
  config.normalisation = "unit"
  config.model.units = (2, 2, 2)
  config.model.width = 32
  config.descriptors = _small_stage(resize=128, crop=112, steps=800)
  config.attention = _small_stage(resize=208, crop=192, steps=120)
  # On a CPU, many small steps learn more in two minutes than few large ones.
  config.descriptors.batch_size = 16
  config.reduction = {"dim": 40, "whiten": False, "photographs": 60}
  config.save_every = 100
  return config


def _small_stage(*, resize: int, crop: int, steps: int) -> dict:
  stage = _stage(resize=resize, crop=crop, steps=steps)
  stage["optimiser"] = {
    "kind": "adamw",
    "learning_rate": 2e-3,
    "warmup": 50,
    "weight_decay": 1e-4,
  }
  return stage


def _tiny() -> ConfigDict:
  config = _synthetic_small()
  config.dataset.num_landmarks = 3
  config.dataset.train_views = 6
  config.dataset.validation_views = 1
  config.model.units = (1, 1, 1)
  config.model.width = 8
  config.model.attention_hidden = 16
  for stage in (config.descriptors, config.attention):
    stage.resize, stage.crop = 72, 64
    stage.batch_size, stage.steps = 4, 4
    stage.optimiser.warmup = 1
  config.reduction = {"dim": 8, "whiten": False, "photographs": 4}
  config.extraction.max_features = 100
  config.extraction.scales = (0.5, 1.0)
  config.log_every = 1
  config.save_every = 2
  return config
