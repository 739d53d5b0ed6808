"""Plans on disk: `<store>/plans/<name>/plan.jsonl`, one JSON object a line.

A header, the probe suites, bases, runs, cells, and the points of the grid that were left out. A base is what
many runs share: a spec without seed, steps and the identity of its teacher, and the price of one step. Runs
and cells only say what is their own, so that a plan of a million cells is a file of some hundred megabytes;
costs are the price of a step times steps, and are not written twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from salt.errors import UserError
from salt.flops import cache_cost, step_cost
from salt.plan_specs import Cell, Plan, PlannedRun, Refused
from salt.specs import (
    CellArm,
    Charge,
    Convention,
    Cost,
    ExecSpec,
    Match,
    NonNegativeFloat,
    NonNegativeInt,
    OptimSpec,
    PositiveInt,
    ProbeSpec,
    Role,
    RunSpec,
    Spec,
    TrunkRef,
)

#: Stands for a run that is known only when seeds and steps are.
UNNAMED = ""

# Names of runs, probes and plans are names of files and folders: nothing in a plan leads out of its store.
Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+\Z", max_length=64)]
_PLAN_NAME = r"^\w[^/\\\x00-\x1f\x7f]*\Z"
PlanName = Annotated[str, Meta(pattern=_PLAN_NAME, max_length=100)]


class PlanHeader(Spec, kw_only=True, tag_field="record", tag="plan"):
    name: PlanName
    study_sha256: str
    convention: Convention
    charge: Charge
    match: Match
    execution: ExecSpec
    overrides: dict[str, Any] = {}


class ProbeLine(Spec, kw_only=True, tag_field="record", tag="probe"):
    probe_id: Id
    spec: ProbeSpec


class BaseLine(Spec, kw_only=True, tag_field="record", tag="base"):
    base: NonNegativeInt
    spec: RunSpec
    step: Cost
    cache: Cost


class RunLine(Spec, kw_only=True, tag_field="record", tag="run", omit_defaults=True):
    """`teacher` and `trunk` are (run, step); `probes` are places in the list of probe lines."""

    run_id: Id
    role: Role
    base: NonNegativeInt
    seed: NonNegativeInt
    steps: NonNegativeInt
    probes: tuple[NonNegativeInt, ...]
    teacher: tuple[Id, NonNegativeInt] | None = None
    trunk: tuple[Id, PositiveInt] | None = None
    keep_steps: tuple[PositiveInt, ...] = ()
    optim: OptimSpec | None = None  # where it is not the base's


class CellLine(Spec, kw_only=True, tag_field="record", tag="cell", omit_defaults=True):
    cell_id: str
    budget: NonNegativeFloat
    arm: CellArm
    student: str
    seed: NonNegativeInt
    run_id: Id
    residual: float
    teacher: str | None = None
    teacher_share: float | None = None
    teacher_run_id: Id | None = None
    teacher_students: NonNegativeInt = 0
    stages: tuple[Id, ...] = ()


class RefusedLine(Spec, kw_only=True, tag_field="record", tag="refused"):
    refused: Refused


PlanLine = PlanHeader | ProbeLine | BaseLine | RunLine | CellLine | RefusedLine


def plan_dir(store: Path, name: str) -> Path:
    return store / "plans" / name


# --- reading --------------------------------------------------------------------------------------


def read_plan(store: Path, name: str) -> Plan:
    """Read `plans/<name>/plan.jsonl`; a bad line, or a name that is not the plan's own, is a `UserError`."""
    path = plan_dir(store, name) / "plan.jsonl"
    if not re.match(_PLAN_NAME, name) or not path.is_file():
        raise UserError(
            f"no plan {name!r} in {store}: have {', '.join(plan_names(store)) or 'none'}; "
            "make one with `salt-sweep plan STUDY.yaml`"
        )
    plan = decode_plan(path.read_bytes(), str(path))
    if plan.name != name:
        raise UserError(
            f"{path}: the plan in this folder is called {plan.name!r}; rename the folder, or plan again"
        )
    return plan


def decode_plan(data: bytes, where: str = "plan") -> Plan:
    """The plan in the bytes of a `plan.jsonl`; `where` names the file in errors."""
    reader = _Reader()
    decoder = msgspec.json.Decoder(PlanLine)
    for number, text in enumerate(data.splitlines(), start=1):
        try:
            reader.take(decoder.decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _BadLine) as error:
            raise UserError(
                f"{where}:{number}: {error}; make the plan again with `salt-sweep plan`"
            ) from error
        except (KeyError, IndexError, AssertionError) as error:
            what = f"refers to {error}" if str(error) else "needs a run or a header"
            raise UserError(
                f"{where}:{number}: {what}, which no line before it defines; make the plan again "
                "with `salt-sweep plan`"
            ) from error
    if reader.header is None:
        raise UserError(f"{where}: no plan header; make the plan again with `salt-sweep plan`")
    return Plan(
        **msgspec.structs.asdict(reader.header),
        probes=reader.probes,
        runs=tuple(reader.runs.values()),
        cells=tuple(reader.cells),
        refused=tuple(reader.refused),
    )


