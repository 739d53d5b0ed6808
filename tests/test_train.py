"""The loop: resume is the same run, teachers stay frozen, a bad step poisons nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salt import checkpoint, sources
from salt import run as running
from salt.artefact import load_artefact, load_teacher, read_about, weights_sha256
from salt.clips import Clips
from salt.errors import RunFailed
from salt.flops import run_cost
from salt.learner import Learner, Outcome
from salt.metrics import Metrics, read_metrics
from salt.plan_specs import PlannedRun
from salt.specs import DataSpec, ExecSpec, RunSpec, TeacherRef, spec_id
from salt.store import RunDir, pretty_json, write_atomically
from salt.train import train
from salt.world import join
from tests.examples import run_spec

EXECUTION = ExecSpec(checkpoint_every_steps=10, log_every_steps=1)


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Blobs that move left or right: 64 clips in memory."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 60, (64, 8, 32, 32, 1), dtype=np.uint8)
    for number in range(64):
        row, column, speed = rng.integers(0, 24), rng.integers(0, 32), 3 if number % 2 else -3
        for t in range(8):
            frames[number, t, row : row + 8, (np.arange(column, column + 8) + speed * t) % 32] = 230
    names = tuple(f"{number}.mp4" for number in range(64))
    return Clips(
        frames=frames,
        files=tuple(Path(name) for name in names),
        rows=names,
        columns={"motion": tuple("right" if n % 2 else "left" for n in range(64))},
        skipped=(),
        fingerprint="f" * 16,
        padded_share=0.0,
    )


DATA = DataSpec(name="train", fingerprint="f" * 16, clips=64)


def go(
    store: Path, spec: RunSpec, clips: Clips, attempt: int = 1, warn: Callable[[str], None] = pytest.fail
) -> Any:
    run = RunDir(store, spec_id(spec))
    write_atomically(run.spec, pretty_json(spec))
    train(spec, run, {clips.fingerprint: clips}, EXECUTION, attempt, warn, join(EXECUTION))
    return read_about(run)


def spec_of(arm: Any, store: Path, clips: Clips, steps: int = 24) -> RunSpec:
    """A run of an arm; a salt run's teacher is trained first."""
    if arm != "salt":
        return run_spec(arm, "nano", steps=steps, data=DATA, label="motion" if arm == "supervised" else None)
    teacher = run_spec("pixel", "micro", steps=5, data=DATA)
    if not RunDir(store, spec_id(teacher)).artefact.exists():
        go(store, teacher, clips)
    return run_spec(
        "salt", "nano", teacher="micro", teacher_run=spec_id(teacher), teacher_steps=5, steps=steps, data=DATA
    )


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.mark.parametrize("arm", ["pixel", "salt", "vjepa", "supervised"])
def test_a_killed_run_ends_as_one_that_was_not(
    arm: str, clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = spec_of(arm, tmp_path / "whole", clips)
    straight = go(tmp_path / "whole", whole, clips)
    assert spec_of(arm, tmp_path / "cut", clips) == whole

    update = Learner.update_teacher
    with monkeypatch.context() as patch:
        steps = iter(range(24))

        def dies_at_17(self: Learner, momentum: float) -> None:
            if next(steps) == 17:
                raise Killed
            update(self, momentum)

        patch.setattr(Learner, "update_teacher", dies_at_17)
        with pytest.raises(Killed):
            go(tmp_path / "cut", whole, clips)
    resumed = go(tmp_path / "cut", whole, clips, attempt=2)

    runs = [RunDir(tmp_path / name, spec_id(whole)) for name in ("whole", "cut")]
    losses = [[row["loss"] for row in read_metrics(run.metrics)] for run in runs]
    assert len(losses[0]) == 24
    assert losses[0] == losses[1]  # bit for bit
    assert straight == resumed
    attempts = [row["attempt"] for row in read_metrics(runs[1].metrics)]
    assert attempts == [1] * 10 + [2] * 14  # nothing before the checkpoint was done twice


def test_losses_fall_and_encoders_differ_by_seed(clips: Clips, tmp_path: Path) -> None:
    digests = set()
    for seed in (0, 1):
        spec = run_spec("pixel", "micro", steps=60, seed=seed, data=DATA)
        digests.add(go(tmp_path, spec, clips).weights_sha256)
        losses = [row["loss"] for row in read_metrics(RunDir(tmp_path, spec_id(spec)).metrics)]
        assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert len(digests) == 2


def test_damaged_checkpoints_fall_back_loudly_and_none_left_refuses(clips: Clips, tmp_path: Path) -> None:
    spec = run_spec("pixel", "nano", steps=31, data=DATA)
    go(tmp_path, spec, clips)
    run = RunDir(tmp_path, spec_id(spec))
    run.artefact.unlink()
    newest = run.checkpoints / "step-00000030.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    said: list[str] = []
    found = checkpoint.load_newest(run, said.append)
    assert found is not None
    assert found[0].step == 20
    assert len(said) == 1
    assert "step-00000030" in said[0]
    for path in run.checkpoints.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(RunFailed, match="none of 2 checkpoints"):
        go(tmp_path, spec, clips, warn=said.append)


def test_a_step_that_is_not_finite_stops_before_it_can_be_saved(
    clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, steps = Learner.outcome, iter(range(40))

    def poisoned(self: Learner, *inputs: Any, **options: Any) -> Outcome:
        found = outcome(self, *inputs, **options)
        return found._replace(loss=found.loss * float("nan")) if next(steps) == 17 else found

    monkeypatch.setattr(Learner, "outcome", poisoned)
    spec = run_spec("vjepa", "nano", steps=40, data=DATA)
    with pytest.raises(RunFailed, match="step 17") as error:
        go(tmp_path, spec, clips)
    assert error.value.kind == "diverged"
    run = RunDir(tmp_path, spec_id(spec))
    found = checkpoint.load_newest(run, pytest.fail)
    assert found is not None
    assert found[0].step == 10
    assert all(torch.isfinite(tensor).all() for tensor in found[1].values())
    last = read_metrics(run.metrics)[-1]
    assert last["loss"] is None
    assert "loss" in last["non_finite"]


def test_teachers_are_frozen_sealed_and_the_ones_meant(clips: Clips, tmp_path: Path) -> None:
    student = spec_of("salt", tmp_path, clips)
    assert student.teacher is not None
    folder = RunDir(tmp_path, student.teacher.run_id)
    teacher, digest = load_teacher(folder, student.teacher, student.model, student.clip)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    result = go(tmp_path, student, clips)
    assert result.teacher_sha256 == digest == weights_sha256(teacher.state_dict())

    def refused(words: str, reference: TeacherRef = student.teacher) -> None:
        with pytest.raises(RunFailed, match=words) as error:
            load_teacher(folder, reference, student.model, student.clip)
        assert error.value.kind == "teacher"

    stopped_early = TeacherRef(run_id=student.teacher.run_id, step=8, encoder=student.teacher.encoder)
    refused("has 5 steps", stopped_early)
    good = folder.artefact.read_bytes()
    folder.artefact.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused("do not match their hash")
    other = run_spec("pixel", "micro", steps=6, data=DATA)
    go(tmp_path, other, clips)
    folder.artefact.write_bytes(RunDir(tmp_path, spec_id(other)).artefact.read_bytes())
    refused("not the artefact of run")
    folder.artefact.write_bytes(b"not an artefact")
    refused("is not an artefact")
    folder.artefact.unlink()
    refused("has no artefact")


def test_a_kill_before_the_result_loses_nothing_of_it(
    clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`result.json` comes from the run's files, so it is the same whichever attempt writes it."""
    spec = spec_of("salt", tmp_path, clips)
    planned = PlannedRun(run_id=spec_id(spec), role="student", spec=spec, cost=run_cost(spec), probe_ids=())
    folder = RunDir(tmp_path, planned.run_id)
    monkeypatch.setattr(sources, "open_sources", lambda *_: {clips.fingerprint: clips})
    with monkeypatch.context() as patch:

        def dies(*_: object) -> None:
            raise Killed

        patch.setattr(running, "_result", dies)
        with pytest.raises(Killed):
            running.execute(tmp_path, planned, {}, EXECUTION)
    assert folder.artefact.exists()
    assert not folder.result.exists()
    running.execute(tmp_path, planned, {}, EXECUTION)
    result, last = folder.read_result(), read_metrics(folder.metrics)[-1]
    assert result is not None
    assert spec.teacher is not None
    assert (result.final_loss, result.train_wall_s) == (last["loss"], last["wall_s"])
    assert result.train_wall_s
    assert result.artefact_sha256 == read_about(folder).weights_sha256
    assert result.teacher_sha256 == read_about(RunDir(tmp_path, spec.teacher.run_id)).weights_sha256
    assert result.attempts == 2


def test_vjepa_keeps_the_average_not_the_student(clips: Clips, tmp_path: Path) -> None:
    """With momentum 1 the average never moves: what is kept must be the initial encoder, bit for bit."""
    spec = run_spec("vjepa", "nano", steps=5, data=DATA, ema_start=1.0, ema_end=1.0)
    go(tmp_path, spec, clips)
    encoder, branch, _ = load_artefact(RunDir(tmp_path, spec_id(spec)), spec)
    assert branch == "ema"
    initial = Learner(spec).encoder.state_dict()
    assert all(torch.equal(tensor, initial[name]) for name, tensor in encoder.state_dict().items())


def test_metrics_survive_a_torn_line_and_a_new_column(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, attempt=1) as first:
        for step in (10, 20, 30):
            first.write(step, loss=1.0)
    path.write_bytes(path.read_bytes()[:-7])  # killed inside the line of step 30
    with Metrics(path, attempt=2) as second:
        for step in (20, 30, 40):
            second.write(step, loss=2.0, extra=float("inf"))
    rows = read_metrics(path)
    assert [(row["step"], row["attempt"], row["loss"]) for row in rows] == [
        (10, 1, 1.0),
        (20, 2, 2.0),
        (30, 2, 2.0),
        (40, 2, 2.0),
    ]
    assert rows[1]["extra"] is None
    assert rows[1]["non_finite"] == ["extra"]
