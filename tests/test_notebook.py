"""The notebooks run from top to bottom, on the study that is shipped and on a fresh one, and are stored
without outputs."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.synthetic import make_study

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHIPPED = ROOT / "notebooks" / "miniature.salt.tar.gz"

#: nbclient's event loop warns on some versions of its own dependencies: it runs in a process of its own,
#: where only
#: what the notebook itself prints and draws is judged.
RUN = """
import json, sys
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

class ThisInterpreter(AsyncKernelManager):
    # No kernel needs to be installed anywhere: the kernel is this interpreter.
    @property
    def kernel_spec(self):
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="this", language="python")

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(
    notebook, timeout=120, kernel_manager_class=ThisInterpreter, resources={"metadata": {"path": sys.argv[2]}}
).execute()
nbformat.write(notebook, sys.argv[3])
"""


#: How many pictures each notebook draws.
PICTURES = {"planning-a-study": 0, "reading-a-frontier": 3, "fitting-a-law": 1, "published-numbers": 3}
#: Those that read a study.
READERS = ("reading-a-frontier", "fitting-a-law")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run store of a study that was just finished."""
    store = tmp_path_factory.mktemp("fresh") / "salt-store"
    make_study(store, labels=("motion",), students=("micro",), teachers=("nano", "micro"))
    return store


def test_notebooks_are_stored_without_outputs_and_all_are_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES)
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert len(code) >= 5
        assert all(not cell.outputs and cell.execution_count is None for cell in code)


def run(name: str, folder: Path, **environment: str) -> list[Any]:
    """Outputs of a notebook, run in an empty folder."""
    executed = folder / "executed.ipynb"
    whole = os.environ | environment | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    command = [
        sys.executable,
        "-c",
        RUN,
        str(ROOT / "notebooks" / f"{name}.ipynb"),
        str(folder),
        str(executed),
    ]
    done = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    outputs = [out for cell in nbformat.read(executed, as_version=4).cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.get("name") == "stderr"]
    pictures = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == PICTURES[name]
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    return outputs


def printed(outputs: list[Any]) -> str:
    return "".join(out.get("text", "") for out in outputs if out.output_type == "stream")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("which", ["shipped", "fresh"])
def test_a_notebook_that_reads_a_study(name: str, which: str, fresh: Path, tmp_path: Path) -> None:
    place = SHIPPED if which == "shipped" else fresh
    before = {path: path.stat().st_mtime_ns for path in fresh.rglob("*")}
    said = printed(run(name, tmp_path, SALT_STUDY=str(place)))
    question = (
        "For the same training FLOPs" if which == "shipped" else "Does a frozen teacher pay at equal FLOPs?"
    )
    assert f"plan miniature: {question}" in said
    assert ("Few seeds" in said) == (name == "reading-a-frontier")
    assert {path: path.stat().st_mtime_ns for path in fresh.rglob("*")} == before


@pytest.mark.parametrize("name", sorted(set(PICTURES) - set(READERS)))
def test_a_notebook_that_needs_no_study(name: str, tmp_path: Path) -> None:
    said = printed(run(name, tmp_path))
    words = {"planning-a-study": "largest residual:", "published-numbers": "arXiv 2509.24317: at equal FLOPs"}
    assert words[name] in said


def test_the_shipped_study_names_no_machine() -> None:
    with tarfile.open(SHIPPED) as tar:
        texts = [tar.extractfile(member).read().decode() for member in tar if member.isfile()]  # type: ignore[union-attr]
    for text in texts:
        assert not re.search(
            r'"(?:host|node)": "(?!host\d+")|"pid": "|(?<![\w.])/(?:home|root|tmp|work|Users)/', text
        )
    assert SHIPPED.stat().st_size < 1_500_000
