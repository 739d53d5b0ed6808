"""Runs to and from Hugging Face folders, and weights that fit in part only (they never load)."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from salt import checkpoint
from salt.artefact import load_artefact, load_teacher, weights_sha256, write_artefact, write_weights
from salt.batches import to_patches
from salt.errors import RunFailed, UserError
from salt.exchange import CONFIG, INDEX, WEIGHTS, export_run, import_clip, import_folder
from salt.exchange_cli import add_parsers, run_export, run_import
from salt.learner import build_encoder
from salt.predictor import Predictor
from salt.sizes import grid
from salt.specs import ClipSpec, ModelSpec, PositionSpec, RunSpec, TeacherRef, VitSpec, spec_id
from salt.store import RunDir, pretty_json, write_atomically
from tests.examples import run_spec

CLIP = ClipSpec(frames=4, crop_px=32, store_px=32)
VIT = VitSpec(width=48, depth=2, heads=3, mlp_width=144)
MODEL = ModelSpec(
    encoder=VIT,
    predictor=VitSpec(width=24, depth=2, heads=2, mlp_width=96),
    position=PositionSpec(rope_frequencies="tiled"),
)


def their_config(**changes: object) -> VJEPA2Config:
    fields = {
        "crop_size": 32, "frames_per_clip": 4, "hidden_size": 48, "num_attention_heads": 3,
        "num_hidden_layers": 2, "mlp_ratio": 3.0, "pred_hidden_size": 24, "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 2, "pred_num_mask_tokens": 2, "num_pooler_layers": 1,
    }  # fmt: skip
    return VJEPA2Config(**{**fields, **changes})


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as transformers saves it."""
    torch.manual_seed(0)
    folder = tmp_path / "published"
    VJEPA2Model(their_config()).save_pretrained(folder)
    return folder


def finished_run(store: Path, spec: RunSpec, *, keep: bool = True) -> RunDir:
    """A run as training leaves it, with weights of no training, and its last state if it keeps one."""
    torch.manual_seed(1)
    if keep:
        spec = replace(spec, keep_steps=(spec.steps,))
    run = RunDir(store, spec_id(spec))
    encoder = build_encoder(spec.model.encoder, spec.model, spec.clip, 5)
    predictor = Predictor(
        spec.model.predictor,
        grid(spec.model, spec.clip),
        spec.model.position,
        input_width=48,
        output_width=48,
    )
    write_atomically(run.spec, pretty_json(spec))
    write_artefact(run, spec, encoder, "student", checkpoint.Origin())
    if keep:
        modules = {"encoder": encoder, "predictor": predictor}
        state = {f"{m}.{key}": t for m, module in modules.items() for key, t in module.state_dict().items()}
        packed = checkpoint.pack(
            run, spec.steps, state, attempt=1, train_wall_s=1.0, origin=checkpoint.Origin()
        )
        checkpoint.keep(run, packed, pytest.fail)
    return run


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].numpy().tobytes() == b[n].numpy().tobytes() for n in a
    )


def test_import_then_export_gives_the_same_bytes(published: Path, tmp_path: Path) -> None:
    imported = import_folder(tmp_path / "store", published, import_clip(published, CLIP))
    assert (imported.already_there, imported.remarks) == (False, ())
    assert imported.run.run_id == spec_id(imported.spec)
    result = imported.run.read_result()
    assert result is not None
    assert (result.arm, result.steps, result.cost.total_flops) == ("external", 0, 0)
    out = tmp_path / "out"
    exported = export_run(imported.run, out)
    assert exported.note.predictor is None
    assert same_tensors(load_file(published / WEIGHTS), load_file(out / WEIGHTS))
    theirs, report = VJEPA2Model.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    original = VJEPA2Model.from_pretrained(published)
    frames = torch.randn(1, 4, 3, 32, 32)
    before, after = original.eval()(frames), theirs.eval()(frames)
    assert torch.equal(before.last_hidden_state, after.last_hidden_state)
    assert torch.equal(before.predictor_output.last_hidden_state, after.predictor_output.last_hidden_state)


