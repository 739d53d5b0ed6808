"""From a checked study to a plan: lists read, the grid solved, the plan's files written.

    <store>/plans/<name>/{study.yaml, plan.jsonl, costs.csv}

The same study and data give the same bytes.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt.errors import UserError
from salt.lists import read_list
from salt.plan_specs import Plan
from salt.plans import decode_plan, plan_dir
from salt.specs import CellArm, DataSpec, ProbeSpec, RunSpec
from salt.store import file_sha256, write_atomically
from sweeps.bases import Bases
from sweeps.cell_names import CellNames
from sweeps.config import SPLITS, ProbeConfig
from sweeps.draft import Draft
from sweeps.execution import planned_execution
from sweeps.grid import Grid, solve_grid
from sweeps.probe_checks import refuse_probes
from sweeps.references import references_of
from sweeps.sources import check_lists, check_sample_sizes, data_of, list_places
from sweeps.study import Study
from sweeps.verdicts import refuse

if TYPE_CHECKING:
    from sweeps.site import SiteSpec


def draft_plan(study: Study) -> Draft:
    """The whole plan of a study; reads the lists, writes nothing.

    Raises:
        UserError: a list is missing, empty or lacks a label, or cells cannot be built or paid.
    """
    with _no_collection():
        return _draft(study)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector: a large plan keeps all it makes, and looking for garbage is a fifth."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is kept now is not looked at again either
        if on:
            gc.enable()


def _draft(study: Study) -> Draft:
    paths = [source for source in study.sources.values() if isinstance(source, Path)]
    by_path = {path: read_list(path) for path in dict.fromkeys(paths)}
    lists = {key: by_path[source] for key, source in study.sources.items() if isinstance(source, Path)}
    check_lists(study, lists)
    data = data_of(study, lists)
    check_sample_sizes(study, data)
    grid = solve_grid(study, Bases(study, data["train"], site_of(study)))
    _check_same_twice(study, CellNames(grid))
    _check_arms_differ(grid)
    refuse(grid)
    suites = {probe.name: _probe_spec(study, probe, data) for probe in study.file.probes}
    references = references_of(grid, data["train"])
    refuse_probes(grid, suites, references)
    execution = planned_execution(grid, list_places(study, data))
    return Draft(grid, execution, suites, references, by_path)


def build_plan(study: Study) -> Plan:
    """The plan of a study as one object; see `draft_plan`."""
    return decode_plan(b"".join(draft_plan(study).lines()))


def require_lists_decode(draft: Draft) -> None:
    """Raise `UserError` unless a file of every list can be decoded."""
    from salt.clips import require_decodable

    for path, videos in draft.lists.items():
        require_decodable(path, draft.study.file.clip, videos=videos)


def site_of(study: Study) -> SiteSpec | None:
    """The site profile that the study names, or none."""
    if study.file.site is None:
        return None
    from sweeps.site import load_site

    return load_site(None if study.file.site == "default" else study.folder / study.file.site)


def _probe_spec(study: Study, probe: ProbeConfig, data: dict[str, DataSpec]) -> ProbeSpec:
    own = {split: data.get(f"{probe.name}.{split}", data[split]) for split in SPLITS}
    fields = {
        "labels": probe.labels,
        "kinds": probe.kinds,
        "frames": probe.frames,
        "train_clips": probe.train_clips,
        "selection_clips": probe.selection_clips,
        "report_clips": probe.report_clips,
        "seed": probe.seed,
        **{split: msgspec.to_builtins(spec) for split, spec in own.items()},
    }
    try:
        return msgspec.convert({**study.probe_settings(probe), **fields}, ProbeSpec)
    except msgspec.ValidationError as error:
        raise UserError(f"{study.path}: probes.{probe.name}.settings: {error}") from error


def _check_same_twice(study: Study, names: CellNames) -> None:
    """Two cells of one name would be one cell counted twice; names are made of the names along the axes."""
    for parts in names.axes():
        seen: set[str] = set()
        for part in parts:
            if part in seen:
                raise UserError(
                    f"{study.path}: {part.strip('-')!r} comes twice in the grid; remove the repeated entry"
                )
            seen.add(part)


def _check_arms_differ(grid: Grid) -> None:
    """Two arms whose students differ in nothing would be one arm counted twice."""
    import numpy as np

    arms: dict[RunSpec, CellArm] = {}
    for number in np.unique(grid.base).tolist():
        base = grid.bases.all[number]
        other = arms.setdefault(base.spec, base.arm)
        if other != base.arm:
            weight = base.spec.objective.pixel_weight
            raise UserError(
                f"{grid.study.path}: arms.{other} and arms.{base.arm} have the same students, of "
                f"{base.teacher} with pixel_weight {weight:g}; a student with pixels is a hybrid: leave it "
                "to one of them"
            )


# --- files ----------------------------------------------------------------------------------------


#: Longer tables of costs are not written: nobody opens them, and plan.jsonl has the same numbers.
COSTS_ROWS = 200_000


@dataclass(frozen=True, kw_only=True)
class Written:
    """What writing a plan did to the plan of that name that stood there before."""

    folder: Path
    outcome: str  # "new", "unchanged" or "replaced"
    sha256: str
    runs_added: int
    runs_removed: int

    def __str__(self) -> str:
        if self.outcome != "replaced":
            return f"{self.outcome}: {self.folder}"
        return (
            f"replaced: {self.folder} ({self.runs_added} runs added, {self.runs_removed} no longer wanted; "
            "finished runs stay in the store)"
        )


def write_plan(store: Path, draft: Draft) -> Written:
    """Write the three files of a plan, `plan.jsonl` last.

    A plan of the same name is replaced: runs are named by their content, so nothing that was computed is
    lost. The answer says how many runs came and went. Models of transformers that it names are copied into
    the store first, so that jobs find them wherever they run.
    """
    from sweeps.costs import costs_csv

    folder = plan_dir(store, draft.study.name)
    path = folder / "plan.jsonl"
    used = {run.run_id for run in draft.others} | {ref.run.run_id for ref in draft.references}
    for external in draft.study.external.values():
        if external.run_id in used:
            external.bring(store)
    before = _run_ids(path) if path.exists() else None
    old = file_sha256(path) if path.exists() else None
    write_atomically(folder / "study.yaml", draft.study.data)
    if len(draft.kept) <= COSTS_ROWS:
        write_atomically(folder / "costs.csv", costs_csv(draft))
    else:
        (folder / "costs.csv").unlink(missing_ok=True)
    digest = hashlib.sha256()
    with _no_collection():
        write_atomically(path, _hashed(draft.lines(), digest.update))
    outcome = "new" if old is None else "unchanged" if old == digest.hexdigest() else "replaced"
    now = _run_ids(path) if outcome == "replaced" else set()
    added = len(now - (before or set())) if outcome == "replaced" else 0
    return Written(
        folder=folder,
        outcome=outcome,
        sha256=digest.hexdigest(),
        runs_added=draft.run_count if outcome == "new" else added,
        runs_removed=len((before or set()) - now) if outcome == "replaced" else 0,
    )


def _hashed(pieces: Iterator[bytes], update: object) -> Iterator[bytes]:
    for piece in pieces:
        update(piece)  # type: ignore[operator]
        yield piece


class _AnyLine(msgspec.Struct):
    record: str = ""
    run_id: str = ""


def _run_ids(path: Path) -> set[str]:
    """Runs of a plan that is being replaced; none where it was written by another version or damaged."""
    decoder = msgspec.json.Decoder(_AnyLine)
    found = set()
    with open(path, "rb") as file:
        for text in file:
            try:
                line = decoder.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if line.record == "run" and line.run_id:
                found.add(line.run_id)
    return found
