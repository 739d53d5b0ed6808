"""How many runs share a GPU, by the memory that runs like them have taken there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from salt.attempts import read_attempts
from salt.plan_specs import Plan, PlannedRun
from salt.smaller import need_of
from salt.specs import ExecSpec, RunSpec, canonical_json
from salt.store import DamagedFile, RunDir

#: What a process takes of a GPU beside what torch counts: CUDA's context, its libraries and their workspaces.
CONTEXT_BYTES = 2**30

#: What decides how much memory a run takes, as text.
Kind = tuple[str, ...]


def runs_that_fit(
    store: Path, plan: Plan, runs: Sequence[PlannedRun], gpu_bytes: int, reserve_bytes: int = 0
) -> int:
    """How many of these runs can be on a GPU of `gpu_bytes` at once, `reserve_bytes` of it left free.

    It counts with the largest peak that finished runs of the same kinds have had on a GPU, in any plan of the
    store; runs that train nothing are passed over. 1 where a kind was not measured yet, or not even two fit.
    """
    wanted = {kind_of(run.spec, plan.execution) for run in runs if run.spec.steps}
    peaks = _measured(store, wanted)
    if not wanted or set(peaks) != wanted:
        return 1
    return max(1, (gpu_bytes - reserve_bytes) // (max(peaks.values()) + CONTEXT_BYTES))


def kind_of(spec: RunSpec, execution: ExecSpec) -> Kind:
    """Runs of one kind keep the same tensors: model, teacher, clips, masks, batch and how it is cut."""
    teacher = "" if spec.teacher is None else canonical_json(spec.teacher.encoder).decode()
    need = need_of(spec, execution)
    return (
        spec.arm,
        canonical_json(spec.model).decode(),
        teacher,
        canonical_json(spec.clip).decode(),
        canonical_json(spec.masks).decode(),
        canonical_json(spec.objective).decode(),
        f"{spec.optim.batch_clips} {spec.optim.precision} {spec.cached_views is None}",
        f"{need} {need.processes} {need.sharding}",
    )


def _measured(store: Path, wanted: Iterable[Kind]) -> dict[Kind, int]:
    """The largest peak of each kind, of runs that trained on a GPU. The status tells of damaged files."""
    wanted, peaks = set(wanted), dict[Kind, int]()
    for path in sorted((store / "runs").glob("*/*/result.json")):
        folder = RunDir(store, path.parent.name)
        try:
            result = folder.read_result()
            if result is None or result.peak_memory_bytes is None:
                continue
            kind = _ran_as(folder, result.attempts)
        except DamagedFile:
            continue
        if kind in wanted:
            peaks[kind] = max(peaks.get(kind, 0), result.peak_memory_bytes)
    return peaks


def _ran_as(folder: RunDir, attempt: int) -> Kind | None:
    """The kind as which a run's attempt number `attempt` trained; None if not on a GPU, or not known."""
    attempts = read_attempts(folder)
    if not (0 < attempt <= len(attempts)) or not folder.spec.exists():
        return None
    about = attempts[attempt - 1]
    clips, processes = about.get("micro_batch_clips") or "", about.get("processes") or ""
    if (about.get("hardware") or "cpu") == "cpu" or not clips.isdigit() or not processes.isdigit():
        return None
    sharding = about.get("sharding")
    execution = ExecSpec(
        micro_batch_clips=int(clips),
        recompute=about.get("recompute") == "true",
        processes=int(processes),
        sharding="optimizer" if sharding == "optimizer" else "full" if sharding == "full" else "none",
    )
    return kind_of(folder.read_spec(), execution)
