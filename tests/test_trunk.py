"""Trunks and cooldowns, kept states, unfinished teachers and chains: each is the run it says it is."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save

from salt import run as running
from salt import sources
from salt.artefact import load_artefact, load_kept_encoder, load_teacher, read_about, weights_sha256
from salt.batches import Batches, to_patches
from salt.clips import Clips
from salt.errors import RunFailed, UserError
from salt.flops import run_cost, step_cost
from salt.learner import Learner
from salt.metrics import read_metrics
from salt.optim import Rates, branch_problems, build_optimizer, rates, schedule_problems, warmup_steps
from salt.plan_specs import Plan, PlannedRun
from salt.result_specs import RunError
from salt.seen import seen
from salt.specs import DataSpec, ExecSpec, ObjectiveSpec, OptimSpec, RunSpec, TeacherRef, TrunkRef, spec_id
from salt.store import RunDir, pretty_json, write_atomically
from salt.train import train
from salt.world import join
from slurm.prepare import prepare_clips
from slurm.states import State, assess
from tests.examples import run_spec

EXECUTION = ExecSpec(checkpoint_every_steps=4, log_every_steps=1)
DATA = DataSpec(name="train", fingerprint="f" * 16, clips=24)
BATCH = 8
#: A power of two: every rate below is exact, so that any way of writing it gives the same bits.
LR = 2.0**-10


@pytest.fixture(scope="module")
def clips() -> Clips:
    frames = np.random.default_rng(0).integers(0, 256, (DATA.clips, 8, 32, 32, 1), dtype=np.uint8)
    names = tuple(f"{number}.mp4" for number in range(DATA.clips))
    return Clips(
        frames=frames,
        files=tuple(Path(name) for name in names),
        rows=names,
        columns={},
        skipped=(),
        fingerprint=DATA.fingerprint,
        padded_share=0.0,
    )


def trunk_of(arm: Any, steps: int = 12, keep: tuple[int, ...] = (6, 12), **fields: Any) -> RunSpec:
    """A constant run; the first four of twelve steps warm up. Decay and momentum would move if they could."""
    spec = run_spec(arm, "nano", steps=steps, data=DATA, batch_clips=BATCH, **fields)
    optim = replace(
        spec.optim, schedule="constant", lr=LR, lr_end=0.0, warmup_share=1 / 3, weight_decay_end=0.4
    )
    return replace(spec, optim=optim, keep_steps=keep)


def cooldown_of(trunk: RunSpec, step: int = 6, steps: int = 10) -> RunSpec:
    optim = replace(trunk.optim, schedule="cooldown")
    ref = TrunkRef(run_id=spec_id(trunk), step=step)
    return replace(trunk, optim=optim, trunk=ref, steps=steps, keep_steps=())


def student_of(teacher: RunSpec, step: int, steps: int = 6) -> RunSpec:
    spec = run_spec("salt", "nano", teacher="nano", steps=steps, data=DATA, batch_clips=BATCH)
    ref = TeacherRef(run_id=spec_id(teacher), step=step, encoder=teacher.model.encoder)
    return replace(spec, teacher=ref)


def go(
    store: Path, spec: RunSpec, clips: Clips, attempt: int = 1, warn: Callable[[str], None] = pytest.fail
) -> RunDir:
    run = RunDir(store, spec_id(spec))
    write_atomically(run.spec, pretty_json(spec))
    train(spec, run, {clips.fingerprint: clips}, EXECUTION, attempt, warn, join(EXECUTION))
    return run


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def kill_at(step: int, store: Path, spec: RunSpec, clips: Clips) -> RunDir:
    def dies(run: RunSpec, now: int) -> Rates:
        if now == step:
            raise Killed
        return rates(run, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("salt.train.rates", dies)
        with pytest.raises(Killed):
            go(store, spec, clips)
    return RunDir(store, spec_id(spec))


def planned(spec: RunSpec, role: Any = "student") -> PlannedRun:
    return PlannedRun(run_id=spec_id(spec), role=role, spec=spec, cost=run_cost(spec), probe_ids=())


def plan_of(*specs: RunSpec) -> Plan:
    runs = tuple(planned(spec) for spec in specs)
    return Plan(
        name="paths", study_sha256="0", convention="matmul", charge="full", match="flops",
        execution=ExecSpec(), probes={}, runs=runs, cells=(),
    )  # fmt: skip


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def change_and_seal(path: Path) -> None:
    """The same state with other weights, properly sealed: trained on another device, say."""
    tensors = load_file(path)
    first = next(name for name in tensors if name.startswith("encoder."))
    data = save(tensors | {first: tensors[first] + 1})
    path.write_bytes(data)
    seal = json.loads(path.with_suffix(".json").read_bytes())
    seal["sha256"] = hashlib.sha256(data).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(seal))


# --- schedules --------------------------------------------------------------------------------------


def test_rates_of_a_trunk_and_its_cooldown() -> None:
    optim = OptimSpec(
        schedule="constant",
        lr_start=0.0,
        lr=1e-3,
        lr_end=1e-5,
        warmup_share=0.1,
        weight_decay_start=0.04,
        weight_decay_end=0.4,
    )
    objective = ObjectiveSpec(ema_start=0.9, ema_end=1.0)
    trunk = replace(run_spec("vjepa", steps=100), optim=optim, objective=objective, keep_steps=(60,))
    assert warmup_steps(optim, 100) == 10
    assert [rates(trunk, s).learning_rate for s in (0, 4, 9, 10, 99)] == pytest.approx(
        [1e-4, 5e-4, 1e-3, 1e-3, 1e-3]
    )
    branch = cooldown_of(trunk, 60, 100)
    assert warmup_steps(branch.optim, 100) == 0
    # 40 steps down from 1e-3: a step takes 2.475e-5, and the last is one step above lr_end.
    assert [rates(branch, s).learning_rate for s in (60, 61, 80, 99)] == pytest.approx(
        [1e-3, 9.7525e-4, 5.05e-4, 3.475e-5]
    )
    for spec, step in ((trunk, 0), (trunk, 99), (branch, 60), (branch, 99)):
        assert (rates(spec, step).weight_decay, rates(spec, step).ema_momentum) == (0.04, 0.9)
    for step in (59, 100):
        with pytest.raises(ValueError, match="not in a cooldown from 60 to 100"):
            rates(branch, step)


def test_paths_that_make_no_sense_say_why() -> None:
    trunk = trunk_of("pixel")
    branch = cooldown_of(trunk)
    assert schedule_problems(trunk) == schedule_problems(branch) == branch_problems(branch, trunk) == []
    for spec, words in (
        (replace(branch, trunk=None), "'cooldown' with no trunk"),
        (replace(branch, optim=trunk.optim), f"'constant' with the trunk {spec_id(trunk)}"),
        (replace(branch, steps=6), "more than the 6"),
        (replace(branch, keep_steps=(6, 8)), r"keep_steps \[6\]: this run takes steps 7 to 10"),
        (replace(trunk, keep_steps=(6, 13)), r"keep_steps \[13\]"),
    ):
        assert any(words.replace("\\", "") in problem for problem in schedule_problems(spec)), words

    def why(spec: RunSpec, above: RunSpec) -> str:
        return "; ".join(branch_problems(spec, above))

    other = replace(branch, seed=1, optim=replace(branch.optim, lr=2e-3))
    assert why(other, trunk) == "it differs from its branch in seed, optim.lr"
    assert "does not keep its state at step 7 (kept: 6, 12)" in why(cooldown_of(trunk, 7), trunk)
    early = trunk_of("pixel", keep=(3,))
    assert "step 3 is inside its warmup of 4 steps" in why(cooldown_of(early, 3), early)
    cosine = replace(trunk, optim=replace(trunk.optim, schedule="cosine"))
    assert "its schedule is 'cosine'" in why(cooldown_of(cosine), cosine)


# --- trunk and cooldown -----------------------------------------------------------------------------


def by_hand(store: Path, spec: RunSpec, clips: Clips) -> tuple[list[float], Learner, Learner]:
    """Six steps of the trunk and four of the cooldown in one go, each rate written down.

    Losses, and the learner after six steps and after ten.
    """
    learner = Learner(spec)
    if spec.teacher is not None:
        above = RunDir(store, spec.teacher.run_id)
        learner.teacher, _ = load_teacher(above, spec.teacher, spec.model, spec.clip)
    optimizer = build_optimizer(learner.trained, spec.optim)
    batches = Batches(spec, {clips.fingerprint: clips})
    losses, after_six = [], Learner(spec)
    # The norm is summed in the modules' order of parameters: another one rounds differently.
    for step, share in enumerate((0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25)):
        optimizer.param_groups[0].update(lr=LR * share, weight_decay=0.05)
        optimizer.param_groups[1].update(lr=LR * share, weight_decay=0.0)
        loss = learner.loss(to_patches(batches.crops(step), spec.clip, spec.model), step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for m in learner.trained for p in m.parameters()], 1.0)
        optimizer.step()
        if spec.arm == "vjepa":
            assert learner.teacher is not None
            with torch.no_grad():
                for mean, new in zip(learner.teacher.parameters(), learner.encoder.parameters(), strict=True):
                    mean.lerp_(new, 1 - 0.9)
        losses.append(loss.item())
        if step == 5:
            after_six.load_tensors({name: tensor.clone() for name, tensor in learner.tensors().items()})
    return losses, after_six, learner


@pytest.mark.parametrize("arm", ["pixel", "salt", "vjepa"])
def test_a_trunk_and_its_cooldown_are_one_straight_run(arm: str, clips: Clips, tmp_path: Path) -> None:
    above: dict[str, Any] = {}
    if arm == "salt":
        teacher = go(tmp_path, trunk_of("pixel"), clips)
        above = {"teacher": "nano", "teacher_run": teacher.run_id, "teacher_steps": 12}
    trunk = trunk_of(arm, **above)
    trunk_run = go(tmp_path, trunk, clips)
    branch = cooldown_of(trunk)
    branch_run = go(tmp_path, branch, clips)

    losses, after_six, learner = by_hand(tmp_path, trunk, clips)
    rows = [read_metrics(run.metrics) for run in (trunk_run, branch_run)]
    assert [row["loss"] for row in rows[0][:6] + rows[1]] == losses  # bit for bit
    assert [row["step"] for row in rows[1]] == [7, 8, 9, 10]
    assert rows[1][-1]["flops"] == run_cost(branch).total_flops == 4 * step_cost(branch).total_flops
    encoder, name, digest = load_artefact(branch_run, branch)
    assert digest == weights_sha256(learner.probed().state_dict())
    assert name == ("ema" if arm == "vjepa" else "student")

    # The kept states: of step 6, in the middle, and of step 12, which the artefact is made of.
    kept = load_file(trunk_run.kept_state(6))
    for tensor_name, tensor in after_six.tensors().items():
        assert torch.equal(kept[tensor_name], tensor)
    assert load_kept_encoder(trunk_run, trunk, 12)[2] == read_about(trunk_run).weights_sha256
    about = read_about(branch_run)
    assert about.trunk_sha256 == hashlib.sha256(trunk_run.kept_state(6).read_bytes()).hexdigest()
    assert about.teacher_sha256 == read_about(trunk_run).teacher_sha256
    assert (about.teacher_sha256 is None) == (arm != "salt")
    assert read_about(trunk_run).trunk_sha256 is None
    assert any("adam." in tensor_name for tensor_name in kept)
    assert encoder.state_dict().keys() == {n.partition(".")[2] for n in kept if n.startswith("encoder.")}


@pytest.mark.parametrize("killed_at", [7, 10])
def test_a_killed_trunk_keeps_the_same_states(killed_at: int, clips: Clips, tmp_path: Path) -> None:
    """From checkpoint 4 it passes the kept step again; from checkpoint 8 it is past it."""
    spec = trunk_of("vjepa")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    straight = go(whole, spec, clips)
    run = kill_at(killed_at, cut, spec, clips)
    kept_before = run.kept_state(6).stat().st_mtime_ns
    assert not run.has_kept(12)
    go(cut, spec, clips, attempt=2)
    for step in spec.keep_steps:
        assert run.kept_state(step).read_bytes() == straight.kept_state(step).read_bytes()
        assert json.loads(run.kept_state(step).with_suffix(".json").read_bytes())["run_id"] == run.run_id
    assert run.kept_state(6).stat().st_mtime_ns == kept_before  # whole: others may have begun from it
    assert run.missing_kept(spec) == ()
    assert sorted(path.name for path in run.checkpoints.glob("*.json")) == [
        "step-00000004.json",
        "step-00000008.json",
    ]

    # A killed cooldown goes on from its own checkpoint, and still says where it began.
    branch = cooldown_of(spec)
    uncut = read_about(go(whole, branch, clips))
    branch_run = kill_at(9, cut, branch, clips)
    go(cut, branch, clips, attempt=2)
    assert read_about(branch_run) == uncut
    assert [row["attempt"] for row in read_metrics(branch_run.metrics)] == [1, 1, 2, 2]


def test_a_lost_or_damaged_kept_state_is_written_again_or_missed(clips: Clips, tmp_path: Path) -> None:
    spec = trunk_of("pixel")
    run = kill_at(7, tmp_path, spec, clips)  # goes on from step 4, so that step 6 comes again
    good = run.kept_state(6).read_bytes()
    flip_last_byte(run.kept_state(6))
    said: list[str] = []
    go(tmp_path, spec, clips, attempt=2, warn=said.append)
    assert run.kept_state(6).read_bytes() == good
    assert len(said) == 1
    assert "does not match its checksum; writing it again" in said[0]

    # A whole one is never replaced, since others may have begun from it.
    other = trunk_of("pixel", seed=1)
    there = kill_at(7, tmp_path, other, clips).kept_state(6)
    change_and_seal(there)
    changed = there.read_bytes()
    go(tmp_path, other, clips, attempt=2, warn=said.append)
    assert there.read_bytes() == changed
    assert len(said) == 2
    assert "what was kept stays" in said[1]

    run.artefact.unlink()
    run.kept_state(6).with_suffix(".json").unlink()  # an unsealed state is none
    with pytest.raises(RunFailed, match=r"steps \[6\] is gone") as error:
        go(tmp_path, spec, clips, attempt=3)
    assert error.value.kind == "checkpoint"


def test_a_trunk_that_does_not_fit_is_refused_by_name(clips: Clips, tmp_path: Path) -> None:
    trunk = trunk_of("pixel")
    branch = cooldown_of(trunk)
    run = RunDir(tmp_path, spec_id(trunk))

    def refused(words: str, spec: RunSpec = branch) -> None:
        with pytest.raises(RunFailed, match=words) as error:
            go(tmp_path, spec, clips)
        assert error.value.kind == "trunk"
        assert run.run_id in str(error.value)
        assert not RunDir(tmp_path, spec_id(spec)).metrics.exists()

    refused("is not in the store")
    write_atomically(run.spec, pretty_json(trunk))
    refused("has not kept its state at step 6")
    go(tmp_path, trunk, clips)
    refused("differs from its branch in seed", replace(branch, seed=7))
    refused("does not keep its state at step 7", cooldown_of(trunk, 7))
    good = run.kept_state(6).read_bytes()
    flip_last_byte(run.kept_state(6))
    refused("at step 6: .*step-00000006.safetensors does not match its checksum")
    other = go(tmp_path, trunk_of("pixel", seed=3), clips)
    for suffix in (".safetensors", ".json"):
        there = other.kept_state(6).with_suffix(suffix)
        run.kept_state(6).with_suffix(suffix).write_bytes(there.read_bytes())
    refused(f"sealed as that of run {other.run_id} at step 6")
    run.kept_state(6).write_bytes(good)
    run.kept_state(6).with_suffix(".json").write_text("{")
    refused("step-00000006.safetensors is damaged")


# --- teachers ---------------------------------------------------------------------------------------


def test_an_unfinished_teacher_is_its_kept_state(clips: Clips, tmp_path: Path) -> None:
    teacher = trunk_of("vjepa")
    student = student_of(teacher, 6)
    late = student_of(teacher, 12)
    branch = cooldown_of(teacher)
    plan = plan_of(teacher, student, late, branch)

    def states() -> list[State]:
        return [standing.state for standing in assess(tmp_path, plan).values()]

    P, W, F, B = State.PENDING, State.WAITING, State.FAILED, State.BLOCKED
    assert states() == [P, W, W, W]
    folder = kill_at(5, tmp_path, teacher, clips)
    assert states() == [P, W, W, W]
    kill_at(8, tmp_path, teacher, clips)
    assert not folder.artefact.exists()
    assert states() == [P, P, W, P]  # what step 6 is enough for can begin
    error = RunError(run_id=folder.run_id, kind="data", message="no", attempt=1, step=8, host="here")
    write_atomically(folder.error, pretty_json(error))
    assert states() == [F, P, B, P]
    seal = folder.kept_state(6).with_suffix(".json")
    sealed = seal.read_bytes()
    seal.unlink()
    assert states() == [F, B, B, B]
    assert {s.blocked_by for s in assess(tmp_path, plan).values()} == {None, folder.run_id}
    seal.write_bytes(sealed)
    assert assess(tmp_path, plan_of(student))[spec_id(student)].state is P  # the teacher is of another plan

    assert student.teacher is not None
    encoder, digest = load_teacher(folder, student.teacher, student.model, student.clip)
    kept = load_file(folder.kept_state(6))
    weights = encoder.state_dict()
    assert all(torch.equal(tensor, kept[f"ema.{name}"]) for name, tensor in weights.items())
    assert any(not torch.equal(tensor, kept[f"encoder.{name}"]) for name, tensor in weights.items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    student_run = go(tmp_path, student, clips)
    assert read_about(student_run).teacher_sha256 == digest == weights_sha256(weights)

    for step, words in ((7, r"keeps its state at \[6, 12\]"), (12, "has no artefact")):
        with pytest.raises(RunFailed, match=words):
            load_teacher(folder, replace(student.teacher, step=step), student.model, student.clip)
    go(tmp_path, teacher, clips, attempt=3)
    folder.error.unlink()
    assert states()[2:] == [P, P]
    flip_last_byte(folder.kept_state(6))
    with pytest.raises(RunFailed, match=f"run {folder.run_id} at step 6.*checksum") as damaged:
        load_teacher(folder, student.teacher, student.model, student.clip)
    assert damaged.value.kind == "teacher"


def test_a_teacher_that_changed_between_attempts_is_refused(clips: Clips, tmp_path: Path) -> None:
    teacher = trunk_of("pixel")
    folder = go(tmp_path, teacher, clips)
    student = student_of(teacher, 6)
    kill_at(5, tmp_path, student, clips)
    change_and_seal(folder.kept_state(6))
    with pytest.raises(RunFailed, match="trained to step 4 with a teacher of weights") as error:
        go(tmp_path, student, clips, attempt=2)
    assert error.value.kind == "teacher"


def test_a_chain_of_three_and_a_cooldown_run_to_their_results(
    clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "open_sources", lambda *_: {clips.fingerprint: clips})
    first = trunk_of("pixel", steps=7, keep=(5,))
    second = student_of(first, 5, steps=4)
    third = student_of(second, 4, steps=3)
    branch = cooldown_of(first, 5, 9)
    results = {}
    for spec in (first, second, third, branch):
        running.execute(tmp_path, planned(spec), {}, EXECUTION)
        results[spec] = RunDir(tmp_path, spec_id(spec)).read_result()
    kept = load_kept_encoder(RunDir(tmp_path, spec_id(first)), first, 5)
    assert results[first].teacher_sha256 is None
    assert results[second].teacher_sha256 == kept[2] != results[first].artefact_sha256
    assert results[third].teacher_sha256 == results[second].artefact_sha256

    # The cooldown's own spending: steps 5 to 8, clips 40 to 71 of the stream of 24 a list.
    own = results[branch]
    assert own.steps == 9
    assert own.cost == step_cost(branch) * 4
    assert (own.clips_seen, own.epochs) == (32, 32 / 24)
    batches = Batches(branch, {clips.fingerprint: clips})
    drawn = [set(batches.indices(step).tolist()) for step in range(5, 9)]
    assert own.unique_clips == len(set().union(*drawn)) == 24
    unique = seen(branch, 5 * BATCH, 2 * BATCH).unique_clips
    assert unique == len(drawn[0] | drawn[1]) < 2 * BATCH
    assert results[first].unique_clips == 24

    # Complete only while what it keeps is there; what is lost then is said, not passed over.
    folder = RunDir(tmp_path, spec_id(first))
    assert folder.is_complete(())
    folder.kept_state(5).unlink()
    assert not folder.is_complete(())
    with pytest.raises(RunFailed, match=r"steps \[5\] is gone") as error:
        running.execute(tmp_path, planned(first), {}, EXECUTION)
    assert error.value.kind == "checkpoint"


# --- what is refused at once ------------------------------------------------------------------------


def test_runs_that_cannot_be_trained_are_refused_at_once(tmp_path: Path) -> None:
    teacher = trunk_of("pixel")
    cached = replace(trunk_of("vjepa"), cached_views=4)
    too_late = trunk_of("pixel", keep=(13,))
    for spec, words in ((cached, "only a frozen teacher's targets"), (too_late, r"keep_steps \[13\]")):
        with pytest.raises(RunFailed, match=words) as error:
            running.execute(tmp_path, planned(spec), {}, EXECUTION)
        assert error.value.kind == "config"
        recorded = RunDir(tmp_path, spec_id(spec)).read_error()
        assert recorded is not None
        assert recorded.kind == "config"
        with pytest.raises(UserError, match=f"run {spec_id(spec)}.*{words}"):
            prepare_clips(tmp_path, plan_of(teacher, spec))
    assert not (tmp_path / "cache").exists()

    wrong = replace(planned(teacher), run_id="0" * 16)
    with pytest.raises(RunFailed, match=f"that of run {spec_id(teacher)}") as error:
        running.execute(tmp_path, wrong, {}, EXECUTION)
    assert error.value.kind == "code"
    assert not RunDir(tmp_path, wrong.run_id).path.exists()
