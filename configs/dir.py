"""DIR, "Deep Image Retrieval": regions, projected each, learned end to end.

  python -m delf_jax.train --config configs/dir.py:VARIANT --workdir RUN

VARIANT
  paper   Gordo et al. (ECCV 2016), two runs one after the other: ResNet-101
          from ImageNet weights (--config.init_from=CHECKPOINT, which `python -m
          delf_jax.convert --source torchvision` makes) classifies Landmarks
          full; then R-MAC, whose projection of regions starts as their PCA,
          learns triplets of Landmarks clean. --config.dataset.path=DIR holds
          the lists and photographs of both. For accelerators; not run here
  ap      Revaud et al. (ICCV 2019): the second run with GeM and a loss that is
          one minus the average precision of the batch; not run here
  small   a narrow ResNet learns synthetic landmarks from scratch, in the same
          two steps; minutes on a CPU (the default)
  photos  the network of configs/delf_small.py does the same with your own
          photographs: --config.dataset.path=DIR, a folder a landmark. It may
          go on from what that has learned without labels:
          --config.init_from=RUN --config.stages="('ranking',)"
  tiny    seconds; for tests

Triplets are drawn among the 25 hardest of each query, in a sample of the set
that is described again every so many steps. RUN (of `paper` and `ap`
RUN/ranking) answers to

  python -m delf_jax.evaluate --features RUN --expansion 1 ...

with the resolutions that the config names: DIR's 550, 800 and 1050 together.
Learning rate, margin, weight decay and momentum are as they are remembered of
the paper; how often triplets are mined and the steps are our choice.

Measured: 120 steps of `photos` (stages=("ranking",), from 3,651 steps of
delf_small's stage without labels, seen at 192 and 256 pixels) on 797
photographs of 101 view clusters found mAP 44.6 % and R@90 9.7 % on 240 others
with 37 queries and 124 distractor queries; with --expansion=1 44.4 % and 1.6 %.
`small` takes 5 minutes of one shared core: its first step is that of siamac.py;
of 20 landmarks that it was not trained on (the variant small of
configs/tables/table3.py) it finds mAP 18.3 %, with QE 16.7 %, and R@90 0.0 %
either way.
"""

from ml_collections import ConfigDict

VARIANTS = ("paper", "ap", "small", "photos", "tiny")


def get_config(variant: str = "small") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant not in VARIANTS:
    raise ValueError(
      f"unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}"
    )
  if variant in ("paper", "ap"):
    return _published(variant)
  return _small(variant)


def _published(variant: str) -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.dataset = {
    "kind": "landmarks_full",
    "path": "",
    "options": (),
  }
  config.loader = {"workers": 8, "threads": 4}
  config.init_from = ""
  config.reset_head = True
  config.normalisation = "imagenet"
  config.model = {
    "units": (3, 4, 23, 3),
    "width": 64,
    "layout": "torchvision",
    "feature_stage": "conv5",
    "batch_norm": "frozen",
    "dtype": "float32",
    "descriptor": {
      "pooling": "mac",
      "regions": "image",
      "levels": 2,
      "regional_dim": 2048,
    },
  }
  if variant == "ap":
    config.model.descriptor = {"pooling": "gem", "dim": 2048}
  config.loss = {"kind": "softmax", "label_smoothing": 0.0}
  config.stages = ("descriptors", "ranking")
  config.descriptors = {
    "resize": 256,
    "crop": 224,
    "batch_size": 64,
    "steps": 60_000,
    "schedule": {"learning_rate": 1e-3, "warmup": 500, "decay": "cosine"},
    "optimiser": _sgd(),
    "sampling": "photograph",
    "augmentation": {},
  }
  config.ranking = {
    "crop": 800,
    "resize": 0,
    "batch_size": 64,
    "steps": 4000,
    "schedule": {"learning_rate": 1e-3, "warmup": 0, "decay": "linear"},
    "optimiser": _sgd(),
    "loss": {"kind": "triplet", "margin": 0.1},
    "mine_every": 64,
    "pool": 5000,
    "hardest": 25,
    "per_class": 4,
    "regions_from": 2000,
    "frozen_norm": True,
    "augmentation": {},
    "accumulate": 1,
  }
  if variant == "ap":
    config.ranking.loss = {"kind": "average_precision", "bins": 20}
    config.ranking.regions_from = 0
  config.reduction = {"kind": "", "dim": 0, "photographs": 2000}
  config.extraction = {"sides": (550, 800, 1050)}
  config.validation = {
    "every": 1000,
    "photographs": 2000,
    "retrieval": {"kind": ""},
    "select": "last",
  }
  config.log_every = 50
  config.save_every = 500
  config.keep = 2
  config.sweep = (
    ("classification", {"stages": ("descriptors",)}),
    (
      "ranking",
      {
        "stages": ("ranking",),
        "init_from": "@classification",
        "dataset": {"kind": "landmarks_clean"},
      },
    ),
  )
  return config


