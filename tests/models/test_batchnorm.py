"""BatchNorm's modes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from blades_dist.bilevel.hypergradient import push_forward
from blades_dist.distributed import World
from blades_dist.models.batchnorm import BatchNorm2d, replace_batchnorm, still_statistics
from blades_dist.models.dual import remember
from blades_dist.testing.gloo import GlooPool


def test_batchnorm_equals_torchs_and_can_stand_still() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.BatchNorm2d(3))
    ours = nn.Sequential(nn.BatchNorm2d(3))
    replace_batchnorm(ours, "sync", World())
    assert isinstance(ours[0], BatchNorm2d)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours[0].running_var, theirs[0].running_var)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with still_statistics(ours):
        ours(torch.randn(4, 3, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    frozen = nn.Sequential(nn.BatchNorm2d(3))
    replace_batchnorm(frozen, "frozen", World())
    assert torch.equal(frozen(x), frozen.eval()(x))


def naive(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, relu: bool, frozen: bool) -> Tensor:
    """The layer operation by operation, which torch differentiates itself; frozen at mean 0 and variance 1."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    if frozen:
        mean, variance = torch.zeros_like(mean), torch.ones_like(variance)
    y = (x - mean) / torch.sqrt(variance + 1e-5) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    y = y if shortcut is None else y + shortcut
    return y.relu() if relu else y


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("mode", ["local", "frozen", "eval"])
def test_forward_mode_equals_torchs(mode: str, shortcut: bool, relu: bool, known: bool) -> None:
    torch.manual_seed(0)
    layer = BatchNorm2d(3, 1e-5, 0.1, "local" if mode == "eval" else mode, World()).double()
    layer.train(mode != "eval")
    names = ["x", "weight", "bias", *(["shortcut"] if shortcut else [])]
    shapes = {"x": (4, 3, 5, 5), "weight": (3,), "bias": (3,), "shortcut": (4, 3, 5, 5)}
    values, along = ({name: torch.randn(shapes[name]).double() for name in names} for _ in range(2))

    def ours(at: dict[str, Tensor]) -> Tensor:
        params = {name: at[name] for name in ("weight", "bias")}
        return functional_call(layer, params, (at["x"], at.get("shortcut"), relu))

    def theirs(at: dict[str, Tensor]) -> Tensor:
        return naive(at["x"], at["weight"], at["bias"], at.get("shortcut"), relu, mode != "local")

    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad(), still_statistics(layer):
        if known:
            with remember(layer):
                ours(values)
        found, expected = (jvp(function, (values,), (along,)) for function in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    # Only some of them move, and the result has a graph.
    leaf = values["x"].requires_grad_()
    y = push_forward(lambda at: ours(values | at), {"x": leaf}, {"x": along["x"]})
    z = jvp(lambda x: theirs(values | {"x": x}), (leaf,), (along["x"],))
    torch.testing.assert_close(y[1], z[1].detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(each.sin().sum(), leaf)[0] for each in (y[0], z[0])))


@pytest.mark.parametrize("mode", ["local", "frozen"])
def test_bf16_activations_keep_fp32_statistics_and_lose_only_their_own_rounding(mode: str) -> None:
    torch.manual_seed(0)
    narrow, wide = (BatchNorm2d(8, 1e-5, 0.1, mode, World()).train() for _ in range(2))
    x = (3 + torch.randn(6, 8, 9, 9)).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    same = x.detach().float().requires_grad_()
    y, expected = narrow(x), wide(same)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    # One rounding of the result; before, there were those of two casts, which are the same.
    assert torch.equal(y, expected.bfloat16())
    for one, other in zip(narrow.buffers(), wide.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    y.backward(torch.ones_like(y) * x.detach())
    expected.backward(same.detach())
    assert x.grad.dtype == torch.bfloat16 and narrow.weight.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad.float(), same.grad, rtol=2**-8, atol=2e-3)
    torch.testing.assert_close(narrow.weight.grad, wide.weight.grad, rtol=1e-5, atol=1e-3)


ROWS = 8


def of_a_rank(dtype: torch.dtype, shared: bool = True) -> list[np.ndarray]:
    """Result, tangent, gradient of x and of the parameters (summed over ranks), and buffers of this rank's rows."""
    world = World.current() if shared else World()
    generator = torch.Generator().manual_seed(0)
    wide, ahead, pull = (torch.randn(ROWS, 3, 4, 4, generator=generator).to(dtype) for _ in range(3))
    part = slice(world.rank * ROWS // world.size, (world.rank + 1) * ROWS // world.size)
    layer = BatchNorm2d(3, 1e-5, 0.1, "sync", world).train().to(torch.promote_types(dtype, torch.float32))
    params = dict(layer.named_parameters())
    leaf = (2 + wide)[part].requires_grad_()
    at, along = {"x": leaf, **params}, {"x": ahead[part], **{name: value + 1 for name, value in params.items()}}
    along = {name: value.detach() for name, value in along.items()}

    def forward(at: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, {name: at[name] for name in params}, (at["x"],))

    y, tangent = push_forward(forward, at, along)
    dx, *gradients = torch.autograd.grad(y, [leaf, *params.values()], pull[part])
    found = [y, tangent, dx, *world.sum_all(gradients), *(value.float() for value in layer.buffers())]
    return [value.detach().double().numpy() for value in found]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("ranks", [2, 4])
def test_synchronised_ranks_equal_one_process(
    ranks: int, dtype: torch.dtype, tolerance: float, request: pytest.FixtureRequest
) -> None:
    pool: GlooPool = request.getfixturevalue({2: "two_ranks", 4: "four_ranks"}[ranks])
    found, expected = pool.run(of_a_rank, dtype), of_a_rank(dtype, shared=False)
    for i, value in enumerate(expected):
        parts = [np.asarray(rank[i]) for rank in found]
        together = np.concatenate(parts) if i < 3 else parts[0]
        np.testing.assert_allclose(together, value, rtol=tolerance, atol=tolerance)


class Same(World):
    """Workers that all hold this one's rows, so that statistics over all of them are its own."""

    def gather(self, value: Tensor) -> Tensor:
        return torch.stack([value] * self.size)

    def _reduce(self, own: Tensor) -> Tensor:
        return own.mul_(self.size)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_synchronised_statistics_of_equal_rows_are_those_of_one_worker(dtype: torch.dtype, tolerance: float) -> None:
    """Without messages, so that it runs on a GPU, too, where torch's kernels take the place of formulas."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    x, dx, pull = (
        torch.randn(6, 16, 5, 7, generator=generator).to(device, dtype, memory_format=torch.channels_last)
        for _ in range(3)
    )
    found = []
    for mode, world in (("sync", Same(3)), ("local", World())):
        layer = BatchNorm2d(16, 1e-5, 0.1, mode, world).to(device).train()
        params = dict(layer.named_parameters())
        leaf = x.clone().requires_grad_()
        along = {"x": dx, **{name: value.detach() + 1 for name, value in params.items()}}

        def forward(at: dict[str, Tensor], layer: BatchNorm2d = layer) -> Tensor:
            given = {name: value for name, value in at.items() if name != "x"}
            return functional_call(layer, given, (at["x"], at["x"], True))

        y, tangent = push_forward(forward, {"x": leaf, **params}, along)
        gradients = torch.autograd.grad(y, [leaf, *params.values()], pull)
        found.append([y, tangent, *gradients, layer.running_mean])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.detach().abs().max()))
