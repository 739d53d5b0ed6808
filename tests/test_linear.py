"""The linear layer that goes through oneDNN, against float64 and against the plain one."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, stack_module_state, vmap
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


@pytest.mark.parametrize("shape", ["strided", "repeated", "rows of three axes"])
def test_inputs_that_are_not_contiguous(shape: str, products: list[tuple[int, ...]]) -> None:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(193, 37, 5, generator=random)
    x = {
        "strided": base.permute(2, 1, 0),
        "repeated": base[:, 0, 0].expand(5, 50, 193),
        "rows of three axes": torch.randn(2, 3, 37, 193, generator=random),
    }[shape].requires_grad_()
    layer = Linear(193, 161)
    reference = nn.functional.linear(x, layer.weight, layer.bias)
    # A gradient laid out the other way round, and the same number everywhere.
    turned = torch.randn(*reference.shape[::-1], generator=random).permute(*reversed(range(x.ndim)))
    for grad in (turned, torch.ones(()).expand_as(reference)):
        inputs = [x, layer.weight, layer.bias]
        found = torch.autograd.grad(layer(x), inputs, grad)
        wanted = torch.autograd.grad(reference, inputs, grad, retain_graph=True)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    assert len(products) == 6


def test_a_gradient_can_be_differentiated_again() -> None:
    """As a gradient penalty does: the product of oneDNN has no derivative, and would be left out unseen."""
    layer, x = Linear(200, 160), torch.randn(200, 200, requires_grad=True)

    def penalty(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (gradient,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), [x, layer.weight])

    wanted = penalty(nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(penalty(layer(x)), wanted, atol=1e-2, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")  # DTensor and the compiler use what torch has deprecated
def test_transforms_compilers_and_sharded_weights_go_the_plain_way(products: list[tuple[int, ...]]) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    layers, x = [Linear(200, 160) for _ in range(2)], torch.randn(300, 200)
    wanted = torch.stack([nn.functional.linear(x, layer.weight, layer.bias) for layer in layers])
    weights, _ = stack_module_state(layers)
    found = vmap(lambda each: functional_call(layers[0], each, (x,)))(weights)
    torch.testing.assert_close(found, wanted)
    _, tangent = jvp(layers[0], (x,), (x,))
    torch.testing.assert_close(tangent, nn.functional.linear(x, layers[0].weight))
    compiled = torch.compile(layers[0], backend="eager", fullgraph=True)  # refuses to stop on its way
    torch.testing.assert_close(compiled(x), wanted[0])
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(layers[0](x), wanted[0])

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallelize_module(layers[0], init_device_mesh("cpu", (1,)), ColwiseParallel())
        assert isinstance(layers[0].weight, DTensor)
        y = layers[0](x)
        y.sum().backward()
        torch.testing.assert_close(y.detach(), wanted[0].detach())
        assert isinstance(layers[0].weight.grad, DTensor)
    finally:
        distributed.destroy_process_group()
    assert products == []


def test_mistakes_are_explained_by_the_plain_operator() -> None:
    layer, x = Linear(200, 160), torch.ones(300, 200)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.ones(300, 201))
    with pytest.raises(RuntimeError, match="meta"):
        Linear(200, 160, device="meta")(x)  # it gave numbers of no meaning
    wide = Linear(2100, 2000)
    assert wide(torch.ones(2100, requires_grad=True)).sum().backward() is None  # one row without an axis


def test_the_same_bits_from_call_to_call_and_for_any_number_of_threads() -> None:
    layer, x = Linear(192, 576), torch.randn(500, 192)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2, 1):
            torch.set_num_threads(count)
            found.append(layer(x).detach())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], each) for each in found[1:])
