"""What to run next: cases known by hand, a teacher paid once, and lines that plan what was suggested."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis.cli import main
from analysis.gather import gather
from analysis.suggest import Batch, suggest
from analysis.suggest_points import points_of
from analysis.suggest_questions import SeedNoise, knowledge_gradient, seed_noise
from analysis.suggest_table import batch_lines, study_lines, suggestion_rows
from salt.errors import UserError
from salt.plan_specs import Cell, PlannedRun
from salt.plans import read_plan
from salt.store import RunDir
from tests import plan_kit
from tests.synthetic import BUDGETS, Study, _pretend, make_study

Level = Callable[[Cell], float]


def scored(level: Level, noise: float = 0.5) -> Callable[..., float]:
    """Accuracies of cells by a rule in points, with residuals that are drawn; anything else is 40."""

    def accuracy(cell: Cell | None, run: PlannedRun, kind: str, label: str, frames: str) -> float:
        drawn = random.Random(f"{run.run_id} {kind}").gauss(0, noise)
        return 0.01 * (drawn + (40.0 if cell is None or not cell.budget else level(cell)))

    return accuracy


def small(store: Path, level: Level, noise: float = 0.5, **options: object) -> Study:
    chosen = {"labels": ("motion",), "students": ("micro",), "teachers": ("nano",)} | options
    return make_study(store, accuracy=scored(level, noise), **chosen)


def asked(study: Study, question: str, top: int = 10, seed_sd: float | None = None) -> Batch:
    done = [run.run_id for run in study.plan.runs if RunDir(study.store, run.run_id).result.exists()]
    table = gather(study.store, study.plan.name)
    return suggest(study.plan, table, done, question, top, seed_sd)


# --- criteria -------------------------------------------------------------------------------------


def test_knowledge_gradient_by_hand_and_against_simulation() -> None:
    # Of two equal means the expected rise is the mean of the positive part of a normal: 1 / sqrt(2 pi).
    assert knowledge_gradient(3.0, 3.0, 2.0) == pytest.approx(2 / math.sqrt(2 * math.pi))
    assert knowledge_gradient(3.0, 3.0, 0.0) == 0
    assert 0 <= knowledge_gradient(0.0, 1e3, 1e-3) < 1e-300
    for mean, other in ((1.0, 1.7), (1.7, 1.0)):
        after = np.random.default_rng(2).normal(mean, 0.9, 1_000_000)
        rise = np.maximum(after, other).mean() - max(mean, other)
        assert knowledge_gradient(mean, other, 0.9) == pytest.approx(rise, abs=0.003)


def test_noise_leaves_out_what_all_points_share(tmp_path: Path) -> None:
    """Seeds that move all arms by 5 points, own residuals of half a point."""

    def level(cell: Cell) -> float:
        return 60 + 5 * random.Random(f"seed {cell.seed}").gauss(0, 1)

    study = small(tmp_path, level, seeds=range(12), budgets=BUDGETS[:1])
    points = points_of(study.plan, gather(tmp_path, "miniature"), "motion", "linear")
    noise = seed_noise([points])
    assert noise is not None
    assert (noise.degrees, noise.basis) == (2 * 11, "paired by seed")
    assert noise.residual_sd == pytest.approx(0.5, rel=0.35)  # 15 % is one standard error
    assert seed_noise([points[:1]]).residual_sd > 2  # type: ignore[union-attr]


# --- arms -----------------------------------------------------------------------------------------


def test_the_missing_runs_of_the_least_known_difference_come_first(tmp_path: Path) -> None:
    """At the smallest budget one arm has one seed: a run there lowers two variances, from 2 s^2 to s^2."""
    study = small(tmp_path, lambda cell: 60.0)
    for seed in (1, 2):
        study.lose(study.cell("vjepa", seed=seed, budget=BUDGETS[0]).run_id)
    batch = asked(study, "arms", top=3)
    first, second = batch.suggestions[:2]
    assert [first.proposal.kind, second.proposal.kind] == ["planned", "planned"]
    runs = [(point.arm, point.budget, seed) for each in (first, second) for point, seed in each.proposal.runs]
    assert runs == [("vjepa", BUDGETS[0], 1), ("vjepa", BUDGETS[0], 2)]
    spread = batch.noise.residual_sd**2
    assert first.worth.gain == pytest.approx(2 * 2 * spread * (1 - 1 / 2))
    assert second.worth.gain == pytest.approx(2 * 2 * spread * (1 / 2 - 1 / 3))
    assert first.worth.before == pytest.approx(batch.noise.reach * math.sqrt(2 * spread))
    assert first.worth.after == pytest.approx(batch.noise.reach * math.sqrt(spread))
    assert first.flops == study.cell("vjepa", seed=1, budget=BUDGETS[0]).cost.total_flops
    # 10 s a run, whatever its length: the rate is that of done runs of this arm and size, their median.
    rates = [10 / 3600 / study.cell("vjepa", seed=0, budget=b).cost.total_flops for b in BUDGETS]
    lost = [
        10 / 3600 / study.cell("vjepa", seed=s, budget=b).cost.total_flops
        for s in (1, 2)
        for b in BUDGETS[1:]
    ]
    assert first.gpu_hours == pytest.approx(first.flops * float(np.median(rates + lost)))
    assert any(
        "planned already: salt-sweep submit miniature" in line for line in study_lines(batch, study.plan)
    )


def test_failed_cells_are_not_proposed_again(tmp_path: Path) -> None:
    study = small(tmp_path, lambda cell: 60.0, budgets=BUDGETS[:1])
    run_id = study.cell("vjepa", seed=1, budget=BUDGETS[0]).run_id
    study.fail(run_id, "diverged", "loss is NaN", 7)
    batch = asked(study, "arms")
    runs = [(point.arm, seed) for each in batch.suggestions for point, seed in each.proposal.runs]
    assert ("vjepa", 1) not in runs
    assert batch.left_out == 1
    assert any("salt-sweep retry" in line for line in batch_lines(batch))


def test_cells_that_a_probe_does_not_see_are_not_proposed(tmp_path: Path) -> None:
    """The attentive probe is made at the largest budget only: further runs elsewhere would tell nothing."""
    study = small(tmp_path, lambda cell: 60.0)
    table = gather(tmp_path, "miniature")
    table = table[table["kind"] == "attentive"].reset_index(drop=True)
    batch = suggest(study.plan, table, [run.run_id for run in study.plan.runs], "arms", 5)
    assert batch.kind == "attentive"
    budgets = {point.budget for each in batch.suggestions for point, _ in each.proposal.runs}
    assert budgets == {BUDGETS[-1]}
    assert all(each.flops > 0 for each in batch.suggestions)


# --- the best share --------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["best-share", "frontier"])
def test_a_teacher_is_paid_once(tmp_path: Path, question: str) -> None:
    """Two shares so close that none fits between, two students of each teacher: further seeds need teachers.

    Students are proposed together where each has a best share of its own, and one after the other where they
    are rivals for the best configuration.
    """

    def level(cell: Cell) -> float:  # equal means of both shares, whichever student; other arms are far off
        if cell.arm != "salt":
            return 20.0 + cell.seed
        return 60.0 + (1 if (cell.teacher_share == 0.2) == (cell.seed == 0) else -1)

    options = {"seeds": (0, 1), "budgets": BUDGETS[:1], "students": ("micro", "tiny"), "shares": (0.2, 0.22)}
    study = small(tmp_path, level, 1e-3, **options)
    batch = asked(study, question, top=8)
    cells = {(c.student, c.teacher_share): c for c in study.plan.cells if c.arm == "salt" and c.seed == 0}
    paid: set[tuple[float | None, int]] = set()
    states = []
    for each in batch.suggestions:
        assert each.proposal.kind == "seed"
        flops = 0
        for point, seed in each.proposal.runs:
            cell = cells[(point.student, point.share)]
            assert cell.teacher_cost is not None
            new = (point.share, seed) not in paid
            flops += cell.cost.total_flops + new * cell.teacher_cost.total_flops
            paid.add((point.share, seed))
        assert each.flops == flops
        states.append((each.teacher, len(each.proposal.runs), each.new_runs))
    alone = [("to train", 1, 2), ("in this batch", 1, 1)]
    assert states[:2] == (alone if question == "frontier" else [("to train", 2, 3)] * 2)


def test_a_trained_teacher_is_free(tmp_path: Path) -> None:
    study = small(tmp_path, lambda cell: 60.0, budgets=BUDGETS[:1], shares=(0.2, 0.22))
    cell = next(c for c in study.plan.cells if c.arm == "salt" and c.seed == 2 and c.teacher_share == 0.2)
    study.lose(cell.run_id)
    found = [each for each in asked(study, "best-share").suggestions if each.proposal.kind == "planned"]
    assert [(each.teacher, each.flops) for each in found] == [("trained", cell.cost.total_flops)]


def test_runs_go_where_the_best_share_is_in_doubt(tmp_path: Path) -> None:
    """At the small budget one share leads by 10 points; at the large one two neighbours are equal."""

    def level(cell: Cell) -> float:
        if cell.arm != "salt" or cell.teacher_share is None:
            return 50.0
        if cell.budget == BUDGETS[0]:
            return {0.1: 70.0, 0.2: 60.0, 0.4: 50.0}[cell.teacher_share]
        return {0.1: 65.0, 0.2: 65.0, 0.4: 50.0}[cell.teacher_share]

    study = small(tmp_path, level, seeds=range(6), budgets=(BUDGETS[0], BUDGETS[2]), shares=(0.1, 0.2, 0.4))
    batch = asked(study, "best-share", top=6)
    runs = [run for each in batch.suggestions for run in each.proposal.runs]
    # Of old shares only the two in doubt; one between them at both budgets, where accuracy may yet be higher.
    assert {(p.budget, p.share) for p, _ in runs if p.new is None} <= {(BUDGETS[2], 0.1), (BUDGETS[2], 0.2)}
    new = [(each, *each.proposal.runs[0]) for each in batch.suggestions if each.proposal.kind == "share"]
    assert new
    for each, point, seed in new:
        assert point.share == pytest.approx(math.sqrt(0.1 * 0.2), rel=0.01)
        if each.teacher == "to train":
            assert each.flops == pytest.approx(point.budget)  # all of it, teacher and student
        assert seed in range(7)
    assert any("best of 3 with probability 1.00; at the edge" in line for line in batch.findings)


def test_a_question_that_is_settled_needs_nothing(tmp_path: Path) -> None:
    options = {"seeds": range(4), "budgets": BUDGETS[:1], "shares": (0.2, 0.22)}
    study = small(tmp_path, lambda cell: 100 * (cell.teacher_share or 0.3), 0.05, **options)
    batch = asked(study, "best-share")
    assert batch.suggestions == ()
    assert any("Nothing more to run" in line for line in batch_lines(batch))
    assert study_lines(batch, study.plan) == []
    assert list(suggestion_rows(batch).columns)[:3] == ["order", "what", "runs"]


# --- the crossover ---------------------------------------------------------------------------------


def test_the_crossover_and_its_variance_against_simulation(tmp_path: Path) -> None:
    """salt - pixel is -2 points at the first budget and +4 at twice that: 0 a third of a doubling on."""

    def level(cell: Cell) -> float:
        doublings = math.log2(cell.budget / BUDGETS[0])
        return (
            50
            + 10 * doublings
            + (6 * doublings - 2 if cell.arm == "salt" else 0)
            - 30 * (cell.arm == "vjepa")
        )

    study = small(tmp_path, level, 1e-6, budgets=BUDGETS[:2])
    batch = asked(study, "crossover", top=6, seed_sd=0.3)
    (crossing,) = batch.question.crossings  # type: ignore[attr-defined]
    assert crossing.place == pytest.approx(math.log2(BUDGETS[0]) + 1 / 3, abs=1e-4)
    sd = 0.3 * math.sqrt(2 / 3)  # of each difference over 3 seeds
    low, high = np.random.default_rng(4).normal([[-2.0], [4.0]], sd, (2, 400_000))
    spread = float((low / (low - high)).std())
    first = batch.suggestions[0]
    assert first.worth.before == pytest.approx(1.96 * spread, rel=0.02)
    # The first budget is nearer and cheaper than the second, which is left alone.
    assert all(each.proposal.runs[0][0].budget < BUDGETS[1] for each in batch.suggestions)
    assert len(batch.suggestions) == 6
    widths = [each.worth.after for each in batch.suggestions]
    assert widths == sorted(widths, reverse=True)


def test_no_crossover_says_who_leads(tmp_path: Path) -> None:
    study = small(
        tmp_path, lambda cell: 60 + 5 * (cell.arm == "salt") - 5 * (cell.arm == "vjepa"), budgets=BUDGETS[:2]
    )
    with pytest.raises(UserError, match="salt leads at 2e\\+11, salt leads at 4e\\+11"):
        asked(study, "crossover")


# --- questions that cannot be asked -----------------------------------------------------------------


def test_one_seed_asks_for_the_noise(tmp_path: Path) -> None:
    study = small(tmp_path, lambda cell: 60.0, seeds=(0,), budgets=BUDGETS[:2])
    with pytest.raises(UserError, match="--seed-sd POINTS"):
        asked(study, "frontier")
    with pytest.raises(UserError, match="two teacher shares"):
        asked(study, "best-share", seed_sd=1.0)
    batch = asked(study, "frontier", top=4, seed_sd=1.0)
    assert batch.noise == SeedNoise(residual_sd=1.0, degrees=None, basis="given")
    # Of equal gains the cheaper run comes first.
    assert {point.budget for point, _ in batch.suggestions[0].proposal.runs} == {BUDGETS[0]}


def test_without_times_the_order_is_by_flops(tmp_path: Path) -> None:
    study = small(tmp_path, lambda cell: 60.0, budgets=BUDGETS[:1])
    table = gather(tmp_path, "miniature").assign(train_wall_s=float("nan"))
    batch = suggest(study.plan, table, [], "arms", 2)
    assert [each.gpu_hours for each in batch.suggestions] == [None, None]
    assert suggestion_rows(batch)["gpu_hours"].isna().all()
    assert any("no GPU-hours" in line for line in batch_lines(batch))


# --- from results to the next plan -----------------------------------------------------------------


def test_the_lines_plan_what_was_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan, pretend to run, ask, put the lines into the file, plan again: the new cells are the suggested."""
    suite = {"name": "main", "labels": ["motion"], "kinds": ["linear"], "train_clips": 64}
    suite |= {"selection_clips": 64, "report_clips": 64}
    keys = {
        "seeds": [0, 1],
        "budgets_flops": [200e9, 300e9],
        "arms": plan_kit.BASE["arms"] | {"salt": {"teachers": ["nano"], "teacher_share": [0.1, 0.3]}},
        "probes": [suite],
    }
    file, store = tmp_path / "study.yaml", tmp_path / "store"
    file.write_bytes(plan_kit.study_bytes(**keys))
    plan_kit.sweep("plan", str(file), "--store", str(store))
    before = read_plan(store, "kit")
    _pretend(store, before, scored(lambda cell: 60.0, 1.0))
    for question, kind in (("arms", "seed"), ("best-share", "share")):
        assert main(["suggest", "kit", "--store", str(store), "--question", question, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        found = [each for each in data["suggestions"] if each["what"] == kind]
        assert found
        assert Path(data["files"][0]).read_text().startswith("order,what,runs")
        changes = yaml.safe_load("\n".join(_keys_of(data["study_lines"], kind)))
        budgets = changes.get("budgets_flops")
        if budgets:
            changes["budgets_flops"] = [float(value) for value in budgets]
        _, after = plan_kit.drafted(**(keys | changes))
        known = {(c.arm, c.student, c.teacher, c.teacher_share, c.budget, c.seed) for c in before.cells}
        added = [
            cell
            for cell in after.cells
            if (cell.arm, cell.student, cell.teacher, cell.teacher_share, cell.budget, cell.seed) not in known
        ]
        runs = [run for each in found for run in each["runs"].split("; ")]
        if kind == "seed":
            assert len(added) == len(runs)
        for cell in added if kind == "seed" else added[:1]:
            share = f" {100 * cell.teacher_share:.3g}%" if cell.teacher_share else ""
            sizes = f"{cell.teacher}>{cell.student}" if cell.teacher else cell.student
            assert f"{cell.arm} {sizes}{share} at {cell.budget:.3g}, seed {cell.seed}" in runs


def _keys_of(lines: list[str], kind: str) -> list[str]:
    """The part of the lines that goes into this file: extra seeds, or the first study of its own."""
    start = [number for number, line in enumerate(lines) if line.startswith("#")]
    if kind == "seed":
        return lines[: start[0] if start else None]
    first, *rest = [number for number in start if "a study of its own" in lines[number]]
    return lines[first + 1 : rest[0] if rest else None]


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(tmp_path, lambda cell: 60.0, budgets=BUDGETS[:1])
    for options, said in ((["--top", "0"], "--top 0"), (["--seed-sd", "-2"], "--seed-sd -2")):
        with pytest.raises(UserError, match=said):
            main(["suggest", "miniature", "--store", str(tmp_path), *options])
    assert not (tmp_path / "reports").exists()
    assert (
        main(["suggest", "miniature", "--store", str(tmp_path), "--question", "frontier", "--top", "2"]) == 0
    )
    out = capsys.readouterr().out
    assert "in the study file:" in out
    assert "GPU-hours" in out
