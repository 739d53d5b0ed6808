"""What came of a tuning: trials per arm, the best of each, a table of all, and the recipe that studies
name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt.errors import UserError
from salt.specs import ARMS
from salt.store import pretty_json, write_atomically
from sweeps.tune_config import DIRECTIONS, JOURNAL, SUMMARY, TuneConfig, tuning_dir

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from sweeps.study import Study

SPLIT = "selection"


def trials_of(store: Path, config: TuneConfig, grace_s: int) -> dict[str, list[FrozenTrial]]:
    """All trials by arm, as the journal has them."""
    from sweeps.tune_journal import open_journal
    from sweeps.tune_work import open_study

    storage = open_journal(tuning_dir(store, config.name) / JOURNAL, grace_s)
    return {arm: open_study(storage, config, arm).get_trials() for arm in config.arms}


def best(config: TuneConfig, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The best finished trial; with several objectives those that no other beats in all. First ones win
    ties.
    """
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    signs = [1.0 if DIRECTIONS[each] == "minimize" else -1.0 for each in config.objectives]
    scores = [[sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in done]
    if len(signs) == 1:
        return [done[min(range(len(done)), key=lambda place: scores[place])]] if done else []
    return [
        trial
        for trial, score in zip(done, scores, strict=True)
        if not any(
            other != score and all(a <= b for a, b in zip(other, score, strict=True)) for other in scores
        )
    ]


def summary(config: TuneConfig, trials: dict[str, list[FrozenTrial]]) -> dict[str, Any]:
    """`tuning.json`: plain data for people and for the analysis, which reads how equal the effort was."""
    return {
        "format": 1,
        "name": config.name,
        "student": config.student,
        "budget": config.budget,
        "seed": config.seed,
        "objectives": list(config.objectives),
        "split": SPLIT,
        "label": config.label,
        "probe": config.probe,
        "space": msgspec.to_builtins(config.space),
        "trials_wanted": config.trials,
        "arms": {arm: _arm(config, found) for arm, found in trials.items()},
    }


def _arm(config: TuneConfig, trials: list[FrozenTrial]) -> dict[str, Any]:
    states = [trial.state.name for trial in trials]
    return {
        "complete": states.count("COMPLETE"),
        "pruned": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "open": states.count("RUNNING") + states.count("WAITING"),
        "best": [_plain(config, trial) for trial in best(config, trials)],
    }


def _plain(config: TuneConfig, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "run_id": trial.user_attrs.get("run_id"),
        "values": trial.params,
        **dict(zip(config.objectives, trial.values or (), strict=True)),
    }


def write_summary(store: Path, config: TuneConfig, grace_s: int) -> dict[str, Any]:
    """Write `tuning.json` and `trials.csv`; the summary."""
    trials = trials_of(store, config, grace_s)
    told = summary(config, trials)
    folder = tuning_dir(store, config.name)
    write_atomically(folder / SUMMARY, pretty_json(told))
    write_atomically(folder / "trials.csv", _csv(config, trials).encode())
    return told


def _csv(config: TuneConfig, trials: dict[str, list[FrozenTrial]]) -> str:
    """All trials, in columns that `salt-analyze pareto --table` reads as they are."""
    import csv
    import io

    text = io.StringIO()
    names = {"accuracy": "accuracy", "loss": "loss", "flops": "compute"}
    fields = sorted({name for found in trials.values() for trial in found for name in trial.params})
    writer = csv.writer(text, lineterminator="\n")
    header = ["arm", "trial", "run_id", "state", *(names[each] for each in config.objectives), *fields]
    writer.writerow(header)
    for arm, found in trials.items():
        for trial in found:
            values = list(trial.values or [""] * len(config.objectives))
            row = [arm, trial.number, trial.user_attrs.get("run_id", ""), trial.state.name.lower(), *values]
            writer.writerow([*row, *(trial.params.get(name, "") for name in fields)])
    return text.getvalue()


def tuned_recipe(config: TuneConfig, study: Study, told: dict[str, Any], name: str) -> dict[str, Any]:
    """A recipe with each arm's best values over the study's own rules, as a document for a study's `recipe:`.

    Runs of `external` and `hybrid` are runs of the arm salt, whose rules they take: their own best values
    stand in `tuning.json`, and go under `arms.<arm>.optim` of a study.

    Raises:
        UserError: an arm has no finished trial, or there are several objectives, between which only people
            can choose.
    """
    if len(config.objectives) > 1:
        raise UserError(
            "--recipe with several objectives: no one trial is the best; look at the frontier and write "
            "the recipe"
        )
    rules: list[dict[str, Any]] = []
    for arm, found in told["arms"].items():
        if arm not in ARMS:
            continue
        if not found["best"]:
            raise UserError(f"--recipe: arm {arm} has no finished trial")
        top = found["best"][0]
        for field, value in top["values"].items():
            if field.startswith(("optim.", "objective.")):
                trials = found["complete"] + found["pruned"] + found["failed"]
                citation = (
                    f"tuning {config.name}: trial {top['trial']} of {trials}, run {top['run_id']}, "
                    f"{config.objectives[0]} {top[config.objectives[0]]:.6g} on the {SPLIT} split"
                )
                rules.append({"field": field, "value": value, "arms": [arm], "citation": citation})
    base = study.rules
    summary_text = f"tuned at {config.student}, budget {config.budget:g}, seed {config.seed}: {config.name}"
    tuned = {(rule["field"], arm) for rule in rules for arm in rule["arms"]}
    for rule in base.rules if base is not None else ():
        arms = [arm for arm in (rule.arms or ARMS) if (rule.field, arm) not in tuned]
        if arms:
            rules.append(msgspec.to_builtins(rule) | {"arms": arms})
    return {
        "name": name,
        "summary": summary_text if base is None else f"{summary_text}, over {base.name}",
        "schedule": study.file.schedule,
        "published_steps": 1 if base is None else base.published_steps,
        "rules": rules,
    }


def write_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Write a recipe file once; the same again is nothing.

    Raises:
        UserError: the file is there with other content: a name means the same for ever.
    """
    import yaml

    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=120)
    if path.exists() and path.read_text() != text:
        raise UserError(
            f"--recipe {path}: there is another recipe, and studies may name it; write a new one, such as "
            f"{path.with_name(path.stem + '-2.yaml')}"
        )
    write_atomically(path, text.encode())
