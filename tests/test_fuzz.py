"""Inputs that nobody meant: each ends in work done, or in one sentence that names place and way out.

`pytest tests/test_fuzz.py --hypothesis-profile=long` tries some hundred thousand of them, anew each time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt.attempts import begin_attempt, end_attempt
from salt.claim import Holder
from salt.errors import UserError
from salt.plain_yaml import parse_yaml
from salt.plans import decode_plan, plan_dir
from salt.result_specs import RunError
from salt.specs import ExternalRef, spec_id
from salt.store import RunDir, pretty_json, write_atomically
from tests import examples, plan_kit
from tests.console import ROOT
from tests.fuzz_kit import RAW, command, damaged, held, json_bytes, limited, mangled, tries, yaml_bytes
from tests.synthetic import Study, make_study

EXAMPLES = ROOT / "examples"
BUDGET = 200 * 10**9


def example(name: str) -> dict[str, Any]:
    """A study file of the repository, with lists that are declared."""
    path = EXAMPLES / f"{name}.yaml"
    clips = {"train": 152_022, "selection": 16_891, "report": 24_777}
    lists = {split: {"name": split, "clips": count} for split, count in clips.items()}
    return parse_yaml(path.read_bytes(), path) | {"data": lists}


STUDIES = [plan_kit.BASE, *(example(name) for name in ("miniature", "miniature-tuning", "mask-ablation"))]
SITES = [parse_yaml(path.read_bytes(), path) for path in sorted((EXAMPLES / "sites").glob("*.yaml"))]
EXTERNAL: dict[str, Any] = json.loads(
    msgspec.json.encode(
        msgspec.structs.replace(
            examples.run_spec("external", "nano", steps=0),
            external=ExternalRef(format="hf", model="x", weights_sha256="0" * 64),
        )
    )
)
CONFIG = {
    "model_type": "vjepa2",
    "patch_size": 6,
    "crop_size": 24,
    "frames_per_clip": 8,
    "in_chans": 3,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "mlp_ratio": 2.0,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three lists of empty files, a run, and study files that refer to what is damaged."""
    folder = tmp_path_factory.mktemp("fuzz")
    for number, name in enumerate("abc"):
        (folder / name).mkdir()
        rows = [(f"{number}{row}.mp4", f"class{row % 2}") for row in range(6)]
        for row, _ in rows:
            (folder / name / row).touch()
        (folder / name / "list.csv").write_text("path,motion\n" + "".join(f"{a},{b}\n" for a, b in rows))
    studies = {
        "site": {"site": "damaged"},
        "frontier": {"extra_seeds": [{"seeds": [5], "where": {"frontier": "damaged"}}]},
        "external": {
            "clip": EXTERNAL["clip"],
            "external": {"w": "damaged"},
            "arms": {"salt": {"teachers": ["w"]}},
            "references": {"random": False, "raw": False, "external": ["w"]},
        },
        "list": {"data": plan_kit.BASE["data"] | {"train": "a/damaged"}, "optim": {"batch_clips": 1}},
    }
    for name, changes in studies.items():
        (folder / f"{name}.yaml").write_bytes(plan_kit.study_bytes(**changes))
    spec = examples.run_spec("pixel", "nano")
    run = RunDir(folder / "store", spec_id(spec))
    write_atomically(run.spec, pretty_json(spec))
    (folder / "run").write_text(run.run_id)
    (folder / "hf").mkdir()
    return folder


def plan(folder: Path, study: str) -> None:
    """Plan a study; an error names its file, or the damaged one."""
    held(command("salt-sweep", "plan", str(folder / study), "--store", str(folder / "store")), str(folder))


# --- files that users write -----------------------------------------------------------------------


@tries(200)
@given(st.sampled_from(STUDIES).flatmap(damaged).map(yaml_bytes) | mangled(yaml_bytes(STUDIES[0])))
def test_any_study_file_is_planned_or_refused(folder: Path, data: bytes) -> None:
    (folder / "study.yaml").write_bytes(data)
    plan(folder, "study.yaml")


