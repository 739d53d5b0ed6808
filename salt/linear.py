"""A linear layer whose float32 products on a CPU go through oneDNN.

PyTorch sends them to the BLAS that it was built with. Intel's MKL uses half the width of the vector units of
AMD processors with AVX-512, where oneDNN, which PyTorch also carries, uses all of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: Multiplications of a product below which the detour costs more than it saves.
LEAST_PRODUCT = 4_000_000

#: Builds without oneDNN (macOS, some for ARM) have no such operator.
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

#: Other classes, such as DTensor's, have rules of their own for each operator, and none for this one.
PLAIN = (torch.Tensor, nn.Parameter)


class Linear(nn.Linear):
    """`nn.Linear` with the same weights and names; the products differ by rounding alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., in features] -> [..., out features]."""
        # The compiler stops at the questions of `_suits`, so it must not meet them.
        if torch.compiler.is_compiling() or not _suits(input, self.weight, self.bias):
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled():
            product: torch.Tensor = _Product.apply(input, self.weight, self.bias)
            return product
        return _product(input, self.weight, self.bias)


def _suits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether oneDNN takes this product: counters, tracers, transforms and other devices see the plain
    operator, and so do shapes and types that do not fit, whose errors it explains better."""
    parts = (x, weight) if bias is None else (x, weight, bias)
    return (
        AVAILABLE
        and x.numel() * weight.shape[0] >= LEAST_PRODUCT
        and x.ndim >= 2
        and x.shape[-1] == weight.shape[1]
        and all(type(part) in PLAIN and part.dtype == torch.float32 for part in parts)
        and all(part.device.type == "cpu" and part.layout == torch.strided for part in parts)
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and torch.utils._python_dispatch._get_current_dispatch_mode() is None
        and torch._C._functorch.peek_interpreter_stack() is None  # vmap, grad, jvp of torch.func
        and torch.autograd.forward_ad._current_level < 0
    )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x weight^T + bias: x [..., K], weight [N, K] -> [..., N]."""
    if torch.is_grad_enabled():  # a backward pass that is to be differentiated again
        return F.linear(x, weight, bias)
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad = grads[0]
        flat = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if wants_x else None,
            _product(flat.t(), x.flatten(0, -2).t()) if wants_weight else None,
            flat.sum(0) if wants_bias else None,
        )
