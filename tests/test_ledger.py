"""Printed FLOPs of the SALT paper (arXiv 2509.24317), the command `ledger`, the numbers of docs/flops.md."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

import salt_cli
from salt.flops import (
    block_lines,
    cache_cost,
    encode_flops,
    predictor_lines,
    run_cost,
    step_cost,
    uncounted_flops,
)
from salt.masks import published_counts
from salt.sizes import SIZES, encoder_parameters, predictor_parameters
from salt.specs import (
    Arm,
    ClipSpec,
    Convention,
    DataSpec,
    MaskSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    TeacherRef,
)
from sweeps.ledger import MASKS, PREDICTOR, PUBLISHED_CLIPS

DOCS = Path(__file__).parent.parent / "docs" / "flops.md"
K = 1000
#: Visible and predicted tokens of both masks at 224 px, as docs/flops.md says.
TOKENS = ((366, 749), (100, 1102))


def published(
    arm: Arm, student: str, teacher: str | None = None, *, ksteps: int = 1, crop: int = 224, **changes: Any
) -> RunSpec:
    """A run of the paper's setting; its own convention does not look at the masks' tokens."""
    ref = None if teacher is None else TeacherRef(run_id="none", step=1, encoder=SIZES[teacher])
    return RunSpec(
        arm=arm,
        seed=0,
        steps=ksteps * K,
        model=ModelSpec(encoder=SIZES[student], predictor=PREDICTOR),
        clip=ClipSpec(crop_px=crop),
        data=DataSpec(name="V-3.6M", fingerprint="none", clips=PUBLISHED_CLIPS),
        masks=tuple(MaskSpec(visible_tokens=v, target_tokens=t) for v, t in TOKENS),
        optim=OptimSpec(batch_clips=3072),
        teacher=ref,
        **changes,
    )


def flops_e21(spec: RunSpec, convention: Convention = "paper") -> float:
    return run_cost(spec, convention).total_flops / 1e21


def pixel_e21(ksteps: int, convention: Convention = "paper") -> float:
    return flops_e21(published("pixel", "vit_l", ksteps=ksteps), convention)


def salt_e21(student: str, ksteps: int, convention: Convention = "paper") -> float:
    return flops_e21(published("salt", student, "vit_l", ksteps=ksteps), convention)


def vjepa_e21(student: str, ksteps: int, crop: int, convention: Convention = "paper") -> float:
    return flops_e21(published("vjepa", student, ksteps=ksteps, crop=crop), convention)


# --- the paper's tables ---------------------------------------------------------------------------


def test_main_table() -> None:
    # Table 1, column of FLOPs in 1e21; SALT is 80k steps of the teacher and 160k of the student.
    at_256 = [vjepa_e21(size, 240, 256) for size in ("vit_l", "vit_h", "vit_g")]
    assert [f"{flops:.1f}" for flops in at_256] == ["1.9", "3.5", "5.3"]
    at_224 = [vjepa_e21(size, 240, 224) for size in ("vit_l", "vit_h")]
    assert [f"{flops:.1f}" for flops in at_224] == ["1.4", "2.6"]
    ours = [pixel_e21(80) + salt_e21(size, 160) for size in ("vit_l", "vit_h", "vit_g", "vit_gg")]
    # g is printed as 1.9 there and as 1.8 in the table of costs: the formula agrees with the latter.
    assert [f"{flops:.1f}" for flops in ours] == ["1.2", "1.5", "1.8", "2.6"]
    assert ours == pytest.approx([1.1926, 1.4969, 1.8483, 2.6168], abs=5e-5)


def tokens_e9(spec: RunSpec) -> list[float]:
    """D_enc, D_pred and D_teacher of a run in 1e9 tokens, back from 2 N D of the forward passes."""
    parts = run_cost(spec, "paper").parts
    trained, target = (303_000_000, 303_000_000) if spec.teacher or spec.arm == "vjepa" else (1, 1)
    return [
        parts["encoder"].forward / 2 / trained / 1e9,
        parts["predictor"].forward / 2 / 22_000_000 / 1e9,
        parts["teacher_forward"].forward / 2 / target / 1e9,
    ]


def test_token_counts_of_the_cost_table() -> None:
    # The teacher's tokens of V-JEPA 2-L are printed as 1510.2, of H and g as 1509.9; the formula has 1509.9.
    assert tokens_e9(published("vjepa", "vit_l", ksteps=240, crop=256)) == pytest.approx(
        [302.0, 3019.9, 1509.9], abs=0.06
    )
    assert tokens_e9(published("salt", "vit_l", "vit_l", ksteps=160)) == pytest.approx(
        [154.1, 1541.4, 770.7], abs=0.06
    )
    assert f"{pixel_e21(80):.2f}" == "0.24"


#: Table of the split, ViT-L, 1e21 FLOPs: ksteps of each stage, then what is printed for the teacher (its
#: chain), the last stage and their sum. A trailing star: the formula rounds to another last digit.
ALLOCATION = [
    ((80, 80, 80), "0.717", "0.476*", "1.193"),
    ((40, 80, 120), "0.597*", "0.714*", "1.311*"),
    ((80, 160), "0.241*", "0.951", "1.192*"),
    ((40, 200), "0.121", "1.190*", "1.311*"),
    ((20, 220), "0.061*", "1.309*", "1.370*"),
    ((80, 80), "0.241*", "0.476*", "0.717"),
    ((40, 120), "0.121", "0.714*", "0.835*"),
    ((20, 140), "0.061*", "0.833*", "0.894*"),
    ((80, 40), "0.241*", "0.238", "0.479*"),
    ((40, 80), "0.121", "0.476*", "0.597*"),
    ((20, 100), "0.061*", "0.595*", "0.656*"),
]


@pytest.mark.parametrize(("ksteps", "teacher", "student", "total"), ALLOCATION, ids=str)
def test_allocation_table(ksteps: tuple[int, ...], teacher: str, student: str, total: str) -> None:
    first, *between, last = ksteps
    chain = pixel_e21(first) + sum(salt_e21("vit_l", steps) for steps in between)
    end = salt_e21("vit_l", last)
    for flops, printed in ((chain, teacher), (end, student), (chain + end, total)):
        text = printed.rstrip("*")
        assert (f"{flops:.3f}" != text) == printed.endswith("*"), flops
        # Only the sum of 20k + 220k is further off than 0.002: 1.3677 and 1.370.
        assert abs(flops - float(text)) < (0.0023 if text == "1.370" else 0.002)


def test_saving_over_v_jepa_2_at_its_own_resolution() -> None:
    ours = pixel_e21(80) + salt_e21("vit_l", 160)
    assert 1 - ours / vjepa_e21("vit_l", 240, 224) == pytest.approx(0.1637, abs=5e-5)
    assert 1 - ours / vjepa_e21("vit_l", 240, 256) == pytest.approx(0.3597, abs=5e-5)
    # By the paper's printed figures it is 37 %. Its 1.900 is 2 % above the formula at 256 px, 33 % at 224 px.
    assert f"{1 - 1.192 / 1.900:.3f}" == "0.373"
    for ksteps, printed, at_224 in ((240, 1.900, 1.426), (160, 1.260, 0.951), (120, 0.951, 0.713)):
        assert printed / vjepa_e21("vit_l", ksteps, 256) == pytest.approx(1.018, abs=0.0035)
        assert f"{vjepa_e21('vit_l', ksteps, 224):.3f}" == f"{at_224:.3f}"
    assert f"{pixel_e21(80) + salt_e21('vit_l', 80):.3f}" == "0.717"  # beside 0.713: 77.4 and 74.4
    for convention in ("matmul", "paper"):
        student = step_cost(published("salt", "vit_l", "vit_l"), convention)
        assert student == step_cost(published("vjepa", "vit_l"), convention)


@pytest.mark.parametrize(
    ("student", "teacher", "printed"),
    [
        ("vit_b", "vit_b", 21.886),
        ("vit_l", "vit_l", 22.083),
        ("vit_h", "vit_l", 22.181),
        ("vit_g", "vit_l", 22.230),
        ("vit_gg", "vit_l", 22.329),
    ],
)
def test_predictors_with_two_mask_tokens(student: str, teacher: str, printed: float) -> None:
    # Printed in table 4: 21.88M, 22.08M, 22.18M, 22.23M, 22.32M, cut; here to the thousand.
    count = predictor_parameters(PREDICTOR, SIZES[student].width, SIZES[teacher].width, mask_tokens=2)
    assert round(count / 1e6, 3) == printed
    assert (
        count - predictor_parameters(PREDICTOR, SIZES[student].width, SIZES[teacher].width) == PREDICTOR.width
    )


# --- the command ----------------------------------------------------------------------------------


def ledger(*line: str) -> tuple[int, str]:
    """Exit code and stdout of `salt-sweep ledger` on a terminal of 120 columns."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as text:
        patch.setenv("COLUMNS", "120")
        code = salt_cli.run("salt-sweep", ["ledger", *line])
    return code, text.getvalue()


