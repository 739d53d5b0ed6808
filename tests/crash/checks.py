"""What must hold of a store: always, that every file can be read; in the end, that no crash shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load

from salt.artefact import read_weights
from salt.checkpoint import Seal
from salt.errors import RunFailed, UserError
from salt.metrics import read_metrics
from salt.plan_specs import Plan
from salt.store import RunDir
from slurm.states import State, assess

#: Fields that tell of attempts, as do those that begin with `burnt_`; those that end in `_s` tell of time.
#: All others are the run's own.
OF_ATTEMPTS = (
    "attempt", "attempts", "utilisation", "data_wait_share", "peak_memory_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """A finished run, without what differs from one attempt to the next."""

    files: dict[str, str]  # relative path -> hash; "" where time is in the file
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    probes: dict[str, Any]


def facts_of(run: RunDir) -> Facts:
    """Everything that two stores have to agree in, of a run that is done."""
    files = {}
    for path in sorted(run.path.rglob("*")):
        if path.is_file() and path.name != "claim.lock":
            timeless = path.suffix == ".safetensors" or path in (run.spec, run.inputs)
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if timeless else ""
            files[str(path.relative_to(run.path))] = digest
    rows = [_timeless(row) for row in read_metrics(run.metrics)]
    result = _timeless(msgspec.to_builtins(run.read_result()))
    probes = {
        path.stem: _timeless(msgspec.to_builtins(run.read_probe(path.stem)))
        for path in sorted(run.probes.glob("[!.]*.json"))
    }
    return Facts(files, rows, result, probes)


def _timeless(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in fields.items()
        if not (key in OF_ATTEMPTS or key.startswith("burnt_") or key.endswith("_s"))
    }


def unreadable(store: Path, plan: Plan) -> list[str]:
    """Files of a plan's runs that are not whole. Names that begin with a dot are no files yet."""
    problems = []
    for planned in plan.runs:
        run = RunDir(store, planned.run_id)
        readers: dict[Path, Callable[[], object]] = {
            run.spec: run.read_spec,
            run.inputs: run.read_inputs,
            run.error: run.read_error,
            run.result: run.read_result,
            run.env: partial(_read_json, run.env),
            run.artefact: partial(read_weights, run, planned.spec),
            run.metrics: partial(read_metrics, run.metrics),
        }
        for place in (run.checkpoints, run.kept):
            readers |= {seal: partial(_read_sealed, run, seal) for seal in place.glob("step-*.json")}
        readers |= {path: partial(run.read_probe, path.stem) for path in run.probes.glob("[!.]*.json")}
        for path, read in readers.items():
            try:
                if path.exists():
                    read()
            except (RunFailed, UserError, ValueError, OSError, SafetensorError) as error:
                problems.append(f"{path}: {error}")
    return problems


def _read_json(path: Path) -> object:
    return json.loads(path.read_bytes())


def _read_sealed(run: RunDir, seal_path: Path) -> None:
    seal = msgspec.json.decode(seal_path.read_bytes(), type=Seal)
    data = seal_path.with_suffix(".safetensors").read_bytes()
    if seal.run_id != run.run_id or hashlib.sha256(data).hexdigest() != seal.sha256:
        raise ValueError("its seal does not match")
    load(data)


def differences(store: Path, plan: Plan, wanted: Mapping[str, Facts]) -> list[str]:
    """Whatever a disturbed store that was brought to its end has, and one that was left alone has not."""
    problems = unreadable(store, plan)
    standings = assess(store, plan)
    for planned in plan.runs:
        run, name = RunDir(store, planned.run_id), f"run {planned.run_id} ({planned.spec.arm})"
        state = standings[planned.run_id].state
        if state is not State.DONE:
            error = run.read_error()
            problems.append(f"{name} is {state}: {error.message if error else 'no error'}")
            continue
        found, ours = facts_of(run), wanted[planned.run_id]
        if found.result != ours.result:
            problems.append(f"{name}: result {_unlike(found.result, ours.result)}")
        if found.probes != ours.probes:
            problems.append(f"{name}: probes {_unlike(found.probes, ours.probes)}")
        problems += [f"{name}: {each}" for each in _unlike_rows(found.rows, ours.rows)]
        problems += [f"{name}: {each}" for each in _unlike_files(found.files, ours.files)]
        problems += [f"{name}: {each}" for each in account_problems(run)]
    return problems


def leftovers(store: Path) -> list[str]:
    """Files and folders beside the runs that only a crash leaves: temporaries, unfinished builds."""
    found = [path for pattern in ("*.tmp", "*.building*", "*.old") for path in store.rglob(pattern)]
    names = [path.relative_to(store) for path in found]
    return [f"left over: {name}" for name in names if name.parts[0] != "runs"]


def account_problems(run: RunDir) -> list[str]:
    """Time goes on, and what was burnt is what the lines of the attempts say."""
    rows = read_metrics(run.metrics)
    problems = []
    times = [row["wall_s"] for row in rows]
    if times != sorted(times):
        problems.append(f"training time goes back: {times}")
    ranks = [row[name] for row in rows for name in ("target_rank", "target_rank_highest") if name in row]
    if ranks and "target_rank_highest" in rows[-1] and rows[-1]["target_rank_highest"] < max(ranks):
        problems.append(f"target_rank_highest ends at {rows[-1]['target_rank_highest']}, below {max(ranks)}")
    # A step that was done and not yet logged is burnt too: one at most for each attempt, as each is logged.
    lost = sum(lost_steps(run))
    if rows and not lost <= rows[-1]["burnt_steps"] < lost + rows[-1]["attempt"]:
        burnt = rows[-1]["burnt_steps"]
        problems.append(f"burnt_steps {burnt}, and {rows[-1]['attempt']} attempts lost {lost} logged ones")
    return problems


def lost_steps(run: RunDir) -> list[int]:
    """Steps that each attempt did once more, from the lines as they were written; a line a step."""
    last, attempt, lost = None, None, []
    for line in run.metrics.read_text(errors="replace").splitlines() if run.metrics.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut by a kill
        if last is not None and row["attempt"] != attempt:
            lost.append(max(0, last - (row["step"] - 1)))
        last, attempt = row["step"], row["attempt"]
    return lost


def _unlike(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return "; ".join(f"{key}: {found.get(key)!r}, not {wanted.get(key)!r}" for key in keys)


def _unlike_rows(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[str]:
    steps = [row["step"] for row in found]
    if steps != [row["step"] for row in wanted]:
        return [f"steps logged: {steps}"]
    return [
        f"step {ours['step']}: {_unlike(row, ours)}"
        for row, ours in zip(found, wanted, strict=True)
        if row != ours
    ]


def _unlike_files(found: Mapping[str, str], wanted: Mapping[str, str]) -> Iterable[str]:
    for name in sorted({*found, *wanted}):
        if name not in wanted:
            yield f"left over: {name}"
        elif name not in found:
            yield f"missing: {name}"
        elif found[name] != wanted[name]:
            yield f"{name} has other contents"
