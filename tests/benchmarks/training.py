"""Speed and memory of the training step on CPU, beside PyTorch's.

  python tests/benchmarks/training.py [--work descriptors] [--rounds 9]

float32, random weights and pixels; a step is normalisation of pixels, forward,
cross-entropy, backward, BatchNorm statistics, weight decay and SGD with
momentum. PyTorch's is channels last. The works:

  descriptors  ResNet-50 to conv5 (units 3, 4, 6, 3), 586 classes, 224, batch 8
  small        the network of configs/synthetic.py:small, 112, batch 16
  attention    attention on frozen ResNet-50 to conv4, 720, batch 2

Every row is a process of its own; the rows take turns and medians are printed.
"K devices" are virtual ones, the largest K that divides the batch among the
cores; "huge pages" is GLIBC_TUNABLES=glibc.malloc.hugetlb=1, without which
glibc returns XLA's temporary memory to the kernel after every step and has it
cleared, page by page, in the next. --xla_flags adds a row with flags.
"""

import argparse
import importlib.util
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

# A process measures one framework: JAX and PyTorch are imported where used.

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
HIDDEN = 512  # channels of the attention head
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4


class Work(NamedTuple):
  stage: str
  units: tuple[int, ...]
  width: int
  classes: int
  side: int
  batch: int


WORKS = {
  "descriptors": Work("descriptors", (3, 4, 6, 3), 64, 586, 224, 8),
  "small": Work("descriptors", (2, 2, 2), 32, 20, 112, 16),
  "attention": Work("attention", (3, 4, 6), 64, 586, 720, 2),
}


class Contender(NamedTuple):
  name: str
  make: Callable[[Work, int], Callable[[], None]]
  devices: int
  environment: dict[str, str]


def random_batch(work: Work):
  """[b, h, w, 3] uint8 pixels and [b] int32 labels."""
  import numpy as np

  generator = np.random.default_rng(0)
  shape = (work.batch, work.side, work.side, 3)
  return (
    generator.integers(0, 256, shape).astype(np.uint8),
    generator.integers(0, work.classes, work.batch).astype(np.int32),
  )


