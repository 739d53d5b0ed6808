"""One run from spec to result: train or resume, keep the encoder, probe it, write `result.json` last."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt.errors import RunFailed, UserError
from salt.flops import run_cost
from salt.optim import schedule_problems
from salt.plan_specs import PlannedRun
from salt.result_specs import RunError, RunResult
from salt.specs import ExecSpec, ProbeSpec, RunSpec, spec_id
from salt.store import RunDir, pretty_json, write_atomically

if TYPE_CHECKING:
    from salt.clips import Clips
    from salt.vit import Encoder


class Environment(msgspec.Struct, kw_only=True):
    """`env.json`: provenance of each attempt. It is not part of the run's identity."""

    attempts: list[dict[str, str | None]] = []


def run_problems(spec: RunSpec) -> list[str]:
    """Why no attempt at this run can succeed, from its spec alone; empty if one may."""
    problems = schedule_problems(spec)
    if spec.cached_views is not None:
        problems.append(
            f"cached_views {spec.cached_views}: training on cached targets is planned and priced, but not "
            "there yet; write `targets: online` in the study and plan again"
        )
    return problems


def execute(
    store: Path,
    planned: PlannedRun,
    probes: Mapping[str, ProbeSpec],
    execution: ExecSpec,
    warn: Callable[[str], None] = lambda message: print(f"warning: {message}", file=sys.stderr, flush=True),
) -> None:
    """Do what is missing of a run: training from its newest checkpoint, then its probes, then `result.json`.

    The caller holds the run's claim. A failure is written to `error.json` and raised as `RunFailed`; a later
    call tries again from the last checkpoint. A spec that is not the one that the run is named after raises
    `RunFailed` before anything is written.
    """
    import torch

    if spec_id(planned.spec) != planned.run_id:
        raise RunFailed(
            "code",
            f"the spec planned as run {planned.run_id} is that of run {spec_id(planned.spec)}: "
            "the plan was edited, or made by another version; plan again",
        )
    torch.set_num_threads(execution.threads)
    run = RunDir(store, planned.run_id)
    attempt = _begin(run, planned.spec)
    try:
        problems = run_problems(planned.spec)
        if problems:
            raise RunFailed("config", "; ".join(problems))
        _execute(run, planned, probes, execution, attempt, warn)
    except RunFailed as error:
        _record(run, error.kind, str(error), attempt, None)
        raise
    except UserError as error:  # lists and videos: the user's to mend, but found inside a run
        _record(run, "data", str(error), attempt, None)
        raise RunFailed("data", str(error)) from error
    except Exception as error:
        _record(run, "code", f"{type(error).__name__}: {error}", attempt, traceback.format_exc())
        raise RunFailed("code", f"{type(error).__name__}: {error}") from error


def _execute(
    run: RunDir,
    planned: PlannedRun,
    probes: Mapping[str, ProbeSpec],
    execution: ExecSpec,
    attempt: int,
    warn: Callable[[str], None],
) -> None:
    spec = planned.spec
    opened: dict[str, Clips] = {}
    if spec.arm != "raw" and not run.artefact.exists():
        from salt.train import train

        clips = _clips(run.store, spec, spec.data.fingerprint, execution, opened)
        train(spec, run, clips, execution, attempt, warn)
    lost = run.missing_kept(spec)
    if lost:
        raise RunFailed(
            "checkpoint",
            f"the state at steps {list(lost)} is gone from {run.kept}, and the run is trained: "
            "move its folder away to train it again",
        )
    encoder: Encoder | None = None
    branch, digest = "raw", ""
    for probe_id in planned.probe_ids:
        if run.probe(probe_id).exists():
            continue
        from salt.probe import run_probes

        if spec.arm != "raw" and encoder is None:
            from salt.artefact import load_artefact

            encoder, branch, digest = load_artefact(run, spec)
        probe = probes[probe_id]
        for data in (probe.train, probe.selection, probe.report):
            _clips(run.store, spec, data.fingerprint, execution, opened)
        result = run_probes(
            probe, probe_id, spec, run.run_id, encoder, branch, digest, opened, execution.device
        )
        write_atomically(run.probe(probe_id), pretty_json(result))
    if not run.result.exists():
        write_atomically(run.result, pretty_json(_result(run, planned, attempt)))
    run.error.unlink(missing_ok=True)


def _result(run: RunDir, planned: PlannedRun, attempt: int) -> RunResult:
    """What the run's files say, whichever attempt wrote them: a kill before this loses nothing of it."""
    from salt.artefact import read_about
    from salt.metrics import read_metrics

    spec = planned.spec
    about = None if spec.arm == "raw" else read_about(run)
    last = {row["step"]: row for row in read_metrics(run.metrics)}.get(spec.steps, {})
    probes = [run.read_probe(probe_id) for probe_id in planned.probe_ids]
    first = 0 if spec.trunk is None else spec.trunk.step
    seen = (spec.steps - first) * spec.optim.batch_clips
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
        probe_wall_s=round(sum(probe.wall_s for probe in probes if probe), 3),
        clips_seen=seen,
        unique_clips=_unique_clips(spec, first * spec.optim.batch_clips, seen),
        epochs=seen / spec.data.clips,
    )


def _unique_clips(spec: RunSpec, first: int, seen: int) -> int:
    """Different clips among `seen` draws from the `first`-th on; each epoch is a permutation of the list."""
    clips = spec.data.clips
    into = first % clips
    if into + seen <= clips or into + seen >= 2 * clips or into == 0:
        return min(seen, clips)
    from salt.randomness import generator, run_seed

    # The end of one epoch and the beginning of the next, in the orders of `salt.batches`.
    this, following = (
        generator(run_seed(spec), "order", first // clips + more).permutation(clips) for more in (0, 1)
    )
    return len({*this[into:].tolist(), *following[: into + seen - clips].tolist()})


def _clips(
    store: Path, spec: RunSpec, fingerprint: str, execution: ExecSpec, opened: dict[str, Clips]
) -> Clips:
    """The decoded clips of a list, opened once."""
    from salt.clips import planned_clips

    if fingerprint not in opened:
        if fingerprint not in execution.lists:
            raise RunFailed(
                "data",
                f"no list with the fingerprint {fingerprint} is known here: plan again where the lists are",
            )
        opened[fingerprint] = planned_clips(
            Path(execution.lists[fingerprint]),
            fingerprint,
            spec.clip,
            store / "cache",
            workers=execution.decode_workers,
        )
    return opened[fingerprint]


def _begin(run: RunDir, spec: RunSpec) -> int:
    """Write spec and provenance; returns the number of this attempt, from 1."""
    if run.spec.exists():
        if run.read_spec() != spec:
            raise RunFailed(
                "code", f"{run.spec} is not the spec of run {run.run_id}: the store was edited by hand"
            )
    else:
        write_atomically(run.spec, pretty_json(spec))
    environment = Environment()
    if run.env.exists():
        environment = msgspec.json.decode(run.env.read_bytes(), type=Environment)
    environment.attempts.append(_provenance())
    write_atomically(run.env, pretty_json(environment))
    return len(environment.attempts)


def _provenance() -> dict[str, str | None]:
    from importlib.metadata import version

    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Commit of the code, None where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _record(run: RunDir, kind: str, message: str, attempt: int, trace: str | None) -> None:
    from salt.metrics import read_metrics

    rows = read_metrics(run.metrics)
    error = RunError(
        run_id=run.run_id,
        kind=kind,
        message=message,
        attempt=attempt,
        step=rows[-1]["step"] if rows else None,
        host=socket.gethostname(),
        traceback=trace,
    )
    write_atomically(run.error, pretty_json(error))
