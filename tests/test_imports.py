"""Who imports whom, what a command loads before it works, and whose packages are used."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.video_kit import write_video

ROOT = Path(__file__).parent.parent
PACKAGES = ("salt", "slurm", "sweeps", "analysis", "salt_cli")
ALLOWED = {
    "salt": set(),
    "slurm": {"salt"},
    "sweeps": {"salt", "slurm", "analysis"},
    "analysis": {"salt"},
    "salt_cli": {"salt", "slurm", "sweeps", "analysis"},
}
HEAVY = ("torch", "numpy", "pandas", "matplotlib", "sklearn", "scipy")
COMMANDS = {
    "salt-sweep": [
        *(
            "plan",
            "simulate",
            "submit",
            "retry",
            "status",
            "logs",
            "cancel",
            "gc",
            "site",
            "diff",
            "ledger",
            "recipe",
            "tune",
            "init",
            "schema",
            "completion",
            "benchmark",
        ),
    ],
    "salt-analyze": [
        *("gather", "pareto", "weak-teacher", "allocation", "fit", "isoflop", "loss-accuracy", "compare"),
        *("suggest", "report", "verify", "export", "import"),
    ],
    "salt-train": ["run", "show", "probe", "export", "import"],
    "salt-data": ["digits", "scan", "pack", "bench", "duplicates"],
}
LINES = [[command] for command in COMMANDS] + [[c, sub] for c, subs in COMMANDS.items() for sub in subs]


def sources(package: str) -> list[Path]:
    return [ROOT / "salt_cli.py"] if package == "salt_cli" else sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """First names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    files = sources(package)
    assert files
    for file in files:
        others = imported(ast.parse(file.read_text())) & set(PACKAGES) - {package}
        assert others <= ALLOWED[package], f"{file.name} imports {sorted(others)}"


def run(argv: list[str], code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, with nothing of ours but our root, last on the path."""
    path = os.pathsep.join([environment.pop("FIRST", ""), str(ROOT)]).strip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": path},
        timeout=120,
    )


HELP = """
import io, sys, contextlib, salt_cli
command, argv = sys.argv[1], sys.argv[2:]
text = io.StringIO()
with contextlib.redirect_stdout(text):
    try:
        salt_cli.run(command, argv)
    except SystemExit as stop:
        assert stop.code == 0, stop.code
print([name for name in {heavy!r} if name in sys.modules])
print(text.getvalue())
"""


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_help_is_light_and_shows_examples(line: list[str]) -> None:
    done = run([*line, "--help"], HELP.replace("{heavy!r}", repr(HEAVY)))
    assert done.returncode == 0, done.stderr
    loaded, _, text = done.stdout.partition("\n")
    assert loaded == "[]", f"{' '.join(line)} --help imports {loaded}"
    assert "usage:" in text
    assert "example" in text
    assert f"  {line[0]} " in text
    assert len(line) == 1 or "--json" in text


FOREIGN = "raise RuntimeError('the foreign package was imported')\n"

PLAN_ONLY = """
import sys
import sweeps.plan, sweeps.cli, sweeps.show, sweeps.design, sweeps.hours, sweeps.costs, sweeps.auditing
import slurm.worker, slurm.local, slurm.fleet, slurm.status, slurm.inline, slurm.prepare, slurm.tidy
print([name for name in {heavy!r} if name in sys.modules])
"""


def test_planning_and_launching_need_no_heavy_module() -> None:
    done = run([], PLAN_ONLY.replace("{heavy!r}", repr(HEAVY)))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_foreign_package_of_our_name_is_named_and_not_used(command: str, tmp_path: Path) -> None:
    for name in ("salt", "sweeps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(FOREIGN)
    code = "import sys, salt_cli; sys.exit(salt_cli.run(sys.argv[1], sys.argv[2:]))"
    done = run([command, "--version"], code, FIRST=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("salt ")
    assert "foreign package" not in done.stderr
    for name in ("salt", "sweeps"):
        assert f"another package named {name!r}" in done.stderr
        assert str(tmp_path / name) in done.stderr
    quiet = run([command, "--version"], code)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout == done.stdout


def test_a_worker_uses_our_packages_too(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "__init__.py").write_text(FOREIGN)
    code = (
        "import subprocess, sys, salt_cli; salt_cli.own_packages_first();"
        "from slurm.submission import worker_environment;"
        "command = [sys.executable, '-P', '-m', 'slurm.worker', '--help'];"
        "sys.exit(subprocess.run(command, env=worker_environment(1)).returncode)"
    )
    done = run([], code, FIRST=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Started by salt-sweep submit" in done.stdout


def test_decoding_processes_use_our_packages_in_a_folder_with_another_salt(tmp_path: Path) -> None:
    """The server that forks them begins with the current folder on its path."""
    (tmp_path / "salt").mkdir()
    (tmp_path / "salt" / "__init__.py").write_text(FOREIGN)
    write_video(tmp_path / "clip.mp4", 8, width=64, height=64)
    (tmp_path / "list.csv").write_text("path\nclip.mp4\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "salt_cli.py"), "salt-data", "scan", "list.csv", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert '"good": 1' in done.stdout
    assert "foreign package" not in done.stderr
