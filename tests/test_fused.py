"""LoRA in one step: the same outputs and gradients as peft, and peft wherever it does not fit."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from main.models.fused import FusedLinear, _Lora, fuse


def adapted(bias: bool = False, dtype: torch.dtype = torch.float64, **options) -> Any:
    """Two layers with an adapter whose B is not zero."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 10, bias=bias), nn.SiLU(), nn.Linear(10, 5, bias=bias))
    given: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 5,
        "init_lora_weights": False,
        "target_modules": ["0", "2"],
    }
    return get_peft_model(base.to(dtype), LoraConfig(**(given | options)))


def pair(**options) -> tuple[Any, Any]:
    """The model as peft computes it, and its copy with fused layers."""
    plain = adapted(**options)
    fused = copy.deepcopy(plain)
    fuse(fused)
    return plain, fused


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and every gradient, that of the input included."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


X = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"use_rslora": True}], ids=str)
def test_outputs_and_gradients_are_those_of_peft(options):
    plain, fused = pair(**options)
    assert sum(type(module) is FusedLinear for module in fused.modules()) == 2
    torch.testing.assert_close(results(fused, X), results(plain, X), rtol=1e-12, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    x, weight, a, b = (
        torch.randn(s, dtype=torch.float64) for s in ((4, 6), (5, 6), (3, 6), (5, 3))
    )
    x, a, b = (t.requires_grad_() for t in (x, a, b))
    assert torch.autograd.gradcheck(
        lambda *t: _Lora.apply(t[0], None, weight, *t[1:], 1.7), (x, a, b)
    )


def test_an_input_without_gradient_gets_none():
    _, fused = pair()
    fused(X).sum().backward()
    assert all(p.grad is not None for p in fused.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "options",
    [
        {"lora_dropout": 0.5},
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["2"], "target_modules": ["0"]},
    ],
    ids=str,
)
def test_what_it_does_not_cover_is_left_to_peft(options):
    plain, fused = pair(bias="lora_bias" in options, **options)
    torch.testing.assert_close(results(fused, X), results(plain, X), rtol=1e-12, atol=1e-12)


def test_dropout_comes_back_with_training_and_goes_with_evaluation():
    plain, fused = pair(lora_dropout=0.5)
    x = X.clone()
    assert torch.equal(fused.eval()(x), fused(x))
    torch.testing.assert_close(fused(x), plain.eval()(x))
    fused.train()
    assert not torch.equal(fused(x), fused(x))


def test_a_disabled_adapter_is_the_base():
    plain, fused = pair()
    with plain.disable_adapter(), fused.disable_adapter():
        assert torch.equal(fused(X), plain(X))


def test_two_adapters_are_left_to_peft():
    plain, fused = pair()
    for model in (plain, fused):
        torch.manual_seed(3)
        model.add_adapter("other", LoraConfig(target_modules=["0", "2"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(results(fused, X), results(plain, X), rtol=1e-12, atol=1e-12)


def with_float32_adapter(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    gaps = [(a.double() - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]
    return float(max(gaps))


@pytest.mark.parametrize("autocast", [False, True])
def test_beside_a_half_precision_base_float32_adapters_lose_what_they_lose_in_autocast(autocast):
    plain, fused = (with_float32_adapter(model) for model in pair(dtype=torch.bfloat16))
    exact = results(copy.deepcopy(plain).double(), X)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = results(plain, X.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = results(fused, X.bfloat16())
    assert [gradient.dtype for gradient in ours[2:]] == [torch.float32] * 4
    assert apart(ours, exact) < 2e-2 and apart(ours, exact) < 2 * apart(theirs, exact)


def test_autocast_to_another_dtype_than_the_bases_is_left_to_peft():
    plain, fused = pair(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(X.float()), plain(X.float()))


def test_a_merged_model_is_the_adapted_one():
    _, fused = pair()
    expected = fused(X)
    torch.testing.assert_close(fused.merge_and_unload()(X), expected)


def test_gradient_checkpointing_changes_nothing():
    _, fused = pair()
    expected = results(fused, X)
    fused.zero_grad()

    def recomputed(x: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(fused, x, use_reentrant=False)

    x = X.clone().requires_grad_()
    recomputed(x).square().sum().backward()
    found = [x.grad, *(p.grad for p in fused.parameters() if p.requires_grad)]
    torch.testing.assert_close(found, expected[1:])


def test_a_model_may_change_an_output_in_place_as_gemma_3n_does():
    plain, fused = pair()
    x = torch.randn(2, 4, 6, dtype=torch.float64)

    def changed(model: nn.Module) -> list[torch.Tensor]:
        layers: Any = model.get_submodule("base_model.model")
        y = layers[0](x)
        y *= 3.0
        model.zero_grad()
        y.square().sum().backward()
        return [y, *(p.grad for p in model.parameters() if p.grad is not None)]

    for ours, theirs in zip(changed(fused), changed(plain), strict=True):
        torch.testing.assert_close(ours, theirs)