def data(*line: str) -> list[dict[str, Any]]:
    code, text = ledger(*line, "--json")
    assert code == 0
    found: list[dict[str, Any]] = json.loads(text)["ledgers"]
    return found


def check_sums(cost: dict[str, Any]) -> None:
    """Parts add up to the totals, lines to their part, and every number is a whole one."""
    parts = cost["parts"].values()
    for way in ("forward", "backward"):
        assert cost[way] == sum(part[way] for part in parts)
        for part in parts:
            assert type(part[way]) is int
            if "lines" in part:
                assert part[way] == sum(line[way] for line in part["lines"].values())
    assert cost["total"] == cost["forward"] + cost["backward"]


def test_rows_add_up_to_the_totals_of_every_scope() -> None:
    shared = ("--charge", "shared", "--students-per-teacher", "3", "--teacher-steps", "80000")
    arms = ("--arm", "pixel", "--arm", "salt", "--arm", "vjepa", "--teacher", "vit_l", "--student", "vit_g")
    rows = data(*arms, "--steps", "160000", "--targets", "cached(views=2)", *shared)
    assert [row["arm"] for row in rows] == ["pixel", "salt", "vjepa"]
    for row in rows:
        for convention in ("matmul", "paper"):
            for scope in ("per_clip", "per_step", "per_run"):
                check_sums(row[scope][convention])
        clip, step = row["per_clip"]["matmul"], row["per_step"]["matmul"]
        assert step["total"] == 3072 * clip["total"]
        assert all("lines" in part for part in clip["parts"].values())
    pixel, salt, vjepa = rows
    assert (pixel["charge"], pixel["teacher"], pixel["targets"]) == ("none", None, "pixels")
    assert (vjepa["cached_targets"], vjepa["targets"]) == (None, "online")
    assert pixel["per_run"]["matmul"]["total"] == 160_000 * pixel["per_step"]["matmul"]["total"]
    run = salt["per_run"]["matmul"]
    cache = 2 * PUBLISHED_CLIPS * encode_flops(SIZES["vit_l"], published("pixel", "vit_l").model, ClipSpec())
    training = run_cost(published("pixel", "vit_l", ksteps=80)).total_flops
    assert salt["cached_targets"]["matmul"]["total"] == cache
    assert run["parts"]["teacher_cache"] == {
        "forward": cache // 3,
        "backward": 0,
    }  # shared, as the teacher is
    assert salt["teacher_training"]["matmul"]["total"] == training
    assert 0 <= training / 3 - sum(run["parts"]["teacher_training"].values()) < 2
    assert "teacher_forward" not in run["parts"]
    steps = 160_000 * salt["per_step"]["matmul"]["total"]
    assert run["total"] == steps + cache // 3 + sum(run["parts"]["teacher_training"].values())


