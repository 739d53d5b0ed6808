"""The linear layer that goes through oneDNN, against float64 and against the plain one."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from salt import linear
from salt.linear import Linear


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that went through oneDNN."""
    seen: list[tuple[int, ...]] = []
    plain = linear._product

    def spy(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return plain(x, weight, bias)

    monkeypatch.setattr(linear, "_product", spy)
    return seen


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_float64(bias: bool, products: list[tuple[int, ...]]) -> None:
    random = torch.Generator().manual_seed(0)
    layer = Linear(192, 160, bias=bias)
    reference = nn.Linear(192, 160, bias=bias).double()
    reference.load_state_dict({name: tensor.double() for name, tensor in layer.state_dict().items()})
    x = torch.randn(3, 64, 192, generator=random).requires_grad_()
    exact = x.detach().double().requires_grad_()
    weights = torch.randn(3, 64, 160, generator=random)
    (layer(x) * weights).sum().backward()
    (reference(exact) * weights).sum().backward()
    assert products == [(3, 64, 192), (3, 64, 160), (160, 192)]  # forward, to the input, to the weights
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), reference(exact), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-5, rtol=0)
    for ours, theirs in zip(layer.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-4, rtol=0)


def test_what_it_leaves_to_the_plain_operator(products: list[tuple[int, ...]]) -> None:
    """Small products, half precision, shapes without numbers; and a counter sees every product."""
    layer = Linear(192, 160)
    assert torch.equal(
        layer(torch.ones(2, 192)), nn.functional.linear(torch.ones(2, 192), layer.weight, layer.bias)
    )
    x = torch.ones(256, 192)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.to("meta")(x.to("meta")).shape == (256, 160)
    counted = Linear(192, 160)
    with FlopCounterMode(display=False) as counter:
        counted(x.requires_grad_()).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 256 * 192 * 160
    assert products == []
