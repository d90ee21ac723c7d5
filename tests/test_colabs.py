"""The notebooks of colabs: committed clean, and run from top to bottom."""

import ast
import base64
import io
import json
from pathlib import Path

import jax
import pytest
from PIL import Image

COLABS = Path(__file__).parents[1] / "colabs"
NAMES = ("extract_and_match", "retrieval", "train_delf")


def read(name):
  return json.loads((COLABS / f"{name}.ipynb").read_text())


def code_cells(notebook):
  return [c for c in notebook["cells"] if c["cell_type"] == "code"]


def source(cell):
  return "".join(cell["source"])


def test_all_are_tested():
  assert {path.stem for path in COLABS.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_run_is_committed(name):
  notebook = read(name)
  for cell in code_cells(notebook):
    assert cell["outputs"] == [] and cell["execution_count"] is None
  assert all(cell["metadata"] == {} for cell in notebook["cells"])
  assert notebook["metadata"] == {
    "kernelspec": {
      "display_name": "Python 3",
      "language": "python",
      "name": "python3",
    },
    "language_info": {"name": "python"},
  }


@pytest.mark.parametrize("name", NAMES)
def test_the_format_is_kept(name):
  nbformat = pytest.importorskip("nbformat")
  notebook = nbformat.read(COLABS / f"{name}.ipynb", as_version=4)
  nbformat.validate(notebook)
  identifiers = [cell["id"] for cell in notebook.cells]
  assert len(set(identifiers)) == len(identifiers)


def test_all_begin_with_the_same_installation():
  cells = [code_cells(read(name))[0] for name in NAMES]
  assert all(cell == cells[0] for cell in cells)


def test_the_installation_is_skipped_where_it_is_not_needed(monkeypatch):
  """It runs a program on Colab alone."""
  monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("ran"))
  monkeypatch.setattr("sys.path", [])
  monkeypatch.chdir(COLABS)
  exec(compile(source(code_cells(read(NAMES[0]))[0]), "cell", "exec"), {})


@pytest.mark.parametrize("name", NAMES)
def test_they_are_thin(name):
  """Code that is worth testing is in the package, not in a notebook."""
  for cell in code_cells(read(name)):
    assert len(cell["source"]) <= 40
    tree = ast.parse(source(cell))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert all(len(function.body) <= 6 for function in functions)
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_they_run_from_top_to_bottom(name, folder, monkeypatch):
  nbformat = pytest.importorskip("nbformat")
  nbclient = pytest.importorskip("nbclient")
  # Most of the time is compilation: the kernels share what these tests keep.
  for option in (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  ):
    monkeypatch.setenv(option.upper(), str(jax.config.values[option]))
  monkeypatch.setenv("DELF_JAX_QUICK", "1")
  monkeypatch.setenv("TMPDIR", str(folder))
  notebook = nbformat.read(COLABS / f"{name}.ipynb", as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": str(COLABS)}}
  )
  before = set(COLABS.rglob("*"))
  client.execute()
  for cell in notebook.cells:
    for output in cell.get("outputs", ()):
      assert output.output_type != "error"
      if "image/png" in output.get("data", {}):
        content = base64.b64decode(output.data["image/png"])
        with Image.open(io.BytesIO(content)) as picture:
          assert picture.width <= 1600
  # Some of every notebook is to be looked at.
  shown = [cell for cell in notebook.cells if "image/png" in str(cell)]
  assert len(shown) >= 4
  # What is left behind is where it was said to be, and nowhere else.
  assert (folder / "delf_jax_notebooks").is_dir()
  assert set(COLABS.rglob("*")) == before
