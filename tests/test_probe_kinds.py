"""Kinds of probes and label-free metrics: equal to references and to formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from salt import attentive
from salt.attentive import AttentiveProbe, Scaling, Split, attentive_flops, probe_vit, train_heads
from salt.label_free import alpha_req, lidar, rankme
from salt.plain_probes import PlainProbes, nearest_first
from salt.probe import SPLITS
from salt.sizes import SIZES
from salt.specs import ProbeSpec, VitSpec
from tests.probe_kit import COUNTS, suite

# --- ridge and neighbours ---------------------------------------------------------------------------


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


def test_neighbours_of_equal_cosine_come_in_the_order_of_the_list() -> None:
    """Copies of a clip, of whatever length, however a product of matrices rounds them."""
    cosines = np.random.default_rng(0).integers(0, 4, (50, 37)) / 4
    for most in (1, 2, 20, 37):
        slow = [sorted(range(37), key=lambda place: (-row[place], place))[:most] for row in cosines]
        assert nearest_first(cosines, most).tolist() == slow
    rng = np.random.default_rng(1)
    kinds, labels = rng.normal(size=(4, 50)), {"train": np.arange(40) // 4 % 3, "selection": np.zeros(4, int)}
    train = np.tile(kinds, (10, 1)).astype(np.float32)  # clip i is of kind i % 4; the first ones have label 0
    probes = PlainProbes({"train": train, "selection": kinds.astype(np.float32), "report": train})
    best = probes.neighbours(suite(neighbours=(1, 41)), 3, labels | {"report": np.zeros(40, int)})
    assert best[:3] == (1.0, 1.0, {"neighbours": 1.0})  # and 41 neighbours there are not


def test_a_feature_that_never_changes_tells_nothing() -> None:
    rng = np.random.default_rng(0)
    numbers = {split: rng.integers(0, 2, count) for split, count in COUNTS.items()}
    vectors = {split: rng.normal(size=(count, 5)).astype(np.float32) for split, count in COUNTS.items()}
    still = {split: np.hstack([found, np.full_like(found, 9000.1)]) for split, found in vectors.items()}
    for split, scaled in PlainProbes(still).scaled.items():
        assert np.abs(scaled[:, 5:]).max() < 1e-4  # in float32 it was as large as the others
        np.testing.assert_allclose(scaled[:, :5], PlainProbes(vectors).scaled[split])
    for kind in ("linear", "neighbours"):
        found = getattr(PlainProbes(still), kind)(suite(), 2, numbers)
        assert found[:3] == getattr(PlainProbes(vectors), kind)(suite(), 2, numbers)[:3]


# --- the attentive probe ----------------------------------------------------------------------------


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
    split, vit = tokens_of(75, 0, views=3), SIZES["nano"]  # two whole passes and a part of one
    torch.manual_seed(0)
    model = AttentiveProbe(vit, 2, 3).eval()
    scaling = plain_scaling(split)
    found = attentive._accuracies([model], split, scaling, vit, "cpu")[0]
    each = torch.stack([model(torch.from_numpy(split.tokens[:, view])).softmax(1) for view in range(3)])
    assert found == float((each.mean(0).argmax(1).numpy() == split.labels).mean())
    single = [float((likely.argmax(1).numpy() == split.labels).mean()) for likely in each]
    assert found not in single  # else this says nothing


def test_a_head_that_diverged_is_not_right_about_the_first_class() -> None:
    """`argmax` of values that are not numbers is 0, and most clips may be of that class."""
    train, vit = tokens_of(40, 0), SIZES["nano"]
    common = Split(train.tokens, np.where(np.arange(40) % 8, 0, train.labels))
    spec = suite(attentive_lrs=(1e30, 1e-3), attentive_blocks=1)
    found = attentive.attentive_probe(spec, vit, 3, common, common, common, plain_scaling(train), "cpu")
    assert found.lr == 1e-3
    alone = suite(attentive_lrs=(1e30,), attentive_blocks=1)
    assert attentive.attentive_probe(alone, vit, 3, common, common, common, plain_scaling(train), "cpu")[
        :2
    ] == (0.0, 0.0)


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


# --- label-free metrics -----------------------------------------------------------------------------


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
