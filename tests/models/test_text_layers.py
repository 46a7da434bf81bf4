"""Forward-mode rules of the text tower's layers against torch's own, operation by operation, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from transformers.activations import NewGELUActivation

from blades_dist.bilevel.hypergradient import push_forward
from blades_dist.models.affine import GPT2Linear, Linear
from blades_dist.models.dual import remember
from blades_dist.models.text_layers import Gelu, GPT2Attention, LayerNorm, tree_attention

Values = dict[str, Tensor]
T, WIDTH = 7, 6
MASK = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).double()


class Attention(GPT2Attention):
    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return tree_attention(self, query, key, value, MASK, scaling=0.3)[0]


def plain_attention(at: Values) -> Tensor:
    scores = at["query"] @ at["key"].transpose(-1, -2) * 0.3 + MASK
    return (scores.softmax(-1) @ at["value"]).transpose(1, 2)


def plain_norm(at: Values) -> Tensor:
    x = at["x"]
    n = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5)
    return n * at["weight"] + at["bias"]


HEADS = {name: (1, 2, T, 3) for name in ("query", "key", "value")}
CASES: dict[str, tuple[nn.Module, dict[str, tuple[int, ...]], Callable[[Values], Tensor]]] = {
    "norm": (LayerNorm(WIDTH), {"x": (1, T, WIDTH), "weight": (WIDTH,), "bias": (WIDTH,)}, plain_norm),
    "gelu": (Gelu(), {"x": (1, T, WIDTH)}, lambda at: NewGELUActivation()(at["x"])),
    "attention": (Attention(), HEADS, plain_attention),
    "linear": (
        Linear(WIDTH, 4),
        {"x": (1, T, WIDTH), "weight": (4, WIDTH), "bias": (4,)},
        lambda at: at["x"] @ at["weight"].T + at["bias"],
    ),
    "gpt2 linear": (
        GPT2Linear(4, WIDTH),
        {"x": (1, T, WIDTH), "weight": (WIDTH, 4), "bias": (4,)},
        lambda at: at["x"] @ at["weight"] + at["bias"],
    ),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_rules_equal_torchs_own(case: str, known: bool) -> None:
    layer, shapes, plain = CASES[case]
    layer.double()
    torch.manual_seed(0)
    values, along = ({name: torch.randn(shape).double() for name, shape in shapes.items()} for _ in range(2))

    def ours(at: Values) -> Tensor:
        params = {name: at[name] for name in at if name in ("weight", "bias")}
        return functional_call(layer, params, tuple(at[name] for name in at if name not in params))

    layer.remembered = None
    if known:
        with remember(layer):
            ours(values)
    expected = jvp(plain, (values,), (along,))
    with torch.no_grad():
        found = jvp(ours, (values,), (along,))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for moving in values:  # one alone; the result has its graph
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        y, tangent = push_forward(lambda at, leaves=leaves: ours(leaves | at), {moving: leaves[moving]}, along)
        alone = jvp(lambda v, moving=moving: plain(values | {moving: v}), (values[moving],), (along[moving],))[1]
        torch.testing.assert_close(tangent, alone, rtol=1e-10, atol=1e-12)
        gradients = torch.autograd.grad(y.sin().sum(), list(leaves.values()))
        again = {name: value.clone().requires_grad_() for name, value in values.items()}
        for one, other in zip(
            gradients, torch.autograd.grad(plain(again).sin().sum(), list(again.values())), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
