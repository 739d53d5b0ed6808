"""Probes: equal to references, blind to what they report, counted, and the encoder left as it was."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from salt import attentive, checkpoint, features, probe_cli
from salt.artefact import weights_sha256, write_artefact
from salt.attentive import AttentiveProbe, Scaling, Split, attentive_flops, probe_vit, train_heads
from salt.batches import centre_crop, to_patches
from salt.checkpoint import Origin
from salt.clips import Clips
from salt.errors import RunFailed, UserError
from salt.features import Features, Reading, read_features
from salt.flops import encode_flops
from salt.label_free import alpha_req, lidar, rankme
from salt.learner import Learner, build_encoder
from salt.lists import data_spec, read_list
from salt.plain_probes import PlainProbes
from salt.probe import SPLITS, feature_flops, run_probes
from salt.probe_views import probe_clip_spec, probe_problems, random_corners, view_corners
from salt.result_specs import ProbeResult
from salt.sizes import SIZES
from salt.specs import DataSpec, ProbeSpec, RunSpec, VitSpec, spec_id
from salt.store import RunDir, pretty_json, read_json, write_atomically
from salt.vit import Encoder
from tests.examples import CLIP, run_spec

COUNTS = {"train": 48, "selection": 24, "report": 32}
RUN = run_spec("pixel", "nano", steps=5)


def suite(**fields: Any) -> ProbeSpec:
    data = {split: DataSpec(name=split, fingerprint=split, clips=count) for split, count in COUNTS.items()}
    counts = {f"{split}_clips": count for split, count in COUNTS.items()}
    fields = {"labels": ("motion",), "kinds": ("linear", "knn", "attentive"), "attentive_epochs": 2} | fields
    return ProbeSpec(**{**data, **counts, "attentive_batch_clips": 16, **fields})


def moving(count: int, seed: int, segments: int = 1, fingerprint: str = "") -> Clips:
    """Blobs that move left or right, `segments` neighbouring clips of each video."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 60, (count * segments, 8, 32, 32, 1), dtype=np.uint8)
    names = []
    for video in range(count):
        for segment in range(segments):
            row, column, speed = rng.integers(0, 24), rng.integers(0, 32), 3 if video % 2 else -3
            for t in range(8):
                place = (np.arange(column, column + 8) + speed * t) % 32
                frames[video * segments + segment, t, row : row + 8, place] = 230
            names.append(f"{video}.mp4")
    labels = tuple("right" if int(name[:-4]) % 2 else "left" for name in names)
    return Clips(
        frames=frames,
        files=tuple(Path(name) for name in names),
        rows=tuple(names),
        columns={"motion": labels},
        skipped=(),
        fingerprint=fingerprint,
        padded_share=0.0,
    )


def clips(segments: int = 1) -> dict[str, Clips]:
    return {split: moving(count, seed, segments) for seed, (split, count) in enumerate(COUNTS.items())}


def encoder(size: str = "nano") -> Encoder:
    run = run_spec("pixel", size)
    return build_encoder(run.model.encoder, run.model, run.clip, seed=0).eval()


def probe(
    spec: ProbeSpec, opened: dict[str, Clips] | None = None, model: Encoder | None = None
) -> ProbeResult:
    model = encoder() if model is None else model
    opened = clips(spec.segments) if opened is None else opened
    digest = weights_sha256(model.state_dict())
    return run_probes(spec, "p", RUN, "r", model, "student", digest, opened, "cpu")


# --- ridge and neighbours -----------------------------------------------------------------------


@pytest.mark.parametrize(("width", "classes"), [(20, 5), (20, 2), (300, 5)])
def test_ridge_and_neighbours_answer_as_scikit_learn(width: int, classes: int) -> None:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(width)
    counts = {"train": 120, "selection": 80, "report": 90}
    numbers = {split: rng.permutation(np.arange(count) % classes) for split, count in counts.items()}
    centres = rng.normal(size=(classes, width))
    mixing = rng.normal(size=(width, width)) * np.arange(1, width + 1) ** -1.5  # nearly collinear
    vectors = {
        split: ((0.3 * centres[of] + rng.normal(size=(len(of), width))) @ mixing).astype(np.float32)
        for split, of in numbers.items()
    }
    spec, probes = suite(), PlainProbes(vectors)
    ridge = {}
    for penalty in spec.ridge_penalties:
        model = RidgeClassifier(alpha=penalty).fit(probes.scaled["train"], numbers["train"])
        expected = model.decision_function(probes.scaled["report"])
        found = probes.ridge_scores(probes.solved(classes, numbers["train"]), "report", penalty)
        found = found[:, 1] if classes == 2 else found
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        ridge[penalty] = [model.score(probes.scaled[split], numbers[split]) for split in SPLITS[1:]]
    best = max(spec.ridge_penalties, key=lambda penalty: ridge[penalty][0])
    linear = probes.linear(spec, classes, numbers)
    assert linear[:3] == (ridge[best][1], ridge[best][0], {"penalty": best})
    votes = {}
    for k in spec.neighbours:
        judge = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        judge.fit(probes.scaled["train"], numbers["train"])
        votes[k] = [judge.score(probes.scaled[split], numbers[split]) for split in SPLITS[1:]]
    k = max(spec.neighbours, key=lambda k: votes[k][0])
    assert probes.neighbours(spec, classes, numbers)[:3] == (votes[k][1], votes[k][0], {"neighbours": k})


