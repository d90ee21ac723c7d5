"""Who may import whom (README.md, "How it is built"), held by reading the code.

To extend it: a new outside library needs one line in OWNERS, which says whose
it is; a new module needs nothing, unless a stricter rule than that of its
package is meant for it, which is one line in ROOMS.
"""

import ast
import fnmatch
import graphlib
import json
import pathlib
import re
import subprocess
import sys
import tomllib
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]

PROGRAMS = [
  "delf_jax.train",
  "delf_jax.train_patches",
  "delf_jax.train_selection",
  "delf_jax.extract",
  "delf_jax.build_index",
  "delf_jax.query",
  "delf_jax.evaluate",
  "delf_jax.demo",
  "delf_jax.find_overlap",
  "delf_jax.convert",
  "delf_jax.exchange",
  "delf_jax.export",
  "delf_jax.calibrate",
  "delf_jax.find_correspondences",
  "delf_jax.report",
  "delf_jax.checkpoint.__main__",
]

# The outside libraries that any module may import, where ROOMS does not forbid.
COMMON = ["flax", "jax", "numpy"]

# The other outside libraries, and the modules that may import each. A name
# stands for a module and all below it, or is a pattern with a star.
OWNERS = {
  "PIL": [
    "delf_jax.data",
    "delf_jax.html_report",
    "delf_jax.notebook",
    "delf_jax.pictures",
    "delf_jax.validation",
  ],
  "absl": [
    *PROGRAMS,
    "delf_jax.data.records",
    "delf_jax.options",
    "delf_jax.program",
  ],
  "array_record": ["delf_jax.data.records"],
  "cv2": [
    "delf_jax.data.augmentation",
    "delf_jax.data.synthetic*",
    "delf_jax.features.handcrafted",
  ],
  "faiss": ["delf_jax.index.faiss_index"],
  "google": ["delf_jax.conversion.tf_models", "delf_jax.features.interchange"],
  "grain": ["delf_jax.data"],
  "h5py": ["delf_jax.features.interchange"],
  "llvmlite": ["delf_jax.index.*_kernels"],
  "matplotlib": [
    "delf_jax.html_report",
    "delf_jax.pictures.drawing",
    "delf_jax.pictures.precision_plots",
  ],
  "ml_collections": [
    "configs",
    "delf_jax.evaluate",
    "delf_jax.train",
    "delf_jax.train_patches",
    "delf_jax.train_selection",
  ],
  "numba": [
    "delf_jax.index.bag_of_words",
    "delf_jax.index.compiled",
    "delf_jax.index.graph*",
    "delf_jax.index.inverted_file*",
    "delf_jax.index.kd_tree*",
    "delf_jax.index.nearest_kernels",
    "delf_jax.index.product_quantization",
    "delf_jax.index.vocabulary",
  ],
  "optax": ["delf_jax.training"],
  "orbax": ["delf_jax.checkpoint"],
  "pyarrow": ["delf_jax.features.store"],
  "pynndescent": ["delf_jax.index.graph"],
  "safetensors": ["delf_jax.conversion.torch_files"],
  "scann": ["delf_jax.index.scann_index"],
  "sklearn": ["delf_jax.calibration", "delf_jax.features.reduction"],
  "tensorboardX": ["delf_jax.journal"],
  "tensorflow_datasets": ["delf_jax.data"],
  "tqdm": ["delf_jax.progress"],
}

# Imported where they are used, inside a function: slow to load, or optional.
LAZY = [
  "faiss",
  "h5py",
  "matplotlib",
  "safetensors",
  "scann",
  "tensorflow",
  "torch",
]

# Not loaded by importing any module but their owner: loading them, or compiling
# what they load, takes seconds that a program's --help must not cost.
SLOW = ["numba", *LAZY]