class _BadLine(ValueError):
    """A line that contradicts those before it."""


class _Reader:
    """Puts the lines of a plan together; every line refers to earlier ones only."""

    def __init__(self) -> None:
        self.header: PlanHeader | None = None
        self.probes: dict[str, ProbeSpec] = {}
        self.bases: list[BaseLine] = []
        self.runs: dict[str, PlannedRun] = {}
        self.base_of: dict[str, BaseLine] = {}
        self.cells: list[Cell] = []
        self.refused: list[Refused] = []
        self._probe_ids: list[str] = []
        self._begun_from: set[str] = set()

    def take(self, line: PlanLine) -> None:
        if isinstance(line, CellLine):
            self.cells.append(self._cell(line))
        elif isinstance(line, RunLine):
            self._refuse_order(line)
            self.runs[line.run_id] = self._run(line)
            self.base_of[line.run_id] = self.bases[line.base]
        elif isinstance(line, BaseLine):
            self.bases.append(line)
        elif isinstance(line, ProbeLine):
            if line.probe_id in self.probes:
                raise _BadLine(f"probe suite {line.probe_id} comes twice")
            self.probes[line.probe_id] = line.spec
            self._probe_ids.append(line.probe_id)
        elif isinstance(line, RefusedLine):
            self.refused.append(line.refused)
        elif self.header is not None:
            raise _BadLine("a second header")
        else:
            self.header = line

    def _refuse_order(self, line: RunLine) -> None:
        """A run comes once, and after those that it begins from: nothing is its own teacher."""
        self._begun_from.update(above[0] for above in (line.teacher, line.trunk) if above is not None)
        if line.run_id in self._begun_from:
            raise _BadLine(f"run {line.run_id} comes after a run that begins from it, or begins from itself")
        if line.run_id in self.runs:
            raise _BadLine(f"run {line.run_id} comes twice")

    def _run(self, line: RunLine) -> PlannedRun:
        base = self.bases[line.base]
        teacher = None
        if line.teacher is not None:
            run_id, step = line.teacher
            assert base.spec.teacher is not None
            teacher = msgspec.structs.replace(base.spec.teacher, run_id=run_id, step=step)
        trunk = None
        if line.trunk is not None:
            trunk = TrunkRef(run_id=line.trunk[0], step=line.trunk[1])
        spec = msgspec.structs.replace(
            base.spec,
            seed=line.seed,
            steps=line.steps,
            teacher=teacher,
            trunk=trunk,
            keep_steps=line.keep_steps,
            optim=line.optim or base.spec.optim,
        )
        own_steps = line.steps - (trunk.step if trunk is not None else 0)
        if own_steps < 0:
            raise _BadLine(f"run {line.run_id} ends before its trunk's step")
        return PlannedRun(
            run_id=line.run_id,
            role=line.role,
            spec=spec,
            cost=base.step * own_steps + base.cache,
            probe_ids=tuple(self._probe_ids[place] for place in line.probes),
        )

    def _cell(self, line: CellLine) -> Cell:
        assert self.header is not None
        spec = self.runs[line.run_id].spec
        own = self._path(line.run_id, spec.steps)
        above: Cost | None = None
        teacher_steps: int | None = None
        if line.teacher_run_id is not None and spec.teacher is not None:
            teacher_steps, above = spec.teacher.step, self._path(line.teacher_run_id, spec.teacher.step)
            later = self.runs[line.teacher_run_id].spec
            for run_id in reversed(line.stages):
                assert later.teacher is not None
                above = self._path(run_id, later.teacher.step) + above
                later = self.runs[run_id].spec
        charged = charged_flops(own, above, self.header.charge, line.teacher_students)
        matched = self.header.match == "flops" or not line.budget
        return Cell(
            cell_id=line.cell_id,
            budget=line.budget,
            budget_flops=int(line.budget) if matched else charged,
            arm=line.arm,
            student=line.student,
            teacher=line.teacher,
            teacher_share=line.teacher_share,
            teacher_steps=teacher_steps,
            seed=line.seed,
            run_id=line.run_id,
            teacher_run_id=line.teacher_run_id,
            stages=line.stages,
            teacher_students=line.teacher_students,
            teacher_cost=above,
            cost=own,
            charged_flops=charged,
            residual=line.residual,
        )

    def _path(self, run_id: str, step: int) -> Cost:
        base = self.base_of[run_id]
        return base.step * step + base.cache


