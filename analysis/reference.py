"""The published numbers of the SALT paper (arXiv 2509.24317) as a table like that of `analysis.gather`.

Scores and steps are typed from the paper's tables (`reference_data/`); FLOPs are computed, by the paper's own
formula at the 224 px of those runs, and stand beside what the paper prints. One seed each, no intervals.
"""

from __future__ import annotations

import csv
import hashlib
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.table_columns import typed
from salt.errors import UserError
from salt.flops import run_cost
from salt.sizes import SIZES, encoder_parameters
from salt.specs import (
    ClipSpec,
    Convention,
    DataSpec,
    MaskSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    TeacherRef,
    VitSpec,
)

NAME = "salt2025"
CITATION = "Li et al. 2025, arXiv 2509.24317"
_FOLDER = Path(__file__).parent / "reference_data"
BATCH_CLIPS = 3072
CROP_PX = 224
#: Clips of V-3.6M.
_CLIPS = 3_626_129
_PREDICTOR = VitSpec(width=384, depth=12, heads=16, mlp_width=1536)
#: (visible, predicted) tokens of each mask at 224 px, for our own convention: multi-block means of the
#: published sampler (docs/flops.md); a random tube of ratio 0.9 leaves 19 of 196 places. The paper's own
#: convention asks only how many masks there are.
_MASKS: dict[str, tuple[tuple[int, int], ...]] = {
    "block": ((366, 749), (100, 1102)),
    "tube2": ((152, 1416), (152, 1416)),
    "tube1": ((152, 1416),),
    "causal2": ((157, 1411), (157, 1411)),  # only their ratio of 0.9 is known
}
#: Clips or images of each evaluation split, and classes. The paper does not state the former: recalled from
#: the data sets' own descriptions.
RECALLED_SIZES = {
    "k400": 19_900,
    "ssv2": 24_800,
    "in1k": 50_000,
    "coin": 2_800,
    "diving48": 1_970,
    "jester": 14_800,
}
_CLASSES = {"k400": 400, "ssv2": 174, "in1k": 1000, "coin": 180, "diving48": 48, "jester": 27}
AVERAGES = {
    "avg4": ("k400", "ssv2", "in1k", "coin"),
    "avg6": ("k400", "ssv2", "in1k", "coin", "diving48", "jester"),
}
_MASK_NAMES = {
    "tube2": "random tube x2",
    "tube1": "random tube x1",
    "causal2": "causal x2",
}
#: Beyond the columns of `gather`.
EXTRA = ("teacher_steps", "printed_flops", "printed_main_flops", "tables")


def reference_table(name: str = NAME) -> pd.DataFrame:
    """One row per (experiment, label), with the columns of `gather` and those of `EXTRA`.

    Arms `pixel` (V-Pixel), `salt` and `vjepa` (V-JEPA 2 on V-3.6M); kind `attentive`; labels `k400`, `ssv2`,
    `in1k`, `coin`, `diving48`, `jester`, two `*_multiview`, and the means `avg4`, `avg6` (as printed, else
    of the printed tasks). `accuracy` is a share. `total_flops` is 6 N D at 224 px, the teacher's whole
    training included; `printed_flops` is what the table of the split prints, else the main table.
    `teacher_share` is the teacher's part of `total_flops`. Budgets are matched in steps (`matched_steps`),
    not in FLOPs, so `budget_flops` is the row's own total. `n_report` is recalled; of a mean it is the size
    of one set with the mean's binomial error. Teachers that only ablations score have role `teacher`.
    `attrs["notes"]` holds sentences on all of this.

    Raises `UserError` for another name.
    """
    if name != NAME:
        raise UserError(f"no published numbers named {name!r}: there are those of {NAME}")
    table = pd.DataFrame(_rows())
    extra = table[list(EXTRA)]
    table = typed(table)
    table = pd.concat([table, extra], axis=1)
    table.attrs["notes"] = list(NOTES)
    return table


NOTES = (
    f"published numbers: {CITATION}; one seed each, so no interval over seeds exists",
    "FLOPs are the paper's 6 N D at 224 px; its table of the split charges V-JEPA 2 at about 256 px",
    "budgets are matched in steps, not in FLOPs: a longer student is always the more expensive run",
    "sizes of the evaluation splits are recalled, not stated in the paper",
)


