"""Without ImageNet weights: your own noisy photographs, strong augmentation.

  python -m delf_jax.train --config configs/from_scratch.py:VARIANT \
    --workdir RUN --config.dataset.path=DIR

DIR holds a folder a landmark; other kinds of data and their options are those
of delf_jax/data/landmarks.py, such as --config.dataset.kind=table
--config.dataset.options="('table=list.csv',)". Classes count alike, however
many photographs they have; the loss is softened by label smoothing, and the
means of the parameters over the run are what is kept.

VARIANT
  small     2.2 million parameters at 160 pixels, for CPUs (the default). With
            descriptors.steps=1500 and attention.steps=100, 651 photographs of
            46 classes took 36 minutes on four busy cores, and 87 % of held-out
            photographs were classified right
  resnet50  ResNet-50 at 224 pixels, for accelerators; not run here
"""

from ml_collections import ConfigDict


def get_config(variant: str = "small") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant not in ("small", "resnet50"):
    raise ValueError(f"unknown variant {variant!r}; expected small or resnet50")
  small = variant == "small"
  config = ConfigDict()
  config.seed = 0
  config.dataset = {
    "kind": "folder",
    "path": "",
    "data_dir": "",
    "exclude": "",
    "options": (),
    "min_photographs": 3,
    "validation_share": 0.2,
  }
  config.loader = {"workers": 0 if small else 8, "threads": 4}
  config.init_from = ""
  config.reset_head = False
  config.normalisation = "imagenet"
  config.model = {
    "units": (2, 2, 2) if small else (3, 4, 6, 3),
    "width": 48 if small else 64,
    "layout": "torchvision",
    "attention_hidden": 256 if small else 512,
    "pool_normalised": True,
    "code_dim": 0,
    "batch_norm": "synchronised",
    "dtype": "float32" if small else "bfloat16",
  }
  config.loss = {"kind": "softmax", "label_smoothing": 0.1}
  config.stages = ("descriptors", "attention")
  config.descriptors = _stage(
    resize=184 if small else 250,
    crop=160 if small else 224,
    batch_size=16 if small else 256,
    steps=6000 if small else 60_000,
  )
  config.descriptors.augmentation = {
    "crop_area": (0.2, 1.0),
    "crop_aspect": (0.75, 1.3333),
    "homography": 0.15,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.05,
    "greyscale": 0.1,
    "blur": 0.2,
    "erasing": 0.25,
    "flip": 0.0,
  }
  config.descriptors.ema_decay = 0.999
  config.attention = _stage(
    resize=288 if small else 900,
    crop=256 if small else 720,
    batch_size=16 if small else 64,
    steps=400 if small else 10_000,
  )
  config.attention.scales = (0.5, 0.7071, 1.0)
  config.reduction = {"dim": 40, "whiten": False, "photographs": 300}
  config.extraction = {"score": "product", "max_features": 1000}
  config.validation = {
    "every": 500 if small else 2000,
    "photographs": 1000,
    "retrieval": {"kind": "held_out", "per_class": 5},
    "retrieval_every": 2,
    "select": "last",
  }
  config.log_every = 20
  config.save_every = 250
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
      "schedule": {
        "learning_rate": 2e-3,
        "warmup": steps // 20,
        "decay": "cosine",
      },
      "optimiser": {"kind": "adamw", "weight_decay": 0.02, "clip": 10.0},
      "scales": (1.0,),
      "sampling": "class",
      "augmentation": {},
      "mixup": 0.0,
      "accumulate": 1,
      "ema_decay": 0.0,
    }
  )
