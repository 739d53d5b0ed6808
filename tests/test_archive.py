"""A study as one file: back in another store it gives the same numbers, and nothing hostile gets in."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
import salt_cli
from analysis.gather import gather
from analysis.gathered_file import read_gathered
from salt.errors import UserError
from salt.store import RunDir
from tests.synthetic import BUDGETS, Study, make_study

NAME = "研究 $x"
HOST, HOME = "gpu-node-17.cluster.example", "/home/ada/projects/clips"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study under an unkind name, with a run that failed and one that never ended."""
    made = make_study(
        tmp_path_factory.mktemp("store"),
        name=NAME,
        budgets=BUDGETS[1:],
        labels=("motion",),
        students=("micro",),
        teachers=("nano",),
    )
    run = made.cell("vjepa", seed=1, budget=BUDGETS[-1]).run_id
    made.fail(run, "data", f"{HOME}/a.mp4: cannot be decoded", step=3)
    for each in made.plan.runs[:3]:
        attempt = {
            "host": HOST,
            "node": HOST,
            "pid": "4711",
            "slurm_job": "99",
            "hardware": "cpu",
            "message": None,
        }
        RunDir(made.store, each.run_id).env.write_text(json.dumps({"attempts": [attempt]}))
    RunDir(made.store, made.cell("pixel", seed=2, budget=BUDGETS[-1]).run_id).result.unlink()
    return made


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert salt_cli.run("salt-analyze", [*argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def file(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "study.salt.tar.gz"
    about = said(capsys, "export", NAME, "--store", str(study.store), "--to", str(path))
    assert about["unfinished"] == sorted(
        study.cell(arm, seed=seed, budget=BUDGETS[-1]).run_id for arm, seed in (("vjepa", 1), ("pixel", 2))
    )
    assert about["bytes"] == path.stat().st_size
    return path


def test_another_store_gives_the_same_table(
    study: Study, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.salt.tar.gz"
    said(capsys, "export", NAME, "--store", str(study.store), "--to", str(again))
    assert again.read_bytes() == file.read_bytes()
    store = tmp_path / "elsewhere"
    first = said(capsys, "import", str(file), "--store", str(store))
    assert (first["plan"], first["new_runs"], first["runs_there"]) == (NAME, len(study.plan.runs), 0)
    want = gather(study.store, NAME)
    pd.testing.assert_frame_equal(gather(store, NAME), want, check_exact=True)
    second = said(capsys, "import", str(file), "--store", str(store))
    assert (second["new_runs"], second["runs_there"]) == (0, len(study.plan.runs))
    assert not [path for path in store.iterdir() if path.name.startswith(".")]

    loaded = analysis.load(file)
    pd.testing.assert_frame_equal(loaded.table, want, check_exact=True)
    with tarfile.open(file) as tar:
        tar.extract("gathered.csv", tmp_path, filter="data")
        names = tar.getnames()
    pd.testing.assert_frame_equal(read_gathered(tmp_path / "gathered.csv"), want, check_exact=True)
    assert not [name for name in names if "ckpt" in name or name.endswith(".safetensors")]


def test_weights_come_only_when_asked_for(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(study.store, study.plan.runs[0].run_id)
    run.artefact.write_bytes(b"weights" * 1000)
    path = tmp_path / "with.salt.tar.gz"
    said(capsys, "export", NAME, "--store", str(study.store), "--to", str(path), "--weights")
    said(capsys, "import", str(path), "--store", str(tmp_path / "other"))
    assert RunDir(tmp_path / "other", run.run_id).artefact.read_bytes() == b"weights" * 1000
    run.artefact.unlink()


def test_anonymous_names_neither_machines_nor_folders(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "anonymous.salt.tar.gz"
    said(capsys, "export", NAME, "--store", str(study.store), "--to", str(path), "--anonymous")
    with gzip.open(path) as whole:
        text = whole.read().decode(errors="replace")
    for secret in (HOST, HOME, "4711", str(study.store)):
        assert secret not in text
    assert '"host": "host1"' in text
    assert "a.mp4: cannot be decoded" in text
    want = gather(study.store, NAME)
    columns = [name for name in want.columns if name != "reason"]
    pd.testing.assert_frame_equal(analysis.load(path).table[columns], want[columns], check_exact=True)


def test_what_is_there_is_never_replaced(
    study: Study, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    said(capsys, "import", str(file), "--store", str(store))
    cell = study.cell("salt", seed=0, budget=BUDGETS[-1], teacher="nano")
    probe = next(RunDir(store, cell.run_id).probes.iterdir())
    probe.write_text(probe.read_text().replace("0.", "0.0", 1))
    running = RunDir(store, study.cell("pixel", seed=0, budget=BUDGETS[-1]).run_id)
    running.result.unlink()
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert salt_cli.run("salt-analyze", ["import", str(file), "--store", str(store)]) == 2
    told = capsys.readouterr().err
    assert f"run {cell.run_id}: probes/{probe.name}" in told
    assert f"run {running.run_id} has been started there" in told
    assert "--store DIR" in told
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


Members = list[tuple[tarfile.TarInfo, bytes]]


def rewritten(file: Path, change: Callable[[Members], None]) -> Path:
    """A copy of an archive with its members changed."""
    with tarfile.open(file) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    change(members)
    out = file.with_name("changed.salt.tar.gz")
    with tarfile.open(out, "w:gz") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return out


def _listed(members: Members, name: str, data: bytes) -> None:
    """A file of that name, in the list at the head too."""
    import hashlib

    head, text = members[0]
    contents = json.loads(text)
    contents["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(contents).encode()
    head.size = len(text)
    members[0] = (head, text)
    member = tarfile.TarInfo(name)
    member.size = len(data)
    members.append((member, data))


def _unlisted(members: Members) -> None:
    member = tarfile.TarInfo("runs/00/extra/spec.json")
    members.append((member, b""))


def _link(members: Members) -> None:
    member, data = members[3]
    member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
    members[3] = (member, data)


def _other_bytes(members: Members) -> None:
    member, data = members[3]
    members[3] = (member, data[:-1] + b"!")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: _listed(members, "../../outside.txt", b"x"), "no name of a file of a study"),
        (lambda members: _listed(members, "/outside.txt", b"x"), "no name of a file of a study"),
        (lambda members: _listed(members, "plans/other/plan.jsonl", b"x"), "no name of a file of a study"),
        (lambda members: _listed(members, "GATHERED.csv", b"x"), "no name of a file of a study"),
        (_unlisted, "is not as the archive's own list says"),
        (_link, "is not as the archive's own list says"),
        (_other_bytes, "sha256 differs"),
        (lambda members: members.pop(), "ends too early"),
        (lambda members: members.insert(0, members.pop()), "not an archive of salt"),
    ],
    ids=["up", "absolute", "another plan", "another case", "unlisted", "link", "bytes", "short", "no list"],
)
def test_hostile_archives_are_refused_and_leave_nothing(
    file: Path, tmp_path: Path, change: Callable[[Members], None], words: str
) -> None:
    bad = rewritten(file, change)
    store = tmp_path / "store"
    with pytest.raises(UserError, match=words):
        analysis.load(bad)
    from analysis.archive_import import import_study

    with pytest.raises(UserError, match=words):
        import_study(bad, store)
    assert list(store.iterdir()) == []
    assert not (tmp_path / "outside.txt").exists()


def test_a_cut_file_and_what_is_no_archive(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.salt.tar.gz"
    cut.write_bytes(file.read_bytes()[:-2000])
    other = tmp_path / "other.salt.tar.gz"
    other.write_bytes(b"PK\x03\x04 something else")
    for path in (cut, other, tmp_path / "none.salt.tar.gz"):
        with pytest.raises(UserError, match=r"damaged|too early|not there"):
            analysis.load(path)