@cache
def experiments() -> dict[str, dict[str, str]]:
    """Training runs by id, as typed (`reference_data/README.md` says what the fields are)."""
    with (_FOLDER / f"{NAME}-experiments.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@cache
def printed_scores() -> dict[str, dict[str, float]]:
    """Accuracies in percent as printed: id -> label -> value."""
    found: dict[str, dict[str, float]] = {}
    with (_FOLDER / f"{NAME}-scores.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["id"], {})[row["label"]] = float(row["percent"])
    return found


@cache
def own_flops(identity: str, convention: Convention = "paper", crop_px: int = CROP_PX) -> float:
    """FLOPs of one run alone, its teacher's inference included. At another crop: what it would have cost."""
    return float(run_cost(_spec(experiments()[identity], crop_px), convention).total_flops)


def above_flops(identity: str, convention: Convention = "paper") -> float:
    """FLOPs of training all teachers on the way to a run."""
    teacher = experiments()[identity]["teacher"]
    return own_flops(teacher, convention) + above_flops(teacher, convention) if teacher else 0.0


def chain_steps(identity: str) -> int:
    """Steps of all teachers on the way to a run."""
    teacher = experiments()[identity]["teacher"]
    return 1000 * int(experiments()[teacher]["ksteps"]) + chain_steps(teacher) if teacher else 0


def _spec(row: dict[str, str], crop_px: int) -> RunSpec:
    teacher = row["teacher"]
    ref = None
    if teacher:
        encoder = SIZES[experiments()[teacher]["student"]]
        ref = TeacherRef(run_id=teacher, step=1000 * int(experiments()[teacher]["ksteps"]), encoder=encoder)
    arm: Any = row["arm"]
    return RunSpec(
        arm=arm,
        seed=0,
        steps=1000 * int(row["ksteps"]),
        model=ModelSpec(encoder=SIZES[row["student"]], predictor=_PREDICTOR),
        clip=ClipSpec(crop_px=crop_px),
        data=DataSpec(name=row["train_data"], fingerprint="none", clips=_CLIPS),
        masks=tuple(MaskSpec(visible_tokens=v, target_tokens=t) for v, t in _MASKS[row["masks"]]),
        optim=OptimSpec(batch_clips=BATCH_CLIPS),
        teacher=ref,
    )


def scores(identity: str) -> dict[str, float]:
    """Accuracies of a run in percent: as printed, and means over tasks where only the tasks are printed."""
    found = dict(printed_scores().get(identity, {}))
    for name, tasks in AVERAGES.items():
        if name not in found and all(task in found for task in tasks):
            found[name] = float(np.mean([found[task] for task in tasks]))
    return found


def _rows() -> list[dict[str, Any]]:
    sizes = report_sizes()
    found = []
    for identity, row in experiments().items():
        run = _run(identity, row)
        above = scores(row["teacher"]) if row["teacher"] else {}
        for label, percent in scores(identity).items():
            task = label.removesuffix("_multiview")
            found.append(
                run
                | {
                    "label": label,
                    "accuracy": percent / 100,
                    "teacher_accuracy": above[label] / 100 if label in above else math.nan,
                    "teacher_state": "done" if label in above else None,
                    "n_report": sizes[task],
                    "classes": _CLASSES.get(task, math.nan),
                }
            )
    return found


def report_sizes() -> dict[str, float]:
    """Size of the evaluation split by task, recalled. Of a mean of tasks: the one size at which p (1 - p) / n
    is the variance of the mean, at the tasks' mean accuracies over all runs that have them, to 2 digits.
    """
    sizes: dict[str, float] = dict(RECALLED_SIZES)
    everything = pd.DataFrame({identity: printed_scores()[identity] for identity in printed_scores()}).T / 100
    for name, tasks in AVERAGES.items():
        rates = everything[list(tasks)].dropna().mean()
        variance = sum(rates[task] * (1 - rates[task]) / sizes[task] for task in tasks) / len(tasks) ** 2
        mean = float(rates.mean())
        sizes[name] = float(f"{mean * (1 - mean) / variance:.2g}")
    return sizes


def _run(identity: str, row: dict[str, str]) -> dict[str, Any]:
    """What all scores of a run share."""
    own, above = own_flops(identity), above_flops(identity)
    steps, teacher = 1000 * int(row["ksteps"]), row["teacher"]
    total = own + above
    printed = [_number(row[name], 1e21) for name in ("printed_total_e21", "printed_main_e21")]
    clip = ClipSpec(crop_px=CROP_PX)
    model = ModelSpec(encoder=SIZES[row["student"]], predictor=_PREDICTOR)
    values = clip.channels * model.tubelet_frames * model.patch_px**2
    variant = _variant(row)
    parts = run_cost(_spec(row, CROP_PX), "paper").parts
    share = above / total if teacher else math.nan
    size = experiments()[teacher]["student"] if teacher else None
    sizes = f"{size}>{row['student']}" if size else row["student"]
    return {f"flops_{name}": float(part.forward + part.backward) for name, part in parts.items()} | {
        "plan": NAME,
        "role": row["role"],
        "cell_id": identity,
        "run_id": identity,
        "arm": row["arm"],
        "student": row["student"],
        "teacher": size,
        "teacher_run_id": teacher or None,
        "scored_teacher": teacher or None,
        "teacher_share": share,
        "seed": 0,
        "variant": variant,
        "config": " ".join(filter(None, (row["arm"], sizes, _steps_text(identity), variant))),
        "config_id": hashlib.sha256(identity.encode()).hexdigest()[:12],
        "charge": "full",
        "convention": "paper",
        "kind": "attentive",
        "frames": "ordered",
        "probe_id": "published",
        "state": "done",
        "branch": {"vjepa": "ema"}.get(row["arm"], "student"),
        "data": row["train_data"],
        "budget_flops": total,
        "planned_flops": total,
        "total_flops": total,
        "own_flops": own,
        "teacher_flops": above if teacher else 0.0,
        "own_flops_paper": own,
        "above_flops_paper": above,
        "cache_flops_paper": 0.0,
        **_matmul(identity),
        "parameters": float(encoder_parameters(SIZES[row["student"]], values)),
        "steps": float(steps),
        "clips_seen": float(steps * BATCH_CLIPS),
        "teacher_steps": float(chain_steps(identity)) if teacher else math.nan,
        "matched_steps": _number(row["matched_ksteps"], 1000),
        "printed_flops": printed[0] if math.isfinite(printed[0]) else printed[1],
        "printed_main_flops": printed[1],
        "tables": row["tables"],
    }


def _matmul(identity: str) -> dict[str, float]:
    """Our own count, which asks for the masks' real tokens; missing where a run on the way hides them."""
    way = [identity]
    while experiments()[way[-1]]["teacher"]:
        way.append(experiments()[way[-1]]["teacher"])
    own, *above = [
        math.nan if experiments()[run]["masks"] == "causal2" else own_flops(run, "matmul") for run in way
    ]
    return {"own_flops_matmul": own, "above_flops_matmul": sum(above, 0.0), "cache_flops_matmul": 0.0}


def _variant(row: dict[str, str]) -> str:
    """What else tells a run apart: its own or its teacher's data and masks where they are not the usual ones,
    and the stages of a chain.
    """
    teacher = experiments().get(row["teacher"])
    if teacher is None:
        return ", ".join(_unusual(row))
    parts = [f"teacher's {part}" for part in _unusual(teacher)]
    if teacher["teacher"]:
        first = experiments()[teacher["teacher"]]
        parts.append(f"teacher is a student ({first['ksteps']}k+{teacher['ksteps']}k)")
    return ", ".join(parts)


def _unusual(row: dict[str, str]) -> list[str]:
    parts = [] if row["train_data"] == "V-3.6M" else [f"data {row['train_data']}"]
    return parts + ([f"masks {_MASK_NAMES[row['masks']]}"] if row["masks"] in _MASK_NAMES else [])


def _steps_text(identity: str) -> str:
    """`80k+160k`: steps of every stage, first one first."""
    row = experiments()[identity]
    before = f"{_steps_text(row['teacher'])}+" if row["teacher"] else ""
    return f"{before}{row['ksteps']}k"


def _number(text: str, scale: float) -> float:
    return float(text) * scale if text else math.nan
