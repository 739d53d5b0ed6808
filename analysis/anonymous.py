"""Who and where is taken out of a study's files: hosts, nodes, jobs, processes, and paths of a machine."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from salt.plan_specs import Plan
from salt.store import RunDir

#: Absolute paths of Unix and Windows inside a text.
_PATH = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:\\|\\\\|/)(?:[^\s\"'<>|:;,()\\/]+[\\/])+[^\s\"'<>|:;,()\\/]*")
_HOSTS = ("host", "node")
_DROPPED = ("pid", "slurm_job", "executable", "user")


@dataclass
class Anonymous:
    """Gives files without names of machines. The same host is the same number in all files of a study."""

    hosts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Path, plan: Plan) -> Anonymous:
        """Knows all hosts that the runs of a plan name."""
        found = cls()
        for run_id in sorted({run.run_id for run in plan.runs}):
            path = RunDir(store, run_id).env
            if path.is_file():
                found(f"runs/{run_id}/env.json", path.read_bytes())
        return found

    def __call__(self, path: str, data: bytes) -> bytes:
        """The file's bytes without names; JSON stays JSON, of the same fields."""
        if path.endswith(".json"):
            return (json.dumps(self._plain(json.loads(data)), indent=2, ensure_ascii=False) + "\n").encode()
        if path.endswith(".jsonl"):
            return b"".join(
                (
                    json.dumps(self._plain(json.loads(line)), separators=(",", ":"), ensure_ascii=False)
                    + "\n"
                ).encode()
                for line in data.splitlines()
                if line.strip()
            )
        return self._text(data.decode(errors="replace")).encode()

    def _plain(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._plain(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self._plain(item, key) for item in value]
        if key in _DROPPED:
            return None
        if not isinstance(value, str):
            return value
        if key in _HOSTS:
            return self.hosts.setdefault(value, f"host{len(self.hosts) + 1}")
        return self._text(value)

    def _text(self, text: str) -> str:
        for host, number in self.hosts.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", number, text) if len(host) > 3 else text
        return _PATH.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    """The last part of a path: what a list or a folder is called says nothing of the machine."""
    return PurePosixPath(path.replace("\\", "/")).name or "path"
