"""A plan's FLOPs held against an independent count before anything is submitted.

`<store>/plans/<name>/audit.json` says which plan was audited, so that it happens once for each plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from salt.errors import UserError
from salt.plans import plan_dir
from salt.specs import Plan, RunSpec, Spec
from salt.store import pretty_json, read_json, write_atomically
from sweeps.draft import Draft


class AuditRecord(Spec, kw_only=True):
    """`audit.json`: the plan that passed."""

    plan_sha256: str


def audit_bases(draft: Draft) -> None:
    """Audit every kind of run of a draft.

    Raises:
        UserError: a part of the closed form and the count differ by more than the audit's tolerance.
    """
    _audit(draft.study.name, [spec for spec in draft.base_specs() if spec.arm not in ("random", "raw")])


def audit_plan(store: Path, plan: Plan) -> None:
    """Audit a written plan unless these very bytes have passed before; see `audit_bases`."""
    import hashlib

    folder = plan_dir(store, plan.name)
    digest = hashlib.sha256((folder / "plan.jsonl").read_bytes()).hexdigest()
    record = folder / "audit.json"
    if record.exists() and read_json(record, AuditRecord).plan_sha256 == digest:
        return
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
            f"plan {name}: the FLOP count disagrees with an independent one; nothing was sent. This is a "
            "fault of "
            "salt's, please report it:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
