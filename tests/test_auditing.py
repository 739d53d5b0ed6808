"""The audit between a plan and what is submitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import salt.flops
from salt.errors import UserError
from salt.plans import read_plan
from sweeps.auditing import audit_plan
from tests.plan_kit import study_bytes, sweep


def test_a_plan_whose_count_is_off_is_neither_written_nor_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "kit.yaml", tmp_path / "store"
    path.write_bytes(study_bytes())
    sweep("plan", str(path), "--store", str(store), "--audit")
    record = store / "plans" / "kit" / "audit.json"
    assert json.loads(record.read_text())["plan_sha256"]
    # Prices in the file that are not those of its runs.
    record.unlink()
    plan_file = store / "plans" / "kit" / "plan.jsonl"
    plan_file.write_bytes(
        plan_file.read_bytes().replace(b'"encoder":{"backward":', b'"encoder":{"backward":1', 1)
    )
    with pytest.raises(UserError, match="is priced at"):
        audit_plan(store, read_plan(store, "kit"))
    assert not record.exists()
    # A closed form that forgets the attention.
    right = salt.flops.block_lines
    monkeypatch.setattr(
        salt.flops,
        "block_lines",
        lambda vit, count: {
            name: 0 if name.startswith("attention") else flops for name, flops in right(vit, count).items()
        },
    )
    other = tmp_path / "other"
    _, err = sweep("plan", str(path), "--store", str(other), "--audit", code=2)
    assert "disagrees with an independent one" in err
    assert not other.exists()