# Modules that are kept purer than that: the outside libraries that each may
# import, and the modules of this project. The most specific name counts.
PURE = [
  "delf_jax.errors",
  "delf_jax.features.keypoints",
  "delf_jax.features.local_features",
  "delf_jax.geometry",
  "delf_jax.models",
]
ROOMS = {
  "configs": (["ml_collections"], []),
  "delf_jax.conversion": (
    None,
    [
      "delf_jax.checkpoint",
      "delf_jax.conversion",
      "delf_jax.data.safe_pickle",
      "delf_jax.errors",
      "delf_jax.features.interchange",
      "delf_jax.features.reduction",
      "delf_jax.models",
      "delf_jax.progress",
    ],
  ),
  "delf_jax.data": (
    None,
    [
      "delf_jax.data",
      "delf_jax.errors",
      "delf_jax.items",
      "delf_jax.progress",
    ],
  ),
  "delf_jax.data.retrieval_sets": (
    None,
    [
      "delf_jax.data",
      "delf_jax.errors",
      "delf_jax.evaluation",
      "delf_jax.items",
      "delf_jax.progress",
    ],
  ),
  "delf_jax.errors": ([], []),
  "delf_jax.evaluation": (
    ["numpy"],
    ["delf_jax.evaluation", "delf_jax.errors", "delf_jax.items"],
  ),
  "delf_jax.exported": (["jax", "numpy"], []),
  "delf_jax.features": (None, ["delf_jax.features", "delf_jax.errors"]),
  "delf_jax.features.keypoints": (COMMON, PURE),
  "delf_jax.features.lift_features": (
    COMMON,
    ["delf_jax.features", "delf_jax.models"],
  ),
  "delf_jax.features.local_features": (COMMON, PURE),
  "delf_jax.geometry": (COMMON, PURE),
  "delf_jax.index": (None, ["delf_jax.index", "delf_jax.errors"]),
  "delf_jax.items": ([], []),
  "delf_jax.match_score": (
    ["numpy"],
    ["delf_jax.errors", "delf_jax.matching", "delf_jax.voting"],
  ),
  "delf_jax.matching": (COMMON, ["delf_jax.errors"]),
  "delf_jax.models": (COMMON, PURE),
  "delf_jax.pictures": (
    ["PIL", "matplotlib", "numpy"],
    ["delf_jax.evaluation", "delf_jax.pictures"],
  ),
  "delf_jax.voting": (["numpy"], ["delf_jax.errors"]),
  "delf_jax.retrieval": (
    COMMON,
    [
      "delf_jax.errors",
      "delf_jax.features.local_features",
      "delf_jax.geometry",
      "delf_jax.index",
      "delf_jax.match_chains",
      "delf_jax.match_score",
      "delf_jax.matching",
      "delf_jax.voting",
      "delf_jax.word_candidates",
    ],
  ),
  "delf_jax.match_chains": ([], ["delf_jax.errors"]),
  "delf_jax.word_candidates": (
    ["numpy"],
    ["delf_jax.errors", "delf_jax.index", "delf_jax.voting"],
  ),
  "delf_jax.training": (
    [*COMMON, "optax"],
    ["delf_jax.training", "delf_jax.errors", "delf_jax.models"],
  ),
}

# Names that say nothing of what a module does.
NAMELESS = ["base", "common", "helpers", "misc", "registry", "util", "utils"]

# Import names that differ from the distribution's name by more than - and _.
DISTRIBUTIONS = {
  "PIL": "pillow",
  "absl": "absl-py",
  "cv2": "opencv-python-headless",
  "faiss": "faiss-cpu",
  "google": "protobuf",
  "orbax": "orbax-checkpoint",
  "skimage": "scikit-image",
  "sklearn": "scikit-learn",
}

# Declared though no module here imports them, and why.
UNIMPORTED = {
  "importlib-resources": "imported but not declared by tensorflow-datasets",
}


class Import(NamedTuple):
  target: str  # a module of this project, or the name of an outside library
  line: int
  lazy: bool  # inside a function


