"""How long planning takes, against its limits: `python benchmarks/plan_speed.py`.

Every case runs in a process of its own, with its peak memory. Prints the environment first, then seconds,
limit and their ratio. Files go to a temporary folder. With `--profile` it prints where the time of a million
cells of one seed goes instead.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402 - found from any folder

#: Plans and writes a study; prints seconds after imports by phase, cells, peak bytes.
WORK = """
import cProfile, json, pstats, resource, sys, time
from pathlib import Path
import numpy
from sweeps.design import warnings_of
from sweeps.plan import draft_plan, write_plan
from sweeps.show import plan_tables
from sweeps.study import load_study
study, store = Path(sys.argv[1]), Path(sys.argv[2])
profile = cProfile.Profile()
marks = [time.perf_counter()]
if len(sys.argv) > 3:
    profile.enable()
draft = draft_plan(load_study(study))
marks.append(time.perf_counter())
written = write_plan(store, draft)
marks.append(time.perf_counter())
plan_tables(draft)
warnings_of(draft)
marks.append(time.perf_counter())
if len(sys.argv) > 3:
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(20)
    sys.exit()
drafted, writing, shown = (later - earlier for earlier, later in zip(marks, marks[1:]))
cells = sum(len(draft.seed_sets[place]) for place in draft.seeds.tolist())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
size = (written.folder / "plan.jsonl").stat().st_size
found = {"drafted": drafted, "written": writing, "shown": shown, "seconds": marks[-1] - marks[0]}
print(json.dumps({**found, "cells": cells, "points": len(draft.grid), "peak": peak, "size": size}))
"""


def study_text(budgets: int, shares: int, seeds: int) -> str:
    """The built-in study with six students and teachers, and these many budgets, shares and seeds."""
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


def in_process(study: Path, *options: str) -> str:
    """What `WORK` prints of a study file."""
    argv = [sys.executable, "-c", WORK, str(study), str(study.with_suffix("")), *options]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=True).stdout


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


#: (what, budgets, shares and seeds of the study, limit in seconds after imports)
CASES = (
    ("1e4 cells", (25, 11, 1), 0.3),
    ("1e6 cells, 10 seeds", (25, 114, 10), 10.0),
    ("1e6 cells, 1 seed", (25, 1134, 1), 10.0),
)


def write_study(folder: Path, case: int) -> Path:
    path = folder / f"case{case}.yaml"
    path.write_text(study_text(*CASES[case][1]))
    return path


def measure(folder: Path) -> None:
    for case, (what, _, limit_s) in enumerate(CASES):
        found = json.loads(in_process(write_study(folder, case)))
        print(
            f"{what}: {found['cells']:,} cells of {found['points']:,} points in {found['seconds']:.2f} s "
            f"(planned {found['drafted']:.2f}, written {found['written']:.2f}, table and warnings "
            f"{found['shown']:.2f}), {found['seconds'] / limit_s:.2f} of {limit_s:g} s; plan.jsonl "
            f"{found['size'] / 1e6:.0f} MB; peak {found['peak'] / 1e9:.2f} GB, {found['peak'] / 2e9:.2f} of "
            "2 GB",
            flush=True,
        )
    print(f"1e4 cells, cold start: {cold(folder, 'plan', str(folder / 'case0.yaml')):.2f} s", flush=True)
    path = small_study(folder)
    for what, argv, limit_s in (
        ("miniature study, cold start", ("plan", str(path)), 0.4),
        ("plan --budget 1e21, cold start", ("plan", "--budget", "1e21"), 1.0),
    ):
        seconds = cold(folder, *argv)
        print(f"{what}: {seconds:.2f} s, {seconds / limit_s:.2f} of {limit_s:g} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", action="store_true", help="where the time of a million cells goes")
    args = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as name:
        if args.profile:
            print(in_process(write_study(Path(name), len(CASES) - 1), "--profile"))
        else:
            measure(Path(name))


if __name__ == "__main__":
    main()
