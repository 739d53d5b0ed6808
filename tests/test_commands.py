"""What every command line promises: exit codes, `error:` lines, broken pipes, Ctrl-C and its options."""

import argparse
import errno
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

import salt_cli
from salt import __version__, data_cli, data_commands, train_cli
from salt.attempts import begin_attempt
from salt.claim import Claim
from salt.disk import disk_failed
from salt.errors import RunFailed, UserError
from salt.plan_specs import Plan
from salt.plans import encode_plan, plan_dir
from salt.progress import progress
from salt.result_specs import RunError
from salt.store import RunDir, pretty_json, write_atomically
from slurm.console import console
from slurm.pace import Pace
from slurm.states import State
from slurm.status import plan_status
from sweeps import cli
from tests.drain_kit import StandIn, finish, holder, plan, states
from tests.fuzz_kit import command as called

__all__ = ["plan"]  # a fixture

ROOT = Path(__file__).parent.parent


def command(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "salt_cli.py"), *argv],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("name", salt_cli.COMMANDS)
def test_version_and_wrong_use(name: str, tmp_path: Path) -> None:
    shown = command(name, "--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"salt {__version__}\n")
    wrong = command(name, "--no-such-option", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "usage:" in wrong.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_plan_commands_say_how_to_make_one(tmp_path: Path) -> None:
    for argv in (("salt-sweep", "status"), ("salt-sweep", "submit"), ("salt-analyze", "pareto")):
        done = command(*argv, "--store", str(tmp_path / "store"))
        assert done.returncode == 2, argv
        assert done.stderr.startswith("error: no plan in ")
        assert "salt-sweep plan STUDY.yaml" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("seeds: -1 is negative"), 2, "error: seeds: -1 is negative\n"),
        (RunFailed("disk", "no space left"), 1, "error: the run failed (disk): no space left\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on where it stopped\n"),
    ],
)
def test_how_a_command_ends(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(argv: list[str]) -> int:
        raise raised

    monkeypatch.setattr(cli, "main", fail)
    assert salt_cli.run("salt-sweep", []) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("argv", "head"),
    [
        (("salt-sweep", "plan", "study.yaml"), "error: cannot write "),
        (("salt-analyze", "report"), "error: cannot write "),
        (("salt-data", "pack", "list.csv"), "error: cannot write "),
        (("salt-train", "export", "a", "b"), "error: cannot write "),
        (("salt-train", "run", "a"), "error: the run failed (disk): cannot write "),
    ],
)
def test_a_full_disk_speaks_of_a_run_where_one_was_asked_for(
    argv: tuple[str, ...], head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(argv: list[str]) -> int:
        raise disk_failed(OSError(errno.ENOSPC, "full"), Path("/store/a\x1b[2J"))

    monkeypatch.setattr(importlib.import_module(salt_cli.COMMANDS[argv[0]]), "main", fail)
    ended = called(*argv)
    words = "/store/a\\x1b[2J: no space is left (ENOSPC); free some room there"
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(head + words)


def test_no_message_of_salt_data_moves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise UserError(f"{arguments.list}: no list\nsecond line")

    monkeypatch.setattr(data_commands, "scan", fail)
    ended = called("salt-data", "scan", "\x1b[2J\u202e\r.csv")
    assert (ended.code, ended.err) == (2, "error: \\x1b[2J\\u202e\\r.csv: no list\nsecond line\n")


def test_tables_and_progress_show_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    table = Table("[red]head[/red]")
    table.add_row("[red]cell[/red] :x: [/]")
    console(written).print(table)
    console(written).print("[blink]line :x: [/]")
    for text in ("[red]head[/red]", "[red]cell[/red] :x: [/]", "[blink]line :x: [/]"):
        assert text in written.getvalue()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress("scan [red]a[/]b.csv", 1) as advance:
        advance(1)
    assert "scan [red]a[/]b.csv" in terminal.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


WAYS_OUT = {
    "spec": "plan again",
    "env": "move it away and submit again",
    "error": "move it away and submit again",
}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[]", b'{"a": ' * 9000], ids=lambda data: repr(data[:3])
)
@pytest.mark.parametrize("name", WAYS_OUT)
def test_a_damaged_file_costs_its_own_run_alone(
    name: str, data: bytes, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second teacher's: its student waits for nothing that could come, all others are trained."""
    stand_in, run = StandIn(), RunDir(tmp_path, plan.runs[1].run_id)
    write_atomically(plan_dir(tmp_path, plan.name) / "plan.jsonl", encode_plan(plan))
    begin_attempt(run, {"host": "node"})
    path = getattr(run, name)
    whole = path.read_bytes() if path.exists() else None
    write_atomically(path, data)
    for module, function in (
        ("slurm.prepare", "refuse_runs"),
        ("slurm.prepare", "prepare_clips"),
        ("sweeps.auditing", "audit_plan"),
    ):
        monkeypatch.setattr(f"{module}.{function}", lambda *_: None)
    monkeypatch.setattr("slurm.worker._execute", stand_in)
    monkeypatch.setenv("COLUMNS", "1000")

    def row(out: str) -> str:
        (line,) = (line for line in out.splitlines() if run.run_id in line and State.BLOCKED not in line)
        return line

    ended = called("salt-sweep", "status", "small", "--store", str(tmp_path))
    assert ended.code == 0
    line = row(ended.out)
    assert State.DAMAGED in line
    assert str(path) in line
    assert WAYS_OUT[name] in line
    ended = called("salt-sweep", "submit", "small", "--on", "inline", "--store", str(tmp_path))
    assert ended.code == 1
    assert str(path) in row(ended.out)
    assert "plan small: 4 of 6 runs done; 4 were sent" in ended.out
    assert states(tmp_path, plan) == [
        State.DONE,
        State.DAMAGED,
        State.DONE,
        State.DONE,
        State.BLOCKED,
        State.DONE,
    ]
    shown = json.loads(called("salt-sweep", "status", "small", "--json", "--store", str(tmp_path)).out)
    damaged = shown["runs"][1]
    assert (damaged["state"], damaged["step"], damaged["attempts"]) == ("damaged", None, None)
    assert str(path) in damaged["reason"]
    assert shown["runs"][4]["reason"].startswith("a file of its teacher is damaged: ")
    assert path.read_bytes() == data, "what is left of it is the user's to look at"

    path.unlink()
    if whole is not None and name == "spec":
        path.write_bytes(whole)
    ended = called("salt-sweep", "submit", "small", "--on", "inline", "--store", str(tmp_path))
    assert ended.code == 0
    assert states(tmp_path, plan) == [State.DONE] * 6


def test_no_line_of_status_moves_the_cursor(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files that somebody else wrote: an error and its host, a field that is unknown, who holds a run."""
    monkeypatch.setenv("COLUMNS", "1000")
    write_atomically(plan_dir(tmp_path, plan.name) / "plan.jsonl", encode_plan(plan))
    odd, escaped = "\x1b[2J\u202e", "\\x1b[2J\\u202e"
    failed, damaged, held = (
        RunDir(tmp_path, run.run_id) for run in (plan.runs[0], plan.runs[1], plan.runs[5])
    )
    error = RunError(run_id=failed.run_id, kind="data", message=odd, attempt=1, step=None, host=f"host{odd}")
    write_atomically(failed.error, pretty_json(error))
    write_atomically(damaged.error, pretty_json({f"field{odd}": 1}))
    write_atomically(held.claim, pretty_json(holder(host=f"holder{odd}")))
    ended = called("salt-sweep", "status", "small", "--store", str(tmp_path))
    assert ended.code == 0
    for text in ("host", "field", "holder"):
        assert f"{text}{escaped}" in ended.out
    assert all(character.isprintable() or character == "\n" for character in ended.out)


def test_a_done_run_with_a_damaged_spec_keeps_what_it_paid(plan: Plan, tmp_path: Path) -> None:
    for run in plan.runs:
        finish(tmp_path, run)
    paid = plan_status(tmp_path, plan).done_flops
    RunDir(tmp_path, plan.runs[0].run_id).spec.write_text('{"arm": "pixel"}')
    status = plan_status(tmp_path, plan)
    assert states(tmp_path, plan) == [State.DAMAGED, *[State.DONE] * 5]
    assert status.done_flops == paid == sum(run.cost.total_flops for run in plan.runs)
    assert status.runs[0].step == plan.runs[0].spec.steps
    assert "missing required field" in (status.runs[0].reason or "")


def test_times_of_a_damaged_result_are_not_reckoned_with(plan: Plan, tmp_path: Path) -> None:
    first, second = plan.runs[:2]
    finish(tmp_path, first)
    alone = Pace(tmp_path, plan, 1).seconds_left(plan_status(tmp_path, plan))
    assert alone is not None
    finish(tmp_path, second)
    whole = Pace(tmp_path, plan, 1).seconds_left(plan_status(tmp_path, plan))
    RunDir(tmp_path, second.run_id).result.write_bytes(b"{")
    told = Pace(tmp_path, plan, 1).seconds_left(plan_status(tmp_path, plan))
    rate = alone / sum(run.cost.total_flops for run in plan.runs[1:])
    assert told == pytest.approx(rate * sum(run.cost.total_flops for run in plan.runs[2:]))
    assert told != whole


def test_a_damaged_record_of_a_living_attempt_is_told_of(plan: Plan, tmp_path: Path) -> None:
    run = RunDir(tmp_path, plan.runs[0].run_id)
    run.path.mkdir(parents=True)
    with Claim.acquire(run):
        run.env.write_bytes(b"{")
        row = plan_status(tmp_path, plan).runs[0]
    assert (row.state, row.attempts) == (State.RUNNING, None)
    assert str(run.env) in (row.reason or "")


def test_a_time_that_is_no_number_is_damage(plan: Plan, tmp_path: Path) -> None:
    run = RunDir(tmp_path, plan.runs[0].run_id)
    begin_attempt(run, {"host": "node"})
    run.env.write_text(run.env.read_text().replace('"began_unix_s": "', '"began_unix_s": "x'))
    write_atomically(
        run.error,
        pretty_json(RunError(run_id=run.run_id, kind="data", message="m", attempt=1, step=None, host="h")),
    )
    row = plan_status(tmp_path, plan).runs[0]
    assert row.state is State.DAMAGED
    assert f"{run.env}: `began_unix_s`: could not convert string to float" in (row.reason or "")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise KeyError("a fault")

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(KeyError, match="a fault"):
        salt_cli.run("salt-sweep", [])


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, str(ROOT / "salt_cli.py"), "salt-sweep", "plan", "--help"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode in (0, 141)
    assert "Traceback" not in done.stderr
    assert "BrokenPipeError" not in done.stderr


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    return sorted(option for action in parser._actions for option in action.option_strings if option != "-h")


def test_help_fits_80_columns_but_for_commands_to_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        lines = parser.format_help().splitlines()
        assert [line for line in lines if len(line) > 80 and not line.startswith("  salt-sweep ")] == [], name
    retry = commands.choices["retry"].format_help()
    assert "\n  oom          with less memory      smaller micro-batches, then" in retry
    assert "tried again, also where they were given up or diverged. What" in retry


def test_the_options_of_salt_sweep_are_these() -> None:
    """Scripts of users hold on to them: changing one is a decision, not an accident."""
    parser = cli._parser()
    (commands,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert {name: options_of(command) for name, command in commands.items()} == {
        "init": ["--help", "--json"],
        "schema": ["--help", "--json"],
        "completion": ["--help", "--json"],
        "tune": [
            *(
                "--arms",
                "--cell",
                "--dry-run",
                "--help",
                "--json",
                "--label",
                "--name",
                "--objective",
                "--probe",
            ),
            *("--prune", "--quick", "--recipe", "--seed", "--seed-from", "--show", "--space", "--store"),
            *("--trials", "--workers"),
        ],
        "plan": [
            *("--audit", "--budget", "--charge", "--convention", "--help", "--json", "--layout", "--match"),
            *("--quick", "--rows", "--site", "--store", "--targets"),
        ],
        "simulate": [
            *("--accuracy", "--help", "--json", "--kind", "--label", "--noise-from", "--pair-correlation"),
            *("--quick", "--report-clips", "--rng", "--seed-sd", "--share-loss", "--store"),
        ],
        "submit": [
            *("--detach", "--dry-run", "--help", "--json", "--max-gpu-hours", "--on", "--retry-diverged"),
            *("--retry-given-up", "--site", "--slurm", "--store", "--workers", "--yes"),
        ],
        "retry": [
            *("--class", "--detach", "--dry-run", "--help", "--json", "--max-gpu-hours", "--on", "--site"),
            *("--slurm", "--store", "--workers", "--yes"),
        ],
        "status": [
            *("--best", "--failed", "--help", "--json", "--kind", "--label", "--no-queue", "--probe"),
            *("--site", "--sort", "--store", "--watch", "--where"),
        ],
        "logs": ["--follow", "--help", "--json", "--lines", "--plan", "--store"],
        "cancel": ["--help", "--json", "--store", "--with-others", "--yes"],
        "gc": ["--code", "--help", "--json", "--logs", "--store", "--yes"],
        "site": ["--help", "--json", "--partition", "--write"],
        "diff": ["--help", "--json", "--store"],
        "ledger": [
            *("--arm", "--audit", "--batch", "--charge", "--clips", "--crop", "--frames", "--help", "--json"),
            *("--steps", "--student", "--students-per-teacher", "--target", "--targets", "--teacher"),
            *("--teacher-steps", "--visible"),
        ],
        "recipe": ["--against", "--arm", "--batch", "--help", "--json", "--steps", "--student"],
        "benchmark": [
            *("--arm", "--batch", "--crop", "--device", "--frames", "--help", "--json", "--steps"),
            *("--student", "--teacher", "--threads", "--write"),
        ],
    }


def test_the_options_of_salt_data_are_these() -> None:
    (commands,) = (
        a.choices for a in data_cli._parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    clip = ("--channels", "--frames", "--px", "--rate-hz", "--short-clips", "--stride")
    assert {name: options_of(command) for name, command in commands.items()} == {
        "digits": [
            "--clips",
            "--force",
            "--help",
            "--json",
            "--report",
            "--seed",
            "--selection",
            "--workers",
        ],
        "scan": ["--all", "--clean", "--help", "--json", "--limit-gb", "--limit-s", "--workers"],
        "pack": sorted(
            [
                *clip,
                *("--clips-per-file", "--help", "--json", "--limit-s", "--max-bad", "--out", "--store"),
                "--workers",
            ]
        ),
        "bench": sorted(
            [
                *clip,
                *("--batch", "--help", "--json", "--limit-s", "--needs", "--seconds", "--step-s", "--store"),
                "--workers",
            ]
        ),
        "duplicates": ["--distance", "--help", "--json", "--limit-s", "--other", "--store", "--workers"],
    }


def test_the_options_of_salt_train_are_these() -> None:
    (commands,) = (
        a.choices for a in train_cli._parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    common = ("--help", "--json", "--store")
    assert {name: options_of(command) for name, command in commands.items()} == {
        "run": sorted(
            [*common, "--device", "--from-start", "--list", "--plan", "--processes", "--set", "--threads"]
        ),
        "show": sorted(common),
        "probe": sorted(
            [*common, "--branch", "--device", "--spec", "--step", "--threads", "--workers"],
        ),
        "export": sorted([*common, "--format", "--out"]),
        "import": sorted(
            [
                *common,
                *("--clip", "--drop", "--format", "--frames", "--frame-stride", "--mean"),
                *("--name", "--px", "--std", "--store-px"),
            ]
        ),
    }


def test_workers_must_make_sense(tmp_path: Path) -> None:
    for argv in (("--workers", "0"), ("--on", "inline", "--workers", "2")):
        done = command("salt-sweep", "submit", "--store", str(tmp_path / "store"), *argv)
        assert done.returncode == 2
        assert "--workers" in done.stderr
    assert not (tmp_path / "store").exists()


def test_make_study_types_the_commands_that_the_documents_show() -> None:
    """The Makefile is the first thing a newcomer runs: its lines parse, in the order of a study."""
    text = (ROOT / "Makefile").read_text()
    study = text.partition("\nstudy:")[2].partition("\n\n")[0]
    typed = re.findall(r"\$\(BIN\)/(salt-\w+) ([\w-]+)", study)
    assert typed == [
        ("salt-data", "digits"),
        ("salt-data", "scan"),
        ("salt-sweep", "plan"),
        ("salt-sweep", "submit"),
        ("salt-sweep", "status"),
        ("salt-analyze", "pareto"),
        ("salt-analyze", "weak-teacher"),
        ("salt-analyze", "report"),
        ("salt-analyze", "verify"),
    ]
