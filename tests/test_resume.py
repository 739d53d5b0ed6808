"""A run that was stopped, killed or refused goes on as the run it was, or says why it cannot."""

import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

import salt.train
from salt import probe as probing
from salt import run as running
from salt import sources
from salt.artefact import read_about
from salt.checkpoint import load_newest
from salt.errors import Interrupted, RunFailed
from salt.flops import run_cost, step_cost
from salt.learner import Learner
from salt.metrics import read_metrics
from salt.optim import build_optimizer, rates
from salt.plan_specs import PlannedRun
from salt.prepare import check_frozen, next_crops
from salt.reached import read_reached
from salt.signals import STOP
from salt.specs import ExecSpec, ProbeSpec, RunSpec, spec_id
from salt.store import RunDir, pretty_json, write_atomically
from salt.train import train
from salt.world import join
from tests import probe_kit
from tests.arms_kit import CLIP, LONG, SHORT, data_of, mixture, run_spec, write_clips
from tests.console import ROOT

STEPS, KILLED_IN, RESTORED = 13, 8, 6
EXECUTION = ExecSpec(checkpoint_every_steps=3, log_every_steps=1, decode_workers=0)
STREAMED = replace(CLIP, source="streamed", clips_per_file=2, flip=True)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Lists:
    """Twelve videos, and six with four pictures: an epoch is no whole number of batches of eight."""

    def __init__(self, folder: Path) -> None:
        self.videos = write_clips(folder / "videos")
        self.mixed = write_clips(folder / "mixed", clips=6, images=4, first=20)
        self.paths = {data_of(path).fingerprint: str(path) for path in (self.videos, self.mixed)}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Lists:
    return Lists(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def decoded(lists: Lists, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with decoded clips and the teachers of the cases below."""
    store = tmp_path_factory.mktemp("decoded")
    for teacher in (teacher_of(lists), teacher_of(lists, clip=STREAMED)):
        go(store, teacher, lists)
    return store


def teacher_of(lists: Lists, **fields: Any) -> RunSpec:
    return run_spec("pixel", data_of(lists.videos), steps=2, **fields)


CASES: dict[str, tuple[Callable[[Lists], RunSpec], int]] = {
    "pixel, streamed mixture, no workers": (
        lambda lists: run_spec(
            "pixel", mixture({lists.videos: 2.0, lists.mixed: 1.0}), clip=STREAMED, steps=STEPS
        ),
        0,
    ),
    "vjepa, streamed, two workers": (
        lambda lists: run_spec("vjepa", data_of(lists.mixed), clip=STREAMED, steps=STEPS),
        2,
    ),
    "vjepa, stored": (lambda lists: run_spec("vjepa", data_of(lists.videos), steps=STEPS), 0),
    "salt, cached views": (
        lambda lists: run_spec(
            "salt", data_of(lists.videos), teacher=teacher_of(lists), cached_views=2, steps=STEPS
        ),
        0,
    ),
    "salt and pixels, streamed, no workers": (
        lambda lists: run_spec(
            "salt", data_of(lists.videos), clip=STREAMED, teacher=teacher_of(lists, clip=STREAMED),
            objective={"pixel_weight": 0.5}, steps=STEPS,
        ),
        0,
    ),
}  # fmt: skip


def go(
    store: Path,
    spec: RunSpec,
    lists: Lists,
    attempt: int = 1,
    execution: ExecSpec = EXECUTION,
    warn: Callable[[str], None] = pytest.fail,
    **more: Any,
) -> RunDir:
    run = RunDir(store, spec_id(spec))
    write_atomically(run.spec, pretty_json(spec))
    execution = replace(execution, lists=execution.lists or lists.paths)
    opened = sources.open_sources(store, spec, execution)
    train(spec, run, opened, execution, attempt, warn, join(execution), **more)
    return run


@contextmanager
def at(step: int, act: Callable[[], None]) -> Iterator[None]:
    """`act` at the begin of a step."""

    def acts(spec: RunSpec, now: int) -> Any:
        if now == step:
            act()
        return rates(spec, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(salt.train, "rates", acts)
        yield


def die() -> None:
    raise Killed


def kill(step: int, *arguments: Any, **options: Any) -> None:
    with at(step, die), pytest.raises(Killed):
        go(*arguments, **options)


def copy_of(store: Path, target: Path) -> Path:
    return Path(shutil.copytree(store, target, symlinks=True))


def digests(run: RunDir, step: int = STEPS) -> dict[str, str]:
    """Of the whole state after the last step, weights, averages and moments; and of the encoder."""
    state = run.kept_state(step)
    tensors = load_file(state)
    assert any(name.startswith("adam.exp_avg_sq.") for name in tensors)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (state, run.artefact)}


def told(run: RunDir) -> list[dict[str, Any]]:
    """What the lines say of the run, not of the machine."""
    of_the_machine = ("attempt", "wall_s", "_s", "share", "utilisation", "burnt_")
    return [
        {name: value for name, value in row.items() if not any(part in name for part in of_the_machine)}
        for row in read_metrics(run.metrics)
    ]


# --- the same run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_sees_the_same_and_ends_the_same(
    name: str, lists: Lists, decoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips, crops and masks of every step, schedules, losses, moments, averages, weights: bit for bit."""
    make, workers = CASES[name]
    spec = replace(make(lists), keep_steps=(STEPS,))
    execution = replace(EXECUTION, decode_workers=workers)
    seen: list[tuple[Any, ...]] = []
    masks = Learner.masks

    def noted(loader: Any, world: Any) -> torch.Tensor:
        crops = next_crops(loader, world)
        seen.append((*loader.indices.tolist(), hashlib.sha256(crops.numpy().tobytes()).hexdigest()))
        return crops

    def masked(self: Learner, step: int, places: range) -> Any:
        found = masks(self, step, places)
        drawn = [tensor for pair in zip(found.visible, found.target, strict=True) for tensor in pair]
        seen.append((step, *(hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in drawn)))
        return found

    monkeypatch.setattr(salt.train, "next_crops", noted)
    monkeypatch.setattr(Learner, "masks", masked)
    whole = go(copy_of(decoded, tmp_path / "whole"), spec, lists, execution=execution)
    straight, seen = seen, []
    cut = copy_of(decoded, tmp_path / "cut")
    kill(KILLED_IN, cut, spec, lists, execution=execution)
    assert seen == straight[: 2 * KILLED_IN]
    seen = []
    resumed = go(cut, spec, lists, attempt=2, execution=execution)
    assert seen == straight[2 * RESTORED :]
    assert len({entry[:-1] for entry in straight[::2]}) > 2  # batches differ
    assert digests(resumed) == digests(whole)
    assert told(resumed) == told(whole)
    assert [row["attempt"] for row in read_metrics(resumed.metrics)] == [1] * 6 + [2] * 7


def test_reading_a_run_back_unpickles_nothing(lists: Lists, decoded: Path, tmp_path: Path) -> None:
    """By the interpreter's own account of what looks a class up for a pickle."""
    store = copy_of(decoded, tmp_path / "store")
    spec = run_spec("salt", data_of(lists.videos), teacher=teacher_of(lists), cached_views=2, steps=STEPS)
    kill(KILLED_IN, store, spec, lists)
    looked_up: list[str] = []
    listens = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if listens and event == "pickle.find_class":
            looked_up.append(str(arguments))

    sys.addaudithook(hook)
    try:
        go(store, spec, lists, attempt=2)
    finally:
        listens = False
    assert looked_up == []


def test_a_stop_saves_between_two_steps_and_costs_nothing(
    lists: Lists, decoded: Path, tmp_path: Path
) -> None:
    spec = replace(run_spec("vjepa", data_of(lists.videos), steps=STEPS), keep_steps=(STEPS,))
    whole = go(copy_of(decoded, tmp_path / "whole"), spec, lists)
    cut = copy_of(decoded, tmp_path / "cut")
    run = RunDir(cut, spec_id(spec))

    def stopped(step: int | None, saved: bool, attempt: int, asked_in: int | None) -> None:
        try:
            with at(-1 if asked_in is None else asked_in, lambda: STOP.ask(signal.SIGTERM)):
                if asked_in is None:
                    STOP.ask(signal.SIGUSR1)
                with pytest.raises(Interrupted) as error:
                    go(cut, spec, lists, attempt=attempt)
        finally:
            STOP.clear()
        assert (error.value.step, error.value.saved) == (step, saved)

    stopped(0, False, 1, asked_in=None)  # before the first step: nothing to save
    assert not run.metrics.exists() or not read_metrics(run.metrics)
    stopped(5, True, 2, asked_in=4)
    found = load_newest(run, pytest.fail)
    assert found is not None
    assert found[0].step == 5
    stopped(5, True, 3, asked_in=None)  # again at once: that state is there already
    stopped(6, True, 4, asked_in=5)  # a step that has a checkpoint anyway
    resumed = go(cut, spec, lists, attempt=5)
    assert digests(resumed) == digests(whole)
    assert told(resumed) == told(whole)
    last = read_metrics(run.metrics)[-1]
    assert (last["burnt_steps"], last["burnt_flops"], last["burnt_wall_s"]) == (0, 0, 0.0)


TWO_RANKS = """
import os, sys
from pathlib import Path
from tests.test_resume import Interrupted, Lists, STOP, at, data_of, go, run_spec
lists = Lists.__new__(Lists)
lists.videos = Path(sys.argv[2])
spec = run_spec("vjepa", data_of(lists.videos), steps=13)
lists.paths = {spec.data.fingerprint: sys.argv[2]}
try:
    with at(4, lambda: STOP.ask(15) if os.environ["RANK"] == "1" else None):
        go(Path(sys.argv[1]), spec, lists)
except Interrupted as error:
    print(error)
    sys.stdout.flush()
    os._exit(130)
"""


def test_a_signal_to_one_rank_stops_and_saves_all(lists: Lists, decoded: Path, tmp_path: Path) -> None:
    store = copy_of(decoded, tmp_path / "store")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(store), str(lists.videos)],
            cwd=ROOT, env={**os.environ, **meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (130, "stopped after step 5; its state is saved\n"), err
    spec = run_spec("vjepa", data_of(lists.videos), steps=STEPS)
    resumed = go(store, spec, lists, attempt=2)
    assert [row["attempt"] for row in read_metrics(resumed.metrics)] == [1] * 5 + [2] * 8
    whole = load_file(go(copy_of(decoded, tmp_path / "whole"), spec, lists).artefact)
    for name, tensor in load_file(resumed.artefact).items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-5, rtol=0)


def test_how_a_run_executes_may_change_on_the_way(lists: Lists, decoded: Path, tmp_path: Path) -> None:
    """Intervals, workers, another place of the store and of the videos: the same bits under the same id."""
    spec = run_spec("pixel", data_of(lists.videos), clip=STREAMED, steps=STEPS, keep_steps=(STEPS,))
    whole = go(tmp_path / "whole", spec, lists)
    kill(KILLED_IN, tmp_path / "cut", spec, lists)
    moved = Lists.__new__(Lists)
    moved.videos = Path(shutil.copytree(lists.videos.parent, tmp_path / "other")) / "list.csv"
    moved.paths = {spec.data.fingerprint: str(moved.videos)}
    changed = replace(EXECUTION, decode_workers=1, log_every_steps=5, checkpoint_every_steps=4)
    (tmp_path / "cut").rename(tmp_path / "renamed")
    copied = copy_of(tmp_path / "renamed", tmp_path / "copied")
    resumed = go(tmp_path / "renamed", spec, moved, attempt=2, execution=changed)
    assert digests(resumed) == digests(whole)
    assert [row["step"] for row in read_metrics(resumed.metrics)] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 13]

    pieces = go(copied, spec, lists, attempt=2, execution=replace(EXECUTION, micro_batch_clips=2))
    ours, theirs = load_file(pieces.artefact), load_file(whole.artefact)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=0)


