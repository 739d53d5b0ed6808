"""External teachers: each model's latents and FLOPs held to transformers' own forward pass."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from salt.adapter_spec import AdapterSpec
from salt.artefact import load_artefact, load_teacher
from salt.audit import counted_parts
from salt.batches import from_patches, to_patches
from salt.errors import RunFailed, UserError
from salt.external_describe import Reading, describe
from salt.external_grid import grid_problems
from salt.external_import import bring_model, external_spec
from salt.external_model import ExternalEncoder
from salt.flops import cache_cost, step_cost, whole_clip_lines
from salt.flops_paper import paper_step_cost
from salt.probe import feature_flops
from salt.sizes import encoder_parameters
from salt.specs import (
    MaskSpec,
    ObjectiveSpec,
    OptimSpec,
    ProbeSpec,
    RunSpec,
    TeacherRef,
    canonical_json,
    spec_id,
)
from salt.store import RunDir
from tests import examples
from tests.external_kit import CLIP, KINDS, MODEL, crops, save, write_processor

pytest.importorskip("transformers")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Kind -> its folder and the model that was saved there."""
    top = tmp_path_factory.mktemp("models")
    return {kind: (top / kind, save(kind, top / kind)) for kind in KINDS}


def spec_of(folder: Path, **reading: Any) -> RunSpec:
    return external_spec(describe(folder, Reading(**reading), "external.x"), CLIP, MODEL)


def brought(store: Path, folder: Path, **reading: Any) -> tuple[RunSpec, ExternalEncoder]:
    """The run of a folder in the store, and its encoder as a student loads it."""
    spec = spec_of(folder, **reading)
    bring_model(store, folder, spec)
    encoder, _ = load_teacher(RunDir(store, spec_id(spec)), reference(spec), MODEL, CLIP)
    assert isinstance(encoder, ExternalEncoder)
    return spec, encoder


def reference(spec: RunSpec) -> TeacherRef:
    assert spec.external is not None
    return TeacherRef(run_id=spec_id(spec), step=0, encoder=spec.model.encoder, adapter=spec.external.adapter)


def plain(model: Any, kind: str, pixels: torch.Tensor) -> torch.Tensor:
    """transformers' own forward pass: frames [B, F, 3, H, W] -> latents of patches [B, F or steps, n, D]."""
    clips = len(pixels)
    with torch.no_grad():
        if kind == "vjepa2":
            found = model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        elif kind == "videomae":
            found = model(pixel_values=pixels).last_hidden_state
        else:
            tower = getattr(model, "vision_model", model)
            found = tower(pixel_values=pixels.flatten(0, 1)).last_hidden_state
            found = found[:, {"dinov2_with_registers": 5, "siglip": 0}.get(kind, 1) :]
    return found.reshape(clips, -1, 9, found.shape[-1])


