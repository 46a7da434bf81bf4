"""The virtual inner step that the outer objective is evaluated after, and its derivative.

Both steps are theta' = theta - lr (u(g) + wd theta) at g = sum_i lambda_i g_i, with u the identity (sgd) or AdamW's
update, after clipping. Hence d theta' / d lambda_i = -lr P g_i with P = du/dg, and for a cotangent v of theta'

    d l / d lambda_i = -lr <g_i, P^T v>

so that whatever the inner step is, an outer step needs one vector: ``Lookahead.adjoint(v)`` = P^T v.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Params = dict[str, Tensor]
CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_ and of DeepSpeed


@dataclass(frozen=True)
class Lookahead:
    """``point`` = theta', detached new tensors; ``adjoint`` maps a cotangent v of theta' to P^T v."""

    point: Params
    adjoint: Callable[[Params], Params]


@dataclass(frozen=True)
class AdamW:
    """AdamW's constants and its state before the step; ``step`` counts the steps taken (0: moments are zero)."""

    exp_avg: Params
    exp_avg_sq: Params
    step: int
    betas: tuple[float, float]
    eps: float

    @property
    def corrections(self) -> tuple[float, float]:
        """1 - beta^t of both moments at the step to come."""
        first, second = (1 - beta ** (self.step + 1) for beta in self.betas)
        return first, second


def sgd_lookahead(
    params: Params, gradient: Params, lr: float, weight_decay: float, clip_norm: float = 0.0
) -> Lookahead:
    """theta' = theta - lr (clip(gradient) + weight_decay theta), DESIGN section 4. ``clip_norm`` 0: no clipping."""
    coefficient, project = _clip(gradient, clip_norm)
    point = {
        name: torch.add(value.detach() * (1 - lr * weight_decay), gradient[name], alpha=-lr * coefficient)
        for name, value in params.items()
    }
    return Lookahead(point, project)


def adamw_lookahead(
    params: Params, gradient: Params, lr: float, weight_decay: float, state: AdamW, clip_norm: float = 0.0
) -> Lookahead:
    """theta' as AdamW with decoupled decay takes it (Loshchilov and Hutter, 2019), bias correction included."""
    coefficient, project = _clip(gradient, clip_norm)
    clipped = {name: value * coefficient for name, value in gradient.items()} if coefficient < 1 else gradient
    (beta1, beta2), (first, second) = state.betas, state.corrections
    point = {}
    for name, value in params.items():
        mean = torch.lerp(clipped[name], state.exp_avg[name], beta1)
        root = torch.lerp(clipped[name].square(), state.exp_avg_sq[name], beta2).div_(second).sqrt_()
        update = mean.div_(first).div_(root.add_(state.eps))
        point[name] = torch.add(value.detach() * (1 - lr * weight_decay), update, alpha=-lr)

    def adjoint(v: Params) -> Params:
        return project(adamw_adjoint(v, clipped, state))

    return Lookahead(point, adjoint)


def adamw_adjoint(v: Params, gradient: Params, state: AdamW) -> Params:
    """P^T v of AdamW's update without clipping at ``gradient``: it acts on each element alone, so P is diagonal.

    With m and s the moments before the step, root = sqrt(s_hat) and c1, c2 the bias corrections,

        du/dg = ([(1 - b1) b2 s - b1 (1 - b2) m g] / (c1 c2 root) + (1 - b1) eps / c1) / (root + eps)^2.

    The terms in g^2 of the quotient rule cancel; written like this they cannot leave a rounding error behind, which
    at the first step (m = s = 0, where u is nearly sign(g)) would be larger than the derivative.
    """
    (beta1, beta2), (first, second) = state.betas, state.corrections
    result = {}
    for name, cotangent in v.items():
        g, m, s = gradient[name], state.exp_avg[name], state.exp_avg_sq[name]
        root = torch.lerp(g.square(), s, beta2).div_(second).sqrt_()
        bracket = (1 - beta1) * beta2 * s - (beta1 * (1 - beta2)) * m * g
        # root = 0 means g = s = 0 (and so m = 0): the bracket vanishes faster than root.
        bracket = torch.where(root > 0, bracket / (first * second * root), torch.zeros_like(root))
        result[name] = cotangent * (bracket + (1 - beta1) * state.eps / first) / (root + state.eps).square()
    return result


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all elements together, a scalar."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in tensors]))


def _clip(gradient: Params, bound: float) -> tuple[float, Callable[[Params], Params]]:
    """The factor s that clipping scales ``gradient`` by, and P^T of g -> s(g) g.

    Where the norm n exceeds the bound, s = bound / (n + eps) shrinks as g grows: P = s (1 - g g^T / (n (n + eps))).
    """
    if not bound:
        return 1.0, lambda v: v
    size = float(norm(gradient.values()))
    coefficient = min(bound / (size + CLIP_EPSILON), 1.0)
    if not coefficient < 1:  # also when the norm is not a number: the step will be refused
        return 1.0, lambda v: v

    def project(v: Params) -> Params:
        along = float(torch.stack([torch.sum(gradient[name] * value) for name, value in v.items()]).sum())
        share = along / (size * (size + CLIP_EPSILON))
        return {name: coefficient * torch.sub(value, gradient[name], alpha=share) for name, value in v.items()}

    return coefficient, project