FRONTIER = b"cell_id,x\n" + b"".join(b"%s,1\n" % c.cell_id.encode() for c in plan_kit.drafted()[1].cells[:2])


@tries(120)
@given(
    st.one_of(
        st.tuples(st.just("site"), st.sampled_from(SITES).flatmap(damaged).map(yaml_bytes)),
        st.tuples(st.just("site"), mangled(yaml_bytes(SITES[0]))),
        st.tuples(st.just("frontier"), mangled(FRONTIER)),
        st.tuples(st.just("external"), damaged(EXTERNAL, most=1).map(json_bytes)),
        st.tuples(st.just("external"), mangled(json_bytes(EXTERNAL))),
    )
)
def test_any_file_that_a_study_names_is_read_or_refused(folder: Path, case: tuple[str, bytes]) -> None:
    kind, data = case
    (folder / "damaged").write_bytes(data)
    plan(folder, f"{kind}.yaml")


@tries(40)
@given(st.data())
def test_any_list_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    (folder / "a" / "damaged").write_bytes(data.draw(mangled((folder / "a" / "list.csv").read_bytes())))
    plan(folder, "list.yaml")


SUITE = {
    "labels": ["motion"],
    "kinds": ["linear"],
    "segments": 2,
    "layers": [1, 2],
    "attentive_lrs": [1e-3],
    "train": "a/list.csv",
    "selection": "b/list.csv",
    "report": "c/list.csv",
    "train_clips": 6,
    "selection_clips": 6,
    "report_clips": 6,
}


@tries(60)
@given(damaged(SUITE).map(yaml_bytes) | mangled(yaml_bytes(SUITE)))
def test_any_probe_suite_is_read_or_refused(folder: Path, data: bytes) -> None:
    (folder / "suite.yaml").write_bytes(data)
    run_id = (folder / "run").read_text()
    argv = ("probe", run_id, "--spec", str(folder / "suite.yaml"), "--store", str(folder / "store"))
    assert held(command("salt-train", *argv)).code == 2  # at the latest since the run is not trained


@tries(60)
@given(
    st.sampled_from(["config.json", "model.safetensors", "model.safetensors.index.json"]),
    damaged(CONFIG, most=1).map(json_bytes) | mangled(json_bytes(CONFIG)),
)
def test_any_folder_of_weights_is_refused_in_a_sentence(folder: Path, name: str, data: bytes) -> None:
    """None of these holds weights, so none may be imported; a good folder is another test's."""
    for old in (folder / "hf").iterdir():
        old.unlink()
    (folder / "hf" / "config.json").write_bytes(json_bytes(CONFIG))
    (folder / "hf" / name).write_bytes(data)
    ended = held(
        command("salt-train", "import", str(folder / "hf"), "--store", str(folder / "store")),
        str(folder / "hf"),
        "clip",  # a clip that its numbers do not allow
    )
    assert ended.code == 2


@pytest.mark.parametrize("number", range(len(RAW)))
def test_a_yaml_file_can_do_nothing_but_be_read(number: int) -> None:
    """Tags run nothing, aliases of aliases do not grow, and what is read is plain data."""
    for data in (RAW[number], b"name: kit\noptim:\n  lr: *a\n" if number == 0 else b"x: 1\n" + RAW[number]):
        try:
            with limited(5):
                found = parse_yaml(data, Path("f.yaml"))
        except UserError as error:
            told = str(error)
        else:
            told = f"f.yaml:{json.dumps(found, allow_nan=False)}"
        assert told.startswith("f.yaml:")


