"""`salt-train probe`: results where they belong, and mistakes refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from salt import checkpoint, probe_cli
from salt.artefact import weights_sha256, write_artefact
from salt.checkpoint import Origin
from salt.errors import UserError
from salt.learner import Learner
from salt.lists import data_spec, read_list
from salt.probe import SPLITS
from salt.result_specs import ProbeResult
from salt.specs import RunSpec, spec_id
from salt.store import RunDir, pretty_json, read_json, write_atomically
from tests.examples import run_spec
from tests.probe_kit import COUNTS, moving


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lists and a suite file; clips come from memory, as if they had been decoded before."""
    opened = {}
    for seed, (split, count) in enumerate(COUNTS.items()):
        source = moving(count, seed)
        rows = []
        for video, label in enumerate(source.columns["motion"]):
            (tmp_path / f"{split}-{video}.mp4").write_bytes(b"x")
            rows.append(f"{split}-{video}.mp4,{label}")
        path = tmp_path / f"{split}.csv"
        path.write_text("\n".join(["path,motion", *rows]) + "\n")
        opened[data_spec(read_list(path), split).fingerprint] = source
    monkeypatch.setattr("salt.clips.planned_clips", lambda _, fingerprint, *rest, **more: opened[fingerprint])
    lines = [
        "labels: [motion]",
        "kinds: [linear, knn]",
        *[f"{split}: {split}.csv" for split in SPLITS],
        *[f"{split}_clips: {count}" for split, count in COUNTS.items()],
        "attentive_lrs: [1e-3]",
    ]
    (tmp_path / "suite.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path


def begun(folder: Path, spec: RunSpec, finished: bool) -> tuple[RunDir, Learner]:
    """A run's folder; its average differs from its student by a known shift."""
    run, learner = RunDir(folder / "store", spec_id(spec)), Learner(spec)
    write_atomically(run.spec, pretty_json(spec))
    with torch.no_grad():
        learner.encoder.embed.bias.add_(0.5)
    if finished:
        write_artefact(run, spec, learner.probed(), "ema" if spec.arm == "vjepa" else "student", Origin())
    return run, learner


def salt_probe(folder: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    probe_cli.add_parsers(parser.add_subparsers())
    line = ["probe", *argv, "--spec", str(folder / "suite.yaml"), "--json"]
    assert probe_cli.run_probe(parser.parse_args(line), folder / "store") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_finished_run_gets_a_new_probe_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, learner = begun(folder, run_spec("pixel", "nano", steps=5), finished=True)
    (first,) = salt_probe(folder, capsys, run.run_id[:6])["results"]
    spec, _ = probe_cli.read_suite(folder / "suite.yaml")
    assert first["made"]
    assert first["path"] == str(run.probe(spec_id(spec)))
    found = run.read_probe(spec_id(spec))
    assert found is not None
    assert found.encoder_sha256 == weights_sha256(learner.encoder.state_dict())
    assert [score.kind for score in found.scores] == ["linear", "knn"]
    (second,) = salt_probe(folder, capsys, run.run_id[:6])["results"]
    assert not second["made"]
    assert second["result"] == first["result"]


def test_both_branches_of_an_average_are_two_labelled_results(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = msgspec.structs.replace(run_spec("vjepa", "nano", steps=5), keep_steps=(3,))
    run, learner = begun(folder, spec, finished=False)
    packed = checkpoint.pack(run, 3, learner.tensors(), attempt=1, train_wall_s=1.0, origin=Origin())
    checkpoint.keep(run, packed, pytest.fail)
    results = salt_probe(folder, capsys, run.run_id, "--step", "3", "--branch", "both")["results"]
    places = [Path(row["path"]) for row in results]
    assert [place.parent.name for place in places] == ["step-00000003-ema", "step-00000003-student"]
    found = [read_json(place, ProbeResult) for place in places]
    assert [result.branch for result in found] == ["ema", "student"]
    assert found[0].encoder_sha256 == weights_sha256(learner.probed().state_dict())
    assert found[1].encoder_sha256 == weights_sha256(learner.encoder.state_dict())
    assert found[0].encoder_sha256 != found[1].encoder_sha256
    assert list(run.probes.glob("*.json")) == []  # what lies there belongs to the finished encoder
    with pytest.raises(UserError, match="not trained to its end .5 steps.*keeps 3"):
        salt_probe(folder, capsys, run.run_id)
    with pytest.raises(UserError, match="no state of step 4"):
        salt_probe(folder, capsys, run.run_id, "--step", "4")


def test_a_plan_is_probed_as_far_as_it_is_trained(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        begun(folder, run_spec("pixel", "nano", steps=5, seed=seed), finished=seed < 2)[0]
        for seed in range(3)
    ]
    plan = SimpleNamespace(runs=runs)
    monkeypatch.setattr("salt.plans.plan_names", lambda _: ["mine"])
    monkeypatch.setattr("salt.plans.read_plan", lambda *_: plan)
    found = salt_probe(folder, capsys, "mine")
    assert [row["result"]["run_id"] for row in found["results"]] == [run.run_id for run in runs[:2]]
    assert [row["run_id"] for row in found["passed_over"]] == [runs[2].run_id]
    with pytest.raises(UserError, match="none of 3 runs can be probed so"):
        salt_probe(folder, capsys, "mine", "--branch", "both")


def test_a_suite_file_with_a_mistake_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = begun(folder, run_spec("pixel", "nano", steps=5), finished=True)
    good = (folder / "suite.yaml").read_text()
    for old, new, words in [
        ("report: report.csv", "report: train.csv", "same videos"),
        ("report_clips: 32", "report_clips: 33", "has 32 videos"),
        ("report_clips: 32", "report_clips: 1e3", "report_clips 1000: .* has 32 videos"),  # a text, in YAML
        ("kinds: [linear, knn]", "kinds: [linear, forest]", "forest"),
        ("labels: [motion]", "label: [motion]", "labels|label"),
        ("report: report.csv", "report: {name: r}", "path of a list"),
        ("kinds: [linear, knn]", "kinds: [linear]\nlayers: [7]", "2 blocks"),
        ("labels: [motion]", "labels: []", "labels: is empty"),
        ("labels: [motion]", "labels: [motion, motion]", "comes twice"),
        ("labels: [motion]", "labels: [colour]", "train.csv has no column 'colour'; it has motion"),
        ("kinds: [linear, knn]", "kinds: []", "nothing to find out"),
        ("kinds: [linear, knn]", "kinds: [linear]\nridge_penalties: []", "ridge_penalties: is empty"),
        ("kinds: [linear, knn]", "kinds: [linear]\nridge_penalties: [.inf]", "finite"),
        ("kinds: [linear, knn]", "kinds: [knn]\nneighbours: [49]", "more than train_clips 48"),
        ("kinds: [linear, knn]", "kinds: [knn]\nnumerics: 1", "leave it out"),
        ("kinds: [linear, knn]", "kinds: [knn]\nframes: [first]\nsegments: 2", "one segment"),
    ]:
        (folder / "suite.yaml").write_text(good.replace(old, new))
        with pytest.raises(UserError, match=words):
            salt_probe(folder, capsys, run.run_id)
    (folder / "suite.yaml").write_text(good)
    with pytest.raises(UserError, match="leave the option out"):
        salt_probe(folder, capsys, run.run_id, "--branch", "ema")
    with pytest.raises(UserError, match="--step -1"):
        salt_probe(folder, capsys, run.run_id, "--step", "-1")
    with pytest.raises(UserError, match="--device nowhere"):
        salt_probe(folder, capsys, run.run_id, "--device", "nowhere")
    with pytest.raises(UserError, match="it has the runs none"):
        salt_probe(folder, capsys, "zz")
    assert not run.probes.exists()
    run.probes.write_text("in the way")
    with pytest.raises(UserError, match="probes: cannot be made"):
        salt_probe(folder, capsys, run.run_id)


def test_lists_that_share_a_video_or_a_source_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, train = folder / "report.csv", folder / "train.csv"
    plain = report.read_text(), train.read_text()
    report.write_text(plain[0] + "train-7.mp4,left\n")
    with pytest.raises(UserError, match=r"report.csv shares file \S+train-7.mp4 with \S+train.csv"):
        salt_probe(folder, capsys, "0")
    for path, text, source in ((report, plain[0], "b"), (train, plain[1], "a")):
        lines = text.splitlines()
        rows = [f"{line},{source}{place}" for place, line in enumerate(lines[1:])]
        path.write_text("\n".join([f"{lines[0]},group", *rows]).replace("b31", "a31") + "\n")
    with pytest.raises(UserError, match=r"report.csv shares source \(group\) a31 with \S+train.csv"):
        salt_probe(folder, capsys, "0")


def test_raw_pixels_are_not_asked_for_what_they_lack(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = begun(folder, run_spec("pixel", "nano", steps=5), finished=True)
    write_atomically(run.spec, pretty_json(msgspec.structs.replace(run.read_spec(), arm="raw", steps=0)))
    good = (folder / "suite.yaml").read_text()
    for kinds in ("[attentive]", "[]\nlabel_free: [rankme]"):
        (folder / "suite.yaml").write_text(good.replace("[linear, knn]", kinds))
        with pytest.raises(UserError, match="raw pixels: .* ask for linear or knn"):
            salt_probe(folder, capsys, run.run_id)