def test_export_then_import_gives_the_same_encoder_and_predictor(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "store", replace(run_spec("vjepa"), model=MODEL, clip=CLIP))
    export_run(run, tmp_path / "out")
    export_run(run, tmp_path / "out")  # an earlier export of the same weights is no obstacle
    clip = import_clip(tmp_path / "out")
    assert (clip.frames, clip.crop_px, clip.channels) == (4, 32, 3)
    back = import_folder(tmp_path / "other", tmp_path / "out", CLIP)
    ours, theirs = load_artefact(run, run.read_spec()), load_artefact(back.run, back.spec)
    assert ours[2] == theirs[2] == back.spec.external.weights_sha256
    assert same_tensors(ours[0].state_dict(), theirs[0].state_dict())
    kept = checkpoint.load_kept(run, 10, "checkpoint")[1]
    newest = checkpoint.load_newest(back.run, pytest.fail)
    assert newest is not None
    assert same_tensors({n: t for n, t in kept.items() if n.startswith("predictor.")}, newest[1])
    other = finished_run(tmp_path / "store", replace(run_spec("vjepa", seed=1), model=MODEL, clip=CLIP))
    with pytest.raises(UserError, match=f"not an export of run {other.run_id}"):
        export_run(other, tmp_path / "out")


@pytest.mark.parametrize(
    ("arm", "teacher", "keep", "said"),
    [
        ("pixel", None, True, "arm pixel has no predictor of latents"),
        ("salt", "tiny", True, "it predicts 64 numbers"),
        ("vjepa", None, False, "kept no state of its last step, 10"),
    ],
)
def test_encoder_alone_where_there_is_no_such_predictor(
    arm: str, teacher: str | None, keep: bool, said: str, tmp_path: Path
) -> None:
    spec = replace(run_spec(arm, teacher=teacher), model=MODEL, clip=CLIP)
    run = finished_run(tmp_path / "store", spec, keep=keep)
    if teacher:  # its predictor is as wide as the teacher
        seal, state = checkpoint.load_kept(run, 10, "checkpoint")
        state["predictor.out.weight"] = torch.zeros(64, 24)
        run.kept_state(10).unlink()
        checkpoint.keep(
            run,
            checkpoint.pack(run, 10, state, attempt=1, train_wall_s=1.0, origin=seal.origin),
            pytest.fail,
        )
    note = export_run(run, tmp_path / "out").note
    assert note.predictor is not None
    assert said in note.predictor
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert not [name for name in written if name.startswith("predictor.")]
    back = import_folder(tmp_path / "other", tmp_path / "out", CLIP)
    assert "no predictor" in back.remarks[0]
    assert load_artefact(back.run, back.spec)[2] == note.weights_sha256


def test_options_that_cannot_be_expressed_are_all_named(tmp_path: Path) -> None:
    """The miniature's runs: one channel, plain frequencies with a base of their own, sin-cos vectors."""
    run = finished_run(tmp_path, run_spec("vjepa"), keep=False)
    with pytest.raises(UserError) as caught:
        export_run(run, tmp_path / "out")
    for words in ("sincos", "rope_frequencies is interleaved", "rope_base is 100", "clip.channels is 1"):
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_imported_run_teaches(published: Path, tmp_path: Path) -> None:
    """`load_teacher` takes it, and its targets are the tokens that transformers computes."""
    imported = import_folder(tmp_path, published, CLIP)
    reference = TeacherRef(run_id=imported.run.run_id, step=0, encoder=VIT)
    teacher, digest = load_teacher(imported.run, reference, MODEL, CLIP)
    assert digest == imported.spec.external.weights_sha256
    pixels = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    frames = ((pixels.float() / 255 - CLIP.mean) / CLIP.std).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        theirs = VJEPA2Model.from_pretrained(published).eval()(frames, skip_predictor=True)
        ours = teacher(to_patches(pixels, CLIP, MODEL))
    assert (ours - theirs.last_hidden_state).abs().max() <= 1e-5
    with pytest.raises(RunFailed, match="clip, patch or tubelet differ"):
        load_teacher(imported.run, reference, MODEL, replace(CLIP, crop_px=16))


def wrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a run saves them whose model and blocks were compiled, inside DistributedDataParallel."""
    inner = {n.replace(".layer.0.", ".layer.0._orig_mod."): t for n, t in tensors.items()}
    return {f"module._orig_mod.{n}": t for n, t in inner.items()}


def inside_classifier(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"vjepa2.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("rename", [wrapped, inside_classifier])
def test_wrappers_prefixes_change_nothing(
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], published: Path, tmp_path: Path
) -> None:
    plain = import_folder(tmp_path / "store", published, CLIP)
    weights = load_file(published / WEIGHTS)
    save_file(rename(weights), published / WEIGHTS)
    again = import_folder(tmp_path / "store", published, CLIP)
    assert again.already_there
    assert again.run.run_id == plain.run.run_id
    assert import_folder(tmp_path / "empty", published, CLIP).run.run_id == plain.run.run_id
    assert (
        import_folder(tmp_path / "store", published, replace(CLIP, flip=True)).run.run_id != plain.run.run_id
    )
    save_file({**rename(weights), **{n: t.clone() for n, t in weights.items()}}, published / WEIGHTS)
    with pytest.raises(UserError, match="twice|two weights"):
        import_folder(tmp_path / "store", published, CLIP)


def test_shards_bare_encoders_and_half_precision(published: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    whole = import_folder(store, published, CLIP)
    model = VJEPA2Model.from_pretrained(published)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert import_folder(store, tmp_path / "shards", CLIP).run.run_id == whole.run.run_id

    bare = {
        n.removeprefix("encoder."): t for n, t in load_file(published / WEIGHTS).items() if "encoder." in n
    }
    save_file(bare, published / WEIGHTS)
    assert import_folder(tmp_path / "empty", published, CLIP).run.run_id == whole.run.run_id

    save_file({name: tensor.bfloat16() for name, tensor in bare.items()}, published / WEIGHTS)
    half = import_folder(store, published, CLIP)
    assert "torch.bfloat16: kept, and exported, as float32" in half.remarks[0]
    encoder = load_artefact(half.run, half.spec)[0]
    assert torch.equal(encoder.trunk.norm.weight, bare["layernorm.weight"].bfloat16().float())
    save_file({name: tensor.double() for name, tensor in bare.items()}, published / WEIGHTS)
    with pytest.raises(UserError, match="float64 cannot be imported"):
        import_folder(store, published, CLIP)


def test_weights_of_another_depth_are_refused_with_their_first_names(tmp_path: Path) -> None:
    for weights, config in ((12, 24), (24, 12)):
        folder = tmp_path / f"{weights}"
        VJEPA2Model(their_config(num_hidden_layers=weights)).save_pretrained(folder)
        their_config(num_hidden_layers=config).save_pretrained(folder)
        kind = "missing" if config > weights else "unexpected"
        with pytest.raises(UserError, match=rf"192 {kind}: encoder\.layer\.12\.\S+, \S+, \S+, \.\.\."):
            import_folder(tmp_path / "store", folder, CLIP)
    VJEPA2Model(their_config()).save_pretrained(tmp_path / "wide")
    their_config(mlp_ratio=4.0).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match=r"6 misshapen: \S+fc1\.weight \[144, 48\] instead of \[192, 48\]"):
        import_folder(tmp_path / "store", tmp_path / "wide", CLIP)
    VJEPA2Model(their_config()).save_pretrained(tmp_path / "half")  # a predictor of one block of two
    weights = load_file(tmp_path / "half" / WEIGHTS)
    some = {name: tensor for name, tensor in weights.items() if not name.startswith("predictor.layer.1.")}
    save_file(some, tmp_path / "half" / WEIGHTS)
    with pytest.raises(UserError, match=r"16 missing: predictor\.layer\.1\."):
        import_folder(tmp_path / "store", tmp_path / "half", CLIP)
    assert not (tmp_path / "store").exists()


def test_a_probe_s_checkpoint_is_refused_until_its_head_is_dropped(published: Path, tmp_path: Path) -> None:
    probe = VJEPA2ForVideoClassification(their_config(num_labels=5))
    probe.vjepa2.load_state_dict(load_file(published / WEIGHTS))
    probe.save_pretrained(tmp_path / "probe")
    with pytest.raises(UserError, match=r"unexpected: (classifier|pooler)\."):
        import_folder(tmp_path / "store", tmp_path / "probe", CLIP)
    dropped = import_folder(tmp_path / "store", tmp_path / "probe", CLIP, drop=("pooler.", "classifier."))
    assert dropped.run.run_id == import_folder(tmp_path / "other", published, CLIP).run.run_id


def test_a_compiled_run_s_artefact_loads_bit_for_bit_and_a_partial_one_never(tmp_path: Path) -> None:
    spec = replace(run_spec("pixel"), model=MODEL, clip=CLIP)
    run = RunDir(tmp_path, spec_id(spec))
    encoder = build_encoder(VIT, MODEL, CLIP, 3)
    plain = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    compiled = torch.compile(encoder, backend="eager")
    assert next(iter(compiled.state_dict())).startswith("_orig_mod.")
    write_artefact(run, spec, compiled, "student", checkpoint.Origin())
    loaded, branch, digest = load_artefact(run, spec)
    assert (branch, digest) == ("student", weights_sha256(plain))
    assert same_tensors(loaded.state_dict(), plain)
    # The prefix in the file itself, and in its middle, as compiled blocks leave it.
    names = {n.replace("blocks.1.", "blocks.1._orig_mod."): t for n, t in compiled.state_dict().items()}
    write_weights(run, spec, names, "student", checkpoint.Origin())
    assert same_tensors(load_artefact(run, spec)[0].state_dict(), plain)

    shallow = {name: tensor for name, tensor in plain.items() if "blocks.1." not in name}
    for wrong, said in (
        (shallow, r"12 missing: trunk\.blocks\.1\."),
        ({**plain, "head.weight": torch.zeros(5, 48)}, r"1 unexpected: head\.weight"),  # a probe's
        ({**plain, "embed.bias": torch.zeros(47)}, r"1 misshapen: embed\.bias \[47\] instead of \[48\]"),
    ):
        write_weights(run, spec, wrong, "student", checkpoint.Origin())
        with pytest.raises(RunFailed, match=said):
            load_artefact(run, spec)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "vit"}, "model_type is 'vit'"),
        ({"hidden_act": "silu", "qkv_bias": False}, "hidden_act is 'silu'.*; qkv_bias is False"),
        ({"patch_size": [16, 8]}, "patches must be square"),
        ({"hidden_size": "wide"}, r"Expected `int`, got `str` - at `\$\.hidden_size`"),
        ({"crop_size": 40}, "crop_px 40 is not a multiple"),
        ({"num_attention_heads": 0}, r">= 1 - at `\$\.num_attention_heads`"),
        ({"patch_size": [0, 16], "tubelet_size": 2}, r">= 1 - at `\$\.patch_size\[0\]`"),
    ],
)
def test_configurations_that_are_not_ours(
    fields: dict[str, object], said: str, published: Path, tmp_path: Path
) -> None:
    config = json.loads((published / CONFIG).read_text())
    (published / CONFIG).write_text(json.dumps({**config, **fields}))
    with pytest.raises(UserError, match=said):
        import_folder(tmp_path / "store", published, import_clip(published))


@pytest.mark.parametrize("name", ["encoder.layer.1.mlp.fc2.weight", "predictor.proj.bias"])
def test_weights_that_are_not_finite_are_refused(name: str, published: Path, tmp_path: Path) -> None:
    weights = load_file(published / WEIGHTS)
    weights[name].view(-1)[3] = float("nan") if "mlp" in name else float("inf")
    save_file(weights, published / WEIGHTS)
    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        import_folder(tmp_path / "store", published, CLIP)
    assert not (tmp_path / "store").exists()


def test_an_import_mends_what_is_damaged_and_adds_what_is_missing(published: Path, tmp_path: Path) -> None:
    def remarks() -> str:
        again = import_folder(tmp_path, published, CLIP)
        assert again.run.run_id == first.run.run_id
        return " ".join(again.remarks)

    first = import_folder(tmp_path, published, CLIP, drop=("predictor.",))
    assert "is added" in remarks()
    assert remarks() == ""
    export_run(first.run, tmp_path / "out")
    assert same_tensors(load_file(published / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS))
    for path in (first.run.artefact, first.run.spec, first.run.checkpoints / "step-00000000.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        assert "damaged" in remarks()
        assert path.read_bytes() == whole
    assert remarks() == ""


def test_folders_without_readable_weights(published: Path, tmp_path: Path) -> None:
    (published / WEIGHTS).write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        import_folder(tmp_path, published, CLIP)
    (published / WEIGHTS).rename(published / "pytorch_model.bin")
    with pytest.raises(UserError, match="other formats \\(pickles\\) are not read"):
        import_folder(tmp_path, published, CLIP)
    for index, said in (
        ('{"metadata": {}}', "not an index"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "not a file of this folder"),
        ('{"weight_map": {"a": "b.safetensors"}}', "cannot be read"),
    ):
        (published / INDEX).write_text(index)
        with pytest.raises(UserError, match=said):
            import_folder(tmp_path, published, CLIP)
    with pytest.raises(UserError, match="cannot be read"):
        import_clip(tmp_path / "nowhere")


def test_the_commands(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(dest="command"))
    store = tmp_path / "store"
    processor = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (published / "video_preprocessor_config.json").write_text(json.dumps(processor))

    def call(*argv: str) -> dict[str, object]:
        arguments = parser.parse_args([*argv, "--json"])
        run = run_import if arguments.command == "import" else run_export
        assert run(arguments, store) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    first = call("import", str(published), "--frames", "2", "--px", "16", "--name", "mine")
    assert "normalises pixels by mean [0.485, 0.456, 0.406]" in str(first["remarks"])
    run = RunDir(store, str(first["run_id"]))
    assert (run.read_spec().clip.frames, run.read_spec().clip.crop_px) == (2, 16)
    assert json.loads(run.env.read_text())["attempts"][0]["name"] == "mine"
    theirs = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    assert call("import", str(published), *theirs)["remarks"] == []
    again = call("import", str(published), "--clip", str(run.spec))
    assert (again["run_id"], again["already_there"]) == (first["run_id"], True)
    exported = call("export", run.run_id[:8], "--out", str(tmp_path / "out"))
    assert exported["predictor"] is True
    assert VJEPA2Config.from_pretrained(tmp_path / "out").crop_size == 16
    for argv, said in (
        (("import", str(published), "--frames", "0"), "clip: Expected `int` >= 1"),
        (("import", str(published), "--clip", "gone.json"), "No such file"),
        (("import", str(published), "--clip", str(tmp_path)), "cannot be read .Is a directory"),
        (("export", "zz", "--out", "x"), "exactly one run"),
        (("export", run.run_id, "--out", str(run.spec / "x")), "--out .*: cannot be made"),
    ):
        with pytest.raises(UserError, match=said):
            call(*argv)
    with pytest.raises(SystemExit):
        parser.parse_args(["import", str(published), "--mean", "0.1,inf,0.1"])