# --- not silently from the start --------------------------------------------------------------------


def test_a_run_that_lost_its_states_never_starts_over_unasked(
    lists: Lists, decoded: Path, tmp_path: Path
) -> None:
    spec = run_spec("pixel", data_of(lists.videos), steps=STEPS)
    store = copy_of(decoded, tmp_path / "store")
    run = RunDir(store, spec_id(spec))
    kill(2, store, spec, lists)  # before its first checkpoint: starts again by itself
    kill(KILLED_IN, store, spec, lists, attempt=2)
    assert [row["attempt"] for row in read_metrics(run.metrics)] == [2] * KILLED_IN
    whole = go(copy_of(store, tmp_path / "whole"), spec, lists, attempt=3)

    def refused(words: str, **options: Any) -> None:
        before = run.metrics.read_bytes()
        with pytest.raises(RunFailed, match=words) as error:
            go(store, spec, lists, attempt=3, **options)
        assert error.value.kind == "checkpoint"
        assert "--from-start" in str(error.value)
        assert run.metrics.read_bytes() == before

    shutil.rmtree(run.checkpoints)
    refused(r"no checkpoint in .*ckpt, but reached.json tells of one at step 6: .*--from-start")
    run.reached.unlink()
    refused(r"metrics.jsonl has lines up to step 8, past the one at 3")
    far = replace(EXECUTION, checkpoint_every_steps=50)
    kill(4, copy_of(store, tmp_path / "far"), spec, lists, attempt=3, execution=far)  # none was due so
    run.result.write_text("{}")
    run.metrics.unlink()
    run.metrics.write_bytes(b"")
    refused("but result.json is there")
    run.result.unlink()
    write_atomically(run.kept_state(4).with_suffix(".json"), b"{}")
    refused("but kept/ has step-00000004.json", warn=lambda _: None)

    said: list[str] = []
    again = go(store, spec, lists, attempt=3, warn=said.append, from_start=True)
    assert "starting over, as asked" in said[-1]
    assert read_about(again) == read_about(whole)
    again.artefact.unlink()
    for path in again.checkpoints.glob("*.safetensors"):
        path.write_bytes(b"")
    refused("none of 2 checkpoints .* is valid", warn=said.append)
    assert read_about(go(store, spec, lists, 4, warn=said.append, from_start=True)) == read_about(whole)


