"""Probes: blind to what they report, counted, and the encoder left as it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from salt import features
from salt.batches import centre_crop, to_patches
from salt.clips import Clips
from salt.errors import RunFailed
from salt.features import Features, Reading, read_features
from salt.flops import encode_flops
from salt.label_free import lidar
from salt.probe import SPLITS, feature_flops, run_probes
from salt.probe_views import probe_clip_spec, probe_problems, random_corners, view_corners
from salt.specs import ProbeSpec
from tests.examples import CLIP
from tests.probe_kit import RUN, clips, encoder, moving, probe, suite

# --- features ---------------------------------------------------------------------------------------


def read(spec: ProbeSpec, source: Clips, keep_tokens: bool = True) -> Features:
    reading = Reading(
        frames=source.frames,
        videos=np.array([5, 2]),
        segments=spec.segments,
        corners=np.array([view_corners(CLIP, spec.views)]),
        order="ordered",
        orders=None,
    )
    return read_features(encoder(), reading, RUN.clip, RUN.model, spec.layers, "cpu", keep_tokens)


def test_tokens_of_segments_views_and_layers_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the encoder's own blocks, one clip at a time, by hooks."""
    spec = suite(segments=2, views=3, layers=(1, 2))
    source, model = moving(8, 0, segments=2), encoder()
    found = read(spec, source)
    assert found.tokens is not None
    assert found.tokens.shape == (2, 3, 2 * 2 * 64, 32)
    seen: list[torch.Tensor] = []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    for place, video in enumerate((5, 2)):
        for view, left in enumerate((0, 4, 8)):
            layers: list[list[torch.Tensor]] = [[], []]
            for segment in range(2):
                crop = source.frames[2 * video + segment, :, 4:28, left : left + 24]
                seen.clear()
                with torch.no_grad():
                    model(to_patches(torch.from_numpy(crop[None].copy()), RUN.clip, RUN.model))
                    for layer, tokens in enumerate(seen):
                        layers[layer].append(model.trunk.norm(tokens).view(64, 32))
            expected = torch.cat(layers[0] + layers[1])
            tokens = torch.from_numpy(found.tokens[place, view])
            torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
            np.testing.assert_allclose(found.vectors[place, view], expected.mean(0), atol=1e-5)
    assert found.mean is not None
    assert found.deviation is not None
    for layer in range(2):
        part = found.tokens[:, :, 128 * layer : 128 * (layer + 1)].reshape(-1, 32)
        np.testing.assert_allclose(found.mean[128 * layer], part.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.deviation[128 * layer + 127], part.std(0, ddof=1), atol=1e-5)
    monkeypatch.setattr(features, "FEATURE_BYTES", 0)
    on_disk = read(spec, source)
    assert isinstance(on_disk.tokens, np.memmap)
    np.testing.assert_array_equal(on_disk.tokens, found.tokens)
    monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    np.testing.assert_array_equal(read(spec, source).tokens, found.tokens)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(RunFailed, match="no room for"):
        read(spec, source)


def test_views_are_crops_spread_from_edge_to_edge() -> None:
    assert view_corners(CLIP, 1) == [(4, 4)]
    assert view_corners(CLIP, 2) == [(4, 0), (4, 8)]
    assert view_corners(CLIP, 4) == [(4, 0), (4, 3), (4, 5), (4, 8)]
    frames = moving(2, 0).frames
    np.testing.assert_array_equal(centre_crop(frames, CLIP), frames[:, :, 4:28, 4:28])
    clip = probe_clip_spec(
        suite(segments=4),
        msgspec.structs.replace(
            RUN, clip=msgspec.structs.replace(CLIP, source="streamed", crop="random_resized", flip=True)
        ),
    )
    assert clip == msgspec.structs.replace(CLIP, clips_per_file=4)


def test_what_cannot_be_probed_is_said_before_it_is_tried() -> None:
    tight = msgspec.structs.replace(RUN, clip=msgspec.structs.replace(CLIP, store_px=24))
    assert probe_problems(suite(views=9, layers=(1, 2), attentive_heads=16), RUN) == []
    for fields, run, words in [
        ({"views": 10}, RUN, "9 places"),
        ({"label_free": ("lidar",)}, tight, "the same"),
        ({"layers": (1, 3)}, RUN, "2 blocks"),
        ({"layers": (1, 1)}, RUN, "twice"),
        ({"attentive_heads": 3}, RUN, "does not divide the encoder's width 32"),
    ]:
        (problem,) = probe_problems(suite(**fields), run)
        assert words in problem
        with pytest.raises(RunFailed, match=words):
            run_probes(suite(**fields), "p", run, "r", encoder(), "student", "", clips(), "cpu")


def test_small_deviations_around_a_large_mean_are_found() -> None:
    tokens = 300 + 1e-2 * torch.randn(64, 1, 8, 4, generator=torch.Generator().manual_seed(0))
    sums = features.Sums()
    for part in tokens.split(10):
        sums.add(part)
    mean, deviation = sums.moments()
    wanted = tokens.double().flatten(0, 2)
    np.testing.assert_allclose(mean[0], wanted.mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation[7], wanted.std(0), rtol=1e-4)


# --- whole suites -----------------------------------------------------------------------------------