def make_jax_step(work: Work, devices: int) -> Callable[[], None]:
  """The step as `delf_jax.train` maps it over virtual devices."""
  import jax
  import jax.numpy as jnp

  from delf_jax import checkpoint
  from delf_jax.models.normalisation import NORMALISATIONS
  from delf_jax.training import optimisers, step

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  network = checkpoint.build_network(
    units=work.units,
    width=work.width,
    layout="torchvision",
    num_classes=work.classes,
    attention_hidden=HIDDEN,
    axis_name="batch",
  )
  unmapped = network.clone(backbone=network.backbone.clone(axis_name=None))
  variables = jax.jit(unmapped.init)(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  optimiser = optimisers.make_optimiser(
    optimisers.make_schedule(
      learning_rate=LEARNING_RATE, steps=1, decay="constant"
    ),
    momentum=MOMENTUM,
    weight_decay=WEIGHT_DECAY,
  )
  state = step.initial_state(
    work.stage, variables, optimiser, jax.random.key(0)
  )
  train_step = jax.pmap(
    step.make_train_step(
      network,
      optimiser,
      stage=work.stage,
      normalise=NORMALISATIONS["imagenet"],
      axis_name="batch",
    ),
    axis_name="batch",
    in_axes=(None, 0),
    out_axes=None,
    donate_argnums=0,
  )
  pixels, labels = (
    array.reshape(devices, -1, *array.shape[1:]) for array in random_batch(work)
  )

  def run():
    nonlocal state
    state, metrics = train_step(state, {"pixels": pixels, "labels": labels})
    jax.block_until_ready((state, metrics))

  return run


def make_torch_step(work: Work, devices: int) -> Callable[[], None]:
  """The equal step in PyTorch, channels last, on all cores."""
  import torch
  from torch import nn
  from torch.nn import functional

  def conv_norm(channels, features, kernel, stride=1):
    return [
      nn.Conv2d(channels, features, kernel, stride, kernel // 2, bias=False),
      nn.BatchNorm2d(features),
    ]

  class Unit(nn.Module):
    def __init__(self, channels, inside, stride):
      super().__init__()
      self.body = nn.Sequential(
        *conv_norm(channels, inside, 1),
        nn.ReLU(inplace=True),
        *conv_norm(inside, inside, 3, stride),
        nn.ReLU(inplace=True),
        *conv_norm(inside, 4 * inside, 1),
      )
      self.shortcut = nn.Sequential()
      if channels != 4 * inside:
        self.shortcut = nn.Sequential(
          *conv_norm(channels, 4 * inside, 1, stride)
        )

    def forward(self, x):
      return torch.relu(self.body(x) + self.shortcut(x))

  layers = [
    *conv_norm(3, work.width, 7, 2),
    nn.ReLU(inplace=True),
    nn.MaxPool2d(3, 2, 1),
  ]
  channels = work.width
  for s, units in enumerate(work.units):
    for u in range(units):
      inside = work.width * 2**s
      layers.append(Unit(channels, inside, 2 if s and not u else 1))
      channels = 4 * inside
  backbone = nn.Sequential(*layers).to(memory_format=torch.channels_last)
  attention = nn.Sequential(
    *conv_norm(channels, HIDDEN, 1),
    nn.ReLU(inplace=True),
    nn.Conv2d(HIDDEN, 1, 1),
    nn.Softplus(),
  ).to(memory_format=torch.channels_last)
  classifier = nn.Linear(channels, work.classes)
  if work.stage == "attention":
    backbone.eval()
    learned = nn.ModuleList([attention, classifier])
  else:
    learned = nn.ModuleList([backbone, classifier])
  optimiser = torch.optim.SGD(
    learned.parameters(),
    LEARNING_RATE,
    momentum=MOMENTUM,
    weight_decay=WEIGHT_DECAY,
  )
  pixels, labels = (torch.from_numpy(array) for array in random_batch(work))
  labels = labels.long()
  mean = torch.tensor([123.675, 116.28, 103.53])
  scale = torch.tensor([58.395, 57.12, 57.375])

  def embed(images):
    if work.stage == "descriptors":
      return backbone(images).mean((2, 3))
    with torch.no_grad():
      features = backbone(images)
    unit = functional.normalize(features, dim=1)
    return (attention(features) * unit).mean((2, 3))

  def run():
    images = ((pixels - mean) / scale).permute(0, 3, 1, 2)
    optimiser.zero_grad()
    loss = functional.cross_entropy(classifier(embed(images)), labels)
    loss.backward()
    optimiser.step()
    loss.item()

  return run


def serve(contender: Contender, work: Work, pipe: Connection) -> None:
  """Runs steps when told; ends with the process's peak memory."""
  run = contender.make(work, contender.devices)
  for _ in range(3):
    run()
  pipe.send("ready")
  while steps := pipe.recv():
    run()  # what the others left in the caches is nobody's doing
    start = time.perf_counter()
    for _ in range(steps):
      run()
    pipe.send((time.perf_counter() - start) / steps)
  pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def make_contenders(work: Work, xla_flags: str) -> list[Contender]:
  """Lists the rows of a work."""
  cores = len(os.sched_getaffinity(0))
  devices = max(k for k in range(1, cores + 1) if work.batch % k == 0)
  found = []
  for number in sorted({1, devices}):
    name = f"ours, {number} device{'s' if number > 1 else ''}"
    found.append(Contender(name, make_jax_step, number, {}))
    found.append(
      Contender(f"{name}, huge pages", make_jax_step, number, HUGE_PAGES)
    )
  if xla_flags:
    environment = {**HUGE_PAGES, "XLA_FLAGS": xla_flags}
    name = "ours, 1 device, huge pages, flags"
    found.append(Contender(name, make_jax_step, 1, environment))
  if importlib.util.find_spec("torch") is None:
    print("PyTorch is not installed: its rows are left out")
    return found
  return [
    *found,
    Contender("PyTorch", make_torch_step, 1, {}),
    Contender("PyTorch, huge pages", make_torch_step, 1, HUGE_PAGES),
  ]


def compare(name: str, *, rounds: int, steps: int, xla_flags: str) -> None:
  """Prints the table of one work."""
  work = WORKS[name]
  context = multiprocessing.get_context("spawn")
  running = []
  for contender in make_contenders(work, xla_flags):
    pipe, remote = context.Pipe()
    process = context.Process(target=serve, args=(contender, work, remote))
    # A process reads these when it starts.
    before = dict(os.environ)
    os.environ.update(contender.environment)
    process.start()
    os.environ.clear()
    os.environ.update(before)
    remote.close()
    pipe.recv()
    running.append((contender.name, process, pipe, []))
  for _ in range(rounds):
    for _, _, pipe, times in running:
      pipe.send(steps)
      times.append(pipe.recv())
  rows = []
  for row, process, pipe, times in running:
    pipe.send(0)
    rows.append((row, statistics.median(times), pipe.recv()))
    process.join()
  print(f"\n{name}: {work.side} x {work.side}, batch {work.batch}")
  reference = {row: seconds for row, seconds, _ in rows}.get("PyTorch")
  for row, seconds, memory in rows:
    ratio = f"{reference / seconds:5.2f} x PyTorch" if reference else ""
    print(
      f"  {row:34} {work.batch / seconds:7.2f} images/s   "
      f"{memory:5.2f} GiB   {ratio}"
    )


def main() -> None:
  """Prints a table for every work."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--work", choices=WORKS, help="one of them; all")
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--steps", type=int, default=2, help="timed at a turn")
  parser.add_argument("--xla_flags", default="", help="of a further row")
  values = parser.parse_args()
  for name in [values.work] if values.work else WORKS:
    compare(
      name,
      rounds=values.rounds,
      steps=values.steps,
      xla_flags=values.xla_flags,
    )


if __name__ == "__main__":
  main()
