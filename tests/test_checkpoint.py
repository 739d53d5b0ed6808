"""States on disk: whole or refused, readable without us, and never the last good one lost to a bad disk."""

import ast
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from salt import checkpoint, disk
from salt.artefact import write_weights
from salt.attempts import begin_attempt, end_attempt
from salt.checkpoint import Origin, Packed, load_newest, pack, room_bytes, save
from salt.disk import WORDS, DiskFailed, remove_leftovers, require_room
from salt.errors import RunFailed
from salt.metrics import Metrics, read_metrics
from salt.processes import temporary
from salt.reached import Reached, ReachedFile, read_reached
from salt.spec_diff import differences
from salt.specs import spec_id
from salt.store import RunDir, file_sha256, pretty_json, write_atomically
from tests.console import ROOT
from tests.examples import run_spec

SPEC = run_spec("pixel", "nano", steps=100)


def state(run: RunDir, step: int, numbers: int = 8) -> Packed:
    tensors = {"weights": torch.full((numbers,), float(step)), "adam.exp_avg.0": torch.zeros(2, 2)}
    return pack(run, step, tensors, attempt=1, train_wall_s=0.5, origin=Origin(teacher_sha256="t"))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "store", spec_id(SPEC))
    write_atomically(found.spec, pretty_json(SPEC))
    return found


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def names(*steps: int) -> list[str]:
    return sorted(f"step-{step:08d}{suffix}" for step in steps for suffix in (".json", ".safetensors"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """`ulimit -f` of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- readable without us ----------------------------------------------------------------------------


def test_states_load_where_salt_is_not_importable(run: RunDir, tmp_path: Path) -> None:
    """safetensors and JSON alone; torch's own safe loader is not needed, and no pickle is read."""
    save(run, state(run, 7))
    checkpoint.keep(run, state(run, 9), pytest.fail)
    write_weights(run, SPEC, {"weights": torch.arange(3.0)}, "student", Origin())
    program = """
import hashlib, json, pathlib, sys
sys.modules["salt"] = None  # importing it fails, also where it is installed
import pickle
pickle.Unpickler = pickle.load = pickle.loads = None
from safetensors.numpy import load_file
for path in map(pathlib.Path, sys.argv[1:]):
    seal = json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == seal["sha256"]
    print(seal["step"], *load_file(path)["weights"])
"""
    paths = [str(run.checkpoints / "step-00000007.safetensors"), str(run.kept_state(9))]
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *paths], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"7{' 7.0' * 8}", f"9{' 9.0' * 8}"]