def normalised(raw: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """Bytes [B, T, H, W, C] as a processor normalises them, [B, T, 3, side, side]."""
    images = raw.permute(0, 1, 4, 2, 3).flatten(0, 1).float()
    if side != raw.shape[2]:
        images = F.interpolate(images, (side, side), mode=mode, antialias=True).clamp(0, 255)
    return ((images / 255 - MEAN[:, None, None]) / STD[:, None, None]).unflatten(0, raw.shape[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_those_of_the_plain_model(
    kind: str, folders: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, model = folders[kind]
    spec, encoder = brought(tmp_path, folder)
    raw = crops()
    patches = to_patches(raw, CLIP, MODEL)
    assert torch.equal(from_patches(patches, CLIP, MODEL), raw.float())
    found = encoder(patches)
    side = 21 if kind in ("dinov2", "dinov2_with_registers", "swiglu") else 24
    wanted = plain(model, kind, normalised(raw, side, "bicubic"))
    if kind not in ("videomae", "vjepa2"):
        wanted = wanted.unflatten(1, (2, 2)).mean(dim=2)
    assert found.shape == (2, 18, spec.model.encoder.width)
    torch.testing.assert_close(found, wanted.flatten(1, 2), rtol=1e-5, atol=1e-5)
    assert not found.requires_grad
    assert not any(part.training for part in encoder.modules())
    # After all blocks, through the final norm, it is the output; CLIP has no norm for its patches.
    torch.testing.assert_close(encoder(patches, 2), found, rtol=1e-5, atol=1e-5)
    first, last = encoder.forward_layers(patches, (1, 2))
    assert torch.equal(last, encoder(patches, 2))
    assert torch.equal(first, encoder(patches, 1))
    assert not torch.allclose(first, last, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_what_torch_counts(kind: str, folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    readings: list[dict[str, Any]] = [{}]
    if kind not in ("videomae", "vjepa2"):
        readings.append({"per_tubelet": "middle"})
    for reading in readings:
        spec, encoder = brought(tmp_path, folders[kind][0], **reading)
        assert spec.external is not None
        adapter = spec.external.adapter
        assert isinstance(adapter, AdapterSpec)
        vit = spec.model.encoder
        lines = whole_clip_lines(vit, MODEL, CLIP, adapter)
        patches = to_patches(crops(1), CLIP, MODEL)
        for layer, depth in ((None, 2), (1, 1)):
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                encoder(patches, layer)
            cut = msgspec.structs.replace(vit, depth=depth)
            assert sum(whole_clip_lines(cut, MODEL, CLIP, adapter).values()) == counter.get_total_flops()
        student = student_of(spec)
        assert step_cost(student).parts["teacher_forward"].forward == 4 * sum(lines.values())
        counted = counted_parts(student, "torch")
        assert counted["teacher_forward"] == step_cost(student).parts["teacher_forward"]
        passes = {"videomae": 1, "vjepa2": 1}.get(kind, 2 if reading else 4)
        count = adapter.patches(4) + adapter.special_tokens
        paper = 4 * passes * 2 * encoder_parameters(vit, adapter.patch_values) * count
        assert paper_step_cost(student).parts["teacher_forward"].forward == paper
        # Its probes are priced the same way.
        probe = ProbeSpec(
            labels=("a",), kinds=("knn",), train=spec.data, selection=spec.data, report=spec.data,
            train_clips=5, selection_clips=3, report_clips=2,
        )  # fmt: skip
        assert feature_flops(probe, spec) == 10 * sum(lines.values())


def student_of(spec: RunSpec, **changes: Any) -> RunSpec:
    """A student of an external teacher, batch 4."""
    masks = (MaskSpec(visible_tokens=4, target_tokens=8),)
    fields: dict[str, Any] = {
        "arm": "salt", "seed": 0, "steps": 3, "model": MODEL, "clip": CLIP, "masks": masks,
        "data": spec.data, "optim": OptimSpec(batch_clips=4), "teacher": reference(spec),
    }  # fmt: skip
    return RunSpec(**fields | changes)


def test_frames_and_grids(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, model = folders["dinov2"]
    raw = crops()
    patches = to_patches(raw, CLIP, MODEL)
    each = plain(model, "dinov2", normalised(raw, 21, "bicubic"))  # [B, T, 9, D]
    for way, place in (("first", 0), ("middle", 1)):
        _, encoder = brought(tmp_path, folder, per_tubelet=way)
        torch.testing.assert_close(encoder(patches), each[:, place::2].flatten(1, 2), rtol=1e-5, atol=1e-5)
    # A model of two by two patches gives the student's three by three only where that is asked for.
    reading = {"input_px": 14, "resize_grid": "bilinear"}
    spec, encoder = brought(tmp_path, folder, **reading)
    found = encoder(patches)
    small = normalised(raw, 14, "bicubic").flatten(0, 1)
    with torch.no_grad():
        latents = model(pixel_values=small).last_hidden_state[:, 1:].unflatten(0, (2, 2, 2)).mean(dim=2)
    square = latents.flatten(0, 1).transpose(1, 2).unflatten(2, (2, 2))
    wide = F.interpolate(square, (3, 3), mode="bilinear").flatten(2).transpose(1, 2).unflatten(0, (2, 2))
    torch.testing.assert_close(found, wide.flatten(1, 2), rtol=1e-5, atol=1e-5)
    # A student whose tubelets last twice as long gets means over time; grey clips become three channels.
    slow, grey = (
        msgspec.structs.replace(MODEL, tubelet_frames=4),
        msgspec.structs.replace(CLIP, channels=1, mean=0.5),
    )
    folder, model = folders["videomae"]
    adapter = describe(folder, Reading(), "x").adapter
    raw = crops(clip=grey)
    found = ExternalEncoder(model, adapter, slow, grey)(to_patches(raw, grey, slow))
    wanted = plain(model, "videomae", normalised(raw.expand(-1, -1, -1, -1, 3), 24, "bilinear"))
    torch.testing.assert_close(found, wanted.mean(dim=1), rtol=1e-5, atol=1e-5)


def test_grids_that_do_not_meet_are_refused_with_numbers(folders: dict[str, tuple[Path, Any]]) -> None:
    def problems(kind: str, model: Any = MODEL, clip: Any = CLIP, **reading: Any) -> str:
        return "; ".join(
            grid_problems(describe(folders[kind][0], Reading(**reading), "x").adapter, clip, model)
        )

    assert problems("dinov2") == problems("dinov2", input_px=14, resize_grid="bilinear") == ""
    text = problems("dinov2", input_px=14)
    assert (
        "2 x 2 tokens a frame (14 px in patches of 7), the student has 3 x 3 (24 px in patches of 8)" in text
    )
    assert "`input_px: 21`, or set `model.patch_px: 12`, or ask for `resize_grid: bilinear`" in text
    eight = msgspec.structs.replace(CLIP, frames=8)
    assert "reads 4 frames, the clip has 8: set `clip.frames: 4`" in problems("videomae", clip=eight)
    assert problems("vjepa2", clip=eight) == problems("clip", clip=eight) == ""
    one = msgspec.structs.replace(MODEL, tubelet_frames=1)
    assert "tubelets last 2 frames, the student's 1 (4 time steps)" in problems("videomae", model=one)
    assert problems("siglip", model=one) == ""
    fine = msgspec.structs.replace(MODEL, patch_px=6)
    assert "input_px: 32" in problems("siglip", model=fine)
    assert "`input_px" not in problems("videomae", model=fine)


def test_a_model_is_its_content(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, model = folders["clip"]
    one = spec_of(folder)
    model.save_pretrained(tmp_path / "moved", max_shard_size="20KB")
    assert len(list((tmp_path / "moved").glob("*.safetensors"))) > 1
    write_processor("clip", tmp_path / "moved")
    assert spec_of(tmp_path / "moved") == one  # neither the path nor the shards matter
    ids = {spec_id(one)}
    write_processor("clip", tmp_path / "moved", image_std=[0.3, 0.3, 0.3])
    ids.add(spec_id(spec_of(tmp_path / "moved")))
    own = (tmp_path / "moved" / "preprocessor_config.json").rename(tmp_path / "processor.json")
    joint = f'{{"image_processor": {own.read_text()}, "processor_class": "CLIPProcessor"}}'
    (tmp_path / "moved" / "processor_config.json").write_text(joint)
    found = describe(tmp_path / "moved", Reading(), "x").adapter
    assert (found.std, found.input_px, found.resample) == ((0.3, 0.3, 0.3), 24, "bicubic")
    save("clip", tmp_path / "other", seed=1)
    ids.add(spec_id(spec_of(tmp_path / "other")))
    save("clip", tmp_path / "layers", layer_norm_eps=1e-3)
    ids.add(spec_id(spec_of(tmp_path / "layers")))
    ids |= {spec_id(spec_of(folder, **{name: value})) for name, value in (
        ("input_px", 32), ("per_tubelet", "first"), ("resize_grid", "bilinear"), ("trained_flops", 10**15)
    )}  # fmt: skip
    assert len(ids) == 8
    # What is not asked for leaves no trace in specs of other runs, whose ids stay.
    assert b"adapter" not in canonical_json(examples.run_spec("salt", "nano"))
    stated = spec_of(folder, trained_flops=10**15)
    assert cache_cost(stated).total_flops == cache_cost(stated, "paper").total_flops == 10**15
    assert cache_cost(one).parts == {}


def test_whole_once_and_sealed(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = folders["siglip"]
    spec = spec_of(folder)
    run = RunDir(tmp_path, spec_id(spec))
    assert bring_model(tmp_path, folder, spec)
    assert not bring_model(tmp_path, folder, spec)
    assert not any("head" in name for name in load_artefact(run, spec)[0].state_dict())
    changed = msgspec.structs.replace(reference(spec), adapter=msgspec.UNSET)
    with pytest.raises(RunFailed, match="reads clips otherwise"):
        load_teacher(run, changed, MODEL, CLIP)
    data = bytearray(run.artefact.read_bytes())
    data[-5] ^= 1
    run.artefact.write_bytes(bytes(data))
    with pytest.raises(RunFailed, match="do not match their hash"):
        load_artefact(run, spec)
    assert bring_model(tmp_path, folder, spec)  # what is damaged is written again
    load_artefact(run, spec)


def test_refusals(folders: dict[str, tuple[Path, Any]], tmp_path: Path, monkeypatch: Any) -> None:
    from safetensors.torch import load_file, save_file

    def refused(folder: Path, **reading: Any) -> str:
        with pytest.raises(UserError) as caught:
            spec_of(folder, **reading)
        return str(caught.value)

    assert "config.json is not there" in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "none of video_preprocessor_config.json" in refused(tmp_path)
    write_processor("clip", tmp_path)
    assert "is a 'bert'" in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "evil.Config"}}')
    assert "cannot be read by transformers" in refused(tmp_path)  # code that comes with a model is never run
    (tmp_path / "config.json").write_bytes((folders["clip"][0] / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "other formats (pickles) are not read" in refused(tmp_path)
    weights = load_file(folders["clip"][0] / "model.safetensors")
    del weights["pre_layrnorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack pre_layrnorm.weight: they would be random"):
        bring_model(tmp_path, tmp_path, spec_of(tmp_path))
    assert not (tmp_path / "runs").exists()
    write_processor("clip", tmp_path, resample=1)
    assert "resample 1: bilinear (2) and bicubic (3)" in refused(tmp_path)
    video, image = folders["videomae"][0], folders["dinov2"][0]
    assert "fixed positions and takes 24 px only" in refused(video, input_px=32)
    assert "reads whole clips, not frames" in refused(video, per_tubelet="mean")
    assert "give input_px: 21" in refused(image, input_px=24)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert "`pip install salt-scaling[hf]`" in refused(image)


def test_a_student_learns_from_it(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """The loss of a student falls, pixels beside latents or not, and nothing of the teacher moves."""
    from salt.learner import Learner

    spec, encoder = brought(tmp_path, folders["dinov2"][0])
    patches = to_patches(crops(4), CLIP, MODEL)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    for pixel_weight, precision, width in ((0.0, "bfloat16", 32), (0.5, "float32", 32 + 2 * 8 * 8 * 3)):
        objective = ObjectiveSpec(pixel_weight=pixel_weight, teacher_layer=1)
        optim = OptimSpec(batch_clips=4, precision=precision)
        learner = Learner(student_of(spec, objective=objective, optim=optim))
        learner.teacher = encoder
        optimizer = torch.optim.AdamW([w for part in learner.trained for w in part.parameters()], lr=1e-2)
        losses = []
        for _ in itertools.repeat(None, 8):
            optimizer.zero_grad()
            loss = learner.loss(patches, 0)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]
        assert learner.objective.predictor.out.out_features == width
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(weights.grad is None for weights in encoder.parameters())
