"""All mistakes in a study file that need no prices and no lists, in its own words."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from salt.specs import CELL_ARMS, ObjectiveSpec, OptimSpec
from sweeps.config import SaltConfig, StageConfig
from sweeps.document import unknown_name
from sweeps.mask_config import mask_mistakes
from sweeps.sources import mixture_mistakes

if TYPE_CHECKING:
    from sweeps.study import Study

BUDGET_KEYS = {"flops": "budgets_flops", "steps": "budgets_steps", "gpu-hours": "budgets_gpu_hours"}


def problems_of(study: Study) -> list[str]:
    """Every problem, each naming its key, the value and the way out; empty when there is none.

    Raises:
        UserError: an arm's `optim` or `objective`, or a suite's `settings`, has an unknown or wrong field.
    """
    file = study.file
    problems = _budget_problems(study)
    for field, values in (("seeds", file.seeds), ("students", file.students)):
        problems += _repeated(field, values)
    problems += _unknown_sizes(study, "students", file.students)
    if not any(study.arm(arm) for arm in CELL_ARMS):
        problems.append(
            "arms: no arm is given; add one of pixel, vjepa, salt, external, hybrid (for example `pixel: {}`)"
        )
    for arm in CELL_ARMS:
        config = study.arm(arm)
        if config is not None:
            problems += _unknown_sizes(study, f"arms.{arm}.students", config.students or ())
            problems += _repeated(f"arms.{arm}.students", config.students or ())
            if config.students == ():
                problems.append(f"arms.{arm}.students: none is given; name some, or leave the key out")
            problems += _sweep_problems(study, f"arms.{arm}.sweep", config.sweep)
    for arm, taught in (("salt", file.arms.salt), ("hybrid", file.arms.hybrid)):
        if taught is not None:
            problems += _teacher_problems(study, f"arms.{arm}", taught)
    if file.arms.external is not None:
        names = file.arms.external.teachers
        problems += _unknown_external(study, "arms.external.teachers", names)
        problems += _repeated("arms.external.teachers", names)
        both = [name for name in names if file.arms.salt is not None and name in file.arms.salt.teachers]
        problems += [
            f"arms.external.teachers: {name!r} is among the teachers of arms.salt too, which makes the same "
            "students twice; name it in one of them"
            for name in both
        ]
    problems += _schedule_problems(study) + _mask_problems(study) + mixture_mistakes(study)
    problems += _unknown_external(study, "references.external", file.references.external)
    problems += _repeated("references.external", file.references.external)
    if file.references.supervised is not None:
        place, names = "references.supervised.students", file.references.supervised.students
        problems += _unknown_sizes(study, place, names) + _repeated(place, names)
    problems += _repeated("probes: name", tuple(probe.name for probe in file.probes))
    known = {*file.seeds, *(seed for extra in file.extra_seeds for seed in extra.seeds)}
    for probe in file.probes:
        missing = [seed for seed in probe.seeds or () if seed not in known]
        if missing:
            problems.append(
                f"probes.{probe.name}.seeds: {missing} are not among the study's seeds {sorted(known)}"
            )
    problems += _extra_seed_problems(study)
    if not problems:
        for arm in CELL_ARMS:
            training = study.training(arm, file.students[0])
            swept = "objective.pixel_weight" in getattr(study.arm(arm), "sweep", {})
            if arm == "hybrid" and study.arm(arm) and not swept and not training.objective.pixel_weight:
                problems.append(
                    "arms.hybrid: objective.pixel_weight is 0, which leaves latents alone, as in the arm "
                    "salt; give it a weight"
                )
        study.supervised_optim()
        for probe in file.probes:
            study.probe_settings(probe)
    return problems


def _budget_problems(study: Study) -> list[str]:
    file, key = study.file, BUDGET_KEYS[study.match]
    others = [other for other in BUDGET_KEYS.values() if other != key and getattr(file, other)]
    if others:
        return [f"{others[0]}: `match: {file.match}` takes its budgets from {key}; keep that one only"]
    if not study.budgets:
        return [f"{key}: give at least one budget, as `match: {file.match}` asks"]
    problems = _repeated(key, study.budgets)
    problems += [f"{key}: {value:g} is below one step" for value in study.budgets if not value]
    if study.match == "flops":
        problems += [f"{key}: {value!r} is not a whole number" for value in study.budgets if value % 1]
    if study.match == "gpu-hours" and file.site is None:
        problems.append("site: `match: gpu-hours` needs a site profile, or `site: default`")
    return problems


def _teacher_problems(study: Study, arm: str, config: SaltConfig) -> list[str]:
    problems = _unknown_sizes(study, f"{arm}.teachers", config.teachers, study.external)
    for field in ("teachers", "teacher_share", "teacher_flops", "teacher_steps", "chains"):
        problems += _repeated(f"{arm}.{field}", getattr(config, field))
    paid = config.teacher_share or config.teacher_flops or config.teacher_steps
    trained = [name for name in config.teachers if name not in study.external]
    if trained and not paid:
        problems.append(
            f"{arm}: say what a teacher may cost: `teacher_share: [0.3]`, `teacher_flops: [60e9]` or "
            "`teacher_steps: [40k]`"
        )
    if paid and not trained:
        problems.append(
            f"{arm}.teachers: name the sizes of the teachers that are to be trained, such as `[vit_l]`"
        )
    elsewhere = [*config.teachers, *(chain[0].teacher for chain in config.chains)]
    if elsewhere and config.teacher_sweep and all(name in study.external for name in elsewhere):
        problems.append(f"{arm}.teacher_sweep: every teacher was trained elsewhere; leave it out")
    if not config.teachers and not config.chains:
        problems.append(f"{arm}: give `teachers` or `chains`")
    problems += [
        f"{arm}.teacher_flops: {value!r} is not a whole number" for value in config.teacher_flops if value % 1
    ]
    problems += _sweep_problems(study, f"{arm}.teacher_sweep", config.teacher_sweep)
    for number, chain in enumerate(config.chains):
        problems += _chain_problems(study, f"{arm}.chains[{number}]", chain)
    if config.teacher_runs == "one" and len(config.teacher_steps) < 2:
        problems.append(
            f"{arm}.teacher_runs: `one` takes several lengths from one run: give two or more `teacher_steps`"
        )
    return problems


def _chain_problems(study: Study, where: str, chain: tuple[StageConfig, ...]) -> list[str]:
    problems = _unknown_sizes(study, where, tuple(stage.teacher for stage in chain), study.external)
    for place, stage in enumerate(chain):
        ways = [name for name in ("share", "flops", "steps") if getattr(stage, name) is not None]
        if stage.teacher not in study.external:
            if len(ways) != 1:
                got = ", ".join(ways) or "none"
                problems.append(f"{where}[{place}]: give one of share, flops, steps (it has {got})")
        elif place or ways:
            problems.append(
                f"{where}[{place}]: {stage.teacher!r} was trained elsewhere: it can only come first, and "
                "without share, flops or steps"
            )
    return problems


def _mask_problems(study: Study) -> list[str]:
    """Masks and sets of them that contradict themselves, whichever arm takes them."""
    sets = {"masks": study.file.masks} | {
        f"mask_sets.{name}": masks for name, masks in study.file.mask_sets.items()
    }
    return [
        problem
        for where, masks in sets.items()
        for number, mask in enumerate(masks)
        for problem in mask_mistakes(mask, f"{where}[{number}]", study.token_grid)
    ]


def _schedule_problems(study: Study) -> list[str]:
    file, problems = study.file, []
    sections = {"optim": file.optim} | {
        f"arms.{arm}.optim": config.optim for arm in CELL_ARMS if (config := study.arm(arm)) is not None
    }
    if file.references.supervised is not None:
        sections["references.supervised.optim"] = file.references.supervised.optim
    for place, section in sections.items():
        if "schedule" in section:
            problems.append(
                f"{place}.schedule: set `schedule: cosine` or `wsd` at the top level of the study"
            )
    if study.rules is not None and study.rules.schedule != file.schedule:
        problems.append(
            f"schedule: the recipe {study.rules.name} is for `schedule: {study.rules.schedule}`, "
            f"the study has {file.schedule!r}; change one of them"
        )
    for arm, taught in (("salt", file.arms.salt), ("hybrid", file.arms.hybrid)):
        if file.schedule != "wsd" or taught is None:
            continue
        if taught.chains:
            problems.append(
                f"arms.{arm}.chains: a chain needs `schedule: cosine`; plan it as a study of its own"
            )
        if taught.teacher_runs == "one":
            problems.append(
                f"arms.{arm}.teacher_runs: under `schedule: wsd` all lengths share a trunk anyway, each with "
                "its own cooldown; leave it at `own`"
            )
    return problems


def _sweep_problems(study: Study, where: str, sweep: dict[str, list[Any]]) -> list[str]:
    fields = [name for name in OptimSpec.__struct_fields__ if name != "schedule"]
    valid = [f"optim.{name}" for name in fields] + ["masks"]
    valid += [f"objective.{name}" for name in ObjectiveSpec.__struct_fields__]
    problems = [unknown_name(where, field, valid) for field in sweep if field not in valid]
    # Names of cells hold them.
    problems += [
        f"mask_sets.{name}: a set's name is made of letters, digits, `_` and `.`"
        for name in sweep.get("masks", ())
        if isinstance(name, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*", name)
    ]
    for field, values in sweep.items():
        if not values:
            problems.append(f"{where}.{field}: give at least one value")
        problems += _repeated(f"{where}.{field}", tuple(values))
    sets = list(study.file.mask_sets)
    for name in sweep.get("masks", ()):
        if name not in sets:
            problems.append(unknown_name(f"{where}.masks", str(name), sets or ["(none: define mask_sets)"]))
    return problems


def _extra_seed_problems(study: Study) -> list[str]:
    problems = []
    for number, extra in enumerate(study.file.extra_seeds):
        where = f"extra_seeds[{number}]"
        problems += _repeated(f"{where}.seeds", extra.seeds)
        twice = sorted(set(extra.seeds) & set(study.file.seeds))
        if twice:
            problems.append(f"{where}.seeds: {twice} are among the study's seeds already")
        given = [getattr(extra.where, field) for field in extra.where.__struct_fields__]
        if not any(value is not None for value in given):
            problems.append(f"{where}.where: say which cells, such as `students: [vit_l]`; else use `seeds`")
        for field, also in (("students", ()), ("teachers", study.external)):
            names = getattr(extra.where, field) or ()
            problems += _unknown_sizes(study, f"{where}.where.{field}", names, also)
    return problems


def _unknown_sizes(study: Study, where: str, names: tuple[str, ...], also: Collection[str] = ()) -> list[str]:
    valid = [*study.sizes, *also]
    return [unknown_name(where, name, valid) for name in names if name not in valid]


def _unknown_external(study: Study, where: str, names: tuple[str, ...]) -> list[str]:
    have = list(study.external) or ["(none: define external)"]
    return [unknown_name(where, name, have) for name in names if name not in study.external]


def _repeated(where: str, values: tuple[Any, ...]) -> list[str]:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    return [f"{where}: {twice[0]!r} comes twice; keep one of them"] if twice else []
