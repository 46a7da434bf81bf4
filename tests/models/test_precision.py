"""Narrow copies of parameters: what autocast gives, gradients and tangents in the parameters' own type."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from blades_dist.models.adapt import adapt
from blades_dist.models.joint import JointModel
from blades_dist.models.precision import LowPrecision, narrowed
from tests.models.small import photographs, small_model


def test_copies_are_rounded_values_with_wide_gradients_and_narrow_tangents() -> None:
    torch.manual_seed(0)
    laid_out = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    values = [torch.randn(5).requires_grad_(), laid_out.requires_grad_(), torch.randn(2).requires_grad_()]
    copies = narrowed(values, torch.bfloat16)
    for value, narrow in zip(values, copies, strict=True):
        assert torch.equal(narrow, value.bfloat16()) and narrow.stride() == value.stride()
    cotangents = [copies[0].detach(), copies[1].detach().contiguous()]
    gradients = torch.autograd.grad(copies[:2], values, cotangents, allow_unused=True)
    assert gradients[2] is None
    for value, cotangent, gradient in zip(values, cotangents, gradients, strict=False):
        assert torch.equal(gradient, cotangent.float()) and gradient.stride() == value.stride()
    moved = jvp(lambda x: narrowed([x, values[2]], torch.bfloat16)[0] * 2, (values[0],), (values[0],))[1]
    assert torch.equal(moved, (2 * values[0]).bfloat16())


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_products_equal_autocasts_bit_for_bit(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "convolution":
        module, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, bias=False)), torch.randn(2, 3, 9, 9)
    else:
        module, x = nn.Sequential(nn.Linear(7, 16), nn.Linear(16, 4, bias=False)), torch.randn(5, 7)
    ours = copy.deepcopy(module)
    adapt(ours)
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(x)
    with LowPrecision(ours)(torch.bfloat16):
        found = ours(x)
    assert torch.equal(found, expected)
    cotangent = torch.randn_like(found)
    for a, b in zip(
        *(torch.autograd.grad(y, list(m.parameters()), cotangent) for y, m in ((found, ours), (expected, module))),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert all(getattr(layer, "lent", None) is None for layer in ours)


@pytest.mark.parametrize("kind", ["gpt2", "clip"])
def test_a_bf16_model_is_as_near_to_double_as_autocast(kind: str) -> None:
    """Results, gradients and tangents; at parameters given from outside, too."""
    # Batch statistics of so small a model amplify any rounding; see test_batchnorm for theirs.
    model = small_model(text={"kind": kind, "layers": 2}, batchnorm="frozen").train()
    images = photographs(8)
    generator = torch.Generator().manual_seed(1)
    along = {name: 0.03 * torch.randn(value.shape, generator=generator) for name, value in model.named_parameters()}

    def passes(each: JointModel, dtype: torch.dtype) -> list[Tensor]:
        at = {name: (1.01 * value.detach()).requires_grad_() for name, value in each.named_parameters()}

        def forward(at: dict[str, Tensor]) -> Tensor:
            return functional_call(each, at, (images.to(dtype),))

        logits = forward(at)
        gradient = torch.autograd.grad(logits, list(at.values()), torch.ones_like(logits).cumsum(1))
        assert all(value.dtype == dtype for value in gradient)
        with torch.no_grad():
            present = {name: value.detach() for name, value in at.items()}
            tangent = jvp(forward, (present,), ({name: value.to(dtype) for name, value in along.items()},))[1]
        return [each.double() for each in (logits, torch.cat([value.flatten() for value in gradient]), tangent)]

    expected = passes(copy.deepcopy(model).double(), torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = passes(model, torch.float32)
    model.autocast_dtype = torch.bfloat16
    for found, theirs, exact in zip(passes(model, torch.float32), autocast, expected, strict=True):
        error, usual = (float((value - exact).norm() / exact.norm()) for value in (found, theirs))
        print(f"{kind}: {error:.1e}, autocast {usual:.1e}")
        assert error < 0.1 and error < 1.5 * usual
