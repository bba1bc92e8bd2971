"""LoRA layers that add their part into the output of the base layer, in one step.

    y = x W^T + b + s (x A^T) B^T

peft writes s (x A^T) B^T out twice and adds it as a third tensor of y's size. Here it is added in
place, and the backward pass knows that W takes no gradient:

    dxa = s dy B,   dx = dy W + dxa A,   dA = dxa^T x,   dB = s dy^T (x A^T)

Beside a base in half precision float32 adapters are rounded to it for the product, as autocast
does, and their gradients are float32 again. Whatever this does not cover (dropout, DoRA, quantized
or sharded weights, several adapters, autocast to another dtype than the base's) is left to peft.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse(model: nn.Module) -> None:
    """Let the plain LoRA layers of a PEFT model compute in one step; others stay as they are."""
    for module in model.modules():
        if type(module) is PeftLinear and type(module.base_layer) is nn.Linear:
            module.__class__ = FusedLinear


class FusedLinear(PeftLinear):
    """peft's layer with another way to compute the same."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = self._plain_adapter() if not (args or kwargs) else None
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        lora_a: Any = self.lora_A[adapter].weight
        lora_b: Any = self.lora_B[adapter].weight
        trained = any(parameter.requires_grad for parameter in base.parameters())
        if trained or not _fit(x, base.weight, lora_a, lora_b):
            return super().forward(x)
        y = _Lora.apply(x, base.bias, base.weight, lora_a, lora_b, self.scaling[adapter])
        return y.view(*x.shape[:-1], -1)  # out here: a model may change what it gets in place

    def _plain_adapter(self) -> str | None:
        """The one active adapter, if nothing but its two matrices takes part."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        adapter = self.active_adapters[0]
        if adapter not in self.lora_A or adapter in self.lora_variant or self.use_dora[adapter]:
            return None
        dropout = self.lora_dropout[adapter]
        active = self.training and getattr(dropout, "p", 0.0) > 0
        return None if active or self.lora_B[adapter].bias is not None else adapter


def _fit(x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> bool:
    """Whole matrices of one dtype; a sharded weight has another shape than its layer."""
    return (
        weight.shape == (lora_b.shape[0], lora_a.shape[1])
        and lora_a.shape[0] == lora_b.shape[1]
        and x.shape[-1] == weight.shape[-1]
        and x.dtype == weight.dtype
        and lora_a.dtype in (x.dtype, torch.float32)
        and lora_b.dtype == lora_a.dtype
        and _computes_in(x.dtype, x.device.type)
        and all(type(w) in (Tensor, nn.Parameter) for w in (weight, lora_a, lora_b))
    )


def _computes_in(dtype: torch.dtype, device: str) -> bool:
    """Whether autocast, if it is on, would choose this dtype too."""
    return not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) == dtype


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, weight, lora_a, lora_b, scale):  # type: ignore[override]
        rows = x.reshape(-1, x.shape[-1])  # (..., in) -> (N, in)
        low = rows @ lora_a.to(x.dtype).T  # (N, r)
        y = nn.functional.linear(rows, weight, bias)
        y.addmm_(low, lora_b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, low, weight, lora_a, lora_b)
        ctx.scale = scale
        return y  # (N, out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        x, low, weight, lora_a, lora_b = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        grad_low = (grad @ lora_b.to(x.dtype)).mul_(ctx.scale)  # (N, r)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, lora_a.to(x.dtype)).view(x.shape)
        grad_a = (grad_low.T @ rows).to(lora_a.dtype)
        grad_b = (grad.T @ low).mul_(ctx.scale).to(lora_b.dtype)
        return grad_x, None, None, grad_a, grad_b, None
