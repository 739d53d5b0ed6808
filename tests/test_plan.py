"""Planning: numbers against a second way of counting, byte-identical files, and every mistake a clear
refusal.
"""

import contextlib
import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest

import salt_cli
from salt.plan_specs import Plan
from salt.plans import encode_plan, plan_dir, read_plan
from salt.specs import RunSpec, spec_id
from sweeps.document import parse_yaml
from sweeps.plan import build_plan, draft_plan, write_plan
from sweeps.study import load_study

#: A study of the miniature's kind whose numbers stay as they are, whatever the shipped one is tuned to.
MINIATURE = Path(__file__).parent / "studies" / "miniature.yaml"
EXAMPLES = Path(__file__).parent.parent / "examples"
CLIPS = {"train": 1024, "selection": 1024, "report": 2048}  # as many as the probes want


@functools.cache
def small_video() -> bytes:
    """An H.264 file of four grey frames."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return data.getvalue()


def lay_lists(folder: Path, clips: dict[str, int], content: bytes | None = None) -> None:
    """Lists of one small video many times over: planning counts them and looks into the first."""
    folder.mkdir()
    for split, count in clips.items():
        (folder / split).mkdir()
        lines = ["path,motion,appearance,group"]
        for number in range(count):
            (folder / split / f"{number}.mp4").write_bytes(small_video() if content is None else content)
            lines.append(f"{split}/{number}.mp4,speed{number % 6},digit{number % 10},{split}{number % 300}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the miniature's study file and lists of the right length."""
    folder = tmp_path_factory.mktemp("study")
    lay_lists(folder / "clips", CLIPS)
    (folder / "examples").mkdir()
    (folder / "examples" / "miniature.yaml").write_bytes(MINIATURE.read_bytes())
    return folder