def imports_of(source, module, known, *, is_package=False):
  """The imports in a module's source, the standard library's left out."""
  found = []

  def add(name, node, lazy):
    if name.split(".")[0] in sys.stdlib_module_names:
      return
    while name not in known and "." in name:
      name = name.rpartition(".")[0]
    found.append(Import(name, node.lineno, lazy))

  def visit(node, lazy):
    if isinstance(node, ast.Import):
      for alias in node.names:
        add(alias.name, node, lazy)
    elif isinstance(node, ast.ImportFrom):
      origin = node.module or ""
      if node.level:
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        origin = ".".join([*parts, *filter(None, [origin])])
      for alias in node.names:
        add(f"{origin}.{alias.name}", node, lazy)
    elif isinstance(node, ast.Call):
      called = getattr(node.func, "attr", getattr(node.func, "id", None))
      if called in ["import_module", "__import__", "importorskip"]:
        name = node.args[0] if node.args else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
          add(name.value, node, lazy)
    lazy = lazy or isinstance(
      node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    )
    for child in ast.iter_child_nodes(node):
      visit(child, lazy)

  visit(ast.parse(source), False)
  return found


def read_tree(root, folders=("delf_jax", "configs")):
  """{module: its imports} of every Python file below some folders."""
  files = {}
  for folder in folders:
    for path in sorted((root / folder).rglob("*.py")):
      parts = path.relative_to(root).with_suffix("").parts
      is_package = parts[-1] == "__init__"
      files[".".join(parts[:-1] if is_package else parts)] = path, is_package
  return {
    module: imports_of(path.read_text(), module, files, is_package=is_package)
    for module, (path, is_package) in files.items()
  }


def is_ours(name):
  return name.split(".")[0] in ["delf_jax", "configs", "tests"]


def matches(module, names):
  return any(
    module == name
    or module.startswith(f"{name}.")
    or fnmatch.fnmatchcase(module, name)
    for name in names
  )


def room_of(module):
  """(outside libraries, own modules) that it may import; None: any."""
  names = [name for name in ROOMS if matches(module, [name])]
  return ROOMS[max(names, key=len)] if names else (None, None)


def complaints(tree):
  """One line for every breach of the rules in {module: its imports}."""
  found = []
  for module, imports in tree.items():
    outside, inside = room_of(module)
    if module.rpartition(".")[2] in NAMELESS:
      found.append(f"{module}: a name that says nothing")
    for target, line, lazy in imports:
      where = f"{module}:{line}: imports {target}"
      if is_ours(target):
        if target in PROGRAMS:
          found.append(f"{where}, a program")
        if inside is not None and not matches(target, inside):
          found.append(f"{where}, which is outside its room")
        continue
      if target in LAZY and not lazy:
        found.append(f"{where} at module level")
      if outside is not None and target not in outside:
        found.append(f"{where}, which its room keeps out")
      elif target in OWNERS and not matches(module, OWNERS[target]):
        found.append(f"{where}, which only {OWNERS[target]} may")
      elif target not in [*OWNERS, *COMMON]:
        found.append(f"{where}, which has no owner in OWNERS")
  graph = {
    module: [i.target for i in imports if i.target != module]
    for module, imports in tree.items()
  }
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    found.append(f"a circle: {' -> '.join(error.args[1])}")
  return found


def names_in(requirements):
  """Normalised names of the distributions in a list of requirements."""
  return {
    re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()
    for line in requirements
  }


def distribution(library):
  return DISTRIBUTIONS.get(library, library.replace("_", "-")).lower()


def undeclared(tree, project):
  """One line for every outside import that pyproject.toml does not name.

  What a module of the package imports when it is loaded must be installed with
  it; what a function or a test imports may be in an extra.
  """
  always = names_in(project["dependencies"])
  extras = names_in(sum(project["optional-dependencies"].values(), []))
  found = []
  for module, imports in tree.items():
    for target, line, lazy in imports:
      may_be_extra = lazy or module.startswith("tests")
      if not is_ours(target) and distribution(target) not in (
        always | extras if may_be_extra else always
      ):
        found.append(f"{module}:{line}: {target} is not declared")
  return found