def test_a_kept_state_is_as_good_as_a_checkpoint(lists: Lists, decoded: Path, tmp_path: Path) -> None:
    spec = run_spec("vjepa", data_of(lists.videos), steps=STEPS, keep_steps=(4, STEPS))
    whole = go(copy_of(decoded, tmp_path / "whole"), spec, lists)
    cut = copy_of(decoded, tmp_path / "cut")
    kill(KILLED_IN, cut, spec, lists)
    shutil.rmtree(RunDir(cut, spec_id(spec)).checkpoints)
    said: list[str] = []
    resumed = go(cut, spec, lists, attempt=2, warn=said.append)
    assert said == [f"no checkpoint of run {resumed.run_id}; going on from its kept state at step 4"]
    assert digests(resumed) == digests(whole)


def planned_of(spec: RunSpec, *probe_ids: str) -> PlannedRun:
    return PlannedRun(
        run_id=spec_id(spec), role="student", spec=spec, cost=run_cost(spec), probe_ids=probe_ids
    )


def test_a_spec_that_was_edited_is_refused_field_by_field(
    lists: Lists, decoded: Path, tmp_path: Path
) -> None:
    spec = run_spec("pixel", data_of(lists.videos), steps=STEPS, masks=(SHORT, LONG))
    store, execution = copy_of(decoded, tmp_path / "store"), replace(EXECUTION, lists=lists.paths)
    run = RunDir(store, spec_id(spec))
    kill(KILLED_IN, store, spec, lists)
    whole = run.spec.read_bytes()

    def refused(*lines: str, planned: PlannedRun | None = None) -> None:
        with pytest.raises(RunFailed) as error:
            running.execute(store, planned or planned_of(spec), {}, execution)
        assert error.value.kind == "code"
        assert str(error.value).splitlines()[1:-1] == [f"  {line}" for line in lines]
        assert "edited by hand, or written by another version" in str(error.value)

    fields = json.loads(whole)
    fields["optim"]["lr"] = 0.5
    fields["masks"][1]["blocks"] = 3
    fields["from_another_version"] = [1]
    del fields["cached_views"]
    run.spec.write_text(json.dumps(fields))
    refused(
        "masks[1].blocks: 3 -> 2",
        "optim.lr: 0.5 -> 0.003",
        "cached_views: absent -> null",
        "from_another_version: [1] -> absent",
    )
    run.spec.write_bytes(whole)
    edited = msgspec.structs.replace(planned_of(spec), spec=replace(spec, seed=7))
    refused("seed: 1 -> 7", planned=edited)
    run.spec.write_bytes(json.dumps(json.loads(whole), indent=7).encode())  # said otherwise, meant the same
    running.execute(store, planned_of(spec), {}, execution)
    assert run.read_result() is not None


