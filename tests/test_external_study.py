"""Arms `external` and `hybrid` in a study: planned at matched FLOPs, refused with numbers, run and drawn."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import salt_cli
from analysis.gather import gather
from salt.errors import UserError
from salt.flops import output_width, step_cost
from salt.plans import read_plan
from salt.specs import spec_id
from salt.store import RunDir
from slurm.names import run_names
from slurm.prepare import clips_ready
from sweeps.costs import costs_csv
from sweeps.design import warnings_of
from sweeps.plan import draft_plan
from sweeps.study import load_study
from tests.external_kit import save
from tests.plan_kit import BASE, drafted, study, study_bytes, sweep
from tests.test_study_trainer import lay_videos

pytest.importorskip("transformers")
#: The kit's clips: 8 frames, tokens 4 x 4 x 4, grey.
LARGE = {"image_size": 32, "num_frames": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VideoMAE and a DINOv2 whose grids are the kit's, and one whose is not."""
    top = tmp_path_factory.mktemp("models")
    save("videomae", top / "videomae", **LARGE)
    save("dinov2", top / "dinov2", image_size=28)
    save("clip", top / "clip-vit.b")
    return top


def asked(models: Path, **changes: Any) -> dict[str, Any]:
    """All arms beside each other; DINOv2 is cut to 21 px by its processor, so that the study says 28."""
    return {
        "external": {
            "mae": f"hf:{models}/videomae",
            "dino": {"model": f"hf:{models}/dinov2", "input_px": 28, "trained_flops": 20e9},
        },
        "arms": {
            "pixel": {},
            "salt": {"teachers": ["nano"], "teacher_share": [0.3]},
            "external": {"teachers": ["mae", "dino"]},
            "hybrid": {"teachers": ["nano", "mae"], "teacher_share": [0.3]},
        },
        "students": ["nano"],
    } | changes  # fmt: skip