# --- the attentive probe ------------------------------------------------------------------------


def test_attention_without_keys_is_attention() -> None:
    """The cross-attention block by its definition: keys and values of all tokens, heads apart."""
    vit = VitSpec(width=24, depth=1, heads=3, mlp_width=48)
    torch.manual_seed(0)
    model = AttentiveProbe(vit, 3, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = torch.randn(4, 10, 24)
    x = tokens
    for block in model.blocks:
        x = block(x)
    keys, values = model.kv(model.norm1(x)).view(4, 10, 2, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
    query = model.q(model.query).view(1, 3, 1, 8).expand(4, -1, -1, -1)
    pooled = model.query + F.scaled_dot_product_attention(query, keys, values).reshape(4, 24)
    pooled = pooled + model.fc2(F.gelu(model.fc1(model.norm2(pooled))))
    torch.testing.assert_close(model(tokens), model.classify(pooled), rtol=0, atol=1e-5)


def tokens_of(count: int, seed: int, views: int = 1, width: int = 32, places: int = 8) -> Split:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    tokens = rng.normal(size=(count, views, places, width)).astype(np.float32)
    tokens[:, :, 0, :3] += 3 * np.eye(3, dtype=np.float32)[labels][:, None]
    return Split(tokens, labels)


def plain_scaling(split: Split) -> Scaling:
    return Scaling(torch.zeros(split.tokens.shape[2:]), torch.ones(split.tokens.shape[2:]))


def test_heads_trained_together_are_those_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    train, vit = tokens_of(40, 0, views=2), SIZES["nano"]
    grid: dict[str, Any] = {"attentive_lrs": (1e-3, 4e-3), "attentive_weight_decays": (0.01, 0.4)}
    shown = torch.from_numpy(tokens_of(10, 1).tokens[:, 0])

    def trained(spec: ProbeSpec) -> list[torch.Tensor]:
        heads = train_heads(spec, vit, 3, train, plain_scaling(train), "cpu")
        assert [(head.lr, head.weight_decay) for head in heads] == attentive.grid_of(spec)
        return [head.probe(shown).detach() for head in heads]

    together = trained(suite(**grid))
    alone = [
        trained(suite(attentive_lrs=(lr,), attentive_weight_decays=(decay,)))[0]
        for lr in grid["attentive_lrs"]
        for decay in grid["attentive_weight_decays"]
    ]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert len({float(scores[0, 0].detach()) for scores in together}) == 4
    # A batch that does not fit into memory is cut; its gradients add up to the same, but for rounding.
    monkeypatch.setattr(attentive, "ACTIVATION_BYTES", 1)
    torch.testing.assert_close(trained(suite(**grid)), together, rtol=0, atol=1e-4)


def test_every_width_is_offered_the_whole_grid() -> None:
    """Blocks, rates and batches do not depend on the encoder; only its width and heads do."""
    spec = suite(attentive_lrs=(1e-3, 3e-4), attentive_weight_decays=(0.8, 0.1), attentive_blocks=1)
    grids = []
    for width in (192, 768):
        train = tokens_of(16, 0, width=width, places=2)
        vit = VitSpec(width=width, depth=1, heads=3, mlp_width=64)
        heads = train_heads(spec, vit, 3, train, plain_scaling(train), "cpu")
        grids.append([(head.lr, head.weight_decay) for head in heads])
        assert [len(head.optimizer.state) for head in heads] == [len(list(heads[0].probe.parameters()))] * 4
    assert grids[0] == grids[1] == [(1e-3, 0.8), (1e-3, 0.1), (3e-4, 0.8), (3e-4, 0.1)]


def test_probabilities_of_views_are_averaged() -> None:
    split, vit = tokens_of(30, 0, views=3), SIZES["nano"]
    torch.manual_seed(0)
    model = AttentiveProbe(vit, 2, 3).eval()
    scaling = plain_scaling(split)
    found = attentive._accuracies([model], split, scaling, vit, "cpu")[0]
    each = torch.stack([model(torch.from_numpy(split.tokens[:, view])).softmax(1) for view in range(3)])
    assert found == float((each.mean(0).argmax(1).numpy() == split.labels).mean())
    single = [float((likely.argmax(1).numpy() == split.labels).mean()) for likely in each]
    assert found not in single  # else this says nothing


def test_attentive_flops_are_those_counted() -> None:
    """One clip through the probe under torch's own counter: the formula and the query, once a batch."""
    spec = suite(attentive_lrs=(1e-3, 3e-3), attentive_weight_decays=(0.1, 0.4), attentive_heads=4, views=2)
    vit = probe_vit(spec, SIZES["nano"])
    model = AttentiveProbe(vit, spec.attentive_blocks, 5)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.randn(1, 50, 32))
    forward = counter.get_total_flops() - 4 * 32 * 32
    clips_forward = 4 * (3 * 2 * 48 + 2 * 24) + 2 * 32  # heads x (epochs of training, selection), report
    assert attentive_flops(spec, vit, 5, (48, 2, 50, 32), 24, 32) == clips_forward * forward


# --- features -----------------------------------------------------------------------------------


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


# --- whole suites -------------------------------------------------------------------------------


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


# --- label-free metrics -------------------------------------------------------------------------


def orthogonal(rows: int, columns: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Orthonormal columns, each of mean 0."""
    drawn = np.random.default_rng(seed).normal(size=(rows, columns))
    return np.linalg.qr(np.hstack([np.ones((rows, 1)), drawn]))[0][:, 1:]


def test_label_free_metrics_of_known_spectra() -> None:
    rng = np.random.default_rng(1)
    basis = orthogonal(64, 8).T
    assert rankme(orthogonal(512, 8) @ basis) == pytest.approx(8, rel=1e-3)
    assert rankme(rng.normal(size=(8192, 8)) @ basis) == pytest.approx(8, rel=0.01)
    weights = np.array([4.0, 2.0, 1.0, 1.0])  # entropy 1.75 bits of singular values
    assert rankme(orthogonal(512, 4) * weights) == pytest.approx(2**1.75, rel=1e-4)
    assert rankme(np.ones((9, 5))) == pytest.approx(1, rel=1e-4)
    assert rankme(np.zeros((9, 5))) == 0
    spectrum = np.arange(1.0, 49) ** -1.3
    assert alpha_req(7 + orthogonal(256, 48) * np.sqrt(spectrum)) == pytest.approx(1.3, abs=1e-9)
    assert alpha_req(rng.normal(size=(20_000, 48)) * np.sqrt(spectrum)) == pytest.approx(1.3, abs=0.03)
    # Ten directions tell clips apart, all 32 vary within a clip: the rank between classes is 10.
    means = np.zeros((400, 32))
    means[:, :10] = 20 * 30 * orthogonal(400, 10)
    views = means[:, None] + rng.normal(size=(400, 9, 32))
    assert lidar(views) == pytest.approx(10, rel=0.02)
    assert lidar(views @ rng.normal(size=(32, 32))) == pytest.approx(10, rel=0.02)  # any linear map
    assert rankme(views[:, 0] * np.r_[np.ones(10), np.full(22, 1e-6)]) == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize(
    ("metric", "shape", "words"),
    [(rankme, (3,), "2 dimensions"), (alpha_req, (4, 0), "none empty"), (lidar, (5, 1, 3), "2 views")],
)
def test_label_free_metrics_refuse_what_has_no_answer(metric: Any, shape: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metric(np.zeros(shape))
    bad = np.full((4, 3, 2) if metric is lidar else (4, 3), np.nan)
    with pytest.raises(ValueError, match="not finite"):
        metric(bad)


# --- salt-train probe ---------------------------------------------------------------------------


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
        ("kinds: [linear, knn]", "kinds: [linear, forest]", "forest"),
        ("labels: [motion]", "label: [motion]", "labels|label"),
        ("report: report.csv", "report: {name: r}", "path of a list"),
        ("kinds: [linear, knn]", "kinds: [linear]\nlayers: [7]", "2 blocks"),
    ]:
        (folder / "suite.yaml").write_text(good.replace(old, new))
        with pytest.raises(UserError, match=words):
            salt_probe(folder, capsys, run.run_id)
    (folder / "suite.yaml").write_text(good)
    with pytest.raises(UserError, match="leave the option out"):
        salt_probe(folder, capsys, run.run_id, "--branch", "ema")
    with pytest.raises(UserError, match="it has the runs none"):
        salt_probe(folder, capsys, "zz")
    assert not run.probes.exists()