def test_a_suite_of_segments_and_views_is_whole_and_counted() -> None:
    metrics = ("rankme", "lidar", "alpha_req")
    spec = suite(
        segments=2,
        views=2,
        layers=(1,),
        label_free=metrics,
        frames=("ordered", "shuffled"),
        attentive_epochs=1,
    )
    result = probe(spec)
    assert [(score.kind, score.frames) for score in result.scores] == [
        (kind, frames) for frames in spec.frames for kind in spec.kinds
    ]
    assert all((score.n_train, score.n_report, score.chance) == (48, 32, 0.5) for score in result.scores)
    assert all(score.flops > 0 for score in result.scores)
    assert set(result.label_free) == set(metrics)
    assert 1 < result.label_free["rankme"] <= 32
    one = msgspec.structs.replace(RUN.model.encoder, depth=1)
    clips_encoded = 2 * 2 * 2 * (48 + 24 + 32)  # orders x segments x views
    assert result.feature_flops == clips_encoded * encode_flops(one, RUN.model, RUN.clip)
    assert probe(spec).scores == result.scores


def test_lidar_draws_crops_of_its_own_where_there_is_one_view() -> None:
    spec = suite(kinds=("knn",), frames=("shuffled",), label_free=("rankme", "lidar"))
    opened = clips()
    found = probe(spec, opened)
    model, embeddings = encoder(), []
    for clip, corners in zip(opened["report"].frames, random_corners(CLIP, 32, spec.seed), strict=True):
        crops = np.stack([clip[:, top : top + 24, left : left + 24] for top, left in corners])
        with torch.no_grad():
            tokens = model(to_patches(torch.from_numpy(crops), RUN.clip, RUN.model))
        embeddings.append(tokens.mean(dim=1).numpy())
    assert found.label_free["lidar"] == pytest.approx(lidar(np.stack(embeddings)), rel=1e-4)
    encoded = (48 + 24 + 32) + 32 + 10 * 32  # shuffled; ordered report clips; ten crops of each
    assert found.feature_flops == feature_flops(spec, RUN)
    assert found.feature_flops == encoded * encode_flops(RUN.model.encoder, RUN.model, RUN.clip)


def test_report_labels_never_influence_what_is_selected() -> None:
    spec = suite(attentive_lrs=(1e-4, 1e-3, 1e-2))
    opened = clips()
    before = probe(spec, opened)
    report = opened["report"]
    shuffled = tuple(np.random.default_rng(0).permutation(report.columns["motion"]).tolist())
    replaced = Clips(**{**report.__dict__, "columns": {"motion": shuffled}})
    after = probe(spec, opened | {"report": replaced})
    assert [score.accuracy for score in before.scores] != [score.accuracy for score in after.scores]
    for one, other in zip(before.scores, after.scores, strict=True):
        assert (one.selected, one.selection_accuracy) == (other.selected, other.selection_accuracy)


def test_shuffled_frames_do_not_tell_a_clip_s_place_in_its_list() -> None:
    """Clips that are alike but for the order of frames, and lists with the same labels in the same order."""
    frames = np.broadcast_to(np.arange(0, 200, 25, dtype=np.uint8)[:, None, None, None], (24, 8, 32, 32, 1))
    labels = tuple(np.random.default_rng(0).permutation(["a", "b"] * 12).tolist())
    names = tuple(map(str, range(24)))
    each = Clips(
        frames=frames,
        files=tuple(map(Path, names)),
        rows=names,
        columns={"motion": labels},
        skipped=(),
        fingerprint="",
        padded_share=0.0,
    )
    spec = suite(
        kinds=("knn",), frames=("shuffled",), neighbours=(1,), **{f"{split}_clips": 24 for split in SPLITS}
    )
    raw = msgspec.structs.replace(RUN, arm="raw", steps=0)
    (score,) = run_probes(spec, "p", raw, "r", None, "raw", "", dict.fromkeys(SPLITS, each), "cpu").scores
    assert 0.2 < score.accuracy < 0.8  # each clip's twin in the other list would make it 1


def test_labels_without_an_answer_are_refused_before_anything_is_encoded() -> None:
    model, opened = encoder(), clips()
    model.register_forward_hook(lambda *_: pytest.fail("encoded"))
    for split, label, words in [
        ("train", "left", "all 48 training clips are 'left'"),
        ("selection", "up", "class 'up' of the selection clips is not among the training clips"),
        ("report", "up", "class 'up' of the report clips"),
    ]:
        source = opened[split]
        replaced = Clips(**{**source.__dict__, "columns": {"motion": (label,) * len(source.frames)}})
        with pytest.raises(RunFailed, match=words) as error:
            probe(suite(), opened | {split: replaced}, model)
        assert error.value.kind == "data"
    # A class that the report split lacks is an ordinary class that nothing belongs to.
    report = opened["report"]
    lacking = Clips(**{**report.__dict__, "columns": {"motion": ("left",) * len(report.frames)}})
    (score,) = probe(suite(kinds=("linear",)), opened | {"report": lacking}).scores
    assert (score.classes, score.chance) == (2, 1.0)


def test_an_encoder_that_probing_changes_is_refused() -> None:
    model = encoder()

    def nudge(*_: object) -> None:
        model.embed.bias.data.add_(1e-6)

    model.register_forward_hook(nudge)
    with pytest.raises(RunFailed, match="changed the encoder's weights"):
        probe(suite(kinds=("linear",)), model=model)
    broken = encoder()
    broken.embed.weight.data[0, 0] = float("nan")
    with pytest.raises(RunFailed, match="not finite") as error:
        probe(suite(kinds=("linear",)), model=broken)
    assert error.value.kind == "diverged"
