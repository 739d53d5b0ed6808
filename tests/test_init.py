"""What helps a newcomer: files to begin with, schemas for editors, completion in a real shell."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import salt_cli
from salt.plain_yaml import parse_yaml
from sweeps.schema import schema
from tests.console import ROOT, salt

STUDIES = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "sweeps" / "templates" / "study.yaml"]
SITES = [*sorted((ROOT / "examples" / "sites").glob("*.yaml")), ROOT / "sweeps" / "templates" / "site.yaml"]


def errors(kind: Any, document: Any) -> list[str]:
    # As an editor sees it: the schema went through JSON, and YAML lists are arrays.
    checker = jsonschema.Draft202012Validator(json.loads(json.dumps(schema(kind))))
    return [error.message for error in checker.iter_errors(document)]


@pytest.mark.parametrize("path", [*STUDIES, *SITES], ids=lambda path: path.name)
def test_schemas_take_the_examples_and_name_typing_errors(path: Path) -> None:
    kind = "study" if path in STUDIES else "site"
    document = parse_yaml(path.read_bytes(), path)
    assert errors(kind, document) == []
    key = "budgets_flops" if kind == "study" else "gpus_total"
    changed = {name if name != key else f"{name}x": value for name, value in document.items()}
    assert any(f"{key}x" in error for error in errors(kind, changed))


def test_sections_laid_over_a_spec_are_checked_too() -> None:
    document = yaml.safe_load((ROOT / "sweeps" / "templates" / "study.yaml").read_text())
    document["optim"]["learning_rate"] = 1e-3
    assert any("learning_rate" in error for error in errors("study", document))
    study = schema("study")
    about = study["$defs"]["StudyFile"]["properties"]["optim"]["properties"]["lr_end"]["description"]
    assert about == "rate at the last step"
    jsonschema.Draft202012Validator.check_schema(study)
    assert "\\\\Z" not in json.dumps([study, schema("site")])  # which patterns of editors do not know
    jsonschema.Draft202012Validator.check_schema(schema("site"))


def test_init_writes_a_study_that_plans_and_never_over_anything(tmp_path: Path) -> None:
    out, _ = salt(tmp_path, "salt-sweep", "init", "mine", "--json")
    assert json.loads(out)["files"] == ["site.schema.json", "site.yaml", "study.schema.json", "study.yaml"]
    out, _ = salt(tmp_path, "salt-sweep", "plan", "mine/study.yaml", "--json")
    plan = json.loads(out)
    assert len(plan["cells"]) > 50
    assert plan["warnings"] == []
    assert {cell["arm"] for cell in plan["cells"]} == {"pixel", "vjepa", "salt"}
    salt(tmp_path, "salt-sweep", "site", "check", "mine/site.yaml")
    folder = tmp_path / "mine"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    _, err = salt(tmp_path, "salt-sweep", "init", "mine", code=2)
    assert "study.yaml is there already" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for name in ("study", "site"):
        assert f"$schema={name}.schema.json" in before[f"{name}.yaml"].decode().splitlines()[0]
        assert json.loads(before[f"{name}.schema.json"]) == json.loads(json.dumps(schema(name)))


def completed(words: list[str], folder: Path, script: str) -> set[str]:
    """What a real bash completes after these words, the last of which is only begun."""
    line = " ".join(words)
    ask = f"""{script}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
COMP_LINE='{line}'; COMP_POINT={len(line)}
handler=$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$handler {words[0]} "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {name: value for name, value in os.environ.items() if name != "SALT_STORE"}
    done = subprocess.run(
        ["bash", "--norc", "-c", ask], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in done.stdout.split("\n")} - {""}


def test_bash_completes_commands_options_and_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert salt_cli.run("salt-sweep", ["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "salt-store" / "plans" / "miniature").mkdir(parents=True)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    assert "status" in completed(["salt-sweep", "sta"], tmp_path, script)
    assert "--workers" in completed(["salt-sweep", "tune", "--wor"], tmp_path, script)
    assert completed(["salt-analyze", "weak"], tmp_path, script) == {"weak-teacher"}
    assert "digits" in completed(["salt-data", "di"], tmp_path, script)
    assert completed(["salt-sweep", "status", "m"], tmp_path, script) == {"miniature", "mine.yaml"}


@pytest.fixture(scope="module")
def zsh() -> str:
    found = shutil.which("zsh")
    if found is None:
        assert "CI" not in os.environ, "no zsh: install the Debian package zsh"
        pytest.skip("no zsh here")
    return found


def shown_by_zsh(zsh: str, folder: Path, begin: str, typed: str, wanted: str) -> str:
    """What a terminal shows after some keys and the tabulator; ends once `wanted` is there."""
    terminal, inside = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder)}
    process = subprocess.Popen(
        [zsh, "-f", "-i"],
        stdin=inside, stdout=inside, stderr=inside, cwd=folder, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(inside)
    seen = ""

    def wait_for(text: str) -> None:
        nonlocal seen
        seen, end = "", time.monotonic() + 20
        while text not in seen and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 4096).decode(errors="replace")

    try:
        os.write(terminal, f"autoload -U compinit; {begin}; print -r REA''DY\n".encode())
        wait_for("READY")
        os.write(terminal, f"{typed}\t".encode())
        wait_for(wanted)
        return seen
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


BEGIN = {
    "fpath": "fpath=($PWD/zfunc $fpath); compinit -u -D",
    "eval": 'compinit -u -D; eval "$(<zfunc/_salt)"',
}


@pytest.mark.parametrize("begin", BEGIN.values(), ids=BEGIN)
def test_zsh_completes_all_four_and_plans(
    zsh: str, begin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert salt_cli.run("salt-sweep", ["completion", "zsh"]) == 0
    (tmp_path / "zfunc").mkdir()
    (tmp_path / "zfunc" / "_salt").write_text(capsys.readouterr().out)
    (tmp_path / "salt-store" / "plans" / "miniature").mkdir(parents=True)
    for typed, wanted in (
        ("salt-analyze weak", "weak-teacher"),
        ("salt-data digi", "digits"),
        ("salt-train exp", "export"),
        ("salt-sweep status minia", "miniature"),
    ):
        assert wanted in shown_by_zsh(zsh, tmp_path, begin, typed, wanted), typed
