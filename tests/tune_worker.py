"""A worker of a tuning whose trials are a formula: `python -m tests.tune_worker STORE NAME [SECONDS]`.

Everything but the training is real: the journal, its lock, slots, claims.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from sweeps.tune_config import TuneConfig, read_config, tuning_dir
from sweeps.tune_space import Value
from sweeps.tune_work import Outcome, Slot, TrialRecord, Worker, end_orphans

#: Here a lock is broken soon.
GRACE_S = 3


def identify(arm: str, values: dict[str, Value]) -> str:
    return hashlib.sha256(json.dumps([arm, values], sort_keys=True).encode()).hexdigest()[:16]


def formula(values: dict[str, Value]) -> float:
    """Best, 1, at x = 0.3 and y = `b`."""
    x, y = float(values["x"]), values["y"]  # type: ignore[arg-type]
    return 1.0 - (x - 0.3) ** 2 - (0.0 if y == "b" else 0.1)


def worker(store: Path, config: TuneConfig, seconds: float = 0.0) -> Worker:
    def evaluate(record: TrialRecord, trial: Any) -> Outcome:
        assert identify(record.arm, record.values) == record.run_id
        steps = tuning_dir(store, config.name) / "steps"
        steps.mkdir(exist_ok=True)
        with open(steps / record.run_id, "a") as file:
            file.write("begun\n")
            file.flush()
            time.sleep(seconds)
        return Outcome(state="complete", objectives=(formula(record.values),))

    return Worker(store, config, identify, evaluate, grace_s=GRACE_S, report=lambda text: None)


def main(argv: list[str]) -> None:
    store, name = Path(argv[0]), argv[1]
    config = read_config(store, name)
    made = worker(store, config, float(argv[2]) if len(argv) > 2 else 0.0)
    print("ready", flush=True)
    made.run()
    slots = [Slot(made.folder, arm, number) for number in range(config.trials) for arm in config.arms]
    end_orphans(made.studies, slots)


if __name__ == "__main__":
    main(sys.argv[1:])