def charged_flops(own: Cost, above: Cost | None, charge: Charge, students: int) -> int:
    """What a cell answers for: its own way, and all, a k-th or nothing of its teachers' training.

    Cached targets are made for a student's data: under `shared` its k students share them like the teacher,
    under `none` they are still to be made.
    """
    total, share = own.total_flops, max(1, students)
    cache = own.parts.get("teacher_cache")
    if charge == "shared" and cache is not None:
        total -= cache.forward - cache.forward // share
    if above is None or charge == "none":
        return total
    return total + above.total_flops // (share if charge == "shared" else 1)


# --- writing --------------------------------------------------------------------------------------


def base_of(spec: RunSpec) -> RunSpec:
    """A run's spec without what is its own: seed, steps, names of other runs."""
    teacher = spec.teacher
    if teacher is not None:
        teacher = msgspec.structs.replace(teacher, run_id=UNNAMED, step=0)
    return msgspec.structs.replace(spec, seed=0, steps=0, teacher=teacher, trunk=None, keep_steps=())


def base_key(spec: RunSpec) -> RunSpec:
    """What makes two runs share a base: all that has a price. The recipe has none, but for its batch."""
    return msgspec.structs.replace(base_of(spec), optim=OptimSpec(batch_clips=spec.optim.batch_clips))


class BaseNumbers:
    """Numbers of bases in the order in which runs first use them; the first run's recipe is the base's."""

    def __init__(self) -> None:
        self._known: dict[RunSpec, int] = {}
        self.specs: list[RunSpec] = []

    def number(self, spec: RunSpec) -> int:
        """The number of a run's base, which is new where no run before had it."""
        number = self._known.setdefault(base_key(spec), len(self._known))
        if number == len(self.specs):
            self.specs.append(base_of(spec))
        return number

    def own_optim(self, number: int, optim: OptimSpec) -> OptimSpec | None:
        """A run's recipe where it is not that of its base."""
        return None if optim == self.specs[number].optim else optim


def base_line(number: int, spec: RunSpec, convention: Convention) -> BaseLine:
    """The line of a base, with the price of one step of it and of its cached targets."""
    return BaseLine(
        base=number, spec=spec, step=step_cost(spec, convention), cache=cache_cost(spec, convention)
    )


def encode_lines(lines: Iterable[Any]) -> bytes:
    """Lines as JSON with sorted keys, each ended by a newline."""
    return b"".join(msgspec.json.encode(line, order="sorted") + b"\n" for line in lines)


def encode_plan(plan: Plan) -> bytes:
    """The bytes of `plan.jsonl`."""
    header = {name: getattr(plan, name) for name in PlanHeader.__struct_fields__}
    lines: list[PlanLine] = [PlanHeader(**header)]
    probe_ids = sorted(plan.probes)
    lines += [ProbeLine(probe_id=name, spec=plan.probes[name]) for name in probe_ids]
    bases = BaseNumbers()
    runs = [
        run_line(
            bases, run.spec, run.run_id, run.role, tuple(probe_ids.index(name) for name in run.probe_ids)
        )
        for run in plan.runs
    ]
    lines += [base_line(number, spec, plan.convention) for number, spec in enumerate(bases.specs)]
    lines += runs
    lines += [_cell_line(cell) for cell in plan.cells]
    lines += [RefusedLine(refused=refused) for refused in plan.refused]
    return encode_lines(lines)


def run_line(bases: BaseNumbers, spec: RunSpec, run_id: str, role: Role, probes: tuple[int, ...]) -> RunLine:
    """The line of a run; its base is numbered if it is new."""
    number = bases.number(spec)
    return RunLine(
        run_id=run_id,
        role=role,
        base=number,
        seed=spec.seed,
        steps=spec.steps,
        probes=probes,
        teacher=None if spec.teacher is None else (spec.teacher.run_id, spec.teacher.step),
        trunk=None if spec.trunk is None else (spec.trunk.run_id, spec.trunk.step),
        keep_steps=spec.keep_steps,
        optim=bases.own_optim(number, spec.optim),
    )


def _cell_line(cell: Cell) -> CellLine:
    return CellLine(**{name: getattr(cell, name) for name in CellLine.__struct_fields__})


# --- choosing -------------------------------------------------------------------------------------


def plan_names(store: Path) -> list[str]:
    """Plans of a store, newest first."""
    files = [path for path in (store / "plans").glob("*/plan.jsonl") if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.parent.name for path in files]


def choose_plan(store: Path, name: str | None) -> str:
    """The named plan, or the newest one of the store."""
    if name is not None:
        # A study file is accepted where a name is meant. What is no plan's name, `read_plan` refuses.
        return Path(name).stem if name.endswith((".yaml", ".yml")) else name
    names = plan_names(store)
    if not names:
        raise UserError(f"no plan in {store}: make one with `salt-sweep plan STUDY.yaml`")
    return names[0]
