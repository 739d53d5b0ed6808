"""Names that nobody should choose, and what may read a file: nothing that can run it."""

from __future__ import annotations

import ast
import csv
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import yaml

from tests.arms_kit import _moving
from tests.console import ROOT
from tests.fuzz_kit import command, held
from tests.video_kit import write_video

NASTY = "a b, 'c' \"d\" $HOME `e`\n<script>alert(1)</script> \u6f22\u5b57 [red]x[/b] {{ 7 * 7 }} %s -%"
LABEL = "mo,tion <script>alert('x')</script> $a$ [/b] \u6f22 \"q\" %s\n-l" + "\u6f22" * 60
CLASSES = ("left\n$HOME,", "<b>'right'\"&\u6f22")
PLACE = "-s t,'\"$HOME\n<script>&\u6f22[b]"


def _write_list(folder: Path, first: int, clips: int) -> str:
    folder.mkdir()
    place = folder / 'li st,".csv'
    with open(place, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", LABEL, "group"])
        for number in range(first, first + clips):
            name = f"{number} ,'\"$x\n\u6f22.mp4" if number % 2 else f"-{number}.mp4"
            write_video(folder / name, 20, width=64, height=48, picture=_moving(number))
            writer.writerow([name, CLASSES[number % 2], f"g,\n{number}"])
    return f"{folder.name}/{place.name}"


class _Tags(HTMLParser):
    """Tags of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs), attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_nasty_study_from_end_to_end(tmp_path: Path) -> None:
    """Spaces, commas, quotes, dollars, newlines, dashes, markup and Chinese in every name that is free."""
    root, store = tmp_path / PLACE, tmp_path / f"store {PLACE}"
    root.mkdir()
    names = {"train": "tr $ain", "selection": "s'el", "report": "-re\nport"}
    clips = {"train": 16, "selection": 8, "report": 8}
    lists = {
        key: _write_list(root / name, 100 * n, clips[key]) for n, (key, name) in enumerate(names.items())
    }
    counts = {f"{key}_clips": count for key, count in clips.items()}
    study = {
        "name": "N.a_sty-1",
        "question": NASTY,
        "data": lists,
        "minimum_steps": 1,
        "clip": {"frames": 8, "frame_stride": 2, "store_px": 32, "crop_px": 24},
        "model": {"patch_px": 6, "predictor": {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}},
        "sizes": {"A.b_c": {"width": 24, "depth": 1, "heads": 2, "mlp_width": 48}},
        "masks": [{"visible_tokens": 8, "target_tokens": 32}],
        "match": "steps",
        "budgets_steps": [6],
        "seeds": [0],
        "students": ["A.b_c"],
        "arms": {"pixel": {}, "salt": {"teachers": ["A.b_c"], "teacher_steps": [2]}},
        "optim": {"batch_clips": 4, "lr": 1e-3, "warmup_share": 0.2},
        "references": {"random": True, "raw": False},
        "probes": [{"name": "pro be,'\"$\u6f22<b>", "labels": [LABEL], "kinds": ["linear"], **counts}],
        "execution": {"decode_workers": 0, "log_every_steps": 2},
    }
    path = root / "stu dy,'$x\n.yaml"
    path.write_text(yaml.safe_dump(study, allow_unicode=True), encoding="utf-8")
    before = set(tmp_path.iterdir())
    for argv in (
        ("salt-sweep", "plan", str(path)),
        ("salt-sweep", "plan", "N.a_sty-1"),
        ("salt-sweep", "submit", str(path), "--on", "local", "--workers", "2"),
        ("salt-sweep", "status"),
        ("salt-analyze", "pareto", "--label", LABEL),
        ("salt-analyze", "report"),
    ):
        ended = command(*argv, "--store", str(store))
        assert ended.code == 0, (argv, ended.out[-1000:], ended.err[-1000:])
    assert set(tmp_path.iterdir()) == before | {store}
    page = _Tags()
    page.feed((store / "reports" / "N.a_sty-1" / "report.html").read_text(encoding="utf-8"))
    assert page.tags.isdisjoint({"script", "b", "i", "red"})
    for name in (NASTY, LABEL):
        assert " ".join(name.split()) in " ".join(page.text.split())


def test_a_message_cannot_move_the_cursor(tmp_path: Path) -> None:
    name = "\x1b[2J\u202e\udcff\r"
    for argv in (
        ("salt-sweep", "status", name),
        ("salt-train", "show", name),
        ("salt-analyze", "pareto", name),
    ):
        ended = held(command(*argv, "--store", str(tmp_path)))
        assert ended.code == 2
        assert not any(not (c.isprintable() or c == "\n") for c in ended.err), ended.err


def test_a_place_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "plans" / "kit" / "plan.jsonl").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    for store in (tmp_path, tmp_path / "loop", tmp_path / "absent", Path(os.devnull)):
        for argv in (
            ("salt-sweep", "status"),
            ("salt-train", "show", "a"),
            ("salt-analyze", "pareto", "kit"),
        ):
            assert held(command(*argv, "--store", str(store)), str(store)).code == 2


# --- what may read a store ------------------------------------------------------------------------


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_that_is_read_can_run() -> None:
    """No pickles, no YAML but the plain one, nothing evaluated, no shell: in all that is installed."""
    forbidden = re.compile(
        r"(^|\.)(pickle|cPickle|dill|joblib|marshal|shelve|cloudpickle)\.|^(eval|exec|compile|__import__)$"
        r"|^torch\.load$|^torch\.jit\.load$|^yaml\.(load|load_all|unsafe_load|full_load|safe_load)$|^os\.(system|popen)$"
        r"|^(pd|pandas)\.read_pickle$|^runpy\."
    )
    files = [ROOT / "salt_cli.py"]
    files += [
        file for name in ("salt", "slurm", "sweeps", "analysis") for file in (ROOT / name).rglob("*.py")
    ]
    assert len(files) > 100
    loads = 0
    for file in files:
        for name, call in _calls(ast.parse(file.read_text(encoding="utf-8"))):
            assert not forbidden.search(name), f"{file.name}:{call.lineno}: {name}"
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert words.get("allow_pickle", "False") == "False", f"{file.name}:{call.lineno}"
            assert words.get("shell", "False") == "False", f"{file.name}:{call.lineno}"
            assert words.get("weights_only", "True") == "True", f"{file.name}:{call.lineno}"
            loads += name.endswith("load_file")
    assert loads, "weights are read somewhere, as safetensors"
