"""A small study with declared lists, whose plans take milliseconds; and the command that plans."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import yaml

import salt_cli
from salt.plan_specs import Plan
from salt.plans import decode_plan, encode_plan
from salt.specs import spec_id
from sweeps.draft import Draft
from sweeps.plan import draft_plan
from sweeps.study import Study, load_study

BASE: dict[str, Any] = {
    "name": "kit",
    "data": {
        "train": {"name": "train", "clips": 8192},
        "selection": {"name": "selection", "clips": 64},
        "report": {"name": "report", "clips": 64},
    },
    "clip": {"frames": 8, "frame_stride": 1, "store_px": 32, "crop_px": 24, "channels": 1},
    "model": {
        "tubelet_frames": 2,
        "patch_px": 6,
        "predictor": {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64},
    },
    "masks": [{"visible_tokens": 8, "target_tokens": 32}, {"visible_tokens": 6, "target_tokens": 16}],
    "budgets_flops": [200e9],
    "seeds": [0],
    "students": ["nano", "micro"],
    "arms": {
        "pixel": {},
        "vjepa": {},
        "salt": {"teachers": ["nano"], "teacher_share": [0.3]},
    },
    "optim": {"batch_clips": 16},
    "references": {"random": False, "raw": False},
}


def study_bytes(**changes: Any) -> bytes:
    """The study file with keys replaced; a key of None is left out."""
    merged = {key: value for key, value in (BASE | changes).items() if value is not None}
    return yaml.safe_dump(merged, sort_keys=False).encode()


def study(**changes: Any) -> Study:
    return load_study(Path("kit.yaml"), data=study_bytes(**changes))


def drafted(**changes: Any) -> tuple[Draft, Plan]:
    """A draft and its plan as read back, held to what every plan must be."""
    draft = draft_plan(study(**changes))
    data = b"".join(draft.lines())
    plan = decode_plan(data)
    assert encode_plan(plan) == data
    known: set[str] = set()
    for run in plan.runs:
        assert spec_id(run.spec) == run.run_id
        needs = {ref.run_id for ref in (run.spec.teacher, run.spec.trunk) if ref is not None}
        assert needs <= known, "a run comes before one that it needs"
        known.add(run.run_id)
    assert draft.run_count == len(plan.runs)
    assert sum(total.flops for total in draft.totals.values()) == sum(r.cost.total_flops for r in plan.runs)
    for cell in plan.cells:
        assert abs(cell.residual) <= 0.01
    return draft, plan


def sweep(*argv: str, code: int = 0) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert salt_cli.run("salt-sweep", list(argv)) == code, err.getvalue()
    return out.getvalue(), err.getvalue()
