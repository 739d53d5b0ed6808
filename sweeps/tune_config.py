"""A tuning on disk: `<store>/tuning/<name>/`. What it is of is written once, and every worker holds to it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from salt.errors import UserError
from salt.specs import PositiveFloat, PositiveInt, Spec
from salt.store import pretty_json, read_json, write_atomically
from sweeps.tune_space import Axis, Space

Objective = Literal["accuracy", "loss", "flops"]
DIRECTIONS: dict[Objective, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "loss": "minimize",
    "flops": "minimize",
}
CONFIG, STUDY, JOURNAL, SUMMARY = "config.json", "study.yaml", "journal.log", "tuning.json"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=80)]


class TuneConfig(Spec, kw_only=True):
    """What is tuned, where, and towards what. `trials` may grow; everything else stays.

    `folder` is what paths in the study file are relative to.
    """

    name: Name
    study: str
    study_sha256: str
    folder: str
    quick: bool = False
    arms: tuple[str, ...]
    student: str
    budget: PositiveFloat
    teacher: str | None = None
    share: float | None = None
    seed: int
    space: dict[str, Axis]
    objectives: tuple[Objective, ...]
    label: str | None = None
    probe: str | None = None
    prune: bool = False
    trials: PositiveInt


def tuning_dir(store: Path, name: str) -> Path:
    return store / "tuning" / name


def check_objectives(
    objectives: tuple[Objective, ...], prune: bool, space: Space, arms: tuple[str, ...]
) -> None:
    """Refuse at once what would only fail, or mislead, after hours.

    Raises:
        UserError: names the options that do not go together, and the way out.
    """
    if len(set(objectives)) < len(objectives):
        raise UserError(f"--objective {','.join(objectives)}: one of them is there twice")
    if prune and len(objectives) > 1:
        raise UserError(
            f"--prune with {len(objectives)} objectives: whether a trial is worth going on has no one answer "
            "there; tune for one objective with --prune, or leave --prune out"
        )
    if "flops" in objectives and "budget_flops" not in space:
        raise UserError(
            "--objective flops: all trials of a cell cost the same; add a range of budget_flops to the "
            "space, "
            "or leave flops out"
        )
    if "flops" in objectives and len(objectives) == 1:
        raise UserError("--objective flops alone is always the smallest budget: add accuracy")
    if "flops" not in objectives and "budget_flops" in space:
        raise UserError(
            "budget_flops in the space with the objective "
            f"{objectives[0]} alone is always the largest budget: tune for accuracy,flops, or take it out"
        )
    if not prune and "loss" not in objectives:
        return
    what = "--prune" if prune else "--objective loss"
    moved = [name for name in space if name == "masks" or name.startswith("objective.")]
    if moved:
        raise UserError(
            f"{what} goes by the training loss, and trials that differ in {moved[0]} have other "
            "targets, whose "
            "losses are on no common scale: take it out of the space, or tune for accuracy without --prune"
        )


def write_config(store: Path, config: TuneConfig, study_data: bytes) -> TuneConfig:
    """Write what a tuning is of, unless it is there; the one that holds. More trials may be asked for.

    Of several processes that begin at the same time exactly one writes.

    Raises:
        UserError: a tuning of that name is of something else; names each difference and the way out.
    """
    folder = tuning_dir(store, config.name)
    path = folder / CONFIG
    if not path.exists():
        write_atomically(folder / STUDY, study_data)
        beside = folder / f".{CONFIG}.{uuid.uuid4().hex}"
        write_atomically(beside, pretty_json(config))
        try:
            os.link(beside, path)  # of several, one succeeds
        except FileExistsError:
            pass
        finally:
            beside.unlink()
    there = read_config(store, config.name)
    wanted, has = (msgspec.to_builtins(each) for each in (config, there))
    free = {"trials", "folder"}
    differ = [key for key in wanted if key not in free and wanted[key] != has[key]]
    if differ:
        lines = "\n  ".join(f"{key}: {_short(has[key])} -> {_short(wanted[key])}" for key in differ)
        raise UserError(
            f"tuning {config.name!r} in {store} is of something else, and its trials cannot be compared "
            f"(there -> asked):\n  {lines}\n"
            f"begin a new one, with its finished trials where they fit: --name NEW --seed-from {config.name}"
        )
    if config.trials > there.trials:
        there = msgspec.structs.replace(there, trials=config.trials)
        write_atomically(path, pretty_json(there))
    return there


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 300 else f"{text[:297]}..."


def read_config(store: Path, name: str) -> TuneConfig:
    """Raises `UserError` where there is no such tuning."""
    path = tuning_dir(store, name) / CONFIG
    if not path.is_file():
        have = sorted(each.parent.name for each in (store / "tuning").glob(f"*/{CONFIG}"))
        raise UserError(f"no tuning {name!r} in {store}: have {', '.join(have) or 'none'}")
    return read_json(path, TuneConfig)