def read_project():
  return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_rules_hold():
  tree = read_tree(ROOT)
  assert "delf_jax.features.local_features" in tree
  assert complaints(tree) == []


def test_what_is_imported_is_declared():
  tree = read_tree(ROOT, ["delf_jax", "configs", "tests"])
  # Scripts of one folder import each other by their bare names.
  siblings = {module.rpartition(".")[2] for module in tree}
  tree = {
    module: [i for i in imports if i.target not in siblings]
    for module, imports in tree.items()
  }
  assert undeclared(tree, read_project()) == []


def test_what_is_declared_is_imported():
  imported = {
    distribution(i.target)
    for imports in read_tree(ROOT).values()
    for i in imports
  }
  declared = names_in(read_project()["dependencies"])
  assert declared - imported == set(UNIMPORTED)


def test_constraints_pin_all_and_name_no_host():
  text = (ROOT / "constraints.txt").read_text()
  assert not re.search(r"://|^-|@", text, flags=re.MULTILINE)
  pins = [line for line in text.splitlines() if not line.startswith("#")]
  assert all("==" in line for line in pins)
  project = read_project()
  extras = project["optional-dependencies"]
  wanted = [*project["dependencies"], *extras["dev"], *extras["bench"]]
  assert names_in(wanted) <= names_in(pins)


def test_every_folder_of_modules_is_a_package():
  # One without __init__.py works from the checkout and is left out of a wheel.
  folders = {path.parent for path in (ROOT / "delf_jax").rglob("*.py")}
  assert [f for f in folders if not (f / "__init__.py").exists()] == []


def loaded_by(statement):
  """Top-level names of the modules in a fresh interpreter after a statement."""
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      f"import json, sys\n{statement}\n"
      "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_is_light():
  heavy = {"jax", "jaxlib", "flax", *SLOW, *OWNERS}
  assert loaded_by("import delf_jax") & heavy == set()


def test_only_the_owner_loads_what_is_slow():
  owners = [owner for library in SLOW for owner in OWNERS.get(library, [])]
  others = [m for m in read_tree(ROOT, ["delf_jax"]) if not matches(m, owners)]
  assert loaded_by(f"import {', '.join(others)}") & set(SLOW) == set()


@pytest.mark.parametrize(
  "rooms, allowed",
  [
    (["delf_jax.evaluation"], "numpy"),
    (PURE, "flax.linen, flax.struct, jax, jax.numpy, numpy"),
  ],
  ids=["evaluation", "pure"],
)
def test_pure_rooms_load_nothing_else(rooms, allowed):
  # What the rules above cannot see: an import by way of a package's __init__.
  modules = [module for module in read_tree(ROOT) if matches(module, rooms)]
  with_rooms = loaded_by(f"import {allowed}, {', '.join(modules)}")
  others = with_rooms - loaded_by(f"import {allowed}") - {"delf_jax"}
  assert others - sys.stdlib_module_names == set()


def tree_of(tmp_path, files):
  for name, source in {"delf_jax/__init__.py": "", **files}.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
  return read_tree(tmp_path)


def test_a_lawful_tree_gets_no_complaint(tmp_path):
  files = {
    "configs/small.py": "import math\nfrom ml_collections import ConfigDict",
    "delf_jax/errors.py": "",
    "delf_jax/geometry/__init__.py": "",
    "delf_jax/geometry/ransac.py": "from . import transforms\nimport jax",
    "delf_jax/geometry/transforms.py": "from delf_jax.errors import InputError",
    "delf_jax/features/__init__.py": "",
    "delf_jax/features/store.py": "import pyarrow as pa, numpy as np, os.path",
    "delf_jax/index/__init__.py": "def f():\n  from . import graph",
    "delf_jax/index/graph.py": "import pynndescent",
    "delf_jax/pictures/__init__.py": "",
    "delf_jax/pictures/drawing.py": "def plot():\n  import matplotlib.pyplot",
    "delf_jax/query.py": "from absl import app\nfrom delf_jax import retrieval",
    "delf_jax/retrieval.py": "from delf_jax import index",
  }
  assert complaints(tree_of(tmp_path, files)) == []