def test_nothing_of_a_store_is_ever_unpickled() -> None:
    """No call in the source that could: found in the syntax tree, so that comments do not count."""
    bad = []
    for package in ("salt", "slurm", "sweeps", "analysis"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                bad += [
                    (path.name, name)
                    for name in imported
                    if name.partition(".")[0] in ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal")
                ]
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                called = ast.unparse(node.func)
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                unsafe = (
                    called in ("torch.load", "pd.read_pickle", "pandas.read_pickle")
                    or (called == "np.load" and options.get("allow_pickle", "False") != "False")
                    or (called == "yaml.load" and not re.search("Safe|Base", options.get("Loader", "")))
                )
                bad += [(path.name, called)] if unsafe else []
    assert bad == []


# --- one good state stays ---------------------------------------------------------------------------


def test_older_ones_go_only_after_the_new_one_was_read_back(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20, 30):
        save(run, state(run, step))
    assert there(run.checkpoints) == names(20, 30)

    def flips(path: Path) -> str:
        """A disk that gives back other bytes than it took."""
        assert path.name.endswith(".tmp")  # before it has its name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return file_sha256(path)

    with monkeypatch.context() as patch:
        patch.setattr("salt.store.file_sha256", flips)
        with pytest.raises(DiskFailed, match="step-00000040.*what was read back is not what was written"):
            save(run, state(run, 40))
    assert there(run.checkpoints) == names(20, 30)
    found = load_newest(run, pytest.fail)
    assert found is not None
    assert found[0].step == 30
    save(run, state(run, 40))
    assert there(run.checkpoints) == names(30, 40)


def test_a_run_that_fell_back_drops_what_is_ahead_of_it(run: RunDir) -> None:
    """With another interval the next save is not the damaged one's: it must neither stay nor count."""
    save(run, state(run, 20))
    save(run, state(run, 30))
    (run.checkpoints / names(30)[1]).write_bytes(b"")
    save(run, state(run, 25))
    assert there(run.checkpoints) == names(20, 25)


DAMAGE = {
    "truncated": ("does not match its checksum", lambda path: os.truncate(path, 40)),
    "zero bytes": ("does not match its checksum", lambda path: os.truncate(path, 0)),
    "a seal without file": ("is damaged .*No such file", lambda path: path.unlink()),
    "a file without seal": ("has no seal", lambda path: path.with_suffix(".json").unlink()),
    "an empty seal": ("is damaged", lambda path: path.with_suffix(".json").write_bytes(b"")),
    "a wrong run": ("is sealed as that of run 0000", lambda path: reseal(path, run_id="0" * 16)),
    "a wrong step": ("is sealed as that of run .* at step 29", lambda path: reseal(path, step=29)),
    "a directory": ("is damaged .*directory", lambda path: (path.unlink(), path.mkdir())),
    "a file that may not be read": ("is damaged", lambda path: forbid(path)),
    "sealed, but no tensors": ("holds no tensors", lambda path: replace_all(path, b"not a tensor file")),
}


def reseal(path: Path, **fields: Any) -> None:
    seal = json.loads(path.with_suffix(".json").read_bytes()) | fields
    path.with_suffix(".json").write_text(json.dumps(seal))


def replace_all(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    reseal(path, sha256=hashlib.sha256(data).hexdigest())


def forbid(path: Path) -> None:
    """Root may read everything but a link to itself."""
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_newest_one_is_told_and_the_one_before_taken(damage: str, run: RunDir) -> None:
    words, spoil = DAMAGE[damage]
    save(run, state(run, 20))
    save(run, state(run, 30))
    newest, older = (run.checkpoints / names(step)[1] for step in (30, 20))
    spoil(newest)
    said: list[str] = []
    found = load_newest(run, said.append)
    assert found is not None
    seal, tensors = found
    assert (seal.step, float(tensors["weights"][0])) == (20, 20.0)
    assert len(said) == 1
    assert re.search(f"step-00000030.safetensors {words}", said[0])

    save(run, state(run, 30))  # what comes next takes its place, whatever is there
    again = load_newest(run, pytest.fail)
    assert again is not None
    assert again[0].step == 30
    if damage != "a file without seal":  # that one alone is a first save that was cut short
        spoil(run.checkpoints / names(30)[1])
        older.unlink()
        with pytest.raises(RunFailed, match="none of 2 checkpoints .* is valid.*--from-start"):
            load_newest(run, said.append)


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, state(run, 20))

    def refuses(_: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuses)
    with pytest.raises(RunFailed, match="ckpt cannot be read.*Permission denied"):
        load_newest(run, pytest.fail)


# --- disks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", sorted(WORDS))
def test_whatever_a_disk_says_is_one_error_in_words(
    number: int, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints, lines of metrics and the file of steps: old ones stay, nothing is left beside them."""
    save(run, state(run, 10))
    whole = there(run.checkpoints)

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    def refused(place: Path, write: Any, call: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            with pytest.raises(DiskFailed) as error:
                write()
        assert error.value.kind == "disk"
        assert (error.value.errno, error.value.filename) == (number, str(place))
        assert str(error.value).startswith(f"cannot write {place}: {WORDS[number][0]} (E")
        assert str(error.value).endswith(WORDS[number][1])
        assert errno.errorcode[number] in str(error.value)

    newer = run.checkpoints / names(20)[1]
    for call in ("fsync", "replace"):
        refused(newer, lambda: save(run, state(run, 20)), call)
        assert there(run.checkpoints) == whole
    first = Reached(attempt=1, step=0, wall_s=0.0, saved_step=None, burnt_steps=0, burnt_wall_s=0.0)
    with Metrics(run.metrics, 1) as metrics, ReachedFile(run.reached, first) as reached:
        metrics.write(1, loss=0.5)
        reached.note(1, 0.25, None)
        refused(run.metrics, lambda: metrics.write(2, loss=0.5), "write")
        refused(run.reached, lambda: reached.note(2, 0.5, None), "pwrite")
    assert [row["step"] for row in read_metrics(run.metrics)] == [1]
    now = read_reached(run.reached)
    assert now is not None
    assert (now.step, now.wall_s) == (1, 0.25)


def test_a_real_limit_stops_a_save_and_leaves_the_one_before(run: RunDir) -> None:
    """`ulimit -f` between two saves: the kernel's own refusal, in the middle of a file."""
    save(run, state(run, 10, numbers=50_000))
    with largest_file(64 * 1024), pytest.raises(DiskFailed, match=r"larger than allowed \(EFBIG\)"):
        save(run, state(run, 20, numbers=50_000))
    assert there(run.checkpoints) == names(10)
    found = load_newest(run, pytest.fail)
    assert found is not None
    assert found[1]["weights"].shape == (50_000,)


def test_lines_are_whole_or_torn_and_readers_pass_over_torn_ones_anywhere(run: RunDir) -> None:
    with Metrics(run.metrics, attempt=1) as metrics:
        for step in range(1, 4):
            metrics.write(step, loss=float(step))
        size = run.metrics.stat().st_size
        with largest_file(size + 20), pytest.raises(DiskFailed, match="metrics.jsonl.*EFBIG"):
            metrics.write(4, loss=4.0)
        assert run.metrics.stat().st_size == size + 20  # half of a line
    with Metrics(run.metrics, attempt=2) as metrics:
        metrics.write(4, loss=5.0, new_column=1)
    lines = run.metrics.read_bytes().split(b"\n")
    assert len(lines[3]) == 20
    lines[1] = lines[1][:9] + lines[1]  # cut, with the next line glued to it
    lines.insert(1, b"\xff\xfe" + b"[" * 100_000)
    run.metrics.write_bytes(b"\n".join(lines))
    rows = read_metrics(run.metrics)
    assert [(row["step"], row["attempt"], row["loss"]) for row in rows] == [
        (1, 1, 1.0), (3, 1, 3.0), (4, 2, 5.0)
    ]  # fmt: skip
    assert rows[-1]["new_column"] == 1


def test_metrics_that_were_removed_stop_the_run(run: RunDir) -> None:
    with Metrics(run.metrics, attempt=1) as metrics:
        metrics.write(1, loss=1.0)
        run.metrics.unlink()
        with pytest.raises(DiskFailed, match="was removed while the run wrote to it"):
            metrics.write(2, loss=1.0)


def test_a_store_that_vanished_is_not_made_anew(run: RunDir, tmp_path: Path) -> None:
    """As when a network disk is unmounted: its empty mount point must not take the next checkpoint."""
    save(run, state(run, 10))
    run.store.rename(tmp_path / "elsewhere")
    run.store.mkdir()
    with pytest.raises(DiskFailed, match=r"the folder is gone \(ENOENT\).*mounted"):
        checkpoint.store(run, lambda: state(run, 20), keeps=False, saves=True, warn=pytest.fail)
    assert there(run.store) == []


def test_room_is_asked_for_before_it_is_needed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three states at once, one for each step to keep, the encoder; less what is there."""
    keeps = run_spec("pixel", "nano", steps=100)
    assert room_bytes(run, keeps, 1000, 10, saves=9) == 3010
    assert room_bytes(run, keeps, 1000, 10, saves=1) == 1010
    save(run, state(run, 10))
    save(run, state(run, 20))
    assert room_bytes(run, keeps, 1000, 10, saves=9) == 1010

    require_room(run.path, 10**6, 10**6, "no room")
    assert not list(run.path.glob(".*"))
    free = disk.free_bytes(run.path)
    with pytest.raises(
        DiskFailed, match=rf"no room: {2 * free:,} bytes in .*, where .* are free, and no space"
    ):
        require_room(run.path, 2 * free, 10**6, "no room")
    with largest_file(10**5), pytest.raises(DiskFailed, match=r"1,000,000 bytes .*100,000.*`ulimit -f`"):
        require_room(run.path, 10**6, 10**6, "no room")
    with largest_file(10**5):
        require_room(run.path, 10**6, 10**5, "no room")  # in pieces
    monkeypatch.setattr(disk, "_fallocate", lambda *_: errno.EDQUOT)
    with pytest.raises(DiskFailed, match=r"the disk quota is used up \(EDQUOT\): free some room, or ask"):
        require_room(run.path, 10**6, 10**6, "no room")


def test_leftovers_of_dead_processes_go_and_nothing_else(run: RunDir) -> None:
    run.checkpoints.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, gone, alive = os.getpid(), dead.pid, os.getppid()
    left = [
        run.checkpoints / f".step-00000010.safetensors.{gone}.tmp",
        run.checkpoints / f".trial.{mine}.tmp",
        run.path / f".result.json.{gone}.tmp",
    ]
    left.append(run.path / temporary(run.path / "b").name.replace(f"-{mine}.", f"-{gone}."))
    stay = [
        run.path / f".error.json.{alive}.tmp",
        run.path / f".env.json.00000000-{gone}.tmp",  # of another machine, which cannot be asked
        run.path / ".claim.0123456789abcdef.tmp",
        run.checkpoints / "step-00000010.safetensors",
    ]
    for path in [*left, *stay]:
        path.write_bytes(b"x")
    assert remove_leftovers(run.path) == sorted(left)
    assert all(path.exists() for path in stay)
    os.utime(stay[0], (0, 0))  # whoever has its number now did not write it
    os.utime(stay[1], (0, 0))
    assert remove_leftovers(run.path) == sorted(stay[:2])


def test_what_a_kill_in_the_last_clean_up_left_goes_before_the_run_ends(run: RunDir) -> None:
    for step in (7, 14, 21):
        save(run, state(run, step))
    again = state(run, 7)
    (run.checkpoints / names(7)[1]).write_bytes(again.data)  # the clean-up removes the seal first
    checkpoint.prune(run, 28)  # no such checkpoint: nothing goes
    assert (run.checkpoints / names(7)[1]).exists()
    checkpoint.prune(run, 21)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == sorted([*names(14), *names(21)])


def test_an_attempt_does_not_make_a_store_anew_that_went_away(run: RunDir) -> None:
    begin_attempt(run, {})
    shutil.rmtree(run.path)
    with pytest.raises(DiskFailed, match="the folder is gone"):
        end_attempt(run, "done")
    assert not run.path.exists()


def test_specs_differ_field_by_field() -> None:
    old = {"lr": 1, "masks": [{"blocks": 8}], "gone": True, "flag": 1}
    new = {"lr": 1.0, "masks": [{"blocks": 2}], "label": "a→b", "flag": True}
    assert differences(old, new) == [
        "masks[0].blocks: 8 -> 2",
        'label: absent -> "a→b"',
        "flag: 1 -> true",
        "gone: true -> absent",
    ]
    assert differences([1, 2], [1]) == [": [1, 2] -> [1]"]


def test_tensors_come_back_bit_for_bit(run: RunDir) -> None:
    """Against the file's bytes read by the library, not by our loader."""
    odd = torch.tensor([0.1, -0.0, float("inf"), 1e-45])
    save(run, pack(run, 1, {"odd": odd}, attempt=1, train_wall_s=0.0, origin=Origin()))
    found = load_newest(run, pytest.fail)
    assert found is not None
    other = load((run.checkpoints / names(1)[1]).read_bytes())["odd"]
    for tensor in (found[1]["odd"], other):
        assert tensor.numpy().tobytes() == odd.numpy().tobytes()