def test_an_error_names_the_key_of_a_mapping() -> None:
    wrong = {"mask_sets": {"good": [{}], "b.c": [{}, {"context_frames": "x"}]}}
    with pytest.raises(UserError, match=re.escape("kit.yaml: mask_sets.b.c[1].context_frames: expected int")):
        plan_kit.study(**wrong)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masks": [{"blocks": 10**6}]}, "1000 at most"),
        ({"masks": [{"keep": "batch_min", "keep_clips": 10**9}]}, "3000 at most"),
        ({"clip": plan_kit.BASE["clip"] | {"crop_px": 6 * 2**30, "store_px": 6 * 2**30}}, "128 at most"),
        ({"seeds": [2**60]}, "seeds[0]"),
        ({"name": "kit\n"}, "name: expected str matching"),
        ({"sizes": {"../x": {"width": 32, "depth": 1, "heads": 2, "mlp_width": 8}}}, "letters, digits"),
    ],
)
def test_sizes_that_no_machine_has_and_names_that_lead_elsewhere(changes: dict[str, Any], words: str) -> None:
    with limited(10), pytest.raises(UserError, match=re.escape(words)):
        plan_kit.drafted(**changes)


# --- files that salt writes -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A store with a run of every state, and every file that commands read."""
    store = tmp_path_factory.mktemp("store")
    study = make_study(store, "kit", seeds=(0,), budgets=(BUDGET,), students=("micro",), teachers=("nano",))
    for run in study.plan.runs:
        write_atomically(RunDir(store, run.run_id).spec, pretty_json(run.spec))
    failed, begun = (study.folder(study.cell(arm, budget=BUDGET)) for arm in ("pixel", "vjepa"))
    study.fail(failed.run_id, "data", "bad", step=3)
    study.lose(begun.run_id)
    mine = Holder(host="h", machine="m", pid=1, started="1", token="t", claimed_unix_s=1.0)
    begun.claim.write_bytes(msgspec.json.encode(mine))
    lines = [{"step": step, "attempt": 1, "loss": 1.0 / step, "wall_s": 1.0} for step in range(1, 6)]
    begun.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    failed_run = RunDir(store, failed.run_id)
    for ended in ("data", "data"):
        begin_attempt(failed_run, {"host": "node"})
        end_attempt(failed_run, ended, "bad")
    return study


def _files(study: Study) -> dict[str, Path]:
    done = study.folder(study.cell("salt", teacher="nano", budget=BUDGET))
    failed, begun = (study.folder(study.cell(arm, budget=BUDGET)) for arm in ("pixel", "vjepa"))
    return {
        "result": done.result,
        "spec": done.spec,
        "probe": done.probe("main"),
        "error": failed.error,
        "env": failed.env,
        "claim": begun.claim,
        "metrics": begun.metrics,
        "study": plan_dir(study.store, "kit") / "study.yaml",
        "plan": plan_dir(study.store, "kit") / "plan.jsonl",
    }


def _lines(value: Any) -> bytes:
    return b"".join(json_bytes(line) + b"\n" for line in (value if isinstance(value, list) else [value]))


@tries(70)
@given(st.data())
def test_a_damaged_store_is_told_about(made: Study, data: st.DataObject) -> None:
    """Status, `show` and the analysis of a store in which one file is damaged; nothing else is lost."""
    name = data.draw(st.sampled_from(sorted(_files(made))))
    path = _files(made)[name]
    good = path.read_bytes()
    strategy = mangled(good)
    if name in ("plan", "metrics"):
        strategy |= damaged([json.loads(line) for line in good.splitlines()], most=2).map(_lines)
    elif name != "study":
        strategy |= damaged(json.loads(good), most=2).map(json_bytes)
    path.write_bytes(data.draw(strategy))
    try:
        for argv in (
            ("salt-sweep", "status", "kit"),
            ("salt-sweep", "diff", "kit", "kit"),
            ("salt-train", "show", made.folder(made.cell("salt", teacher="nano", budget=BUDGET)).run_id),
        ):
            ended = held(command(*argv, "--store", str(made.store)), str(path))
            # A damaged file of one run is a line of the table: the other runs are told of all the same.
            assert argv[1] != "status" or name in ("plan", "study") or ended.code == 0, ended.err
        _analyse(made, path)
    finally:
        path.write_bytes(good)


