"""The paper's two steps, as its Table 1 varies them. ResNet-50, accelerators.

  python -m delf_jax.train --config configs/finetune.py:VARIANT --workdir RUN \
    --config.dataset.path=DIR --config.init_from=CHECKPOINT

VARIANT    what is trained, and on what           the paper's R@90, Oxf5k, Par6k
  sd         descriptors, siaMAC's set (SD)         40.66, 36.91 (L2 norm)
  lf         descriptors, Landmarks full (LF)       43.64, 40.39 (L2 norm)
  lc         descriptors, Landmarks clean (LC)      45.70, 42.17 (L2 norm)
  att_lc     attention on LC, one scale             46.07, 40.86 (product)
  att_lc_rs  attention on LC, random scales         45.14, 40.56 (product)
  att_lf_rs  attention on LF, random scales         46.72, 41.09 (product)
  folder     both steps on DIR/landmark/*.jpg (the default)

DIR holds what `dataset.kind` says (see delf_jax/data/landmarks.py). The first
three and `folder` start from ImageNet weights, so they ask for a new head; the
`att_` ones from a finished run of lc (--config.init_from=RUN_OF_LC, and for LF
--config.reset_head=True, since its landmarks are others).

The paper does not give its optimiser. These numbers are those of a two-step
port that others have used (SGD .008, halved every ten epochs, batch 8, 30
epochs), with the learning rate and the steps scaled to batch 32: about 30
epochs of LC are 33,000 steps. None of these has been run here: the data are
not ours to ship and no accelerator was at hand.
"""

from ml_collections import ConfigDict

# variant -> kind of data, stages, scales of the attention step
VARIANTS = {
  "sd": ("retrieval_sfm_30k", ("descriptors",), (1.0,)),
  "lf": ("landmarks_full", ("descriptors",), (1.0,)),
  "lc": ("landmarks_clean", ("descriptors",), (1.0,)),
  "att_lc": ("landmarks_clean", ("attention",), (1.0,)),
  "att_lc_rs": ("landmarks_clean", ("attention",), "random"),
  "att_lf_rs": ("landmarks_full", ("attention",), "random"),
  "folder": ("folder", ("descriptors", "attention"), "random"),
}
# "gamma <= 1": one for each batch. Few, since each is a program to compile.
RANDOM_SCALES = (0.3536, 0.5, 0.7071, 1.0)
PHOTOGRAPHS = {
  "retrieval_sfm_30k": 22_156,
  "landmarks_full": 140_372,
  "landmarks_clean": 35_382,
  "folder": 50_000,
}


def get_config(variant: str = "folder") -> ConfigDict:
  """Returns the experiment called `variant`."""
  if variant not in VARIANTS:
    raise ValueError(
      f"unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}"
    )
  kind, stages, scales = VARIANTS[variant]
  epoch = PHOTOGRAPHS[kind] // 32
  config = ConfigDict()
  config.seed = 0
  config.dataset = {
    "kind": kind,
    "path": "",
    "data_dir": "",
    "exclude": "",
    "options": (),
  }
  config.loader = {"workers": 8, "threads": 4}
  config.init_from = ""
  config.reset_head = stages[0] == "descriptors"
  config.normalisation = "imagenet"
  config.model = {
    "units": (3, 4, 6, 3),
    "width": 64,
    "layout": "torchvision",
    "attention_hidden": 512,
    "pool_normalised": True,
    "code_dim": 0,
    "batch_norm": "synchronised",
    "dtype": "bfloat16",
  }
  config.loss = {"kind": "softmax", "label_smoothing": 0.0}
  config.stages = stages
  config.descriptors = _stage(resize=250, crop=224, epoch=epoch)
  config.attention = _stage(resize=900, crop=720, epoch=epoch)
  config.attention.scales = RANDOM_SCALES if scales == "random" else scales
  config.reduction = {"dim": 40, "whiten": False, "photographs": 500}
  config.extraction = {
    "score": "l2_norm" if "attention" not in stages else "product",
    "max_features": 1000,
  }
  config.validation = {
    "every": epoch,
    "photographs": 5000,
    "retrieval": {"kind": "held_out", "per_class": 5},
    "retrieval_every": 5,
    "select": "accuracy",
  }
  config.log_every = 50
  config.save_every = 500
  config.keep = 2
  return config


def _stage(*, resize: int, crop: int, epoch: int) -> ConfigDict:
  return ConfigDict(
    {
      "resize": resize,
      "crop": crop,
      "batch_size": 32,
      "steps": 30 * epoch,
      "schedule": {
        "learning_rate": 0.016,
        "warmup": 500,
        "decay": "halving",
        "halve_every": 10 * epoch,
      },
      "optimiser": {
        "kind": "sgd",
        "momentum": 0.9,
        "weight_decay": {"default": 1e-4, "attention": 1e-4},
        "clip": 10.0,
      },
      "scales": (1.0,),
      "sampling": "photograph",
      "augmentation": {},
      "mixup": 0.0,
      "accumulate": 1,
      "ema_decay": 0.0,
    }
  )