# --- what was burnt ---------------------------------------------------------------------------------


def test_what_attempts_burnt_is_known_to_the_step(lists: Lists, decoded: Path, tmp_path: Path) -> None:
    """Also of one that was killed before its first line, and of one that fell back further."""
    spec = run_spec("pixel", data_of(lists.videos), steps=STEPS)
    store = copy_of(decoded, tmp_path / "store")
    seldom = replace(EXECUTION, log_every_steps=7)
    run = RunDir(store, spec_id(spec))
    kill(11, store, spec, lists, 1, seldom)  # from 0; 11 done, 9 saved
    kill(10, store, spec, lists, 2, seldom)  # from 9; 1 done, no line
    (run.checkpoints / "step-00000009.safetensors").write_bytes(b"")
    kill(7, store, spec, lists, 3, seldom, warn=lambda _: None)  # from 6; 1 done, its line at 7
    kill(6, store, spec, lists, 4, seldom, warn=lambda _: None)  # from 6; nothing done
    reached = read_reached(run.reached)
    assert reached is not None
    assert (reached.step, reached.saved_step) == (6, 6)
    go(store, spec, lists, 5, seldom, warn=lambda _: None)
    last = read_metrics(run.metrics)[-1]
    burnt = (11 - 9) + (10 - 6) + (7 - 6) + 0
    assert (last["step"], last["attempt"], last["burnt_steps"]) == (STEPS, 5, burnt)
    assert last["burnt_flops"] == burnt * step_cost(spec).total_flops
    assert last["flops"] == run_cost(spec).total_flops  # what was burnt is not in what the run cost
    assert 0.0 < last["burnt_wall_s"] < 60.0

    run.artefact.unlink()
    run.reached.unlink()  # attempt 6 left neither: nobody knows, and nobody guesses
    go(store, spec, lists, 7, seldom, warn=lambda _: None)
    last = read_metrics(run.metrics)[-1]
    assert (last["attempt"], last["burnt_steps"], last["burnt_flops"]) == (7, None, None)