def test_who_pays_for_the_teacher() -> None:
    line = ("--teacher", "vit_l", "--student", "vit_l", "--steps", "160000", "--teacher-steps", "80000")
    full, none = data(*line)[0], data(*line, "--charge", "none")[0]
    assert (full["charge"], none["charge"]) == ("full", "none")
    for convention in ("matmul", "paper"):
        training = full["teacher_training"][convention]["total"]
        assert training == none["teacher_training"][convention]["total"] > 0
        assert full["per_run"][convention]["total"] == none["per_run"][convention]["total"] + training
    assert full["per_run"]["paper"]["total"] / 1e21 == pytest.approx(1.1926, abs=5e-5)  # table 1: 1.2
    assert data("--teacher", "vit_l")[0]["per_run"] == {"matmul": None, "paper": None}  # no length, no total


def test_setting_tokens_and_parameters() -> None:
    rows = data("--student", "vit_g")
    assert [row["arm"] for row in rows] == ["pixel", "vjepa"]
    assert rows[0]["parameters"] == {
        "encoder": 1_012_173_952,
        "predictor": 22_427_136,
        "target_encoder": None,
    }
    assert rows[0]["parameters"]["predictor"] == predictor_parameters(PREDICTOR, 1408, 1536)
    assert rows[0]["grid"] == [8, 14, 14]
    drawn = [(mask["visible_tokens"], mask["target_tokens"]) for mask in rows[0]["masks"]]
    assert drawn == [published_counts(blocks, scale, 0.75, 1.5, (8, 14, 14)) for blocks, scale in MASKS]
    given = data("--arm", "pixel", "--visible", "76", "--target", "708", "--frames", "8", "--batch", "7")[0]
    assert (given["tokens"], given["batch_clips"], len(given["masks"])) == (784, 7, 1)
    assert given["per_step"]["matmul"]["total"] == 7 * given["per_clip"]["matmul"]["total"]
    encoder = given["per_clip"]["matmul"]["parts"]["encoder"]["lines"]
    assert encoder["attention scores"]["forward"] == 24 * 2 * 76 * 76 * 1024  # ViT-L: 24 blocks of width 1024
    assert encoder["attention scores"]["backward"] == 2 * encoder["attention scores"]["forward"]