def refused(models: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        draft_plan(study(**asked(models, **changes)))
    return str(caught.value)


@pytest.mark.parametrize("charge", ["full", "shared", "none"])
def test_arms_are_planned_at_equal_flops(models: Path, charge: str) -> None:
    draft, plan = drafted(**asked(models, charge=charge))
    cells = {(cell.arm, cell.teacher): cell for cell in plan.cells if cell.budget}
    assert set(cells) == {
        ("pixel", None), ("salt", "nano"), ("external", "mae"), ("external", "dino"), ("hybrid", "nano"),
        ("hybrid", "mae"),
    }  # fmt: skip
    specs = {run.run_id: run.spec for run in plan.runs}
    # By hand: what is charged of the teachers, then whole steps of what a step costs.
    stated = {"full": 20e9, "shared": 20e9, "none": 0}[charge]
    for (arm, teacher), cell in cells.items():
        spec = specs[cell.run_id]
        above = 0.0
        if teacher == "nano":  # salt and hybrid have it in common: under `shared` each pays half
            assert cell.teacher_cost is not None
            assert cell.teacher_students == 2
            above = {"full": 1.0, "shared": 0.5, "none": 0.0}[charge] * cell.teacher_cost.total_flops
        if teacher == "dino":
            above = stated
        own = step_cost(spec).total_flops
        assert spec.steps == round((200e9 - above) / own)
        assert cell.charged_flops == spec.steps * own + int(above)
        assert spec.arm == {"pixel": "pixel"}.get(arm, "salt")
        assert spec.objective.pixel_weight == (1.0 if arm == "hybrid" else 0.0)
        wide = {"pixel": 72, "hybrid": 32 + 72}.get(arm, 32)  # 2 x 6 x 6 grey pixels, 32 latents
        assert output_width(spec) == wide
    # A teacher that two arms want is one run, and so are models that teach and are references.
    assert cells["salt", "nano"].teacher_run_id == cells["hybrid", "nano"].teacher_run_id
    models_here = [run for run in plan.runs if run.spec.arm == "external"]
    assert sorted(run.cost.total_flops for run in models_here) == [0, 20_000_000_000]
    beside = {cell.student: cell for cell in plan.cells if not cell.budget}
    assert set(beside) == {"mae", "dino"}
    assert beside["mae"].run_id == cells["external", "mae"].teacher_run_id
    names = run_names(plan)
    assert str(names[cells["hybrid", "mae"].run_id]) == "hybrid nano <- mae 200 GFLOP seed 0"
    assert str(names[cells["external", "dino"].run_id]) == "external nano <- dino 200 GFLOP seed 0"
    assert b"trained_elsewhere" in b"".join(costs_csv(draft))
    found = "\n".join(warnings_of(draft))
    assert "mae cost nothing here" in found
    assert "dino" not in found


def test_a_hybrid_is_the_run_that_its_weights_make_it(models: Path) -> None:
    """Arms name cells, not runs: a salt run with pixels keeps its id as a hybrid."""
    weighted = {"teachers": ["mae"], "objective": {"pixel_weight": 0.25}}
    _, one = drafted(**asked(models, arms={"salt": weighted}))
    _, two = drafted(**asked(models, arms={"hybrid": weighted}))
    _, three = drafted(**asked(models, arms={"hybrid": {"teachers": ["mae"]}}))
    ids = [next(cell.run_id for cell in plan.cells if cell.budget) for plan in (one, two, three)]
    assert ids[0] == ids[1] != ids[2]
    _, plan = drafted(**asked(models, arms={"hybrid": {
        "teachers": ["mae"], "sweep": {"objective.pixel_weight": [0.1, 1.0]}
    }}))  # fmt: skip
    weights = {run.spec.objective.pixel_weight for run in plan.runs if run.role == "student"}
    assert weights == {0.1, 1.0}
    _, plan = drafted(**asked(models, schedule="wsd", convention="paper", targets="cached(views=2)"))
    assert {cell.arm for cell in plan.cells if cell.budget} == {"pixel", "salt", "external", "hybrid"}


def test_a_folder_may_stand_among_the_teachers(models: Path) -> None:
    changes = asked(models, external=None, arms={"external": {"teachers": [f"hf:{models}/videomae"]}})
    _, plan = drafted(**changes)
    assert {cell.teacher for cell in plan.cells if cell.budget} == {"videomae"}
    _, named = drafted(**asked(models, arms={"salt": {"teachers": ["mae"]}}))
    of_both = [{run.run_id for run in each.runs} for each in (plan, named)]
    assert of_both[0] == of_both[1]  # neither the name nor the arm is part of what is run
    twice = {"external": {"teachers": [f"hf:{models}/videomae", "hf:other/videomae"]}}
    assert "'videomae' cannot be its name, or is another one's" in refused(models, external={}, arms=twice)


def test_what_cannot_be_is_refused_with_its_numbers(models: Path) -> None:
    clip = {"clip": f"hf:{models}/clip-vit.b"}
    arms = {"external": {"teachers": ["clip"]}}
    text = refused(models, external=clip, arms=arms)
    assert (
        "external clip: it gives 3 x 3 tokens a frame (24 px in patches of 8), the student has 4 x 4" in text
    )
    assert "`input_px: 32`" in text
    drafted(**asked(models, external={"clip": {"model": clip["clip"], "input_px": 32}}, arms=arms))
    resized = {"clip": {"model": clip["clip"], "resize_grid": "bilinear"}}
    drafted(**asked(models, external=resized, arms=arms))
    text = refused(models, clip=BASE["clip"] | {"frames": 16})
    assert "external mae: it reads 8 frames, the clip has 16" in text
    both = {"salt": {"teachers": ["mae"]}, "external": {"teachers": ["mae"]}}
    assert "'mae' is among the teachers of arms.salt too" in refused(models, arms=both)
    assert "unknown name 'nano'" in refused(models, arms={"external": {"teachers": ["nano"]}})
    zero = {"hybrid": {"teachers": ["mae"], "objective": {"pixel_weight": 0}}}
    assert "arms.hybrid: objective.pixel_weight is 0" in refused(models, arms=zero)
    assert "arms.hybrid: say what a teacher may cost" in refused(
        models, arms={"hybrid": {"teachers": ["nano"]}}
    )
    pixels = {"pixel_weight": 0.5}
    same = {
        "salt": {"teachers": ["mae"], "objective": pixels},
        "hybrid": {"teachers": ["mae"], "objective": pixels},
    }
    assert "arms.salt and arms.hybrid have the same students, of mae with pixel_weight 0.5" in refused(
        models, arms=same
    )
    assert "Then write hf:" in refused(models, external={"mae": f"{models}/videomae", "dino": "x"})
    half = {"mae": {"model": f"hf:{models}/videomae", "trained_flops": 1.5}}
    assert "trained_flops: 1.5 is not a whole number" in refused(models, external=half)


def test_external_and_hybrid_arms_from_study_to_figures(models: Path, tmp_path: Path) -> None:
    """Planned, run, probed and drawn through the command line, from models on disk that may then go away."""
    for name, count in (("train", 12), ("selection", 6), ("report", 6)):
        lay_videos(tmp_path, name, count)
    copies = tmp_path / "models"
    save("videomae", copies / "videomae", **LARGE)
    save("dinov2", copies / "dinov2", image_size=28)
    changes = asked(
        Path("models"),
        data={name: f"{name}.csv" for name in ("train", "selection", "report")},
        budgets_flops=[4e9],
        optim={"batch_clips": 4},
        probes=[
            {"name": "main", "labels": ["speed"], "kinds": ["linear", "attentive"], "train_clips": 8,
             "selection_clips": 6, "report_clips": 6,
             "settings": {"attentive_epochs": 1, "attentive_batch_clips": 4, "layers": [1, 2]}}
        ],
        execution={"micro_batch_clips": 2, "decode_workers": 0},
    )  # fmt: skip
    changes["arms"]["external"]["objective"] = {"teacher_layer": 1}
    changes["external"]["dino"]["trained_flops"] = 5e8
    changes["external"]["dino"]["per_tubelet"] = "middle"
    path = tmp_path / "kit.yaml"
    path.write_bytes(study_bytes(**changes))
    store = tmp_path / "store"
    out, _ = sweep("plan", str(path), "--store", str(store), "--audit")
    assert "Not charged, trained elsewhere: mae." in out
    assert "Trained elsewhere at a cost that the study states: dino 500 MFLOP." in " ".join(out.split())
    (copies / "videomae" / "model.safetensors").unlink()  # the store has what is needed
    sweep("submit", "kit", "--on", "inline", "--store", str(store))
    table = gather(store, "kit")
    assert set(table["state"]) == {"done"}
    assert table["accuracy"].notna().all()
    cells = table[table["role"] == "cell"]
    arms = cells[cells["budget_flops"] > 0]
    assert set(arms["arm"]) == {"pixel", "salt", "external", "hybrid"}
    assert (abs(arms["total_flops"] / 4e9 - 1) < 0.01).all()
    taught = arms[arms["teacher"].isin(["mae", "dino"])]
    assert taught["teacher_accuracy"].notna().all()
    assert set(taught.loc[taught["teacher"] == "dino", "teacher_flops"]) == {5e8}
    plan = read_plan(store, "kit")
    for cell in plan.cells:
        if cell.teacher_run_id is not None:
            student, above = (RunDir(store, run).read_result() for run in (cell.run_id, cell.teacher_run_id))
            assert student is not None
            assert above is not None
            assert student.teacher_sha256 == above.artefact_sha256
    for command in ("pareto", "weak-teacher", "compare"):
        assert analyze(command, "kit", "--store", str(store)) == 0
    figures = store / "reports" / "kit" / "figures"
    assert (figures / "pareto.png").stat().st_size > 10_000
    levels = (figures / "pareto-references.csv").read_text()
    assert ",external,mae," in levels
    assert ",external,dino," in levels
    runs = (figures / "pareto-runs.csv").read_text()
    assert "external mae>nano" in runs
    assert "hybrid nano>nano 30%" in runs
    assert ",external,0" not in runs  # the models themselves are no runs of an arm
    # Without the weights nothing is sent, and the message names the way out.
    run = RunDir(store, next(cell.run_id for cell in plan.cells if cell.student == "mae"))
    run.artefact.unlink()
    with pytest.raises(UserError, match=rf"{run.run_id} \(videomae\) are not in .*: plan the study again"):
        clips_ready(store, plan)


def analyze(*argv: str) -> int:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return salt_cli.run("salt-analyze", list(argv))


def test_numbers_of_older_specs_stay(models: Path) -> None:
    """A study without these arms keeps its plan to the byte, whatever models are on disk."""
    before = json.dumps(sorted(run.run_id for run in drafted()[1].runs))
    named = drafted(external={"mae": f"hf:{models}/videomae"})[1]
    assert json.dumps(sorted(run.run_id for run in named.runs)) == before
    file = yaml.safe_load(study_bytes())
    again = load_study(Path("kit.yaml"), data=yaml.safe_dump(file, sort_keys=False).encode())
    assert all(spec_id(run.spec) == run.run_id for run in named.runs)
    assert again.external == {}
