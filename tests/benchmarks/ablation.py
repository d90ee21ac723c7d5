"""The ablation of the paper's Table 1, on synthetic landmarks.

  python tests/benchmarks/ablation.py --features RUN [--attention RUN2 ...]
      [--landmarks 30] [--distractors 90] [--photos DIR --ground_truth FILE
      --distractor_photos DIR2]

RUN is a training run whose descriptors are measured: number of scales,
reduction, and what selects the features. Each RUN2 is another one whose
attention is measured beside it, such as those of
configs/synthetic.py:ablation. The landmarks are none that a config trains on;
half of the distractor queries are clutter, half landmarks that the database
lacks. Prints mAP (easy and hard), hard mAP, and R@90 over queries and
distractor queries, in percent. Nothing is fitted here but the reductions, on
the training photographs of RUN.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from delf_jax import checkpoint, extraction, measurement, program
from delf_jax.data import landmarks, synthetic, synthetic_folder
from delf_jax.features import pyramid

FIVE = tuple(scale for scale in pyramid.SCALES if scale <= 1)
# Neither trained on, nor validated on, nor in the demo's report.
FIRST_LANDMARK = 2000


def settings(model: checkpoint.Model, train, others: dict) -> list:
  """Lists (row name, model, extraction options)."""
  channels = model.variables["params"]["attention"]["conv1"]["kernel"].shape[2]
  plain = dataclasses.replace(model, reduction=None)
  norm = {"score": "l2_norm", "max_features": 1000}
  rows = [
    (
      "1 scale, every feature",
      plain,
      {"score": "l2_norm", "max_features": 4000, "scales": (1.0,)},
    ),
    ("5 scales, L2 norm", plain, {**norm, "scales": FIVE}),
    ("7 scales, L2 norm", plain, norm),
  ]
  reduced = plain
  for dim in (128, 40):
    if dim < channels and not model.network.code_dim:
      learned = extraction.learn_reduction(
        dataclasses.replace(plain, extraction=norm),
        train,
        dim=dim,
        photographs=200,
      )
      reduced = dataclasses.replace(plain, reduction=learned)
      rows.append((f"7 scales, L2 norm, PCA {dim}", reduced, norm))
  for name, other in others.items():
    # The same descriptors and reduction; only the scores differ.
    scored = reduced
    if other is not model:
      scored = dataclasses.replace(other, reduction=reduced.reduction)
    for score, label in (("attention", ""), ("product", "L2 norm * ")):
      rows.append(
        (
          f"7 scales, {label}attention of {name}, last reduction",
          scored,
          {**norm, "score": score},
        )
      )
  return rows


def main() -> None:
  """Measures every row and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--features", help="a training run")
  parser.add_argument("--attention", nargs="*", default=[])
  parser.add_argument("--landmarks", type=int, default=30)
  parser.add_argument("--views", type=int, default=8)
  parser.add_argument("--distractors", type=int, default=90)
  parser.add_argument("--photos")
  parser.add_argument("--ground_truth")
  parser.add_argument("--distractor_photos")
  parser.add_argument("--max_side", type=int, default=max(synthetic.SIZE))
  arguments = parser.parse_args()
  if not arguments.features:
    print("left out: give a training run, --features RUN")
    return
  program.use_compilation_cache()
  model = checkpoint.load_model(arguments.features)
  config = model.provenance["config"]
  train = landmarks.open_dataset(**config["dataset"]).train
  others = {"RUN": model} if "attention" in config["stages"] else {}
  others |= {
    Path(run).name: checkpoint.load_model(run) for run in arguments.attention
  }
  with tempfile.TemporaryDirectory() as scratch:
    photos = arguments.photos
    truth, distractors = arguments.ground_truth, arguments.distractor_photos
    if not photos:
      root = Path(scratch) / "data"
      synthetic_folder.write_folder(
        root,
        num_landmarks=arguments.landmarks,
        views=arguments.views,
        first_landmark=FIRST_LANDMARK,
        clutter=arguments.landmarks,
        distractors=arguments.distractors,
      )
      photos, distractors = str(root / "photos"), str(root / "distractors")
      truth = str(root / "ground_truth.json")
    print(f"{'':60}  mAP  hard  R@90  features")
    for name, one, options in settings(model, train, others):
      found = measurement.evaluate(
        extraction.Extractor(
          extract=extraction.delf_extractor(
            one, max_side=arguments.max_side, **options
          ),
          settings={"kind": "delf", "row": name},
          source=arguments.features,
          max_side=arguments.max_side,
        ),
        photos=photos,
        ground_truth=truth,
        distractors=distractors,
        output=str(Path(scratch) / json.dumps(name).replace("/", " ")),
      )
      per_photograph = (
        found["settings"]["descriptors"] / found["settings"]["photographs"]
      )
      print(
        f"{name:60} {found['mAP_medium']:5.1f} {found['mAP_hard']:5.1f} "
        f"{found['R@90']:5.1f} {per_photograph:9.0f}",
        flush=True,
      )


if __name__ == "__main__":
  main()
