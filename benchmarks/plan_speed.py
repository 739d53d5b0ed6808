"""How long planning takes, against its limits: `python benchmarks/plan_speed.py`.

Every case runs in a process of its own, with its peak memory. Prints the environment first, then seconds,
limit and their ratio. Files go to a temporary folder.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: Plans and writes the built-in study with other axes; prints seconds after imports, cells, peak bytes.
WORK = """
import json, resource, sys, time
from pathlib import Path
import numpy
from sweeps.design import warnings_of
from sweeps.plan import draft_plan, write_plan
from sweeps.show import plan_tables
from sweeps.study import load_study
study, store = Path(sys.argv[1]), Path(sys.argv[2])
began = time.perf_counter()
draft = draft_plan(load_study(study))
written = write_plan(store, draft)
plan_tables(draft)
warnings_of(draft)
seconds = time.perf_counter() - began
cells = sum(len(draft.seed_sets[place]) for place in draft.seeds.tolist())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
size = (written.folder / "plan.jsonl").stat().st_size
print(json.dumps({"seconds": seconds, "cells": cells, "points": len(draft.grid), "peak": peak, "size": size}))
"""


def study_text(budgets: int, shares: int, seeds: int) -> str:
    """The built-in study with six students and teachers, and these many budgets, shares and seeds."""
    sys.path.insert(0, str(ROOT))
    from sweeps.default_study import default_study

    text = default_study((1e21,)).decode()
    values = ", ".join(f"{1e20 * 1.1**step:.3e}" for step in range(budgets))
    changes = {
        r"budgets_flops: .*": f"budgets_flops: [{values}]",
        r"seeds: \[0\]\nextra_seeds:.*\n.*\n": f"seeds: [{', '.join(map(str, range(seeds)))}]\n",
        r"teacher_share: \[0\.05.*": "teacher_share: ["
        + ", ".join(f"{0.01 + 0.5 * step / shares:.5f}" for step in range(shares))
        + "]",
        r"students: \[vit_l, .*": "students: [vit_s, vit_b, vit_l, vit_h, vit_g, vit_gg]",
        r"teachers: \[vit_b, vit_l, vit_h\]\n": "teachers: [vit_ti, vit_s, vit_b, vit_l, vit_h, vit_g]\n",
    }
    for pattern, value in changes.items():
        text, count = re.subn(pattern, value, text)
        assert count == 1, pattern
    return text


def environment() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter([platform.processor()]),
        "unknown",
    )
    machine = f"{platform.system()} {platform.machine()}, {model}, {os.cpu_count()} cores"
    return f"Python {platform.python_version()}, {machine}"


def in_process(folder: Path, name: str, text: str) -> dict[str, float]:
    study = folder / f"{name}.yaml"
    study.write_text(text)
    argv = [sys.executable, "-c", WORK, str(study), str(folder / name)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def cold(folder: Path, *argv: str) -> float:
    """Seconds of a command from its start to its end: the median of five. Byte code is cached, as it is for
    users."""
    times = []
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(5):
        began = time.perf_counter()
        command = [
            sys.executable,
            str(ROOT / "salt_cli.py"),
            "salt-sweep",
            *argv,
            "--store",
            str(folder / "cold"),
        ]
        subprocess.run(command, capture_output=True, check=True, cwd=folder, env=environment)
        times.append(time.perf_counter() - began)
    return sorted(times)[2]


def small_study(folder: Path) -> Path:
    """The shipped miniature with lists of its length, all of one tiny video."""
    import av
    import numpy as np

    video = folder / "grey.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = video.read_bytes()
    for split, count in (("train", 8192), ("selection", 1024), ("report", 2048)):
        (folder / "clips" / split).mkdir(parents=True)
        lines = ["path,motion,appearance,group"]
        for number in range(count):
            (folder / "clips" / split / f"{number}.mp4").write_bytes(data)
            lines.append(f"{split}/{number}.mp4,speed{number % 6},digit{number % 10},{split}{number}")
        (folder / "clips" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (folder / "examples").mkdir()
    path = folder / "examples" / "miniature.yaml"
    path.write_bytes((ROOT / "examples" / "miniature.yaml").read_bytes())
    return path


def main() -> None:
    print(environment())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, axes, limit_s in (
            ("1e4 cells", (25, 11, 1), 0.3),
            ("1e6 cells, 10 seeds", (25, 114, 10), 10.0),
            ("1e6 cells, 1 seed", (25, 1134, 1), 10.0),
        ):
            found = in_process(folder, what.replace(" ", "-").replace(",", ""), study_text(*axes))
            print(
                f"{what}: {found['cells']:,.0f} cells of {found['points']:,.0f} points planned and written "
                "in "
                f"{found['seconds']:.2f} s, {found['seconds'] / limit_s:.2f} of {limit_s:g} s; plan.jsonl "
                f"{found['size'] / 1e6:.0f} MB, peak {found['peak'] / 1e9:.2f} GB, {found['peak'] / 2e9:.2f} "
                "of 2 GB",
                flush=True,
            )
        path = small_study(folder)
        for what, argv, limit_s in (
            ("miniature study, cold start", ("plan", str(path)), 0.4),
            ("plan --budget 1e21, cold start", ("plan", "--budget", "1e21"), 1.0),
        ):
            seconds = cold(folder, *argv)
            print(f"{what}: {seconds:.2f} s, {seconds / limit_s:.2f} of {limit_s:g} s", flush=True)


if __name__ == "__main__":
    main()
