"""One run from spec to result: train or resume, keep the encoder, probe it, write `result.json` last."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt.attempts import begin_attempt, end_attempt, fruitless, read_attempts
from salt.disk import remove_leftovers, require_folder
from salt.errors import ClaimLost, Interrupted, RunFailed, UserError
from salt.failures import as_failure
from salt.flops import run_cost
from salt.hardware import forget_peak, hardware, peak_memory_bytes
from salt.plan_specs import PlannedRun
from salt.problems import run_problems
from salt.provenance import attempt_provenance
from salt.result_specs import ListSeen, RunError, RunResult
from salt.signals import STOP
from salt.smaller import need_of
from salt.specs import ExecSpec, ProbeSpec, RunSpec, spec_id
from salt.store import RunDir, pretty_json, write_atomically

if TYPE_CHECKING:
    from salt.artefact import AnyEncoder
    from salt.clips import Clips
    from salt.specs import ClipSpec
    from salt.world import World


def execute(
    store: Path,
    planned: PlannedRun,
    probes: Mapping[str, ProbeSpec],
    execution: ExecSpec,
    warn: Callable[[str], None] = lambda message: print(f"warning: {message}", file=sys.stderr, flush=True),
    *,
    processes: int | None = None,
    from_start: bool = False,
) -> None:
    """Do what is missing of a run: training from its newest checkpoint, then its probes, then `result.json`.

    The caller holds the run's claim. Processes that torchrun or srun started (`salt.world.join`) train
    together; rank 0 alone writes and probes, the others return when training ends. A failure is written to
    `error.json` and raised as `RunFailed`; a later call tries again from the last checkpoint. A run that was
    asked to stop (`salt.signals.STOP`) raises `Interrupted`, which is no error. A spec that is not the one
    that the run is named after raises `RunFailed` before anything is written. With `from_start` a run whose
    states are lost or damaged begins again, which else it refuses.
    """
    import torch

    from salt.sinks import check_sinks
    from salt.world import join

    run = RunDir(store, planned.run_id)
    if spec_id(planned.spec) != planned.run_id:
        if run.spec.exists():
            run.require_spec(planned.spec)  # names what differs
        raise RunFailed(
            "code",
            f"the spec planned as run {planned.run_id} is that of run {spec_id(planned.spec)}: "
            "the plan was edited, or made by another version; plan again",
        )
    check_sinks(execution)
    torch.set_num_threads(execution.threads)
    with join(execution, processes=processes) as world:
        device = str(world.device)
        here = msgspec.structs.replace(execution, processes=world.size)
        attempt = world.share(world.on_main(lambda: _begin(run, planned.spec, here, device, warn)))
        trains = planned.spec.steps > 0 and not run.artefact.exists()
        forget_peak(device)
        try:
            _train(run, planned, execution, attempt, warn, world, from_start=from_start)
        except Exception as error:
            raise _ended(run, attempt, error, main=world.main) from error
    if not world.main:
        return
    try:
        _probe_and_finish(run, planned, probes, execution, attempt, device if trains else None)
    except Exception as error:
        raise _ended(run, attempt, error, main=True) from error
    end_attempt(run, "done")


def _ended(run: RunDir, attempt: int, error: Exception, *, main: bool) -> RunFailed:
    """What ended an attempt; rank 0 (`main`) writes it down."""
    failure = as_failure(error)
    if isinstance(failure, ClaimLost) or STOP.lost:
        return ClaimLost()  # env.json and error.json are of the attempt that has the run
    # Others may have been quicker to stop, so that this rank has lost them.
    if failure.kind == "interrupted" or (failure.kind == "ranks" and STOP.requested):
        if not isinstance(failure, Interrupted):
            failure = Interrupted(step=None, saved=False)
        if main:
            end_attempt(run, "stopped", str(failure))
    elif main:
        try:
            _record(run, failure, attempt, error)
            end_attempt(run, failure.kind, str(failure))
        except (OSError, RunFailed, UserError) as second:  # a full disk, say: the cause must not be lost
            return RunFailed(failure.kind, f"{failure} (which {run.error} does not say: {second})")
    return failure


def _train(
    run: RunDir,
    planned: PlannedRun,
    execution: ExecSpec,
    attempt: int,
    warn: Callable[[str], None],
    world: World,
    *,
    from_start: bool,
) -> None:
    spec = planned.spec
    problems = run_problems(spec)
    if problems:
        raise RunFailed("config", "; ".join(problems))
    if spec.arm == "external" and not run.artefact.exists():
        raise RunFailed(
            "teacher",
            f"the weights of {run.run_id} ({spec.external.model if spec.external else 'unknown'}) are not in "
            f"the store {run.store}: `salt-train import FOLDER --store {run.store}` brings them",
        )
    if spec.arm != "raw" and not run.artefact.exists():
        from salt.sources import open_sources
        from salt.train import train

        if world.any(STOP.requested):  # what has been loaded up to here takes seconds
            raise Interrupted(step=None, saved=False)
        sources = open_sources(run.store, spec, execution)
        heard = warn if world.main else lambda _: None
        train(spec, run, sources, execution, attempt, heard, world, from_start=from_start)
    lost = run.missing_kept(spec)
    if lost:
        raise RunFailed(
            "checkpoint",
            f"the state at steps {list(lost)} is gone from {run.kept}, and the run is trained: "
            "move its folder away to train it again",
        )


def _probe_and_finish(
    run: RunDir,
    planned: PlannedRun,
    probes: Mapping[str, ProbeSpec],
    execution: ExecSpec,
    attempt: int,
    trained_on: str | None,
) -> None:
    """`trained_on` is the device on which this attempt trained, None if it found the run trained."""
    spec = planned.spec
    encoder: AnyEncoder | None = None
    branch, digest = "raw", ""
    opened: dict[tuple[ClipSpec, str], Clips] = {}
    for probe_id in planned.probe_ids:
        STOP.check()
        if run.probe(probe_id).exists():
            continue
        from salt.probe import run_probes
        from salt.probe_views import probe_clip_spec
        from salt.sources import open_stored

        if spec.arm != "raw" and encoder is None:
            from salt.artefact import load_artefact

            encoder, branch, digest = load_artefact(run, spec)
        probe = probes[probe_id]
        clip, clips = probe_clip_spec(probe, spec), {}
        for data in (probe.train, probe.selection, probe.report):
            key = (clip, data.fingerprint)
            if key not in opened:
                opened[key] = open_stored(run.store, clip, data.fingerprint, execution)
            clips[data.fingerprint] = opened[key]
        result = run_probes(
            probe, probe_id, spec, run.run_id, encoder, branch, digest, clips, execution.device
        )
        write_atomically(run.probe(probe_id), pretty_json(result))
    if not run.result.exists():
        peak = None if trained_on is None else peak_memory_bytes(trained_on)
        write_atomically(run.result, pretty_json(_result(run, planned, attempt, peak)))
    run.error.unlink(missing_ok=True)


def _result(run: RunDir, planned: PlannedRun, attempt: int, peak: int | None) -> RunResult:
    """What the run's files say, whichever attempt wrote them: a kill before this loses nothing of it but the
    peak of memory.
    """
    from salt.artefact import read_about
    from salt.metrics import read_metrics
    from salt.seen import seen

    spec = planned.spec
    about = None if spec.arm == "raw" else read_about(run)
    last = {row["step"]: row for row in read_metrics(run.metrics)}.get(spec.steps, {})
    probes = [run.read_probe(probe_id) for probe_id in planned.probe_ids]
    first = 0 if spec.trunk is None else spec.trunk.step
    inputs = run.read_inputs()
    drawn = seen(
        spec,
        first * spec.optim.batch_clips,
        (spec.steps - first) * spec.optim.batch_clips,
        sizes=None if inputs is None else [item.clips for item in inputs.lists],
    )
    return RunResult(
        run_id=run.run_id,
        arm=spec.arm,
        steps=spec.steps,
        cost=run_cost(spec, planned.cost.convention),
        final_loss=last.get("loss"),
        artefact_sha256=about.weights_sha256 if about else None,
        teacher_sha256=about.teacher_sha256 if about else None,
        attempts=attempt,
        train_wall_s=last.get("wall_s") if spec.steps else 0.0,
        burnt_steps=last.get("burnt_steps"),
        burnt_flops=last.get("burnt_flops"),
        burnt_wall_s=last.get("burnt_wall_s"),
        probe_wall_s=round(sum(probe.wall_s for probe in probes if probe), 3),
        clips_seen=drawn.clips_seen,
        unique_clips=drawn.unique_clips,
        epochs=drawn.epochs,
        max_repeats=drawn.max_repeats,
        peak_memory_bytes=peak,
        lists=tuple(msgspec.convert(item, ListSeen, from_attributes=True) for item in drawn.lists),
    )


def _begin(run: RunDir, spec: RunSpec, execution: ExecSpec, device: str, warn: Callable[[str], None]) -> int:
    """Write spec and provenance; warns of other code than before. Returns the attempt's number, from 1."""
    if run.spec.exists():
        run.require_spec(spec)
    else:
        write_atomically(run.spec, pretty_json(spec))
    remove_leftovers(run.path)
    about = {"hardware": hardware(device), **need_of(spec, execution).about()}
    before, now = read_attempts(run)[-1:], attempt_provenance()
    attempt = begin_attempt(run, {**now, **about})
    if before and before[0].get("code_sha256") not in (None, now["code_sha256"]):
        was, is_now = (
            f"{each['code_sha256']:.12} (commit {each.get('git_commit')})" for each in (before[0], now)
        )
        warn(
            f"run {run.run_id}: attempt {attempt} runs other code than the one before: {was}, now {is_now}; "
            f"{run.env} has both"
        )
    run.error.unlink(missing_ok=True)  # what it said stays in env.json
    return attempt


def _record(run: RunDir, failure: RunFailed, attempt: int, error: Exception) -> None:
    import traceback

    from salt.metrics import read_metrics

    require_folder(run.path)
    rows = read_metrics(run.metrics)
    known = isinstance(error, RunFailed | UserError)
    record = RunError(
        run_id=run.run_id,
        kind=failure.kind,
        message=str(failure),
        attempt=attempt,
        step=rows[-1]["step"] if rows else None,
        host=socket.gethostname(),
        restarts_without_progress=fruitless(run).count,
        traceback=None if known else "".join(traceback.format_exception(error)),
    )
    write_atomically(run.error, pretty_json(record))