@pytest.mark.parametrize(
  "name, source, complaint",
  [
    ("delf_jax/models/a.py", "import optax", "keeps out"),
    ("delf_jax/geometry/a.py", "import scipy", "keeps out"),
    ("delf_jax/evaluation/a.py", "import jax.numpy as jnp", "keeps out"),
    ("delf_jax/evaluation/a.py", "from delf_jax import there", "its room"),
    ("delf_jax/features/a.py", "import pyarrow.parquet", "which only"),
    ("delf_jax/features/pyramid.py", "import delf_jax.models", "its room"),
    ("delf_jax/index/exact.py", "import numba", "which only"),
    ("delf_jax/data/a.py", "import orbax.checkpoint", "which only"),
    ("delf_jax/data/a.py", "from ..features import b", "its room"),
    ("delf_jax/extract.py", "import grain", "which only"),
    ("delf_jax/pictures/drawing.py", "import matplotlib", "at module level"),
    (
      "delf_jax/html_report.py",
      "from matplotlib import figure",
      "module level",
    ),
    ("delf_jax/convert.py", "def f():\n  import torch", "no owner"),
    ("delf_jax/convert.py", "import tensorflow", "at module level"),
    ("delf_jax/a.py", "import scipy", "no owner"),
    ("delf_jax/a.py", "if True:\n  import tqdm", "which only"),
    ("delf_jax/a.py", "__import__('grain')", "which only"),
    ("delf_jax/a.py", "f = lambda: i.import_module('grain')", "which only"),
    ("delf_jax/a.py", "from delf_jax import there, train", "a program"),
    ("delf_jax/a.py", "from . import train", "a program"),
    ("delf_jax/a.py", "def f():\n  import delf_jax.train", "a program"),
    ("delf_jax/there.py", "from delf_jax import user", "a circle"),
    ("delf_jax/there.py", "def f():\n  from . import user", "a circle"),
    ("delf_jax/features/utils.py", "", "says nothing"),
    ("delf_jax/registry/__init__.py", "", "says nothing"),
    ("configs/a.py", "import jax", "keeps out"),
    ("configs/a.py", "from delf_jax import there", "its room"),
    ("configs/a.py", "from configs import b", "its room"),
  ],
)
def test_a_breach_gets_a_complaint(tmp_path, name, source, complaint):
  files = {
    "configs/b.py": "",
    "delf_jax/there.py": "",
    "delf_jax/train.py": "",
    "delf_jax/user.py": "from delf_jax import there",
    "delf_jax/features/b.py": "",
    "delf_jax/models/__init__.py": "",
  }
  assert complaints(tree_of(tmp_path, files)) == []
  found = complaints(tree_of(tmp_path, {**files, name: source}))
  assert any(complaint in line for line in found)


@pytest.mark.parametrize(
  "name, source, count",
  [
    ("delf_jax/a.py", "import numpy, PIL.Image", 0),
    ("delf_jax/a.py", "def f():\n  import torch", 0),
    ("delf_jax/a.py", "import torch", 1),
    ("delf_jax/a.py", "def f():\n  import scipy", 1),
    ("tests/a.py", "import torch\nfrom delf_jax import b", 0),
    ("tests/a.py", "pytest.importorskip('scipy')", 1),
  ],
)
def test_an_undeclared_import_is_found(tmp_path, name, source, count):
  (tmp_path / name).parent.mkdir()
  (tmp_path / name).write_text(source)
  project = {
    "dependencies": ["numpy>=2", "Pillow"],
    "optional-dependencies": {"torch": ["torch[x]>=2.6; python_version > '3'"]},
  }
  tree = read_tree(tmp_path, ["delf_jax", "tests"])
  assert len(undeclared(tree, project)) == count
