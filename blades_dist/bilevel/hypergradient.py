"""d l_val(theta'(lambda)) / d lambda: what each task's weight does to the proxy task on validation photographs.

With the look-ahead theta' = theta - lr (u(sum_i lambda_i g_i) + wd theta) and v = grad l_val(theta'), the chain rule
gives -lr <g_i, w> for every task i, where w = P^T v is the look-ahead's adjoint of v (DESIGN section 4; P is the
identity for sgd). The three routes differ in how they find the K products <g_i, w>, behind one signature:

    ROUTES[name](train, params, direction, columns, world) -> (K,) products, equal on all ranks

All functions are pure in the parameters: forwards are called on parameter dictionaries and must not move any state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from blades_dist.bilevel.lookahead import Params, norm
from blades_dist.distributed import World
from blades_dist.losses.fidelity import Fidelity
from blades_dist.tasks import TaskSet


@dataclass(frozen=True)
class Objective:
    """The losses of one fixed batch as functions: ``forward`` maps parameters to logits (B, C), ``loss`` logits to the
    K global losses."""

    forward: Callable[[Params], Tensor]
    loss: Callable[[Tensor], Fidelity]


@dataclass(frozen=True)
class TrainForward:
    """The forward of a train batch at the present parameters: its ``logits`` (B, C) with their graph, their losses
    and unweighted gradient, and, if it ran in forward mode, their ``tangent`` (B, C)."""

    objective: Objective
    logits: Tensor
    found: Fidelity
    tangent: Tensor | None = None


@dataclass(frozen=True)
class Columns:
    """Which task reads each logit column: ``task`` (C,) long, on the logits' device."""

    task: Tensor
    tasks: int
    proxy: int

    @staticmethod
    def of(tasks: TaskSet, device: torch.device | str = "cpu") -> "Columns":
        return Columns(torch.tensor(tasks.task_of_column, device=device), len(tasks), tasks.proxy)

    def sum(self, values: Tensor) -> Tensor:
        """(B, C) to (K,): each task's own columns added up."""
        return values.new_zeros(self.tasks).index_add_(0, self.task, values.sum(0))


def pull_back(logits: Tensor, cotangent: Tensor, params: Params, keep_graph: bool = False) -> Params:
    """This rank's share of the parameter gradient of the global loss whose cotangent at ``logits`` is given.

    Laid out in memory as the parameters are, which lets operations take all of them together.
    """
    gradients = torch.autograd.grad(
        logits,
        list(params.values()),
        cotangent.to(logits.dtype),
        retain_graph=keep_graph,
        materialize_grads=True,
    )
    return {name: _laid_out(each, params[name]) for name, each in zip(params, gradients, strict=True)}


def combine(share: Params, world: World, sync: str) -> Params:
    """Rank shares to a gradient: their sum (``exact``), or this rank's times N, an unbiased estimate (``local``)."""
    if sync == "local":
        if world.size == 1:
            return share
        return dict(zip(share, torch._foreach_mul(list(share.values()), world.size), strict=True))
    return dict(zip(share, world.sum_all(list(share.values())), strict=True))


def push_forward(forward: Callable[[Params], Tensor], params: Params, direction: Params) -> tuple[Tensor, Tensor]:
    """``forward(params)`` and its derivative along ``direction``, by one pass in forward mode.

    The first result has its graph for the reverse mode as usual, the second has none. Compiled modules run as
    written here: the compiler has no forward mode.
    """
    with torch.compiler.set_stance("force_eager"), forward_mode.dual_level():
        duals = {name: forward_mode.make_dual(value, direction[name]) for name, value in params.items()}
        result, tangent = forward_mode.unpack_dual(forward(duals))
    return result, torch.zeros_like(result) if tangent is None else tangent.detach()


def outer_direction(val: Objective, point: Params, columns: Columns, world: World, sync: str) -> tuple[Params, Tensor]:
    """v = gradient of the proxy task's loss on ``val`` at ``point``, and the K validation losses there."""
    leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
    with torch.enable_grad():
        logits = val.forward(leaves)
    result = val.loss(logits)
    cotangent = result.gradient * (columns.task == columns.proxy)
    return combine(pull_back(logits, cotangent, leaves), world, sync), result.losses


def exact(train: Sequence[TrainForward], params: Params, direction: Params, columns: Columns, world: World) -> Tensor:
    """Products by one forward-mode pass of each train batch along ``direction``: exact, for all tasks at once.

    Every task reads its own logit columns, so <g_i, w> is the sum over them of gradient * (J w).
    """
    point = {name: value.detach() for name, value in params.items()}
    with torch.no_grad():
        moved = [replace(part, tangent=push_forward(part.objective.forward, point, direction)[1]) for part in train]
    return carried(moved, params, direction, columns, world)


def carried(train: Sequence[TrainForward], params: Params, direction: Params, columns: Columns, world: World) -> Tensor:
    """Products from tangents that the train forwards have brought along: the route ``alternating``.

    There w is taken before the train forward, at the present parameters instead of at the look-ahead.

    Raises:
        ValueError: a train forward did not run in forward mode.
    """
    total = train[0].found.losses.new_zeros(columns.tasks)
    for part in train:
        if part.tangent is None:
            raise ValueError("the route alternating needs train forwards in forward mode along the direction")
        total = total + columns.sum(part.found.gradient * part.tangent.to(part.found.gradient.dtype))
    return world.sum(total / len(train))


def finite_difference(
    train: Sequence[TrainForward],
    params: Params,
    direction: Params,
    columns: Columns,
    world: World,
    epsilon: float = 0.01,
) -> Tensor:
    """Products from the K losses at theta +- (epsilon / |w|) w, as the released code has it; for parity.

    Two forwards without a graph for each batch. The error is that of a central difference: of order epsilon^2, and
    rounding of the losses over epsilon. |w|^2 is the ranks' mean, so that all ranks take one step length.
    """
    size = (world.sum(norm(direction.values()).square()) / world.size).sqrt()
    some = size > 0
    step = torch.where(some, epsilon / size, 0.0)
    offset = torch._foreach_mul([direction[name] for name in params], step)
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            point = dict(zip(params, torch._foreach_add(list(params.values()), offset, alpha=sign), strict=True))
            ends = [part.objective.loss(part.objective.forward(point)).losses for part in train]
            losses.append(torch.stack(ends).mean(0))
    return torch.where(some, (losses[0] - losses[1]) / (2 * step), 0.0)


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """``value`` with the strides of ``like``, whose shape it has."""
    if value.stride() == like.stride():
        return value
    if value.is_contiguous() and like.is_contiguous():  # they differ in strides of dimensions of size one only
        return value.as_strided(like.size(), like.stride())
    return torch.empty_like(like).copy_(value)


ROUTES: dict[str, Callable[..., Tensor]] = {
    "exact": exact,
    "finite_difference": finite_difference,
    "alternating": carried,
}