def _small(variant: str) -> ConfigDict:
  photos = variant == "photos"
  config = ConfigDict()
  config.seed = 0
  config.dataset = {
    "kind": "folder",
    "path": "",
    "options": (),
    "min_photographs": 2,
    "validation_share": 0.15,
  }
  if not photos:
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
  # Of photographs, the network of configs/delf_small.py.
  config.model = {
    "units": (1, 2, 3) if photos else (2, 2, 2),
    "width": (32, 64, 256) if photos else 32,
    "layout": "basic" if photos else "torchvision",
    "feature_stage": "conv4",
    "batch_norm": "synchronised",
    "dtype": "float32",
    "descriptor": {
      "pooling": "mac",
      "regions": "image",
      "levels": 2,
      "regional_dim": 128,
    },
  }
  config.loss = {"kind": "softmax", "label_smoothing": 0.1 if photos else 0.0}
  config.stages = ("descriptors", "ranking")
  config.descriptors = {
    "resize": 184 if photos else 128,
    "crop": 160 if photos else 112,
    "batch_size": 16,
    "steps": 2000 if photos else 800,
    "schedule": _schedule(2e-3, warmup=50),
    "optimiser": _adam(0.02 if photos else 1e-4),
    "sampling": "class" if photos else "photograph",
    "augmentation": _augmentation() if photos else {},
    "ema_decay": 0.0,
  }
  config.ranking = {
    "crop": 160 if photos else 112,
    "resize": 184 if photos else 128,
    "batch_size": 12,
    "steps": 240 if photos else 200,
    "schedule": _schedule(3e-4, warmup=20),
    "optimiser": _adam(0.02 if photos else 1e-4),
    "loss": {"kind": "triplet", "margin": 0.1},
    "mine_every": 50,
    "pool": 0,
    "hardest": 25,
    "regions_from": 300,
    "frozen_norm": True,
    "augmentation": _augmentation() if photos else {},
    "accumulate": 1,
    "ema_decay": 0.0,
  }
  config.reduction = {"kind": "", "dim": 0, "photographs": 1000}
  config.extraction = {"sides": (160, 224)}
  config.validation = {
    "every": 400 if photos else 200,
    "photographs": 400 if photos else 100,
    "retrieval": {"kind": ""},
    "select": "last",
  }
  config.log_every = 20
  config.save_every = 100
  config.keep = 2
  return _tiny(config) if variant == "tiny" else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.dataset.num_landmarks = 3
  config.dataset.train_views = 6
  config.dataset.validation_views = 2
  config.model.units = (1, 1, 1)
  config.model.width = 8
  config.model.descriptor.regional_dim = 6
  config.descriptors.update({"resize": 72, "crop": 64})
  config.ranking.update({"resize": 72, "crop": 64, "regions_from": 8})
  for stage in (config.descriptors, config.ranking):
    stage.update({"batch_size": 4, "steps": 4})
    stage.schedule.warmup = 1
  config.ranking.mine_every = 2
  config.extraction = {"sides": (64, 96)}
  config.validation.update({"every": 2, "photographs": 6})
  config.log_every = 1
  config.save_every = 2
  return config


def _schedule(rate: float, *, warmup: int) -> dict:
  return {"learning_rate": rate, "warmup": warmup, "decay": "cosine"}


def _sgd() -> dict:
  return {"kind": "sgd", "momentum": 0.9, "weight_decay": 5e-5, "clip": 0.0}


def _adam(weight_decay: float) -> dict:
  return {"kind": "adamw", "weight_decay": weight_decay, "clip": 10.0}


def _augmentation() -> dict:
  return {
    "crop_area": (0.3, 1.0),
    "crop_aspect": (0.75, 1.3333),
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.05,
    "greyscale": 0.1,
    "blur": 0.2,
  }