def _analyse(study: Study, path: Path) -> None:
    """What `salt-analyze` reads, without its figures; a damaged run keeps its rows, with the reason."""
    from analysis.gather import gather
    from analysis.pareto import configurations
    from analysis.report import read_question
    from analysis.tables import frontier_table, lost_table

    with limited():
        told = str(path)
        try:
            table = gather(study.store, "kit")
            frontier_table(configurations(table))
            lost_table(table)
            read_question(study.store, "kit")
        except UserError as error:
            told = str(error)
        assert str(path) in told or path.name == "plan.jsonl", told  # two of its cells may be one


def _edited(made: Study, record: str, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The plan with the first line of a kind changed."""
    lines = [json.loads(line) for line in _files(made)["plan"].read_bytes().splitlines()]
    line = next(line for line in lines if line["record"] == record)
    change(line)
    return _lines(lines)


@pytest.mark.parametrize("name", ["../../x", "..", ".", "", "a/b", "/etc/x", "a\\b", "x\n", "x" * 101, "-x"])
def test_nothing_in_a_plan_leads_out_of_its_store(made: Study, name: str, tmp_path: Path) -> None:
    fields = {"plan": "name", "probe": "probe_id", "run": "run_id", "cell": "teacher_run_id"}
    for record, field in fields.items():
        if name == "-x" and record != "plan":
            continue  # a file may be called so, an argument may not
        with pytest.raises(UserError, match=r"plan:\d+: .*make the plan again"):
            decode_plan(_edited(made, record, lambda line, field=field: line.update({field: name})))
    for argv in (("salt-sweep", "status"), ("salt-sweep", "submit"), ("salt-analyze", "report")):
        ended = command(*argv, "--store", str(made.store), "--", name)
        assert held(ended).code == 2
        assert "no plan" in ended.err
    assert not list(tmp_path.iterdir())


def test_a_plan_that_contradicts_itself_is_refused(made: Study) -> None:
    plan = _files(made)["plan"].read_bytes()
    lines = plan.splitlines(keepends=True)
    run = next(line for line in lines if b'"record":"run"' in line and b'"teacher":[' not in line)
    own = json.loads(run)["run_id"]
    with_teacher = next(
        json.loads(line) for line in lines if b'"record":"run"' in line and b'"teacher":[' in line
    )
    with_teacher["teacher"][0] = with_teacher["run_id"]
    nested = plan.replace(b'"overrides":{}', b'"overrides":{"a":%s%s}' % (b"[" * 9000, b"]" * 9000), 1)
    for data, words in (
        (plan + run, f"run {own} comes twice"),
        (plan + lines[0], "second header"),
        (plan + _lines(with_teacher), "begins from itself"),
        (_edited(made, "run", lambda line: line.update(steps=-1)), "int. >= 0"),
        (_edited(made, "run", lambda line: line.update(base=-1)), "int. >= 0"),
        (_edited(made, "run", lambda line: line.update(probes=[-1])), "int. >= 0"),
        (_edited(made, "run", lambda line: line.update(trunk=["a", 10**9])), "before its trunk"),
        (nested, "recursion"),
    ):
        assert data != plan
        with pytest.raises(UserError, match=words):
            decode_plan(data)


def test_a_plan_lies_under_its_own_name(made: Study, tmp_path: Path) -> None:
    write_atomically(plan_dir(tmp_path, "other") / "plan.jsonl", _files(made)["plan"].read_bytes())
    ended = held(command("salt-sweep", "status", "--store", str(tmp_path)), "other/plan.jsonl")
    assert (ended.code, "called 'kit'" in ended.err) == (2, True)


def test_what_is_written_replaces_links_and_follows_none(tmp_path: Path) -> None:
    """A file of a run that is a link to somewhere else: the link goes, what it points to stays."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = RunDir(tmp_path / "store", "a" * 16)
    run.path.mkdir(parents=True)
    run.error.symlink_to(victim)
    error = RunError(run_id=run.run_id, kind="data", message="m", attempt=1, step=None, host="h")
    write_atomically(run.error, pretty_json(error))
    assert victim.read_text() == "mine"
    assert not run.error.is_symlink()
    assert run.read_error() == error
