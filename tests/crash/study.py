"""The study that is disturbed: real clips, every way in which a run can begin and end, seconds to run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from salt.flops import run_cost
from salt.plan_specs import Plan, PlannedRun, Role
from salt.plans import encode_plan, plan_dir
from salt.specs import DataSpec, ExecSpec, ProbeSpec, RunSpec, TeacherRef, TrunkRef, spec_id
from salt.store import RunDir, write_atomically
from tests.arms_kit import CLIP, NARROW, data_of, run_spec, write_clips

STEPS = 30
#: Four checkpoints a run: the third takes the first away.
CHECKPOINT_EVERY = 7
KEPT = 14
PLAN, STREAMING_PLAN = "crash", "crash-workers"
CLIPS = {"train": 12, "selection": 8, "report": 8}


@dataclass(frozen=True)
class Study:
    """A store that is ready to be submitted, its plan, and its runs by what they are."""

    store: Path
    plan: Plan
    names: dict[str, str]  # name -> run_id

    def planned(self, name: str) -> PlannedRun:
        return next(run for run in self.plan.runs if run.run_id == self.names[name])

    def run(self, name: str, store: Path | None = None) -> RunDir:
        return RunDir(store or self.store, self.names[name])

    def needs(self, name: str) -> list[str]:
        """Run ids of what a run begins from, whole chain."""
        spec = self.planned(name).spec
        above = [ref.run_id for ref in (spec.teacher, spec.trunk) if ref is not None]
        names = {run_id: each for each, run_id in self.names.items()}
        return [*above, *(run_id for each in above for run_id in self.needs(names[each]))]


def make_study(folder: Path) -> Study:
    """Write clips, a store and its plans in an empty folder; nothing is decoded or trained yet."""
    lists = {
        name: write_clips(folder / name, clips=count, first=100 * place)
        for place, (name, count) in enumerate(CLIPS.items())
    }
    data = {name: data_of(path, name) for name, path in lists.items()}
    suite = ProbeSpec(
        labels=("motion",), kinds=("linear", "knn"), neighbours=(1,), label_free=("rankme",),
        train=data["train"], selection=data["selection"], report=data["report"],
        train_clips=CLIPS["train"], selection_clips=CLIPS["selection"], report_clips=CLIPS["report"],
    )  # fmt: skip
    specs = _specs(data["train"])
    roles: dict[str, Role] = {"teacher": "teacher", "trunk": "trunk"}
    suites = {spec_id(suite): suite}
    runs = [
        PlannedRun(
            run_id=spec_id(spec),
            role=roles.get(name, "student"),
            spec=spec,
            cost=run_cost(spec),
            probe_ids=tuple(suites) if name in ("teacher", "moving", "online") else (),
        )
        for name, spec in specs.items()
    ]
    execution = ExecSpec(
        log_every_steps=1,
        checkpoint_every_steps=CHECKPOINT_EVERY,
        decode_workers=0,
        lists={data[name].fingerprint: str(path) for name, path in lists.items()},
    )
    plan = Plan(
        name=PLAN, study_sha256="0" * 64, convention="matmul", charge="full", match="flops",
        execution=execution, probes=suites, runs=tuple(runs), cells=(),
    )  # fmt: skip
    store = folder / "store"
    write_plan(store, plan)
    # The same runs, their streamed clips decoded by processes beside: numbers do not change.
    write_plan(store, renamed(plan, STREAMING_PLAN, decode_workers=1))
    return Study(store, plan, {name: spec_id(spec) for name, spec in specs.items()})


def _specs(data: DataSpec) -> dict[str, RunSpec]:
    """Two teachers, one of them a trunk; two students, a cooldown, a run with a moving teacher."""

    def spec(arm: str, *, schedule: str = "cosine", **more: Any) -> RunSpec:
        optim = {"batch_clips": 4, "schedule": schedule}
        return run_spec(arm, data, steps=STEPS, size=NARROW, optim=optim, **more)

    teacher = spec("pixel")
    trunk = spec("pixel", schedule="constant", keep_steps=(KEPT,))
    young = TeacherRef(run_id=spec_id(trunk), step=KEPT, encoder=trunk.model.encoder)
    cooldown = spec("pixel", schedule="cooldown", trunk=TrunkRef(run_id=spec_id(trunk), step=KEPT))
    online = spec("salt", teacher=teacher)
    cached = msgspec.structs.replace(spec("salt", cached_views=2), teacher=young)
    moving = spec("vjepa", clip=msgspec.structs.replace(CLIP, source="streamed"))
    return {
        "teacher": teacher,
        "trunk": trunk,
        "cooldown": cooldown,
        "online": online,
        "cached": cached,
        "moving": moving,
    }


def renamed(plan: Plan, name: str, **execution: int) -> Plan:
    return msgspec.structs.replace(
        plan, name=name, execution=msgspec.structs.replace(plan.execution, **execution)
    )


def only(plan: Plan, run_id: str) -> Plan:
    """The plan of one run, under that run's name: what it begins from is in the store."""
    runs = tuple(run for run in plan.runs if run.run_id == run_id)
    return msgspec.structs.replace(plan, name=f"only-{run_id}", runs=runs)


def write_plan(store: Path, plan: Plan) -> None:
    write_atomically(plan_dir(store, plan.name) / "plan.jsonl", encode_plan(plan))


def copy_store(source: Path, target: Path) -> Path:
    """A store of its own, but for decoded clips, which are a link to the source's."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("clips"))
    (target / "cache").mkdir(exist_ok=True)
    (target / "cache" / "clips").symlink_to((source / "cache" / "clips").resolve())
    return target
