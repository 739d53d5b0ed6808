"""Code that was submitted stays what it was; where it came from is known, with git and without."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from salt import provenance
from salt.code_identity import code_files, tree_sha256
from salt.provenance import attempt_provenance, git_source, source_of_running_code
from slurm.snapshot import DIFF_FILE, old_snapshots, take_snapshot
from slurm.submission import worker_environment
from tests.drain_kit import ROOT

GIT = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b.c",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b.c",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of our code, without a repository."""
    root = tmp_path / "tree"
    for name, path in code_files(ROOT):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return root


@pytest.fixture
def repository(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, committed."""
    for name, value in GIT.items():
        monkeypatch.setenv(name, value)
    for arguments in (["init", "-q", "-b", "study"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(tree), *arguments], check=True, timeout=60)
    return tree


def python(code: str, folder: Path, *arguments: str, cwd: Path | None = None) -> str:
    """What Python code prints that imports salt from `folder`, as a worker does."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env=worker_environment(1, folder),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_edits_after_a_submission_do_not_reach_it(repository: Path, tmp_path: Path) -> None:
    """Case 30: submitted dirty, edited afterwards; the snapshot's code runs, and says what it is."""
    loss = repository / "salt" / "objectives.py"
    original = loss.read_text()
    loss.write_text(f"{original}\nTRIED = 'first'\n")
    (repository / "salt" / "new_idea.py").write_text("IDEA = 1\n")
    (repository / "notes.txt").write_text("not code\n")
    snapshot = take_snapshot(tmp_path / "store", repository)
    loss.write_text(f"{original}\nTRIED = 'second'\n")
    code = "import salt.objectives as o, salt.new_idea; print(o.TRIED, o.__file__)"
    said = python(code, snapshot.folder, cwd=repository)
    assert said == f"first {snapshot.folder / 'salt' / 'objectives.py'}"

    source = snapshot.provenance.source
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (source.commit, source.branch, source.dirty) == (head, "study", True)
    assert source.untracked == ("salt/new_idea.py",)
    assert "+TRIED = 'first'" in (snapshot.folder / DIFF_FILE).read_text()
    assert snapshot.provenance.packages["torch"].startswith("2.")
    told = python(
        "import json; from salt.provenance import attempt_provenance as a; print(json.dumps(a()))",
        snapshot.folder,
    )
    assert json.loads(told)["git_commit"] == f"{head}-dirty", "a snapshot has no repository, and need not"
    assert json.loads(told)["code_sha256"] == snapshot.provenance.code_sha256

    again = take_snapshot(tmp_path / "store", repository)
    assert again.folder != snapshot.folder
    assert old_snapshots(tmp_path / "store", [again.folder]) == [snapshot.folder]


def test_clean_code_has_no_difference(repository: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "store", repository)
    assert snapshot.provenance.source.dirty is False
    assert snapshot.provenance.diff == "none"
    assert not (snapshot.folder / DIFF_FILE).exists()


@pytest.mark.parametrize("way", ["no repository", "refused", "not installed"])
def test_without_git_the_source_is_unknown_and_all_else_works(
    way: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root: Path = request.getfixturevalue("repository" if way != "no repository" else "tree")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    if way == "refused":  # as safe.directory does with a folder of somebody else
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    if way == "not installed":
        monkeypatch.setenv("PATH", str(tmp_path))
    source = git_source(root)
    assert str(source) == "unknown"
    wanted = {
        "no repository": "not a git repository",
        "refused": "dubious ownership",
        "not installed": "not inst",
    }
    assert wanted[way] in str(source.problem)
    snapshot = take_snapshot(tmp_path / "store", root)
    assert snapshot.provenance.source == source
    assert snapshot.provenance.diff is None
    assert tree_sha256(snapshot.folder) == tree_sha256(root)


def test_a_hash_is_of_names_and_contents(tree: Path) -> None:
    before = tree_sha256(tree)
    (tree / "salt" / "__pycache__").mkdir()
    (tree / "salt" / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert tree_sha256(tree) == before
    file = tree / "salt" / "flops.py"
    text = file.read_bytes()
    file.write_bytes(text.replace(b"2", b"3", 1))
    assert tree_sha256(tree) != before
    file.write_bytes(text)
    assert tree_sha256(tree) == before
    file.rename(tree / "salt" / "flops2.py")
    assert tree_sha256(tree) != before


def test_snapshots_taken_at_once_are_one_and_a_damaged_one_is_mended(tree: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    code = (
        "import sys; from pathlib import Path; from slurm.snapshot import take_snapshot;"
        "sys.stdin.readline(); print(take_snapshot(Path(sys.argv[1])).folder)"
    )
    takers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(store)],
            env=worker_environment(1, tree),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    told = {taker.communicate("go\n", timeout=120)[0].strip() for taker in takers}
    assert len(told) == 1
    folder = Path(told.pop())
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    (folder / "salt" / "flops.py").write_text("damaged")
    assert take_snapshot(store, tree).folder == folder
    assert tree_sha256(folder) == tree_sha256(tree)


def test_a_snapshot_of_a_snapshot_keeps_what_is_known(repository: Path, tmp_path: Path) -> None:
    (repository / "salt" / "new_idea.py").write_text("IDEA = 1\n")
    first = take_snapshot(tmp_path / "store", repository)
    second = take_snapshot(tmp_path / "other", first.folder)
    assert second.folder.name == first.folder.name
    assert second.provenance == first.provenance


def test_an_attempt_tells_its_node_and_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURMD_NODENAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    outside = attempt_provenance()
    assert outside["node"] == outside["host"]
    assert outside["slurm_job"] is None
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    assert attempt_provenance()["slurm_job"] == "99"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "98")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    inside = attempt_provenance()
    assert (inside["node"], inside["slurm_job"]) == ("gpu07", "98_3")


def test_git_that_hangs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_LIMIT_S", 0.2)
    source_of_running_code.cache_clear()
    assert "did not answer" in str(git_source(ROOT).problem)