def test_tables_fit_and_show_the_json_numbers() -> None:
    line = ("--teacher", "vit_gg", "--student", "vit_gg", "--crop", "256", "--steps", "160000")
    row = data(*line, "--teacher-steps", "80000", "--targets", "cached(views=64)")[0]
    code, text = ledger(*line, "--teacher-steps", "80000", "--targets", "cached(views=64)")
    assert code == 0
    assert max(len(printed) for printed in text.splitlines()) <= 120
    assert "…" not in text
    for part in row["per_clip"]["matmul"]["parts"].values():
        assert f"{part['forward'] / 1e9:,.3f}" in text
    assert f"{row['per_run']['matmul']['total']:.4e}" in text
    assert f"{row['per_run']['paper']['total']:.4e}" in text
    for number in row["parameters"].values():
        assert f"{number:,}" in text
    assert "targets: cached(views=64); the teacher's training is charged full" in text


def test_audit_and_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("--arm", "pixel", "--student", "nano", "--visible", "10", "--target", "20", "--audit")
    code, text = ledger(*line)
    assert code == 0
    assert "worst 0.0000 %: within" in text
    monkeypatch.setattr("salt.flops.block_lines", lambda vit, count: {"mlp": 4 * count * vit.width})
    code, text = ledger(*line, "--json")
    assert code == 1
    rows = json.loads(text)["ledgers"][0]["audit"]["rows"]
    assert {row["part"] for row in rows if row["closed_forward"] != row["counted_forward"]} == {
        "encoder",
        "decoder",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--arm sult", "--arm: unknown name 'sult'; did you mean 'salt'?"),
        ("--student vit_1", "--student: unknown name 'vit_1'; did you mean 'vit_"),
        ("--teacher vitl", "--teacher: unknown name 'vitl'; did you mean 'vit_l'?"),
        ("--arm salt", "add --teacher SIZE"),
        ("--arm pixel --teacher vit_l", "add --arm salt"),
        ("--arm vjepa --targets cached(views=2)", "only the salt arm has a frozen teacher"),
        ("--teacher vit_l --targets cached", "give online or 'cached(views=2)'"),
        ("--teacher vit_l --teacher-steps 9", "add its length, --steps N"),
        ("--teacher vit_l --charge full", "--teacher-steps N"),
        ("--teacher vit_l --steps 9 --teacher-steps 9 --charge shared", "--students-per-teacher K"),
        ("--crop 100", "use 96"),
        ("--frames 3", "clip.frames 3 is not a multiple"),
        ("--batch 0", "--batch 0: give a whole number of at least 1"),
        ("--visible 3", "--visible is given 1 and --target 0 times"),
        ("--visible 1500 --target 300", "do not fit the 8x14x14 grid of 1568"),
    ],
)
def test_mistakes_name_the_way_out(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger(*line.split()) == (2, "")
    assert message in capsys.readouterr().err


def test_every_arm_with_every_student() -> None:
    line = "--teacher vit_l --arm pixel --arm salt --student vit_b --student vit_l --student vit_b"
    assert [(row["arm"], row["student"], row["teacher"]) for row in data(*line.split())] == [
        ("pixel", "vit_b", None),
        ("pixel", "vit_l", None),
        ("salt", "vit_b", "vit_l"),
        ("salt", "vit_l", "vit_l"),
    ]


# --- the page -------------------------------------------------------------------------------------


def page() -> str:
    return " ".join(DOCS.read_text().split())


def giga(spec: RunSpec, convention: Convention, *parts: str) -> str:
    """GFLOP of one clip in one step, of some parts or of all."""
    cost = step_cost(spec, convention)
    chosen = [cost.parts[name] for name in parts or cost.parts]
    return f"{sum(part.forward + part.backward for part in chosen) / 3072e9:.1f}"


def test_page_tables_of_one_clip_and_of_runs() -> None:
    text = page()
    assert tuple(published_counts(b, s, 0.75, 1.5, (8, 14, 14)) for b, s in MASKS) == TOKENS
    assert "366 visible and 749 predicted tokens and a long-range one of 100 and 1102" in text
    pixel, salt = published("pixel", "vit_l"), published("salt", "vit_l", "vit_l")
    rows = {
        "| encoder |": [giga(salt, "matmul", "encoder")] * 3 + [giga(salt, "paper", "encoder")] * 2,
        "| predictor or decoder |": [
            giga(pixel, "matmul", "decoder"),
            *[giga(salt, "matmul", "predictor")] * 2,
            *[giga(salt, "paper", "predictor")] * 2,
        ],
    }
    for head, cells in rows.items():
        assert f"{head} {' | '.join(cells)} |" in text
    teacher = [giga(salt, name, "teacher_forward") for name in ("matmul", "paper")]
    assert f"only | - | {teacher[0]} | {teacher[0]} | - | {teacher[1]} |" in text
    both = [(giga(pixel, name), giga(salt, name)) for name in ("matmul", "paper")]
    cells = [both[0][0], both[0][1], both[0][1], both[1][0], both[1][1]]
    assert " | ".join(f"**{cell}**" for cell in cells) in text
    for size, name in (("vit_l", "L"), ("vit_h", "H"), ("vit_g", "g"), ("vit_gg", "G")):
        assert f"| SALT {name} | {pixel_e21(80) + salt_e21(size, 160):.3f} |" in text
        if size != "vit_gg":
            assert f"V-JEPA 2 {name}, 256 px | {vjepa_e21(size, 240, 256):.3f} |" in text
        if size in ("vit_l", "vit_h"):
            assert f"V-JEPA 2 {name}, 224 px | {vjepa_e21(size, 240, 224):.3f} |" in text


def savings(convention: Convention) -> list[str]:
    """SALT (80k + 160k) against V-JEPA (240k) of the same size and resolution, L to G."""
    teacher = pixel_e21(80, convention)
    return [
        f"{100 * (1 - (teacher + salt_e21(s, 160, convention)) / vjepa_e21(s, 240, 224, convention)):.1f} %"
        for s in ("vit_l", "vit_h", "vit_g", "vit_gg")
    ]


def test_page_numbers_in_the_text() -> None:
    text = page()
    matmul, paper = savings("matmul"), savings("paper")
    assert f"**{paper[0]}** of V-JEPA 2-L's FLOPs at the same resolution" in text
    assert f"Under `matmul` it is {matmul[0]}" in text
    assert f"{matmul[1]} for H, {matmul[2]} for g, {matmul[3]} for G" in text
    assert "it seems to save 36.0 % by the formula, and 37.3 % by the printed 1.192 and 1.900" in text
    for crop, start in ((256, "formula gives "), (224, "it gives **")):
        a, b, c = (f"{vjepa_e21('vit_l', ksteps, crop):.3f}" for ksteps in (240, 160, 120))
        assert f"{start}{a}, {b} and {c}" in text
    vjepa = published("vjepa", "vit_l")
    step, outside = step_cost(vjepa).total_flops, uncounted_flops(vjepa)
    (a, b), (c, d) = outside.values(), [flops / step for flops in outside.values()]
    assert f"{a:.1e} and {b:.1e} FLOPs for ViT-L, {c:.1e} and {d:.1e}".replace("e+0", "e") in text
    cached = cache_cost(published("salt", "vit_l", "vit_l", cached_views=2)).total_flops
    run = run_cost(published("salt", "vit_l", "vit_l", ksteps=160))
    online = run.parts["teacher_forward"].forward
    assert f"{online:.2e} FLOPs online and {cached:.2e} for two".replace("e+", "e") in text
    assert f"{online / cached:.0f} times less" in text
    costs = [f"{pixel_e21(80, name) * 10:.2f}e20" for name in ("matmul", "paper")]
    assert f"costs {costs[0]} FLOPs under `matmul` and {costs[1]} under `paper`" in text
    ratios = [
        step_cost(spec, "paper").total_flops / step_cost(spec).total_flops
        for spec in (vjepa, published("pixel", "vit_l"))
    ]
    assert f"is {ratios[0]:.3f} of `matmul`'s, and {ratios[1]:.3f} for the pixel teacher's" in text


def attention_of(size: str) -> tuple[int, int]:
    """FLOPs of attention in one whole clip's forward pass, and of the whole pass with its embedding."""
    vit = SIZES[size]
    lines = block_lines(vit, 1568)
    attention = vit.depth * (lines["attention scores"] + lines["attention values"])
    return attention, encode_flops(vit, ModelSpec(encoder=vit, predictor=PREDICTOR), ClipSpec())


def test_page_attention_elementwise_work_and_parameters() -> None:
    text = page()
    attention, whole = attention_of("vit_l")
    shares = f"{attention / whole:.0%} of the pass, {attention / (whole - attention):.0%} on top"
    line = f"{attention / 1e9:.1f} of {whole / 1e9:.1f} GFLOP | {shares} of the rest"
    assert line.replace("%", " %") in text
    lines = predictor_lines(published("salt", "vit_l", "vit_l"), *TOKENS[0])
    other = predictor_lines(published("salt", "vit_l", "vit_l"), *TOKENS[1])
    narrow = sum(lines.values()) + sum(other.values())
    scores = sum(row[f"attention {name}"] for row in (lines, other) for name in ("scores", "values"))
    shares = f"{scores / narrow:.0%} of the pass, {scores / (narrow - scores):.0%} on top"
    line = f"{scores / 1e9:.1f} of {narrow / 1e9:.1f} GFLOP | {shares} of the rest"
    assert line.replace("%", " %") in text
    for width in (1024, 384):
        assert f"{100 * 1568 / (6 * width):.1f} %" in text  # n / (2 d + w) with w = 4 d
    # fvcore as delivered: multiply-adds, no fused attention. It adds layer norms, less than 0.001 here.
    found = [0.5 * (1 - a / b) for a, b in map(attention_of, ("vit_l", "vit_b", "vit_ti"))]
    assert f"{found[0]:.2f} of a ViT-L pass over 1568 tokens, {found[1]:.2f} of ViT-B's" in text
    assert f"and {found[2]:.2f} of ViT-Ti's" in text
    n, d, w, heads = 1568, 1024, 4096, 16
    small = 5 * heads * n * n + 8 * n * w + 2 * 8 * n * d + 6 * n * d + 2 * n * d
    share = f"{100 * small / sum(block_lines(SIZES['vit_l'], n).values()):.1f} %"
    assert f"{share} of a ViT-L block" in text
    for printed in ("B 21.886M", "L 22.083M", "H 22.181M", "g 22.230M", "G 22.329M"):
        assert printed in text  # counted in test_predictors_with_two_mask_tokens
    assert f"vit_l {encoder_parameters(SIZES['vit_l'], 1536):,}" in text
    visible, seen = 366 + 100, 366 + 749 + 100 + 1102
    assert f"{2 * 156.8:.1f} | {visible} | {visible / 313.6:.2f} times" in text
    assert f"3136 | {seen} | {seen / 3136:.2f} times" in text
