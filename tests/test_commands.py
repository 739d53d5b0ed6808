"""What every command line promises: exit codes, `error:` lines, broken pipes, Ctrl-C and its options."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import salt_cli
from salt import __version__, data_cli, train_cli
from salt.errors import RunFailed, UserError
from sweeps import cli

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


def test_the_options_of_salt_sweep_are_these() -> None:
    """Scripts of users hold on to them: changing one is a decision, not an accident."""
    parser = cli._parser()
    (commands,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert {name: options_of(command) for name, command in commands.items()} == {
        "plan": [
            *("--audit", "--budget", "--charge", "--convention", "--help", "--json", "--layout", "--match"),
            *("--quick", "--rows", "--site", "--store", "--targets"),
        ],
        "submit": [
            "--help",
            "--json",
            "--on",
            "--retry-diverged",
            "--retry-given-up",
            "--store",
            "--workers",
        ],
        "status": ["--help", "--json", "--store"],
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
    ]
