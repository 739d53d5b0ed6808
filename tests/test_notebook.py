"""The notebook runs from top to bottom on a store, and is committed without outputs."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import nbformat

from tests.synthetic import BUDGETS, make_study

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "miniature.ipynb"

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


def test_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_notebook_runs_top_to_bottom(tmp_path: Path) -> None:
    store = tmp_path / "salt-store"
    make_study(store, budgets=BUDGETS[1:], labels=("motion",), students=("micro",), teachers=("nano",))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    executed = tmp_path / "executed.ipynb"
    environment = os.environ | {
        "SALT_STORE": str(store),
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "i"),
    }
    command = [sys.executable, "-c", RUN, str(NOTEBOOK), str(tmp_path), str(executed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    outputs = [out for cell in nbformat.read(executed, as_version=4).cells for out in cell.get("outputs", [])]
    pictures = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 3
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    printed = "".join(out.get("text", "") for out in outputs if out.output_type == "stream")
    assert "plan miniature: Does a frozen teacher pay at equal FLOPs?" in printed
    assert "Few seeds" in printed
    assert not [out for out in outputs if out.get("name") == "stderr"]
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