# --- disks ------------------------------------------------------------------------------------------


def limit(size: int | None) -> None:
    """`ulimit -f` of this process; None lifts it."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY if size is None else size, hard))


def test_too_little_room_is_told_before_the_first_step_and_later_stops_in_time(
    lists: Lists, decoded: Path, tmp_path: Path
) -> None:
    spec = run_spec("pixel", data_of(lists.videos), steps=STEPS)
    store, execution = copy_of(decoded, tmp_path / "store"), replace(EXECUTION, lists=lists.paths)
    run = RunDir(store, spec_id(spec))

    def fails(words: str, action: Callable[[], None], step: int) -> None:
        try:
            if step < 0:
                action()
            with at(step, action), pytest.raises(RunFailed, match=words) as error:
                running.execute(store, planned_of(spec), {}, execution)
        finally:
            limit(None)
        assert error.value.kind == "disk"
        recorded = run.read_error()
        assert recorded is not None
        assert (recorded.kind, recorded.message) == ("disk", str(error.value))
        assert not list(run.path.rglob("*.tmp"))

    fails(
        r"no room .*: a file of [\d,]+ bytes in .*files of 50,000 bytes .*`ulimit -f`",
        lambda: limit(50_000),
        -1,
    )
    assert not run.metrics.exists()
    assert not list(run.checkpoints.glob("*"))
    fails(r"step-00000009.safetensors: .*larger than allowed \(EFBIG\)", lambda: limit(50_000), 7)
    found = load_newest(run, pytest.fail)
    assert found is not None
    assert found[0].step == 6
    running.execute(store, planned_of(spec), {}, execution)
    whole = go(copy_of(decoded, tmp_path / "whole"), spec, lists)
    assert read_about(run) == read_about(whole)
    result, last = run.read_result(), read_metrics(run.metrics)[-1]
    assert result is not None
    assert (result.attempts, last["burnt_steps"]) == (3, 3)  # steps 7 to 9
    assert last["save_s"] > 0


def test_the_store_going_away_stops_the_run(lists: Lists, decoded: Path, tmp_path: Path) -> None:
    spec = run_spec("pixel", data_of(lists.videos), steps=STEPS)
    store = copy_of(decoded, tmp_path / "store")
    seldom = replace(EXECUTION, log_every_steps=50)
    with (
        at(7, lambda: (store.rename(tmp_path / "away"), None)[1]),
        pytest.raises(RunFailed, match=r"the folder is gone \(ENOENT\)") as error,
    ):
        go(store, spec, lists, execution=seldom)
    assert error.value.kind == "disk"
    assert not store.exists()


# --- teachers ---------------------------------------------------------------------------------------


def test_a_teacher_that_is_not_frozen_is_refused(lists: Lists, decoded: Path, tmp_path: Path) -> None:
    spec = run_spec("salt", data_of(lists.videos), teacher=teacher_of(lists), steps=STEPS)
    learner, vjepa = Learner(spec), Learner(run_spec("vjepa", data_of(lists.videos)))
    learner.teacher = Learner(teacher_of(lists)).encoder
    learner.teacher.eval()

    def refused(words: str, optimizer: torch.optim.AdamW) -> None:
        with pytest.raises(RunFailed, match=words) as error:
            check_frozen(learner, optimizer)
        assert error.value.kind == "teacher"

    refused("ask for gradients", build_optimizer(learner.trained, spec.optim))
    refused("are in the optimizer", build_optimizer([*learner.trained, learner.teacher], spec.optim))
    learner.teacher.requires_grad_(False)
    learner.teacher.train()
    refused("are in training mode", build_optimizer(learner.trained, spec.optim))
    learner.teacher.eval()
    check_frozen(learner, build_optimizer(learner.trained, spec.optim))
    check_frozen(vjepa, build_optimizer(vjepa.trained, spec.optim))

    store = copy_of(decoded, tmp_path / "store")
    update = Learner.update_teacher

    def nudges(self: Learner, momentum: float) -> None:
        update(self, momentum)
        assert self.teacher is not None
        next(self.teacher.parameters()).data.add_(1e-6)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update_teacher", nudges)
        with pytest.raises(RunFailed, match="weights changed during training"):
            go(store, spec, lists)
    assert not RunDir(store, spec_id(spec)).artefact.exists()


# --- probes -----------------------------------------------------------------------------------------


def test_probes_go_on_where_they_were_killed(
    lists: Lists, decoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two suites, and inside one: what was written stays, the rest comes out the same."""
    spec = replace(probe_kit.RUN, seed=3)
    opened = probe_kit.clips()
    suites = {
        f"suite{n}": probe_kit.suite(kinds=("linear", "attentive"), attentive_blocks=1, seed=n)
        for n in range(3)
    }
    monkeypatch.setattr(sources, "open_stored", lambda _s, _c, fingerprint, _e: opened[fingerprint])
    monkeypatch.setattr(
        sources, "open_sources", lambda *_: {spec.data.fingerprint: probe_kit.moving(spec.data.clips, 9)}
    )

    def execute(store: Path) -> RunDir:
        running.execute(store, planned_of(spec, *suites), suites, EXECUTION)
        return RunDir(store, spec_id(spec))

    def scores(run: RunDir) -> list[Any]:
        found = [json.loads(run.probe(name).read_bytes()) for name in suites]
        return [{name: value for name, value in suite.items() if name != "wall_s"} for suite in found]

    whole = execute(tmp_path / "whole")
    cut = RunDir(tmp_path / "cut", spec_id(spec))
    run_probes, attentive, calls = probing.run_probes, probing.attentive_probe, iter(range(100))

    def between(suite: ProbeSpec, *rest: Any) -> Any:
        return die() if suite.seed == 1 else run_probes(suite, *rest)

    def inside(*inputs: Any, **options: Any) -> Any:
        return die() if next(calls) == 1 else attentive(*inputs, **options)

    for name, dies, there in (("run_probes", between, 1), ("attentive_probe", inside, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probing, name, dies)
            with pytest.raises(Killed):
                execute(tmp_path / "cut")
        assert len(list(cut.probes.iterdir())) == there
        assert not cut.result.exists()
    written = cut.probe("suite0").stat().st_mtime_ns
    execute(tmp_path / "cut")
    assert scores(cut) == scores(whole)
    assert cut.probe("suite0").stat().st_mtime_ns == written
    assert np.isfinite([score["accuracy"] for suite in scores(cut) for score in suite["scores"]]).all()
