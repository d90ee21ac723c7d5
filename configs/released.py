"""The recipe of the released TF2 system: one step, a stop-gradient.

  python -m delf_jax.train --config configs/released.py:VARIANT --workdir RUN \
    --config.dataset.path=DIR --config.init_from=IMAGENET_CHECKPOINT

VARIANT
  joint          descriptors and attention together; attention's gradient stops
                 at the features (the default)
  autoencoder    the same, and an autoencoder of attention's features whose
                 128-d code is the descriptor: no PCA
  autoencoder40  with a code of 40

As published: Google Landmarks v2 clean (81,313 landmarks), 321 x 321 crops of
8 to 100 % of the photograph, SGD .9, learning rate .01 falling linearly to 0,
gradient clipped at 10, batch 32, 500,000 steps; on eight GPUs batch 256 at the
same rate. A healthy attention loss is below 1; 7 means that it does not learn.
Not run here: no accelerator and not the data.
"""

from ml_collections import ConfigDict

CODES = {"joint": 0, "autoencoder": 128, "autoencoder40": 40}


def get_config(variant: str = "joint") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant not in CODES:
    raise ValueError(
      f"unknown variant {variant!r}; expected one of {', '.join(CODES)}"
    )
  config = ConfigDict()
  config.seed = 0
  config.dataset = {
    "kind": "google_landmarks_v2_clean",
    "path": "",
    "data_dir": "",
    "exclude": "",
    "options": (),
    # The published split of the training list.
    "validation_share": 0.2,
  }
  config.loader = {"workers": 16, "threads": 4}
  config.init_from = ""
  config.reset_head = True
  config.normalisation = "unit"
  config.model = {
    "units": (3, 4, 6, 3),
    "width": 64,
    "layout": "keras",
    "attention_hidden": 512,
    "pool_normalised": True,
    "code_dim": CODES[variant],
    "batch_norm": "local",
    "dtype": "bfloat16",
  }
  config.loss = {"kind": "softmax", "label_smoothing": 0.0}
  config.stages = ("joint",)
  config.joint = {
    "resize": 321,
    "crop": 321,
    "batch_size": 32,
    "steps": 500_000,
    "schedule": {"learning_rate": 0.01, "warmup": 0, "decay": "linear"},
    "optimiser": {
      "kind": "sgd",
      "momentum": 0.9,
      "weight_decay": {"default": 1e-4, "attention": 1e-4},
      "clip": 10.0,
    },
    "scales": (1.0,),
    "sampling": "photograph",
    "augmentation": {"crop_area": (0.08, 1.0), "crop_aspect": (0.75, 1.3333)},
    "mixup": 0.0,
    "accumulate": 1,
    "ema_decay": 0.0,
    "reconstruction_weight": 10.0,
  }
  config.reduction = {
    "dim": 0 if CODES[variant] else 128,
    "whiten": False,
    "photographs": 500,
  }
  config.extraction = {"score": "attention", "max_features": 1000}
  config.validation = {
    "every": 5000,
    "photographs": 5000,
    "retrieval": {"kind": "held_out", "per_class": 5},
    "retrieval_every": 4,
    "select": "accuracy",
  }
  config.log_every = 100
  config.save_every = 1000
  config.keep = 2
  return config
