"""A plan's FLOPs held against an independent count before anything is submitted.

`<store>/plans/<name>/audit.json` says which plan was audited, so that it happens once for each plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from salt.errors import UserError
from salt.flops import run_cost
from salt.plan_specs import Plan
from salt.plans import plan_dir
from salt.specs import RunSpec, Spec
from salt.store import file_sha256, pretty_json, read_json, write_atomically
from sweeps.draft import Draft


class AuditRecord(Spec, kw_only=True):
    """`audit.json`: the plan that passed."""

    plan_sha256: str


def audit_bases(draft: Draft) -> None:
    """Audit every kind of run of a draft.

    Raises:
        UserError: a part of the closed form and the count differ by more than the audit's tolerance.
    """
    _audit(draft.study.name, draft.base_specs())


def audit_plan(store: Path, plan: Plan) -> None:
    """Audit a written plan unless these very bytes have passed before; see `audit_bases`.

    Its own prices are held to the closed form first: the file may be edited, or of another version.
    """
    folder = plan_dir(store, plan.name)
    digest = file_sha256(folder / "plan.jsonl")
    record = folder / "audit.json"
    if record.exists() and read_json(record, AuditRecord).plan_sha256 == digest:
        return
    for run in plan.runs:
        price = run_cost(run.spec, plan.convention)
        if run.cost != price:
            raise UserError(
                f"plan {plan.name}: run {run.run_id} is priced at {run.cost.total_flops} FLOPs, and costs "
                f"{price.total_flops}: the plan was edited, or made by another version; plan again"
            )
    _audit(plan.name, [run.spec for run in plan.runs])
    record_audit(folder, digest)


def record_audit(folder: Path, plan_sha256: str) -> None:
    """Note in a plan's folder that the plan of this hash has passed."""
    write_atomically(folder / "audit.json", pretty_json(AuditRecord(plan_sha256=plan_sha256)))


def _audit(name: str, specs: Iterable[RunSpec]) -> None:
    from salt.audit import audit_problems

    problems = audit_problems(list(specs))
    if problems:
        raise UserError(
            f"plan {name}: the FLOP count disagrees with an independent one, a fault of salt's; nothing was "
            "sent. Please report it:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
