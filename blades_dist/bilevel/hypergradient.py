"""d l_val(theta'(lambda)) / d lambda: what each task's weight does to the proxy task on validation photographs.

With theta' = theta - lr (sum_i lambda_i g_i + wd theta) and v = grad l_val(theta'), the chain rule gives
-lr <g_i, v> for every task i (DESIGN section 4). All functions are pure in the parameters: forwards are called on
parameter dictionaries and must not move any state.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp

from blades_dist.bilevel.lookahead import Params
from blades_dist.bilevel.reduce import World
from blades_dist.losses.fidelity import Fidelity


@dataclass(frozen=True)
class Batch:
    """One fixed batch: ``forward`` maps parameters to logits (B, C), ``loss`` logits to the K global losses."""

    forward: Callable[[Params], Tensor]
    loss: Callable[[Tensor], Fidelity]


@dataclass(frozen=True)
class Hypergradient:
    """``value`` (K,) = d l_val / d lambda, and ``val_losses`` (K,) at the look-ahead; both equal on all ranks."""

    value: Tensor
    val_losses: Tensor


def weighted(gradient: Tensor, weights: Tensor, task_of_column: Tensor) -> Tensor:
    """Logit cotangent (B, C) of sum_i weights_i losses_i: the unweighted one with its columns scaled."""
    return gradient * weights.to(gradient)[task_of_column]


def pull_back(logits: Tensor, cotangent: Tensor, params: Params, world: World, keep_graph: bool = False) -> Params:
    """Parameter gradient of the global loss whose cotangent at this rank's ``logits`` (B, C) is given."""
    names = list(params)
    gradients = torch.autograd.grad(
        logits,
        [params[name] for name in names],
        cotangent.to(logits.dtype),
        retain_graph=keep_graph,
        materialize_grads=True,
    )
    return dict(zip(names, world.sum_all(gradients), strict=True))


def outer_direction(
    val: Batch, lookahead: Params, proxy: int, task_of_column: Tensor, world: World
) -> tuple[Params, Tensor]:
    """v = gradient of the proxy task's loss on ``val`` at the look-ahead, and the K validation losses there."""
    point = {name: value.requires_grad_() for name, value in lookahead.items()}
    with torch.enable_grad():
        logits = val.forward(point)
    result = val.loss(logits)
    cotangent = result.gradient * (task_of_column == proxy)
    return pull_back(logits, cotangent, point, world), result.losses


def exact(
    train: Batch,
    train_gradient: Tensor,
    params: Params,
    direction: Params,
    lr: float,
    task_of_column: Tensor,
    tasks: int,
    world: World,
) -> Tensor:
    """-lr <g_i, v> for all tasks by one forward-mode pass of the train batch along v = ``direction``.

    ``train_gradient`` (B, C) is the unweighted logit gradient of the train batch at ``params``. Task i's product
    is the sum over its own columns of train_gradient * (J v).
    """
    detached = {name: value.detach() for name, value in params.items()}
    tangent = {name: value.detach() for name, value in direction.items()}
    with torch.no_grad():
        moved: Tensor = jvp(train.forward, (detached,), (tangent,))[1]
    columns = (train_gradient * moved.to(train_gradient.dtype)).sum(0)
    products = columns.new_zeros(tasks).index_add_(0, task_of_column, columns)
    return -lr * world.sum(products)


def finite_difference(train: Batch, params: Params, direction: Params, lr: float, epsilon: float = 0.01) -> Tensor:
    """-lr <g_i, v> from the K losses at theta +- (epsilon / |v|) v, as the released code has it; for parity.

    Two forwards without a graph. Its error is that of a central difference in the parameters' precision.
    """
    norm = torch.stack([value.detach().double().square().sum() for value in direction.values()]).sum().sqrt()
    step = epsilon / float(norm)
    with torch.no_grad():
        losses = [
            train.loss(train.forward({name: value + sign * step * direction[name] for name, value in params.items()}))
            for sign in (1.0, -1.0)
        ]
    return -lr * (losses[0].losses - losses[1].losses) / (2 * step)