@pytest.fixture
def write_study(place: Path, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Writes the miniature's study file with pieces of its text replaced."""

    def write(*changes: tuple[str, str]) -> Path:
        text = MINIATURE.read_text()
        for old, new in changes:
            assert text.count(old) >= 1, f"the example has no {old!r}"
            text = text.replace(old, new, 1)
        path = place / "examples" / f"{request.node.name.replace('/', '_')[:60]}.yaml"
        path.write_text(text)
        return path

    return write


def sweep(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = salt_cli.run("salt-sweep", list(argv))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def plan(place: Path) -> Plan:
    return build_plan(load_study(place / "examples" / "miniature.yaml"))


# --- numbers --------------------------------------------------------------------------------------


def hand_step(arm: str, student: tuple[int, int], teacher: tuple[int, int] | None = None) -> int:
    """FLOPs of one step of the miniature from its shapes: 16 clips, 64 tokens of 72 values, two masks of 8 +
    32.

    Counted per linear layer and attention product as multiply-adds, unlike the closed form's per-block sums.
    """

    def layer(tokens: int, width: int) -> int:
        linears = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
        return sum(tokens * a * b for a, b in linears) + 2 * tokens * tokens * width

    def encoder(tokens: int, size: tuple[int, int]) -> int:
        return size[1] * layer(tokens, size[0])

    width = student[0]
    output = 72 if arm == "pixel" else (teacher or student)[0]
    embed = 2 * 8 * 72 * width
    trained = 2 * (encoder(8, student) + 8 * width * 32 + 2 * layer(40, 32) + 32 * 32 * output)
    multiply_adds = 2 * embed + 3 * trained
    if arm != "pixel":
        sees = teacher or student
        multiply_adds += 64 * 72 * sees[0] + encoder(64, sees)
    return 16 * 2 * multiply_adds


SIZES = {"nano": (32, 2), "micro": (48, 3), "tiny": (64, 4)}


def test_every_cell_costs_its_budget_by_a_second_count(plan: Plan) -> None:
    steps = {run.run_id: run.spec.steps for run in plan.runs}
    cells = [cell for cell in plan.cells if cell.budget_flops]
    assert len(cells) == 3 * 3 * 2 * (
        1 + 1 + 3
    )  # budgets x seeds x students x (pixel, vjepa, three teachers)
    for cell in cells:
        teacher = SIZES[cell.teacher] if cell.teacher else None
        own = steps[cell.run_id] * hand_step(cell.arm, SIZES[cell.student], teacher)
        above = (
            steps[cell.teacher_run_id] * hand_step("pixel", teacher) if teacher and cell.teacher_run_id else 0
        )
        assert cell.cost.total_flops == own
        assert (cell.teacher_cost.total_flops if cell.teacher_cost else 0) == above
        assert abs(own + above - cell.budget_flops) <= 0.01 * cell.budget_flops
        assert cell.residual == (own + above - cell.budget_flops) / cell.budget_flops
        if teacher:
            assert abs(above - 0.3 * cell.budget_flops) <= hand_step("pixel", teacher) / 2
        # No other whole number of steps comes nearer to the budget.
        assert abs(own + above - cell.budget_flops) <= hand_step(cell.arm, SIZES[cell.student], teacher) / 2


def test_golden_steps_at_400_gigaflop(plan: Plan) -> None:
    steps = {run.run_id: run.spec.steps for run in plan.runs}
    found = {
        (cell.arm, cell.student, cell.teacher): (steps[cell.run_id], steps.get(cell.teacher_run_id or ""))
        for cell in plan.cells
        if cell.budget_flops == 400e9
    }
    assert found[("pixel", "micro", None)] == (1055, None)
    assert found[("vjepa", "micro", None)] == (679, None)
    assert found[("salt", "micro", "nano")] == (632, 420)
    assert found[("salt", "micro", "micro")] == (475, 317)
    assert found[("salt", "micro", "tiny")] == (327, 215)


def test_a_teacher_is_one_run_for_all_its_students_and_comes_first(plan: Plan) -> None:
    cells = [cell for cell in plan.cells if cell.arm == "salt"]
    teachers = {cell.teacher_run_id for cell in cells}
    assert len(teachers) == 3 * 3 * 3  # budgets x sizes x seeds, not once more for the second student
    assert {cell.teacher_students for cell in cells} == {2}
    order = {run.run_id: place for place, run in enumerate(plan.runs)}
    by_id = {run.run_id: run for run in plan.runs}
    assert len(order) == len(plan.runs)
    for cell in cells:
        assert cell.teacher_run_id is not None
        teacher, student = by_id[cell.teacher_run_id], by_id[cell.run_id]
        assert order[teacher.run_id] < order[student.run_id]
        assert teacher.spec.arm == "pixel"
        assert teacher.spec.seed == student.spec.seed == cell.seed
        assert student.spec.teacher is not None
        assert (student.spec.teacher.run_id, student.spec.teacher.step) == (
            teacher.run_id,
            teacher.spec.steps,
        )
    for run in plan.runs:
        assert run.run_id == spec_id(run.spec)
    roles = [run.role for run in plan.runs]
    assert roles == sorted(roles, key=["teacher", "student", "reference"].index)
    for role in ("teacher", "student"):
        costs = [run.cost.total_flops for run in plan.runs if run.role == role]
        assert costs == sorted(costs, reverse=True)


def test_probes_land_where_the_study_says(plan: Plan) -> None:
    by_kinds = {(spec.kinds, spec.frames): probe_id for probe_id, spec in plan.probes.items()}
    main = by_kinds[(("linear", "knn"), ("ordered",))]
    attentive = by_kinds[(("attentive",), ("ordered",))]
    controls = by_kinds[(("linear", "knn"), ("shuffled", "first"))]
    largest = {cell.run_id for cell in plan.cells if cell.budget_flops == 800e9}
    largest |= {
        cell.teacher_run_id for cell in plan.cells if cell.budget_flops == 800e9 and cell.teacher_run_id
    }
    for run in plan.runs:
        at_largest = run.run_id in largest or run.role == "reference"
        assert main in run.probe_ids
        assert (attentive in run.probe_ids) == (at_largest and run.spec.arm != "raw")
        assert (controls in run.probe_ids) == (at_largest and run.spec.seed == 0)


def test_the_plan_is_byte_identical_and_comes_back_whole(place: Path, plan: Plan, tmp_path: Path) -> None:
    study = load_study(place / "examples" / "miniature.yaml")
    first = write_plan(tmp_path, draft_plan(study))
    names = ("study.yaml", "plan.jsonl", "costs.csv")
    before = {name: (first.folder / name).read_bytes() for name in names}
    second = write_plan(tmp_path, draft_plan(study))
    assert (first.outcome, second.outcome) == ("new", "unchanged")
    assert {name: (first.folder / name).read_bytes() for name in names} == before
    assert sorted(path.name for path in first.folder.iterdir()) == sorted(names)
    assert before["study.yaml"] == MINIATURE.read_bytes()
    again = read_plan(tmp_path, "miniature")
    assert again == plan
    assert encode_plan(again) == before["plan.jsonl"]


def test_replacing_a_plan_says_what_came_and_went(
    place: Path, plan: Plan, tmp_path: Path, write_study: Callable[..., Path]
) -> None:
    study = load_study(place / "examples" / "miniature.yaml")
    write_plan(tmp_path, draft_plan(study))
    smaller = load_study(write_study(("seeds: [0, 1, 2]", "seeds: [0, 1, 3]")))
    written = write_plan(tmp_path, draft_plan(smaller))
    per_seed = 9 + 3 * 2 * 5 + 3 + 1  # teachers, students, random encoders, the supervised one
    assert (written.outcome, written.runs_added, written.runs_removed) == ("replaced", per_seed, per_seed)


def test_numbers_written_differently_are_one_study(plan: Plan, write_study: Callable[..., Path]) -> None:
    changed = write_study(
        ("200e9, 400e9, 800e9", "2.0e+11, 400000000000, 800_000_000_000"),
        ("lr: 1e-3", "lr: 0.001"),
        ("clip_norm: 1.0", "clip_norm: 1"),
    )
    other = build_plan(load_study(changed))
    assert [run.run_id for run in other.runs] == [run.run_id for run in plan.runs]


def test_a_swept_field_becomes_an_axis(write_study: Callable[..., Path]) -> None:
    path = write_study(
        ("vjepa: {}", "vjepa: {sweep: {optim.lr: [1e-3, 2e-3], objective.ema_start: [0.9, 0.99]}}"),
        ("students: [micro, tiny]", "students: [micro]"),
    )
    made = build_plan(load_study(path))
    specs: dict[str, RunSpec] = {run.run_id: run.spec for run in made.runs}
    swept = [specs[cell.run_id] for cell in made.cells if cell.arm == "vjepa" and cell.seed == 0]
    settings = {(spec.optim.lr, spec.objective.ema_start) for spec in swept}
    assert settings == {(1e-3, 0.9), (1e-3, 0.99), (2e-3, 0.9), (2e-3, 0.99)}
    assert len({cell.cell_id for cell in made.cells}) == len(made.cells)
    assert {spec.optim.lr for spec in specs.values() if spec.arm == "pixel"} == {1e-3}


def test_quick_is_the_same_study_made_smaller(place: Path) -> None:
    quick = build_plan(load_study(place / "examples" / "miniature.yaml", quick=True))
    assert quick.name == "miniature-quick"
    budgets = {cell.budget_flops for cell in quick.cells if cell.budget_flops}
    assert len(budgets) == 3
    assert max(budgets) < 400e9
    assert {cell.arm for cell in quick.cells if cell.budget_flops} == {"pixel", "vjepa", "salt"}
    assert all(abs(cell.residual) <= 0.01 for cell in quick.cells)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_and_writes_what_it_says(place: Path, tmp_path: Path) -> None:
    study, store = str(place / "examples" / "miniature.yaml"), str(tmp_path / "store")
    code, text, _ = sweep("plan", study, "--store", store)
    assert code == 0
    assert "references" in text
    assert str(tmp_path / "store" / "plans" / "miniature") in text.replace("\n", "")
    # A plan's name is as good as its study file; its lists are found although the copy lies elsewhere.
    code, text, _ = sweep("plan", "miniature", "--budget", "1e12", "--store", store, "--json")
    assert code == 0
    answer = json.loads(text)
    assert {cell["budget"] for cell in answer["cells"]} == {1e12}
    assert answer["written"] == "replaced"
    assert answer["runs"] == sum(total["runs"] for total in answer["totals"].values())
    code, again, _ = sweep("plan", "miniature", "--store", store, "--json")  # and its options are remembered
    assert (code, json.loads(again)["written"]) == (0, "unchanged")
    runs = read_plan(tmp_path / "store", "miniature").runs
    assert answer["total_flops"] == sum(run.cost.total_flops for run in runs)
    code, text, _ = sweep("status", "--store", store, "--json")
    assert code == 0
    counts = json.loads(text)["counts"]
    assert counts == {"pending": answer["runs"] - 18, "waiting": 18}  # 3 teachers x 2 students x 3 seeds wait


BAD: dict[str, tuple[tuple[str, str], list[str]]] = {
    "unknown key": (("minimum_steps: 50", "minimum_step: 50"), ["minimum_step", "'minimum_steps'"]),
    "unknown nested key": (("  warmup_share: 0.1", "  warm_up: 0.1"), ["optim.warm_up", "'warmup_share'"]),
    "unknown arm": (("vjepa: {}", "v-jepa: {}"), ["arms.v-jepa", "'vjepa'"]),
    "unknown key of a mask": (("blocks: 8, scale", "bloks: 8, scale"), ["masks[0].bloks", "'blocks'"]),
    "unknown size": (("students: [micro, tiny]", "students: [micro, tinny]"), ["'tinny'", "'tiny'"]),
    "unknown swept field": (("vjepa: {}", "vjepa: {sweep: {optim.rate: [1]}}"), ["optim.rate", "'optim."]),
    "unknown probe setting": (
        ("- name: main\n", "- name: main\n    settings: {neighbors: [3]}\n"),
        ["neighbors", "'neighbours'"],
    ),
    "key twice": (("seeds: [0, 1, 2]", "seeds: [0]\nseeds: [1]"), ["'seeds'", "twice", ".yaml:"]),
    "wrong type": (("patch_px: 6", "patch_px: six"), ["model.patch_px", "'six'", "int"]),
    "out of range": (("warmup_share: 0.1", "warmup_share: 1.5"), ["optim.warmup_share", "1.5", "<= 1.0"]),
    "not yaml": (("budgets_flops: [", "budgets_flops: [["), [".yaml:"]),
    "heads": (
        (
            "students: [micro, tiny]",
            "students: [odd]\nsizes: {odd: {width: 50, depth: 2, heads: 3, mlp_width: 200}}",
        ),
        ["size odd", "3 heads do not divide the width 50"],
    ),
    "predictor heads": (("predictor: {width: 32", "predictor: {width: 33"), ["predictor", "2 heads"]),
    "crop": (("crop_px: 24", "crop_px: 25"), ["crop_px 25", "patch_px 6", "use 24"]),
    "frames": (("frames: 8", "frames: 7"), ["frames 7", "tubelet_frames 2"]),
    "mask too large": (("target_tokens: 32", "target_tokens: 60"), ["masks[0]", "60 target"]),
    "below one step": (("200e9, 400e9", "1e6, 400e9"), ["budget 1e+06", "below one step"]),
    "teacher takes all": (("teacher_share: [0.3]", "teacher_share: [1.0]"), ["teacher exceeds budget"]),
    "budget smaller than its teacher": (
        ("teacher_share: [0.3]", "teacher_flops: [300e9]"),
        ["teacher exceeds budget", "budget 2e+11", "3e+11 FLOPs"],
    ),
    "too few steps": (("minimum_steps: 50", "minimum_steps: 500"), ["below minimum_steps 500"]),
    "repeats data": (("minimum_steps: 50", "maximum_epochs: 1"), ["repeats data", "maximum_epochs 1"]),
    "batch": (("batch_clips: 16", "batch_clips: 9000"), ["cannot be planned"]),
    "missing list": (("clips/train.csv", "clips/tain.csv"), ["tain.csv"]),
    "missing label": (("labels: [motion]", "labels: [emotion]"), ["'emotion'", "motion, appearance"]),
    "leak": (("clips/report.csv", "clips/selection.csv"), ["selection and report"]),
    "sample too large": (("report_clips: 2048", "report_clips: 4096"), ["report_clips", "4096", "2048"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_refused_before_anything_is_written(
    case: str, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    change, wanted = BAD[case]
    code, out, err = sweep("plan", str(write_study(change)), "--store", str(tmp_path / "store"))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    for word in wanted:
        assert word in err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("content", [b"", b"path,motion,appearance\n", None])
def test_an_empty_or_missing_list_is_refused(
    content: bytes | None, place: Path, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    if content is not None:
        (place / "clips" / "none.csv").write_bytes(content)
    path = write_study(("clips/train.csv", "clips/none.csv" if content is not None else "clips/absent.csv"))
    code, out, err = sweep("plan", str(path), "--store", str(tmp_path / "store"))
    assert (code, out) == (2, "")
    assert "none.csv" in err or "absent.csv" in err
    assert not (tmp_path / "store").exists()


def test_all_bad_cells_are_listed_at_once(write_study: Callable[..., Path], tmp_path: Path) -> None:
    path = write_study(
        ("200e9, 400e9", "1e6, 400e9"),
        (
            "students: [micro, tiny]",
            "students: [micro, odd]\nsizes: {odd: {width: 50, depth: 2, heads: 3, mlp_width: 9}}",
        ),
    )
    code, _, err = sweep("plan", str(path), "--store", str(tmp_path / "store"))
    assert code == 2
    lines = err.splitlines()
    assert "20 of 30 cells" in lines[0]  # 10 at the small budget, 5 more of size odd at each of the others
    assert len(lines) == 1 + 20
    assert sum("3 heads do not divide" in line for line in lines) == 15
    assert sum("below one step" in line for line in lines) == 5


def test_a_budget_that_whole_steps_miss_is_refused(write_study: Callable[..., Path], tmp_path: Path) -> None:
    path = write_study(
        ("minimum_steps: 50", "minimum_steps: 1"), ("students: [micro, tiny]", "students: [micro]")
    )
    budget = hand_step("pixel", SIZES["micro"]) * 7 // 2  # three steps or four: 14 % off either way
    code, _, err = sweep("plan", str(path), f"--budget={budget}", "--store", str(tmp_path / "store"))
    assert code == 2
    assert "arm pixel, student micro" in err
    assert "misses its budget by +14.29 %" in err
    assert not (tmp_path / "store").exists()


def test_a_bad_budget_on_the_command_line(place: Path, tmp_path: Path) -> None:
    study = str(place / "examples" / "miniature.yaml")
    for bad in ("-1", "nan", "inf", "0"):
        code, _, err = sweep("plan", study, f"--budget={bad}", "--store", str(tmp_path / "store"))
        assert code == 2
        assert "--budget" in err
    assert not (tmp_path / "store").exists()


def test_a_list_of_broken_files_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    lay_lists(tmp_path / "clips", {"train": 40, "selection": 4, "report": 4}, content=b"x")
    text = re.sub(r"(train|selection|report)_clips: \d+", r"\1_clips: 4", MINIATURE.read_text())
    text = text.replace("../clips", "clips").replace("batch_clips: 64", "batch_clips: 16")
    (tmp_path / "study.yaml").write_text(text)
    store = tmp_path / "store"
    code, out, err = sweep("plan", str(tmp_path / "study.yaml"), "--quick", "--store", str(store))
    assert (code, out) == (2, "")
    assert "train.csv" in err
    assert not store.exists()
    (tmp_path / "clips" / "train" / "0.mp4").write_bytes(small_video())
    for split in ("selection", "report"):
        (tmp_path / "clips" / split / "0.mp4").write_bytes(small_video())
    assert sweep("plan", str(tmp_path / "study.yaml"), "--quick", "--store", str(store))[0] == 0
    # One sound file is enough to plan; too many broken ones are refused before a run is queued.
    code, out, err = sweep("submit", "miniature-quick", "--on", "local", "--store", str(store))
    assert (code, out) == (2, "")
    assert "train.csv" in err
    assert not (store / "runs").exists()


@pytest.mark.parametrize(
    ("name", "quick"), [("miniature", False), ("miniature", True), ("miniature-tuning", False)]
)
def test_shipped_studies_plan_within_one_percent(place: Path, name: str, quick: bool) -> None:
    (place / "shipped").mkdir(exist_ok=True)
    path = place / "shipped" / f"{name}.yaml"
    path.write_bytes((EXAMPLES / path.name).read_bytes())
    plan = build_plan(load_study(path, quick=quick))
    assert {cell.arm for cell in plan.cells} >= {"pixel", "salt", "vjepa", "random"}
    for cell in plan.cells:
        if cell.budget_flops:
            teacher = cell.teacher_cost.total_flops if cell.teacher_cost else 0
            assert abs((teacher + cell.cost.total_flops) / cell.budget_flops - 1) <= 0.01
    if name == "miniature" and not quick:
        top = [cell for cell in plan.cells if cell.budget_flops == max(c.budget_flops for c in plan.cells)]
        assert {cell.seed for cell in top} == {0, 1, 2}
        assert len({cell.budget_flops for cell in plan.cells} - {0}) == 3


def test_yaml_scalars_mean_what_they_look_like() -> None:
    text = "a: 200e9\nb: 010\nc: on\nd: 12:30\ne: true\nf: 1e-3\ng: null\nh: no\n1: x\ni: 1_000\nj: .5\n"
    assert parse_yaml(text.encode(), Path("x.yaml")) == {
        "a": 200e9, "b": 10, "c": "on", "d": "12:30", "e": True, "f": 1e-3, "g": None, "h": "no", "1": "x",
        "i": 1000, "j": 0.5,
    }  # fmt: skip


def test_no_tag_in_a_study_file_runs_code(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch owned']\n")
    code, _, err = sweep("plan", str(path), "--store", str(tmp_path / "store"))
    assert code == 2
    assert "study.yaml:1" in err
    assert sorted(item.name for item in tmp_path.iterdir()) == ["study.yaml"]


def test_an_unknown_plan_names_those_there_are(plan: Plan, place: Path, tmp_path: Path) -> None:
    write_plan(tmp_path, draft_plan(load_study(place / "examples" / "miniature.yaml")))
    code, _, err = sweep("status", "miniatur", "--store", str(tmp_path))
    assert code == 2
    assert "'miniatur'" in err
    assert "miniature" in err.split("'miniatur'")[1]
    assert not plan_dir(tmp_path, "miniatur").exists()


def test_execution_settings_do_not_change_a_run(plan: Plan, write_study: Callable[..., Path]) -> None:
    other = build_plan(load_study(write_study(("threads: 1", "threads: 2"))))
    assert other.execution.threads == 2
    assert [run.run_id for run in other.runs] == [run.run_id for run in plan.runs]
    assert msgspec.structs.replace(other, execution=plan.execution, study_sha256=plan.study_sha256) == plan
