"""What the trainer can do, asked for in a study file: masks, mixtures, cached targets, losses, imported
weights, probe suites and execution.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from msgspec.structs import replace

from analysis.gather import gather
from salt.artefact import weights_sha256, write_weights
from salt.checkpoint import Origin
from salt.errors import UserError
from salt.flops import block_flops, encode_flops, step_cost
from salt.learner import build_encoder
from salt.masks import CLIPS_PER_DEVICE, published_counts
from salt.result_specs import RunResult
from salt.sizes import SIZES, patch_values
from salt.specs import DECLARED, ClipSpec, Cost, DataSpec, ExternalRef, MaskSpec, RunSpec, TeacherRef, spec_id
from salt.store import RunDir, pretty_json, write_atomically
from slurm.prepare import refuse_runs, require_imported, wanted_clips
from sweeps.auditing import audit_bases
from sweeps.costs import costs_csv
from sweeps.design import warnings_of
from sweeps.memory import propose
from sweeps.plan import build_plan, draft_plan
from sweeps.show import plan_tables, rows_of
from sweeps.site import DEFAULT_SITE
from sweeps.study import load_study
from tests.console import ROOT
from tests.plan_kit import BASE, drafted, study, sweep
from tests.video_kit import write_video

GRID = (4, 4, 4)  # of the kit's clips
SALT_ONLY = {"salt": {"teachers": ["nano"], "teacher_share": [0.3]}}


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        draft_plan(study(**changes))
    return str(caught.value)


def masks_of(*configs: dict[str, Any]) -> tuple[MaskSpec, ...]:
    return study(masks=list(configs)).masks()


# --- masks ----------------------------------------------------------------------------------------


def test_counts_left_out_are_those_of_the_kind() -> None:
    fixed, causal, group = masks_of(
        {}, {"kind": "causal", "context_frames": 2}, {"keep": "batch_min", "keep_clips": 8}
    )
    shape = (8, 0.15, 0.75, 1.5, GRID)
    assert (fixed.visible_tokens, fixed.target_tokens) == published_counts(*shape, CLIPS_PER_DEVICE)
    wanted = published_counts(*shape, CLIPS_PER_DEVICE, 2)
    assert (causal.visible_tokens, causal.target_tokens) == wanted
    assert causal.visible_tokens <= 2 * 16
    assert causal.target_tokens >= 2 * 16  # all of the later time steps
    assert (group.visible_tokens, group.target_tokens) == published_counts(*shape, 8)
    assert group.visible_tokens > fixed.visible_tokens  # fewer clips, less is cut
    # int(196 x 0.1) = 19 cells at 8 time steps, all others predicted.
    clip, model = {"frames": 16, "crop_px": 224, "store_px": 224}, BASE["model"] | {"patch_px": 16}
    (tube,) = study(masks=[{"kind": "tube", "ratio": 0.9}], clip=clip, model=model).masks()
    assert (tube.visible_tokens, tube.target_tokens) == (152, 1416)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"ratio": 0.9}, "masks[0].ratio 0.9: only of `kind: tube`"),
        ({"kind": "tube"}, "masks[0]: a tube mask needs `ratio: 0.9`"),
        ({"kind": "tube", "ratio": 0.5, "visible_tokens": 8}, "visible_tokens is given too"),
        ({"kind": "tube", "ratio": 0.99}, "leaves none of 16 cells visible"),
        ({"kind": "tube", "ratio": 0.5, "blocks": 3}, "masks[0].blocks 3: means nothing for a tube"),
        ({"kind": "tube", "visible_tokens": 9, "target_tokens": 8}, "visible_tokens 9: a tube lasts all 4"),
        ({"kind": "causal"}, "context_frames is None"),
        ({"kind": "causal", "context_frames": 4}, "context_frames is 4"),
        ({"context_frames": 2}, "has no meaning for kind blocks"),
        ({"keep": "batch_min", "keep_clips": 24}, "keep_clips 24 does not divide batch_clips 16"),
    ],
)
def test_masks_that_cannot_be_are_refused_with_a_way_out(mask: dict[str, Any], words: str) -> None:
    assert words in refusal(masks=[mask])


def test_the_papers_mask_ablation_plans() -> None:
    plan = build_plan(load_study(ROOT / "examples" / "mask-ablation.yaml"))
    specs = {run.run_id: run.spec for run in plan.runs}
    kinds = {}
    for cell in plan.cells:
        assert abs(cell.charged_flops / cell.budget_flops - 1) < 1e-3
        assert specs[cell.run_id].masks[0].visible_tokens == 366  # students learn under block masks
        masks = specs[cell.teacher_run_id or ""].masks
        kinds[tuple(mask.kind for mask in masks)] = masks[-1]
    assert set(kinds) == {("blocks",) * 2, ("tube",), ("tube",) * 2, ("causal",) * 2}
    assert (kinds["tube",].visible_tokens, kinds["tube",].target_tokens) == (152, 1416)
    assert kinds["causal", "causal"].context_frames == 4


def test_masks_of_a_groups_own_length_are_warned_of() -> None:
    masks = [{"keep": "batch_min", "keep_clips": 8}]
    draft, _ = drafted(masks=masks, arms={"pixel": {}}, execution={"compile": True})
    found = "\n".join(warnings_of(draft))
    assert "other token counts in every step" in found
    assert "leave compile off" in found


# --- objectives -----------------------------------------------------------------------------------


def test_what_an_objective_adds_and_leaves_out_is_priced_and_audited() -> None:
    arms = {
        "pixel": {},
        "salt": {
            "teachers": ["tiny"],
            "teacher_share": [0.3],
            "objective": {"pixel_weight": 0.1, "teacher_layer": 1, "latent_loss": "cosine"},
        },
    }
    tubes = [{"kind": "tube", "ratio": 0.75}, {"kind": "causal", "context_frames": 2}]
    model = BASE["model"] | {"mask_token": "per_mask"}
    draft, plan = drafted(arms=arms, masks=tubes, model=model)
    audit_bases(draft)
    spec = next(run.spec for run in plan.runs if run.role == "student" and run.spec.arm == "salt")
    assert spec.model.mask_token == "per_mask"
    clip = step_cost(spec).parts["teacher_forward"].forward // spec.optim.batch_clips
    tiny = SIZES["tiny"]  # of its four blocks one runs
    assert clip == encode_flops(tiny, spec.model, spec.clip) - 3 * block_flops(tiny, 64)
    plain = replace(spec, objective=replace(spec.objective, pixel_weight=0.0))
    more = step_cost(spec).parts["predictor"].forward - step_cost(plain).parts["predictor"].forward
    targets = sum(mask.target_tokens for mask in spec.masks)
    assert more == 16 * 2 * targets * spec.model.predictor.width * patch_values(spec.model, spec.clip)


def test_what_an_arm_cannot_do_is_a_verdict_with_its_cell() -> None:
    text = refusal(objective={"pixel_weight": 0.1}, arms={"pixel": {}, "vjepa": {}})
    assert "2 of 4 cells" in text
    assert "arm pixel, student nano" in text
    assert "set it in the arms salt and vjepa only" in text
    layer = {"salt": SALT_ONLY["salt"] | {"objective": {"teacher_layer": 3}}}
    assert "teacher_layer 3: the teacher has 2 blocks" in refusal(arms=layer)
    crop = BASE["clip"] | {"crop": "random_resized", "crop_scale_min": 0.9, "crop_scale_max": 0.5}
    assert "crop_scale_min 0.9 is above" in refusal(clip=crop)


# --- mixtures -------------------------------------------------------------------------------------


def mixture(*weights: float, clips: int = 8192) -> dict[str, Any]:
    parts = [
        {"list": {"name": f"list{n}", "clips": clips // (n + 1)}, "weight": w} for n, w in enumerate(weights)
    ]
    return BASE["data"] | {"train": parts}


def test_a_mixture_is_a_run_of_its_own_and_counts_by_its_most_repeated_list() -> None:
    _, plan = drafted(data=mixture(0.5, 0.5), arms={"pixel": {}})
    data = plan.runs[0].spec.data
    assert [(part.name, part.clips, part.weight) for part in data.parts] == [
        ("list0", 8192, 0.5),
        ("list1", 4096, 0.5),
    ]
    assert (data.name, data.clips, data.fingerprint) == ("train", 12288, DECLARED)
    _, other = drafted(data=mixture(0.5, 0.25), arms={"pixel": {}})
    assert not {run.run_id for run in plan.runs} & {run.run_id for run in other.runs}
    with pytest.raises(UserError, match="only declared: 'list0', 'list1'"):
        refuse_runs(plan)
    # Half of what is drawn comes from a third of the clips: 2 epochs of it are 16384 clips.
    steps = max(run.spec.steps for run in plan.runs)
    limit = steps * 16 / 8192
    drafted(data=mixture(0.5, 0.5), arms={"pixel": {}}, maximum_epochs=limit)
    text = refusal(data=mixture(0.5, 0.5), arms={"pixel": {}}, maximum_epochs=limit * 0.999)
    assert "1 of 2 cells" in text
    assert "its most repeated list once every 8192" in text
    # Two clips of each file are twice as many.
    two = BASE["clip"] | {"clips_per_file": 2}
    draft, _ = drafted(data=mixture(0.5, 0.5), arms={"pixel": {}}, maximum_epochs=limit * 0.51, clip=two)
    assert rows_of(draft)[0].epochs == pytest.approx(rows_of(draft)[0].steps * 16 / (2 * 12288))


def test_mixtures_that_cannot_be_drawn_or_told_apart_are_refused() -> None:
    assert "at least 1/1024" in refusal(data=mixture(1.0, 1e-4))
    same = BASE["data"] | {"train": [{"list": {"name": "a", "clips": 9}, "weight": 1}] * 2}
    assert "two parts are called 'a'" in refusal(data=same)
    assert "train" in refusal(data=BASE["data"] | {"train": [{"list": "a.csv", "weight": 1}]})
    probe = {"name": "main", "labels": ["x"], "kinds": ["linear"]}
    probe |= {f"{split}_clips": 8 for split in ("train", "selection", "report")}
    assert "probes.main.data.train: the study trains on a mixture" in refusal(
        data=mixture(1.0, 1.0), probes=[probe]
    )


# --- imported weights -----------------------------------------------------------------------------


def imported(store: Path, size: str, clip: ClipSpec) -> RunDir:
    """A finished run as `salt-train import` leaves it."""
    model = study().model(size)
    encoder = build_encoder(model.encoder, model, clip, 3)
    weights = encoder.state_dict()
    digest = weights_sha256(weights)
    spec = RunSpec(
        arm="external",
        seed=0,
        steps=0,
        model=model,
        clip=clip,
        data=DataSpec(name="unknown", fingerprint=DECLARED, clips=1),
        masks=(),
        external=ExternalRef(format="hf", model="vjepa2", weights_sha256=digest),
    )
    run = RunDir(store, spec_id(spec))
    write_atomically(run.spec, pretty_json(spec))
    write_weights(run, spec, weights, "student", Origin())
    result = RunResult(
        run_id=run.run_id,
        arm="external",
        steps=0,
        cost=Cost(),
        final_loss=None,
        artefact_sha256=digest,
        teacher_sha256=None,
        attempts=1,
        train_wall_s=None,
        probe_wall_s=0.0,
        clips_seen=0,
        unique_clips=0,
        epochs=0.0,
    )
    write_atomically(run.result, pretty_json(result))
    return run


@pytest.fixture
def weights(tmp_path: Path) -> RunDir:
    torch.manual_seed(0)
    return imported(tmp_path / "store", "tiny", study().file.clip)


def with_external(run: RunDir, **changes: Any) -> dict[str, Any]:
    salt = {"teachers": ["nano", "published"], "teacher_share": [0.3]}
    arms = {"pixel": {}, "salt": salt}
    return {"external": {"published": str(run.path)}, "arms": arms, "seeds": [0, 1]} | changes


@pytest.mark.parametrize("convention", ["matmul", "paper"])
@pytest.mark.parametrize("charge", ["full", "shared", "none"])
def test_weights_from_elsewhere_teach_for_nothing(weights: RunDir, charge: str, convention: str) -> None:
    ask = with_external(weights, charge=charge, convention=convention, references={"external": ["published"]})
    draft, plan = drafted(**ask)
    (run,) = (run for run in plan.runs if run.spec.arm == "external")
    assert (run.run_id, run.role, run.cost.total_flops) == (weights.run_id, "teacher", 0)
    cells = [cell for cell in plan.cells if cell.teacher == "published"]
    assert len(cells) == 2 * 2  # students x seeds, whatever lengths other teachers have
    specs = {run.run_id: run.spec for run in plan.runs}
    for cell in cells:
        assert (cell.teacher_share, cell.teacher_steps) == (None, 0)
        assert cell.charged_flops == cell.cost.total_flops
        assert abs(cell.cost.total_flops / 200e9 - 1) < 0.01  # the whole budget is the student's
        reference = specs[cell.run_id].teacher
        assert reference == TeacherRef(run_id=weights.run_id, step=0, encoder=SIZES["tiny"])
    (beside,) = (cell for cell in plan.cells if cell.arm == "external")
    assert (beside.student, beside.run_id) == ("published", weights.run_id)
    rows = [row for row in rows_of(draft) if row.teacher == "published"]
    assert {(row.teacher_steps, row.teacher_flops, row.teacher_share) for row in rows} == {
        ("external", None, None)
    }
    assert "Not charged, trained elsewhere: published." in "\n".join(map(str, plan_tables(draft)))
    assert any("published cost nothing here" in text for text in warnings_of(draft))
    assert b"published-external" in b"".join(costs_csv(draft))
    audit_bases(draft)


def test_a_chain_may_begin_elsewhere(weights: RunDir) -> None:
    chains = {"salt": {"chains": [[{"teacher": "published"}, {"teacher": "nano", "share": 0.2}]]}}
    _, plan = drafted(**with_external(weights, arms=chains, seeds=[0]))
    for cell in plan.cells:
        assert cell.stages == (weights.run_id,)
        assert cell.teacher_cost is not None
        assert cell.teacher_cost.total_flops == pytest.approx(0.2 * 200e9, rel=0.01)
    wsd = with_external(weights, schedule="wsd", arms={"salt": {"teachers": ["published"]}}, seeds=[0])
    _, plan = drafted(**wsd)
    assert {run.role for run in plan.runs} == {"teacher", "trunk", "student"}


def test_weights_from_elsewhere_are_held_to_the_study(weights: RunDir, tmp_path: Path) -> None:
    text = refusal(**with_external(weights, clip=BASE["clip"] | {"mean": 0.5}))
    assert "imported with another clip than the study's (mean 0.449 instead of 0.5)" in text
    assert "salt-train import FOLDER --clip" in text
    given = ClipSpec(**json.loads(text[text.index("holds ") + 6 : text.index("}", text.index("holds ")) + 1]))
    assert given == study(clip=BASE["clip"] | {"mean": 0.5}).file.clip
    assert "is not there" in refusal(external={"published": str(tmp_path / "none")})
    assert "external.nano: this is the name of a size" in refusal(external={"nano": str(weights.path)})
    assert "(none: define external)" in refusal(references={"external": ["published"]})
    students = {"pixel": {"students": ["published"]}}
    assert "unknown name 'published'" in refusal(**with_external(weights, arms=students))
    second = {"salt": {"chains": [[{"teacher": "nano", "share": 0.1}, {"teacher": "published"}]]}}
    assert "it can only come first" in refusal(**with_external(weights, arms=second))
    lengths = {"salt": {"teachers": ["published"], "teacher_share": [0.3]}}
    assert "that are to be trained" in refusal(**with_external(weights, arms=lengths))
    _, plan = drafted(**with_external(weights))
    require_imported(tmp_path / "store", plan)
    with pytest.raises(UserError, match=rf"{weights.run_id} \(vjepa2\).*salt-train import FOLDER"):
        require_imported(tmp_path / "other", plan)


# --- probes and execution -------------------------------------------------------------------------


def suite(**changes: Any) -> dict[str, Any]:
    clips = {f"{split}_clips": 8 for split in ("train", "selection", "report")}
    return {"name": "main", "labels": ["x"], "kinds": ["attentive"], **clips, **changes}


def test_suites_are_held_to_every_encoder_they_are_for() -> None:
    good = suite(
        settings={
            "segments": 2, "views": 3, "layers": [1, 2], "label_free": ["rankme"], "attentive_heads": 2,
            "attentive_weight_decays": [0.01, 0.1],
        }
    )  # fmt: skip
    _, plan = drafted(probes=[good], arms={"pixel": {}}, students=["nano"])
    (probe,) = plan.probes.values()
    assert (probe.segments, probe.views, probe.layers, probe.attentive_heads) == (2, 3, (1, 2), 2)
    assert {clip.clips_per_file for _, clip in wanted_clips(plan)} == {1, 2}  # to train on, and to probe
    deep = suite(settings={"layers": [3]})
    text = refusal(probes=[deep], arms={"pixel": {}}, students=["nano", "micro"])
    assert "probes.main: size nano: layers [3]: the encoder has 2 blocks" in text
    assert "size micro" not in text
    assert "attentive_heads 5" in refusal(probes=[suite(settings={"attentive_heads": 5})])
    assert "views 20" in refusal(probes=[suite(settings={"views": 20})])
    control = suite(frames=["ordered", "shuffled"], settings={"segments": 2})
    assert "segments 2 with frames shuffled" in refusal(probes=[control])


def test_execution_reaches_the_plan_and_the_forecast() -> None:
    asked = {"micro_batch_clips": 4, "recompute": True, "sharding": "full", "wandb_project": "p"}
    draft, plan = drafted(execution=asked, site="default", arms={"pixel": {}})
    assert (plan.execution.micro_batch_clips, plan.execution.sharding) == (4, "full")
    assert plan.execution.peak_flops_per_s == 19.5e12  # of the site, in the runs' float32
    assert any("pixel train in float32, at a peak 16 times lower" in text for text in warnings_of(draft))
    _, half = drafted(optim={"batch_clips": 16, "precision": "bfloat16"}, site="default", arms={"pixel": {}})
    assert half.execution.peak_flops_per_s == 312e12
    _, own = drafted(execution={"peak_flops_per_s": 1e12}, site="default", arms={"pixel": {}})
    assert own.execution.peak_flops_per_s == 1e12
    for base in draft.grid.bases.all:
        assert base.fit is not None
        assert (base.fit.micro_batch, base.fit.recompute) == (4, True)
        assert propose(base.spec, DEFAULT_SITE).micro_batch == 16
        many = propose(replace(base.spec, steps=10**12), DEFAULT_SITE, plan.execution)
        assert (many.gpus, many.sharded) == (16, True)  # as many as the batch divides into, and then sharded
    assert "execution.lists: the plan fills it in" in refusal(execution={"lists": {"a": "b"}})
    assert "execution.sharding" in refusal(execution={"sharding": "some"})


# --- the whole way --------------------------------------------------------------------------------


def lay_videos(folder: Path, name: str, count: int) -> None:
    (folder / name).mkdir(parents=True)
    lines = ["path,speed"]
    for number in range(count):
        write_video(folder / name / f"{number}.mp4", 8 + number, width=32, height=32)
        lines.append(f"{name}/{number}.mp4,{number % 2}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def test_a_study_of_all_this_trains_to_its_end(tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 6), ("labelled", 8), ("selection", 6), ("report", 6)):
        lay_videos(tmp_path, name, count)
    store = tmp_path / "store"
    clip = BASE["clip"] | {"channels": 1}
    weights = imported(store, "tiny", study(clip=clip).file.clip)
    probe = suite(
        labels=["speed"], kinds=["linear"], data={"train": "labelled.csv"}, train_clips=8,
        selection_clips=6, report_clips=6, settings={"segments": 2, "layers": [1, 2]},
    )  # fmt: skip
    data: dict[str, Any] = {
        "selection": "selection.csv",
        "report": "report.csv",
        "train": [{"list": "a.csv", "weight": 0.75}, {"list": "b.csv", "weight": 0.25}],
    }
    file = BASE | {
        "data": data,
        "clip": clip,
        "targets": "cached(views=2)",
        "budgets_flops": [6e9],
        "students": ["nano"],
        "masks": [{"kind": "tube", "ratio": 0.5}, {"kind": "causal", "context_frames": 2}],
        "external": {"published": str(weights.path)},
        "arms": {
            "salt": {
                "teachers": ["published"],
                "objective": {"pixel_weight": 0.1, "teacher_layer": 3, "latent_loss": "cosine"},
            }
        },
        "optim": {"batch_clips": 4},
        "references": {"random": False, "raw": False, "external": ["published"]},
        "probes": [probe],
        "execution": {"micro_batch_clips": 2, "decode_workers": 0},
    }
    path = tmp_path / "kit.yaml"
    path.write_text(yaml.safe_dump(file))
    sweep("plan", str(path), "--store", str(store))
    sweep("submit", "kit", "--on", "inline", "--store", str(store))
    table = gather(store, "kit")
    assert set(table["state"]) == {"done"}
    cells = table[table["role"] == "cell"]
    assert set(cells["arm"]) == {"salt", "external"}
    assert cells["accuracy"].notna().all()
    (student,) = cells[cells["arm"] == "salt"].to_dict("records")
    assert student["teacher_flops"] == 0
    assert student["total_flops"] == student["planned_flops"]
    assert abs(student["total_flops"] / 6e9 - 1) < 0.01
    result = RunDir(store, str(student["run_id"])).read_result()
    assert result is not None
    drawn = {item.name: item.clips_seen for item in result.lists}
    # Exact after whole blocks of 1024; within one, 4 deviations of a draw without replacement.
    assert drawn["a"] == pytest.approx(0.75 * result.clips_seen, abs=4 * 6.3)
    assert drawn["a"] + drawn["b"] == result.clips_seen
    sweep("submit", "kit", "--on", "inline", "--store", str(store))  # nothing is left to do
