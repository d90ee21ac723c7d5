"""siaMAC: the maximum of each channel, learned from photographs that match.

  python -m delf_jax.train --config configs/siamac.py:VARIANT --workdir RUN

VARIANT
  paper   Radenovic et al. (ECCV 2016) as published: VGG-16 from ImageNet
          weights (--config.init_from=CHECKPOINT, which `python -m
          delf_jax.convert --source vgg16` makes), retrieval-SfM-30k in
          --config.dataset.path=DIR and its queries and positives in
          --config.ranking.pairs=DIR/retrieval-SfM-120k.pkl (those of the 120k
          set that are in it: of the 30k set none are published). For
          accelerators; not run here
  gem     Radenovic et al. (TPAMI 2018): the same with ResNet-101, GeM pooling
          and retrieval-SfM-120k (--config.ranking.pairs likewise)
  small   a narrow ResNet learns synthetic landmarks from scratch: first to
          tell them apart, then by comparing them; minutes on a CPU (the
          default)
  photos  the network of configs/delf_small.py does the same with your own
          photographs: --config.dataset.path=DIR, a folder a landmark. It may
          go on from what that has learned without labels:
          --config.init_from=RUN --config.stages="('ranking',)". Photographs
          that were found to match are better positives than any two of a
          landmark: --config.ranking.pairs=FILE.npz of
          delf_jax.find_correspondences
  tiny    seconds; for tests

A tuple is a query, its positive and five negatives, each of another cluster (a
3-D model, a folder) than the query and than each other, the nearest to it that
the whole set has; they are looked for three times an epoch. RUN ends with the
whitening that siaMAC learns, where config.reduction asks for it, and answers to

  python -m delf_jax.evaluate --features RUN --expansion 1 ...

Measured: 120 steps of `photos` (stages=("ranking",), from 3,651 steps of
delf_small's stage without labels, seen at 256 pixels) on 797 photographs of 101
view clusters found mAP 54.7 % and R@90 15.1 % on 240 others with 37 queries and
124 distractor queries; with --expansion=1 59.3 % and 2.1 %. Whitened to 64
dimensions with the pairs of 400 photographs, which are too few, 33.4 % and
0.9 %. `small` takes 10 minutes of one shared core: its first 800 steps learn to
tell 90 % of unseen views of its 20 landmarks; of 20 others (the variant small
of configs/tables/table3.py) it finds mAP 29.5 %, with QE 30.6 %, and R@90 0.5 %
either way.
"""

from ml_collections import ConfigDict

VARIANTS = ("paper", "gem", "small", "photos", "tiny")
# Queries of an epoch: those of retrieval-SfM-30k, and what the published
# program draws of retrieval-SfM-120k.
QUERIES = {"paper": 5974, "gem": 2000}


def get_config(variant: str = "small") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant not in VARIANTS:
    raise ValueError(
      f"unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}"
    )
  if variant in QUERIES:
    return _published(variant)
  return _small(variant)


def _published(variant: str) -> ConfigDict:
  gem = variant == "gem"
  steps = QUERIES[variant] // 5  # of an epoch
  config = ConfigDict()
  config.seed = 0
  config.dataset = {
    "kind": "retrieval_sfm_120k" if gem else "retrieval_sfm_30k",
    "path": "",
    "options": (),
    "validation_share": 0.0,
  }
  config.loader = {"workers": 8, "threads": 4}
  config.init_from = ""
  config.reset_head = True
  config.normalisation = "imagenet"
  config.model = {
    "backbone": "resnet" if gem else "vgg",
    "units": (3, 4, 23, 3) if gem else (2, 2, 3, 3, 3),
    "width": 64,
    "feature_stage": "conv5",
    "batch_norm": "frozen",
    "dtype": "float32",
    "descriptor": {"pooling": "gem" if gem else "mac"},
  }
  config.loss = {"kind": "softmax", "label_smoothing": 0.0}
  config.stages = ("ranking",)
  config.ranking = {
    "crop": 362,
    "resize": 0,
    "batch_size": 5,
    "steps": (100 if gem else 30) * steps,
    # Divided by 5 after ten epochs and again after twenty; GeM's Adam loses a
    # percent an epoch.
    "schedule": {
      "learning_rate": 1e-6 if gem else 1e-3,
      "warmup": 0,
      "decay": "halving",
      "halve_every": steps if gem else 10 * steps,
      "factor": 0.99 if gem else 0.2,
    },
    "optimiser": {
      "kind": "adamw" if gem else "sgd",
      "momentum": 0.9,
      "weight_decay": 5e-4,
      "clip": 0.0,
    },
    "loss": {"kind": "contrastive", "margin": 0.85 if gem else 0.7},
    "pairs": "",
    "negatives": 5,
    "mine_every": steps if gem else steps // 3,
    "pool": 20_000 if gem else 0,
    "augmentation": {},
    "frozen_norm": True,
    "accumulate": 1,
    "ema_decay": 0.0,
  }
  config.reduction = {
    "kind": "pairs",
    "dim": 0,
    "photographs": 20_000,
    "pairs": "",
  }
  config.extraction = {"scales": (1.0,)}
  config.validation = {
    "every": steps,
    "photographs": 1000,
    "retrieval": {"kind": ""},
    "select": "last",
  }
  config.log_every = 50
  config.save_every = 500
  config.keep = 2
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
    "descriptor": {"pooling": "mac"},
  }
  config.loss = {"kind": "softmax", "label_smoothing": 0.1 if photos else 0.0}
  # From scratch there is nothing that hard negatives could refine.
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
    "batch_size": 5,
    "steps": 240,
    "schedule": _schedule(3e-4, warmup=20),
    "optimiser": _adam(0.02 if photos else 1e-4),
    "loss": {"kind": "contrastive", "margin": 0.7},
    "pairs": "",
    "negatives": 5,
    "mine_every": 60 if photos else 80,
    "pool": 0,
    "augmentation": _augmentation() if photos else {},
    "frozen_norm": True,
    "accumulate": 1,
    "ema_decay": 0.0,
  }
  # Some hundred pairs are too few for a covariance of 256 dimensions.
  config.reduction = {
    "kind": "",
    "dim": 0,
    "photographs": 1000,
    "pairs": "",
  }
  config.extraction = {"sides": (192,)}
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
  config.descriptors.update({"resize": 72, "crop": 64})
  config.ranking.update({"resize": 72, "crop": 64, "negatives": 2})
  for stage in (config.descriptors, config.ranking):
    stage.update({"batch_size": 4, "steps": 4})
    stage.schedule.warmup = 1
  config.ranking.mine_every = 2
  config.reduction = {"kind": "pairs", "dim": 4, "photographs": 18}
  config.extraction = {"sides": (96,)}
  config.validation.update({"every": 2, "photographs": 6})
  config.log_every = 1
  config.save_every = 2
  return config


def _schedule(rate: float, *, warmup: int) -> dict:
  return {"learning_rate": rate, "warmup": warmup, "decay": "cosine"}


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
